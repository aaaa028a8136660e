/*
 * Adaptive filters (NLMS): what is left of a voxel after the static stage, from its neighbours and
 * their errors. Weights are carried along the row, and mixed with those that the row above and the
 * slice before left near here.
 */
#ifndef MRC_PREDICTIVE_FILTERS_H
#define MRC_PREDICTIVE_FILTERS_H

#include "predictive_scale.h"

enum {
    GROUPS = 6,         /* Groups of inputs: four values and the four errors beside them. */
    SLICE_COLUMNS = 8   /* Weights are kept for the next slice at every eighth column. */
};

/* Inputs are clamped to this many scales, errors that filters learn from to MAX_LEARNED. */
#define MAX_INPUT 4.0f
#define MAX_LEARNED 2.0f

/* A filter: which inputs it has, and how fast it learns. */
typedef struct {
    int32_t groups;
    float speed;
    float masks[GROUPS][LANES];
} filter_kind;

/* Groups are the row to the left, one and two rows up, and the slice before: row, up, down. */
static const filter_kind FILTERS[2] = {
    {4, 1.0f,
     {{0, 0, 0, 1, 0, 0, 1, 1}, {1, 1, 1, 0, 1, 1, 1, 0}, {0, 0, 0, 0, 0, 1, 0, 0},
      {0, 1, 0, 0, 0, 1, 0, 0}, {0}, {0}}},
    {6, 0.5f,
     {{0, 0, 1, 1, 0, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 0, 1, 1, 1, 0},
      {1, 1, 1, 0, 1, 1, 1, 0}, {0, 1, 0, 0, 0, 1, 0, 0}, {0, 1, 0, 0, 0, 1, 0, 0}}},
};

/* Weights of one filter. */
typedef struct {
    float *row;    /* [width]: of each column, as its last voxel left them */
    float *slice;  /* [height][blocks]: of the slice before */
    size_t blocks; /* Columns of `slice`. */
    float error;   /* Mean of the last errors of the filter. */
} filter;

static void take_filter(filter *f, arena *a, int32_t height, int32_t width, int32_t groups) {
    const size_t lanes = (size_t)groups * LANES;
    f->blocks = (size_t)width / SLICE_COLUMNS + 2;
    f->row = TAKE(a, float, (size_t)width * lanes);
    f->slice = TAKE(a, float, (size_t)height * f->blocks * lanes);
    if (a->failed || f->slice == NULL) return;
    memset(f->row, 0, (size_t)width * lanes * sizeof(float));
    memset(f->slice, 0, (size_t)height * f->blocks * lanes * sizeof(float));
}

/* Inputs of the filters: distances from the static prediction, and errors, in scales. */
MRC_INLINE void gather_inputs(const neighbourhood *n, int32_t j, float prediction, float inverse,
                              floats8 inputs[GROUPS]) {
    const float *values[GROUPS] = {n->value + j - 4, n->value1 + j - 1, n->value2 + j - 1,
                                   n->before + j - 1, n->before_up + j - 1, n->before_down + j - 1};
    const float *errors[GROUPS] = {n->error + j - 4, n->error1 + j - 1, n->error2 + j - 1,
                                   n->before_error + j - 1, n->before_error_up + j - 1,
                                   n->before_error_down + j - 1};
    const floats8 centre = {prediction, prediction, prediction, prediction, 0, 0, 0, 0};
    const floats8 limit = all8(MAX_INPUT);
    MRC_UNROLL
    for (int32_t g = 0; g < GROUPS; g++) {
        floats8 u = (load4_4(values[g], errors[g]) - centre) * inverse;
        inputs[g] = max8(min8(u, limit), -limit);
    }
}

/* What a filter did at a voxel. */
typedef struct {
    floats8 weights[GROUPS];
    floats8 inputs[GROUPS];
    float power; /* The sum of the squares of the inputs. */
} filter_output;

/* Weights of the row above and of the slice before that are mixed in at a voxel. */
typedef struct {
    const float *above, *before;
} filter_place;

MRC_INLINE filter_place place_of(const filter *f, int32_t i, int32_t j, int32_t width,
                                 int32_t first, const int32_t groups) {
    const size_t lanes = (size_t)groups * LANES;
    const float *above = f->row + (size_t)min32(j + 2, width - 1) * lanes;
    size_t block = (size_t)i * f->blocks + (size_t)(j + SLICE_COLUMNS / 2) / SLICE_COLUMNS;
    return (filter_place){above, first ? above : f->slice + block * lanes};
}

/* The correction of filter k in scales; `carried` are its weights at the voxel to the left. */
MRC_INLINE float apply_filter(const int32_t k, filter_place place, const floats8 carried[GROUPS],
                              const floats8 inputs[GROUPS], filter_output *out) {
    floats8 sum = all8(0), power = all8(0);
    MRC_UNROLL
    for (int32_t g = 0; g < GROUPS; g++) {
        if (g >= FILTERS[k].groups) break;
        floats8 above = load8(place.above + g * LANES), before = load8(place.before + g * LANES);
        floats8 w = carried[g] * (11.0f / 16) + above * (3.0f / 16) + before * (2.0f / 16);
        floats8 u = inputs[g] * load8(FILTERS[k].masks[g]);
        out->weights[g] = w;
        out->inputs[g] = u;
        sum += w * u;
        power += u * u;
    }
    out->power = sum8(power);
    return sum8(sum);
}

/* Rounds to multiples of 2^-20, so that weights that fade become 0. */
MRC_INLINE floats8 without_dust(floats8 v) { return (v + 12.0f) - 12.0f; }

/* Filter k learns from its error in scales, and leaves its weights for later voxels. */
MRC_INLINE void teach_filter(const int32_t k, filter *f, const filter_output *done, float error,
                             int32_t i, int32_t j, floats8 carried[GROUPS]) {
    const size_t lanes = (size_t)FILTERS[k].groups * LANES;
    error = clampf(error, -MAX_LEARNED, MAX_LEARNED);
    const floats8 step = all8(FILTERS[k].speed * error / (20 + done->power));
    float *row = f->row + (size_t)j * lanes;
    MRC_UNROLL
    for (int32_t g = 0; g < GROUPS; g++) {
        if (g >= FILTERS[k].groups) break;
        carried[g] = without_dust(done->weights[g] + step * done->inputs[g]);
        store8(row + g * LANES, carried[g]);
    }
    if (j % SLICE_COLUMNS == 0) {
        float *slice = f->slice + ((size_t)i * f->blocks + (size_t)j / SLICE_COLUMNS) * lanes;
        memcpy(slice, row, lanes * sizeof(float));
    }
}

#endif
