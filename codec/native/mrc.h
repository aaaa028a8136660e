/*
 * The C core of mricodec: every function of the library, on one page.
 *
 * Rules of all functions: pointers are borrowed for the call, and each comes with its length; the
 * caller allocates everything; nothing starts a thread. A function that can fail returns
 * MRC_OK or one of the errors below. library.py has the types for ctypes, README.md the rules.
 */
#ifndef MRC_H
#define MRC_H

#include <stdint.h>

#if defined(_WIN32)
#define MRC_API __declspec(dllexport)
#else
#define MRC_API __attribute__((visibility("default")))
#endif

/* Changes with every change of a function below; library.py expects the same number. */
#define MRC_ABI 1

enum mrc_status {
    MRC_OK = 0,
    MRC_ERROR_ARGUMENT = 1, /* a pointer, a length or a value that the caller must not pass */
    MRC_ERROR_BACKEND = 2,  /* a backend that this build lacks, or that this CPU can't run */
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

#endif
