/*
 * The static stage of the predictive coder: a weighted sum of neighbours, by coefficients that the
 * encoder fits to the slab. All but the neighbours to the left are summed for a whole row at once.
 */
#ifndef MRC_PREDICTIVE_TAPS_H
#define MRC_PREDICTIVE_TAPS_H

#include "predictive_planes.h"

enum {
    MAX_NEIGHBOURS = 256,  /* Taps of a set, at most. */
    MAX_LEFT = 10,         /* Taps in the current row. */
    MAX_PAIRS = MAX_NEIGHBOURS,
    COEFFICIENT_BITS = 13, /* Coefficients are in 2^-13. */
    MAX_COEFFICIENT = (1 << 15) - 1,
    TAP_SETS = 5
};

/* A neighbour: slices back, rows down, columns right. */
typedef struct {
    int8_t slice, row, column;
} tap;

/* Radii squared of a tap set: the half disk of the slice, and disks of the slices before. */
typedef struct {
    int32_t current, before, second;
} tap_radii;

static const tap_radii TAP_RADII[TAP_SETS] = {
    {5, 1, -1}, {18, 4, 0}, {36, 9, 1}, {64, 9, 1}, {100, 9, 1},
};

typedef struct {
    tap taps[MAX_NEIGHBOURS]; /* The current slice's first, row by row. */
    int32_t count;
    int32_t current; /* How many are in the current slice. */
} tap_list;

static void list_disk(tap_list *list, int32_t slice, int32_t square) {
    for (int32_t i = -ROWS_ABOVE; i <= (slice ? ROWS_BELOW : 0); i++) {
        for (int32_t j = -MAX_LEFT; j <= MAX_LEFT; j++) {
            if (i * i + j * j > square || (slice == 0 && i == 0 && j >= 0)) continue;
            list->taps[list->count++] = (tap){(int8_t)slice, (int8_t)i, (int8_t)j};
        }
    }
}

static void list_taps(tap_list *list, int32_t set) {
    list->count = 0;
    list_disk(list, 0, TAP_RADII[set].current);
    list->current = list->count;
    list_disk(list, 1, TAP_RADII[set].before);
    list_disk(list, 2, TAP_RADII[set].second);
}

/* Two neighbours side by side, with their coefficients; the second one may be 0. */
typedef struct {
    ptrdiff_t offset; /* From the voxel, within a plane. */
    int16_t first, second;
} tap_pair;

/* The coefficients of the static stage, as a row pass and as the taps to the left. */
typedef struct {
    tap_pair pairs[MAX_PAIRS];
    int32_t ends[SLICES_KEPT]; /* Of the pairs of each slice. */
    int32_t left[MAX_LEFT];    /* left[n]: of the voxel n + 1 columns back. */
    int32_t left_count;
} stage;

/* A stage of coefficients [count of taps]; `stride` is that of the planes. */
static void make_stage(stage *s, const tap_list *list, const int32_t *coefficients,
                       ptrdiff_t stride) {
    int32_t pairs = 0, slice = 0;
    memset(s, 0, sizeof *s);
    for (int32_t n = 0; n < list->count; n++) {
        tap t = list->taps[n];
        while (slice < t.slice) s->ends[slice++] = pairs;
        if (t.slice == 0 && t.row == 0) {
            s->left[-1 - t.column] = coefficients[n];
            s->left_count = max32(s->left_count, -t.column);
            continue;
        }
        tap_pair *last = pairs ? &s->pairs[pairs - 1] : NULL;
        ptrdiff_t offset = t.row * stride + t.column;
        int32_t first = slice ? s->ends[slice - 1] : 0;
        if (pairs > first && last->offset + 1 == offset && last->second == 0) {
            last->second = (int16_t)coefficients[n];
        } else if (coefficients[n] != 0) {
            s->pairs[pairs++] = (tap_pair){offset, (int16_t)coefficients[n], 0};
        }
    }
    while (slice < SLICES_KEPT) s->ends[slice++] = pairs;
}

#if MRC_AVX512 || MRC_AVX2
/* Add the sums of pairs to those of 32 columns: even ones in sums[0], [2], odd ones in [1], [3]. */
MRC_INLINE void add_pairs(const tap_pair *from, const tap_pair *end, const int16_t *at,
                          __m256i sums[4]) {
    for (const tap_pair *pair = from; pair < end; pair++) {
        int32_t both;
        memcpy(&both, &pair->first, sizeof both);
        const __m256i c = _mm256_set1_epi32(both);
        const int16_t *x = at + pair->offset;
        MRC_UNROLL
        for (int32_t n = 0; n < 4; n++) {
            const int16_t *start = x + 16 * (n >> 1) + (n & 1);
            __m256i two = _mm256_loadu_si256((const __m256i *)start);
            sums[n] = _mm256_add_epi32(sums[n], _mm256_madd_epi16(two, c));
        }
    }
}

MRC_INLINE void store_alternating(int32_t *out, __m256i even, __m256i odd) {
    __m256i low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
    _mm256_storeu_si256((__m256i *)out, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256((__m256i *)(out + 8), _mm256_permute2x128_si256(low, high, 0x31));
}

/* Sums modulo 2^32 of a part of the samples, for every column of a row. */
static void sum_row(const stage *s, const planes *p, int32_t part, int32_t i, int32_t *sums) {
    for (int32_t j = 0; j < p->width; j += ROW_BLOCK) {
        __m256i block[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(),
                            _mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int32_t k = 0, start = 0; k < SLICES_KEPT; start = s->ends[k++]) {
            add_pairs(s->pairs + start, s->pairs + s->ends[k],
                      p->samples[k][part] + row_start(p, i) + j, block);
        }
        store_alternating(sums + j, block[0], block[1]);
        store_alternating(sums + j + 16, block[2], block[3]);
    }
}
#else
static void add_pair(const tap_pair *pair, const int16_t *restrict x, int32_t width,
                     int32_t *restrict sums) {
    const int32_t first = pair->first, second = pair->second;
    for (int32_t j = 0; j < width; j++) sums[j] += first * x[j] + second * x[j + 1];
}

/* Sums modulo 2^32 of a part of the samples, for every column of a row. */
static void sum_row(const stage *s, const planes *p, int32_t part, int32_t i, int32_t *sums) {
    memset(sums, 0, (size_t)p->width * sizeof *sums);
    for (int32_t k = 0, n = 0; k < SLICES_KEPT; k++) {
        const int16_t *at = p->samples[k][part] + row_start(p, i);
        for (; n < s->ends[k]; n++) add_pair(&s->pairs[n], at + s->pairs[n].offset, p->width, sums);
    }
}
#endif

/* Memory of the row pass. */
typedef struct {
    int64_t *sums;  /* [width]: of all neighbours but those to the left, in 2^-13. */
    int32_t *parts; /* [width]: of one part of the samples. */
} row_sums;

static row_sums take_row_sums(arena *a, int32_t width) {
    size_t columns = ((size_t)width + ROW_BLOCK - 1) / ROW_BLOCK * ROW_BLOCK;
    row_sums r;
    r.sums = TAKE(a, int64_t, columns);
    r.parts = TAKE(a, int32_t, columns);
    return r;
}

static void sum_neighbours(const stage *s, const planes *p, int32_t i, const row_sums *r) {
    sum_row(s, p, 0, i, r->parts);
    for (int32_t j = 0; j < p->width; j++) r->sums[j] = r->parts[j];
    if (p->parts == 1) return;
    sum_row(s, p, 1, i, r->parts);
    for (int32_t j = 0; j < p->width; j++) {
        r->sums[j] += (int64_t)r->parts[j] * (1 << PART_BITS);
    }
}

/* The prediction of the static stage for column j, in samples 0 ... top. */
MRC_INLINE float predict_static(const stage *s, const planes *p, const row_sums *r, int32_t j,
                                float top) {
    int64_t sum = r->sums[j];
    for (int32_t n = s->left_count - 1; n >= 0; n--) {
        sum += (int64_t)s->left[n] * p->line[j - 1 - n];
    }
    return clampf((float)sum * (1.0f / (1 << COEFFICIENT_BITS)), 0, top);
}

#endif
