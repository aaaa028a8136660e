/*
 * Fuzzes the entropy decoder: u8 octave (0, or any other for the tables with raw bits), u16 number
 * of values, their indices, and the run. Laws: every backend returns the same, and values that were
 * decoded without an error are encoded to a run that decodes to them.
 */
#include "fuzz.h"

/* Values of an input at most, and bytes of an arena beside what grows with them. */
enum { MAX_VALUES = 2000, SMALL_ARENA = 1 << 15, BYTES_OF_VALUE = 16 };

static mrc_tables table_sets[2];
static record *recorded[2];

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    int sets = 0;
    for (size_t n = 0; sets != 3; n++) {
        record *c = recorded_call("mrc_entropy_decode", n);
        int which = scalar(c, 3) != 0;
        if (sets & 1 << which) {
            free_record(c);
            free(c);
            continue;
        }
        recorded[which] = c;
        mrc_tables tables = {input(c, 0, 1), (int32_t)scalar(c, 1), (int32_t)scalar(c, 2),
                             (int32_t)scalar(c, 3), (int32_t)scalar(c, 4)};
        table_sets[which] = tables;
        sets |= 1 << which;
    }
    return 0;
}

static size_t arena_bytes(const mrc_tables *tables, const mrc_calls *calls) {
    return 8 * calls->count + 4 * (size_t)tables->rows * tables->columns + SMALL_ARENA;
}

static int32_t decode(const mrc_tables *tables, const mrc_calls *calls, const uint8_t *run,
                      size_t size, int32_t *values) {
    size_t arena_size = arena_bytes(tables, calls);
    uint8_t *arena = memory_of(arena_size, INPUT_FILL), *copy = copy_of(run, size);
    int32_t status =
        mrc_entropy_decode(tables, calls, copy, size, arena, arena_size, values);
    free(copy);
    free(arena);
    return status;
}

static void check_round_trip(const mrc_tables *tables, const mrc_calls *calls,
                             const int32_t *values) {
    size_t arena_size = arena_bytes(tables, calls);
    size_t capacity = BYTES_OF_VALUE * calls->count + 64, size = 0;
    uint8_t *arena = memory_of(arena_size, INPUT_FILL), *run = memory_of(capacity, OUTPUT_FILL);
    int32_t *again = memory_of(calls->count * 4, OUTPUT_FILL);
    int32_t status =
        mrc_entropy_encode(tables, calls, values, arena, arena_size, run, capacity, &size);
    check(status == MRC_OK, "decoded values can be encoded");
    check(decode(tables, calls, run, size, again) == MRC_OK, "an encoded run decodes");
    check(memcmp(values, again, calls->count * 4) == 0, "an encoded run decodes to its values");
    free(arena);
    free(run);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 3) return 0;
    const mrc_tables *tables = &table_sets[data[0] != 0];
    size_t count = data[1] | (size_t)data[2] << 8;
    if (count > MAX_VALUES || size < 3 + count) return 0;
    uint8_t *index = copy_of(data + 3, count);
    size_t sizes[2] = {count / 2, count - count / 2};
    mrc_calls calls = {index, sizes, 2, count};
    const uint8_t *run = data + 3 + count;
    int32_t *values = memory_of(count * 4, 0), *others = memory_of(count * 4, 0);
    mrc_use_backend(NULL);
    int32_t status = decode(tables, &calls, run, size - 3 - count, values);
    check(status != MRC_ERROR_MEMORY, "the arena is large enough");
    mrc_use_backend("scalar");
    check(status == decode(tables, &calls, run, size - 3 - count, others), "backends agree");
    if (status == MRC_OK) {
        check(memcmp(values, others, count * 4) == 0, "backends decode the same");
        check_round_trip(tables, &calls, values);
    }
    free(index);
    free(values);
    free(others);
    return 0;
}
