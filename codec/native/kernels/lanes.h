/*
 * Eight numbers at once, the same on every machine: what is done lane by lane has no order, and
 * sums of lanes have one tree. Compilers split these vectors where registers are shorter.
 */
#ifndef MRC_LANES_H
#define MRC_LANES_H

#include "common.h"

#if MRC_AVX512 || MRC_AVX2
#include <immintrin.h>
#endif

#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#error "floats must be computed as floats"
#endif

enum { LANES = 8 };

typedef float floats8 __attribute__((vector_size(32)));
typedef int32_t ints8 __attribute__((vector_size(32)));

MRC_INLINE floats8 load8(const float *from) {
    floats8 v;
    memcpy(&v, from, sizeof v);
    return v;
}

MRC_INLINE void store8(float *to, floats8 v) { memcpy(to, &v, sizeof v); }

MRC_INLINE ints8 load_ints8(const int32_t *from) {
    ints8 v;
    memcpy(&v, from, sizeof v);
    return v;
}

MRC_INLINE void store_ints8(int32_t *to, ints8 v) { memcpy(to, &v, sizeof v); }

/* Four numbers and four other ones. */
MRC_INLINE floats8 load4_4(const float *low, const float *high) {
    floats8 v;
    memcpy(&v, low, sizeof v / 2);
    memcpy((char *)&v + sizeof v / 2, high, sizeof v / 2);
    return v;
}

MRC_INLINE floats8 all8(float v) { return (floats8){v, v, v, v, v, v, v, v}; }

/* a < b ? a : b, lane by lane. */
MRC_INLINE floats8 min8(floats8 a, floats8 b) {
#if MRC_AVX512 || MRC_AVX2
    return (floats8)_mm256_min_ps((__m256)a, (__m256)b);
#else
    ints8 smaller = a < b;
    return (floats8)((smaller & (ints8)a) | (~smaller & (ints8)b));
#endif
}

/* a > b ? a : b, lane by lane. */
MRC_INLINE floats8 max8(floats8 a, floats8 b) {
#if MRC_AVX512 || MRC_AVX2
    return (floats8)_mm256_max_ps((__m256)a, (__m256)b);
#else
    ints8 larger = a > b;
    return (floats8)((larger & (ints8)a) | (~larger & (ints8)b));
#endif
}

/* The sum of all lanes: ((0+4) + (2+6)) + ((1+5) + (3+7)). */
MRC_INLINE float sum8(floats8 v) {
#if MRC_AVX512 || MRC_AVX2
    __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v),
                             _mm256_extractf128_ps((__m256)v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
#endif
}

MRC_INLINE floats8 to_floats8(ints8 v) {
#if MRC_AVX512 || MRC_AVX2
    return (floats8)_mm256_cvtepi32_ps((__m256i)v);
#else
    floats8 out;
    for (int32_t n = 0; n < LANES; n++) out[n] = (float)v[n];
    return out;
#endif
}

/* Numbers without their fractions; they must fit. */
MRC_INLINE ints8 to_ints8(floats8 v) {
#if MRC_AVX512 || MRC_AVX2
    return (ints8)_mm256_cvttps_epi32((__m256)v);
#else
    ints8 out;
    for (int32_t n = 0; n < LANES; n++) out[n] = (int32_t)v[n];
    return out;
#endif
}

/* How many lanes of a are at most b. */
MRC_INLINE int32_t count_up_to8(ints8 a, int32_t b) {
#if MRC_AVX512 || MRC_AVX2
    __m256i larger = _mm256_cmpgt_epi32((__m256i)a, _mm256_set1_epi32(b));
    uint32_t mask = (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(larger));
    return LANES - __builtin_popcount(mask);
#else
    int32_t count = 0;
    for (int32_t n = 0; n < LANES; n++) count += a[n] <= b;
    return count;
#endif
}

/* -- scalars ----------------------------------------------------------------------------------- */

MRC_INLINE float minf(float a, float b) { return a < b ? a : b; }
MRC_INLINE float maxf(float a, float b) { return a > b ? a : b; }
MRC_INLINE float clampf(float v, float low, float high) { return minf(maxf(v, low), high); }
MRC_INLINE float magnitude(float v) { return v < 0 ? -v : v; }

MRC_INLINE int32_t bits_of(float v) {
    int32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

/*
 * A positive number on a scale of 2^detail steps an octave, from 2^low on: 0 ... count - 1. Within
 * an octave steps are even.
 */
MRC_INLINE int32_t scale_step(float v, int32_t detail, int32_t low, int32_t count) {
    int32_t step = (bits_of(v) >> (23 - detail)) - ((127 + low) << detail);
    return clamp32(step, 0, count - 1);
}

/*
 * Floats as IEEE 754 wants them: rounded to the nearest, small ones kept. A host may have set
 * another mode; what this returns goes to restore_arithmetic.
 */
static uint64_t default_arithmetic(void) {
#if defined(__x86_64__)
    uint32_t before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(0x1f80);
    return before;
#elif defined(__aarch64__)
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)0));
    return before;
#else
    return 0;
#endif
}

static void restore_arithmetic(uint64_t before) {
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr((uint32_t)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" ::"r"(before));
#else
    (void)before;
#endif
}

#endif
