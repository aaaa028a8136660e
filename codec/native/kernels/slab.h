/* A slab of samples <-> the bytes of one run of the entropy coder (learned.md, coder 2). */
#ifndef MRC_SLAB_H
#define MRC_SLAB_H

#include "context_model.h"

enum {
    MANY_BLOCKS = 512,  /* Blocks of a slice from which on a sixteenth of them choose the depth. */
    DEPTH_COUNT = 4,
    PENALTY_PERCENT = 4 /* By which the bits of depths above 1 are raised when it is chosen. */
};

/* Everything that a slab needs while it is coded; the arrays lie in the caller's arena. */
typedef struct {
    const model *m;
    slab_shape s;
    int64_t step;        /* In 2^-16 samples. */
    int32_t rate;
    int32_t encoding;
    int32_t depth, groups, bands;
    int32_t *y;          /* [bands][coefficients] */
    coding_entry *entries;
    int32_t *ends;
    band_state *states;
    int32_t state_count;
    feature_memory memory;
    pass_symbols symbols;
    call_memory call;
    uint8_t *sign;       /* 2 + (1: negative) where the sign is hidden. */
    uint8_t *ones;       /* Indices of the call of signs. */
    band_weight *weights;
    sign_groups hiding;
    double *v;           /* [coefficients] */
    double *line;        /* [T][64] */
    float *target;       /* Encoder: [bands][coefficients]. */
    range_encoder encoder;
    range_decoder decoder;
    const volatile int32_t *cancel;
    int32_t status;
} slab_work;

static int32_t groups_of(int32_t slices, int32_t depth) { return (slices + depth - 1) / depth; }

/* Most bands of a step, whatever the depth. */
static int32_t max_bands_of_step(int32_t slices) {
    int32_t most = groups_of(slices, 1) / 2 + 1;
    return max32(most, groups_of(slices, 2));
}

/* Groups that others refer to: every other one, and the last; and two more for detail bands. */
static int32_t max_references(int32_t slices) { return groups_of(slices, 2) + 3; }

static void take_features(slab_work *w, arena *a) {
    const model *m = w->m;
    feature_memory *f = &w->memory;
    int32_t width = max32(m->low.width, m->detail.width);
    int32_t narrow = max32(m->low.narrow, m->detail.narrow);
    int32_t widest = max32(max32(width, narrow), 3 * MAX_CODED + 2 + PANEL);
    size_t columns = (size_t)w->s.columns;
    f->sums = TAKE(a, int16_t, columns * (size_t)(widest + PANEL));
    if (w->encoding) f->wide = TAKE(a, int32_t, columns * MAX_CODED);
    f->first = TAKE(a, int16_t, columns * (size_t)widest);
    f->second = TAKE(a, int16_t, columns * (size_t)widest);
    f->narrow = TAKE(a, int16_t, padded_size(&w->s, (size_t)max32(narrow, PANEL)));
    for (int32_t n = 0; n < MAX_SOURCES + 1; n++) {
        f->source[n].companded = TAKE(a, int16_t, padded_size(&w->s, CHANNELS));
        f->source[n].magnitude = TAKE(a, int16_t, padded_size(&w->s, CHANNELS));
        if (a->start == NULL || a->failed) continue;
        memset(f->source[n].companded, 0, padded_size(&w->s, CHANNELS) * sizeof(int16_t));
        memset(f->source[n].magnitude, 0, padded_size(&w->s, CHANNELS) * sizeof(int16_t));
    }
    for (int32_t n = 0; n < 3; n++) f->energy[n] = TAKE(a, int16_t, w->s.coefficients);
    f->reference_count = max_references(w->s.slices);
    f->references = TAKE(a, reference, f->reference_count);
    for (int32_t n = 0; n < f->reference_count; n++) {
        reference each = {.group = -1};
        each.features[0] = TAKE(a, int16_t, w->s.blocks * (size_t)width);
        each.features[1] = TAKE(a, int16_t, w->s.blocks * (size_t)width);
        each.energy = TAKE(a, int8_t, w->s.coefficients);
        if (a->start != NULL && !a->failed) f->references[n] = each;
    }
}

static void take_states(slab_work *w, arena *a) {
    size_t n = w->s.coefficients;
    size_t width = (size_t)max32(w->m->low.width, w->m->detail.width);
    w->states = TAKE(a, band_state, w->state_count);
    for (int32_t b = 0; b < w->state_count; b++) {
        band_state state = {0};
        state.base = TAKE(a, int16_t, w->s.blocks * width);
        state.mean_reference = TAKE(a, int32_t, n);
        state.energy[0] = TAKE(a, int8_t, n);
        state.energy[1] = TAKE(a, int8_t, n);
        state.magnitude = TAKE(a, int16_t, padded_size(&w->s, CHANNELS));
        state.known = TAKE(a, int16_t, padded_size(&w->s, MAX_KNOWN));
        if (w->encoding) state.error = TAKE(a, int16_t, padded_size(&w->s, MAX_KNOWN));
        if (a->start != NULL && !a->failed) w->states[b] = state;
    }
}

/* Lay out all arrays; with an empty arena only their bytes are counted. */
static void take_slab(slab_work *w, arena *a) {
    int32_t bands = w->s.slices + MAX_DEPTH - 1;
    size_t n = w->s.coefficients;
    w->state_count = max_bands_of_step(w->s.slices);
    size_t symbols = (size_t)w->state_count * w->s.blocks * MAX_CODED;
    w->y = TAKE(a, int32_t, (size_t)bands * n);
    w->entries = TAKE(a, coding_entry, bands + 1);
    w->ends = TAKE(a, int32_t, bands + 1);
    take_states(w, a);
    take_features(w, a);
    w->symbols.index = TAKE(a, uint8_t, symbols);
    w->symbols.mean = TAKE(a, int32_t, symbols);
    w->symbols.q = TAKE(a, int32_t, symbols);
    w->symbols.error = TAKE(a, float, symbols);
    w->call = take_call_memory(a, symbols);
    w->sign = TAKE(a, uint8_t, symbols);
    w->ones = TAKE(a, uint8_t, symbols);
    w->weights = TAKE(a, band_weight, w->state_count);
    w->hiding.groups = TAKE(a, sign_group, max_sign_groups(symbols, w->state_count) + 1);
    w->hiding.carriers = TAKE(a, carrier, symbols);
    w->v = TAKE(a, double, n);
    w->line = TAKE(a, double, (size_t)w->s.columns * CHANNELS);
    if (w->encoding) w->target = TAKE(a, float, (size_t)bands * n);
}

static int32_t is_cancelled(slab_work *w) {
    if (w->status == MRC_OK && w->cancel != NULL && *w->cancel) w->status = MRC_ERROR_CANCELLED;
    return w->status != MRC_OK;
}

/* -- the symbols of a pass -------------------------------------------------------------------- */

/* Decode the symbols q of n bands. */
static void decode_pass(slab_work *w, int32_t p, int32_t bands) {
    size_t symbols = symbols_of_pass(&w->m->order, &w->s, p), n = symbols * (size_t)bands;
    const uint8_t *index = w->symbols.index;
    int32_t *q = w->symbols.q;
    decode_call(&w->decoder, &w->m->magnitudes[p], index, q, n, w->call);
    for (size_t i = 0; i < n; i++) q[i] = clamp32(q[i], 0, SYMBOL_MAX);
    list_carriers(index, w->m->hiding, w->weights, symbols, bands, &w->hiding);
    memset(w->sign, 0, n);
    find_hidden_signs(&w->hiding, q, w->sign);
    const uint8_t *restrict sign = w->sign;
    size_t sent = 0;
    for (size_t i = 0; i < n; i++) sent += (q[i] > 0) & (sign[i] == 0);
    memset(w->ones, 1, sent);
    int32_t *signs = (int32_t *)(void *)w->symbols.error;
    decode_call(&w->decoder, &w->m->signs, w->ones, signs, sent, w->call);
    sent = 0;
    for (size_t i = 0; i < n; i++) {
        if (q[i] == 0) continue;
        int32_t negative = sign[i] ? sign[i] == 3 : signs[sent++] == 1;
        if (negative) q[i] = -q[i];
    }
    if (w->decoder.damaged) w->status = MRC_ERROR_DAMAGED;
}

/* Encode the symbols q of n bands, changed so that they hide signs. */
static void encode_pass(slab_work *w, int32_t p, int32_t bands) {
    size_t symbols = symbols_of_pass(&w->m->order, &w->s, p), n = symbols * (size_t)bands;
    const uint8_t *index = w->symbols.index;
    int32_t *q = w->symbols.q;
    list_carriers(index, w->m->hiding, w->weights, symbols, bands, &w->hiding);
    hiding_symbols hiding = {q, w->symbols.error, index, FIRST_BITS, LATER_BITS};
    hide_signs(&w->hiding, &hiding);
    int32_t *magnitude = (int32_t *)(void *)w->symbols.error; /* The errors have been used. */
    for (size_t i = 0; i < n; i++) magnitude[i] = q[i] < 0 ? -q[i] : q[i];
    encode_call(&w->encoder, &w->m->magnitudes[p], index, magnitude, n, w->call);
    memset(w->sign, 0, n);
    find_hidden_signs(&w->hiding, magnitude, w->sign);
    size_t sent = 0;
    for (size_t i = 0; i < n; i++) {
        if (q[i] != 0 && w->sign[i] == 0) magnitude[sent++] = q[i] < 0;
    }
    memset(w->ones, 1, sent);
    encode_call(&w->encoder, &w->m->signs, w->ones, magnitude, sent, w->call);
    if (w->encoder.full) w->status = MRC_ERROR_CAPACITY;
}

/* Symbols of a band in pass p by RDOQ, and what they are the rounding of; before hiding signs. */
static void quantise_band(slab_work *w, const band_state *b, int32_t p, size_t at) {
    const model *m = w->m;
    const slab_shape *s = &w->s;
    int32_t n = m->order.count[p];
    size_t row = padded_row(s, MAX_KNOWN);
    for (int32_t parity = 0; parity < PARITIES; parity++) {
        const uint8_t *place = m->order.place[p][parity];
        const layer *correlation = &m->compensate.correlation[p][parity];
        for (int32_t r = PARITY_ROW[parity]; r < s->rows; r += 2) {
            int32_t c = PARITY_COLUMN[parity], pixels = (s->columns - c + 1) / 2;
            if (pixels < 1) continue;
            if (p > 0) {
                const int16_t *in = b->error + padded_start(s, MAX_KNOWN) + (size_t)r * row +
                                    (size_t)c * MAX_KNOWN;
                window all = nine_taps(in, m->order.known[p], (ptrdiff_t)row, MAX_KNOWN);
                window cross = all;
                cross.taps = CROSS_TAPS;
                for (int32_t t = 0; t < CROSS_TAPS; t++) cross.tap[t] = all.tap[CROSS[t]];
                cross.next_pixel = 2 * MAX_KNOWN;
                convolve_wide(correlation, &cross, w->memory.wide, pixels);
            }
            for (int32_t x = 0; x < pixels; x++) {
                const int32_t *sums = w->memory.wide + (size_t)x * correlation->panels * PANEL;
                const float *target = b->target + ((size_t)r * s->columns + c + 2 * x) * CHANNELS;
                for (int32_t k = 0; k < n; k++, at++) {
                    float aim = target[place[k]];
                    if (p > 0) aim -= (float)sums[k] / m->compensate.norm[place[k]];
                    float e = (aim - (float)w->symbols.mean[at]) * 0.0625f;
                    w->symbols.error[at] = e;
                    w->symbols.q[at] = rdo_quantise(&m->thresholds, e, w->symbols.index[at]);
                }
            }
        }
    }
}

/* The errors of the symbols of pass p of a band, for what is coded after them. */
static void note_errors(const slab_work *w, band_state *b, int32_t p) {
    const slab_shape *s = &w->s;
    int32_t n = w->m->order.count[p], first = w->m->order.known[p];
    for (int32_t parity = 0; parity < PARITIES; parity++) {
        const uint8_t *place = w->m->order.place[p][parity];
        for (int32_t r = PARITY_ROW[parity]; r < s->rows; r += 2) {
            for (int32_t t = PARITY_COLUMN[parity]; t < s->columns; t += 2) {
                size_t block = ((size_t)r * s->columns + t) * CHANNELS;
                size_t at = (size_t)(r + 1) * (s->columns + 2) + t + 1;
                for (int32_t k = 0; k < n; k++) {
                    float error = (float)b->y[block + place[k]] - b->target[block + place[k]];
                    error = error > ERROR_MAX ? ERROR_MAX : error < -ERROR_MAX ? -ERROR_MAX : error;
                    int16_t rounded_error = (int16_t)floorf(error + 0.5f);
                    b->error[at * MAX_KNOWN + first + k] = rounded_error;
                }
            }
        }
    }
}

/* Code the four passes of n bands whose states are ready. */
static void code_bands(slab_work *w, const band_network *net, int32_t bands) {
    for (int32_t p = 0; p < PASSES; p++) {
        size_t symbols = symbols_of_pass(&w->m->order, &w->s, p);
        for (int32_t b = 0; b < bands; b++) {
            if (is_cancelled(w)) return;
            size_t at = symbols * (size_t)b;
            predict_band(w->m, net, &w->states[b], &w->s, p, &w->memory, w->symbols.index + at,
                         w->symbols.mean + at);
            if (w->encoding) quantise_band(w, &w->states[b], p, at);
        }
        if (w->encoding) encode_pass(w, p, bands);
        else decode_pass(w, p, bands);
        for (int32_t b = 0; b < bands; b++) {
            size_t at = symbols * (size_t)b;
            update_band(w->m, &w->states[b], &w->s, p, w->symbols.q + at, w->symbols.mean + at);
            if (w->encoding && p < PASSES - 1) note_errors(w, &w->states[b], p);
        }
    }
}

/* -- bands ------------------------------------------------------------------------------------ */

/* A state for a band that is about to be coded. */
static band_state *start_band(slab_work *w, int32_t n, int32_t band, int32_t low,
                              int32_t class_number) {
    band_state *state = &w->states[n];
    state->y = w->y + (size_t)band * w->s.coefficients;
    state->low = low;
    state->class_number = class_number;
    memset(state->magnitude, 0, padded_size(&w->s, CHANNELS) * sizeof *state->magnitude);
    memset(state->known, 0, padded_size(&w->s, MAX_KNOWN) * sizeof *state->known);
    memset(state->y, 0, w->s.coefficients * sizeof *state->y);
    if (w->encoding) {
        memset(state->error, 0, padded_size(&w->s, MAX_KNOWN) * sizeof *state->error);
        state->target = w->target + (size_t)band * w->s.coefficients;
    }
    return state;
}

static int32_t log2_of_depth(int32_t depth) {
    return depth == 8 ? 3 : depth == 4 ? 2 : depth == 2 ? 1 : 0;
}

static void code_low_bands(slab_work *w) {
    int32_t steps = coding_steps(w->groups, w->entries, w->ends), begin = 0;
    size_t group = (size_t)w->depth * w->s.coefficients;
    for (int32_t step = 0; step < steps; begin = w->ends[step++]) {
        int32_t count = w->ends[step] - begin;
        for (int32_t n = 0; n < count; n++) {
            if (is_cancelled(w)) return;
            coding_entry e = w->entries[begin + n];
            int32_t number = 5 * log2_of_depth(w->depth) + reference_class(e);
            band_state *state = start_band(w, n, e.group * w->depth, 1, number);
            low_features(w->m, &w->s, w->y, group, e, w->rate, &w->memory, state);
        }
        code_bands(w, &w->m->low, count);
    }
}

static void code_detail_bands(slab_work *w) {
    static const int32_t first_class[MAX_DEPTH + 1] = {[2] = 0, [4] = 1, [8] = 4};
    for (int32_t f = 1; f < w->depth; f++) {
        for (int32_t g = 0; g < w->groups; g++) {
            if (is_cancelled(w)) return;
            band_state *state =
                start_band(w, g, g * w->depth + f, 0, first_class[w->depth] + f - 1);
            detail_features(w->m, &w->s, w->y, w->depth, w->groups, f, g, w->rate, &w->memory,
                            state);
        }
        code_bands(w, &w->m->detail, w->groups);
    }
}

/* Code all bands of a slab whose depth is known, and synthesise its samples. */
static void code_slab(slab_work *w, int32_t *samples) {
    w->groups = groups_of(w->s.slices, w->depth);
    w->bands = w->groups * w->depth;
    code_low_bands(w);
    code_detail_bands(w);
    for (int32_t k = 0; k < w->s.slices && !is_cancelled(w); k++) {
        synthesise_slice(w->y, &w->s, k, w->bands, w->depth, w->line, w->v);
        size_t slice = (size_t)w->s.height * w->s.width;
        write_samples(w->v, &w->s, w->step, samples + (size_t)k * slice);
    }
}

static int32_t rate_class(int64_t step, int32_t peak) {
    uint64_t steps = ((uint64_t)peak << STEP_BITS) / (uint64_t)step;
    return min32(bit_length(steps), RATES - 1);
}

/* The model in the memory that `model_init` has filled. */
static const model *model_at(const uint8_t *memory) {
    return (const model *)(const void *)arena_of((void *)(uintptr_t)memory, SIZE_MAX / 2).start;
}

/* MRC_ERROR_ARGUMENT unless step and peak are in the range of the format. */
static int32_t start_slab(slab_work *w, const uint8_t *memory, const mrc_slab *slab,
                          int32_t encoding) {
    memset(w, 0, sizeof *w);
    const model *m = model_at(memory);
    if (m == NULL || m->magic != MODEL_MAGIC) return MRC_ERROR_ARGUMENT;
    if (slab->step < 16 || slab->step > (int64_t)1 << 36) return MRC_ERROR_ARGUMENT;
    if (slab->peak < 0) return MRC_ERROR_ARGUMENT;
    w->m = m;
    w->encoding = encoding;
    w->step = slab->step;
    w->rate = rate_class(slab->step, slab->peak);
    w->cancel = slab->cancel;
    return shape_of(&w->s, slab->slices, slab->height, slab->width);
}

static size_t slab_bytes(const uint8_t *memory, const mrc_slab *slab, int32_t encoding) {
    slab_work w;
    arena count = arena_of(NULL, 0);
    if (start_slab(&w, memory, slab, encoding) != MRC_OK) return 0;
    take_slab(&w, &count);
    return count.failed ? 0 : count.used + ARENA_ALIGNMENT;
}

static int32_t decode_slab(const uint8_t *memory, const mrc_slab *slab, const uint8_t *data,
                           size_t size, int32_t *samples) {
    slab_work w;
    arena a = arena_of(slab->arena, slab->arena_size);
    int32_t status = start_slab(&w, memory, slab, 0);
    if (status != MRC_OK) return status;
    take_slab(&w, &a);
    if (a.failed || a.start == NULL) return MRC_ERROR_MEMORY;
    status = decoder_start(&w.decoder, data, size);
    if (status != MRC_OK) return status;
    uint8_t index = 0;
    int32_t choice = 0;
    decode_call(&w.decoder, &w.m->depth, &index, &choice, 1, w.call);
    if (w.decoder.damaged) return MRC_ERROR_DAMAGED;
    w.depth = 1 << clamp32(choice, 0, DEPTH_COUNT - 1);
    code_slab(&w, samples);
    return w.status != MRC_OK ? w.status : decoder_finish(&w.decoder);
}

/* -- decisions of the encoder ----------------------------------------------------------------- */

/* The depth whose bands take the fewest bits, about, from a part of the blocks.
 *
 * scratch: [slices + 7][coefficients] */
static int32_t choose_depth(const slab_work *w, float *scratch) {
    const slab_shape *s = &w->s;
    int32_t every = s->blocks >= MANY_BLOCKS ? 4 : 2, best = 1;
    int64_t least = INT64_MAX;
    for (int32_t depth = 1; depth <= MAX_DEPTH; depth *= 2) {
        int32_t bands = groups_of(s->slices, depth) * depth;
        size_t length = (size_t)((s->rows + every - 1) / every) *
                        (size_t)((s->columns + every - 1) / every) * CHANNELS;
        for (int32_t k = 0; k < bands; k++) {
            const float *slice = w->target + (size_t)min32(k, s->slices - 1) * s->coefficients;
            float *to = scratch + (size_t)k * length;
            for (int32_t r = 0; r < s->rows; r += every) {
                for (int32_t t = 0; t < s->columns; t += every, to += CHANNELS) {
                    const float *from = slice + ((size_t)r * s->columns + t) * CHANNELS;
                    memcpy(to, from, CHANNELS * sizeof *to);
                }
            }
        }
        analyse_across(scratch, bands, length, depth);
        int64_t bits = rough_bits(scratch, (size_t)bands * length);
        bits *= 100 + (depth > 1 ? PENALTY_PERCENT : 0);
        if (bits < least) least = bits, best = depth;
    }
    return best;
}

/* The coefficients of all slices in 1/16 of a step into w->target. */
static void analyse_slab(slab_work *w, const int32_t *samples) {
    const slab_shape *s = &w->s;
    float unit = (float)((double)w->step / (1 << (STEP_BITS + 4)));
    for (int32_t k = 0; k < s->slices && !is_cancelled(w); k++) {
        analyse_slice(samples + (size_t)k * s->height * s->width, s, unit, (float *)(void *)w->v,
                      w->target + (size_t)k * s->coefficients);
    }
}

/* The bands to code into w->target, and the depth: those of the samples, or of a search. */
static void choose_targets(slab_work *w, const int32_t *samples, const mrc_search *search) {
    size_t slice = w->s.coefficients;
    if (search != NULL && search->targets != NULL) {
        w->depth = search->depth;
        memcpy(w->target, search->targets, search->count * sizeof *w->target);
        return;
    }
    analyse_slab(w, samples);
    if (w->status != MRC_OK) return;
    int32_t chosen = search != NULL && search->depth != 0;
    w->depth = chosen ? search->depth : choose_depth(w, (float *)(void *)w->y);
    int32_t bands = groups_of(w->s.slices, w->depth) * w->depth;
    const float *last = w->target + (size_t)(w->s.slices - 1) * slice;
    for (int32_t k = w->s.slices; k < bands; k++) {
        memcpy(w->target + (size_t)k * slice, last, slice * sizeof *w->target);
    }
    analyse_across(w->target, bands, slice, w->depth);
}

static int32_t encode_slab(const uint8_t *memory, const mrc_slab *slab, const int32_t *samples,
                           const mrc_search *search, const mrc_run *run, int32_t *decoded) {
    slab_work w;
    arena a = arena_of(slab->arena, slab->arena_size);
    int32_t status = start_slab(&w, memory, slab, 1);
    if (status != MRC_OK) return status;
    take_slab(&w, &a);
    if (a.failed || a.start == NULL) return MRC_ERROR_MEMORY;
    encoder_start(&w.encoder, run->data, run->capacity);
    choose_targets(&w, samples, search);
    if (w.status != MRC_OK) return w.status;
    uint8_t index = 0;
    int32_t choice = log2_of_depth(w.depth);
    encode_call(&w.encoder, &w.m->depth, &index, &choice, 1, w.call);
    code_slab(&w, decoded);
    encoder_finish(&w.encoder);
    if (w.status == MRC_OK && w.encoder.full) w.status = MRC_ERROR_CAPACITY;
    *run->size = w.encoder.size;
    if (search != NULL && search->bands != NULL) {
        memcpy(search->bands, w.y, search->count * sizeof *w.y);
    }
    return w.status;
}

#endif
