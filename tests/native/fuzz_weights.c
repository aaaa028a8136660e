/*
 * Fuzzes what reads a weights file: changes of the default model's tensors, 8 bytes each: u8 tensor,
 * u8 what is changed (0 ... 3 a length, 4 the type, 5 the number of tensors, 6 blocks of a network,
 * else an element), u32 which element, i16 its value. Laws: backends agree whether the tensors fit,
 * and a model that was accepted decodes a recorded run, or refuses it.
 */
#include "fuzz.h"

enum { CHANGE = 8, MAX_CHANGES = 16 };

static record *model_call, *slab_call;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    model_call = recorded_call("mrc_model_init", 0);
    slab_call = recorded_call("mrc_start_decoding", 0);
    return 0;
}

static size_t bytes_of(const mrc_tensor *t) {
    static const size_t element[] = {0, 1, 1, 2, 4};
    size_t bytes = element[t->type];
    for (int axis = 0; axis < 4; axis++) bytes *= (size_t)t->shape[axis];
    return bytes;
}

/* Change a tensor, whose data is a copy of its exact size. */
static void change(mrc_tensor *tensors, size_t *count, int32_t *blocks, const uint8_t *data) {
    mrc_tensor *t = &tensors[data[0] % *count];
    uint32_t which = data[2] | data[3] << 8 | data[4] << 16 | (uint32_t)data[5] << 24;
    int16_t value = (int16_t)(data[6] | data[7] << 8);
    size_t bytes = bytes_of(t);
    if (data[1] < 4) {
        int64_t length = t->shape[data[1]];
        t->shape[data[1]] = value > 0 && value <= length ? value : length;
    } else if (data[1] == 4) {
        t->type = value & 1 && t->type <= 2 ? 3 - t->type : t->type;
    } else if (data[1] == 5) {
        *count = value > 0 && (size_t)value < *count ? (size_t)value : *count;
    } else if (data[1] == 6) {
        blocks[which % 2] = value;
    } else if (bytes > 0) {
        ((uint8_t *)(uintptr_t)t->data)[which % bytes] = (uint8_t)value;
    }
}

/* Decode the recorded run by a model. */
static void decode(const uint8_t *model) {
    const record *c = slab_call;
    const uint8_t *run = input(c, 0, 1);
    size_t size = c->inputs[0].count, count = c->outputs[0].count;
    mrc_slab slab = {.slices = (int32_t)scalar(c, 1), .height = (int32_t)scalar(c, 2)};
    slab.width = (int32_t)scalar(c, 3);
    slab.peak = (int32_t)scalar(c, 4);
    slab.step = scalar(c, 5);
    slab.threads = 1;
    slab.depth = mrc_depth_of_run(model, run, size);
    slab.arena_size = mrc_slab_bytes(model, &slab, 0);
    slab.arena = memory_of(slab.arena_size, INPUT_FILL);
    int32_t *samples = memory_of(count * 4, OUTPUT_FILL);
    int32_t tasks, status = mrc_start_decoding(model, &slab, run, size, samples, count);
    while (status == MRC_OK && (status = mrc_next_tasks(slab.arena, &tasks)) == MRC_OK && tasks) {
        while (tasks-- > 0) mrc_run_task(slab.arena, tasks, 0);
    }
    free(samples);
    free(slab.arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const backends[] = {"scalar", NULL};
    size_t all, count;
    mrc_tensor *tensors = tensors_of(model_call, 2, &all);
    for (size_t n = 0; n < all; n++) {
        tensors[n].data = copy_of(tensors[n].data, model_call->inputs[2 + n].count);
    }
    int32_t blocks[2], status[2];
    memcpy(blocks, input(model_call, 1, 4), sizeof blocks);
    count = all;
    for (size_t n = 0; n < MAX_CHANGES && (n + 1) * CHANGE <= size; n++) {
        change(tensors, &count, blocks, data + n * CHANGE);
    }
    for (int b = 0; b < 2; b++) {
        mrc_use_backend(backends[b]);
        size_t bytes = mrc_model_bytes(tensors, count, blocks);
        uint8_t *model = memory_of(bytes, OUTPUT_FILL);
        status[b] = bytes ? mrc_model_init(model, bytes, tensors, count, blocks)
                          : MRC_ERROR_WEIGHTS;
        if (status[b] == MRC_OK && b == 1) decode(model);
        free(model);
    }
    check(status[0] == status[1], "backends agree whether the tensors fit");
    for (size_t n = 0; n < all; n++) free((void *)(uintptr_t)tensors[n].data);
    free(tensors);
    return 0;
}
