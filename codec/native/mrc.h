/*
 * The C core of mricodec: every function of the library, on one page.
 *
 * Rules of all functions: pointers are borrowed for the call, and each comes with its length; the
 * caller allocates everything; nothing starts a thread. A function that can fail returns
 * MRC_OK or one of the errors below. library.py has the types for ctypes, README.md the rules.
 */
#ifndef MRC_H
#define MRC_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define MRC_API __declspec(dllexport)
#else
#define MRC_API __attribute__((visibility("default")))
#endif

/* Changes with every change of a function below; library.py expects the same number. */
#define MRC_ABI 9

enum mrc_status {
    MRC_OK = 0,
    MRC_ERROR_ARGUMENT = 1, /* a pointer, a length or a value that the caller must not pass */
    MRC_ERROR_BACKEND = 2,  /* a backend that this build lacks, or that this CPU can't run */
    MRC_ERROR_MEMORY = 3,   /* an arena that is smaller than the function asks for */
    MRC_ERROR_WEIGHTS = 4,  /* tensors that do not fit the network, or sums that are not exact */
    MRC_ERROR_CAPACITY = 5, /* an output that has no room for the bytes */
    MRC_ERROR_CANCELLED = 6, /* *cancel became other than 0 */
    MRC_ERROR_TRUNCATED = 7, /* bytes that are no whole words */
    MRC_ERROR_DAMAGED = 8,  /* bytes that no encoder writes */
    MRC_ERROR_TRAILING = 9, /* bytes that go on after the last symbol, or end too early */
};

/* MRC_ABI of the library. */
MRC_API uint32_t mrc_abi(void);

/* The first 16 hexadecimal digits of the SHA-256 of the sources (sources.py). */
MRC_API const char *mrc_source_hash(void);

/* The backend in use: "scalar", "avx2", "avx512" or "neon"; the best one that the CPU can run. */
MRC_API const char *mrc_backend(void);

/* Use another backend from now on, by name; NULL for the best one. For tests: not while another
 * thread is inside the library. */
MRC_API int32_t mrc_use_backend(const char *name);

/* -- the default model (format/learned.md, coder 2) ------------------------------------------- */

enum mrc_type { MRC_INT8 = 1, MRC_UINT8 = 2, MRC_INT16 = 3, MRC_INT32 = 4 };

/* A tensor of a weights file, little-endian; missing axes have length 1. */
typedef struct {
    const uint8_t *data;
    int64_t shape[4];
    int32_t type; /* mrc_type */
} mrc_tensor;

/* A slab to code: its shape and parameters, and memory to work in. */
typedef struct {
    int32_t slices, height, width;
    int32_t peak;                  /* the largest sample */
    int64_t step;                  /* in 2^-16 samples, 2^4 ... 2^36 */
    int32_t threads;               /* that do its tasks, 1 ... 64 */
    int32_t depth;                 /* the largest that there is room for: 1, 2, 4 or 8 */
    uint8_t *arena;
    size_t arena_size;             /* mrc_slab_bytes */
    const volatile int32_t *cancel; /* NULL, or polled: other than 0 ends the work */
} mrc_slab;

/* Decisions of a search that takes them from the encoder. Bands are [groups * depth][blocks][64] in
 * 1/16 of the step, at 8 u + w. */
typedef struct {
    int32_t depth;        /* 1, 2, 4 or 8; 0: the encoder chooses */
    const float *targets; /* NULL, or bands to approximate instead of those of the samples */
    int32_t *bands;       /* NULL, or what the bands are coded as */
    size_t count;         /* of targets and of bands */
} mrc_search;

/* Bytes of a model of these tensors, 0 if they do not fit the network. The order of the tensors is
 * that of model.py; blocks[2]: residual blocks of the networks low and detail. */
MRC_API size_t mrc_model_bytes(const mrc_tensor *tensors, size_t count, const int32_t *blocks);

/* Make a model in memory of the caller, which stays where it is; threads share it. */
MRC_API int32_t mrc_model_init(uint8_t *model, size_t size, const mrc_tensor *tensors, size_t count,
                               const int32_t *blocks);

/* Bytes of the arena that a slab of this shape needs; 0 for a shape out of range. */
MRC_API size_t mrc_slab_bytes(const uint8_t *model, const mrc_slab *slab, int32_t encoding);

/* The depth with which a run begins; 0 for bytes that no encoder writes. */
MRC_API int32_t mrc_depth_of_run(const uint8_t *model, const uint8_t *data, size_t size);

/* Begin to decode the run of a slab into samples [slices][height][width]. mrc_next_tasks and
 * mrc_run_task do the work; all arrays must stay until the last task is done. */
MRC_API int32_t mrc_start_decoding(const uint8_t *model, const mrc_slab *slab, const uint8_t *data,
                                   size_t size, int32_t *samples, size_t sample_count);

/* Begin to encode a slab of samples: in the end *size is the length of its run, and `decoded` has
 * the samples that it decodes to. `search` may be NULL. */
MRC_API int32_t mrc_start_encoding(const uint8_t *model, const mrc_slab *slab,
                                   const int32_t *samples, size_t sample_count,
                                   const mrc_search *search, uint8_t *data, size_t capacity,
                                   size_t *size, int32_t *decoded);

/* When all tasks so far are done: the number of tasks that can be done next, in any order and by
 * several threads at once; 0 when the slab is coded, or after an error. */
MRC_API int32_t mrc_next_tasks(uint8_t *arena, int32_t *tasks);

/* Do a task in the memory of a thread, 0 ... threads - 1, which no other task uses meanwhile. */
MRC_API int32_t mrc_run_task(uint8_t *arena, int32_t task, int32_t thread);

/* For measurements: what the tasks of a slab do that has been started: "analyse", "prepare",
 * "features", "mix", "predict", "update" or "synthesise"; "finished" when it is coded. After
 * "predict", mrc_next_tasks codes the symbols of a pass. */
MRC_API const char *mrc_phase(uint8_t *arena);

/* -- labels, masks and maps of few values ----------------------------------------------------- */

/* Bytes of the arena that a map of this shape and peak, below 2^16, needs; 0 if out of range. Of a
 * slab these functions use shape, peak, arena and cancel. */
MRC_API size_t mrc_label_map_bytes(const mrc_slab *slab, int32_t encoding);

/* Encode samples [slices][height][width], 0 ... peak, as one run, *size bytes. */
MRC_API int32_t mrc_encode_label_map(const mrc_slab *slab, const int32_t *samples,
                                     size_t sample_count, uint8_t *data, size_t capacity,
                                     size_t *size);

/* Decode the samples of a run. */
MRC_API int32_t mrc_decode_label_map(const mrc_slab *slab, const uint8_t *data, size_t size,
                                     int32_t *samples, size_t sample_count);

/* -- the predictive coder: integers without loss ---------------------------------------------- */

/* A block of integers [slices][height][width], and memory to work in. */
typedef struct {
    int32_t slices, height, width;
    uint8_t *arena;
    size_t arena_size;              /* mrc_predictive_bytes */
    const volatile int32_t *cancel; /* NULL, or polled: other than 0 ends the work */
    const uint8_t *skipped; /* NULL, or [slices][height][width]: other than 0 is not coded */
} mrc_block;

/* Bytes of the arena that a block of this shape needs; 0 for a shape out of range. */
MRC_API size_t mrc_predictive_bytes(const mrc_block *block, int32_t encoding);

/* Encode samples that are less than 2^24 apart at an effort, 0 (fast) or 1 (default), as *size
 * bytes. */
MRC_API int32_t mrc_predictive_encode(const mrc_block *block, int32_t effort,
                                      const int32_t *samples, size_t sample_count, uint8_t *data,
                                      size_t capacity, size_t *size);

/* Decode the samples of a block of a known shape. */
MRC_API int32_t mrc_predictive_decode(const mrc_block *block, const uint8_t *data, size_t size,
                                      int32_t *samples, size_t sample_count);

/* -- floats without loss ---------------------------------------------------------------------- */

/* How floats become samples: the cells [2^cell n, 2^cell (n + 1)) of their magnitudes, those of
 * negative ones n = -1 and below, and bits within the cells. If cell <= grid there are no such
 * bits: a value is its sample times 2^cell. */
typedef struct {
    int32_t bytes;            /* Of a value: 4 or 8, in native order. */
    int32_t cell;
    int32_t grid;             /* All values are multiples of 2^grid, */
    int32_t mantissa;         /* and have at most so many bits behind the first one. */
    const uint64_t *specials; /* Bits of values that have a class and no sample. */
    int32_t special_count;    /* At most 255. */
} mrc_float_cells;

/* What numbers have in common that are not special. */
typedef struct {
    double low, high; /* The smallest and the largest one. */
    double steps;     /* The sum of |differences| between them and the ones before. */
    uint64_t others;  /* Values that are no numbers, and those that are -0. */
    int32_t grid, mantissa; /* As in mrc_float_cells, as large and as small as they can be. */
    uint64_t count;   /* Numbers. */
} mrc_float_range;

/* Measure values, to choose cells: of `cells` the bytes and the special values are used. */
MRC_API int32_t mrc_measure_floats(const mrc_float_cells *cells, const uint8_t *values,
                                   size_t count, mrc_float_range *range);

/* Split values: their classes (0, or 1 + the number of a special value), samples (0 for special
 * values), and *size bytes of bits. MRC_ERROR_ARGUMENT for a value that has no sample. */
MRC_API int32_t mrc_split_floats(const mrc_float_cells *cells, const uint8_t *values, size_t count,
                                 uint8_t *classes, int32_t *samples, uint8_t *data,
                                 size_t capacity, size_t *size);

/* The values of classes, samples and bits. */
MRC_API int32_t mrc_join_floats(const mrc_float_cells *cells, const uint8_t *classes,
                                const int32_t *samples, size_t count, const uint8_t *data,
                                size_t size, uint8_t *values);

/* -- kernels by themselves --------------------------------------------------------------------- */

/* Coefficients [slices][rows * columns of blocks][64] of samples divided by `unit`, at 8 u + w. */
MRC_API int32_t mrc_analysis(const int32_t *samples, const mrc_slab *slab, float unit,
                             float *coefficients, size_t count);

/* Samples of bands [groups * depth][blocks][64] in 1/16 of the step; depth 1, 2, 4 or 8. */
MRC_API int32_t mrc_synthesis(const int32_t *bands, size_t count, const mrc_slab *slab,
                              int32_t depth, int32_t *samples, size_t sample_count);

/* A same-size convolution of activations [height][width][inputs], -127 ... 255, by a layer's three
 * tensors -> [height][width][outputs]. */
MRC_API int32_t mrc_convolution(const mrc_tensor *tensors, const int16_t *in, size_t in_count,
                                int32_t height, int32_t width, uint8_t *arena, size_t arena_size,
                                int32_t *out, size_t out_count);

/* A set of probability tables (format/entropy.md): weights int32 [rows][columns]. */
typedef struct {
    const uint8_t *weights;
    int32_t rows, columns, octave, low;
} mrc_tables;

/* Calls of values by a table set: sizes[calls] values each, with their indices. */
typedef struct {
    const uint8_t *index;
    const size_t *sizes;
    size_t calls;
    size_t count; /* the sum of the sizes */
} mrc_calls;

/* Encode the values of some calls as one run, *size bytes. */
MRC_API int32_t mrc_entropy_encode(const mrc_tables *tables, const mrc_calls *calls,
                                   const int32_t *values, uint8_t *arena, size_t arena_size,
                                   uint8_t *data, size_t capacity, size_t *size);

/* Decode the values of a run; those beyond int32 are clamped to it. */
MRC_API int32_t mrc_entropy_decode(const mrc_tables *tables, const mrc_calls *calls,
                                   const uint8_t *data, size_t size, uint8_t *arena,
                                   size_t arena_size, int32_t *values);

#endif
