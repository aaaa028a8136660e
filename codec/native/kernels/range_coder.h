/* The entropy coder of entropy.md: calls of values, by probability tables, to bytes and back. */
#ifndef MRC_RANGE_CODER_H
#define MRC_RANGE_CODER_H

#include "integer_layers.h"

enum {
    PRECISION = 24,     /* Bits of a probability. */
    LOOKUP_BITS = 8,    /* First bits of a quantile by which the search of a symbol begins. */
    RAW_CHUNK = 16,     /* Most bits of a chunk of raw bits. */
    LENGTH_BITS = 7,    /* Bits of the length of an escaped value. */
    MAX_LENGTH = 64,    /* Longest escaped value. */
    INDICES = 256       /* Indices of a table set. */
};

typedef struct {
    const uint32_t *cumulative; /* [rows][columns + 1] */
    const uint8_t *lookup;      /* [rows][256]: the first symbol that may have such a quantile. */
    int32_t rows;
    int32_t columns;            /* Tokens and the escape. */
    int32_t octave;
    int32_t low;
} table_set;

/* Weights int32 [rows][columns], little-endian, as in a weights file. */
static int32_t pack_tables(table_set *t, arena *a, const uint8_t *weights) {
    uint32_t *cumulative = TAKE(a, uint32_t, (size_t)t->rows * (t->columns + 1));
    uint8_t *lookup = TAKE(a, uint8_t, (size_t)t->rows << LOOKUP_BITS);
    t->cumulative = cumulative;
    t->lookup = lookup;
    if (t->columns < 2 || t->columns > 256) return MRC_ERROR_WEIGHTS;
    if (t->rows < 1 || t->rows > INDICES) return MRC_ERROR_WEIGHTS;
    if (t->octave > 0 && (t->octave >= t->rows || (INDICES - t->rows) / t->octave + 1 > 32)) {
        return MRC_ERROR_WEIGHTS;
    }
    if (cumulative == NULL || lookup == NULL) return MRC_OK;
    for (int32_t r = 0; r < t->rows; r++) {
        uint32_t *row = cumulative + (size_t)r * (t->columns + 1);
        uint64_t total = 0;
        for (int32_t c = 0; c < t->columns; c++) {
            int32_t weight = read_int32(weights + 4 * ((size_t)r * t->columns + c));
            if (weight < 1) return MRC_ERROR_WEIGHTS;
            row[c] = (uint32_t)total;
            total += (uint32_t)weight;
            if (total > (uint64_t)1 << PRECISION) return MRC_ERROR_WEIGHTS;
        }
        if (total != (uint64_t)1 << PRECISION) return MRC_ERROR_WEIGHTS;
        row[t->columns] = (uint32_t)total;
        for (uint32_t first = 0, c = 0; first < 1 << LOOKUP_BITS; first++) {
            while (row[c + 1] <= first << (PRECISION - LOOKUP_BITS)) c++;
            lookup[((size_t)r << LOOKUP_BITS) + first] = (uint8_t)c;
        }
    }
    return MRC_OK;
}

MRC_INLINE int32_t row_of_index(const table_set *t, int32_t index) {
    if (t->octave == 0 || index < t->rows) return index;
    int32_t first = t->rows - t->octave;
    return first + (index - first) % t->octave;
}

MRC_INLINE int32_t raw_of_index(const table_set *t, int32_t index) {
    if (t->octave == 0 || index < t->rows) return 0;
    return (index - t->rows + t->octave) / t->octave;
}

typedef struct {
    uint8_t *bytes;
    size_t capacity;
    size_t size;
    uint64_t lower, range;
    int32_t any;  /* Whether a symbol was coded. */
    int32_t full; /* The bytes did not fit. */
} range_encoder;

typedef struct {
    const uint8_t *bytes;
    size_t size;
    size_t next;
    uint64_t lower, range, point;
    int32_t any;
    int32_t damaged; /* A quantile that no encoder writes. */
    int32_t missing; /* Words that were read past the end: 1 at most, if an encoder wrote them. */
} range_decoder;

static void encoder_start(range_encoder *e, uint8_t *bytes, size_t capacity) {
    *e = (range_encoder){bytes, capacity, 0, 0, UINT64_MAX, 0, 0};
}

static void write_word(range_encoder *e, uint32_t word) {
    if (e->capacity - e->size < 4) {
        e->full = 1;
        return;
    }
    for (int32_t n = 0; n < 4; n++) e->bytes[e->size++] = (uint8_t)(word >> (8 * n));
}

/* Add one to the words that were written. */
static void carry(range_encoder *e) {
    for (size_t at = e->size; at >= 4; at -= 4) {
        for (int32_t n = 0; n < 4; n++) {
            if (++e->bytes[at - 4 + n] != 0) return;
        }
    }
}

MRC_INLINE void encode_symbol(range_encoder *e, uint32_t cumulative, uint32_t weight) {
    uint64_t scale = e->range >> PRECISION, lower = e->lower + scale * cumulative;
    if (lower < e->lower) carry(e);
    e->lower = lower;
    e->range = scale * weight;
    e->any = 1;
    if (e->range < (uint64_t)1 << 32) {
        write_word(e, (uint32_t)(e->lower >> 32));
        e->lower <<= 32;
        e->range <<= 32;
    }
}

MRC_INLINE void encode_uniform(range_encoder *e, int32_t bits, uint32_t symbol) {
    encode_symbol(e, symbol << (PRECISION - bits), (uint32_t)1 << (PRECISION - bits));
}

static void encoder_finish(range_encoder *e) {
    if (!e->any) return;
    uint64_t top = e->lower + UINT32_MAX, upper = e->lower + e->range;
    if (top < e->lower) carry(e);
    write_word(e, (uint32_t)(top >> 32));
    if ((uint32_t)(upper >> 32) == (uint32_t)(top >> 32)) write_word(e, 0);
}

static uint32_t read_word(range_decoder *d) {
    if (d->size - d->next < 4) {
        d->missing += d->missing < 2;
        return 0;
    }
    uint32_t word = (uint32_t)read_int32(d->bytes + d->next);
    d->next += 4;
    return word;
}

/* MRC_ERROR_TRUNCATED if the bytes are no whole words. */
static int32_t decoder_start(range_decoder *d, const uint8_t *bytes, size_t size) {
    *d = (range_decoder){bytes, size, 0, 0, UINT64_MAX, 0, 0, 0, 0};
    if (size % 4 != 0) return MRC_ERROR_TRUNCATED;
    uint64_t high = read_word(d);
    d->point = high << 32 | read_word(d);
    return MRC_OK;
}

/* The quantile of the next symbol, below 2^24. */
MRC_INLINE uint32_t decode_quantile(range_decoder *d, uint64_t scale) {
    uint64_t quantile = (d->point - d->lower) / scale;
    if (quantile >> PRECISION) {
        d->damaged = 1;
        return (1 << PRECISION) - 1;
    }
    return (uint32_t)quantile;
}

MRC_INLINE void decode_advance(range_decoder *d, uint64_t scale, uint32_t cumulative,
                               uint32_t weight) {
    d->lower += scale * cumulative;
    d->range = scale * weight;
    d->any = 1;
    if (d->range < (uint64_t)1 << 32) {
        d->lower <<= 32;
        d->range <<= 32;
        d->point = d->point << 32 | read_word(d);
    }
}

MRC_INLINE uint32_t decode_token(range_decoder *d, const uint32_t *row, const uint8_t *lookup) {
    uint64_t scale = d->range >> PRECISION;
    uint32_t quantile = decode_quantile(d, scale);
    uint32_t c = lookup[quantile >> (PRECISION - LOOKUP_BITS)];
    while (row[c + 1] <= quantile) c++;
    decode_advance(d, scale, row[c], row[c + 1] - row[c]);
    return c;
}

MRC_INLINE uint32_t decode_uniform(range_decoder *d, int32_t bits) {
    uint64_t scale = d->range >> PRECISION;
    uint32_t symbol = decode_quantile(d, scale) >> (PRECISION - bits);
    decode_advance(d, scale, symbol << (PRECISION - bits), (uint32_t)1 << (PRECISION - bits));
    return symbol;
}

/* MRC_ERROR_TRAILING unless everything was decoded, MRC_ERROR_DAMAGED for bytes of no encoder. */
static int32_t decoder_finish(const range_decoder *d) {
    if (d->damaged) return MRC_ERROR_DAMAGED;
    if (d->next < d->size) return MRC_ERROR_TRAILING;
    if (d->size == 0 && !d->any) return MRC_OK;
    return d->point - d->lower < ((uint64_t)1 << 33) - 1 ? MRC_OK : MRC_ERROR_TRAILING;
}

/* Where the values of a call lie, sorted by the row of their table: memory of the caller. */
typedef struct {
    uint32_t *order; /* [n] */
    uint8_t *token;  /* [n]: columns of the tables, small for the sake of the cache. */
} call_memory;

static call_memory take_call_memory(arena *a, size_t n) {
    call_memory m;
    m.order = TAKE(a, uint32_t, n);
    m.token = TAKE(a, uint8_t, n);
    return m;
}

/* Sort the sent values stably by row; returns how many there are, and fills ends [257] of rows. */
static size_t sort_by_row(const table_set *t, const uint8_t *index, size_t n, uint32_t *order,
                          size_t *ends) {
    size_t counts[INDICES] = {0}, starts[INDICES];
    for (size_t i = 0; i < n; i++) counts[index[i]]++;
    if (t->octave > 0) counts[0] = 0;
    size_t of_row[INDICES] = {0}, total = 0;
    for (int32_t i = 0; i < INDICES; i++) of_row[row_of_index(t, i) & 255] += counts[i];
    for (int32_t r = 0; r < INDICES; r++) {
        starts[r] = total;
        total += of_row[r];
        ends[r] = total;
    }
    uint8_t row_of[INDICES];
    for (int32_t i = 0; i < INDICES; i++) row_of[i] = (uint8_t)row_of_index(t, i);
    for (size_t i = 0; i < n; i++) {
        if (t->octave > 0 && index[i] == 0) continue;
        order[starts[row_of[index[i]]]++] = (uint32_t)i;
    }
    return total;
}

/* Sort the values with raw bits stably by their number, escaped ones left out; ends [64]. */
static size_t sort_by_raw(const table_set *t, const uint8_t *index, const uint8_t *token, size_t n,
                          uint32_t *order, size_t *ends) {
    size_t counts[64] = {0}, starts[64], total = 0;
    const int32_t rows = t->rows, escape = t->columns - 1;
    for (int32_t raw = 0; raw < 64; raw++) ends[raw] = 0;
    if (t->octave == 0) return 0;
    for (size_t i = 0; i < n; i++) {
        if (index[i] >= rows && token[i] != escape) counts[raw_of_index(t, index[i]) & 63]++;
    }
    for (int32_t raw = 0; raw < 64; raw++) {
        starts[raw] = total;
        total += counts[raw];
        ends[raw] = total;
    }
    if (total == 0) return 0;
    for (size_t i = 0; i < n; i++) {
        if (index[i] >= rows && token[i] != escape) {
            order[starts[raw_of_index(t, index[i]) & 63]++] = (uint32_t)i;
        }
    }
    return total;
}

static int32_t bit_length(uint64_t v) {
    int32_t bits = 0;
    while (v) {
        bits++;
        v >>= 1;
    }
    return bits;
}

static uint64_t zigzag(int64_t v) { return (uint64_t)v << 1 ^ (uint64_t)(v >> 63); }
static int64_t unzigzag(uint64_t v) { return (int64_t)(v >> 1 ^ (~(v & 1) + 1)); }

static int32_t chunk_bits(int32_t width, int32_t shift) { return min32(RAW_CHUNK, width - shift); }

/* Encode the escaped values of a call in full: lengths, then bits below the leading one. */
static void encode_escapes(range_encoder *e, const uint8_t *token, uint8_t escape,
                           const int32_t *values, size_t n) {
    int32_t longest = 0;
    for (size_t i = 0; i < n; i++) {
        if (token[i] != escape) continue;
        int32_t length = bit_length(zigzag(values[i]));
        encode_uniform(e, LENGTH_BITS, (uint32_t)length);
        longest = max32(longest, length);
    }
    for (int32_t length = 2; length <= longest; length++) {
        for (int32_t shift = 0; shift < length - 1; shift += RAW_CHUNK) {
            int32_t bits = chunk_bits(length - 1, shift);
            for (size_t i = 0; i < n; i++) {
                uint64_t v = token[i] == escape ? zigzag(values[i]) : 0;
                if (bit_length(v) != length) continue;
                encode_uniform(e, bits, (uint32_t)(v >> shift & (((uint64_t)1 << bits) - 1)));
            }
        }
    }
}

/* Whether values of an index have a token; others are 0 and not sent. */
MRC_INLINE int32_t is_sent(const table_set *t, int32_t index) {
    return t->octave == 0 || index > 0;
}

/* The raw bits of every index. */
static void list_raw(const table_set *t, uint8_t raw[INDICES]) {
    for (int32_t i = 0; i < INDICES; i++) raw[i] = (uint8_t)raw_of_index(t, i);
}

/* The columns of the tokens of values [n]; returns how many are escaped. */
static size_t find_tokens(const table_set *t, const uint8_t *restrict index,
                          const int32_t *restrict values, size_t n, uint8_t *restrict token) {
    uint8_t raw[INDICES];
    const int32_t low = t->low, escape = t->columns - 1;
    size_t escapes = 0;
    list_raw(t, raw);
    for (size_t i = 0; i < n; i++) {
        int64_t column = ((int64_t)values[i] >> raw[index[i]]) - low;
        int32_t escaped = column < 0 || column >= escape;
        if (!is_sent(t, index[i])) column = escaped = 0;
        token[i] = (uint8_t)(escaped ? escape : column);
        escapes += (size_t)escaped;
    }
    return escapes;
}

/* Encode values [n] by the tables of their indices [n]. */
static void encode_call(range_encoder *e, const table_set *t, const uint8_t *index,
                        const int32_t *values, size_t n, call_memory m) {
    size_t ends[INDICES], start = 0;
    size_t escapes = find_tokens(t, index, values, n, m.token);
    sort_by_row(t, index, n, m.order, ends);
    for (int32_t r = 0; r < t->rows; r++) {
        const uint32_t *row = t->cumulative + (size_t)r * (t->columns + 1);
        for (; start < ends[r]; start++) {
            uint32_t c = m.token[m.order[start]];
            encode_symbol(e, row[c], row[c + 1] - row[c]);
        }
    }
    size_t raw_ends[64];
    start = 0;
    if (sort_by_raw(t, index, m.token, n, m.order, raw_ends) > 0) {
        for (int32_t raw = 1; raw < 64; start = raw_ends[raw++]) {
            for (int32_t shift = 0; shift < raw; shift += RAW_CHUNK) {
                int32_t bits = chunk_bits(raw, shift);
                for (size_t k = start; k < raw_ends[raw]; k++) {
                    uint64_t v = (uint64_t)(int64_t)values[m.order[k]];
                    encode_uniform(e, bits, (uint32_t)(v >> shift & (((uint64_t)1 << bits) - 1)));
                }
            }
        }
    }
    if (escapes > 0) encode_escapes(e, m.token, (uint8_t)(t->columns - 1), values, n);
}

/* Encode values [n] that all have the same index, one without raw bits. */
static void encode_alike(range_encoder *e, const table_set *t, int32_t index, const int32_t *values,
                         size_t n) {
    const uint32_t *row = t->cumulative + (size_t)row_of_index(t, index) * (t->columns + 1);
    for (size_t i = 0; i < n; i++) {
        uint32_t c = (uint32_t)(values[i] - t->low);
        encode_symbol(e, row[c], row[c + 1] - row[c]);
    }
}

/* Decode the escaped values of a call; those beyond int32 are clamped to it. */
static void decode_escapes(range_decoder *d, const uint8_t *token, uint8_t escape, int32_t *values,
                           size_t n, uint32_t *order) {
    size_t counts[MAX_LENGTH + 1] = {0}, starts[MAX_LENGTH + 1], count = 0, total = 0;
    for (size_t i = 0; i < n; i++) {
        if (token[i] != escape) continue;
        uint32_t length = decode_uniform(d, LENGTH_BITS);
        if (length > MAX_LENGTH) {
            d->damaged = 1;
            return;
        }
        values[i] = (int32_t)length;
        counts[length]++;
        count++;
    }
    for (int32_t length = 0; length <= MAX_LENGTH; length++) {
        starts[length] = total;
        total += counts[length];
    }
    for (size_t i = 0; i < n; i++) {
        if (token[i] == escape) order[starts[values[i]]++] = (uint32_t)i;
    }
    for (size_t k = 0; k < count;) {
        int32_t length = values[order[k]];
        size_t end = k + counts[length];
        /* Values above 32 bits lie beyond what values are clamped to: their bits are read only. */
        for (size_t j = k; j < end; j++) values[order[j]] = 0;
        for (int32_t shift = 0; shift < length - 1; shift += RAW_CHUNK) {
            int32_t bits = chunk_bits(length - 1, shift);
            for (size_t j = k; j < end; j++) {
                uint32_t chunk = decode_uniform(d, bits);
                if (shift < 32) {
                    uint32_t low = (uint32_t)values[order[j]] | chunk << shift;
                    memcpy(&values[order[j]], &low, 4);
                }
            }
        }
        for (size_t j = k; j < end; j++) {
            uint64_t v = (uint32_t)values[order[j]];
            if (length > 32) v |= (uint64_t)1 << 40; /* Beyond int32, its sign in the last bit. */
            else if (length > 0) v |= (uint64_t)1 << (length - 1);
            values[order[j]] = (int32_t)clamp64(unzigzag(v), INT32_MIN, INT32_MAX);
        }
        k = end;
    }
}

/* Decode values [n] by the tables of their indices [n]; those beyond int32 are clamped to it. */
static void decode_call(range_decoder *d, const table_set *t, const uint8_t *index, int32_t *values,
                        size_t n, call_memory m) {
    size_t ends[INDICES], start = 0, escapes = 0;
    const uint8_t escape = (uint8_t)(t->columns - 1);
    uint8_t raw_bits[INDICES];
    list_raw(t, raw_bits);
    if (sort_by_row(t, index, n, m.order, ends) < n) memset(m.token, 0, n);
    for (int32_t r = 0; r < t->rows; r++) {
        const uint32_t *row = t->cumulative + (size_t)r * (t->columns + 1);
        const uint8_t *lookup = t->lookup + ((size_t)r << LOOKUP_BITS);
        for (; start < ends[r]; start++) {
            uint8_t c = (uint8_t)decode_token(d, row, lookup);
            m.token[m.order[start]] = c;
            escapes += c == escape;
        }
        if (d->damaged) return;
    }
    for (size_t i = 0; i < n; i++) {
        int64_t token = is_sent(t, index[i]) ? (int64_t)m.token[i] + t->low : 0;
        values[i] = (int32_t)clamp64(token * ((int64_t)1 << raw_bits[index[i]]), INT32_MIN,
                                     INT32_MAX);
    }
    size_t raw_ends[64];
    start = 0;
    if (sort_by_raw(t, index, m.token, n, m.order, raw_ends) > 0) {
        for (int32_t raw = 1; raw < 64; start = raw_ends[raw++]) {
            for (int32_t shift = 0; shift < raw; shift += RAW_CHUNK) {
                int32_t bits = chunk_bits(raw, shift);
                for (size_t k = start; k < raw_ends[raw]; k++) {
                    uint32_t chunk = decode_uniform(d, bits);
                    if (shift < 32) values[m.order[k]] |= (int32_t)(chunk << shift);
                }
            }
        }
    }
    if (escapes > 0) decode_escapes(d, m.token, escape, values, n, m.order);
}

/* Decode values [n] that all have the same index, one without raw bits. */
static void decode_alike(range_decoder *d, const table_set *t, int32_t index, int32_t *values,
                         size_t n, call_memory m) {
    const int32_t r = row_of_index(t, index);
    const uint32_t *row = t->cumulative + (size_t)r * (t->columns + 1);
    const uint8_t *lookup = t->lookup + ((size_t)r << LOOKUP_BITS);
    const uint8_t escape = (uint8_t)(t->columns - 1);
    size_t escapes = 0;
    for (size_t i = 0; i < n; i++) {
        uint8_t c = (uint8_t)decode_token(d, row, lookup);
        m.token[i] = c;
        values[i] = c + t->low;
        escapes += c == escape;
    }
    if (escapes > 0 && !d->damaged) decode_escapes(d, m.token, escape, values, n, m.order);
}

#endif
