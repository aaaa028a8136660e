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

typedef struct {
    uint64_t syndrome;    /* H |q| mod 2. */
    int32_t payload_bits; /* Signs that it can hide. */
} sign_group;

/* Walks over the carriers of a call in order. */
typedef struct {
    const uint8_t *index;
    const int32_t *weights;
    const band_weight *bands;
    size_t symbols;      /* Of a band. */
    int32_t band_count;
    int32_t band;
    size_t at;           /* The next symbol of the band. */
    int64_t before;      /* Weight before it in the band. */
    int64_t next_before;
    int64_t group_in_band;
    int64_t start, end;  /* Weights where the sign group begins and ends in the band. */
    int64_t group;       /* Number of the sign group in the call. */
    int64_t base;        /* Number of the first sign group of the band. */
} carrier_walk;

static int64_t group_edge(const band_weight *band, int64_t n) {
    return (n * band->total + band->groups - 1) / band->groups;
}

static void enter_group(carrier_walk *w) {
    const band_weight *band = &w->bands[w->band];
    w->start = group_edge(band, w->group_in_band);
    w->end = group_edge(band, w->group_in_band + 1);
    w->group = w->base + w->group_in_band;
}

/* The position in the call of the next carrier in a sign group; -1 at the end. */
static int64_t next_carrier(carrier_walk *w) {
    for (; w->band < w->band_count; w->base += w->bands[w->band++].groups, w->at = 0) {
        const band_weight *band = &w->bands[w->band];
        if (band->groups == 0) continue;
        const uint8_t *index = w->index + (size_t)w->band * w->symbols;
        if (w->at == 0) {
            w->next_before = 0;
            w->group_in_band = 0;
            enter_group(w);
        }
        for (size_t m = w->at; m < w->symbols; m++) {
            int32_t weight = w->weights[index[m]];
            if (weight == 0) continue;
            w->before = w->next_before;
            w->next_before += weight;
            w->at = m + 1;
            while (w->before >= w->end) {
                w->group_in_band++;
                enter_group(w);
            }
            return (int64_t)((size_t)w->band * w->symbols + m);
        }
    }
    return -1;
}

static carrier_walk walk_carriers(const uint8_t *index, const int32_t *weights,
                                  const band_weight *bands, size_t symbols, int32_t band_count) {
    carrier_walk w = {0};
    w.index = index;
    w.weights = weights;
    w.bands = bands;
    w.symbols = symbols;
    w.band_count = band_count;
    return w;
}

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

static int32_t payload_of(const carrier_walk *w) {
    if (w->group % CHAIN_LENGTH == 0) return 0;
    return min32((int32_t)((w->end - w->start) / WEIGHT_PER_SIGN), MAX_PAYLOAD);
}

/* The first row of H in which the carrier's column has a one. */
static int32_t first_row_of(const carrier_walk *w, int32_t payload_bits) {
    return (int32_t)(payload_bits * (w->before - w->start) / (w->end - w->start));
}

/* Which of COLUMNS the column of the carrier is: by its number in the band. */
static int32_t column_of(const carrier_walk *w) {
    return (int32_t)((uint64_t)40503 * (w->at - 1) >> 8 & 3);
}

/* The syndromes of all sign groups of a call for the magnitudes |q|. */
static void syndromes(carrier_walk w, const int32_t *q, sign_group *groups, int64_t count) {
    for (int64_t g = 0; g < count; g++) groups[g] = (sign_group){0, 0};
    for (int64_t m = next_carrier(&w); m >= 0; m = next_carrier(&w)) {
        int32_t bits = payload_of(&w);
        sign_group *group = &groups[w.group];
        group->payload_bits = bits;
        if (bits > 0 && q[m] & 1) {
            group->syndrome ^= (uint64_t)COLUMNS[column_of(&w)] << first_row_of(&w, bits);
        }
    }
}

/* Mark the symbols whose signs are hidden: sign[m] = 2 + (1: negative), others stay as they are. */
static void find_hidden_signs(carrier_walk w, const int32_t *q, const sign_group *groups,
                              int64_t count, uint8_t *sign) {
    int64_t last = -1;
    int32_t rank = 0;
    for (int64_t m = next_carrier(&w); m >= 0; m = next_carrier(&w)) {
        if (w.group != last) rank = 0;
        last = w.group;
        if (q[m] == 0 || w.group + 1 >= count) continue;
        const sign_group *next = &groups[w.group + 1];
        if (rank < next->payload_bits) sign[m] = (uint8_t)(2 + (next->syndrome >> rank & 1));
        rank++;
    }
}

/* -- encoder ------------------------------------------------------------------------------------ */

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

/* The cheapest change of every column of H in a sign group, whose first carrier is the walk's. */
static void collect_changes(carrier_walk w, int64_t m, const hiding_symbols *s, int32_t bits,
                            cheapest_changes *changes) {
    int64_t group = w.group;
    for (int32_t row = 0; row < bits; row++) {
        for (int32_t c = 0; c < COLUMN_KINDS; c++) {
            changes->cost[row][c] = IMPOSSIBLE;
            changes->carrier[row][c] = -1;
        }
    }
    for (; m >= 0 && w.group == group; m = next_carrier(&w)) {
        int32_t value, cost = change_cost(s, m, &value);
        int32_t row = first_row_of(&w, bits), c = column_of(&w);
        if (cost < changes->cost[row][c]) {
            changes->cost[row][c] = cost;
            changes->carrier[row][c] = m;
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
static void hide_signs(carrier_walk w, const hiding_symbols *s) {
    uint64_t negative = 0; /* Signs of the first symbols of the last group that are not 0. */
    int32_t nonzero = 0;
    int64_t m = next_carrier(&w);
    while (m >= 0) {
        carrier_walk first = w;
        int64_t first_m = m, group = w.group;
        int32_t bits = payload_of(&w);
        if (bits > 0) {
            uint64_t sum = 0;
            for (; m >= 0 && w.group == group; m = next_carrier(&w)) {
                if (s->q[m] & 1) sum ^= (uint64_t)COLUMNS[column_of(&w)] << first_row_of(&w, bits);
            }
            int32_t rows = min32(nonzero, bits);
            cheapest_changes changes;
            collect_changes(first, first_m, s, bits, &changes);
            if (rows > 0) embed(s, &changes, rows, (negative ^ sum) & (((uint64_t)1 << rows) - 1));
        }
        negative = 0;
        nonzero = 0;
        w = first;
        for (m = first_m; m >= 0 && w.group == group; m = next_carrier(&w)) {
            if (s->q[m] == 0) continue;
            if (nonzero < MAX_PAYLOAD) negative |= (uint64_t)(s->q[m] < 0) << nonzero;
            nonzero++;
        }
    }
}

#endif
