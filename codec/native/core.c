/*
 * All kernels, compiled once for each backend: -DMRC_BACKEND=avx2 names the backend, and exactly
 * one of MRC_SCALAR, MRC_AVX2, MRC_AVX512 and MRC_NEON is 1. Kernels choose their intrinsics by
 * these, never by macros of the compiler: on aarch64 the scalar backend has __ARM_NEON too.
 */
#include "kernels.h"

#define MRC_JOIN_(a, b) a##b
#define MRC_JOIN(a, b) MRC_JOIN_(a, b)
#define MRC_STRING_(a) #a
#define MRC_STRING(a) MRC_STRING_(a)

#define MRC_NUMBER_scalar 1
#define MRC_NUMBER_avx2 2
#define MRC_NUMBER_avx512 3
#define MRC_NUMBER_neon 4
#define MRC_SCALAR (MRC_JOIN(MRC_NUMBER_, MRC_BACKEND) == MRC_NUMBER_scalar)
#define MRC_AVX2 (MRC_JOIN(MRC_NUMBER_, MRC_BACKEND) == MRC_NUMBER_avx2)
#define MRC_AVX512 (MRC_JOIN(MRC_NUMBER_, MRC_BACKEND) == MRC_NUMBER_avx512)
#define MRC_NEON (MRC_JOIN(MRC_NUMBER_, MRC_BACKEND) == MRC_NUMBER_neon)

#if !(MRC_SCALAR || MRC_AVX2 || MRC_AVX512 || MRC_NEON)
#error "MRC_BACKEND must be scalar, avx2, avx512 or neon"
#endif
/* A library that uses what the building machine has would end with an illegal instruction on
 * another one. */
#if MRC_SCALAR && (defined(__AVX__) || defined(__FMA__))
#error "the compiler is set to one CPU (-march=native?): set it to the baseline of x86-64"
#endif
#if MRC_AVX2 && (defined(__FMA__) || defined(__AVX512F__))
#error "the compiler is set to one CPU (-march=native?): set it to the baseline of x86-64"
#endif

#include "kernels/float_cells.h"
#include "kernels/label_map.h"
#include "kernels/predictive.h"
#include "kernels/single.h"
#include "kernels/slab.h"

const mrc_kernels MRC_JOIN(mrc_kernels_, MRC_BACKEND) = {
    .name = MRC_STRING(MRC_BACKEND),
    .model_bytes = model_bytes,
    .model_init = model_init,
    .slab_bytes = slab_bytes,
    .depth_of_run = depth_of_run,
    .start_decoding = start_decoding,
    .start_encoding = start_encoding,
    .next_tasks = next_tasks,
    .run_task = run_task,
    .phase = phase_name,
    .predictive_bytes = predictive_bytes,
    .predictive_encode = predictive_encode,
    .predictive_decode = predictive_decode,
    .analysis = analysis,
    .synthesis = synthesis,
    .convolution = convolution,
    .entropy_encode = entropy_encode,
    .entropy_decode = entropy_decode,
    .measure_floats = measure_floats,
    .split_floats = split_floats,
    .join_floats = join_floats,
    .label_map_bytes = label_map_bytes,
    .encode_label_map = encode_label_map,
    .decode_label_map = decode_label_map,
};
