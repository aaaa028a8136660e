/*
 * Binary decisions with adaptive probabilities, coded by the range coder. Integers alone.
 *
 * A decision is coded by the probability of one context, or by that of several contexts: their
 * logits, log(p / (1 - p)), are weighted and added, and the weights learn by the gradient of the
 * code length ("logistic mixing": Mahoney 2005, Adaptive weighing of context models).
 */
#ifndef MRC_BINARY_CODER_H
#define MRC_BINARY_CODER_H

#include "range_coder.h"

enum {
    LOGIT_ONE = 256,              /* Steps of a logit of 1. */
    MAX_LOGIT = 12 * LOGIT_ONE,   /* Logits are below it, and not below its negative. */
    STRETCH_BITS = 12,            /* Bits of a probability whose logit is looked up. */
    COUNT_BITS = 10,              /* Bits of the count in an adaptive probability. */
    COUNT_LIMIT = 255,            /* From this count on a probability learns at the same rate. */
    CHANCE_BITS = 22,             /* Bits of the probability in an adaptive probability. */
    MIN_CHANCE = 1 << 6,          /* Smallest probability of a decision, of 2^24. */
    MAX_INPUTS = 8,               /* Contexts of a decision. */
    MIX_WEIGHTS = MAX_INPUTS + 1, /* The last weight is that of a constant. */
    WEIGHT_BITS = 20,             /* Bits of a weight of 1. */
    CONSTANT_INPUT = 77,          /* The constant among the inputs, as a logit. */
    LEARNING_SHIFT = 19,          /* Weights move by error * input / 2^19. */
    MAX_WEIGHT = 1 << 26          /* Weights stay within it, so that their sums fit. */
};

/* round(exp(-1 / 256) * 2^32): the odds of a step of the logit. */
#define ODDS_STEP 4278222805u

/* An adaptive probability: CHANCE_BITS of the chance of 1, then COUNT_BITS of what it has seen. */
typedef uint32_t chance;
#define EVEN_CHANCE ((chance)1 << 31)

typedef struct {
    uint32_t squash[2 * MAX_LOGIT];       /* Logit -> probability of 2^24. */
    int16_t stretch[1 << STRETCH_BITS];   /* Probability -> logit. */
    uint32_t rate[1 << COUNT_BITS];       /* Count -> rate of learning, of 2^16. */
} logistic_tables;

typedef struct {
    const logistic_tables *tables;
    range_encoder *encoder; /* NULL: decisions are decoded. */
    range_decoder *decoder;
} binary_coder;

/* The logistic function by repeated multiplication, and its inverse by search. */
static void make_logistic_tables(logistic_tables *t) {
    uint64_t odds = (uint64_t)1 << 32;
    for (int32_t k = 0; k < MAX_LOGIT; k++) {
        uint32_t p = (uint32_t)(((uint64_t)1 << 56) / (((uint64_t)1 << 32) + odds));
        if (p > (1 << PRECISION) - MIN_CHANCE) p = (1 << PRECISION) - MIN_CHANCE;
        t->squash[MAX_LOGIT + k] = p;
        t->squash[MAX_LOGIT - 1 - k] = (1 << PRECISION) - p;
        odds = (odds * ODDS_STEP + ((uint64_t)1 << 31)) >> 32;
    }
    for (int32_t c = 0, k = 0; c < 1 << STRETCH_BITS; c++) {
        uint32_t middle = (2 * (uint32_t)c + 1) << (PRECISION - STRETCH_BITS - 1);
        while (k < 2 * MAX_LOGIT - 1 && t->squash[k] < middle) k++;
        t->stretch[c] = (int16_t)(k - MAX_LOGIT);
    }
    for (uint32_t n = 0; n < 1 << COUNT_BITS; n++) t->rate[n] = (1 << 17) / (2 * n + 3);
}

static void set_chances(chance *chances, size_t count, chance value) {
    for (size_t n = 0; n < count; n++) chances[n] = value;
}

MRC_INLINE int32_t count_of(chance c) { return (int32_t)(c & ((1 << COUNT_BITS) - 1)); }

/* Move a probability towards what happened, by 1 / (count + 1.5). */
MRC_INLINE void learn(const logistic_tables *t, chance *c, int32_t bit) {
    const uint32_t n = *c & ((1 << COUNT_BITS) - 1);
    const int64_t p = *c >> COUNT_BITS, goal = bit ? (1 << CHANCE_BITS) - 1 : 0;
    const int64_t next = p + ((goal - p) * t->rate[n] >> 16);
    *c = (uint32_t)next << COUNT_BITS | (n < COUNT_LIMIT ? n + 1 : n);
}

/* Code a decision whose probability of 1 is p / 2^24; returns it. */
MRC_INLINE int32_t code_bit(binary_coder *b, int32_t bit, uint32_t p) {
    const uint32_t rest = (1 << PRECISION) - p;
    if (b->encoder != NULL) {
        encode_symbol(b->encoder, bit ? 0 : p, bit ? p : rest);
        return bit;
    }
    range_decoder *d = b->decoder;
    const uint64_t scale = d->range >> PRECISION, offset = d->point - d->lower;
    d->damaged |= offset >= scale << PRECISION;
    bit = offset < scale * p;
    decode_advance(d, scale, bit ? 0 : p, bit ? p : rest);
    return bit;
}

/* Code a decision by one adaptive probability. */
MRC_INLINE int32_t code_adaptive(binary_coder *b, int32_t bit, chance *c) {
    const int32_t p = (int32_t)(*c >> COUNT_BITS) << (PRECISION - CHANCE_BITS);
    bit = code_bit(b, bit, (uint32_t)clamp32(p, MIN_CHANCE, (1 << PRECISION) - MIN_CHANCE));
    learn(b->tables, c, bit);
    return bit;
}

/* Code `bits` bits of equal chances, the upper ones first. */
static uint32_t code_even(binary_coder *b, int32_t bits, uint32_t value) {
    uint32_t out = 0;
    while (bits-- > 0) {
        out = out << 1 | (uint32_t)code_bit(b, value >> bits & 1, 1 << (PRECISION - 1));
    }
    return out;
}

/* Code a decision by the probabilities of `count` contexts and the sum of two sets of weights. */
MRC_INLINE int32_t code_mixed(binary_coder *b, int32_t bit, chance *const *contexts, int32_t count,
                              int32_t *first, int32_t *second) {
    const logistic_tables *t = b->tables;
    int32_t inputs[MIX_WEIGHTS] = {0};
    int64_t sum = 0;
    for (int32_t k = 0; k < count; k++) {
        const chance c = *contexts[k];
        /* A context that was never seen has no say. */
        inputs[k] = count_of(c) > 0 ? t->stretch[c >> (32 - STRETCH_BITS)] : 0;
    }
    inputs[count] = CONSTANT_INPUT;
    for (int32_t k = 0; k <= count; k++) sum += (int64_t)(first[k] + second[k]) * inputs[k];
    const int64_t logit = clamp64(sum >> (WEIGHT_BITS + 1), -MAX_LOGIT, MAX_LOGIT - 1);
    const uint32_t p = t->squash[logit + MAX_LOGIT];
    bit = code_bit(b, bit, p);
    const int64_t error = (bit ? 1 << PRECISION : 0) - (int64_t)p;
    for (int32_t k = 0; k <= count; k++) {
        const int64_t move = (error * inputs[k] + (1 << (LEARNING_SHIFT - 1))) >> LEARNING_SHIFT;
        first[k] = (int32_t)clamp64(first[k] + move, -MAX_WEIGHT, MAX_WEIGHT);
        second[k] = (int32_t)clamp64(second[k] + move, -MAX_WEIGHT, MAX_WEIGHT);
    }
    for (int32_t k = 0; k < count; k++) learn(t, contexts[k], bit);
    return bit;
}

#endif
