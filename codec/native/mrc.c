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

/* The voxels of a block, at most. */
#define MAX_BLOCK ((size_t)1 << 31)

static size_t sample_count_of(const mrc_slab *slab) {
    if (slab->slices < 1 || slab->height < 1 || slab->width < 1) return 0;
    return (size_t)slab->slices * (size_t)slab->height * (size_t)slab->width;
}

size_t mrc_model_bytes(const mrc_tensor *tensors, size_t count, const int32_t *blocks) {
    if (!tensors || !blocks) return 0;
    return kernels()->model_bytes(tensors, count, blocks);
}

int32_t mrc_model_init(uint8_t *model, size_t size, const mrc_tensor *tensors, size_t count,
                       const int32_t *blocks) {
    if (!model || !tensors || !blocks) return MRC_ERROR_ARGUMENT;
    return kernels()->model_init(model, size, tensors, count, blocks);
}

size_t mrc_slab_bytes(const uint8_t *model, const mrc_slab *slab, int32_t encoding) {
    if (!model || !slab) return 0;
    return kernels()->slab_bytes(model, slab, encoding != 0);
}

int32_t mrc_depth_of_run(const uint8_t *model, const uint8_t *data, size_t size) {
    if (!model || (!data && size)) return 0;
    return kernels()->depth_of_run(model, data, size);
}

int32_t mrc_start_decoding(const uint8_t *model, const mrc_slab *slab, const uint8_t *data,
                           size_t size, int32_t *samples, size_t sample_count) {
    if (!model || !slab || (!data && size) || !samples) return MRC_ERROR_ARGUMENT;
    if (sample_count != sample_count_of(slab) || !slab->arena) return MRC_ERROR_ARGUMENT;
    return kernels()->start_decoding(model, slab, data, size, samples);
}

/* Whether the arrays of a search have the size of its bands. */
static int search_fits(const mrc_slab *slab, const mrc_search *search) {
    int32_t depth = search->depth;
    if (depth == 0) return !search->targets && !search->bands;
    if (depth != 1 && depth != 2 && depth != 4 && depth != 8) return 0;
    if (!search->targets && !search->bands) return 1;
    size_t bands = ((size_t)slab->slices + depth - 1) / depth * depth;
    size_t rows = ((size_t)slab->height + 7) / 8, columns = ((size_t)slab->width + 7) / 8;
    return search->count == bands * rows * columns * 64;
}

int32_t mrc_start_encoding(const uint8_t *model, const mrc_slab *slab, const int32_t *samples,
                           size_t sample_count, const mrc_search *search, uint8_t *data,
                           size_t capacity, size_t *size, int32_t *decoded) {
    if (!model || !slab || !samples || !data || !size || !decoded) return MRC_ERROR_ARGUMENT;
    if (sample_count != sample_count_of(slab) || !slab->arena) return MRC_ERROR_ARGUMENT;
    if (search && !search_fits(slab, search)) return MRC_ERROR_ARGUMENT;
    const mrc_run run = {data, capacity, size};
    return kernels()->start_encoding(model, slab, samples, search, &run, decoded);
}

int32_t mrc_next_tasks(uint8_t *arena, int32_t *tasks) {
    if (!arena || !tasks) return MRC_ERROR_ARGUMENT;
    return kernels()->next_tasks(arena, tasks);
}

int32_t mrc_run_task(uint8_t *arena, int32_t task, int32_t thread) {
    if (!arena || task < 0 || thread < 0) return MRC_ERROR_ARGUMENT;
    kernels()->run_task(arena, task, thread);
    return MRC_OK;
}

const char *mrc_phase(uint8_t *arena) { return arena ? kernels()->phase(arena) : NULL; }

static size_t sample_count_of_block(const mrc_block *block) {
    if (block->slices < 1 || block->height < 1 || block->width < 1) return 0;
    const size_t area = (size_t)block->height * (size_t)block->width;
    if (area > MAX_BLOCK || area * (size_t)block->slices > MAX_BLOCK) return 0;
    return area * (size_t)block->slices;
}

size_t mrc_predictive_bytes(const mrc_block *block, int32_t encoding) {
    if (!block || sample_count_of_block(block) == 0) return 0;
    return kernels()->predictive_bytes(block, encoding != 0);
}

int32_t mrc_predictive_encode(const mrc_block *block, int32_t effort, const int32_t *samples,
                              size_t sample_count, uint8_t *data, size_t capacity, size_t *size) {
    if (!block || !block->arena || !samples || !data || !size) return MRC_ERROR_ARGUMENT;
    if (sample_count == 0 || sample_count != sample_count_of_block(block)) {
        return MRC_ERROR_ARGUMENT;
    }
    const mrc_run run = {data, capacity, size};
    return kernels()->predictive_encode(block, effort, samples, sample_count, &run);
}

int32_t mrc_predictive_decode(const mrc_block *block, const uint8_t *data, size_t size,
                              int32_t *samples, size_t sample_count) {
    if (!block || !block->arena || (!data && size) || !samples) return MRC_ERROR_ARGUMENT;
    if (sample_count == 0 || sample_count != sample_count_of_block(block)) {
        return MRC_ERROR_ARGUMENT;
    }
    return kernels()->predictive_decode(block, data, size, samples, sample_count);
}

int32_t mrc_analysis(const int32_t *samples, const mrc_slab *slab, float unit, float *coefficients,
                     size_t count) {
    if (!samples || !slab || !coefficients || !(unit > 0) || !slab->arena) {
        return MRC_ERROR_ARGUMENT;
    }
    return kernels()->analysis(samples, slab, unit, coefficients, count);
}

int32_t mrc_synthesis(const int32_t *bands, size_t count, const mrc_slab *slab, int32_t depth,
                      int32_t *samples, size_t sample_count) {
    if (!bands || !slab || !samples || !slab->arena) return MRC_ERROR_ARGUMENT;
    if (sample_count != sample_count_of(slab)) return MRC_ERROR_ARGUMENT;
    return kernels()->synthesis(bands, count, slab, depth, samples);
}

int32_t mrc_convolution(const mrc_tensor *tensors, const int16_t *in, size_t in_count,
                        int32_t height, int32_t width, uint8_t *arena, size_t arena_size,
                        int32_t *out, size_t out_count) {
    if (!tensors || !in || !arena || !out || height < 1 || width < 1) return MRC_ERROR_ARGUMENT;
    return kernels()->convolution(tensors, in, in_count, height, width, arena, arena_size, out,
                                  out_count);
}

static int32_t check_calls(const mrc_tables *tables, const mrc_calls *calls) {
    if (!tables || !tables->weights || !calls || (!calls->index && calls->count)) {
        return MRC_ERROR_ARGUMENT;
    }
    size_t total = 0;
    if (!calls->sizes && calls->calls) return MRC_ERROR_ARGUMENT;
    for (size_t n = 0; n < calls->calls; n++) {
        if (calls->sizes[n] > calls->count - total) return MRC_ERROR_ARGUMENT;
        total += calls->sizes[n];
    }
    return total == calls->count && total <= UINT32_MAX ? MRC_OK : MRC_ERROR_ARGUMENT;
}

int32_t mrc_entropy_encode(const mrc_tables *tables, const mrc_calls *calls, const int32_t *values,
                           uint8_t *arena, size_t arena_size, uint8_t *data, size_t capacity,
                           size_t *size) {
    if (check_calls(tables, calls) || !values || !arena || !data || !size) {
        return MRC_ERROR_ARGUMENT;
    }
    return kernels()->entropy_encode(tables, calls, values, arena, arena_size, data, capacity,
                                     size);
}

int32_t mrc_entropy_decode(const mrc_tables *tables, const mrc_calls *calls, const uint8_t *data,
                           size_t size, uint8_t *arena, size_t arena_size, int32_t *values) {
    if (check_calls(tables, calls) || (!data && size) || !arena || !values) {
        return MRC_ERROR_ARGUMENT;
    }
    return kernels()->entropy_decode(tables, calls, data, size, arena, arena_size, values);
}

size_t mrc_label_map_bytes(const mrc_slab *slab, int32_t encoding) {
    return slab ? kernels()->label_map_bytes(slab, encoding != 0) : 0;
}

int32_t mrc_encode_label_map(const mrc_slab *slab, const int32_t *samples, size_t sample_count,
                             uint8_t *data, size_t capacity, size_t *size) {
    if (!slab || !samples || !data || !size || !slab->arena) return MRC_ERROR_ARGUMENT;
    if (sample_count == 0 || sample_count != sample_count_of(slab)) return MRC_ERROR_ARGUMENT;
    const mrc_run run = {data, capacity, size};
    return kernels()->encode_label_map(slab, samples, sample_count, &run);
}

int32_t mrc_decode_label_map(const mrc_slab *slab, const uint8_t *data, size_t size,
                             int32_t *samples, size_t sample_count) {
    if (!slab || (!data && size) || !samples || !slab->arena) return MRC_ERROR_ARGUMENT;
    if (sample_count == 0 || sample_count != sample_count_of(slab)) return MRC_ERROR_ARGUMENT;
    return kernels()->decode_label_map(slab, data, size, samples);
}

int32_t mrc_measure_floats(const mrc_float_cells *cells, const uint8_t *values, size_t count,
                           mrc_float_range *range) {
    if (!cells || (!values && count) || !range) return MRC_ERROR_ARGUMENT;
    return kernels()->measure_floats(cells, values, count, range);
}

int32_t mrc_split_floats(const mrc_float_cells *cells, const uint8_t *values, size_t count,
                         uint8_t *classes, int32_t *samples, uint8_t *data, size_t capacity,
                         size_t *size) {
    if (!cells || !size || (!data && capacity)) return MRC_ERROR_ARGUMENT;
    if (count && (!values || !classes || !samples)) return MRC_ERROR_ARGUMENT;
    const mrc_run run = {data, capacity, size};
    return kernels()->split_floats(cells, values, count, classes, samples, &run);
}

int32_t mrc_join_floats(const mrc_float_cells *cells, const uint8_t *classes,
                        const int32_t *samples, size_t count, const uint8_t *data, size_t size,
                        uint8_t *values) {
    if (!cells || (!data && size)) return MRC_ERROR_ARGUMENT;
    if (count && (!values || !classes || !samples)) return MRC_ERROR_ARGUMENT;
    return kernels()->join_floats(cells, classes, samples, count, data, size, values);
}
