/* What the fuzz targets share: records of the recording, and blocks of memory of exact size. */
#ifndef FUZZ_H
#define FUZZ_H

#include "mrc.h"
#include "recorded_model.h"
#include "recording.h"

/* Record n (from 0 on) of a function in the recording; it stays in memory. */
static record *recorded_call(const char *name, size_t n) {
    static uint8_t *bytes;
    static size_t size;
    if (!bytes) bytes = read_file(RECORDING, &size);
    reader r = {bytes, bytes + size};
    record *c = memory_of(sizeof *c, 0);
    for (size_t count = read_head(&r); count-- > 0;) {
        read_record(&r, c);
        if (strcmp(c->name, name) == 0 && n-- == 0) return c;
        free_record(c);
    }
    stop("the recording has too few calls of ", name);
    return NULL;
}

/* A copy in a block of its exact size, so that reads beyond it are seen. */
static uint8_t *copy_of(const uint8_t *data, size_t size) {
    uint8_t *copy = memory_of(size, 0);
    if (size) memcpy(copy, data, size);
    return copy;
}

static void check(int condition, const char *law) {
    if (condition) return;
    fprintf(stderr, "broken: %s\n", law);
    abort();
}

#endif
