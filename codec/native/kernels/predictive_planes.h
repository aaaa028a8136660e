/*
 * Slices of a slab as the predictive coder sees them: three of samples, two of values and errors as
 * floats, each with borders, so that no neighbour of a voxel needs a test.
 */
#ifndef MRC_PREDICTIVE_PLANES_H
#define MRC_PREDICTIVE_PLANES_H

#include "lanes.h"

enum {
    BORDER = 16,      /* Columns beside a row that neighbours may lie in. */
    ROWS_ABOVE = 10,  /* Rows above a slice. */
    ROWS_BELOW = 3,   /* Rows below a slice: neighbours in the slice before. */
    ROW_BLOCK = 32,   /* Columns that a pass over a row does at once: it may go beyond the row. */
    PART_BITS = 15,   /* Bits of a sample in each of its parts. */
    PARTS = 2,        /* Parts of a sample of 2^15 or more. */
    SLICES_KEPT = 3   /* The current slice and the two before it. */
};

typedef struct {
    int32_t slices, height, width;
    size_t stride;  /* Columns of a row with its borders. */
    size_t area;    /* Of a slice with its borders. */
    int32_t parts;  /* 1 for samples below 2^15, else 2. */
    int16_t *samples[SLICES_KEPT][PARTS]; /* 0: the current slice; bits 0-14, and those above. */
    float *values[2]; /* Samples of the current slice and of the one before, */
    float *errors[2]; /* and their errors of prediction. */
    int32_t *line;    /* Samples of the current row, [-BORDER] ... [width - 1]. */
} planes;

static size_t padded_columns(int32_t width) {
    return ((size_t)width + ROW_BLOCK - 1) / ROW_BLOCK * ROW_BLOCK + 3 * BORDER;
}

/* Begin as if all samples before the slab were 0. */
static void clear_planes(planes *p) {
    for (int32_t s = 0; s < SLICES_KEPT; s++) {
        for (int32_t n = 0; n < p->parts; n++) memset(p->samples[s][n], 0, p->area * 2);
    }
    for (int32_t s = 0; s < 2; s++) {
        memset(p->values[s], 0, p->area * sizeof(float));
        memset(p->errors[s], 0, p->area * sizeof(float));
    }
}

static void take_planes(planes *p, arena *a, int32_t parts) {
    p->stride = padded_columns(p->width);
    p->area = p->stride * ((size_t)p->height + ROWS_ABOVE + ROWS_BELOW);
    p->parts = parts;
    for (int32_t s = 0; s < SLICES_KEPT; s++) {
        for (int32_t n = 0; n < parts; n++) p->samples[s][n] = TAKE(a, int16_t, p->area);
    }
    for (int32_t s = 0; s < 2; s++) {
        p->values[s] = TAKE(a, float, p->area);
        p->errors[s] = TAKE(a, float, p->area);
    }
    int32_t *line = TAKE(a, int32_t, BORDER + (size_t)p->width);
    if (a->failed || line == NULL) return;
    p->line = line + BORDER;
    clear_planes(p);
}

/* Where row i begins, within a plane. */
MRC_INLINE ptrdiff_t row_start(const planes *p, int32_t i) {
    return ((ptrdiff_t)i + ROWS_ABOVE) * (ptrdiff_t)p->stride + BORDER;
}

/*
 * Begin slice t: the current planes become those before, and the rows above the slice get the first
 * row of the slice before, without errors.
 */
static void begin_slice(planes *p, int32_t t) {
    for (int32_t n = 0; n < p->parts; n++) {
        int16_t *last = p->samples[SLICES_KEPT - 1][n];
        for (int32_t s = SLICES_KEPT - 1; s > 0; s--) p->samples[s][n] = p->samples[s - 1][n];
        p->samples[0][n] = last;
    }
    float *values = p->values[1], *errors = p->errors[1];
    p->values[1] = p->values[0];
    p->errors[1] = p->errors[0];
    p->values[0] = values;
    p->errors[0] = errors;
    if (t == 0) return;
    for (int32_t i = -ROWS_ABOVE; i < 0; i++) {
        ptrdiff_t to = row_start(p, i) - BORDER, from = row_start(p, 0) - BORDER;
        memcpy(values + to, p->values[1] + from, p->stride * sizeof(float));
        memset(errors + to, 0, p->stride * sizeof(float));
        for (int32_t n = 0; n < p->parts; n++) {
            memcpy(p->samples[0][n] + to, p->samples[1][n] + from, p->stride * sizeof(int16_t));
        }
        for (int32_t c = 0; c < BORDER; c++) values[to + c] = values[to + BORDER];
        for (int32_t n = 0; n < p->parts; n++) {
            int16_t *row = p->samples[0][n] + to;
            for (int32_t c = 0; c < BORDER; c++) row[c] = row[BORDER];
        }
    }
}

/* Begin row i: what lies left of it is the first voxel of the row above. */
static void begin_row(planes *p, int32_t i) {
    ptrdiff_t row = row_start(p, i), above = row_start(p, i - 1);
    for (int32_t n = 1; n <= BORDER; n++) {
        p->values[0][row - n] = p->values[0][above];
        p->errors[0][row - n] = p->errors[0][above];
        p->line[-n] = (int32_t)p->values[0][above];
    }
}

/* Finish row i, whose values and errors are there: its samples, and what lies right of it. */
static void finish_row(planes *p, int32_t i) {
    ptrdiff_t row = row_start(p, i), end = row + p->width;
    for (int32_t n = 0; n < p->parts; n++) {
        int16_t *out = p->samples[0][n] + row;
        const int32_t shift = n * PART_BITS, mask = (1 << PART_BITS) - 1;
        for (int32_t j = -BORDER; j < p->width; j++) {
            out[j] = (int16_t)((p->line[j] >> shift) & mask);
        }
        for (int32_t c = 0; c < BORDER; c++) out[p->width + c] = out[p->width - 1];
    }
    for (int32_t c = 0; c < BORDER; c++) {
        p->values[0][end + c] = p->values[0][end - 1];
        p->errors[0][end + c] = p->errors[0][end - 1];
    }
}

/* Finish a slice: the rows below it are the last one. */
static void finish_slice(planes *p) {
    ptrdiff_t from = row_start(p, p->height - 1) - BORDER;
    for (int32_t i = 0; i < ROWS_BELOW; i++) {
        ptrdiff_t to = row_start(p, p->height + i) - BORDER;
        memcpy(p->values[0] + to, p->values[0] + from, p->stride * sizeof(float));
        memcpy(p->errors[0] + to, p->errors[0] + from, p->stride * sizeof(float));
        for (int32_t n = 0; n < p->parts; n++) {
            int16_t *plane = p->samples[0][n];
            memcpy(plane + to, plane + from, p->stride * sizeof(int16_t));
        }
    }
}

#endif
