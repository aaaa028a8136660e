/* The functions of mrc.h: arguments are checked here, then a kernel of the backend in use runs. */
#include "mrc.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(__AVX__)
#error "the compiler is set to one CPU (-march=native?): set it to the baseline of x86-64"
#endif

uint32_t mrc_abi(void) { return MRC_ABI; }

const char *mrc_source_hash(void) { return MRC_SOURCE_HASH; }

#if defined(__x86_64__)
/*
 * The CPU by CPUID, and by XGETBV the registers that the operating system saves.
 * __builtin_cpu_supports is not used: under zig it answers 0 for AVX2.
 */
#define LEAF1_ECX (1u << 20 | 1u << 23 | 1u << 27 | 1u << 28) /* SSE4.2, POPCNT, OSXSAVE, AVX */
#define LEAF1_ECX_512 (1u << 12 | 1u << 29)                   /* FMA, F16C: part of -mavx512f */
#define LEAF7_EBX_AVX2 (1u << 5)
#define LEAF7_EBX_512 (1u << 16 | 1u << 17 | 1u << 30 | 1u << 31) /* AVX512F, DQ, BW, VL */
#define LEAF7_ECX_512 (1u << 11)                                  /* AVX512_VNNI */
#define XCR0_AVX 0x06u                                            /* XMM and YMM are saved, */
#define XCR0_512 0xe6u                                            /* opmasks and ZMM too. */

/* The level of the CPU: 0 for the baseline, 2 for AVX2, 3 for AVX-512 with VNNI. */
static int cpu_level(void) {
    unsigned a, b, c, d, features, low, high;
    if (!__get_cpuid(1, &a, &b, &features, &d) || (features & LEAF1_ECX) != LEAF1_ECX) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    (void)high;
    if ((low & XCR0_AVX) != XCR0_AVX) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & LEAF7_EBX_AVX2)) return 0;
    if ((low & XCR0_512) != XCR0_512 || (features & LEAF1_ECX_512) != LEAF1_ECX_512) return 2;
    if ((b & LEAF7_EBX_512) != LEAF7_EBX_512) return 2;
    return c & LEAF7_ECX_512 ? 3 : 2;
}
#endif

/* The tables that the CPU can run, the best one first, with NULL behind the last one. */
static void runnable(const mrc_kernels *tables[4]) {
    int count = 0;
#if defined(__x86_64__)
    int level = cpu_level();
    if (level >= 3) tables[count++] = &mrc_kernels_avx512;
    if (level >= 2) tables[count++] = &mrc_kernels_avx2;
#elif defined(__aarch64__)
    tables[count++] = &mrc_kernels_neon; /* part of the baseline of aarch64 */
#endif
    tables[count++] = &mrc_kernels_scalar;
    tables[count] = NULL;
}

/* The table in use; NULL until the first call. Threads that find NULL all store the same one. */
static const mrc_kernels *_Atomic in_use;

static const mrc_kernels *kernels(void) {
    const mrc_kernels *table = atomic_load_explicit(&in_use, memory_order_relaxed);
    if (!table) {
        const mrc_kernels *tables[4];
        runnable(tables);
        table = tables[0];
        atomic_store_explicit(&in_use, table, memory_order_relaxed);
    }
    return table;
}

const char *mrc_backend(void) { return kernels()->name; }

int32_t mrc_use_backend(const char *name) {
    const mrc_kernels *tables[4];
    runnable(tables);
    for (int i = 0; tables[i]; i++) {
        if (!name || !strcmp(name, tables[i]->name)) {
            atomic_store_explicit(&in_use, tables[i], memory_order_relaxed);
            return MRC_OK;
        }
    }
    return MRC_ERROR_BACKEND;
}
