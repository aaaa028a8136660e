/*
 * Fuzzes the decoder of label maps: u8 slices - 1, u8 height - 1, u8 width - 1, u16 peak, and the
 * run. Laws: every backend returns the same, and a map that was decoded without an error is encoded
 * to a run that decodes to it.
 */
#include "fuzz.h"

/* Slices and side of a map at most. */
enum { MAX_SLICES = 6, MAX_SIDE = 40, HEAD = 5, SMALL_RUN = 1 << 20, BYTES_OF_VOXEL = 24 };

static int32_t decode(mrc_slab slab, const uint8_t *run, size_t size, int32_t *samples,
                      size_t count) {
    uint8_t *copy = copy_of(run, size);
    slab.arena_size = mrc_label_map_bytes(&slab, 0);
    slab.arena = memory_of(slab.arena_size, INPUT_FILL);
    int32_t status = mrc_decode_label_map(&slab, copy, size, samples, count);
    free(copy);
    free(slab.arena);
    return status;
}

static void check_round_trip(mrc_slab slab, const int32_t *samples, size_t count) {
    size_t capacity = BYTES_OF_VOXEL * count + SMALL_RUN, size = 0;
    uint8_t *run = memory_of(capacity, OUTPUT_FILL);
    int32_t *again = memory_of(count * 4, OUTPUT_FILL);
    slab.arena_size = mrc_label_map_bytes(&slab, 1);
    slab.arena = memory_of(slab.arena_size, INPUT_FILL);
    int32_t status = mrc_encode_label_map(&slab, samples, count, run, capacity, &size);
    check(status == MRC_OK, "a decoded map can be encoded");
    check(decode(slab, run, size, again, count) == MRC_OK, "an encoded run decodes");
    check(memcmp(samples, again, count * 4) == 0, "an encoded run decodes to its map");
    free(slab.arena);
    free(run);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < HEAD) return 0;
    mrc_slab slab = {.slices = data[0] % MAX_SLICES + 1, .height = data[1] % MAX_SIDE + 1};
    slab.width = data[2] % MAX_SIDE + 1;
    slab.peak = data[3] | data[4] << 8;
    size_t count = (size_t)slab.slices * slab.height * slab.width;
    int32_t *samples = memory_of(count * 4, OUTPUT_FILL), *others = memory_of(count * 4, 0);
    mrc_use_backend(NULL);
    int32_t status = decode(slab, data + HEAD, size - HEAD, samples, count);
    check(status != MRC_ERROR_MEMORY, "the arena is large enough");
    mrc_use_backend("scalar");
    check(status == decode(slab, data + HEAD, size - HEAD, others, count), "backends agree");
    if (status == MRC_OK) {
        check(memcmp(samples, others, count * 4) == 0, "backends decode the same");
        check_round_trip(slab, samples, count);
    }
    free(samples);
    free(others);
    return 0;
}
