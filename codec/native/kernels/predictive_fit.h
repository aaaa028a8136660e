/*
 * Encoder only: coefficients of the static stage by weighted least squares over voxels from all
 * over the slab. Voxels of flat neighbourhoods weigh more: their errors cost more bits.
 */
#ifndef MRC_PREDICTIVE_FIT_H
#define MRC_PREDICTIVE_FIT_H

#include <stdlib.h>

#include "predictive_taps.h"

enum {
    FIT_COLUMNS = MAX_NEIGHBOURS + 16, /* Taps and the voxel itself, filled up. */
    FIT_BATCH = 32,                    /* Voxels whose products are summed at a time, */
    FIT_BATCHES = 16,                  /* so often as floats; then as doubles. */
    FIT_ROWS = 4                       /* Rows of the matrix that are summed at a time. */
};

typedef struct {
    float *batch;   /* [FIT_BATCH][columns]: neighbours and the voxel, weighted */
    float *sums;    /* [columns][columns]: products of columns, below the diagonal */
    double *totals; /* [columns][columns] */
    double *factor; /* [columns][columns]: the Cholesky factor */
    int32_t columns; /* A multiple of 16. */
    int32_t batched, batches;
} fitting;

static void take_fitting(fitting *f, arena *a, int32_t taps) {
    f->columns = (taps + 1 + 15) / 16 * 16;
    const size_t square = (size_t)f->columns * f->columns;
    f->batch = TAKE(a, float, (size_t)FIT_BATCH * f->columns);
    f->sums = TAKE(a, float, square);
    f->totals = TAKE(a, double, square);
    f->factor = TAKE(a, double, square);
}

static void start_fitting(fitting *f) {
    const size_t square = (size_t)f->columns * f->columns;
    f->batched = f->batches = 0;
    memset(f->batch, 0, (size_t)FIT_BATCH * f->columns * sizeof(float));
    memset(f->sums, 0, square * sizeof(float));
    memset(f->totals, 0, square * sizeof(double));
}

/* Add the products of rows r ... r + 3 with columns c ... c + 15 over a batch. */
static void add_products(fitting *f, int32_t r, int32_t c) {
    floats8 sums[FIT_ROWS][2];
    MRC_UNROLL
    for (int32_t n = 0; n < FIT_ROWS; n++) sums[n][0] = sums[n][1] = all8(0);
    for (int32_t v = 0; v < FIT_BATCH; v++) {
        const float *voxel = f->batch + (size_t)v * f->columns;
        floats8 low = load8(voxel + c), high = load8(voxel + c + LANES);
        MRC_UNROLL
        for (int32_t n = 0; n < FIT_ROWS; n++) {
            sums[n][0] += low * voxel[r + n];
            sums[n][1] += high * voxel[r + n];
        }
    }
    MRC_UNROLL
    for (int32_t n = 0; n < FIT_ROWS; n++) {
        float *out = f->sums + (size_t)(r + n) * f->columns + c;
        store8(out, load8(out) + sums[n][0]);
        store8(out + LANES, load8(out + LANES) + sums[n][1]);
    }
}

static void add_sums(fitting *f) {
    const size_t square = (size_t)f->columns * f->columns;
    for (size_t n = 0; n < square; n++) f->totals[n] += (double)f->sums[n];
    memset(f->sums, 0, square * sizeof(float));
    f->batches = 0;
}

static void add_batch(fitting *f) {
    for (int32_t r = 0; r < f->columns; r += FIT_ROWS) {
        for (int32_t c = 0; c <= r; c += 2 * LANES) add_products(f, r, c);
    }
    memset(f->batch, 0, (size_t)FIT_BATCH * f->columns * sizeof(float));
    f->batched = 0;
    if (++f->batches == FIT_BATCHES) add_sums(f);
}

/*
 * Solve the normal equations of the first `count` columns for column `target`; a little is added to
 * the diagonal, so that there is a solution. The factors are L D L'; `factor` has L, and on its
 * diagonal D.
 */
static void solve(fitting *f, int32_t count, int32_t target, double *x) {
    const size_t n = (size_t)f->columns;
    double *l = f->factor, scaled[MAX_NEIGHBOURS];
    const double *right = f->totals + (size_t)target * n;
    for (int32_t i = 0; i < count; i++) {
        const double *a = f->totals + (size_t)i * n;
        double *row = l + (size_t)i * n, rest = a[i] + 1e-3 + 1e-6 * a[i];
        for (int32_t j = 0; j < i; j++) {
            const double *other = l + (size_t)j * n;
            double sum = a[j];
            for (int32_t k = 0; k < j; k++) sum -= scaled[k] * other[k];
            scaled[j] = sum;
            row[j] = sum / other[j];
            rest -= row[j] * sum;
        }
        row[i] = rest > 1e-9 ? rest : 1e30;
        x[i] = right[i];
        for (int32_t k = 0; k < i; k++) x[i] -= row[k] * x[k];
    }
    for (int32_t i = count - 1; i >= 0; i--) {
        x[i] /= l[(size_t)i * n + i];
        for (int32_t k = i + 1; k < count; k++) x[i] -= l[(size_t)k * n + i] * x[k];
    }
}

/* 1 / sqrt(v) to about 2^-20, by Newton's method from a guess at the bits. */
static float inverse_root(float v) {
    int32_t bits = 0x5f3759df - (bits_of(v) >> 1);
    float root;
    memcpy(&root, &bits, sizeof root);
    for (int32_t n = 0; n < 3; n++) root *= 1.5f - 0.5f * v * root * root;
    return root;
}

MRC_INLINE int32_t sample_at(const planes *p, int32_t slice, ptrdiff_t at) {
    int32_t v = p->samples[slice][0][at];
    return p->parts == 1 ? v : v + p->samples[slice][1][at] * (1 << PART_BITS);
}

/* Steps between neighbours of a voxel. */
static int32_t activity(const planes *p, ptrdiff_t at) {
    const ptrdiff_t up = at - (ptrdiff_t)p->stride, upper = up - (ptrdiff_t)p->stride;
    int32_t w = sample_at(p, 0, at - 1), nw = sample_at(p, 0, up - 1), n = sample_at(p, 0, up);
    int32_t ne = sample_at(p, 0, up + 1), ww = sample_at(p, 0, at - 2);
    int32_t nn = sample_at(p, 0, upper);
    return abs(w - nw) + abs(n - nw) + abs(n - ne) + abs(w - ww) + abs(n - nn) + abs(w - n);
}

/* Add the voxel at row i, column j of the current slice. */
static void add_voxel(fitting *f, const planes *p, const tap_list *list, int32_t count, int32_t i,
                      int32_t j) {
    const ptrdiff_t at = row_start(p, i) + j;
    const float weight = inverse_root((float)activity(p, at) / 6 + 1.5f);
    float *out = f->batch + (size_t)f->batched * f->columns;
    for (int32_t n = 0; n < count; n++) {
        tap t = list->taps[n];
        ptrdiff_t from = at + t.row * (ptrdiff_t)p->stride + t.column;
        out[n] = weight * (float)sample_at(p, t.slice, from);
    }
    out[count] = weight * (float)sample_at(p, 0, at);
    if (++f->batched == FIT_BATCH) add_batch(f);
}

/* Add voxels of the current slice, t: one of `step`. */
static void add_slice(fitting *f, const planes *p, const tap_list *list, int32_t t,
                      const uint8_t *skipped, int32_t step) {
    const int32_t count = t == 0 ? list->current : list->count;
    for (int32_t i = 0; i < p->height; i++) {
        for (int32_t j = (int32_t)(((int64_t)i * 7 + (int64_t)t * 3) % step); j < p->width;
             j += step) {
            if (skipped != NULL && skipped[(size_t)i * (size_t)p->width + (size_t)j]) continue;
            add_voxel(f, p, list, count, i, j);
        }
    }
}

/* The coefficients of `count` taps, in 2^-13. */
static void finish_fitting(fitting *f, int32_t count, int32_t *coefficients) {
    double x[MAX_NEIGHBOURS];
    if (f->batched) add_batch(f);
    add_sums(f);
    solve(f, count, count, x);
    for (int32_t n = 0; n < count; n++) {
        double scaled = x[n] * (1 << COEFFICIENT_BITS);
        scaled = scaled > MAX_COEFFICIENT ? MAX_COEFFICIENT : scaled;
        scaled = scaled < -MAX_COEFFICIENT ? -MAX_COEFFICIENT : scaled;
        coefficients[n] = (int32_t)(scaled + (scaled < 0 ? -0.5 : 0.5));
    }
}

#endif
