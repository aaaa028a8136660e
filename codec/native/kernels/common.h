/* What all kernels share: rounding, clamps, and memory that the caller provides. */
#ifndef MRC_COMMON_H
#define MRC_COMMON_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../mrc.h"

/* Unroll the next loop, of few turns: its arrays become registers. */
#if defined(__clang__)
#define MRC_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MRC_UNROLL _Pragma("GCC unroll 16")
#endif

#define MRC_INLINE static inline __attribute__((always_inline))

/* Bytes to which every array in an arena is aligned. */
#define ARENA_ALIGNMENT 64

MRC_INLINE int32_t min32(int32_t a, int32_t b) { return a < b ? a : b; }
MRC_INLINE int32_t max32(int32_t a, int32_t b) { return a > b ? a : b; }
MRC_INLINE int32_t clamp32(int32_t v, int32_t low, int32_t high) {
    return v < low ? low : v > high ? high : v;
}
MRC_INLINE int64_t clamp64(int64_t v, int64_t low, int64_t high) {
    return v < low ? low : v > high ? high : v;
}

/* round(v / 2^shift), ties to even. */
MRC_INLINE int64_t round_shift(int64_t v, int32_t shift) {
    if (shift == 0) return v;
    return (v + ((int64_t)1 << (shift - 1)) - 1 + ((v >> shift) & 1)) >> shift;
}

/* floor(sqrt(v)). */
static uint64_t integer_sqrt(uint64_t v) {
    uint64_t root = 0;
    for (int32_t bit = 31; bit >= 0; bit--) {
        uint64_t next = root | (uint64_t)1 << bit;
        if (next * next <= v) root = next;
    }
    return root;
}

/* Memory that grows by one array after another. Without a start it only counts bytes. */
typedef struct {
    uint8_t *start;
    size_t used;
    size_t size;
    int32_t failed; /* An array did not fit, or its size overflowed. */
} arena;

MRC_INLINE arena arena_of(void *start, size_t size) {
    uint8_t *at = start;
    size_t skipped = 0;
    if (at != NULL) {
        skipped = (ARENA_ALIGNMENT - ((uintptr_t)at & (ARENA_ALIGNMENT - 1))) % ARENA_ALIGNMENT;
    }
    if (skipped > size) return (arena){NULL, 0, 0, 1};
    return (arena){at == NULL ? NULL : at + skipped, 0, size - skipped, 0};
}

/* An array of `count` elements, or NULL while bytes are only counted or if it does not fit. */
static void *take(arena *a, size_t count, size_t element) {
    if (element != 0 && count > (SIZE_MAX / 2) / element) {
        a->failed = 1;
        return NULL;
    }
    size_t bytes = (count * element + ARENA_ALIGNMENT - 1) & ~(size_t)(ARENA_ALIGNMENT - 1);
    if (bytes > SIZE_MAX / 2 - a->used) {
        a->failed = 1;
        return NULL;
    }
    size_t at = a->used;
    a->used += bytes;
    if (a->start == NULL) return NULL;
    if (a->used > a->size) {
        a->failed = 1;
        return NULL;
    }
    return a->start + at;
}

#define TAKE(a, type, count) ((type *)take((a), (size_t)(count), sizeof(type)))

#endif
