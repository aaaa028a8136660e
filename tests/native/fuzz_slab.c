/*
 * Fuzzes the slab decoder of the default model: u8 slices - 1, u8 height - 1, u8 width - 1, u16
 * peak, 5 bytes of the step, and the run. A byte of the height of 128 or more leaves room for depth
 * 1 only, whatever the run says; one of the width takes three threads; if 8 divides the peak the
 * scalar backend decodes too. Law: it returns the same.
 */
#include "fuzz.h"

/* Slices and side of a slab at most. */
enum { MAX_SLICES = 20, MAX_SIDE = 41, HEAD = 10 };

static const char *const backends[2] = {NULL, "scalar"};
static uint8_t *models[2];
static record *recorded;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    recorded = recorded_call("mrc_model_init", 0);
    for (int n = 0; n < 2; n++) {
        int32_t status;
        mrc_use_backend(backends[n]);
        models[n] = model_of(recorded, &status);
        check(status == MRC_OK, "the recorded model can be made");
    }
    return 0;
}

static int32_t decode(int n, mrc_slab slab, const uint8_t *run, size_t size, int32_t *samples,
                      size_t count) {
    mrc_use_backend(backends[n]);
    uint8_t *copy = copy_of(run, size);
    if (slab.depth == 0) slab.depth = mrc_depth_of_run(models[n], copy, size);
    slab.arena_size = mrc_slab_bytes(models[n], &slab, 0);
    slab.arena = memory_of(slab.arena_size, INPUT_FILL);
    int32_t tasks, status = mrc_start_decoding(models[n], &slab, copy, size, samples, count);
    while (status == MRC_OK && (status = mrc_next_tasks(slab.arena, &tasks)) == MRC_OK && tasks) {
        while (tasks-- > 0) mrc_run_task(slab.arena, tasks, tasks % slab.threads);
    }
    free(copy);
    free(slab.arena);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < HEAD) return 0;
    mrc_slab slab = {.slices = data[0] % MAX_SLICES + 1, .height = data[1] % MAX_SIDE + 1};
    slab.width = data[2] % MAX_SIDE + 1;
    slab.depth = data[1] >> 7;
    slab.threads = data[2] >> 7 ? 3 : 1;
    slab.peak = data[3] | data[4] << 8;
    for (int n = 0; n < 5; n++) slab.step |= (int64_t)data[5 + n] << 8 * n;
    size_t count = (size_t)slab.slices * slab.height * slab.width;
    int32_t *samples[2] = {NULL, NULL}, status[2];
    int both = data[3] % 8 == 0; /* The scalar backend is slow. */
    for (int n = 0; n <= both; n++) {
        samples[n] = memory_of(count * 4, OUTPUT_FILL);
        status[n] = decode(n, slab, data + HEAD, size - HEAD, samples[n], count);
    }
    if (both) {
        check(status[0] == status[1], "backends agree");
        check(status[0] || !memcmp(samples[0], samples[1], count * 4), "backends decode the same");
    }
    free(samples[0]);
    free(samples[1]);
    return 0;
}
