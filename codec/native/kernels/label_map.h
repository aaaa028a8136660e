/*
 * Labels, masks and other maps of few values, coded by equality decisions.
 *
 * Values become ranks in a palette. A voxel is "equal to this neighbour?" for every value that its
 * neighbours have, the likeliest first; if it is none of them, its rank follows bit by bit. Where
 * all around is one value, a decision is about the whole run of such voxels.
 */
#ifndef MRC_LABEL_MAP_H
#define MRC_LABEL_MAP_H

#include "binary_coder.h"

enum {
    MAX_RANKS = 1 << 16,      /* Distinct values of a map. */
    MAP_BORDER = 3,           /* Rows and columns around a plane of ranks. */
    NEIGHBOURS = 32,          /* Neighbours that contexts look at. */
    MAX_CANDIDATES = 6,       /* The first neighbours, whose values a voxel may equal. */
    NO_CANDIDATE = 7,         /* The class of a neighbour whose value is none of the candidates. */
    MAP_CONTEXTS = 8,         /* Contexts of an equality decision. */
    RANK_CONTEXTS = 6,        /* Contexts of a bit of a rank. */
    CHUNK_BITS = 3,           /* Bits of a rank that share a line of probabilities. */
    LINE_BITS = 3,            /* A line holds eight probabilities. */
    MIN_LINE_BITS = 8,        /* Fewest and most lines, by their logarithms. */
    MAX_LINE_BITS = 19,
    MIN_RUN = 8,              /* Voxels of the shortest run. */
    RUN_CLASSES = 256,        /* Ranks whose runs have probabilities of their own. */
    RUN_LENGTHS = 32,         /* Logarithms of lengths of runs. */
    CANDIDATE_STATES = 21,    /* Number of candidates, and which one is asked for. */
    FIRST_WEIGHT = 200000     /* Weights at the start, of 2^20. */
};

/* Where a neighbour lies: slices, rows and columns before or behind the voxel. */
typedef struct {
    int8_t slice, row, column;
} neighbour;

/* The neighbours; the first MAX_CANDIDATES are those whose values a voxel may equal. */
static const neighbour MAP_NEIGHBOURS[NEIGHBOURS] = {
    {0, 0, -1},  {0, -1, 0},  {-1, 0, 0},  {0, -1, 1},  {-1, 0, 1},   {-1, 1, 0},  {0, -1, -1},
    {0, 0, -2},  {0, -2, 0},  {0, -1, 2},  {-1, 0, -1}, {-1, -1, 0},  {-1, 1, 1},  {0, 0, -3},
    {0, -3, 0},  {0, -1, 3},  {0, -1, -2}, {0, -2, 1},  {0, -2, -1},  {-1, 0, 2},  {-1, 2, 0},
    {-1, 1, 2},  {-1, 0, -2}, {-1, -2, 0}, {-1, 1, -1}, {-1, -1, 1},  {-1, -1, -1}, {-2, 0, 0},
    {-2, 0, 1},  {-2, 1, 0},  {-2, 0, -1}, {-2, -1, 0}};
/* Their names: in the slice, in the one before it (P...), and in that before it (Q...). */
enum {
    AT_W, AT_N, AT_P, AT_NE, AT_PE, AT_PS, AT_NW, AT_WW, AT_NN, AT_NEE, AT_PW, AT_PN, AT_PSE,
    AT_WWW, AT_NNN, AT_NEEE, AT_NWW, AT_NNE, AT_NNW, AT_PEE, AT_PSS, AT_PSEE, AT_PWW, AT_PNN,
    AT_PSW, AT_PNE, AT_PNW, AT_Q, AT_QE, AT_QS, AT_QW, AT_QN
};

/* Neighbours whose classes make a context. W is missing: it is always the first candidate. */
static const uint8_t CLOSE[] = {AT_N, AT_P, AT_NE, AT_NW, AT_PE, AT_PS};
static const uint8_t BEFORE[] = {AT_PW, AT_PN, AT_PSE, AT_P, AT_PE, AT_PS, AT_N};
static const uint8_t AROUND[] = {AT_N,  AT_P,  AT_NE,  AT_NW, AT_PE, AT_PS,
                                 AT_PW, AT_PN, AT_PSE, AT_WW, AT_NN, AT_NEE};
static const uint8_t WIDE[] = {AT_N,   AT_P,   AT_NE,   AT_WW,  AT_NN,  AT_NEE,
                               AT_WWW, AT_NNN, AT_NEEE, AT_NWW, AT_NNE, AT_NNW};
static const uint8_t WIDE_BEFORE[] = {AT_N,   AT_P,   AT_NE,   AT_NW,  AT_PE,
                                      AT_PS,  AT_PSE, AT_PEE,  AT_PSS, AT_PSEE,
                                      AT_PWW, AT_PNN, AT_PSW,  AT_PNE, AT_PNW};
static const uint8_t TWO_BEFORE[] = {AT_N, AT_P, AT_PE, AT_PS, AT_Q, AT_QE, AT_QS, AT_QW, AT_QN};
/* Those that choose the weights. */
static const uint8_t NEAR_WEIGHTS[] = {AT_N, AT_P, AT_NE};
static const uint8_t FAR_WEIGHTS[] = {AT_NW, AT_PE, AT_PS};

typedef struct {
    int32_t slices, height, width;
    int32_t ranks;           /* Distinct values. */
    int32_t rank_bits;
    int32_t line_bits;
    ptrdiff_t stride;        /* Elements of a row of a plane. */
    size_t plane;            /* Elements of a plane with its border. */
    uint16_t *planes[3];     /* Ranks of the slice, the one before, and that before it. */
    ptrdiff_t offsets[NEIGHBOURS];
    logistic_tables *tables;
    chance *lines;           /* [1 << line_bits][8] */
    int32_t *near_weights;   /* [CANDIDATE_STATES << 9][MIX_WEIGHTS] */
    int32_t *far_weights;    /* As near_weights. */
    int32_t *rank_weights;   /* [2][16][MIX_WEIGHTS] */
    chance *runs;            /* [RUN_CLASSES][RUN_LENGTHS]: that a run has no end. */
    chance *halves;          /* [RUN_LENGTHS]: that a run ends in the second half. */
    uint8_t *plain;          /* [width + 1]: whether all around a voxel of the row is one value. */
    int32_t *palette;        /* [MAX_RANKS]: values by rank. */
    uint16_t *rank_of;       /* [peak + 1], encoder: ranks by value. */
    binary_coder coder;
} label_map;

static int32_t log2_of(uint64_t v) { return bit_length(v) - 1; }

static int32_t describe_label_map(label_map *m, const mrc_slab *slab) {
    memset(m, 0, sizeof *m);
    if (slab->slices < 1 || slab->height < 1 || slab->width < 1) return MRC_ERROR_ARGUMENT;
    if (slab->peak < 0 || slab->peak >= MAX_RANKS) return MRC_ERROR_ARGUMENT;
    m->slices = slab->slices;
    m->height = slab->height;
    m->width = slab->width;
    m->stride = (ptrdiff_t)slab->width + 2 * MAP_BORDER;
    m->plane = (size_t)m->stride * ((size_t)slab->height + 2 * MAP_BORDER);
    const uint64_t voxels = (uint64_t)slab->slices * (uint64_t)slab->height;
    m->line_bits = clamp32(log2_of(voxels) + log2_of((uint64_t)slab->width) - 2, MIN_LINE_BITS,
                           MAX_LINE_BITS);
    return MRC_OK;
}

/* The arrays of a map in an arena. */
static void take_label_map(label_map *m, arena *a, int32_t peak, int32_t encoding) {
    for (int32_t n = 0; n < 3; n++) m->planes[n] = TAKE(a, uint16_t, m->plane);
    m->tables = TAKE(a, logistic_tables, 1);
    m->lines = TAKE(a, chance, (size_t)1 << (m->line_bits + LINE_BITS));
    m->near_weights = TAKE(a, int32_t, (CANDIDATE_STATES << 9) * MIX_WEIGHTS);
    m->far_weights = TAKE(a, int32_t, (CANDIDATE_STATES << 9) * MIX_WEIGHTS);
    m->rank_weights = TAKE(a, int32_t, 2 * 16 * MIX_WEIGHTS);
    m->runs = TAKE(a, chance, RUN_CLASSES * RUN_LENGTHS);
    m->halves = TAKE(a, chance, RUN_LENGTHS);
    m->plain = TAKE(a, uint8_t, (size_t)m->width + 1);
    m->palette = TAKE(a, int32_t, (size_t)peak + 1);
    if (encoding) m->rank_of = TAKE(a, uint16_t, (size_t)peak + 1);
}

static size_t label_map_bytes(const mrc_slab *slab, int32_t encoding) {
    label_map m;
    arena count = arena_of(NULL, 0);
    if (describe_label_map(&m, slab) != MRC_OK) return 0;
    take_label_map(&m, &count, slab->peak, encoding);
    return count.failed ? 0 : count.used + ARENA_ALIGNMENT;
}

static void clear_label_map(label_map *m) {
    for (int32_t n = 0; n < 3; n++) memset(m->planes[n], 0, m->plane * sizeof *m->planes[n]);
    make_logistic_tables(m->tables);
    set_chances(m->lines, (size_t)1 << (m->line_bits + LINE_BITS), EVEN_CHANCE);
    set_chances(m->runs, RUN_CLASSES * RUN_LENGTHS, EVEN_CHANCE + EVEN_CHANCE / 2);
    set_chances(m->halves, RUN_LENGTHS, EVEN_CHANCE);
    for (size_t n = 0; n < (CANDIDATE_STATES << 9) * MIX_WEIGHTS; n++) {
        m->near_weights[n] = m->far_weights[n] = FIRST_WEIGHT;
    }
    for (size_t n = 0; n < 2 * 16 * MIX_WEIGHTS; n++) m->rank_weights[n] = FIRST_WEIGHT;
}

/* Offsets of the neighbours from the slice's plane; the planes of slices before it come later. */
static void place_neighbours(label_map *m) {
    for (int32_t n = 0; n < NEIGHBOURS; n++) {
        const neighbour at = MAP_NEIGHBOURS[n];
        m->offsets[n] = at.row * m->stride + at.column;
    }
}

/* -- the palette ------------------------------------------------------------------------------ */

/* Code a gap of 1 or more between values: the number of its bits, then those below the first. */
static uint32_t code_gap(label_map *m, uint32_t gap, chance *lengths) {
    int32_t bits = 1, last = m->coder.encoder != NULL ? bit_length(gap) : 17;
    while (bits < 17 && code_adaptive(&m->coder, bits < last, lengths + bits)) bits++;
    return (uint32_t)1 << (bits - 1) | code_even(&m->coder, bits - 1, gap);
}

/* Code the ascending values of the palette. */
static int32_t code_palette(label_map *m, int32_t peak) {
    chance lengths[18];
    set_chances(lengths, 18, EVEN_CHANCE);
    m->ranks = (int32_t)code_even(&m->coder, 16, (uint32_t)m->ranks - 1) + 1;
    for (int64_t n = 0, before = -1; n < m->ranks; n++) {
        uint32_t gap = m->coder.encoder != NULL ? (uint32_t)(m->palette[n] - before) : 0;
        before += code_gap(m, gap, lengths);
        if (before > peak) return MRC_ERROR_DAMAGED;
        m->palette[n] = (int32_t)before;
    }
    m->rank_bits = bit_length((uint64_t)m->ranks - 1);
    return MRC_OK;
}

/* The palette of samples 0 ... peak, and the rank of every value. */
static int32_t find_palette(label_map *m, const int32_t *samples, size_t count, int32_t peak) {
    memset(m->rank_of, 0, ((size_t)peak + 1) * sizeof *m->rank_of);
    for (size_t n = 0; n < count; n++) {
        if (samples[n] < 0 || samples[n] > peak) return MRC_ERROR_ARGUMENT;
        m->rank_of[samples[n]] = 1;
    }
    m->ranks = 0;
    for (int32_t value = 0; value <= peak; value++) {
        if (!m->rank_of[value]) continue;
        m->palette[m->ranks] = value;
        m->rank_of[value] = (uint16_t)m->ranks++;
    }
    return MRC_OK;
}

/* -- contexts --------------------------------------------------------------------------------- */

MRC_INLINE uint64_t hash_of(uint64_t key, uint64_t number) {
    uint64_t h = (key + (number << 56)) * 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
    return h * 0xD6E8FEB86659FD93u;
}

/* The eight probabilities of a context. */
MRC_INLINE chance *line_of(const label_map *m, uint64_t key, uint64_t number) {
    return m->lines + (hash_of(key, number) >> (64 - m->line_bits) << LINE_BITS);
}

/* What contexts know of a voxel: values of neighbours, and which of the candidates each has. */
typedef struct {
    uint16_t value[NEIGHBOURS];
    uint16_t class[NEIGHBOURS];
    int32_t candidates[MAX_CANDIDATES];
    int32_t count;
} surroundings;

MRC_INLINE void look_around(const label_map *m, ptrdiff_t at, surroundings *s) {
    const uint16_t *planes[3] = {m->planes[0] + at, m->planes[1] + at, m->planes[2] + at};
    MRC_UNROLL
    for (int32_t n = 0; n < NEIGHBOURS; n++) {
        s->value[n] = planes[-MAP_NEIGHBOURS[n].slice][m->offsets[n]];
        s->class[n] = NO_CANDIDATE;
    }
    s->count = 0;
    for (int32_t n = 0; n < MAX_CANDIDATES; n++) {
        if (s->class[n] != NO_CANDIDATE) continue;
        const uint16_t value = s->value[n], candidate = (uint16_t)s->count;
        s->candidates[s->count++] = value;
        for (int32_t k = 0; k < NEIGHBOURS; k++) {
            const uint16_t old = s->class[k];
            s->class[k] = s->value[k] == value ? candidate : old;
        }
    }
}

/* The classes of some neighbours as one number. */
#define CLASSES(s, which) classes_of(s, which, sizeof which)
MRC_INLINE uint64_t classes_of(const surroundings *s, const uint8_t *which, size_t count) {
    uint64_t key = 0;
    MRC_UNROLL
    for (size_t n = 0; n < count; n++) key = key << 3 | s->class[which[n]];
    return key;
}

/* The lines of the contexts of a voxel; the last one is that of a candidate. */
MRC_INLINE void find_lines(const label_map *m, const surroundings *s, uint64_t close,
                           chance *lines[MAP_CONTEXTS]) {
    const uint64_t values = (uint64_t)s->value[AT_W] << 32 | (uint64_t)s->value[AT_N] << 16;
    lines[0] = line_of(m, close, 0);
    lines[1] = line_of(m, CLASSES(s, BEFORE), 1);
    lines[2] = line_of(m, values | s->value[AT_P], 2);
    lines[3] = line_of(m, CLASSES(s, AROUND), 3);
    lines[4] = line_of(m, CLASSES(s, WIDE), 4);
    lines[5] = line_of(m, CLASSES(s, WIDE_BEFORE), 5);
    lines[6] = line_of(m, CLASSES(s, TWO_BEFORE), 6);
}

/* -- voxels ----------------------------------------------------------------------------------- */

/* Code a rank that is none of the candidates, the upper bits first. */
static int32_t code_rank(label_map *m, const surroundings *s, int32_t rank) {
    const uint64_t w = s->value[AT_W], n = s->value[AT_N], p = s->value[AT_P], ne = s->value[AT_NE];
    const uint64_t keys[RANK_CONTEXTS] = {0, w, n << 16 | w, p, p << 16 | n, ne << 16 | w};
    uint64_t path = 1;
    for (int32_t left = m->rank_bits; left > 0;) {
        chance *lines[RANK_CONTEXTS], *contexts[RANK_CONTEXTS];
        for (int32_t k = 0; k < RANK_CONTEXTS; k++) {
            lines[k] = line_of(m, path << 32 | keys[k], MAP_CONTEXTS + (uint64_t)k);
        }
        for (int32_t node = 1; node < 1 << CHUNK_BITS && left > 0; left--) {
            int32_t *weights = m->rank_weights + (left - 1) * MIX_WEIGHTS;
            for (int32_t k = 0; k < RANK_CONTEXTS; k++) contexts[k] = lines[k] + node;
            int32_t bit = code_mixed(&m->coder, rank >> (left - 1) & 1, contexts, RANK_CONTEXTS,
                                     weights, weights + 16 * MIX_WEIGHTS);
            node = 2 * node + bit;
            path = path << 1 | (uint64_t)bit;
        }
    }
    return (int32_t)(path - ((uint64_t)1 << m->rank_bits));
}

/* Code the voxel at an offset of the planes; `other`: it differs from the first candidate. */
static int32_t code_voxel(label_map *m, ptrdiff_t at, int32_t rank, int32_t other) {
    surroundings s;
    chance *lines[MAP_CONTEXTS];
    look_around(m, at, &s);
    const uint64_t close = CLASSES(&s, CLOSE);
    find_lines(m, &s, close, lines);
    const size_t near = CLASSES(&s, NEAR_WEIGHTS), far = CLASSES(&s, FAR_WEIGHTS);
    for (int32_t n = other; n < s.count; n++) {
        chance *contexts[MAP_CONTEXTS];
        lines[7] = line_of(m, close << 16 | (uint64_t)s.candidates[n], 7);
        for (int32_t k = 0; k < MAP_CONTEXTS; k++) contexts[k] = lines[k] + n;
        const size_t state = (size_t)(s.count * (s.count - 1) / 2 + n) << 9;
        if (code_mixed(&m->coder, rank == s.candidates[n], contexts, MAP_CONTEXTS,
                       m->near_weights + (state | near) * MIX_WEIGHTS,
                       m->far_weights + (state | far) * MIX_WEIGHTS)) {
            return s.candidates[n];
        }
    }
    return code_rank(m, &s, rank);
}

/* -- rows ------------------------------------------------------------------------------------- */

/* Mark the voxels of a row around which all known neighbours within two voxels are equal. */
static void find_plain(label_map *m, ptrdiff_t at) {
    const ptrdiff_t s = m->stride;
    const uint16_t *n = m->planes[0] + at - s, *p = m->planes[1] + at;
    uint8_t *plain = m->plain;
    for (int32_t j = 0; j < m->width; j++) {
        const uint16_t *a = n + j, *b = p + j, v = *a;
        plain[j] = (a[-2] == v) & (a[-1] == v) & (a[1] == v) & (a[2] == v) & (a[-s] == v) &
                   (a[-s - 1] == v) & (a[-s + 1] == v) & (b[0] == v) & (b[-1] == v) & (b[1] == v) &
                   (b[2] == v) & (b[-s] == v) & (b[-s - 1] == v) & (b[-s + 1] == v) &
                   (b[s] == v) & (b[s - 1] == v) & (b[s + 1] == v) & (b[2 * s] == v);
    }
    plain[m->width] = 0;
}

/* Code how many of `length` voxels in a row equal the value around them; `known`: an encoder's. */
static int32_t code_run(label_map *m, int32_t length, int32_t value, int32_t known) {
    binary_coder *b = &m->coder;
    chance *whole = m->runs + (value % RUN_CLASSES) * RUN_LENGTHS + log2_of((uint64_t)length);
    if (code_adaptive(b, known == length, whole)) return length;
    int32_t low = 0, high = length; /* The run ends at low ... high - 1. */
    while (high - low > 1) {
        const int32_t middle = low + (high - low) / 2;
        chance *half = m->halves + log2_of((uint64_t)(high - low));
        if (code_adaptive(b, known >= middle, half)) low = middle;
        else high = middle;
    }
    return low;
}

/* Code the run that begins at voxel j of a row, if one does; returns its voxels, and whether the
 * next one ends it by another value. */
static int32_t code_plain(label_map *m, uint16_t *x, int32_t j, int32_t *ended) {
    const uint16_t value = x[j - m->stride];
    const int32_t encoding = m->coder.encoder != NULL;
    int32_t length = 0, known = 0;
    *ended = 0;
    if (x[j - 1] != value || x[j - 2] != value) return 0;
    while (m->plain[j + length]) length++;
    if (length < MIN_RUN) return 0;
    while (encoding && known < length && x[j + known] == value) known++;
    known = code_run(m, length, value, known);
    for (int32_t n = 0; n < known && !encoding; n++) x[j + n] = value;
    *ended = known < length;
    return known;
}

/* Code a row of ranks at an offset of the planes; an encoder's ranks lie there already. */
static void code_row(label_map *m, ptrdiff_t at) {
    uint16_t *x = m->planes[0] + at;
    for (int32_t n = 1; n <= MAP_BORDER; n++) x[-n] = x[-m->stride];
    find_plain(m, at);
    for (int32_t j = 0; j < m->width;) {
        int32_t other = 0, run = m->plain[j] ? code_plain(m, x, j, &other) : 0;
        j += run;
        if (run > 0 && !other) continue;
        x[j] = (uint16_t)code_voxel(m, at + j, x[j], other);
        j++;
    }
    for (int32_t n = 0; n < MAP_BORDER; n++) x[m->width + n] = x[m->width - 1];
}

/* Begin a slice: the planes move on, and the rows above it are the first row of the one before. */
static void start_map_slice(label_map *m) {
    uint16_t *last = m->planes[2];
    m->planes[2] = m->planes[1];
    m->planes[1] = m->planes[0];
    m->planes[0] = last;
    for (int32_t n = 0; n < MAP_BORDER; n++) {
        memcpy(last + n * m->stride, m->planes[1] + MAP_BORDER * m->stride,
               (size_t)m->stride * sizeof *last);
    }
}

/* End a slice: the rows below it are its last row. */
static void end_map_slice(label_map *m) {
    uint16_t *row = m->planes[0] + (m->height + MAP_BORDER - 1) * m->stride;
    for (int32_t n = 1; n <= MAP_BORDER; n++) {
        memcpy(row + n * m->stride, row, (size_t)m->stride * sizeof *row);
    }
}

/* -- slabs ------------------------------------------------------------------------------------ */

/* Code all slices: `samples` are read by an encoder, and written to `decoded` by a decoder. */
static int32_t code_slices(label_map *m, const mrc_slab *slab, const int32_t *samples,
                           int32_t *decoded) {
    for (int32_t k = 0; k < m->slices; k++) {
        start_map_slice(m);
        for (int32_t i = 0; i < m->height; i++) {
            const ptrdiff_t at = (i + MAP_BORDER) * m->stride + MAP_BORDER;
            const size_t row = ((size_t)k * m->height + i) * m->width;
            uint16_t *x = m->planes[0] + at;
            if (slab->cancel != NULL && *slab->cancel) return MRC_ERROR_CANCELLED;
            if (samples != NULL) {
                for (int32_t j = 0; j < m->width; j++) x[j] = m->rank_of[samples[row + j]];
            }
            code_row(m, at);
            if (decoded == NULL) continue;
            if (m->coder.decoder->damaged) return MRC_ERROR_DAMAGED;
            for (int32_t j = 0; j < m->width; j++) {
                if (x[j] >= m->ranks) return MRC_ERROR_DAMAGED;
                decoded[row + j] = m->palette[x[j]];
            }
        }
        end_map_slice(m);
    }
    return MRC_OK;
}

/* The map of a slab in its arena. */
static int32_t start_label_map(label_map *m, const mrc_slab *slab, int32_t encoding) {
    arena a = arena_of(slab->arena, slab->arena_size);
    int32_t status = describe_label_map(m, slab);
    if (status != MRC_OK) return status;
    take_label_map(m, &a, slab->peak, encoding);
    if (a.failed || a.start == NULL) return MRC_ERROR_MEMORY;
    clear_label_map(m);
    place_neighbours(m);
    m->coder.tables = m->tables;
    return MRC_OK;
}

static int32_t encode_label_map(const mrc_slab *slab, const int32_t *samples, size_t count,
                                const mrc_run *run) {
    label_map m;
    range_encoder encoder;
    int32_t status = start_label_map(&m, slab, 1);
    if (status == MRC_OK) status = find_palette(&m, samples, count, slab->peak);
    if (status != MRC_OK) return status;
    encoder_start(&encoder, run->data, run->capacity);
    m.coder.encoder = &encoder;
    status = code_palette(&m, slab->peak);
    if (status == MRC_OK) status = code_slices(&m, slab, samples, NULL);
    encoder_finish(&encoder);
    *run->size = encoder.size;
    if (status == MRC_OK && encoder.full) status = MRC_ERROR_CAPACITY;
    return status;
}

static int32_t decode_label_map(const mrc_slab *slab, const uint8_t *data, size_t size,
                                int32_t *samples) {
    label_map m;
    range_decoder decoder;
    int32_t status = start_label_map(&m, slab, 0);
    if (status == MRC_OK) status = decoder_start(&decoder, data, size);
    if (status != MRC_OK) return status;
    m.coder.decoder = &decoder;
    status = code_palette(&m, slab->peak);
    if (status == MRC_OK) status = code_slices(&m, slab, NULL, samples);
    return status != MRC_OK ? status : decoder_finish(&decoder);
}

#endif
