/* Integer convolutions: round((sum of weight * activation + bias) / 2^shift), ties to even.
 *
 * Activations are int16 (-127 ... 255), weights int8 stored as int16, sums stay below 2^24, so that
 * products of 16-bit pairs may be added in any order. Rounded outputs fit int16 (checked when a
 * model is made). A convolution is a product of a matrix with columns that are gathered from
 * several places (its taps), each of contiguous channels. */
#ifndef MRC_INTEGER_LAYERS_H
#define MRC_INTEGER_LAYERS_H

#include "common.h"

#if MRC_AVX512 || MRC_AVX2
#include <immintrin.h>
#elif MRC_NEON
#include <arm_neon.h>
#endif

enum {
    PANEL = 16,         /* Outputs that are computed side by side. */
    MAX_TAPS = 9,       /* Places of a 3 x 3 kernel. */
    MAX_ACTIVATION = 255,
    MIN_ACTIVATION = -127
};
/* Sums stay below this for every layer of a valid weights file. */
#define MAX_SUM ((int64_t)1 << 24)

typedef struct {
    const int16_t *weights; /* [panels][pairs][PANEL][2] */
    const int32_t *bias;    /* [panels][PANEL] */
    const int32_t *shift;   /* [panels][PANEL] */
    int32_t panels;
    int32_t outputs;
    int32_t pairs;   /* Half of the inputs of all taps. */
    int32_t largest; /* Bound of the magnitude of its rounded outputs. */
} layer;

/* Where a convolution finds its inputs. */
typedef struct {
    const int16_t *in;
    ptrdiff_t tap[MAX_TAPS]; /* Of each tap, relative to `in`. */
    int32_t taps;
    int32_t pairs;        /* Half of the inputs of a tap. */
    ptrdiff_t next_pixel; /* From the inputs of one pixel to those of the next. */
} window;

#define CLAMP_ROW(name, low, high)                                                        \
    static void name(int16_t *restrict out, const int16_t *restrict in, int32_t n) {      \
        for (int32_t i = 0; i < n; i++) out[i] = (int16_t)clamp32(in[i], (low), (high));  \
    }
CLAMP_ROW(relu8_row, 0, MAX_ACTIVATION)
CLAMP_ROW(clamp8_row, MIN_ACTIVATION, 127)

/* Round the sums of a panel and store them at out[at ...], int32 or int16. */
MRC_INLINE void store_rounded(const layer *l, int32_t panel, const int32_t *sums, size_t at,
                              void *out, const int32_t wide) {
    for (int32_t o = 0; o < PANEL; o++) {
        int32_t v = (int32_t)round_shift(sums[o], l->shift[panel * PANEL + o]);
        if (wide) ((int32_t *)out)[at + (size_t)o] = v;
        else ((int16_t *)out)[at + (size_t)o] = (int16_t)v;
    }
}

#if MRC_AVX512

MRC_INLINE __m512i load_pair(const int16_t *in, size_t pair) {
    int32_t both;
    memcpy(&both, in + 2 * pair, 4);
    return _mm512_set1_epi32(both);
}

MRC_INLINE __m512i rounded(__m512i sum, __m512i shift) {
    const __m512i one = _mm512_set1_epi32(1);
    __m512i odd = _mm512_and_si512(_mm512_srav_epi32(sum, shift), one);
    __m512i half = _mm512_sub_epi32(_mm512_srli_epi32(_mm512_sllv_epi32(one, shift), 1), one);
    __mmask16 none = _mm512_cmpeq_epi32_mask(shift, _mm512_setzero_si512());
    __m512i offset = _mm512_maskz_add_epi32((__mmask16)~none, half, odd);
    return _mm512_srav_epi32(_mm512_add_epi32(sum, offset), shift);
}

MRC_INLINE void tile(const layer *l, int32_t panel, const window *w, const int16_t *in, void *out,
                     const int32_t pixels, const int32_t panels, const int32_t wide) {
    __m512i sum[8][2];
    const size_t pairs = (size_t)w->pairs;
    size_t stride = (size_t)l->pairs * PANEL * 2;
    const int16_t *weights = l->weights + (size_t)panel * stride;
    MRC_UNROLL
    for (int32_t v = 0; v < panels; v++) {
        __m512i bias = _mm512_loadu_si512(l->bias + (panel + v) * PANEL);
        MRC_UNROLL
        for (int32_t p = 0; p < pixels; p++) sum[p][v] = bias;
    }
    for (int32_t t = 0; t < w->taps; t++) {
        const int16_t *at[8];
        MRC_UNROLL
        for (int32_t p = 0; p < pixels; p++) at[p] = in + w->tap[t] + p * w->next_pixel;
        for (size_t k = 0; k < pairs; k++, weights += 2 * PANEL) {
            __m512i column[2];
            MRC_UNROLL
            for (int32_t v = 0; v < panels; v++) {
                column[v] = _mm512_loadu_si512(weights + (size_t)v * stride);
            }
            MRC_UNROLL
            for (int32_t p = 0; p < pixels; p++) {
                __m512i pair = load_pair(at[p], k);
                MRC_UNROLL
                for (int32_t v = 0; v < panels; v++) {
                    sum[p][v] = _mm512_dpwssd_epi32(sum[p][v], pair, column[v]);
                }
            }
        }
    }
    MRC_UNROLL
    for (int32_t v = 0; v < panels; v++) {
        __m512i shift = _mm512_loadu_si512(l->shift + (panel + v) * PANEL);
        MRC_UNROLL
        for (int32_t p = 0; p < pixels; p++) {
            size_t at = ((size_t)p * l->panels + panel + v) * PANEL;
            __m512i result = rounded(sum[p][v], shift);
            if (wide) _mm512_storeu_si512((int32_t *)out + at, result);
            else {
                __m256i both = _mm512_cvtepi32_epi16(result);
                _mm256_storeu_si256((__m256i *)((int16_t *)out + at), both);
            }
        }
    }
}
#define TILE_PIXELS 8
#define TILE_PANELS 2

#elif MRC_AVX2

MRC_INLINE __m256i load_pair(const int16_t *in, size_t pair) {
    int32_t both;
    memcpy(&both, in + 2 * pair, 4);
    return _mm256_set1_epi32(both);
}

MRC_INLINE __m256i rounded(__m256i sum, __m256i shift) {
    const __m256i one = _mm256_set1_epi32(1);
    __m256i odd = _mm256_and_si256(_mm256_srav_epi32(sum, shift), one);
    __m256i half = _mm256_sub_epi32(_mm256_srli_epi32(_mm256_sllv_epi32(one, shift), 1), one);
    __m256i none = _mm256_cmpeq_epi32(shift, _mm256_setzero_si256());
    __m256i offset = _mm256_andnot_si256(none, _mm256_add_epi32(half, odd));
    return _mm256_srav_epi32(_mm256_add_epi32(sum, offset), shift);
}

MRC_INLINE void tile(const layer *l, int32_t panel, const window *w, const int16_t *in, void *out,
                     const int32_t pixels, const int32_t panels, const int32_t wide) {
    __m256i sum[4][2];
    const size_t pairs = (size_t)w->pairs;
    const int16_t *weights = l->weights + (size_t)panel * l->pairs * PANEL * 2;
    (void)panels;
    MRC_UNROLL
    for (int32_t half = 0; half < 2; half++) {
        const int32_t *bias = l->bias + panel * PANEL + 8 * half;
        MRC_UNROLL
        for (int32_t p = 0; p < pixels; p++) {
            sum[p][half] = _mm256_loadu_si256((const __m256i *)bias);
        }
    }
    for (int32_t t = 0; t < w->taps; t++) {
        const int16_t *at[4];
        MRC_UNROLL
        for (int32_t p = 0; p < pixels; p++) at[p] = in + w->tap[t] + p * w->next_pixel;
        /* Two pairs a turn, or the compiler moves every sum once more. */
        for (size_t k = 0; k < pairs; k += 2, weights += 4 * PANEL) {
            MRC_UNROLL
            for (int32_t n = 0; n < 2; n++) {
                const __m256i *column = (const __m256i *)(weights + 2 * n * PANEL);
                __m256i first = _mm256_loadu_si256(column);
                __m256i second = _mm256_loadu_si256(column + 1);
                MRC_UNROLL
                for (int32_t p = 0; p < pixels; p++) {
                    __m256i pair = load_pair(at[p], k + (size_t)n);
                    sum[p][0] = _mm256_add_epi32(_mm256_madd_epi16(pair, first), sum[p][0]);
                    sum[p][1] = _mm256_add_epi32(_mm256_madd_epi16(pair, second), sum[p][1]);
                }
            }
        }
    }
    const __m256i *shifts = (const __m256i *)(l->shift + panel * PANEL);
    __m256i first_shift = _mm256_loadu_si256(shifts), second_shift = _mm256_loadu_si256(shifts + 1);
    MRC_UNROLL
    for (int32_t p = 0; p < pixels; p++) {
        size_t at = ((size_t)p * l->panels + panel) * PANEL;
        __m256i first = rounded(sum[p][0], first_shift), second = rounded(sum[p][1], second_shift);
        if (wide) {
            _mm256_storeu_si256((__m256i *)((int32_t *)out + at), first);
            _mm256_storeu_si256((__m256i *)((int32_t *)out + at + 8), second);
        } else {
            __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);
            _mm256_storeu_si256((__m256i *)((int16_t *)out + at), both);
        }
    }
}
#define TILE_PIXELS 4
#define TILE_PANELS 1

#elif MRC_NEON

MRC_INLINE void tile(const layer *l, int32_t panel, const window *w, const int16_t *in, void *out,
                     const int32_t pixels, const int32_t panels, const int32_t wide) {
    int32x4_t sum[4][4];
    const int16_t *weights = l->weights + (size_t)panel * l->pairs * PANEL * 2;
    (void)panels;
    MRC_UNROLL
    for (int32_t v = 0; v < 4; v++) {
        int32x4_t bias = vld1q_s32(l->bias + panel * PANEL + 4 * v);
        MRC_UNROLL
        for (int32_t p = 0; p < pixels; p++) sum[p][v] = bias;
    }
    for (int32_t t = 0; t < w->taps; t++) {
        const int16_t *at = in + w->tap[t];
        for (int32_t k = 0; k < w->pairs; k++, weights += 2 * PANEL) {
            MRC_UNROLL
            for (int32_t v = 0; v < 4; v++) {
                int16x4x2_t column = vld2_s16(weights + 8 * v);
                MRC_UNROLL
                for (int32_t p = 0; p < pixels; p++) {
                    const int16_t *pair = at + p * w->next_pixel + 2 * k;
                    sum[p][v] = vmlal_n_s16(sum[p][v], column.val[0], pair[0]);
                    sum[p][v] = vmlal_n_s16(sum[p][v], column.val[1], pair[1]);
                }
            }
        }
    }
    MRC_UNROLL
    for (int32_t p = 0; p < pixels; p++) {
        int32_t sums[PANEL];
        MRC_UNROLL
        for (int32_t v = 0; v < 4; v++) vst1q_s32(sums + 4 * v, sum[p][v]);
        store_rounded(l, panel, sums, ((size_t)p * l->panels + panel) * PANEL, out, wide);
    }
}
#define TILE_PIXELS 4
#define TILE_PANELS 1

#else

MRC_INLINE void tile(const layer *l, int32_t panel, const window *w, const int16_t *in, void *out,
                     const int32_t pixels, const int32_t panels, const int32_t wide) {
    (void)panels;
    MRC_UNROLL
    for (int32_t p = 0; p < pixels; p++) {
        const int16_t *weights = l->weights + (size_t)panel * l->pairs * PANEL * 2;
        int32_t sum[PANEL];
        memcpy(sum, l->bias + panel * PANEL, sizeof sum);
        for (int32_t t = 0; t < w->taps; t++) {
            const int16_t *at = in + w->tap[t] + p * w->next_pixel;
            for (int32_t k = 0; k < w->pairs; k++, weights += 2 * PANEL) {
                int32_t first = at[2 * k], second = at[2 * k + 1];
                for (int32_t o = 0; o < PANEL; o++) {
                    sum[o] += weights[2 * o] * first + weights[2 * o + 1] * second;
                }
            }
        }
        store_rounded(l, panel, sum, ((size_t)p * l->panels + panel) * PANEL, out, wide);
    }
}
#define TILE_PIXELS 4
#define TILE_PANELS 1

#endif

/* The outputs of some panels for consecutive pixels; the compiler unrolls each number of pixels. */
MRC_INLINE void tiles(const layer *l, int32_t panel, const window *w, uint8_t *out, int32_t pixels,
                      const int32_t panels, const int32_t wide) {
    const int16_t *in = w->in;
    size_t next = (size_t)l->panels * PANEL * (wide ? sizeof(int32_t) : sizeof(int16_t));
    for (; pixels >= TILE_PIXELS; pixels -= TILE_PIXELS) {
        tile(l, panel, w, in, out, TILE_PIXELS, panels, wide);
        in += TILE_PIXELS * w->next_pixel;
        out += TILE_PIXELS * next;
    }
    if (pixels >= 4) {
        tile(l, panel, w, in, out, 4, panels, wide);
        pixels -= 4;
        in += 4 * w->next_pixel;
        out += 4 * next;
    }
    for (; pixels > 0; pixels--, in += w->next_pixel, out += next) {
        tile(l, panel, w, in, out, 1, panels, wide);
    }
}

MRC_INLINE void all_tiles(const layer *l, const window *w, void *out, int32_t pixels,
                          const int32_t wide) {
    int32_t panel = 0;
    for (; panel + TILE_PANELS <= l->panels; panel += TILE_PANELS) {
        tiles(l, panel, w, out, pixels, TILE_PANELS, wide);
    }
    for (; TILE_PANELS > 1 && panel < l->panels; panel++) tiles(l, panel, w, out, pixels, 1, wide);
}

/* Outputs of consecutive pixels: out [pixels][panels * PANEL], of which l->outputs count. */
static void convolve(const layer *l, const window *w, int16_t *out, int32_t pixels) {
    all_tiles(l, w, out, pixels, 0);
}

/* The same for a layer whose outputs need not fit int16. */
static void convolve_wide(const layer *l, const window *w, int32_t *out, int32_t pixels) {
    all_tiles(l, w, out, pixels, 1);
}

/* The window of a 1 x 1 convolution of so many channels. */
static window single_tap(const int16_t *in, int32_t channels, ptrdiff_t next_pixel) {
    return (window){in, {0}, 1, channels / 2, next_pixel};
}

/* The window of a 3 x 3 convolution: `in` is the pixel in the middle, of rows `row` apart. */
static window nine_taps(const int16_t *in, int32_t channels, ptrdiff_t row, ptrdiff_t pixel) {
    window w = {in, {0}, 9, channels / 2, pixel};
    for (int32_t n = 0; n < 9; n++) w.tap[n] = (n / 3 - 1) * row + (n % 3 - 1) * pixel;
    return w;
}

/* The tensors of a layer in a weights file. */
typedef struct {
    const int8_t *weight;  /* [outputs][inputs][taps] */
    const uint8_t *bias;   /* int32 [outputs], little-endian. */
    const uint8_t *shift;  /* [outputs] */
    int32_t outputs, inputs, taps;
    int32_t largest; /* Bound of the magnitude of its rounded outputs. */
} layer_tensors;

/* One input of a packed layer: a channel and a tap of the file's kernel, or -1 for a zero. */
typedef struct {
    int16_t channel, tap;
} layer_input;

static int32_t read_int32(const uint8_t *at) {
    uint32_t v = at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
    int32_t signed_value;
    memcpy(&signed_value, &v, 4);
    return signed_value;
}

/* MRC_ERROR_WEIGHTS unless every sum of the layer stays below MAX_SUM and every shift is usable. */
static int32_t check_layer(layer_tensors *file) {
    file->largest = 0;
    for (int32_t o = 0; o < file->outputs; o++) {
        int64_t total = read_int32(file->bias + 4 * (size_t)o);
        if (total < 0) total = -total;
        size_t n = (size_t)file->inputs * (size_t)file->taps;
        for (size_t i = 0; i < n; i++) {
            int32_t weight = file->weight[(size_t)o * n + i];
            total += (int64_t)MAX_ACTIVATION * (weight < 0 ? -weight : weight);
        }
        if (total >= MAX_SUM || file->shift[o] > 24) return MRC_ERROR_WEIGHTS;
        file->largest = max32(file->largest, (int32_t)(total >> file->shift[o]) + 1);
    }
    return MRC_OK;
}

/* Pack the rows `outputs` of a layer for these inputs, an even number; NULL outputs: all rows. */
static int32_t pack_layer(layer *l, arena *a, const layer_tensors *file, const layer_input *inputs,
                          int32_t input_count, const int16_t *outputs, int32_t output_count) {
    l->outputs = output_count;
    l->panels = (output_count + PANEL - 1) / PANEL;
    l->pairs = (input_count + 1) / 2;
    l->largest = file->largest;
    int16_t *weights = TAKE(a, int16_t, (size_t)l->panels * l->pairs * PANEL * 2);
    int32_t *bias = TAKE(a, int32_t, (size_t)l->panels * PANEL);
    int32_t *shift = TAKE(a, int32_t, (size_t)l->panels * PANEL);
    l->weights = weights;
    l->bias = bias;
    l->shift = shift;
    if (weights == NULL || bias == NULL || shift == NULL) return MRC_OK;
    memset(weights, 0, (size_t)l->panels * l->pairs * PANEL * 2 * sizeof *weights);
    memset(bias, 0, (size_t)l->panels * PANEL * sizeof *bias);
    memset(shift, 0, (size_t)l->panels * PANEL * sizeof *shift);
    for (int32_t n = 0; n < output_count; n++) {
        size_t o = (size_t)(outputs == NULL ? n : outputs[n]);
        bias[n] = read_int32(file->bias + 4 * o);
        shift[n] = file->shift[o];
        int16_t *column = weights + (size_t)(n / PANEL) * l->pairs * PANEL * 2 + 2 * (n % PANEL);
        for (int32_t i = 0; i < input_count; i++) {
            size_t from = (o * (size_t)file->inputs + (size_t)inputs[i].channel) *
                          (size_t)file->taps + (size_t)inputs[i].tap;
            column[(size_t)(i / 2) * PANEL * 2 + i % 2] = file->weight[from];
        }
    }
    return MRC_OK;
}

#endif
