/* Sign hiding: signs that parities of magnitudes carry (learned.md, section "signs").
 *
 * The encoder finds the cheapest changes of the magnitudes by Viterbi's algorithm over the rows of
 * the parity-check matrix H (syndrome-trellis codes, Filler, Judas & Fridrich 2011). */
#ifndef MRC_SIGN_HIDING_H
#define MRC_SIGN_HIDING_H

#include "common.h"

enum {
    WEIGHT_MAX = 1024,            /* Weight of a symbol of a large scale. */
    GROUP_WEIGHT = 160 * 1024,    /* Largest weight that a sign group aims at. */
    GROUP_OVERHEAD = 8 * 1024,    /* Weight that a sign group wastes at its ends, about. */
    WEIGHT_PER_SIGN = 4 * 1024,   /* Weight of the carriers per hidden sign. */
    CHAIN_LENGTH = 8,             /* The first of so many sign groups hides nothing. */
    COLUMN_KINDS = 4,             /* Different columns of H with the same first row. */
    SUMS = 16,                    /* Sums mod 2 of columns with the same first row. */
    STATES = 8,                   /* What earlier rows have left for the next three. */
    MAX_PAYLOAD = 62              /* Rows of H fit an uint64 with the three below them. */
};
static const uint8_t COLUMNS[COLUMN_KINDS] = {9, 13, 11, 15};

/* A band of a call: its symbols, and how its carriers are cut into sign groups. */
typedef struct {
    int64_t total;  /* Weight of its carriers, 1 at least. */
    int64_t groups;
} band_weight;

/* A symbol of weight > 0: where it lies in the call, and its column of H. */
typedef struct {
    uint32_t symbol;
    uint8_t first_row;
    uint8_t column; /* Of COLUMNS. */
} carrier;

/* Carriers begin ... the begin of the next group. */
typedef struct {
    uint32_t begin;
    int32_t payload_bits; /* Signs that it can hide. */
} sign_group;

/* The carriers of a call, sign group by sign group; memory of the caller. */
typedef struct {
    carrier *carriers;
    sign_group *groups; /* One more than there are, for the end of the last one. */
    int64_t group_count;
} sign_groups;

/* Weights of the bands of a call; returns the number of its sign groups. */
static int64_t weigh_bands(const uint8_t *index, const int32_t *weights, band_weight *bands,
                           size_t symbols, int32_t band_count) {
    int64_t sum = 0, groups = 0;
    for (int32_t band = 0; band < band_count; band++) {
        int64_t total = 0;
        for (size_t m = 0; m < symbols; m++) total += weights[index[(size_t)band * symbols + m]];
        bands[band].total = total;
        sum += total;
    }
    int64_t target = (int64_t)integer_sqrt((uint64_t)(GROUP_OVERHEAD * sum));
    target = clamp64(target, 1, GROUP_WEIGHT);
    for (int32_t band = 0; band < band_count; band++) {
        bands[band].groups = (2 * bands[band].total + target) / (2 * target);
        if (bands[band].total == 0) bands[band].total = 1;
        groups += bands[band].groups;
    }
    return groups;
}

/* Most sign groups of a call of so many symbols in so many bands.
 *
 * With a total T of at most WEIGHT_MAX a symbol there are T / target groups and half a group a
 * band: sqrt(T / GROUP_OVERHEAD) while the target grows, T / GROUP_WEIGHT beyond. */
static size_t max_sign_groups(size_t symbols, int32_t band_count) {
    size_t grown = symbols / 128 + 2;
    return grown + 640 + (size_t)band_count;
}

/* The weight before sign group n of a band. */
static int64_t group_edge(const band_weight *band, int64_t n) {
    return (n * band->total + band->groups - 1) / band->groups;
}

/* List the carriers of a band; number: of its first sign group, count: of the carriers before. */
static uint32_t list_band(const uint8_t *index, const int32_t *weights, const band_weight *band,
                          size_t symbols, size_t first_symbol, int64_t number, uint32_t count,
                          sign_groups *out) {
    int64_t before = 0;
    size_t m = 0;
    for (int64_t group = 0; group < band->groups; group++) {
        int64_t start = group_edge(band, group), end = group_edge(band, group + 1);
        int32_t bits = min32((int32_t)((end - start) / WEIGHT_PER_SIGN), MAX_PAYLOAD);
        if ((number + group) % CHAIN_LENGTH == 0) bits = 0;
        out->groups[number + group] = (sign_group){count, bits};
        for (; m < symbols && before < end; m++) {
            int32_t weight = weights[index[m]];
            if (weight == 0) continue;
            uint8_t row = bits == 0 ? 0 : (uint8_t)(bits * (before - start) / (end - start));
            uint8_t column = (uint8_t)((uint64_t)40503 * m >> 8 & 3);
            out->carriers[count++] = (carrier){(uint32_t)(first_symbol + m), row, column};
            before += weight;
        }
    }
    return count;
}

/* List the carriers of a call of bands, whose weights are in `bands`. */
static void list_carriers(const uint8_t *index, const int32_t *weights, band_weight *bands,
                          size_t symbols, int32_t band_count, sign_groups *out) {
    int64_t number = 0;
    uint32_t count = 0;
    out->group_count = weigh_bands(index, weights, bands, symbols, band_count);
    for (int32_t band = 0; band < band_count; band++) {
        if (bands[band].groups == 0) continue;
        size_t first = (size_t)band * symbols;
        count = list_band(index + first, weights, &bands[band], symbols, first, number, count, out);
        number += bands[band].groups;
    }
    out->groups[out->group_count] = (sign_group){count, 0};
}

/* H |q| mod 2 of a sign group. */
static uint64_t syndrome_of(const sign_groups *s, int64_t group, const int32_t *q) {
    uint64_t sum = 0;
    for (uint32_t c = s->groups[group].begin; c < s->groups[group + 1].begin; c++) {
        const carrier *each = &s->carriers[c];
        uint64_t odd = (uint64_t)(q[each->symbol] & 1);
        sum ^= (uint64_t)(COLUMNS[each->column] * odd) << each->first_row;
    }
    return sum;
}

/* Mark the symbols whose signs are hidden: sign[m] = 2 + (1: negative), others stay as they are. */
static void find_hidden_signs(const sign_groups *s, const int32_t *q, uint8_t *sign) {
    for (int64_t g = 0; g + 1 < s->group_count; g++) {
        int32_t bits = s->groups[g + 1].payload_bits, rank = 0;
        if (bits == 0) continue;
        uint64_t syndrome = syndrome_of(s, g + 1, q);
        for (uint32_t c = s->groups[g].begin; c < s->groups[g + 1].begin && rank < bits; c++) {
            uint32_t m = s->carriers[c].symbol;
            if (q[m] != 0) sign[m] = (uint8_t)(2 + (syndrome >> rank++ & 1));
        }
    }
}

/* -- encoder ---------------------------------------------------------------------------------- */

enum {
    COST_SCALE = 1 << 14,      /* Costs are integers in 1 / COST_SCALE squared steps. */
    MAX_COST = 4 * (1 << 14),  /* Changes that cost more count as costing this. */
    IMPOSSIBLE = 1 << 25       /* Cost of a change that is impossible. */
};

/* The cheapest carrier of each column of H, and the costs of changing it. */
typedef struct {
    int32_t cost[MAX_PAYLOAD][COLUMN_KINDS];
    int64_t carrier[MAX_PAYLOAD][COLUMN_KINDS];
} cheapest_changes;

/* The cheapest subset of the columns of a row for every sum of theirs, bit c: column c is in it. */
static void subset_costs(const int32_t cost[COLUMN_KINDS], int32_t sums[SUMS],
                         uint8_t subset[SUMS]) {
    for (int32_t s = 0; s < SUMS; s++) {
        sums[s] = s == 0 ? 0 : IMPOSSIBLE;
        subset[s] = 0;
    }
    for (int32_t c = 0; c < COLUMN_KINDS; c++) {
        int32_t before[SUMS];
        uint8_t chosen[SUMS];
        memcpy(before, sums, sizeof before);
        memcpy(chosen, subset, sizeof chosen);
        for (int32_t s = 0; s < SUMS; s++) {
            int32_t other = before[s ^ COLUMNS[c]] + cost[c];
            if (other < sums[s]) {
                sums[s] = other;
                subset[s] = (uint8_t)(chosen[s ^ COLUMNS[c]] | 1 << c);
            }
        }
    }
}

/* Find which carriers to change so that rows 0 ... rows - 1 of H |q| flip where `wrong` says so.
 *
 * changed[row]: the set of columns, bit by bit. */
static void viterbi(const cheapest_changes *changes, int32_t rows, uint64_t wrong,
                    uint8_t *changed) {
    int32_t path[STATES], next[STATES];
    uint8_t from[MAX_PAYLOAD][STATES], subset[MAX_PAYLOAD][SUMS];
    for (int32_t s = 0; s < STATES; s++) path[s] = s == 0 ? 0 : IMPOSSIBLE;
    for (int32_t row = 0; row < rows; row++) {
        int32_t sums[SUMS], flip = (int32_t)(wrong >> row & 1);
        subset_costs(changes->cost[row], sums, subset[row]);
        for (int32_t to = 0; to < STATES; to++) {
            int32_t best = INT32_MAX, best_from = 0;
            for (int32_t state = 0; state < STATES; state++) {
                int32_t cost = path[state] + sums[state ^ (2 * to | flip)];
                if (cost < best) best = cost, best_from = state;
            }
            next[to] = min32(best, IMPOSSIBLE);
            from[row][to] = (uint8_t)best_from;
        }
        memcpy(path, next, sizeof path);
    }
    int32_t state = 0;
    for (int32_t s = 1; s < STATES; s++) {
        if (path[s] < path[state]) state = s;
    }
    for (int32_t row = rows - 1; row >= 0; row--) {
        int32_t before = from[row][state], flip = (int32_t)(wrong >> row & 1);
        changed[row] = subset[row][before ^ (2 * state | flip)];
        state = before;
    }
}

/* What the encoder knows of the symbols of a call. */
typedef struct {
    int32_t *q;
    const float *error;          /* What q is the rounding of, in steps. */
    const uint8_t *index;
    const int32_t *first_bits;   /* By index: what the bits of 1 instead of 0 are worth, */
    const int32_t *later_bits;   /* and those of n + 1 instead of n, in 1 / COST_SCALE. */
} hiding_symbols;

/* The cheaper change of a symbol by one: its cost; *value becomes the symbol after it. */
static int32_t change_cost(const hiding_symbols *s, int64_t m, int32_t *value) {
    int32_t q = s->q[m], n = q < 0 ? -q : q, i = s->index[m];
    float e = s->error[m], distance = fabsf(e) - (float)n;
    distance = distance > 4 ? 4 : distance < -4 ? -4 : distance;
    int32_t twice = (int32_t)(2 * COST_SCALE * distance);
    int32_t up = COST_SCALE - twice + (n > 0 ? s->later_bits[i] : s->first_bits[i]);
    int32_t down = COST_SCALE + twice - (n > 1 ? s->later_bits[i] : s->first_bits[i]);
    int32_t upwards = n == 0 || up <= down, negative = e < 0;
    *value = q + (upwards != negative ? 1 : -1);
    return min32(upwards ? up : down, MAX_COST);
}

/* The cheapest change of every column of H in a sign group. */
static void collect_changes(const sign_groups *groups, int64_t group, const hiding_symbols *s,
                            cheapest_changes *changes) {
    for (int32_t row = 0; row < groups->groups[group].payload_bits; row++) {
        for (int32_t c = 0; c < COLUMN_KINDS; c++) {
            changes->cost[row][c] = IMPOSSIBLE;
            changes->carrier[row][c] = -1;
        }
    }
    for (uint32_t n = groups->groups[group].begin; n < groups->groups[group + 1].begin; n++) {
        const carrier *each = &groups->carriers[n];
        int32_t value, cost = change_cost(s, each->symbol, &value);
        if (cost < changes->cost[each->first_row][each->column]) {
            changes->cost[each->first_row][each->column] = cost;
            changes->carrier[each->first_row][each->column] = each->symbol;
        }
    }
}

/* Change symbols of a sign group so that it hides these signs. */
static void embed(const hiding_symbols *s, const cheapest_changes *changes, int32_t rows,
                  uint64_t wrong) {
    uint8_t changed[MAX_PAYLOAD];
    viterbi(changes, rows, wrong, changed);
    for (int32_t row = 0; row < rows; row++) {
        for (int32_t c = 0; c < COLUMN_KINDS; c++) {
            int64_t m = changes->carrier[row][c];
            if (m < 0 || !(changed[row] >> c & 1)) continue;
            int32_t value;
            change_cost(s, m, &value);
            s->q[m] = value;
        }
    }
}

/* Change q of a call so that every sign group hides signs of the one before it. */
static void hide_signs(const sign_groups *groups, const hiding_symbols *s) {
    for (int64_t g = 0; g + 1 < groups->group_count; g++) {
        int32_t bits = groups->groups[g + 1].payload_bits, rows = 0;
        if (bits == 0) continue;
        uint64_t negative = 0; /* Signs of the first symbols of this group that are not 0. */
        for (uint32_t c = groups->groups[g].begin; c < groups->groups[g + 1].begin; c++) {
            int32_t q = s->q[groups->carriers[c].symbol];
            if (q == 0) continue;
            negative |= (uint64_t)(q < 0) << rows++;
            if (rows == bits) break;
        }
        if (rows == 0) continue;
        cheapest_changes changes;
        collect_changes(groups, g + 1, s, &changes);
        uint64_t wrong = negative ^ syndrome_of(groups, g + 1, s->q);
        embed(s, &changes, rows, wrong & (((uint64_t)1 << rows) - 1));
    }
}

#endif
