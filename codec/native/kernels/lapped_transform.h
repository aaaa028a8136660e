/* The lapped transform within and across slices: analysis in floats, synthesis in exact sums.
 *
 * A slice of R x T blocks is held as [R][8][8][T]: samples or coefficients at the same place of all
 * blocks of a row lie side by side, so that every step works on whole rows of numbers.
 *
 * The synthesis computes with doubles that hold integers: all sums stay below 2^52 (coefficients
 * are below 2^23 in 1/16 of a step), so they are exact in any order. The analysis adds in the order
 * that is written here, without contraction: an encoder writes the same bytes everywhere. */
#ifndef MRC_LAPPED_TRANSFORM_H
#define MRC_LAPPED_TRANSFORM_H

#include "coding_order.h"
#include "transform_tables.h"

enum {
    MIX_CHUNK = 128,       /* Numbers of a row that are worked on at once. */
    MAX_DEPTH = 8,         /* Slices that are transformed together, at most. */
    STEP_BITS = 16,        /* Fraction bits of a step in samples. */
    SAMPLE_BITS = 26,      /* Largest sample of the synthesis, in 1/16 of a step, is 2^26. */
    COST_TERMS = 32        /* Factors between two looks at the exponent of a product. */
};

/* rows[o] = sum over n of matrix[o][n] * rows[n], for rows of `length` floats, in place. */
MRC_INLINE void mix_floats(float *const *rows, const float *matrix, const int32_t size,
                           size_t length) {
    float out[MAX_DEPTH][MIX_CHUNK];
    for (size_t start = 0; start < length; start += MIX_CHUNK) {
        size_t n = length - start < MIX_CHUNK ? length - start : MIX_CHUNK;
        for (int32_t o = 0; o < size; o++) {
            const float *m = matrix + o * size;
            for (size_t i = 0; i < n; i++) {
                float sum = m[0] * rows[0][start + i];
                for (int32_t k = 1; k < size; k++) sum += m[k] * rows[k][start + i];
                out[o][i] = sum;
            }
        }
        for (int32_t o = 0; o < size; o++) memcpy(rows[o] + start, out[o], n * sizeof(float));
    }
}

/* v rounded to an integer, ties to even, for |v| < 2^51. */
MRC_INLINE double rounded_double(double v) {
    const double shift = 6755399441055744.0; /* 1.5 * 2^52 */
    return (v + shift) - shift;
}

/* rows[o] = round(sum of matrix[o][n] * rows[n] / 2^14) for rows of `length` integers, in place.
 *
 * Outputs o and 7 - o are the sum and the difference of the same two sums, one of the even inputs
 * and one of the odd ones. mirrored: matrix[7 - o][7 - n] = matrix[o][n], and even inputs are the
 * sums of rows n and 7 - n, odd ones their differences; else the columns of the matrix, by turns,
 * are even and odd functions. */
MRC_INLINE void mix_integers(double *const rows[BLOCK], const int16_t matrix[BLOCK][BLOCK],
                             const int32_t mirrored, size_t length) {
    double out[BLOCK][MIX_CHUNK], folded[BLOCK][MIX_CHUNK];
    const double *in[BLOCK]; /* Four even inputs, then four odd ones. */
    for (size_t start = 0; start < length; start += MIX_CHUNK) {
        size_t n = length - start < MIX_CHUNK ? length - start : MIX_CHUNK;
        for (int32_t k = 0; k < BLOCK / 2; k++) {
            const double *low = rows[k] + start, *high = rows[BLOCK - 1 - k] + start;
            in[k] = mirrored ? folded[k] : rows[2 * k] + start;
            in[k + 4] = mirrored ? folded[k + 4] : rows[2 * k + 1] + start;
            for (size_t i = 0; mirrored && i < n; i++) {
                folded[k][i] = low[i] + high[i];
                folded[k + 4][i] = low[i] - high[i];
            }
        }
        for (int32_t o = 0; o < BLOCK / 2; o++) {
            double even[BLOCK / 2], odd[BLOCK / 2];
            for (int32_t k = 0; k < BLOCK / 2; k++) {
                int32_t low = matrix[o][k], high = matrix[o][BLOCK - 1 - k];
                even[k] = mirrored ? (low + high) * 0x1p-15 : matrix[o][2 * k] * 0x1p-14;
                odd[k] = mirrored ? (low - high) * 0x1p-15 : matrix[o][2 * k + 1] * 0x1p-14;
            }
            for (size_t i = 0; i < n; i++) {
                double first = even[0] * in[0][i] + even[1] * in[1][i] + even[2] * in[2][i] +
                               even[3] * in[3][i];
                double second = odd[0] * in[4][i] + odd[1] * in[5][i] + odd[2] * in[6][i] +
                                odd[3] * in[7][i];
                out[o][i] = rounded_double(first + second);
                out[BLOCK - 1 - o][i] = rounded_double(first - second);
            }
        }
        for (int32_t o = 0; o < BLOCK; o++) memcpy(rows[o] + start, out[o], n * sizeof(double));
    }
}

/* The shape of a slab: slices, rows and columns of samples, and of blocks. */
typedef struct {
    int32_t slices, height, width;
    int32_t rows, columns;
    size_t blocks;       /* Of a slice. */
    size_t coefficients; /* Of a slice. */
} slab_shape;

/* MRC_ERROR_ARGUMENT unless the shape has samples and its numbers fit their types. */
static int32_t shape_of(slab_shape *s, int32_t slices, int32_t height, int32_t width) {
    const int32_t limit = 1 << 20;
    if (slices < 1 || height < 1 || width < 1) return MRC_ERROR_ARGUMENT;
    if (slices > limit || height > limit || width > limit) return MRC_ERROR_ARGUMENT;
    s->slices = slices;
    s->height = height;
    s->width = width;
    s->rows = (height + BLOCK - 1) / BLOCK;
    s->columns = (width + BLOCK - 1) / BLOCK;
    s->blocks = (size_t)s->rows * (size_t)s->columns;
    s->coefficients = s->blocks * CHANNELS;
    if (s->coefficients > (size_t)1 << 30) return MRC_ERROR_ARGUMENT;
    if ((uint64_t)s->coefficients * (uint64_t)(slices + MAX_DEPTH) > (uint64_t)1 << 31) {
        return MRC_ERROR_ARGUMENT;
    }
    return MRC_OK;
}

/* -- analysis --------------------------------------------------------------------------------- */

static void filter_row(float *row, size_t columns, const float *matrix) {
    float *rows[BLOCK];
    for (int32_t k = 0; k < BLOCK / 2; k++) {
        rows[k] = row + (size_t)(k + 4) * columns;
        rows[k + 4] = row + (size_t)k * columns + 1;
    }
    mix_floats(rows, matrix, BLOCK, columns - 1);
}

/* Samples of a row of blocks, in units: [8][8][T]; last row and column of the slice repeated. */
static void load_row(const int32_t *slice, const slab_shape *s, int32_t r, float unit, float *out) {
    for (int32_t y = 0; y < BLOCK; y++) {
        const int32_t *line = slice + (size_t)min32(r * BLOCK + y, s->height - 1) * s->width;
        for (int32_t t = 0; t < s->columns; t++) {
            for (int32_t x = 0; x < BLOCK; x++) {
                float v = (float)line[min32(t * BLOCK + x, s->width - 1)];
                out[((size_t)y * BLOCK + x) * s->columns + t] = v / unit;
            }
        }
    }
}

/* The coefficients [blocks][64] of a slice of samples, in units; work: [64 * blocks]. */
static void analyse_slice(const int32_t *slice, const slab_shape *s, float unit, float *work,
                          float *out) {
    size_t columns = (size_t)s->columns, row = CHANNELS * columns;
    float *rows[BLOCK];
    for (int32_t r = 0; r < s->rows; r++) {
        float *block_row = work + (size_t)r * row;
        load_row(slice, s, r, unit, block_row);
        for (int32_t y = 0; y < BLOCK; y++) {
            float *line = block_row + (size_t)y * BLOCK * columns;
            filter_row(line, columns, &PRE_FILTER[0][0]);
            for (int32_t k = 0; k < BLOCK; k++) rows[k] = line + (size_t)k * columns;
            mix_floats(rows, &DCT_8[0][0], BLOCK, columns);
        }
        if (r > 0) {
            for (int32_t k = 0; k < BLOCK / 2; k++) {
                rows[k] = block_row - row + (size_t)(k + 4) * BLOCK * columns;
                rows[k + 4] = block_row + (size_t)k * BLOCK * columns;
            }
            mix_floats(rows, &PRE_FILTER[0][0], BLOCK, BLOCK * columns);
        }
    }
    for (int32_t r = 0; r < s->rows; r++) {
        float *block_row = work + (size_t)r * row;
        for (int32_t k = 0; k < BLOCK; k++) rows[k] = block_row + (size_t)k * BLOCK * columns;
        mix_floats(rows, &DCT_8[0][0], BLOCK, BLOCK * columns);
        for (size_t t = 0; t < columns; t++) {
            float *to = out + ((size_t)r * columns + t) * CHANNELS;
            for (int32_t i = 0; i < CHANNELS; i++) to[i] = block_row[(size_t)i * columns + t];
        }
    }
}

static void mix_slices(float *const *rows, const float *matrix, int32_t depth, size_t length) {
    if (depth == 2) mix_floats(rows, matrix, 2, length);
    else if (depth == 4) mix_floats(rows, matrix, 4, length);
    else mix_floats(rows, matrix, 8, length);
}

/* Slices of coefficients -> bands, in place: `slices` rows of `length`, a multiple of the depth. */
static void analyse_across(float *y, int32_t slices, size_t length, int32_t depth) {
    static const float *const dct[MAX_DEPTH + 1] = {
        [2] = &DCT_2[0][0], [4] = &DCT_4[0][0], [8] = &DCT_8[0][0]};
    static const float *const filter[MAX_DEPTH + 1] = {
        [2] = &PRE_ACROSS_2[0][0], [4] = &PRE_ACROSS_4[0][0], [8] = &PRE_ACROSS_8[0][0]};
    float *rows[MAX_DEPTH];
    if (depth == 1) return;
    for (size_t start = 0; start < length; start += MIX_CHUNK) {
        size_t n = length - start < MIX_CHUNK ? length - start : MIX_CHUNK;
        for (int32_t k = depth / 2; k + depth <= slices; k += depth) {
            for (int32_t m = 0; m < depth; m++) rows[m] = y + (size_t)(k + m) * length + start;
            mix_slices(rows, filter[depth], depth, n);
        }
        for (int32_t k = 0; k < slices; k += depth) {
            for (int32_t m = 0; m < depth; m++) rows[m] = y + (size_t)(k + m) * length + start;
            mix_slices(rows, dct[depth], depth, n);
        }
    }
}

/* About the bits of coefficients in 1/16 of a step: the sum of log2(1 + 3 |y|), to a bit or so. */
static int64_t rough_bits(const float *y, size_t n) {
    enum { LANES = 16 };
    double product[LANES];
    int64_t bits = 0;
    for (int32_t lane = 0; lane < LANES; lane++) product[lane] = 1;
    for (size_t i = 0; i + LANES <= n; i += LANES) {
        for (int32_t lane = 0; lane < LANES; lane++) {
            product[lane] *= (double)(1 + 0.1875f * fabsf(y[i + lane]));
        }
        if ((i / LANES + 1) % COST_TERMS != 0) continue;
        for (int32_t lane = 0; lane < LANES; lane++) {
            int exponent;
            product[lane] = frexp(product[lane], &exponent);
            bits += exponent;
        }
    }
    for (int32_t lane = 0; lane < LANES; lane++) {
        int exponent;
        frexp(product[lane], &exponent);
        bits += exponent;
    }
    return bits;
}

/* -- synthesis -------------------------------------------------------------------------------- */

/* How a slice is made of bands: sums of matrix[n] * band[first + n]. */
typedef struct {
    int32_t first, count;
    const int16_t *matrix;
} slice_sum;

static slice_sum sum_of_slice(int32_t k, int32_t bands, int32_t depth) {
    static const int16_t *const dct[MAX_DEPTH + 1] = {
        [2] = &INVERSE_DCT_2[0][0], [4] = &INVERSE_DCT_4[0][0], [8] = &INVERSE_DCT_8[0][0]};
    static const int16_t *const overlap[MAX_DEPTH + 1] = {
        [2] = &OVERLAP_2[0][0], [4] = &OVERLAP_4[0][0], [8] = &OVERLAP_8[0][0]};
    int32_t half = depth / 2;
    if (k < half) return (slice_sum){0, depth, dct[depth] + k * depth};
    if (k >= bands - half) {
        return (slice_sum){bands - depth, depth, dct[depth] + (k - bands + depth) * depth};
    }
    int32_t group = (k - half) / depth, row = (k - half) % depth;
    return (slice_sum){group * depth, 2 * depth, overlap[depth] + row * 2 * depth};
}

/* A row of blocks of a slice from its bands, in 1/256 of a step: out [T][64]. */
static void sum_bands(const int32_t *y, const slab_shape *s, int32_t r, int32_t k, int32_t bands,
                      int32_t depth, double *out) {
    size_t n = CHANNELS * (size_t)s->columns, row = (size_t)r * n;
    if (depth == 1) {
        const int32_t *band = y + (size_t)k * s->coefficients + row;
        for (size_t i = 0; i < n; i++) out[i] = 16.0 * band[i];
        return;
    }
    slice_sum sum = sum_of_slice(k, bands, depth);
    const int32_t *band = y + (size_t)sum.first * s->coefficients + row;
    for (size_t i = 0; i < n; i++) out[i] = sum.matrix[0] * 0x1p-10 * band[i];
    for (int32_t m = 1; m < sum.count; m++) {
        double factor = sum.matrix[m] * 0x1p-10;
        band += s->coefficients;
        for (size_t i = 0; i < n; i++) out[i] += factor * band[i];
    }
    for (size_t i = 0; i < n; i++) out[i] = rounded_double(out[i]);
}

/* A slice of samples in 1/256 of a step from bands y [bands][blocks][64]: v [R][8][8][T].
 *
 * line: [64 * T]. */
static void synthesise_slice(const int32_t *y, const slab_shape *s, int32_t k, int32_t bands,
                             int32_t depth, double *line, double *v) {
    size_t columns = (size_t)s->columns, row = CHANNELS * columns;
    double *rows[BLOCK];
    for (int32_t r = 0; r < s->rows; r++) {
        double *block_row = v + (size_t)r * row;
        sum_bands(y, s, r, k, bands, depth, line);
        for (size_t t = 0; t < columns; t++) {
            for (int32_t i = 0; i < CHANNELS; i++) {
                block_row[(size_t)i * columns + t] = line[t * CHANNELS + (size_t)i];
            }
        }
        for (int32_t u = 0; u < BLOCK; u++) {
            double *of_u = block_row + (size_t)u * BLOCK * columns;
            for (int32_t n = 0; n < BLOCK; n++) rows[n] = of_u + (size_t)n * columns;
            mix_integers(rows, INVERSE_DCT_8, 0, columns);
            for (int32_t n = 0; n < BLOCK / 2; n++) {
                rows[n] = of_u + (size_t)(n + 4) * columns;
                rows[n + 4] = of_u + (size_t)n * columns + 1;
            }
            mix_integers(rows, POST_FILTER, 1, columns - 1);
        }
        for (int32_t n = 0; n < BLOCK; n++) rows[n] = block_row + (size_t)n * BLOCK * columns;
        mix_integers(rows, INVERSE_DCT_8, 0, BLOCK * columns);
        if (r == 0) continue;
        for (int32_t n = 0; n < BLOCK / 2; n++) {
            rows[n] = block_row - row + (size_t)(n + 4) * BLOCK * columns;
            rows[n + 4] = block_row + (size_t)n * BLOCK * columns;
        }
        mix_integers(rows, POST_FILTER, 1, BLOCK * columns);
    }
}

/* Samples [height][width] of a slice v [R][8][8][T] in 1/256 of a step; step in 2^-16 samples. */
static void write_samples(const double *v, const slab_shape *s, int64_t step, int32_t *out) {
    const double limit = (double)(1 << SAMPLE_BITS);
    for (int32_t j = 0; j < s->height; j++) {
        const double *line = v + (size_t)j * BLOCK * (size_t)s->columns;
        int32_t *to = out + (size_t)j * s->width;
        for (int32_t x = 0; x < BLOCK && x < s->width; x++) {
            const double *from = line + (size_t)x * s->columns;
            int32_t n = (s->width - x + BLOCK - 1) / BLOCK;
            for (int32_t t = 0; t < n; t++) {
                double sixteenths = rounded_double(from[t] * 0x1p-4);
                sixteenths = sixteenths > limit ? limit : sixteenths < -limit ? -limit : sixteenths;
                int64_t sample = ((int64_t)sixteenths * step + ((int64_t)1 << 19)) >> 20;
                to[t * BLOCK + x] = (int32_t)clamp64(sample, INT32_MIN, INT32_MAX);
            }
        }
    }
}

#endif
