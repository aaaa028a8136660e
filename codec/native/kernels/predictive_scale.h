/*
 * How far from its prediction a voxel may be: a weighted sum of errors and steps around it, made
 * precise by how large errors were in contexts like this one.
 */
#ifndef MRC_PREDICTIVE_SCALE_H
#define MRC_PREDICTIVE_SCALE_H

#include "predictive_planes.h"

/* Weights in 2^-12 of the errors and of steps between neighbours. In this order: nine errors of the
 * current slice, nine of the one before, six steps of the current one, four of the one before. */
enum { SCALE_TERMS = 28 };

static const float SCALE_WEIGHTS[2][SCALE_TERMS] = {
    {149, 243, 220, 131, 189, 393, 409, 327, 573, 0, 0, 0, 0, 0, 0, 0, 0, 0,
     151, 48, 112, 40, 61, 117, 0, 0, 0, 0},
    {106, 183, 156, 99, 154, 351, 312, 259, 503, 54, 82, 61, 94, 183, 139, 106, 140, 124,
     79, 37, 74, 23, 42, 70, 33, 20, 63, 35},
};

/* Added to a scale, so that it is never 0: half of a quantisation step. */
#define SCALE_MARGIN 0.45f

/* Rows of the neighbourhood, at column 0. */
typedef struct {
    float *value, *error;                     /* The current row. */
    const float *value1, *error1;             /* One row up. */
    const float *value2, *error2;             /* Two rows up. */
    const float *before, *before_error;       /* The slice before: the same row, */
    const float *before_up, *before_error_up; /* a row up, */
    const float *before_down, *before_error_down; /* and a row down. */
    const float *weights;                     /* Of the scale. */
    int32_t first; /* Whether there is no slice before. */
} neighbourhood;

static neighbourhood neighbourhood_of(const planes *p, int32_t t, int32_t i) {
    const ptrdiff_t row = row_start(p, i), stride = (ptrdiff_t)p->stride;
    const float *before = p->values[1] + row, *before_error = p->errors[1] + row;
    neighbourhood n = {
        .value = p->values[0] + row, .error = p->errors[0] + row,
        .value1 = p->values[0] + row - stride, .error1 = p->errors[0] + row - stride,
        .value2 = p->values[0] + row - 2 * stride, .error2 = p->errors[0] + row - 2 * stride,
        .before = before, .before_error = before_error,
        .before_up = before - stride, .before_error_up = before_error - stride,
        .before_down = before + stride, .before_error_down = before_error + stride,
        .weights = SCALE_WEIGHTS[t > 0], .first = t == 0,
    };
    return n;
}

/* The terms of the scale that are known before the row is: [width], in 2^-12 samples. */
static void sum_scale(const neighbourhood *n, int32_t width, float *restrict sums) {
    const float *w = n->weights;
    const float *e1 = n->error1, *e2 = n->error2, *x1 = n->value1, *x2 = n->value2;
    for (int32_t j = 0; j < width; j++) {
        float errors = w[0] * magnitude(e2[j - 1]) + w[1] * magnitude(e2[j]) +
                       w[2] * magnitude(e2[j + 1]) + w[3] * magnitude(e1[j - 2]) +
                       w[4] * magnitude(e1[j - 1]) + w[5] * magnitude(e1[j]) +
                       w[6] * magnitude(e1[j + 1]);
        sums[j] = errors + w[19] * magnitude(x1[j] - x1[j - 1]) +
                  w[20] * magnitude(x1[j] - x1[j + 1]) + w[22] * magnitude(x1[j] - x2[j]);
    }
    if (n->first) return;
    const float *e = n->before_error, *up = n->before_error_up, *down = n->before_error_down;
    const float *x = n->before, *x_up = n->before_up, *x_down = n->before_down;
    for (int32_t j = 0; j < width; j++) {
        float errors = w[9] * magnitude(up[j - 1]) + w[10] * magnitude(up[j]) +
                       w[11] * magnitude(up[j + 1]) + w[12] * magnitude(e[j - 1]) +
                       w[13] * magnitude(e[j]) + w[14] * magnitude(e[j + 1]) +
                       w[15] * magnitude(down[j - 1]) + w[16] * magnitude(down[j]) +
                       w[17] * magnitude(down[j + 1]);
        sums[j] += errors + w[24] * magnitude(x[j] - x[j - 1]) +
                   w[25] * magnitude(x[j] - x[j + 1]) + w[26] * magnitude(x[j] - x_up[j]) +
                   w[27] * magnitude(x[j] - x_down[j]);
    }
}

/* The scale of column j, in samples, without its margin. */
MRC_INLINE float scale_at(const neighbourhood *n, const float *sums, int32_t j) {
    const float *w = n->weights, *x = n->value + j, *e = n->error + j, *x1 = n->value1 + j;
    float sum = sums[j] + w[7] * magnitude(e[-2]) + w[21] * magnitude(x[-1] - x[-2]);
    sum += w[18] * magnitude(x[-1] - x1[-1]) + w[23] * magnitude(x[-1] - x1[0]);
    return (sum + w[8] * magnitude(e[-1])) * (1.0f / 4096);
}

enum {
    SCALE_CONTEXTS = 96,  /* Steps of the scale, four an octave. */
    COARSE_STEPS = 48,    /* Steps of the scale, two an octave. */
    SCALE_LOW = -5,       /* The first octave of both. */
    DISAGREEMENTS = 8,    /* Steps of the difference between predictions. */
    MAX_RATE = 2048       /* Counts of a context that have a rate of their own. */
};

/* The mean of |error| in a context, in scales (with their margin). */
typedef struct {
    float mean;
    int32_t count;
} mean_error;

typedef struct {
    mean_error *fine;    /* [SCALE_CONTEXTS]: by the scale */
    mean_error *errors;  /* [COARSE_STEPS][COARSE_STEPS]: errors in the slice, and before it */
    mean_error *mixed;   /* [COARSE_STEPS][DISAGREEMENTS][16]: scale, disagreement, prediction */
    float *rates;        /* [MAX_RATE]: of learning, by the count */
} scale_memory;

/* A mean begins here: |error| / scale of most scans. */
#define FIRST_MEAN 0.8f
/* Added before a scale is put on steps: flat regions are one step. */
#define STEP_MARGIN 0.03f

static void take_scale_memory(scale_memory *m, arena *a, int32_t contexts) {
    const size_t coarse = (size_t)COARSE_STEPS * COARSE_STEPS;
    const size_t mixed = (size_t)COARSE_STEPS * DISAGREEMENTS * 16;
    m->fine = TAKE(a, mean_error, SCALE_CONTEXTS);
    m->errors = contexts > 1 ? TAKE(a, mean_error, coarse) : NULL;
    m->mixed = contexts > 1 ? TAKE(a, mean_error, mixed) : NULL;
    m->rates = TAKE(a, float, MAX_RATE);
    if (a->failed || m->rates == NULL) return;
    for (int32_t n = 0; n < MAX_RATE; n++) m->rates[n] = 1.0f / (float)(n + 5);
    for (int32_t n = 0; n < SCALE_CONTEXTS; n++) m->fine[n] = (mean_error){FIRST_MEAN, 0};
    if (contexts == 1) return;
    for (size_t n = 0; n < coarse; n++) m->errors[n] = (mean_error){FIRST_MEAN, 0};
    for (size_t n = 0; n < mixed; n++) m->mixed[n] = (mean_error){FIRST_MEAN, 0};
}

MRC_INLINE void learn_mean(mean_error *m, const float *rates, float error, int32_t limit) {
    m->mean += (error - m->mean) * rates[m->count];
    m->count += m->count < limit;
}

/* Counts at which means no longer slow down: of the fine context, and of the others. */
enum { FINE_LIMIT = 1995, OTHER_LIMIT = 495 };

#endif
