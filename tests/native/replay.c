/*
 * Replays the recorded calls of a file with every backend of this CPU, and compares bit for bit.
 *
 *     replay RECORDING
 *
 * One line for each function. Exit status 1 if anything differs, 2 for a recording that can't be
 * read. Inputs, outputs and arenas lie in memory of their exact size, so that a sanitizer sees what
 * is read or written beyond them. programs.py compiles and runs it.
 */
#include "mrc.h"
#include "recorded_model.h"
#include "recording.h"

static uint8_t *model;

/* What a call returned: compared with the first scalar, and with the second if it has a size. */
typedef struct {
    int32_t status;
    int has_size;
    size_t size;
} result;

/* Scalars from n on: slices, height, width, peak, step, threads, depth. The arena is missing. */
static mrc_slab slab_of(const record *c, size_t n) {
    mrc_slab slab = {0};
    slab.slices = (int32_t)scalar(c, n);
    slab.height = (int32_t)scalar(c, n + 1);
    slab.width = (int32_t)scalar(c, n + 2);
    slab.peak = (int32_t)scalar(c, n + 3);
    slab.step = scalar(c, n + 4);
    slab.threads = (int32_t)scalar(c, n + 5);
    slab.depth = (int32_t)scalar(c, n + 6);
    return slab;
}

static void take_arena(mrc_slab *slab, size_t size) {
    slab->arena = memory_of(size, INPUT_FILL);
    slab->arena_size = size;
}

static result replay_model_init(const record *c) {
    result r = {0};
    free(model);
    model = model_of(c, &r.status);
    return r;
}

static result replay_depth_of_run(const record *c) {
    result r = {0};
    r.status = mrc_depth_of_run(model, input(c, 0, 1), c->inputs[0].count);
    return r;
}

/* Do all tasks of a slab, those of a phase backwards, each in the memory of another thread. */
static int32_t do_tasks(const mrc_slab *slab) {
    int32_t status, tasks;
    while ((status = mrc_next_tasks(slab->arena, &tasks)) == MRC_OK && tasks > 0) {
        while (tasks-- > 0) mrc_run_task(slab->arena, tasks, tasks % slab->threads);
    }
    return status;
}

/* Scalars 8: the cancel flag. */
static result replay_start_decoding(const record *c) {
    result r = {0};
    volatile int32_t cancel = (int32_t)scalar(c, 8);
    mrc_slab slab = slab_of(c, 1);
    take_arena(&slab, mrc_slab_bytes(model, &slab, 0));
    slab.cancel = &cancel;
    r.status = mrc_start_decoding(model, &slab, input(c, 0, 1), c->inputs[0].count,
                                  output(c, 0, 4), c->outputs[0].count);
    if (r.status == MRC_OK) r.status = do_tasks(&slab);
    free(slab.arena);
    return r;
}

/* Scalars 1: the size of the run; 9: the cancel flag; 10: 1 with a search, of depth 11. */
static result replay_start_encoding(const record *c) {
    result r = {.has_size = 1};
    volatile int32_t cancel = (int32_t)scalar(c, 9);
    mrc_slab slab = slab_of(c, 2);
    take_arena(&slab, mrc_slab_bytes(model, &slab, 1));
    slab.cancel = &cancel;
    mrc_search search = {.depth = (int32_t)scalar(c, 11), .count = c->outputs[2].count};
    search.bands = output(c, 2, 4);
    if (c->inputs[1].count) search.targets = input(c, 1, 4);
    r.status = mrc_start_encoding(model, &slab, input(c, 0, 4), c->inputs[0].count,
                                  scalar(c, 10) ? &search : NULL, output(c, 0, 1),
                                  c->outputs[0].count, &r.size, output(c, 1, 4));
    if (r.status == MRC_OK) r.status = do_tasks(&slab);
    free(slab.arena);
    return r;
}

/* Scalars 8: bytes of the arena. Input 1: unit. */
static result replay_analysis(const record *c) {
    result r = {0};
    float unit;
    mrc_slab slab = slab_of(c, 1);
    take_arena(&slab, (size_t)scalar(c, 8));
    memcpy(&unit, input(c, 1, 4), 4);
    r.status = mrc_analysis(input(c, 0, 4), &slab, unit, output(c, 0, 4), c->outputs[0].count);
    free(slab.arena);
    return r;
}

/* Scalars 8: bytes of the arena; 9: depth. */
static result replay_synthesis(const record *c) {
    result r = {0};
    mrc_slab slab = slab_of(c, 1);
    take_arena(&slab, (size_t)scalar(c, 8));
    r.status = mrc_synthesis(input(c, 0, 4), c->inputs[0].count, &slab, (int32_t)scalar(c, 9),
                             output(c, 0, 4), c->outputs[0].count);
    free(slab.arena);
    return r;
}

/* Scalars 1, 2: height, width; 3: bytes of the arena. Input 1: activations; from 2: tensors. */
static result replay_convolution(const record *c) {
    result r = {0};
    size_t count, size = (size_t)scalar(c, 3);
    mrc_tensor *tensors = tensors_of(c, 2, &count);
    uint8_t *arena = memory_of(size, INPUT_FILL);
    r.status = mrc_convolution(tensors, input(c, 1, 2), c->inputs[1].count, (int32_t)scalar(c, 1),
                               (int32_t)scalar(c, 2), arena, size, output(c, 0, 4),
                               c->outputs[0].count);
    free(arena);
    free(tensors);
    return r;
}

/* Scalars from n on: rows, columns, octave, low. Input 0: weights. */
static mrc_tables tables_of(const record *c, size_t n) {
    mrc_tables tables = {input(c, 0, 1), (int32_t)scalar(c, n), (int32_t)scalar(c, n + 1),
                         (int32_t)scalar(c, n + 2), (int32_t)scalar(c, n + 3)};
    return tables;
}

/* Input 1: indices; 2: sizes. */
static mrc_calls calls_of(const record *c, size_t **sizes) {
    const int64_t *recorded = input(c, 2, 8);
    *sizes = memory_of(c->inputs[2].count * sizeof **sizes, 0);
    for (size_t n = 0; n < c->inputs[2].count; n++) (*sizes)[n] = (size_t)recorded[n];
    mrc_calls calls = {input(c, 1, 1), *sizes, c->inputs[2].count, c->inputs[1].count};
    return calls;
}

/* Scalars 1: the size of the run; 2 to 5: tables; 6: bytes of the arena. */
static result replay_entropy_encode(const record *c) {
    result r = {.has_size = 1};
    size_t *sizes, size = (size_t)scalar(c, 6);
    mrc_tables tables = tables_of(c, 2);
    mrc_calls calls = calls_of(c, &sizes);
    uint8_t *arena = memory_of(size, INPUT_FILL);
    r.status = mrc_entropy_encode(&tables, &calls, input(c, 3, 4), arena, size, output(c, 0, 1),
                                  c->outputs[0].count, &r.size);
    free(arena);
    free(sizes);
    return r;
}

/* Scalars 1 to 4: tables; 5: bytes of the arena. Input 3: the run. */
static result replay_entropy_decode(const record *c) {
    result r = {0};
    size_t *sizes, size = (size_t)scalar(c, 5);
    mrc_tables tables = tables_of(c, 1);
    mrc_calls calls = calls_of(c, &sizes);
    uint8_t *arena = memory_of(size, INPUT_FILL);
    r.status = mrc_entropy_decode(&tables, &calls, input(c, 3, 1), c->inputs[3].count, arena, size,
                                  output(c, 0, 4));
    free(arena);
    free(sizes);
    return r;
}

/* Scalars 1: the size of the run; 9: the cancel flag. */
static result replay_encode_label_map(const record *c) {
    result r = {.has_size = 1};
    volatile int32_t cancel = (int32_t)scalar(c, 9);
    mrc_slab slab = slab_of(c, 2);
    take_arena(&slab, mrc_label_map_bytes(&slab, 1));
    slab.cancel = &cancel;
    r.status = mrc_encode_label_map(&slab, input(c, 0, 4), c->inputs[0].count, output(c, 0, 1),
                                    c->outputs[0].count, &r.size);
    free(slab.arena);
    return r;
}

/* Scalars 8: the cancel flag. */
static result replay_decode_label_map(const record *c) {
    result r = {0};
    volatile int32_t cancel = (int32_t)scalar(c, 8);
    mrc_slab slab = slab_of(c, 1);
    take_arena(&slab, mrc_label_map_bytes(&slab, 0));
    slab.cancel = &cancel;
    r.status = mrc_decode_label_map(&slab, input(c, 0, 1), c->inputs[0].count, output(c, 0, 4),
                                    c->outputs[0].count);
    free(slab.arena);
    return r;
}

/* Scalars from n on: bytes of a value, cell, grid, mantissa. Input `which`: special values. */
static mrc_float_cells cells_of(const record *c, size_t n, size_t which) {
    mrc_float_cells cells = {.bytes = (int32_t)scalar(c, n), .cell = (int32_t)scalar(c, n + 1)};
    cells.grid = (int32_t)scalar(c, n + 2);
    cells.mantissa = (int32_t)scalar(c, n + 3);
    cells.specials = input(c, which, 8);
    cells.special_count = (int32_t)c->inputs[which].count;
    return cells;
}

/* Values of a recording, which are little-endian, in native order; and back. */
static void turn(uint8_t *values, size_t count, size_t element) {
    uint8_t *copy = memory_of(count * element + 1, 0);
    memcpy(copy, values, count * element);
    to_native(values, copy, element, count);
    free(copy);
}

/* Scalars 1 to 4: cells; 5: number of values. Input 0: values. */
static result replay_measure_floats(const record *c) {
    result r = {0};
    mrc_float_cells cells = cells_of(c, 1, 1);
    size_t count = (size_t)scalar(c, 5);
    mrc_float_range range = {0};
    uint8_t *values = input(c, 0, 1);
    turn(values, count, (size_t)cells.bytes);
    r.status = mrc_measure_floats(&cells, values, count, &range);
    double *numbers = output(c, 0, 8);
    int64_t *integers = output(c, 1, 8);
    numbers[0] = range.low, numbers[1] = range.high, numbers[2] = range.steps;
    integers[0] = (int64_t)range.others, integers[1] = range.grid;
    integers[2] = range.mantissa, integers[3] = (int64_t)range.count;
    return r;
}

/* Scalars 1: the size of the bits; 2 to 5: cells; 6: number of values. Input 0: values. */
static result replay_split_floats(const record *c) {
    result r = {.has_size = 1};
    mrc_float_cells cells = cells_of(c, 2, 1);
    size_t count = (size_t)scalar(c, 6);
    uint8_t *values = input(c, 0, 1);
    turn(values, count, (size_t)cells.bytes);
    r.status = mrc_split_floats(&cells, values, count, output(c, 0, 1), output(c, 1, 4),
                                output(c, 2, 1), c->outputs[2].count, &r.size);
    return r;
}

/* Scalars 1 to 4: cells; 5: number of values. Inputs: classes, samples, bits. */
static result replay_join_floats(const record *c) {
    result r = {0};
    mrc_float_cells cells = cells_of(c, 1, 3);
    size_t count = (size_t)scalar(c, 5);
    uint8_t *values = output(c, 0, 1);
    r.status = mrc_join_floats(&cells, input(c, 0, 1), input(c, 1, 4), count, input(c, 2, 1),
                               c->inputs[2].count, values);
    turn(values, count, (size_t)cells.bytes);
    return r;
}

static struct {
    const char *name;
    result (*replay)(const record *);
    int calls, faults;
} functions[] = {
    {"mrc_model_init", replay_model_init, 0, 0},
    {"mrc_depth_of_run", replay_depth_of_run, 0, 0},
    {"mrc_start_decoding", replay_start_decoding, 0, 0},
    {"mrc_start_encoding", replay_start_encoding, 0, 0},
    {"mrc_analysis", replay_analysis, 0, 0},
    {"mrc_synthesis", replay_synthesis, 0, 0},
    {"mrc_convolution", replay_convolution, 0, 0},
    {"mrc_entropy_encode", replay_entropy_encode, 0, 0},
    {"mrc_entropy_decode", replay_entropy_decode, 0, 0},
    {"mrc_measure_floats", replay_measure_floats, 0, 0},
    {"mrc_split_floats", replay_split_floats, 0, 0},
    {"mrc_join_floats", replay_join_floats, 0, 0},
    {"mrc_encode_label_map", replay_encode_label_map, 0, 0},
    {"mrc_decode_label_map", replay_decode_label_map, 0, 0},
};
enum { FUNCTIONS = sizeof functions / sizeof *functions };

static int same_number(size_t n, const char *what, int64_t expected, int64_t actual) {
    if (expected == actual) return 1;
    printf("record %zu: expected %s %lld, got %lld\n", n, what, (long long)expected,
           (long long)actual);
    return 0;
}

static int same_output(size_t n, size_t which, const array *a, size_t count) {
    uint8_t *expected = memory_of(count * a->element, 0);
    to_native(expected, a->recorded, a->element, count);
    size_t at = 0;
    while (at < count * a->element && expected[at] == ((const uint8_t *)a->data)[at]) at++;
    free(expected);
    if (at == count * a->element) return 1;
    printf("record %zu: output %zu differs at element %zu of %zu\n", n, which, at / a->element,
           count);
    return 0;
}

/* Replay record n. */
static void replay(size_t n, record *c) {
    size_t f = 0;
    while (f < FUNCTIONS && strcmp(functions[f].name, c->name) != 0) f++;
    if (f == FUNCTIONS) stop("replay.c doesn't know ", c->name);
    result r = functions[f].replay(c);
    int same = same_number(n, "status", scalar(c, 0), r.status);
    if (same && r.has_size && r.status == MRC_OK) {
        same = same_number(n, "size", scalar(c, 1), (int64_t)r.size);
    }
    for (size_t i = 0; i < c->output_count && same; i++) {
        same = same_output(n, i, &c->outputs[i], c->compared[i]);
    }
    functions[f].calls++;
    functions[f].faults += !same;
}

int main(int argc, char **argv) {
    static const char *const backends[] = {"scalar", "neon", "avx2", "avx512"};
    static record c;
    if (argc != 2) stop("usage: replay RECORDING", "");
    size_t size;
    uint8_t *bytes = read_file(argv[1], &size);
    int faults = 0;
    for (size_t b = 0; b < sizeof backends / sizeof *backends; b++) {
        if (mrc_use_backend(backends[b]) != MRC_OK) continue;
        reader r = {bytes, bytes + size};
        size_t count = read_head(&r);
        for (size_t n = 0; n < count; n++) {
            read_record(&r, &c);
            replay(n, &c);
            free_record(&c);
        }
        for (size_t f = 0; f < FUNCTIONS; f++) {
            if (!functions[f].calls) stop("the recording has no call of ", functions[f].name);
            printf("%s, %s: %d calls, %d differ\n", mrc_backend(), functions[f].name,
                   functions[f].calls, functions[f].faults);
            faults += functions[f].faults;
            functions[f].calls = functions[f].faults = 0;
        }
    }
    free(model);
    free(bytes);
    return faults ? 1 : 0;
}
