/* The tensors of a recorded mrc_model_init, and the model made of them. */
#ifndef RECORDED_MODEL_H
#define RECORDED_MODEL_H

#include "mrc.h"
#include "recording.h"

/* Input 0: of each tensor its type and four lengths; input 1: blocks; then the tensors. */
static mrc_tensor *tensors_of(const record *c, size_t first, size_t *count) {
    const int64_t *shapes = input(c, 0, 8);
    *count = c->inputs[0].count / 5;
    mrc_tensor *tensors = memory_of(*count * sizeof *tensors, 0);
    for (size_t n = 0; n < *count; n++) {
        tensors[n].type = (int32_t)shapes[5 * n];
        memcpy(tensors[n].shape, shapes + 5 * n + 1, sizeof tensors[n].shape);
        tensors[n].data = input(c, first + n, 1);
    }
    return tensors;
}

/* A model in memory of its exact size, and the status. */
static uint8_t *model_of(const record *c, int32_t *status) {
    size_t count;
    mrc_tensor *tensors = tensors_of(c, 2, &count);
    const int32_t *blocks = input(c, 1, 4);
    size_t size = mrc_model_bytes(tensors, count, blocks);
    uint8_t *model = memory_of(size, OUTPUT_FILL);
    *status = size ? mrc_model_init(model, size, tensors, count, blocks) : MRC_ERROR_WEIGHTS;
    free(tensors);
    return model;
}

#endif
