/* Decisions of the encoder: rounding (RDOQ) and error compensation. No decoder needs them. */
#ifndef MRC_RDO_H
#define MRC_RDO_H

#include "integer_layers.h"
#include "lapped_transform.h"
#include "sign_hiding.h"

enum {
    ERROR_MAX = 255,          /* Largest error that is compensated for, in 1/16 of a step. */
    GRAM_SCALE = 256,         /* Inner products of basis functions are integers in 1/256. */
    SCALE_INDICES = 208,      /* Scale indices of symbols. */
    SYMBOL_MAX = 1 << 19,     /* Largest magnitude of a symbol. */
    CROSS_TAPS = 5            /* A block and its four edge neighbours. */
};

/* Prices of bits, in 1 / COST_SCALE squared steps, by scale index: 0.1155 squared steps a bit,
 * -dD/dR of a uniform quantiser at high rate, for symbols of a Laplace distribution. */
/* What the bits of a magnitude of 1 instead of 0 are worth. */
static const int32_t FIRST_BITS[208] = {
    37297, 37297, 34359, 31664, 29193, 26927, 24849, 22943, 21195, 19591, 18118, 16767, 15524,
    14382, 13330, 12361, 11466, 10639, 9873, 9162, 8502, 7888, 7317, 6785, 6288, 5825, 5394, 4992,
    4617, 4268, 3944, 3642, 3361, 3101, 2859, 2636, 2428, 2236, 2059, 1895, 1744, 1604, 1475,
    1356, 1247, 1146, 1053, 967, 888, 816, 749, 688, 632, 580, 532, 488, 448, 411, 378, 346, 318,
    292, 268, 245, 225, 207, 189, 174, 159, 146, 134, 123, 113, 104, 95, 87, 80, 73, 67, 62, 56,
    52, 48, 44, 40, 37, 34, 31, 28, 26, 24, 22, 20, 18, 17, 15, 14, 13, 12, 11, 10, 9, 8, 8, 7, 6,
    6, 5, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0,
};

/* What the bits of n + 1 instead of n > 0 are worth. */
static const int32_t LATER_BITS[208] = {
    70810, 70810, 64933, 59544, 54602, 50070, 45914, 42104, 38609, 35405, 32466, 29772, 27301,
    25035, 22957, 21052, 19305, 17702, 16233, 14886, 13650, 12518, 11479, 10526, 9652, 8851, 8117,
    7443, 6825, 6259, 5739, 5263, 4826, 4426, 4058, 3721, 3413, 3129, 2870, 2631, 2413, 2213,
    2029, 1861, 1706, 1565, 1435, 1316, 1207, 1106, 1015, 930, 853, 782, 717, 658, 603, 553, 507,
    465, 427, 391, 359, 329, 302, 277, 254, 233, 213, 196, 179, 164, 151, 138, 127, 116, 107, 98,
    90, 82, 75, 69, 63, 58, 53, 49, 45, 41, 38, 35, 32, 29, 27, 24, 22, 21, 19, 17, 16, 15, 13,
    12, 11, 10, 9, 9, 8, 7, 7, 6, 6, 5, 5, 4, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
};

/* Thresholds of RDOQ by scale index, in steps. */
typedef struct {
    float to_first[SCALE_INDICES]; /* Magnitudes above it become 1 or more. */
    float later[SCALE_INDICES];    /* Magnitude n + 1 is preferred to n from n + 1 - later on. */
} rounding_thresholds;

/* RDOQ of scale indices of at least `least`; symbols of lower ones are 0. */
static void thresholds_init(rounding_thresholds *t, int32_t least) {
    for (int32_t i = 0; i < SCALE_INDICES; i++) {
        float first = 0.5f * (float)FIRST_BITS[i] / COST_SCALE;
        float later = 0.5f * (float)LATER_BITS[i] / COST_SCALE;
        t->to_first[i] = i < least ? INFINITY : 0.5f + (first > 0.8f ? 0.8f : first);
        t->later[i] = 0.5f - (later > 0.4f ? 0.4f : later);
    }
}

/* The symbol of e, in steps, under the Laplace distribution of a scale index. */
MRC_INLINE int32_t rdo_quantise(const rounding_thresholds *t, float e, int32_t index) {
    float magnitude = fabsf(e);
    if (!(magnitude > t->to_first[index])) return 0;
    float floored = floorf(magnitude + t->later[index]);
    int32_t n = floored < 1 ? 1 : floored > SYMBOL_MAX - 1 ? SYMBOL_MAX - 1 : (int32_t)floored;
    return e < 0 ? -n : n;
}

/* Error compensation: the transform is not orthogonal, so a coefficient can make good for errors of
 * coefficients that were coded before it. One Jacobi step towards the least-squares solution. */
typedef struct {
    layer correlation[PASSES][PARITIES]; /* Errors of earlier passes -> corrections, times norm. */
    float norm[CHANNELS];                /* GRAM_SCALE squared norms, at 8 u + w. */
} compensation;

/* The taps of an error-compensation kernel: left, itself, right, above, below, as 3 x 3 taps. */
static const uint8_t CROSS[CROSS_TAPS] = {3, 4, 5, 1, 7};

static int32_t inner_product(int32_t out, int32_t in, int32_t tap) {
    int32_t vertical = GRAM[out / 8][8 * (tap / 3) + in / 8];
    int32_t horizontal = GRAM[out % 8][8 * (tap % 3) + in % 8];
    return (int32_t)round_shift((int64_t)vertical * horizontal, 16);
}

static void pack_correlation(layer *l, arena *a, const coding_order *order, int32_t p,
                             int32_t parity) {
    l->outputs = order->count[p];
    l->panels = (l->outputs + PANEL - 1) / PANEL;
    l->pairs = CROSS_TAPS * order->known[p] / 2;
    l->largest = INT32_MAX;
    int16_t *weights = TAKE(a, int16_t, (size_t)l->panels * l->pairs * PANEL * 2);
    int32_t *zeros = TAKE(a, int32_t, (size_t)l->panels * PANEL);
    l->weights = weights;
    l->bias = l->shift = zeros;
    if (weights == NULL || zeros == NULL) return;
    memset(weights, 0, (size_t)l->panels * l->pairs * PANEL * 2 * sizeof *weights);
    memset(zeros, 0, (size_t)l->panels * PANEL * sizeof *zeros);
    for (int32_t o = 0; o < l->outputs; o++) {
        int32_t i = 0, out = order->place[p][parity][o];
        int16_t *column = weights + (size_t)(o / PANEL) * l->pairs * PANEL * 2 + 2 * (o % PANEL);
        for (int32_t t = 0; t < CROSS_TAPS; t++) {
            int32_t row = (PARITY_ROW[parity] + CROSS[t] / 3 + 1) & 1;
            int32_t near = PARITY_OF[row][(PARITY_COLUMN[parity] + CROSS[t] % 3 + 1) & 1];
            for (int32_t earlier = 0; earlier < p; earlier++) {
                for (int32_t n = 0; n < order->count[earlier]; n++, i++) {
                    int32_t in = order->place[earlier][near][n];
                    column[(size_t)(i / 2) * PANEL * 2 + i % 2] =
                        (int16_t)inner_product(out, in, CROSS[t]);
                }
            }
        }
    }
}

static void compensation_init(compensation *c, arena *a, const coding_order *order) {
    for (int32_t p = 1; p < PASSES; p++) {
        for (int32_t parity = 0; parity < PARITIES; parity++) {
            pack_correlation(&c->correlation[p][parity], a, order, p, parity);
        }
    }
    for (int32_t i = 0; i < CHANNELS; i++) c->norm[i] = (float)inner_product(i, i, 4);
}

#endif
