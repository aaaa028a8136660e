/*
 * The table of kernels: core.c is compiled once for each backend, and each time defines one table.
 * mrc.c picks the table of the CPU.
 */
#ifndef MRC_KERNELS_H
#define MRC_KERNELS_H

#include "mrc.h"

/* Where a run is written. */
typedef struct {
    uint8_t *data;
    size_t capacity;
    size_t *size;
} mrc_run;

/* Functions as in mrc.h, whose arguments mrc.c has checked. */
typedef struct mrc_kernels {
    const char *name; /* of the backend */
    size_t (*model_bytes)(const mrc_tensor *, size_t, const int32_t *);
    int32_t (*model_init)(uint8_t *, size_t, const mrc_tensor *, size_t, const int32_t *);
    size_t (*slab_bytes)(const uint8_t *, const mrc_slab *, int32_t);
    int32_t (*depth_of_run)(const uint8_t *, const uint8_t *, size_t);
    int32_t (*start_decoding)(const uint8_t *, const mrc_slab *, const uint8_t *, size_t,
                              int32_t *);
    int32_t (*start_encoding)(const uint8_t *, const mrc_slab *, const int32_t *,
                              const mrc_search *, const mrc_run *, int32_t *);
    int32_t (*next_tasks)(uint8_t *, int32_t *);
    void (*run_task)(uint8_t *, int32_t, int32_t);
    const char *(*phase)(uint8_t *);
    size_t (*predictive_bytes)(const mrc_block *, int32_t);
    int32_t (*predictive_encode)(const mrc_block *, int32_t, const int32_t *, size_t,
                                 const mrc_run *);
    int32_t (*predictive_decode)(const mrc_block *, const uint8_t *, size_t, int32_t *, size_t);
    int32_t (*analysis)(const int32_t *, const mrc_slab *, float, float *, size_t);
    int32_t (*synthesis)(const int32_t *, size_t, const mrc_slab *, int32_t, int32_t *);
    int32_t (*convolution)(const mrc_tensor *, const int16_t *, size_t, int32_t, int32_t, uint8_t *,
                           size_t, int32_t *, size_t);
    int32_t (*entropy_encode)(const mrc_tables *, const mrc_calls *, const int32_t *, uint8_t *,
                              size_t, uint8_t *, size_t, size_t *);
    int32_t (*entropy_decode)(const mrc_tables *, const mrc_calls *, const uint8_t *, size_t,
                              uint8_t *, size_t, int32_t *);
    size_t (*label_map_bytes)(const mrc_slab *, int32_t);
    int32_t (*encode_label_map)(const mrc_slab *, const int32_t *, size_t, const mrc_run *);
    int32_t (*decode_label_map)(const mrc_slab *, const uint8_t *, size_t, int32_t *);
    int32_t (*measure_floats)(const mrc_float_cells *, const uint8_t *, size_t, mrc_float_range *);
    int32_t (*split_floats)(const mrc_float_cells *, const uint8_t *, size_t, uint8_t *, int32_t *,
                            const mrc_run *);
    int32_t (*join_floats)(const mrc_float_cells *, const uint8_t *, const int32_t *, size_t,
                           const uint8_t *, size_t, uint8_t *);
} mrc_kernels;

extern const mrc_kernels mrc_kernels_scalar;
#if defined(__x86_64__)
extern const mrc_kernels mrc_kernels_avx2;
extern const mrc_kernels mrc_kernels_avx512;
#elif defined(__aarch64__)
extern const mrc_kernels mrc_kernels_neon;
#endif

#endif
