/*
 * One symbol a voxel: a logistic distribution around the prediction, bent by a map of 16 bins that
 * adapts in each context. All that decides about a symbol is monotone in integers.
 */
#ifndef MRC_PREDICTIVE_DISTRIBUTION_H
#define MRC_PREDICTIVE_DISTRIBUTION_H

#include "lanes.h"
#include "range_coder.h"

enum {
    SHAPE_RANGE = 16,        /* The logistic function is tabulated from -16 to 16, */
    SHAPE_STEPS = 32,        /* with so many steps for 1, */
    SHAPE_FRACTION = 8,      /* and interpolated in 2^-8 of a step. */
    SHAPE_ENTRIES = 2 * SHAPE_RANGE * SHAPE_STEPS,
    SHAPE_BITS = 20,         /* It goes from 0 to 2^20. */
    INVERSE_BITS = 12,       /* Bits of it by which it is inverted. */
    BINS = 16,               /* Bins of a map. */
    BIN_BITS = SHAPE_BITS - 4,
    MAP_BITS = 26,           /* A map goes from 0 to 2^26. */
    MAP_TOTAL = 1 << MAP_BITS,
    MAP_LEVELS = 8,          /* Contexts of a map: steps of prediction / scale, */
    MAP_SCALES = 24,         /* and octaves of the scale. */
    SLOWEST_LEARNING = 11,   /* Maps learn with a rate of 2^-11 at last. */
    MAX_MAP_COUNT = 2000,
    WINDOW = 4096,           /* Tokens are within this distance of the prediction. */
    ESCAPE_WEIGHT = 256,     /* Weight of the symbol for all others, of 2^24. */
    TOKEN_SCALE = 7          /* Tokens have raw bits from a scale of 2^7 of them on. */
};

/* Exp(1/SHAPE_STEPS), as a double. */
#define SHAPE_RATIO 1.0317434074991028
/* The scale of a logistic distribution whose mean |error| is 1. */
#define LOGISTIC_SLOPE 1.386f

typedef struct {
    int32_t edges[BINS + 1]; /* Cumulative weights, 0 ... MAP_TOTAL. */
    int32_t count;           /* Symbols that it has learned from. */
} bin_map;

typedef struct {
    int32_t *shape;   /* [SHAPE_ENTRIES + 1]: the logistic function */
    float *inverse;   /* [2^INVERSE_BITS]: where it has a value, in table steps */
    bin_map *maps;    /* [MAP_LEVELS][MAP_SCALES] */
    ints8 even[2];    /* What a map learns for an even distribution. */
} distribution;

/* Both directions of the entropy coder; only one is in use. */
typedef struct {
    range_encoder encoder;
    range_decoder decoder;
} coder;

static void fill_shape(int32_t *shape) {
    double power = 1;
    for (int32_t n = 0; n <= SHAPE_ENTRIES / 2; n++) {
        double value = power / (1 + power) * (1 << SHAPE_BITS);
        shape[SHAPE_ENTRIES / 2 + n] = min32((int32_t)value, (1 << SHAPE_BITS) - 1);
        shape[SHAPE_ENTRIES / 2 - n] = (1 << SHAPE_BITS) - (int32_t)value;
        power *= SHAPE_RATIO;
    }
}

/* The middle of each step of the inverse, by the pieces of the shape. */
static void fill_inverse(const int32_t *shape, float *inverse) {
    int32_t entry = 0;
    for (int32_t n = 0; n < 1 << INVERSE_BITS; n++) {
        int32_t value = (2 * n + 1) << (SHAPE_BITS - INVERSE_BITS - 1);
        while (entry < SHAPE_ENTRIES - 1 && shape[entry + 1] <= value) entry++;
        int32_t rise = max32(shape[entry + 1] - shape[entry], 1);
        float within = (float)(value - shape[entry]) / (float)rise;
        inverse[n] = (float)(entry - SHAPE_ENTRIES / 2) + clampf(within, 0, 1);
    }
}

static void take_distribution(distribution *d, arena *a) {
    d->shape = TAKE(a, int32_t, SHAPE_ENTRIES + 1);
    d->inverse = TAKE(a, float, 1 << INVERSE_BITS);
    d->maps = TAKE(a, bin_map, MAP_LEVELS * MAP_SCALES);
    if (a->failed || d->maps == NULL) return;
    fill_shape(d->shape);
    fill_inverse(d->shape, d->inverse);
    for (int32_t n = 0; n < MAP_LEVELS * MAP_SCALES; n++) {
        for (int32_t b = 0; b <= BINS; b++) d->maps[n].edges[b] = b * (MAP_TOTAL / BINS);
        d->maps[n].count = 0;
    }
    for (int32_t b = 0; b < BINS; b++) {
        d->even[b / LANES][b % LANES] = (b + 1) * (MAP_TOTAL / BINS / 1000);
    }
}

/*
 * The symbols of a voxel. A token stands for 2^shift numbers of steps from the nearest sample to
 * the prediction; its interval begins at (token * width + offset) * slope on the logistic curve.
 */
typedef struct {
    int32_t nearest;  /* The sample that is nearest to the prediction. */
    int32_t shift;
    int32_t first, last; /* The tokens that can occur. */
    float width, offset, slope;
    float scale;      /* 1 / slope */
    uint32_t room;    /* Weight that is shared by the distribution: each token has one more. */
} symbols;

MRC_INLINE symbols symbols_of(float prediction, float scale, int32_t top) {
    symbols s;
    s.nearest = (int32_t)(prediction + 0.5f);
    s.shift = max32((bits_of(scale) >> 23) - 127 - TOKEN_SCALE, 0);
    const int32_t half = (1 << s.shift) >> 1;
    s.first = max32((half - s.nearest) >> s.shift, -WINDOW);
    s.last = min32((top - s.nearest + half) >> s.shift, WINDOW - 1);
    s.width = (float)(1 << s.shift);
    s.offset = ((float)s.nearest - prediction) - 0.5f - (float)half;
    s.scale = scale * (1.0f / (LOGISTIC_SLOPE * SHAPE_STEPS));
    s.slope = LOGISTIC_SLOPE * SHAPE_STEPS / scale;
    s.room = (1u << PRECISION) - ESCAPE_WEIGHT - (uint32_t)(s.last - s.first + 1);
    return s;
}

/* The share of the distribution below a token, 0 ... MAP_TOTAL. */
MRC_INLINE int32_t share_below(const distribution *d, const bin_map *map, const symbols *s,
                               int32_t token) {
    const float limit = (float)(SHAPE_ENTRIES / 2 * (1 << SHAPE_FRACTION) - 1);
    float at = ((float)token * s->width + s->offset) * s->slope;
    at = clampf(at * (1 << SHAPE_FRACTION), -limit, limit);
    int32_t position = (int32_t)at + (SHAPE_ENTRIES / 2 << SHAPE_FRACTION);
    int32_t entry = position >> SHAPE_FRACTION, part = position & ((1 << SHAPE_FRACTION) - 1);
    int32_t low = d->shape[entry], rise = d->shape[entry + 1] - low;
    int32_t value = low + ((rise * part) >> SHAPE_FRACTION);
    int32_t bin = value >> BIN_BITS;
    int64_t step = map->edges[bin + 1] - map->edges[bin];
    int32_t within = value & ((1 << BIN_BITS) - 1);
    int32_t share = map->edges[bin] + (int32_t)((step * within) >> BIN_BITS);
    share = token <= s->first ? 0 : share;
    return token > s->last ? MAP_TOTAL : share;
}

MRC_INLINE uint32_t weight_below(const symbols *s, int32_t share, int32_t token) {
    return (uint32_t)(((uint64_t)(uint32_t)share * s->room) >> MAP_BITS) +
           (uint32_t)(token - s->first);
}

/* A token, and the shares of the distribution below it and up to it. */
typedef struct {
    int32_t token, low, high;
} interval;

/* Where a quantile should lie: most often it does, and else nearby. */
MRC_INLINE int32_t guess_token(const distribution *d, const bin_map *map, const symbols *s,
                               uint32_t quantile) {
    float share = (float)quantile * ((float)MAP_TOTAL / ((float)(1u << PRECISION)));
    int32_t at = (int32_t)share;
    int32_t bin = count_up_to8(load_ints8(map->edges + 1), at) +
                  count_up_to8(load_ints8(map->edges + 1 + LANES), at);
    bin = min32(bin, BINS - 1);
    float low = (float)map->edges[bin], rise = (float)(map->edges[bin + 1] - map->edges[bin]);
    float within = (share - low) / rise;
    int32_t entry = (int32_t)(((float)bin + within) * (1 << (INVERSE_BITS - 4)));
    float place = d->inverse[clamp32(entry, 0, (1 << INVERSE_BITS) - 1)];
    float token = (place * s->scale - s->offset) / s->width;
    token = clampf(token, (float)s->first, (float)s->last);
    int32_t down = (int32_t)token;
    return down - ((float)down > token);
}

/* The token of a quantile between `first` and `last`, which has it. */
static interval search_token(const distribution *d, const bin_map *map, const symbols *s,
                             uint32_t quantile) {
    int32_t first = s->first, last = s->last;
    while (first < last) {
        int32_t middle = first + (last - first + 1) / 2;
        if (weight_below(s, share_below(d, map, s, middle), middle) <= quantile) first = middle;
        else last = middle - 1;
    }
    return (interval){first, share_below(d, map, s, first), share_below(d, map, s, first + 1)};
}

MRC_INLINE interval find_token(const distribution *d, const bin_map *map, const symbols *s,
                               uint32_t quantile) {
    interval v = {guess_token(d, map, s, quantile), 0, 0};
    v.low = share_below(d, map, s, v.token);
    v.high = share_below(d, map, s, v.token + 1);
    if (weight_below(s, v.low, v.token) > quantile) {
        v.high = v.low;
        v.low = share_below(d, map, s, --v.token);
        if (weight_below(s, v.low, v.token) > quantile) return search_token(d, map, s, quantile);
    } else if (weight_below(s, v.high, v.token + 1) <= quantile) {
        v.low = v.high;
        v.high = share_below(d, map, s, ++v.token + 1);
        if (weight_below(s, v.high, v.token + 1) <= quantile) {
            return search_token(d, map, s, quantile);
        }
    }
    return v;
}

/* The map learns that the interval has occurred. */
MRC_INLINE void teach_map(const distribution *d, bin_map *map, interval v) {
    const int32_t width = v.high - v.low;
    if (width < 16) return;
    const float slope = MAP_TOTAL * 0.999f / (float)width;
    const int32_t learning = 31 - __builtin_clz((uint32_t)map->count + 50);
    const floats8 zero = all8(0), full = all8(MAP_TOTAL * 0.999f);
    MRC_UNROLL
    for (int32_t h = 0; h < 2; h++) {
        ints8 edges = load_ints8(map->edges + 1 + h * LANES);
        floats8 reached = to_floats8(edges - v.low) * slope;
        ints8 target = to_ints8(min8(max8(reached, zero), full)) + d->even[h];
        store_ints8(map->edges + 1 + h * LANES, edges + ((target - edges) >> learning));
    }
    map->edges[BINS] = MAP_TOTAL;
    map->count += map->count < MAX_MAP_COUNT;
}

static void encode_bits(range_encoder *e, int32_t bits, uint32_t value) {
    for (int32_t shift = 0; shift < bits; shift += RAW_CHUNK) {
        int32_t chunk = chunk_bits(bits, shift);
        encode_uniform(e, chunk, value >> shift & ((1u << chunk) - 1));
    }
}

static uint32_t decode_bits(range_decoder *d, int32_t bits) {
    uint32_t value = 0;
    for (int32_t shift = 0; shift < bits; shift += RAW_CHUNK) {
        value |= decode_uniform(d, chunk_bits(bits, shift)) << shift;
    }
    return value;
}

MRC_INLINE bin_map *map_of(const distribution *d, float prediction, float scale) {
    int32_t level = scale_step(prediction / scale + 0.5f, 1, 0, MAP_LEVELS);
    int32_t octave = scale_step(scale + 0.03f, 0, -5, MAP_SCALES);
    return &d->maps[level * MAP_SCALES + octave];
}

/* Encode a sample, 0 ... top. */
MRC_INLINE void encode_sample(const distribution *d, range_encoder *e, float prediction,
                              float scale, int32_t top, int32_t sample) {
    symbols s = symbols_of(prediction, scale, top);
    bin_map *map = map_of(d, prediction, scale);
    const int32_t moved = sample - s.nearest + ((1 << s.shift) >> 1);
    interval v = {moved >> s.shift, 0, 0};
    if (v.token < s.first || v.token > s.last) {
        encode_symbol(e, (1u << PRECISION) - ESCAPE_WEIGHT, ESCAPE_WEIGHT);
        encode_bits(e, bit_length((uint32_t)top), (uint32_t)sample);
        return;
    }
    v.low = share_below(d, map, &s, v.token);
    v.high = share_below(d, map, &s, v.token + 1);
    uint32_t low = weight_below(&s, v.low, v.token);
    encode_symbol(e, low, weight_below(&s, v.high, v.token + 1) - low);
    if (s.shift) encode_bits(e, s.shift, (uint32_t)moved & ((1u << s.shift) - 1));
    teach_map(d, map, v);
}

/* Decode a sample; one beyond 0 ... top is damaged. */
MRC_INLINE int32_t decode_sample(const distribution *d, range_decoder *r, float prediction,
                                 float scale, int32_t top) {
    symbols s = symbols_of(prediction, scale, top);
    bin_map *map = map_of(d, prediction, scale);
    const uint64_t unit = r->range >> PRECISION;
    uint32_t quantile = decode_quantile(r, unit);
    int32_t sample;
    if (quantile >= (1u << PRECISION) - ESCAPE_WEIGHT) {
        decode_advance(r, unit, (1u << PRECISION) - ESCAPE_WEIGHT, ESCAPE_WEIGHT);
        sample = (int32_t)decode_bits(r, (int32_t)bit_length((uint32_t)top));
    } else {
        interval v = find_token(d, map, &s, quantile);
        uint32_t low = weight_below(&s, v.low, v.token);
        decode_advance(r, unit, low, weight_below(&s, v.high, v.token + 1) - low);
        int32_t moved = v.token * (1 << s.shift);
        if (s.shift) moved += (int32_t)decode_bits(r, s.shift);
        sample = s.nearest + moved - ((1 << s.shift) >> 1);
        teach_map(d, map, v);
    }
    r->damaged |= sample < 0 || sample > top;
    return clamp32(sample, 0, top);
}

#endif
