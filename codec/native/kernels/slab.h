/* A slab of samples <-> the bytes of one run of the entropy coder (learned.md, coder 2). */
#ifndef MRC_SLAB_H
#define MRC_SLAB_H

#include "context_model.h"

enum {
    MAX_THREADS = 64,   /* Threads that do the tasks of a slab. */
    MANY_BLOCKS = 512,  /* Blocks of a slice from which on a sixteenth of them choose the depth. */
    DEPTH_COUNT = 4,
    PENALTY_PERCENT = 4 /* By which the bits of depths above 1 are raised when it is chosen. */
};

/* What the next tasks of a slab do; tasks of a phase do not depend on one another. */
enum phase {
    ANALYSE,    /* A slice of samples: its coefficients. */
    PREPARE,    /* Rows of a band that others refer to: convolutions of its values. */
    FEATURES,   /* Rows of a band: features of its references. */
    MIX,        /* Rows of a band: a residual block. */
    PREDICT,    /* Rows of a band: means, scale indices, and an encoder's symbols. */
    UPDATE,     /* Rows of a band: what is known after a pass. */
    SYNTHESISE, /* A slice of samples. */
    FINISHED
};

static const char *const PHASE_NAMES[FINISHED + 1] = {
    "analyse", "prepare", "features", "mix", "predict", "update", "synthesise", "finished"};

/* Everything of a slab while it is coded; it lies at the start of the caller's arena. */
typedef struct {
    const model *m;
    slab_shape s;
    int64_t step;        /* In 2^-16 samples. */
    int32_t rate;
    int32_t encoding;
    int32_t threads;
    int32_t max_depth;   /* For which there is room. */
    int32_t depth, groups, bands;
    const volatile int32_t *cancel;
    int32_t status;
    /* Where the work is. */
    enum phase phase;
    int32_t started;     /* Whether tasks were given out. */
    int32_t tasks;       /* Of this phase. */
    int32_t steps;       /* Of the low bands; detail bands f follow, a step each. */
    int32_t at_step;
    int32_t block;       /* The residual block that is entered next. */
    int32_t pass;
    int32_t count;       /* Bands of this step. */
    int32_t parts;       /* Tasks of a band. */
    /* The arrays of the slab. */
    int32_t *y;          /* [bands][coefficients] */
    coding_entry *entries;
    int32_t *ends;
    band_state *states;
    int32_t state_count;
    reference *references;
    int32_t reference_count;
    int32_t *slots;      /* [groups]: the reference of a group, -1 for none. */
    int32_t *sides;      /* [reference_count]: sources that are to be prepared, bit by bit. */
    int32_t *prepared;   /* [reference_count]: references that are to be prepared. */
    thread_memory *memory;
    pass_symbols symbols;
    call_memory call;
    uint8_t *sign;       /* 2 + (1: negative) where the sign is hidden, else 0. */
    band_weight *weights;
    sign_groups hiding;
    float *target;       /* Encoder: [bands][coefficients]. */
    range_encoder encoder;
    range_decoder decoder;
    /* Arrays of the caller. */
    const int32_t *samples;
    int32_t *decoded;
    const mrc_search *search;
    size_t *run_size;
} slab_work;

static int32_t groups_of(int32_t slices, int32_t depth) { return (slices + depth - 1) / depth; }

/* Most bands of a step: half of the low bands of depth 1, or the detail bands of a frequency. */
static int32_t max_bands_of_step(int32_t slices, int32_t max_depth) {
    return max32(slices / 2 + 1, max_depth > 1 ? groups_of(slices, 2) : 0);
}

/* Groups that others refer to: every other one, and the last; all groups where there is a depth. */
static int32_t max_references(int32_t slices, int32_t max_depth) {
    return slices == 1 && max_depth == 1 ? 0 : groups_of(slices, 2) + 1;
}

/* An array of zeros, whose borders stay so. */
static int16_t *take_zeros(arena *a, size_t n) {
    int16_t *out = TAKE(a, int16_t, n);
    if (out != NULL) memset(out, 0, n * sizeof *out);
    return out;
}

static void take_thread(const slab_work *w, arena *a, thread_memory *out) {
    const model *m = w->m;
    int32_t width = max32(m->low.width, m->detail.width);
    int32_t narrow = max32(m->low.narrow, m->detail.narrow);
    int32_t widest = max32(max32(width, narrow), 3 * MAX_CODED + 2 + PANEL);
    size_t columns = (size_t)w->s.columns;
    thread_memory f = {0};
    f.sums = TAKE(a, int16_t, columns * (size_t)(widest + PANEL));
    if (w->encoding) f.wide = TAKE(a, int32_t, columns * MAX_CODED);
    f.first = TAKE(a, int16_t, columns * (size_t)widest);
    f.second = TAKE(a, int16_t, columns * (size_t)widest);
    f.source.companded = take_zeros(a, padded_size(&w->s, CHANNELS));
    f.source.magnitude = take_zeros(a, padded_size(&w->s, CHANNELS));
    f.energy = TAKE(a, int16_t, w->s.coefficients);
    f.features = TAKE(a, int16_t, w->s.blocks * (size_t)width);
    f.v = TAKE(a, double, w->s.coefficients);
    f.line = TAKE(a, double, columns * CHANNELS);
    if (out != NULL) *out = f;
}

static void take_states(slab_work *w, arena *a) {
    size_t n = w->s.coefficients;
    size_t width = (size_t)max32(w->m->low.width, w->m->detail.width);
    size_t narrow = (size_t)max32(w->m->low.narrow, w->m->detail.narrow);
    w->states = TAKE(a, band_state, w->state_count);
    for (int32_t b = 0; b < w->state_count; b++) {
        band_state state = {0};
        state.base = TAKE(a, int16_t, w->s.blocks * width);
        state.narrow[0] = take_zeros(a, padded_size(&w->s, narrow));
        state.narrow[1] = take_zeros(a, padded_size(&w->s, narrow));
        state.mean_reference = TAKE(a, int32_t, n);
        state.energy[0] = TAKE(a, int8_t, n);
        state.energy[1] = TAKE(a, int8_t, n);
        state.magnitude = TAKE(a, int16_t, padded_size(&w->s, CHANNELS));
        state.known = TAKE(a, int16_t, padded_size(&w->s, MAX_KNOWN));
        if (w->encoding) state.error = TAKE(a, int16_t, padded_size(&w->s, MAX_KNOWN));
        if (w->states != NULL) w->states[b] = state;
    }
    w->references = TAKE(a, reference, w->reference_count);
    for (int32_t k = 0; k < w->reference_count; k++) {
        reference each = {0};
        each.features[0] = TAKE(a, int16_t, w->s.blocks * width);
        each.features[1] = TAKE(a, int16_t, w->s.blocks * width);
        each.sums = TAKE(a, int16_t, n);
        if (w->references != NULL) w->references[k] = each;
    }
}

/* Lay out all arrays; with an empty arena only their bytes are counted. */
static void take_slab(slab_work *w, arena *a) {
    int32_t bands = w->s.slices + w->max_depth - 1;
    w->state_count = max_bands_of_step(w->s.slices, w->max_depth);
    w->reference_count = max_references(w->s.slices, w->max_depth);
    size_t symbols = (size_t)w->state_count * w->s.blocks * MAX_CODED;
    w->y = TAKE(a, int32_t, (size_t)bands * w->s.coefficients);
    w->entries = TAKE(a, coding_entry, bands + 1);
    w->ends = TAKE(a, int32_t, bands + 1);
    w->slots = TAKE(a, int32_t, bands);
    w->sides = TAKE(a, int32_t, w->reference_count);
    w->prepared = TAKE(a, int32_t, w->reference_count);
    take_states(w, a);
    w->symbols.index = TAKE(a, uint8_t, symbols);
    w->symbols.mean = TAKE(a, int32_t, symbols);
    w->symbols.q = TAKE(a, int32_t, symbols);
    w->symbols.error = TAKE(a, float, symbols);
    w->call = take_call_memory(a, symbols);
    w->sign = TAKE(a, uint8_t, symbols);
    w->weights = TAKE(a, band_weight, w->state_count);
    w->hiding.groups = TAKE(a, sign_group, max_sign_groups(symbols, w->state_count) + 1);
    w->hiding.carriers = TAKE(a, carrier, symbols);
    if (w->encoding) w->target = TAKE(a, float, (size_t)bands * w->s.coefficients);
    w->memory = TAKE(a, thread_memory, w->threads);
    for (int32_t t = 0; t < w->threads; t++) {
        take_thread(w, a, w->memory == NULL ? NULL : &w->memory[t]);
    }
}

/* The work at the start of an arena. */
static slab_work *work_at(uint8_t *memory) {
    return (slab_work *)(void *)arena_of(memory, SIZE_MAX / 2).start;
}

/* One unit of the coefficients, 1/16 of the step, in samples. */
static float unit_of(const slab_work *w) {
    return (float)((double)w->step / (1 << (STEP_BITS + 4)));
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
    int32_t *signs = (int32_t *)(void *)w->symbols.error;
    decode_alike(&w->decoder, &w->m->signs, 1, signs, sent, w->call);
    sent = 0;
    for (size_t i = 0; i < n; i++) { /* Without branches, which are hard to predict. */
        int32_t is_sent = (q[i] > 0) & (sign[i] == 0);
        int32_t negative = (sign[i] & 1) | (is_sent & (signs[sent] == 1));
        sent += (size_t)is_sent;
        q[i] = (q[i] ^ -negative) + negative;
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
        magnitude[sent] = q[i] < 0; /* Not beyond magnitude i, which is not needed any more. */
        sent += (q[i] != 0) & (w->sign[i] == 0);
    }
    encode_alike(&w->encoder, &w->m->signs, 1, magnitude, sent);
    if (w->encoder.full) w->status = MRC_ERROR_CAPACITY;
}

/* Symbols of some rows of a band in pass p by RDOQ, and what they are the rounding of.
 *
 * at: where the symbols of the band lie. */
static void quantise_rows(slab_work *w, const band_state *b, int32_t p, row_range rows, size_t at,
                          thread_memory *memory) {
    const model *m = w->m;
    const slab_shape *s = &w->s;
    int32_t n = m->order.count[p];
    size_t row = padded_row(s, MAX_KNOWN);
    parity_row each = {.parity = -1};
    while (next_parity_row(&m->order, s, p, rows, &each)) {
        const uint8_t *place = m->order.place[p][each.parity];
        const layer *correlation = &m->compensate.correlation[p][each.parity];
        if (p > 0) {
            const int16_t *in = b->error + padded_start(s, MAX_KNOWN) + (size_t)each.row * row +
                                (size_t)each.column * MAX_KNOWN;
            window all = nine_taps(in, m->order.known[p], (ptrdiff_t)row, MAX_KNOWN);
            window cross = all;
            cross.taps = CROSS_TAPS;
            for (int32_t t = 0; t < CROSS_TAPS; t++) cross.tap[t] = all.tap[CROSS[t]];
            cross.next_pixel = 2 * MAX_KNOWN;
            convolve_wide(correlation, &cross, memory->wide, each.pixels);
        }
        const float *targets = b->target + ((size_t)each.row * s->columns + each.column) * CHANNELS;
        size_t symbol = at + each.at;
        for (int32_t x = 0; x < each.pixels; x++, targets += 2 * CHANNELS) {
            const int32_t *sums = memory->wide + (size_t)x * correlation->panels * PANEL;
            for (int32_t k = 0; k < n; k++, symbol++) {
                float aim = targets[place[k]];
                if (p > 0) aim -= (float)sums[k] / m->compensate.norm[place[k]];
                float e = (aim - (float)w->symbols.mean[symbol]) * 0.0625f;
                w->symbols.error[symbol] = e;
                w->symbols.q[symbol] = rdo_quantise(&m->thresholds, e, w->symbols.index[symbol]);
            }
        }
    }
}

/* The errors of the symbols of pass p in some rows of a band, for what is coded after them. */
static void note_errors(const slab_work *w, band_state *b, int32_t p, row_range rows) {
    const slab_shape *s = &w->s;
    int32_t n = w->m->order.count[p], first = w->m->order.known[p];
    parity_row each = {.parity = -1};
    while (next_parity_row(&w->m->order, s, p, rows, &each)) {
        const uint8_t *place = w->m->order.place[p][each.parity];
        for (int32_t x = 0; x < each.pixels; x++) {
            int32_t t = each.column + 2 * x;
            size_t block = ((size_t)each.row * s->columns + t) * CHANNELS;
            size_t at = (size_t)(each.row + 1) * (s->columns + 2) + t + 1;
            int16_t *restrict out = b->error + at * MAX_KNOWN + first;
            for (int32_t k = 0; k < n; k++) {
                float error = (float)b->y[block + place[k]] - b->target[block + place[k]];
                error = error > ERROR_MAX ? ERROR_MAX : error < -ERROR_MAX ? -ERROR_MAX : error;
                out[k] = (int16_t)floorf(error + 0.5f);
            }
        }
    }
}

/* -- steps and passes ------------------------------------------------------------------------- */

static int32_t log2_of_depth(int32_t depth) {
    return depth == 8 ? 3 : depth == 4 ? 2 : depth == 2 ? 1 : 0;
}

/* Whether the step codes low bands, or else the detail bands of a frequency. */
static int32_t is_low_step(const slab_work *w) { return w->at_step < w->steps; }
static int32_t frequency_of_step(const slab_work *w) { return w->at_step - w->steps + 1; }
static int32_t first_entry(const slab_work *w) {
    return w->at_step == 0 ? 0 : w->ends[w->at_step - 1];
}

static const int32_t *low_band(const slab_work *w, int32_t group) {
    return w->y + (size_t)group * w->depth * w->s.coefficients;
}

/* The state of a band that is about to be coded. */
static void name_band(slab_work *w, int32_t n, int32_t band, int32_t low, int32_t class_number) {
    band_state *state = &w->states[n];
    state->y = w->y + (size_t)band * w->s.coefficients;
    state->low = low;
    state->class_number = class_number;
    if (w->encoding) state->target = w->target + (size_t)band * w->s.coefficients;
}

/* Forget the band before. */
static void clear_band(const slab_work *w, band_state *state) {
    memset(state->magnitude, 0, padded_size(&w->s, CHANNELS) * sizeof *state->magnitude);
    memset(state->known, 0, padded_size(&w->s, MAX_KNOWN) * sizeof *state->known);
    memset(state->y, 0, w->s.coefficients * sizeof *state->y);
    if (!w->encoding) return;
    memset(state->error, 0, padded_size(&w->s, MAX_KNOWN) * sizeof *state->error);
}

/* Note that a source sees a group; returns 1 if the group is not yet listed to be prepared. */
static int32_t want_reference(slab_work *w, int32_t group, int32_t side, int32_t *used) {
    if (group < 0) return 0;
    if (w->slots[group] < 0) {
        w->references[*used] = (reference){
            .features = {w->references[*used].features[0], w->references[*used].features[1]},
            .sums = w->references[*used].sums,
            .group = group};
        w->slots[group] = (*used)++;
    }
    int32_t slot = w->slots[group];
    if (w->references[slot].ready[side]) return 0;
    int32_t first = w->sides[slot] == 0;
    w->sides[slot] |= 1 << side;
    return first;
}

/* List the references that the low bands of a step lack; returns how many. */
static int32_t list_references(slab_work *w) {
    int32_t used = 0, begin = first_entry(w), missing = 0;
    for (int32_t g = 0; g < w->groups; g++) used += w->slots[g] >= 0;
    memset(w->sides, 0, (size_t)w->reference_count * sizeof *w->sides);
    for (int32_t n = 0; n < w->count; n++) {
        coding_entry e = w->entries[begin + n];
        for (int32_t side = 0; side < 2; side++) {
            int32_t group = side == 0 ? e.before : e.after;
            if (want_reference(w, group, side, &used)) w->prepared[missing++] = w->slots[group];
        }
    }
    return missing;
}

/* Begin a phase with tasks for rows of so many bands. */
static void start_rows(slab_work *w, enum phase phase, int32_t bands) {
    w->phase = phase;
    w->parts = bands >= 2 * w->threads || w->threads == 1 ? 1 : 2 * w->threads;
    w->parts = min32(w->parts, w->s.rows);
    w->tasks = bands * w->parts;
}

static void start_pass(slab_work *w, int32_t p) {
    w->pass = p;
    start_rows(w, PREDICT, w->count);
}

static void start_features(slab_work *w) {
    static const int32_t first_class[MAX_DEPTH + 1] = {[2] = 0, [4] = 1, [8] = 4};
    for (int32_t slot = 0; slot < w->reference_count && is_low_step(w); slot++) {
        for (int32_t side = 0; side < 2; side++) {
            if (w->sides[slot] >> side & 1) w->references[slot].ready[side] = 1;
        }
    }
    for (int32_t n = 0; n < w->count; n++) {
        if (is_low_step(w)) {
            coding_entry e = w->entries[first_entry(w) + n];
            int32_t number = 5 * log2_of_depth(w->depth) + reference_class(e);
            name_band(w, n, e.group * w->depth, 1, number);
        } else {
            int32_t f = frequency_of_step(w);
            name_band(w, n, n * w->depth + f, 0, first_class[w->depth] + f - 1);
        }
    }
    w->block = 0;
    start_rows(w, FEATURES, w->count);
}

/* Begin a step, or the synthesis after the last one. */
static void start_step(slab_work *w) {
    if (w->at_step >= w->steps + w->depth - 1) {
        w->phase = SYNTHESISE;
        w->tasks = w->s.slices;
        return;
    }
    w->count = is_low_step(w) ? w->ends[w->at_step] - first_entry(w) : w->groups;
    start_rows(w, PREPARE, is_low_step(w) ? list_references(w) : w->groups);
    if (w->tasks == 0) start_features(w);
}

/* Begin to code bands of a depth that is known. */
static void start_bands(slab_work *w) {
    w->groups = groups_of(w->s.slices, w->depth);
    w->bands = w->groups * w->depth;
    w->steps = coding_steps(w->groups, w->entries, w->ends);
    w->at_step = 0;
    for (int32_t g = 0; g < w->groups; g++) w->slots[g] = -1;
    start_step(w);
}

/* -- tasks ------------------------------------------------------------------------------------ */

/* The band of a task, counted in its phase, and its rows. */
static int32_t rows_of_task(const slab_work *w, int32_t task, row_range *rows) {
    int32_t part = task % w->parts;
    *rows = (row_range){(int32_t)((int64_t)w->s.rows * part / w->parts),
                        (int32_t)((int64_t)w->s.rows * (part + 1) / w->parts)};
    return task / w->parts;
}

static void prepare_task(slab_work *w, int32_t task, thread_memory *memory) {
    row_range rows;
    int32_t n = rows_of_task(w, task, &rows);
    if (is_low_step(w)) {
        reference *each = &w->references[w->prepared[n]];
        int32_t sides = w->sides[w->prepared[n]];
        prepare_reference(w->m, &w->s, low_band(w, each->group), sides, rows, memory, each);
    } else {
        int32_t f = frequency_of_step(w);
        const int32_t *band = low_band(w, n) + (size_t)(f - 1) * w->s.coefficients;
        prepare_detail(w->m, &w->s, band, f, rows, memory, &w->references[n]);
    }
}

static void features_task(slab_work *w, int32_t task, thread_memory *memory) {
    row_range rows;
    int32_t n = rows_of_task(w, task, &rows), low = is_low_step(w);
    band_state *state = &w->states[n];
    if (rows.first == 0) clear_band(w, state);
    if (low) {
        coding_entry e = w->entries[first_entry(w) + n];
        const int32_t groups[2] = {e.before, e.after};
        const reference *sides[2] = {NULL, NULL};
        const int32_t *y[2] = {NULL, NULL};
        for (int32_t side = 0; side < 2; side++) {
            if (groups[side] < 0) continue;
            sides[side] = &w->references[w->slots[groups[side]]];
            y[side] = low_band(w, groups[side]);
        }
        low_features(w->m, &w->s, sides, y, w->rate, rows, state);
    } else {
        const detail_step step = {w->references, w->groups, frequency_of_step(w)};
        detail_features(w->m, &w->s, low_band(w, n), &step, n, w->rate, rows, memory, state);
    }
    mix_rows(low ? &w->m->low : &w->m->detail, 0, &w->s, rows, memory, state);
}

static void mix_task(slab_work *w, int32_t task, thread_memory *memory) {
    row_range rows;
    int32_t n = rows_of_task(w, task, &rows);
    const band_network *net = is_low_step(w) ? &w->m->low : &w->m->detail;
    mix_rows(net, w->block, &w->s, rows, memory, &w->states[n]);
}

static void pass_task(slab_work *w, int32_t task, thread_memory *memory) {
    const model *m = w->m;
    row_range rows;
    int32_t p = w->pass, n = rows_of_task(w, task, &rows);
    size_t at = symbols_of_pass(&m->order, &w->s, p) * (size_t)n;
    band_state *state = &w->states[n];
    if (w->phase == PREDICT) {
        const band_network *net = is_low_step(w) ? &m->low : &m->detail;
        predict_rows(m, net, state, &w->s, p, rows, memory, w->symbols.index + at,
                     w->symbols.mean + at);
        if (w->encoding) quantise_rows(w, state, p, rows, at, memory);
        return;
    }
    update_rows(m, state, &w->s, p, rows, w->symbols.q + at, w->symbols.mean + at);
    if (w->encoding && p < PASSES - 1) note_errors(w, state, p, rows);
}

/* Do one of the tasks of the phase in the memory of a thread. */
static void run_task(uint8_t *memory, int32_t task, int32_t thread) {
    slab_work *w = work_at(memory);
    if (w->cancel != NULL && *w->cancel) return;
    if (task >= w->tasks || thread >= w->threads) return;
    thread_memory *of_thread = &w->memory[thread];
    size_t slice = (size_t)w->s.height * w->s.width;
    switch (w->phase) {
    case ANALYSE:
        analyse_slice(w->samples + (size_t)task * slice, &w->s, unit_of(w),
                      (float *)(void *)of_thread->v,
                      w->target + (size_t)task * w->s.coefficients);
        break;
    case PREPARE:
        prepare_task(w, task, of_thread);
        break;
    case FEATURES:
        features_task(w, task, of_thread);
        break;
    case MIX:
        mix_task(w, task, of_thread);
        break;
    case PREDICT:
    case UPDATE:
        pass_task(w, task, of_thread);
        break;
    case SYNTHESISE:
        synthesise_slice(w->y, &w->s, task, w->bands, w->depth, of_thread->line, of_thread->v);
        write_samples(of_thread->v, &w->s, w->step, w->decoded + (size_t)task * slice);
        break;
    case FINISHED:
        break;
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

/* MRC_ERROR_ARGUMENT unless shape, step and peak are in the range of the format. */
static int32_t describe_slab(slab_work *w, const uint8_t *memory, const mrc_slab *slab,
                             int32_t encoding) {
    const model *m = model_at(memory);
    memset(w, 0, sizeof *w);
    if (m == NULL || m->magic != MODEL_MAGIC) return MRC_ERROR_ARGUMENT;
    if (slab->step < 16 || slab->step > (int64_t)1 << 36) return MRC_ERROR_ARGUMENT;
    if (slab->peak < 0 || slab->threads < 1 || slab->threads > MAX_THREADS) {
        return MRC_ERROR_ARGUMENT;
    }
    int32_t d = slab->depth;
    if (d != 1 && d != 2 && d != 4 && d != 8) return MRC_ERROR_ARGUMENT;
    w->m = m;
    w->encoding = encoding;
    w->threads = slab->threads;
    w->max_depth = d;
    w->step = slab->step;
    w->rate = rate_class(slab->step, slab->peak);
    w->cancel = slab->cancel;
    return shape_of(&w->s, slab->slices, slab->height, slab->width);
}

static size_t slab_bytes(const uint8_t *memory, const mrc_slab *slab, int32_t encoding) {
    slab_work w;
    arena count = arena_of(NULL, 0);
    if (describe_slab(&w, memory, slab, encoding) != MRC_OK) return 0;
    TAKE(&count, slab_work, 1);
    take_slab(&w, &count);
    return count.failed ? 0 : count.used + ARENA_ALIGNMENT;
}

/* The work in the caller's arena, its arrays laid out. */
static int32_t start_slab(slab_work **out, const uint8_t *memory, const mrc_slab *slab,
                          int32_t encoding) {
    arena a = arena_of(slab->arena, slab->arena_size);
    slab_work *w = TAKE(&a, slab_work, 1);
    if (w == NULL) return MRC_ERROR_MEMORY;
    int32_t status = describe_slab(w, memory, slab, encoding);
    if (status != MRC_OK) return status;
    take_slab(w, &a);
    *out = w;
    return a.failed || a.start == NULL ? MRC_ERROR_MEMORY : MRC_OK;
}

/* Decode the depth of a slab, its first symbol; 0 for bytes that no encoder writes. */
static int32_t decode_depth(range_decoder *d, const model *m) {
    uint8_t index = 0, token;
    uint32_t order;
    int32_t choice = 0;
    decode_call(d, &m->depth, &index, &choice, 1, (call_memory){&order, &token});
    return d->damaged ? 0 : 1 << clamp32(choice, 0, DEPTH_COUNT - 1);
}

static int32_t depth_of_run(const uint8_t *memory, const uint8_t *data, size_t size) {
    const model *m = model_at(memory);
    range_decoder d;
    if (m == NULL || m->magic != MODEL_MAGIC || decoder_start(&d, data, size) != MRC_OK) return 0;
    return decode_depth(&d, m);
}

static int32_t start_decoding(const uint8_t *memory, const mrc_slab *slab, const uint8_t *data,
                              size_t size, int32_t *samples) {
    slab_work *w;
    int32_t status = start_slab(&w, memory, slab, 0);
    if (status == MRC_OK) status = decoder_start(&w->decoder, data, size);
    if (status != MRC_OK) return status;
    w->depth = decode_depth(&w->decoder, w->m);
    if (w->depth == 0) return MRC_ERROR_DAMAGED;
    if (w->depth > w->max_depth) return MRC_ERROR_MEMORY;
    w->decoded = samples;
    start_bands(w);
    return MRC_OK;
}

/* -- decisions of the encoder ----------------------------------------------------------------- */

/* The depth whose bands take the fewest bits, about, from a part of the blocks.
 *
 * scratch: [slices + depth - 1][coefficients] */
static int32_t choose_depth(const slab_work *w, float *scratch) {
    const slab_shape *s = &w->s;
    int32_t every = s->blocks >= MANY_BLOCKS ? 4 : 2, best = 1;
    int64_t least = INT64_MAX;
    for (int32_t depth = 1; depth <= w->max_depth; depth *= 2) {
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

/* Code the depth, and begin with the bands of w->target. */
static void start_encoding_bands(slab_work *w) {
    uint8_t index = 0;
    int32_t choice = log2_of_depth(w->depth);
    encode_call(&w->encoder, &w->m->depth, &index, &choice, 1, w->call);
    start_bands(w);
}

/* After the analysis of all slices: bands of the depth that is best, or that a search wants. */
static void choose_bands(slab_work *w) {
    size_t slice = w->s.coefficients;
    int32_t chosen = w->search != NULL && w->search->depth != 0;
    w->depth = chosen ? w->search->depth : choose_depth(w, (float *)(void *)w->y);
    int32_t bands = groups_of(w->s.slices, w->depth) * w->depth;
    const float *last = w->target + (size_t)(w->s.slices - 1) * slice;
    for (int32_t k = w->s.slices; k < bands; k++) {
        memcpy(w->target + (size_t)k * slice, last, slice * sizeof *w->target);
    }
    analyse_across(w->target, bands, slice, w->depth);
    start_encoding_bands(w);
}

static int32_t start_encoding(const uint8_t *memory, const mrc_slab *slab, const int32_t *samples,
                              const mrc_search *search, const mrc_run *run, int32_t *decoded) {
    slab_work *w;
    int32_t status = start_slab(&w, memory, slab, 1);
    if (status != MRC_OK) return status;
    encoder_start(&w->encoder, run->data, run->capacity);
    if (search != NULL && search->depth > w->max_depth) return MRC_ERROR_MEMORY;
    w->samples = samples;
    w->decoded = decoded;
    w->search = search;
    w->run_size = run->size;
    if (search != NULL && search->targets != NULL) {
        w->depth = search->depth;
        memcpy(w->target, search->targets, search->count * sizeof *w->target);
        start_encoding_bands(w);
    } else {
        w->phase = ANALYSE;
        w->tasks = w->s.slices;
    }
    return MRC_OK;
}

/* -- from phase to phase ---------------------------------------------------------------------- */

static void finish_slab(slab_work *w) {
    w->phase = FINISHED;
    w->tasks = 0;
    if (!w->encoding) {
        w->status = decoder_finish(&w->decoder);
        return;
    }
    encoder_finish(&w->encoder);
    if (w->encoder.full) w->status = MRC_ERROR_CAPACITY;
    *w->run_size = w->encoder.size;
    if (w->search != NULL && w->search->bands != NULL) {
        memcpy(w->search->bands, w->y, w->search->count * sizeof *w->y);
    }
}

/* What follows when all tasks of a phase are done. */
static void next_phase(slab_work *w) {
    switch (w->phase) {
    case ANALYSE:
        choose_bands(w);
        break;
    case PREPARE:
        start_features(w);
        break;
    case FEATURES:
    case MIX:
        if (w->block++ < (is_low_step(w) ? w->m->low.blocks : w->m->detail.blocks)) {
            start_rows(w, MIX, w->count);
        } else {
            start_pass(w, 0);
        }
        break;
    case PREDICT:
        if (w->encoding) encode_pass(w, w->pass, w->count);
        else decode_pass(w, w->pass, w->count);
        w->phase = UPDATE;
        break;
    case UPDATE:
        if (w->pass < PASSES - 1) {
            start_pass(w, w->pass + 1);
        } else {
            w->at_step++;
            start_step(w);
        }
        break;
    case SYNTHESISE:
        finish_slab(w);
        break;
    case FINISHED:
        break;
    }
}

static const char *phase_name(uint8_t *memory) { return PHASE_NAMES[work_at(memory)->phase]; }

/* After the tasks so far: begin the next phase; *tasks becomes 0 at the end. */
static int32_t next_tasks(uint8_t *memory, int32_t *tasks) {
    slab_work *w = work_at(memory);
    *tasks = 0;
    if (is_cancelled(w)) return w->status;
    if (w->started) next_phase(w);
    w->started = 1;
    if (w->status == MRC_OK) *tasks = w->tasks;
    return w->status;
}

#endif
