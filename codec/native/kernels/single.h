/* Kernels by themselves, and a model made of tensors: the functions of mrc.h that code no slab. */
#ifndef MRC_SINGLE_H
#define MRC_SINGLE_H

#include "context_model.h"

static size_t model_bytes(const mrc_tensor *tensors, size_t count, const int32_t *blocks) {
    model m;
    arena bytes = arena_of(NULL, 0);
    tensor_reader r = {tensors, count, 0, MRC_OK};
    TAKE(&bytes, model, 1);
    if (read_model(&m, &bytes, &r, blocks) != MRC_OK || bytes.failed) return 0;
    return bytes.used + ARENA_ALIGNMENT;
}

static int32_t model_init(uint8_t *memory, size_t size, const mrc_tensor *tensors, size_t count,
                          const int32_t *blocks) {
    arena a = arena_of(memory, size);
    tensor_reader r = {tensors, count, 0, MRC_OK};
    model *m = TAKE(&a, model, 1);
    if (m == NULL) return MRC_ERROR_MEMORY;
    int32_t status = read_model(m, &a, &r, blocks);
    if (status == MRC_OK && a.failed) status = MRC_ERROR_MEMORY;
    if (status != MRC_OK) m->magic = 0;
    return status;
}

static int32_t analysis(const int32_t *samples, const mrc_slab *slab, float unit,
                        float *coefficients, size_t count) {
    slab_shape s;
    int32_t status = shape_of(&s, slab->slices, slab->height, slab->width);
    if (status != MRC_OK) return status;
    if (count != s.coefficients * (size_t)s.slices) return MRC_ERROR_ARGUMENT;
    arena a = arena_of(slab->arena, slab->arena_size);
    float *work = TAKE(&a, float, s.coefficients);
    if (work == NULL) return MRC_ERROR_MEMORY;
    for (int32_t k = 0; k < s.slices; k++) {
        analyse_slice(samples + (size_t)k * s.height * s.width, &s, unit, work,
                      coefficients + (size_t)k * s.coefficients);
    }
    return MRC_OK;
}

static int32_t synthesis(const int32_t *bands, size_t count, const mrc_slab *slab, int32_t depth,
                         int32_t *samples) {
    slab_shape s;
    int32_t status = shape_of(&s, slab->slices, slab->height, slab->width);
    if (status != MRC_OK) return status;
    if (depth != 1 && depth != 2 && depth != 4 && depth != 8) return MRC_ERROR_ARGUMENT;
    int32_t band_count = (s.slices + depth - 1) / depth * depth;
    if (count != s.coefficients * (size_t)band_count) return MRC_ERROR_ARGUMENT;
    arena a = arena_of(slab->arena, slab->arena_size);
    double *v = TAKE(&a, double, s.coefficients);
    double *line = TAKE(&a, double, (size_t)s.columns * CHANNELS);
    if (v == NULL || line == NULL) return MRC_ERROR_MEMORY;
    for (int32_t k = 0; k < s.slices; k++) {
        synthesise_slice(bands, &s, k, band_count, depth, line, v);
        write_samples(v, &s, slab->step, samples + (size_t)k * s.height * s.width);
    }
    return MRC_OK;
}

static int32_t convolution(const mrc_tensor *tensors, const int16_t *in, size_t in_count,
                           int32_t height, int32_t width, uint8_t *memory, size_t size,
                           int32_t *out, size_t out_count) {
    slab_shape s = {0};
    s.rows = height;
    s.columns = width;
    tensor_reader r = {tensors, 3, 0, MRC_OK};
    layer_tensors file;
    layer l;
    int64_t inputs = tensors[0].shape[1], kernel = tensors[0].shape[2];
    if (inputs < 4 || inputs > MAX_WIDTH || inputs % 4 || (kernel != 1 && kernel != 3)) {
        return MRC_ERROR_WEIGHTS;
    }
    if (next_layer(&r, &file, -1, inputs, kernel) != MRC_OK) return r.status;
    arena a = arena_of(memory, size);
    pack_whole(&r, &l, &a, &file, NULL);
    size_t channels = (size_t)inputs, pixels = (size_t)height * (size_t)width;
    size_t row = padded_row(&s, channels), across = (size_t)width * channels;
    int16_t *padded = TAKE(&a, int16_t, padded_size(&s, channels));
    int32_t *sums = TAKE(&a, int32_t, (size_t)width * l.panels * PANEL);
    if (a.failed || padded == NULL || sums == NULL) return MRC_ERROR_MEMORY;
    if (in_count != pixels * channels || out_count != pixels * (size_t)l.outputs) {
        return MRC_ERROR_ARGUMENT;
    }
    memset(padded, 0, padded_size(&s, channels) * sizeof *padded);
    for (int32_t n = 0; n < height; n++) {
        memcpy(padded + padded_start(&s, channels) + (size_t)n * row, in + (size_t)n * across,
               across * sizeof *in);
    }
    for (int32_t y = 0; y < height; y++) {
        const int16_t *at = padded + padded_start(&s, channels) + (size_t)y * row;
        window w = kernel == 3 ? nine_taps(at, (int32_t)inputs, (ptrdiff_t)row, (ptrdiff_t)inputs)
                               : single_tap(at, (int32_t)inputs, (ptrdiff_t)inputs);
        convolve_wide(&l, &w, sums, width);
        for (int32_t x = 0; x < width; x++, out += l.outputs) {
            memcpy(out, sums + (size_t)x * l.panels * PANEL, (size_t)l.outputs * sizeof *out);
        }
    }
    return MRC_OK;
}

/* The tables and memory of some calls in an arena. */
static int32_t start_calls(const mrc_tables *tables, size_t count, arena *a, table_set *t,
                           call_memory *memory) {
    *t = (table_set){NULL, NULL, tables->rows, tables->columns, tables->octave, tables->low};
    if (t->octave < 0 || t->columns < 2 || t->columns > 256 || t->rows < 1 || t->rows > INDICES) {
        return MRC_ERROR_WEIGHTS;
    }
    int32_t status = pack_tables(t, a, tables->weights);
    *memory = take_call_memory(a, count);
    if (status == MRC_OK && (a->failed || a->start == NULL)) status = MRC_ERROR_MEMORY;
    return status;
}

static int32_t check_indices(const table_set *t, const mrc_calls *calls) {
    for (size_t i = 0; i < calls->count; i++) {
        if (t->octave == 0 && calls->index[i] >= t->rows) return MRC_ERROR_ARGUMENT;
    }
    return MRC_OK;
}

static int32_t entropy_encode(const mrc_tables *tables, const mrc_calls *calls,
                              const int32_t *values, uint8_t *memory, size_t memory_size,
                              uint8_t *data, size_t capacity, size_t *size) {
    arena a = arena_of(memory, memory_size);
    table_set t;
    call_memory call;
    int32_t status = start_calls(tables, calls->count, &a, &t, &call);
    if (status == MRC_OK) status = check_indices(&t, calls);
    if (status != MRC_OK) return status;
    range_encoder e;
    encoder_start(&e, data, capacity);
    for (size_t n = 0, at = 0; n < calls->calls; at += calls->sizes[n++]) {
        encode_call(&e, &t, calls->index + at, values + at, calls->sizes[n], call);
    }
    encoder_finish(&e);
    *size = e.size;
    return e.full ? MRC_ERROR_CAPACITY : MRC_OK;
}

static int32_t entropy_decode(const mrc_tables *tables, const mrc_calls *calls, const uint8_t *data,
                              size_t size, uint8_t *memory, size_t memory_size, int32_t *values) {
    arena a = arena_of(memory, memory_size);
    table_set t;
    call_memory call;
    int32_t status = start_calls(tables, calls->count, &a, &t, &call);
    if (status == MRC_OK) status = check_indices(&t, calls);
    range_decoder d;
    if (status == MRC_OK) status = decoder_start(&d, data, size);
    if (status != MRC_OK) return status;
    for (size_t n = 0, at = 0; n < calls->calls && !d.damaged; at += calls->sizes[n++]) {
        decode_call(&d, &t, calls->index + at, values + at, calls->sizes[n], call);
    }
    return decoder_finish(&d);
}

#endif
