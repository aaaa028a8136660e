/*
 * The table of kernels: core.c is compiled once for each backend, and each time defines one table.
 * mrc.c picks the table of the CPU.
 */
#ifndef MRC_KERNELS_H
#define MRC_KERNELS_H

#include <stdint.h>

typedef struct mrc_kernels {
    const char *name; /* of the backend */
} mrc_kernels;

extern const mrc_kernels mrc_kernels_scalar;
#if defined(__x86_64__)
extern const mrc_kernels mrc_kernels_avx2;
extern const mrc_kernels mrc_kernels_avx512;
#elif defined(__aarch64__)
extern const mrc_kernels mrc_kernels_neon;
#endif

#endif
