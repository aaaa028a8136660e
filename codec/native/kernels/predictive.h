/*
 * The predictive coder: a slab of integers without loss, voxel by voxel, slice by slice.
 *
 * A voxel's prediction is the static stage's (predictive_taps.h), corrected by two adaptive filters
 * (predictive_filters.h); predictive_scale.h tells how far off it may be, and
 * predictive_distribution.h codes the voxel. Floats are IEEE singles in the order that is written
 * here: decoders compute the same bits everywhere.
 */
#ifndef MRC_PREDICTIVE_H
#define MRC_PREDICTIVE_H

#include "predictive_distribution.h"
#include "predictive_filters.h"
#include "predictive_fit.h"
#include "predictive_scale.h"
#include "predictive_taps.h"

enum {
    EFFORT_FAST = 0,     /* The static stage alone. */
    EFFORT_DEFAULT = 1,  /* And two filters. */
    EFFORTS = 2,
    MAX_SPAN = (1 << 24) - 1,
    HEAD_BYTES = 16,     /* Bytes before the run, at most. */
    FILTER_COUNT = 2,
    FIT_VOXELS = 24000,  /* Voxels that coefficients are fitted to, */
    FIT_FIRST = 12000    /* and those of the first slice. */
};

/* What a slab begins with. */
typedef struct {
    int32_t effort;
    int32_t set;  /* Of taps. */
    int32_t low;  /* The smallest number. */
    int32_t span; /* The largest number less the smallest one; 0: all are alike. */
} slab_head;

typedef struct {
    planes planes;
    row_sums row;
    float *scale_sums; /* [width] */
    tap_list list;
    int32_t coefficients[2][MAX_NEIGHBOURS]; /* Of the first slice, and of all others. */
    stage stages[2];
    scale_memory scales;
    filter filters[FILTER_COUNT];
    distribution distribution;
    coder coder;
    slab_head head;
    const volatile int32_t *cancel;
    const uint8_t *skipped; /* NULL, or [slices][height][width] */
} predictor;

static void take_predictor(predictor *p, arena *a, const slab_head *head, const mrc_block *block) {
    memset(p, 0, sizeof *p);
    p->head = *head;
    p->cancel = block->cancel;
    p->skipped = block->skipped;
    p->planes.slices = block->slices;
    p->planes.height = block->height;
    p->planes.width = block->width;
    take_planes(&p->planes, a, head->span >> PART_BITS ? PARTS : 1);
    p->row = take_row_sums(a, block->width);
    p->scale_sums = TAKE(a, float, block->width);
    take_scale_memory(&p->scales, a, head->effort == EFFORT_FAST ? 1 : 3);
    for (int32_t n = 0; n < FILTER_COUNT && head->effort != EFFORT_FAST; n++) {
        take_filter(&p->filters[n], a, block->height, block->width, FILTERS[n].groups);
    }
    take_distribution(&p->distribution, a);
    list_taps(&p->list, head->set);
}

/* -- coefficients in the run ------------------------------------------------------------------- */

enum {
    COEFFICIENT_LENGTHS = 17, /* Lengths of coefficients, 0 ... 16 bits with their signs. */
    TAP_CLASSES = 4           /* Contexts of a length: how far away the neighbour is. */
};

static int32_t tap_class(tap t) {
    int32_t square = t.row * t.row + t.column * t.column;
    if (t.slice > 0) return square <= 2 ? 1 : 2;
    return square <= 2 ? 0 : square <= 13 ? 1 : square <= 36 ? 2 : 3;
}

/* Weights of the lengths so far, scaled to 2^24: cumulative[n] up to length n. */
static void scale_counts(const int32_t *counts, uint32_t cumulative[COEFFICIENT_LENGTHS + 1]) {
    uint64_t total = 0, sum = 0;
    for (int32_t n = 0; n < COEFFICIENT_LENGTHS; n++) total += (uint64_t)counts[n];
    for (int32_t n = 0; n <= COEFFICIENT_LENGTHS; n++) {
        cumulative[n] = (uint32_t)((sum << PRECISION) / total);
        if (n < COEFFICIENT_LENGTHS) sum += (uint64_t)counts[n];
    }
}

/* Encode or decode the coefficients of a stage. */
MRC_INLINE void code_coefficients(coder *c, const int32_t decoding, const tap_list *list,
                                  int32_t *coefficients) {
    int32_t counts[TAP_CLASSES][COEFFICIENT_LENGTHS];
    uint32_t cumulative[COEFFICIENT_LENGTHS + 1];
    for (int32_t k = 0; k < TAP_CLASSES; k++) {
        for (int32_t n = 0; n < COEFFICIENT_LENGTHS; n++) counts[k][n] = 1;
    }
    for (int32_t n = 0; n < list->count; n++) {
        int32_t *of_class = counts[tap_class(list->taps[n])];
        scale_counts(of_class, cumulative);
        uint32_t length = 0, value = 0;
        if (decoding) {
            uint64_t unit = c->decoder.range >> PRECISION;
            uint32_t quantile = decode_quantile(&c->decoder, unit);
            while (cumulative[length + 1] <= quantile) length++;
            decode_advance(&c->decoder, unit, cumulative[length],
                           cumulative[length + 1] - cumulative[length]);
            if (length > 1) value = decode_bits(&c->decoder, (int32_t)length - 1);
            value |= length ? 1u << (length - 1) : 0;
            coefficients[n] = clamp32((int32_t)unzigzag(value), -MAX_COEFFICIENT, MAX_COEFFICIENT);
        } else {
            value = (uint32_t)zigzag(coefficients[n]);
            length = (uint32_t)bit_length(value);
            encode_symbol(&c->encoder, cumulative[length],
                          cumulative[length + 1] - cumulative[length]);
            if (length > 1) {
                encode_bits(&c->encoder, (int32_t)length - 1, value & ((1u << (length - 1)) - 1));
            }
        }
        of_class[length] += 4;
    }
}

static void code_stages(predictor *p, const int32_t decoding) {
    const ptrdiff_t stride = (ptrdiff_t)p->planes.stride;
    const int32_t stages = p->planes.slices > 1 ? 2 : 1;
    for (int32_t s = 0; s < stages; s++) {
        tap_list list = p->list;
        if (s == 0) list.count = list.current;
        code_coefficients(&p->coder, decoding, &list, p->coefficients[s]);
        make_stage(&p->stages[s], &list, p->coefficients[s], stride);
    }
}

/* -- voxels ------------------------------------------------------------------------------------ */

/* What is known of a voxel before it is coded. */
typedef struct {
    float fixed;      /* The prediction of the static stage. */
    float scale;      /* With its margin. */
    float inverse;    /* 1 / scale */
    float corrected[FILTER_COUNT]; /* The predictions of the filters. */
    float prediction;
    float spread;     /* The mean |error| that is expected. */
} forecast;

/* The prediction between those of the filters, nearer to the one with smaller recent errors. */
MRC_INLINE float blend(const predictor *p, const forecast *f) {
    const float margin = 0.1f * f->scale;
    float first = 1.0f / (p->filters[0].error + margin);
    float second = 1.0f / (p->filters[1].error + margin);
    first *= first;
    second *= second;
    float share = first / (first + second);
    return f->corrected[1] + share * (f->corrected[0] - f->corrected[1]);
}

/* Means of errors in the contexts of a voxel. */
typedef struct {
    mean_error *fine, *errors, *mixed;
} scale_contexts;

MRC_INLINE scale_contexts find_contexts(const scale_memory *m, const neighbourhood *n, int32_t j,
                                        const forecast *f, const int32_t filtered) {
    const float scale = f->scale - SCALE_MARGIN + STEP_MARGIN;
    scale_contexts c = {m->fine + scale_step(scale, 2, SCALE_LOW, SCALE_CONTEXTS), NULL, NULL};
    if (!filtered) return c;
    const float *e = n->error + j, *e1 = n->error1 + j, *e2 = n->error2 + j;
    float near = 2 * magnitude(e1[0]) + magnitude(e1[-1]) + magnitude(e1[1]) + magnitude(e2[0]);
    near = (near + magnitude(e[-2]) + 2 * magnitude(e[-1])) * 0.125f;
    float past = near;
    if (!n->first) {
        const float *b = n->before_error + j;
        past = (2 * magnitude(b[0]) + magnitude(b[-1]) + magnitude(b[1]) +
                magnitude(n->before_error_up[j]) + magnitude(n->before_error_down[j])) *
               (1.0f / 6);
    }
    int32_t row = scale_step(near + STEP_MARGIN, 1, SCALE_LOW, COARSE_STEPS);
    c.errors = m->errors + row * COARSE_STEPS +
               scale_step(past + STEP_MARGIN, 1, SCALE_LOW, COARSE_STEPS);
    float apart = magnitude(f->corrected[0] - f->corrected[1]) +
                  0.5f * magnitude(f->fixed - f->prediction);
    int32_t disagreement = scale_step(apart * f->inverse * 8 + STEP_MARGIN, 1, 1, DISAGREEMENTS);
    int32_t level = scale_step(f->prediction + STEP_MARGIN, 0, SCALE_LOW, 16);
    row = scale_step(scale, 1, SCALE_LOW, COARSE_STEPS);
    c.mixed = m->mixed + (row * DISAGREEMENTS + disagreement) * 16 + level;
    return c;
}

MRC_INLINE float spread_of(const scale_contexts *c, const forecast *f, const int32_t filtered) {
    float mean = c->fine->mean;
    if (filtered) mean = (mean + c->errors->mean + c->mixed->mean) * (1.0f / 3);
    return mean * f->scale + 0.02f;
}

/* A row that is being coded. */
typedef struct {
    neighbourhood near;
    const stage *stage;
    int32_t slice, row;
    float top;
    floats8 carried[FILTER_COUNT][GROUPS]; /* Weights of the filters at the voxel before. */
} row_state;

MRC_INLINE void start_row(predictor *p, row_state *r, int32_t t, int32_t i,
                          const int32_t filtered) {
    r->near = neighbourhood_of(&p->planes, t, i);
    r->stage = &p->stages[t > 0];
    r->slice = t;
    r->row = i;
    r->top = (float)p->head.span;
    sum_neighbours(r->stage, &p->planes, i, &p->row);
    sum_scale(&r->near, p->planes.width, p->scale_sums);
    if (!filtered) return;
    for (int32_t k = 0; k < FILTER_COUNT; k++) {
        const int32_t groups = FILTERS[k].groups;
        filter_place from = place_of(&p->filters[k], i, 0, p->planes.width, 1, groups);
        for (int32_t g = 0; g < groups; g++) r->carried[k][g] = load8(from.above + g * LANES);
        p->filters[k].error = 0;
    }
}

MRC_INLINE void correct(const predictor *p, const row_state *r, const int32_t k, int32_t j,
                        const floats8 inputs[GROUPS], forecast *f, filter_output *out) {
    filter_place place = place_of(&p->filters[k], r->row, j, p->planes.width, r->slice == 0,
                                  FILTERS[k].groups);
    f->corrected[k] =
        f->fixed + f->scale * apply_filter(k, place, r->carried[k], inputs, out);
}

MRC_INLINE void predict(const predictor *p, const row_state *r, int32_t j, const int32_t filtered,
                        forecast *f, filter_output out[FILTER_COUNT]) {
    f->fixed = predict_static(r->stage, &p->planes, &p->row, j, r->top);
    f->scale = scale_at(&r->near, p->scale_sums, j) + SCALE_MARGIN;
    f->inverse = 1.0f / f->scale;
    f->prediction = f->fixed;
    if (!filtered) return;
    floats8 inputs[GROUPS];
    gather_inputs(&r->near, j, f->fixed, f->inverse, inputs);
    correct(p, r, 0, j, inputs, f, &out[0]);
    correct(p, r, 1, j, inputs, f, &out[1]);
    f->prediction = clampf(blend(p, f), 0, r->top);
}

/* The filters learn a voxel's value. */
MRC_INLINE void teach(predictor *p, row_state *r, const int32_t k, int32_t j, float value,
                      const forecast *f, const filter_output *out) {
    const float missed = value - f->corrected[k];
    p->filters[k].error = p->filters[k].error * 0.8f + magnitude(missed) * 0.2f;
    teach_filter(k, &p->filters[k], out, missed * f->inverse, r->row, j, r->carried[k]);
}

/* The voxels of a row that are not coded; NULL: all are. */
MRC_INLINE const uint8_t *skipped_in_row(const predictor *p, int32_t t, int32_t i) {
    if (p->skipped == NULL) return NULL;
    const size_t row = (size_t)t * (size_t)p->planes.height + (size_t)i;
    return p->skipped + row * (size_t)p->planes.width;
}

/* A voxel that is not coded continues what lies left of it and above. */
MRC_INLINE int32_t continued(const planes *p, const float *above, int32_t j) {
    return (p->line[j - 1] + (int32_t)above[j] + 1) >> 1;
}

/* Code row i of slice t, whose samples stand in the line unless they are decoded. */
MRC_INLINE void code_voxels(predictor *p, int32_t t, int32_t i, const int32_t decoding,
                         const int32_t filtered) {
    row_state r;
    const float *rates = p->scales.rates;
    const int32_t span = p->head.span, width = p->planes.width;
    int32_t *line = p->planes.line;
    start_row(p, &r, t, i, filtered);
    const uint8_t *skipped = skipped_in_row(p, t, i);
    for (int32_t j = 0; j < width; j++) {
        if (skipped != NULL && skipped[j]) {
            line[j] = continued(&p->planes, r.near.value1, j);
            r.near.value[j] = (float)line[j];
            r.near.error[j] = r.near.error[j - 1];
            continue;
        }
        forecast f;
        filter_output out[FILTER_COUNT];
        predict(p, &r, j, filtered, &f, out);
        scale_contexts c = find_contexts(&p->scales, &r.near, j, &f, filtered);
        f.spread = spread_of(&c, &f, filtered);
        if (decoding) {
            line[j] =
                decode_sample(&p->distribution, &p->coder.decoder, f.prediction, f.spread, span);
        } else {
            encode_sample(&p->distribution, &p->coder.encoder, f.prediction, f.spread, span,
                          line[j]);
        }
        const float value = (float)line[j], error = value - f.prediction;
        r.near.value[j] = value;
        r.near.error[j] = error;
        const float relative = magnitude(error) * f.inverse;
        learn_mean(c.fine, rates, relative, FINE_LIMIT);
        if (!filtered) continue;
        learn_mean(c.errors, rates, relative, OTHER_LIMIT);
        learn_mean(c.mixed, rates, relative, OTHER_LIMIT);
        teach(p, &r, 0, j, value, &f, &out[0]);
        teach(p, &r, 1, j, value, &f, &out[1]);
    }
}

static void encode_row_fast(predictor *p, int32_t t, int32_t i) { code_voxels(p, t, i, 0, 0); }
static void decode_row_fast(predictor *p, int32_t t, int32_t i) { code_voxels(p, t, i, 1, 0); }
static void encode_row_filtered(predictor *p, int32_t t, int32_t i) { code_voxels(p, t, i, 0, 1); }
static void decode_row_filtered(predictor *p, int32_t t, int32_t i) { code_voxels(p, t, i, 1, 1); }

static int32_t cancelled(const predictor *p) { return p->cancel != NULL && *p->cancel != 0; }

/* Code all voxels; samples [slices][height][width] are read, or written where they are decoded. */
static int32_t code_block(predictor *p, const int32_t decoding, const int32_t *samples,
                           int32_t *decoded) {
    static void (*const ROWS[EFFORTS][2])(predictor *, int32_t, int32_t) = {
        {encode_row_fast, decode_row_fast}, {encode_row_filtered, decode_row_filtered},
    };
    planes *s = &p->planes;
    const uint32_t low = (uint32_t)p->head.low;
    size_t at = 0;
    for (int32_t t = 0; t < s->slices; t++) {
        begin_slice(s, t);
        for (int32_t i = 0; i < s->height; i++, at += (size_t)s->width) {
            if (cancelled(p)) return MRC_ERROR_CANCELLED;
            for (int32_t j = 0; j < s->width && !decoding; j++) {
                s->line[j] = (int32_t)((uint32_t)samples[at + (size_t)j] - low);
            }
            begin_row(s, i);
            ROWS[p->head.effort][decoding](p, t, i);
            finish_row(s, i);
            if (decoding && p->coder.decoder.damaged) return MRC_ERROR_DAMAGED;
            if (decoding && p->coder.decoder.missing > 1) return MRC_ERROR_TRUNCATED;
            for (int32_t j = 0; j < s->width && decoding; j++) {
                decoded[at + (size_t)j] = (int32_t)((uint32_t)s->line[j] + low);
            }
        }
        finish_slice(s);
    }
    return MRC_OK;
}

/* -- slabs ------------------------------------------------------------------------------------- */

static size_t predictor_bytes(const slab_head *head, const mrc_block *block, int32_t encoding) {
    arena a = arena_of(NULL, 0);
    predictor p;
    fitting f;
    TAKE(&a, predictor, 1);
    take_predictor(&p, &a, head, block);
    if (encoding) take_fitting(&f, &a, p.list.count);
    return a.failed ? 0 : a.used + ARENA_ALIGNMENT;
}

/* The largest arena that a slab of this shape may need. */
static size_t predictive_bytes(const mrc_block *block, int32_t encoding) {
    slab_head head = {EFFORT_DEFAULT, TAP_SETS - 1, 0, MAX_SPAN};
    return predictor_bytes(&head, block, encoding);
}

/* Larger sets of taps for larger slabs: coefficients cost bytes. */
static int32_t choose_set(size_t voxels, int32_t effort) {
    static const size_t FROM[TAP_SETS - 1] = {1 << 12, 1 << 15, 1 << 17, 1 << 19};
    int32_t set = 0;
    while (set < TAP_SETS - 1 && voxels >= FROM[set]) set++;
    return effort == EFFORT_FAST ? min32(set, 1) : set;
}

/* The range of the samples that are coded. */
static void find_range(const int32_t *samples, const uint8_t *skipped, size_t count,
                       slab_head *head) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (size_t n = 0; n < count; n++) {
        if (skipped != NULL && skipped[n]) continue;
        low = min32(low, samples[n]);
        high = max32(high, samples[n]);
    }
    if (low > high) low = high = 0;
    int64_t span = (int64_t)high - low;
    head->low = low;
    head->span = span > MAX_SPAN ? -1 : (int32_t)span;
}

/* Fit the coefficients of both stages; MRC_ERROR_CANCELLED. */
static int32_t fit_stages(predictor *p, fitting *f, const int32_t *samples) {
    planes *s = &p->planes;
    const size_t area = (size_t)s->height * (size_t)s->width;
    const uint32_t low = (uint32_t)p->head.low;
    start_fitting(f);
    for (int32_t t = 0; t < s->slices; t++) {
        const size_t others = area * (size_t)(s->slices - 1);
        size_t step = t == 0 ? area / FIT_FIRST : others / FIT_VOXELS;
        begin_slice(s, t);
        for (int32_t i = 0; i < s->height; i++) {
            if (cancelled(p)) return MRC_ERROR_CANCELLED;
            const uint8_t *skipped = skipped_in_row(p, t, i);
            float *values = s->values[0] + row_start(s, i), *above = values - s->stride;
            begin_row(s, i);
            for (int32_t j = 0; j < s->width; j++, samples++) {
                const int32_t skip = skipped != NULL && skipped[j];
                s->line[j] = skip ? continued(s, above, j) : (int32_t)((uint32_t)*samples - low);
                values[j] = (float)s->line[j];
            }
            finish_row(s, i);
        }
        finish_slice(s);
        step = step < 1 ? 1 : step > INT16_MAX ? INT16_MAX : step;
        add_slice(f, s, &p->list, t, skipped_in_row(p, t, 0), (int32_t)step);
        if (t == 0) {
            finish_fitting(f, p->list.current, p->coefficients[0]);
            start_fitting(f);
        }
    }
    if (s->slices > 1) finish_fitting(f, p->list.count, p->coefficients[1]);
    clear_planes(s);
    return MRC_OK;
}

static size_t write_varint(uint8_t *out, uint32_t v) {
    size_t size = 0;
    for (; v >= 128; v >>= 7) out[size++] = (uint8_t)(v | 128);
    out[size++] = (uint8_t)v;
    return size;
}

/* Read a varint of at most 32 bits; 0 if there is none. */
static size_t read_varint(const uint8_t *data, size_t size, uint32_t *v) {
    uint64_t value = 0;
    for (size_t n = 0; n < size && n < 5; n++) {
        value |= (uint64_t)(data[n] & 127) << (7 * n);
        if (data[n] >= 128) continue;
        *v = (uint32_t)value;
        return value >> 32 ? 0 : n + 1;
    }
    return 0;
}

static size_t write_head(uint8_t *out, const slab_head *h) {
    size_t size = 0;
    out[size++] = (uint8_t)(h->effort | h->set << 4);
    size += write_varint(out + size, (uint32_t)zigzag(h->low));
    return size + write_varint(out + size, (uint32_t)h->span);
}

/* MRC_ERROR_TRUNCATED or MRC_ERROR_DAMAGED; *used is where the run begins. */
static int32_t read_head(const uint8_t *data, size_t size, slab_head *h, size_t *used) {
    uint32_t low, span;
    if (size < 3) return MRC_ERROR_TRUNCATED;
    h->effort = data[0] & 15;
    h->set = data[0] >> 4;
    size_t first = read_varint(data + 1, size - 1, &low);
    size_t second = first ? read_varint(data + 1 + first, size - 1 - first, &span) : 0;
    if (second == 0) return MRC_ERROR_DAMAGED;
    h->low = (int32_t)unzigzag(low);
    h->span = (int32_t)span;
    *used = 1 + first + second;
    if (h->effort >= EFFORTS || h->set >= TAP_SETS || span > MAX_SPAN) return MRC_ERROR_DAMAGED;
    return (int64_t)h->low + h->span > INT32_MAX ? MRC_ERROR_DAMAGED : MRC_OK;
}

static int32_t encode_run(const slab_head *head, const mrc_block *block, const int32_t *samples,
                          const mrc_run *run, size_t start) {
    arena a = arena_of(block->arena, block->arena_size);
    predictor *p = TAKE(&a, predictor, 1);
    fitting f;
    if (p == NULL) return MRC_ERROR_MEMORY;
    take_predictor(p, &a, head, block);
    take_fitting(&f, &a, p->list.count);
    if (a.failed) return MRC_ERROR_MEMORY;
    int32_t status = fit_stages(p, &f, samples);
    if (status != MRC_OK) return status;
    encoder_start(&p->coder.encoder, run->data + start, run->capacity - start);
    code_stages(p, 0);
    status = code_block(p, 0, samples, NULL);
    if (status != MRC_OK) return status;
    encoder_finish(&p->coder.encoder);
    *run->size = start + p->coder.encoder.size;
    return p->coder.encoder.full ? MRC_ERROR_CAPACITY : MRC_OK;
}

static int32_t predictive_encode(const mrc_block *block, int32_t effort, const int32_t *samples,
                                 size_t count, const mrc_run *run) {
    slab_head head = {effort, choose_set(count, effort), 0, 0};
    uint8_t bytes[HEAD_BYTES];
    find_range(samples, block->skipped, count, &head);
    if (head.span < 0 || effort < 0 || effort >= EFFORTS) return MRC_ERROR_ARGUMENT;
    size_t size = write_head(bytes, &head);
    if (size > run->capacity) return MRC_ERROR_CAPACITY;
    memcpy(run->data, bytes, size);
    *run->size = size;
    if (head.span == 0) return MRC_OK;
    uint64_t before = default_arithmetic();
    int32_t status = encode_run(&head, block, samples, run, size);
    restore_arithmetic(before);
    return status;
}

static int32_t decode_run(const slab_head *head, const mrc_block *block, const uint8_t *data,
                          size_t size, int32_t *samples) {
    arena a = arena_of(block->arena, block->arena_size);
    predictor *p = TAKE(&a, predictor, 1);
    if (p == NULL) return MRC_ERROR_MEMORY;
    take_predictor(p, &a, head, block);
    if (a.failed) return MRC_ERROR_MEMORY;
    int32_t status = decoder_start(&p->coder.decoder, data, size);
    if (status != MRC_OK) return status;
    code_stages(p, 1);
    if (p->coder.decoder.damaged) return MRC_ERROR_DAMAGED;
    status = code_block(p, 1, NULL, samples);
    return status == MRC_OK ? decoder_finish(&p->coder.decoder) : status;
}

static int32_t predictive_decode(const mrc_block *block, const uint8_t *data, size_t size,
                                 int32_t *samples, size_t count) {
    slab_head head;
    size_t used;
    int32_t status = read_head(data, size, &head, &used);
    if (status != MRC_OK) return status;
    if (head.span == 0) {
        for (size_t n = 0; n < count; n++) samples[n] = head.low;
        return used == size ? MRC_OK : MRC_ERROR_TRAILING;
    }
    uint64_t before = default_arithmetic();
    status = decode_run(&head, block, data + used, size - used, samples);
    restore_arithmetic(before);
    return status;
}

#endif
