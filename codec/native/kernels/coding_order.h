/* The order of coding: coefficients of a block by pass, groups of slices by step (learned.md). */
#ifndef MRC_CODING_ORDER_H
#define MRC_CODING_ORDER_H

#include "common.h"

enum {
    BLOCK = 8,
    CHANNELS = 64,    /* Coefficients of a block. */
    PASSES = 4,       /* Passes over a band. */
    PARITIES = 4,     /* Classes of blocks by row and column modulo 2. */
    MAX_CODED = 32,   /* Most coefficients of a block that a pass codes. */
    MAX_KNOWN = 32,   /* Coefficients of a block that the passes before the last one code. */
    BORDERS = 16,     /* Sets of the four sides on which a block has no neighbour. */
    ANCHOR_DISTANCE = 8
};

/* The sides on which a block has no neighbour. */
enum { TOP = 1, BOTTOM = 2, LEFT = 4, RIGHT = 8 };

static const uint8_t PASS_OF_PHASE[8] = {0, 2, 1, 3, 2, 3, 3, 3};
static const uint8_t PARITY_ROW[PARITIES] = {0, 1, 0, 1};
static const uint8_t PARITY_COLUMN[PARITIES] = {0, 1, 1, 0};
/* The parity of a block by row and column modulo 2. */
static const uint8_t PARITY_OF[2][2] = {{0, 2}, {3, 1}};

typedef struct {
    int32_t count[PASSES];                           /* Coefficients of a block in pass p. */
    int32_t known[PASSES];                           /* Coefficients of a block before pass p. */
    uint8_t channel[PASSES][PARITIES][MAX_CODED];    /* Which coefficients c these are. */
    uint8_t place[PASSES][PARITIES][MAX_CODED];      /* The same as 8 u + w. */
    /* 16 / the weight of what is known around a coefficient, which counts as 1 at least: of the
     * same coefficient of the neighbouring blocks, and of neighbouring frequencies of the block. */
    float spatial[PASSES][BORDERS][PARITIES][MAX_CODED];
    float spectral[PASSES][PARITIES][MAX_CODED];
    uint8_t raster[CHANNELS];                        /* 8 u + w of coefficient c. */
} coding_order;

static int32_t pass_of(int32_t parity, int32_t channel) {
    return PASS_OF_PHASE[(2 * parity + channel) & 7];
}

static int32_t spatial_weight(int32_t p, int32_t border, int32_t parity, int32_t channel) {
    int32_t total = 0;
    for (int32_t dr = -1; dr <= 1; dr++) {
        for (int32_t dc = -1; dc <= 1; dc++) {
            if ((dr < 0 && border & TOP) || (dr > 0 && border & BOTTOM)) continue;
            if ((dc < 0 && border & LEFT) || (dc > 0 && border & RIGHT)) continue;
            int32_t row = (PARITY_ROW[parity] + dr) & 1, column = (PARITY_COLUMN[parity] + dc) & 1;
            if (pass_of(PARITY_OF[row][column], channel) >= p) continue;
            total += (dr == 0 ? 2 : 1) * (dc == 0 ? 2 : 1);
        }
    }
    return max32(total, 1);
}

static int32_t spectral_weight(const coding_order *order, int32_t p, int32_t parity,
                               int32_t channel) {
    int32_t total = 0, u = order->raster[channel] / 8, w = order->raster[channel] % 8;
    for (int32_t other = 0; other < CHANNELS; other++) {
        int32_t du = u - order->raster[other] / 8, dw = w - order->raster[other] % 8;
        du = du < 0 ? -du : du;
        dw = dw < 0 ? -dw : dw;
        if (du > 1 || dw > 1 || du + dw == 0 || pass_of(parity, other) >= p) continue;
        total += 3 - du - dw;
    }
    return max32(total, 1);
}

static void order_weights(coding_order *order, int32_t p, int32_t parity) {
    for (int32_t n = 0; n < order->count[p]; n++) {
        int32_t c = order->channel[p][parity][n];
        order->spectral[p][parity][n] = 16.0f / (float)spectral_weight(order, p, parity, c);
        for (int32_t border = 0; border < BORDERS; border++) {
            float weight = (float)spatial_weight(p, border, parity, c);
            order->spatial[p][border][parity][n] = 16.0f / weight;
        }
    }
}

static void order_init(coding_order *order) {
    memset(order, 0, sizeof *order);
    int32_t c = 0;
    for (int32_t diagonal = 0; diagonal < 15; diagonal++) {
        for (int32_t u = 0; u < 8; u++) {
            if (diagonal - u >= 0 && diagonal - u < 8) {
                order->raster[c++] = (uint8_t)(8 * u + diagonal - u);
            }
        }
    }
    for (int32_t p = 0; p < PASSES; p++) {
        for (int32_t parity = 0; parity < PARITIES; parity++) {
            int32_t n = 0;
            for (c = 0; c < CHANNELS; c++) {
                if (pass_of(parity, c) != p) continue;
                order->channel[p][parity][n] = (uint8_t)c;
                order->place[p][parity][n++] = order->raster[c];
            }
            order->count[p] = n;
        }
        if (p > 0) order->known[p] = order->known[p - 1] + order->count[p - 1];
        for (int32_t parity = 0; parity < PARITIES; parity++) order_weights(order, p, parity);
    }
}

/* A group whose low band is coded, and the groups that it refers to (-1: none). */
typedef struct {
    int32_t group, before, after;
} coding_entry;

/* Append the group between two decoded ones, if there is any. */
static int32_t append_middle(coding_entry *entries, int32_t count, int32_t before, int32_t after) {
    if (after - before <= 1) return count;
    entries[count] = (coding_entry){(before + after) / 2, before, after};
    return count + 1;
}

/* The order of the low bands of so many groups: entries in order, and where each step ends.
 *
 * entries, ends: of `groups` elements. Returns the number of steps. */
static int32_t coding_steps(int32_t groups, coding_entry *entries, int32_t *ends) {
    int32_t count = 0, steps = 0;
    for (int32_t g = 0, last = -1; g < groups; last = g, g += ANCHOR_DISTANCE) {
        entries[count++] = (coding_entry){g, last, -1};
        if (g + ANCHOR_DISTANCE >= groups && g < groups - 1) {
            entries[count++] = (coding_entry){groups - 1, g, -1};
        }
    }
    for (int32_t n = 0; n < count; n++) ends[steps++] = n + 1;
    int32_t begin = 0, end = count;
    for (int32_t n = 1; n < end; n++) {
        count = append_middle(entries, count, entries[n - 1].group, entries[n].group);
    }
    while (count > end) {
        begin = end;
        end = ends[steps++] = count;
        for (int32_t n = begin; n < end; n++) {
            count = append_middle(entries, count, entries[n].before, entries[n].group);
            count = append_middle(entries, count, entries[n].group, entries[n].after);
        }
    }
    return steps;
}

/* The class of a low band by its references, 0 ... 4. */
static int32_t reference_class(coding_entry e) {
    if (e.before < 0) return 0;
    if (e.after < 0) return 1;
    return 5 - min32(max32(e.group - e.before, e.after - e.group), 3);
}

#endif
