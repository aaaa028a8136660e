/* Range coders and rANS beside one another, on data like that of the two coders of this codec.

   cc -std=c11 -O2 -mavx2 -Wall -Wextra -o entropy_coders benchmarks/native/entropy_coders.c -lm
   nice -n -5 taskset -c 1 ./entropy_coders          (without -mavx2 elsewhere than on x86)

   Prints Markdown: CPU nanoseconds per value to encode and decode, medians of RUNS runs that
   alternate between coders, and the bytes above the ideal code length of the probabilities that a
   coder was given. SORTED is the learned coder: static tables, symbols sorted by row. The others
   are a lossless coder, in which a value's row depends on the value before it: STATIC tables,
   ADAPTIVE cumulative frequencies of two speeds, BINARY adaptive decisions. The row "model alone"
   has all the work but the coder's: its decoder reads recorded quantiles. Every run decodes what
   it encoded and compares. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define INLINE static inline __attribute__((always_inline))

enum {
    SYMBOLS = 1 << 20,    /* Values that a run codes. */
    RUNS = 9,             /* Runs of which the median is taken. */
    ROWS = 64,            /* Rows of the learned coder's tables. */
    LEARNED_COLUMNS = 66, /* Their columns. */
    CONTEXTS = 40,        /* Rows of the lossless coder's tables. */
    COLUMNS = 64,         /* Their columns: the values -32 to 31. */
    ADAPTIVE_BITS = 15,   /* Adaptive cumulative frequencies fit a signed 16-bit lane. */
    MAX_DECISIONS = 16    /* More than the binary decisions of any value. */
};
enum { MODEL_ALONE, RC64, RC32, RANS32, RANS32X2, RANS32X4, RANS64, RANS64X2, CODERS };
enum { SORTED, STATIC, ADAPTIVE, BINARY };

static const char *const coder_names[CODERS] = {
    "model alone", "range coder, 64-bit state, 32-bit words", "range coder, 32-bit state, bytes",
    "rANS, 32-bit state, 16-bit words", "the same, 2 interleaved", "the same, 4 interleaved",
    "rANS, 64-bit state, 32-bit words", "the same, 2 interleaved"};

static uint8_t symbols[2][SYMBOLS], base[SYMBOLS], decoded[SYMBOLS];
static uint32_t cumulative[2][ROWS][80];
static uint8_t hint[2][ROWS][256];
static int16_t fast[CONTEXTS][COLUMNS], slow[CONTEXTS][COLUMNS], target[COLUMNS][COLUMNS];
static uint16_t nodes[CONTEXTS][256];
static void *pairs;      /* Of rANS: (first, weight) of the symbols, in 32 bits if there is room. */
static size_t pair_count;
static uint8_t *buffer;  /* The bytes of a run. */

typedef struct {  /* A coder; its `kind` and `bits` are constants where functions are inlined. */
    uint64_t low, range, point, scale, x[4];
    uint8_t *out, *in;
    uint32_t *pair32;
    uint64_t *pair64;
} Coder;

INLINE int is_rans(int kind) { return kind >= RANS32; }
INLINE int is_wide(int kind) { return kind >= RANS64; }  /* rANS in 64 bits */
INLINE int lanes(int k) { return k == RANS32X4 ? 4 : k == RANS32X2 || k == RANS64X2 ? 2 : 1; }

INLINE Coder start(int kind) {
    uint64_t range = kind == RC32 ? UINT32_MAX : UINT64_MAX;
    return (Coder){.range = range, .out = buffer, .pair32 = pairs, .pair64 = pairs};
}

/* Encodes a symbol, or for rANS stores it. A carry goes back into what was written. */
INLINE void put(Coder *c, int kind, int bits, uint32_t first, uint32_t weight) {
    if (kind == MODEL_ALONE) *c->pair32++ = first;
    if (is_rans(kind) && bits <= 16) *c->pair32++ = first << 16 | weight;
    if (is_rans(kind) && bits > 16) *c->pair64++ = (uint64_t)first << 32 | weight;
    if (kind == RC64) {
        uint64_t scale = c->range >> bits, add = scale * first;
        c->low += add, c->range = scale * weight;
        if (c->low < add)
            for (uint32_t *word = (uint32_t *)c->out; ++*--word == 0;) {}
        if (c->range >> 32 == 0) {
            uint32_t word = (uint32_t)(c->low >> 32);
            memcpy(c->out, &word, 4), c->out += 4;
            c->low <<= 32, c->range <<= 32;
        }
    } else if (kind == RC32) {
        uint32_t scale = (uint32_t)c->range >> bits, add = scale * first;
        uint32_t low = (uint32_t)c->low + add, range = scale * weight;
        if (low < add)
            for (uint8_t *byte = c->out; ++*--byte == 0;) {}
        for (; range < 1u << 24; range <<= 8, low <<= 8) *c->out++ = (uint8_t)(low >> 24);
        c->low = low, c->range = range;
    }
}

INLINE uint64_t pair(size_t i, int bits) {
    uint32_t narrow = ((uint32_t *)pairs)[i];
    return bits > 16 ? ((uint64_t *)pairs)[i] : (uint64_t)(narrow >> 16) << 32 | (narrow & 65535);
}

/* rANS codes backwards from the buffered pairs; the lanes take turns by moves between registers. */
INLINE size_t rans_finish(Coder *c, int kind, int bits) {
    int count = lanes(kind), shift = is_wide(kind) ? 32 : 16, lower = is_wide(kind) ? 31 : 16;
    uint8_t *end = c->out = buffer + 8 * SYMBOLS;
    size_t n = bits <= 16 ? c->pair32 - (uint32_t *)pairs : c->pair64 - (uint64_t *)pairs;
    pair_count = n;
    for (int lane = 0; lane < count; lane++) c->x[lane] = 1ull << lower;
    while (n--) {
        uint64_t x = c->x[count - 1];
        uint32_t first = (uint32_t)(pair(n, bits) >> 32), weight = (uint32_t)pair(n, bits);
        for (int lane = count - 1; lane > 0; lane--) c->x[lane] = c->x[lane - 1];
        if (x >= (uint64_t)weight << (lower - bits + shift))
            c->out -= shift / 8, memcpy(c->out, &x, shift / 8), x >>= shift;
        if (is_wide(kind)) c->x[0] = ((x / weight) << bits) + x % weight + first;
        else c->x[0] = (((uint32_t)x / weight) << bits) + (uint32_t)x % weight + first;
    }
    for (int lane = count; lane--;) c->out -= shift / 4, memcpy(c->out, &c->x[lane], shift / 4);
    memmove(buffer, c->out, (size_t)(end - c->out));
    return (size_t)(end - c->out);
}

INLINE size_t finish(Coder *c, int kind, int bits) {
    if (kind == MODEL_ALONE) return 0;
    if (is_rans(kind)) return rans_finish(c, kind, bits);
    if (kind == RC64) {
        uint64_t top = c->low + UINT32_MAX;
        if (top < UINT32_MAX)
            for (uint32_t *word = (uint32_t *)c->out; ++*--word == 0;) {}
        uint32_t words[2] = {(uint32_t)(top >> 32), 0};
        memcpy(c->out, words, 8);
        c->out += (uint32_t)((c->low + c->range) >> 32) == words[0] ? 8 : 4;
    } else {
        for (int i = 0; i < 4; i++, c->low <<= 8) *c->out++ = (uint8_t)(c->low >> 24);
    }
    memset(c->out, 0, 8);  /* The words past the last. */
    return (size_t)(c->out - buffer);
}

INLINE uint64_t take(Coder *c, int bytes) {
    uint32_t word = 0;
    return memcpy(&word, c->in, (size_t)bytes), c->in += bytes, word;
}

INLINE Coder open_coder(int kind) {
    Coder c = start(kind);
    c.in = buffer;
    if (kind == RC64) c.point = take(&c, 4) << 32, c.point |= take(&c, 4);
    if (kind == RC32) c.point = __builtin_bswap32((uint32_t)take(&c, 4));
    for (int lane = 0; is_rans(kind) && lane < lanes(kind); lane++, c.in += is_wide(kind) ? 8 : 4)
        memcpy(&c.x[lane], c.in, is_wide(kind) ? 8 : 4);
    return c;
}

/* The quantile of the next symbol; for range coders `point` is relative to `lower`. */
INLINE uint32_t peek(Coder *c, int kind, int bits) {
    if (kind == MODEL_ALONE) return *c->pair32;
    if (is_rans(kind)) return (uint32_t)c->x[0] & ((1u << bits) - 1);
    c->scale = c->range >> bits;
    return kind == RC64 ? (uint32_t)(c->point / c->scale) : (uint32_t)c->point / (uint32_t)c->scale;
}

INLINE void skip(Coder *c, int kind, int bits, uint32_t first, uint32_t weight) {
    if (kind == MODEL_ALONE) {
        c->pair32++;
    } else if (kind == RC64) {
        c->point -= c->scale * first, c->range = c->scale * weight;
        if (c->range >> 32 == 0) c->range <<= 32, c->point = c->point << 32 | take(c, 4);
    } else if (kind == RC32) {
        uint32_t scale = (uint32_t)c->scale, range = scale * weight;
        uint32_t point = (uint32_t)c->point - scale * first;
        for (; range < 1u << 24; range <<= 8) point = point << 8 | *c->in++;
        c->point = point, c->range = range;
    } else {
        uint64_t x = weight * (c->x[0] >> bits) + (c->x[0] & ((1u << bits) - 1)) - first;
        if (is_wide(kind) && x < 1ull << 31) x = x << 32 | take(c, 4);
        if (!is_wide(kind) && x < 1u << 16) x = x << 16 | take(c, 2);
        for (int lane = 0; lane + 1 < lanes(kind); lane++) c->x[lane] = c->x[lane + 1];
        c->x[lanes(kind) - 1] = x;
    }
}

/* A binary decision: `zero` is the probability of 0. Range coders need no division for it. */
INLINE int take_bit(Coder *c, int kind, int bits, uint32_t zero) {
    c->scale = c->range >> bits;
    int bit = is_rans(kind) ? peek(c, kind, bits) >= zero : c->point >= c->scale * zero;
    if (kind == MODEL_ALONE) bit = *c->pair32 != 0;
    skip(c, kind, bits, bit ? zero : 0, bit ? (1u << bits) - zero : zero);
    return bit;
}

INLINE int row_of(int use, size_t i, int before) {
    int size = abs(before - COLUMNS / 2);
    return use == SORTED ? (int)(i >> 14) : base[i] + (size < 7 ? size : 7);
}

/* Codes the bit of a node (encoding if `encode`), adapts its probability and returns the bit. */
INLINE int node(Coder *c, int kind, int bits, int encode, uint16_t *p, int bit) {
    uint32_t zero = *p >> (16 - bits);
    zero += zero == 0;
    if (encode) put(c, kind, bits, bit ? zero : 0, bit ? (1u << bits) - zero : zero);
    else bit = take_bit(c, kind, bits, zero);
    *p += bit ? -(*p >> 5) : (65536 - *p) >> 5;
    return bit;
}

/* The bit length of |v| in unary, the sign, and the bits below the leading one from the highest. */
INLINE int code_binary(Coder *c, int kind, int bits, int encode, int row, int symbol) {
    uint16_t *p = nodes[row];
    int size = abs(symbol - 32), length = 0, prefix = 1;
    while (length < 6 && node(c, kind, bits, encode, p + length, size >> length != 0)) length++;
    if (length == 0) return 32;
    int sign = node(c, kind, bits, encode, p + 7, symbol < 32);
    for (int i = length - 2; i >= 0; i--)
        prefix += prefix + node(c, kind, bits, encode, p + 8 + 32 * length + prefix, size >> i & 1);
    return sign ? 32 - prefix : 32 + prefix;
}

INLINE int code_adaptive(Coder *c, int kind, int bits, int encode, int row, int symbol) {
    uint16_t mixed[COLUMNS + 1];
    for (int i = 0; i < COLUMNS; i++)
        mixed[i] = (uint16_t)((uint16_t)(fast[row][i] + slow[row][i]) >> 1);
    mixed[COLUMNS] = 1 << ADAPTIVE_BITS;
    if (!encode) {
        int16_t quantile = (int16_t)peek(c, kind, bits), below = 0;
        for (int i = 0; i < COLUMNS; i++) below += (int16_t)mixed[i] <= quantile;
        symbol = below - 1;
    }
    (encode ? put : skip)(c, kind, bits, mixed[symbol], mixed[symbol + 1] - mixed[symbol]);
    for (int i = 0; i < COLUMNS; i++) {
        fast[row][i] += (int16_t)(target[symbol][i] - fast[row][i]) >> 4;
        slow[row][i] += (int16_t)(target[symbol][i] - slow[row][i]) >> 7;
    }
    return symbol;
}

INLINE int code_static(Coder *c, int kind, int bits, int encode, int set, int row, int symbol) {
    const uint32_t *table = cumulative[set][row];
    if (!encode) {
        uint32_t quantile = peek(c, kind, bits);
        symbol = hint[set][row][quantile >> (bits - 8)];
        while (table[symbol + 1] <= quantile) symbol++;
    }
    (encode ? put : skip)(c, kind, bits, table[symbol], table[symbol + 1] - table[symbol]);
    return symbol;
}

INLINE size_t code(int use, int kind, int bits, int encode) {
    const uint8_t *values = symbols[use != SORTED];
    Coder c = encode ? start(kind) : open_coder(kind);
    int symbol = COLUMNS / 2;
    for (size_t i = 0; i < SYMBOLS; i++) {
        int row = row_of(use, i, symbol);
        if (encode) symbol = values[i];
        if (use == ADAPTIVE) symbol = code_adaptive(&c, kind, bits, encode, row, symbol);
        else if (use == BINARY) symbol = code_binary(&c, kind, bits, encode, row, symbol);
        else symbol = code_static(&c, kind, bits, encode, use != SORTED, row, symbol);
        if (!encode) decoded[i] = (uint8_t)symbol;
    }
    return encode ? finish(&c, kind, bits) : 0;
}

#define EACH_CODER(X, use, bits)                                                                 \
    X(use, MODEL_ALONE, bits) X(use, RC64, bits) X(use, RC32, bits) X(use, RANS32, bits)         \
    X(use, RANS32X2, bits) X(use, RANS32X4, bits) X(use, RANS64, bits) X(use, RANS64X2, bits)
#define EACH(X)                                                                                  \
    X(SORTED, MODEL_ALONE, 24) X(SORTED, RC64, 24) X(SORTED, RANS64, 24) X(SORTED, RANS64X2, 24) \
    EACH_CODER(X, STATIC, 12) EACH_CODER(X, STATIC, 16) EACH_CODER(X, ADAPTIVE, 15)              \
    EACH_CODER(X, BINARY, 12) EACH_CODER(X, BINARY, 16)
#define DEFINE(use, kind, bits)                                                                  \
    static size_t code_##use##_##kind##_##bits(int encode) {                                     \
        return encode ? code(use, kind, bits, 1) : code(use, kind, bits, 0);                     \
    }
#define ROW(use, kind, bits)                                                                     \
    {#use, use, kind, bits, code_##use##_##kind##_##bits, {{0}, {0}}, 0, 0, 0},
EACH(DEFINE)

static struct {
    const char *name;
    int use, kind, bits;
    size_t (*code)(int encode);
    double ns[2][RUNS], bytes, ideal, codings;
} rows[] = {EACH(ROW)}, *const rows_end = rows + sizeof rows / sizeof *rows;

static uint64_t random_bits(void) {  /* xorshift64* */
    static uint64_t x = 20240229;
    x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
    return x * 2685821657736338717ull >> 32;
}

/* Two-sided exponential rows of rising scale, quantised to `bits` with no weight of 0. */
static void make_tables(int set, int columns, int count, int bits) {
    for (int row = 0; row < count; row++) {
        double scale = set ? 0.6 * pow(1.08, row) : 0.1 * pow(1.085, row);
        double sum = 0, part = 0, weight[80], free = (1 << bits) - columns;
        for (int i = 0; i < columns; i++) sum += weight[i] = exp(-abs(i - columns / 2) / scale);
        for (int i = 0; i <= columns; i++) {
            cumulative[set][row][i] = (uint32_t)i + (uint32_t)(part / sum * free + 0.5);
            part += i < columns ? weight[i] : 0;
        }
        for (int i = 0, symbol = 0; i < 256; hint[set][row][i++] = (uint8_t)symbol)
            while (cumulative[set][row][symbol + 1] <= (uint32_t)i << (bits - 8)) symbol++;
    }
}

/* Draws symbols by the 24-bit tables; returns their information in bits. */
static double draw(int set) {
    double information = 0;
    for (int i = 0, before = COLUMNS / 2, level = 16 << 8; i < SYMBOLS; i++) {
        level += (int)(random_bits() & 255) - 128 + (set ? 2 * ((16 << 8) > level) - 1 : 0);
        level = level < 0 ? 0 : level > (32 << 8) ? 32 << 8 : level;
        base[i] = (uint8_t)(level >> 8);
        uint32_t *table = cumulative[set][row_of(set ? STATIC : SORTED, (size_t)i, before)];
        uint32_t quantile = (uint32_t)random_bits() >> 8;
        for (before = 0; table[before + 1] <= quantile; before++) {}
        symbols[set][i] = (uint8_t)before;
        information += 24 - log2(table[before + 1] - table[before]);
    }
    return information;
}

static void reset_model(int use, int bits) {
    if (use == STATIC) make_tables(1, COLUMNS, CONTEXTS, bits);
    make_tables(0, LEARNED_COLUMNS, ROWS, 24);
    for (int row = 0; row < CONTEXTS; row++) {
        for (int i = 0; i < COLUMNS; i++) fast[row][i] = slow[row][i] = (int16_t)(i << 9);
        for (int i = 0; i < 256; i++) nodes[row][i] = 1 << 15;
    }
    for (int i = 0, j = 0; i < COLUMNS; i += ++j == COLUMNS, j %= COLUMNS)
        target[i][j] = (int16_t)(j + (j > i) * (32768 - COLUMNS));
}

/* Nanoseconds to mix six predictions of a bit in the logistic domain, adapting them and weights. */
static double mixing_ns(void) {
    static int16_t stretch[4096], squash[4096];
    static uint16_t p[6][4096];
    int weights[6] = {1 << 14, 1 << 14, 1 << 14, 1 << 14, 1 << 14, 1 << 14};
    for (int i = 0; i < 4096; i++) {
        squash[i] = (int16_t)(4095 / (1 + exp((2048 - i) / 256.0)) + 0.5);
        stretch[i] = (int16_t)(256 * log((i + 0.5) / (4095.5 - i)));
        for (int j = 0; j < 6; j++) p[j][i] = 1 << 15;
    }
    clock_t began = clock();
    for (size_t i = 0; i < SYMBOLS; i++) {
        int bit = symbols[1][i] & 1, input[6], sum = 0;
        uint16_t *at[6];
        for (int j = 0; j < 6; j++) {
            at[j] = &p[j][((symbols[1][i] >> 1) * (2 * j + 1) * 16 + base[i]) & 4095];
            input[j] = stretch[*at[j] >> 4];
            sum += weights[j] * input[j] >> 16;
        }
        sum = sum < -2047 ? -2047 : sum > 2047 ? 2047 : sum;
        int error = (bit << 12) - squash[sum + 2048];
        for (int j = 0; j < 6; j++) {
            weights[j] += (input[j] * error + 8192) >> 14;
            *at[j] += bit ? (65535 - *at[j]) >> 5 : -(*at[j] >> 5);
        }
    }
    return (double)(clock() - began) / CLOCKS_PER_SEC * 1e9 / SYMBOLS;
}

static void measure(int row, int run) {
    for (int encode = 1; encode >= 0; encode--) {
        reset_model(rows[row].use, rows[row].bits);
        clock_t began = clock();
        size_t size = rows[row].code(encode);
        rows[row].ns[encode][run] = (double)(clock() - began) / CLOCKS_PER_SEC * 1e9 / SYMBOLS;
        if (encode) rows[row].bytes = (double)size;
        for (size_t i = 0; is_rans(rows[row].kind) && encode && run == 0 && i < pair_count; i++)
            rows[row].ideal += (rows[row].bits - log2((uint32_t)pair(i, rows[row].bits))) / 8;
        rows[row].codings = (double)pair_count / SYMBOLS;
    }
    if (memcmp(decoded, symbols[rows[row].use != SORTED], SYMBOLS) != 0)
        printf("%s: decoded values differ\n", coder_names[rows[row].kind]), exit(1);
}

static int ascending(const void *a, const void *b) {
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

int main(void) {
    double information[2], mixing[RUNS];
    pairs = malloc(4 * (size_t)SYMBOLS * MAX_DECISIONS), buffer = malloc(8 * SYMBOLS + 64);
    if (!pairs || !buffer) return 2;
    reset_model(SORTED, 24), make_tables(1, COLUMNS, CONTEXTS, 24);
    for (int set = 0; set < 2; set++) information[set] = draw(set) / SYMBOLS;
    for (int run = 0; run < RUNS; run++) {
        mixing[run] = mixing_ns();
        for (int row = 0; rows + row < rows_end; row++) measure(row, run);
    }
    for (int row = 0, model = 0; rows + row < rows_end; row++) {
        if (rows[row].kind == MODEL_ALONE) {
            for (model = row; !is_rans(rows[model].kind);) model++;  /* The first with an ideal. */
            printf("\n%s, probabilities of %d bits: %.2f codings, information %.3f, ideal code "
                   "%.3f bits\n\n| coder | encode | decode | above ideal |\n|---|---|---|---|\n",
                   rows[row].name, rows[row].bits, rows[model].codings,
                   information[rows[row].use != SORTED], 8 * rows[model].ideal / SYMBOLS);
        }
        for (int k = 0; k < 2; k++) qsort(rows[row].ns[k], RUNS, sizeof(double), ascending);
        printf("| %s | %.1f ns | %.1f ns |", coder_names[rows[row].kind], rows[row].ns[1][RUNS / 2],
               rows[row].ns[0][RUNS / 2]);
        double above = 100 * (rows[row].bytes / rows[model].ideal - 1);
        printf(rows[row].kind == MODEL_ALONE ? " |\n" : " %.3f %% |\n", above);
    }
    qsort(mixing, RUNS, sizeof(double), ascending);
    printf("\nLogistic mixing of six predictions: %.1f ns per decision\n", mixing[RUNS / 2]);
}
