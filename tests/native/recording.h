/*
 * Recorded calls of the C core (record.py writes them): a file that is read by shifts.
 *
 *     file    "mrcr", u32 records, records
 *     record  u8 length of the name, the name; u8 scalars, i64 each; inputs; outputs
 *     inputs  u16 their number, then of each: u8 bytes of an element, u32 elements, the elements
 *     outputs u8 their number, then of each: u8 bytes of an element, u32 elements of the buffer,
 *             u32 elements that are compared, these elements
 *
 * All numbers are little-endian. The first scalar is the status that the call returned.
 */
#ifndef RECORDING_H
#define RECORDING_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SCALARS = 16, MAX_INPUTS = 300, MAX_OUTPUTS = 4 };
/* What memory holds before a kernel writes it: no result may depend on it. */
enum { INPUT_FILL = 0xa5, OUTPUT_FILL = 0x5a };

/* An array in native order, in a block of memory of its exact size. */
typedef struct {
    void *data;
    size_t element, count;
    const uint8_t *recorded; /* its bytes in the file */
} array;

typedef struct {
    char name[64];
    int64_t scalars[MAX_SCALARS];
    array inputs[MAX_INPUTS], outputs[MAX_OUTPUTS];
    size_t scalar_count, input_count, output_count;
    size_t compared[MAX_OUTPUTS]; /* elements of each output that are compared */
} record;

typedef struct {
    const uint8_t *at, *end;
} reader;

static void stop(const char *message, const char *what) {
    fprintf(stderr, "%s%s\n", message, what);
    exit(2);
}

static void *memory_of(size_t size, int fill) {
    void *memory = malloc(size ? size : 1);
    if (!memory) stop("no memory", "");
    return memset(memory, fill, size);
}

static const uint8_t *read_bytes(reader *r, size_t size) {
    if ((size_t)(r->end - r->at) < size) stop("the recording is cut short", "");
    r->at += size;
    return r->at - size;
}

static uint64_t read_number(reader *r, size_t size) {
    const uint8_t *bytes = read_bytes(r, size);
    uint64_t value = 0;
    for (size_t i = size; i-- > 0;) value = value << 8 | bytes[i];
    return value;
}

/* Elements of a file in native order. */
static void to_native(void *data, const uint8_t *bytes, size_t element, size_t count) {
    const uint16_t one = 1;
    int little = *(const uint8_t *)&one;
    for (size_t i = 0; i < count * element; i++) {
        size_t first = i - i % element;
        ((uint8_t *)data)[little ? i : 2 * first + element - 1 - i] = bytes[i];
    }
}

static size_t read_element(reader *r) {
    size_t element = read_number(r, 1);
    if (element != 1 && element != 2 && element != 4 && element != 8) {
        stop("an element of the recording has neither 1, 2, 4 nor 8 bytes", "");
    }
    return element;
}

static void read_record(reader *r, record *c) {
    size_t length = read_number(r, 1);
    if (length >= sizeof c->name) stop("a name in the recording is too long", "");
    memcpy(c->name, read_bytes(r, length), length);
    c->name[length] = 0;
    c->scalar_count = read_number(r, 1);
    if (c->scalar_count < 1 || c->scalar_count > MAX_SCALARS) stop("scalars of ", c->name);
    for (size_t i = 0; i < c->scalar_count; i++) c->scalars[i] = (int64_t)read_number(r, 8);
    c->input_count = read_number(r, 2);
    if (c->input_count > MAX_INPUTS) stop("too many inputs of ", c->name);
    for (size_t i = 0; i < c->input_count; i++) {
        array *a = &c->inputs[i];
        a->element = read_element(r);
        a->count = read_number(r, 4);
        a->recorded = read_bytes(r, a->count * a->element);
        a->data = memory_of(a->count * a->element, INPUT_FILL);
        to_native(a->data, a->recorded, a->element, a->count);
    }
    c->output_count = read_number(r, 1);
    if (c->output_count > MAX_OUTPUTS) stop("too many outputs of ", c->name);
    for (size_t i = 0; i < c->output_count; i++) {
        array *a = &c->outputs[i];
        a->element = read_element(r);
        a->count = read_number(r, 4);
        c->compared[i] = read_number(r, 4);
        if (c->compared[i] > a->count) stop("an output is longer than its buffer: ", c->name);
        a->recorded = read_bytes(r, c->compared[i] * a->element);
        a->data = memory_of(a->count * a->element, OUTPUT_FILL);
    }
}

static void free_record(record *c) {
    for (size_t i = 0; i < c->input_count; i++) free(c->inputs[i].data);
    for (size_t i = 0; i < c->output_count; i++) free(c->outputs[i].data);
}

/* The bytes of a file. */
static uint8_t *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) stop("can't be opened: ", path);
    size_t capacity = 1 << 16;
    uint8_t *bytes = memory_of(capacity, 0);
    *size = 0;
    for (size_t got; (got = fread(bytes + *size, 1, capacity - *size, file)) > 0;) {
        *size += got;
        if (*size < capacity) continue;
        capacity *= 2;
        bytes = realloc(bytes, capacity);
        if (!bytes) stop("no memory for ", path);
    }
    if (ferror(file)) stop("can't be read: ", path);
    fclose(file);
    return bytes;
}

/* Check the head of a recording; returns its number of records. */
static size_t read_head(reader *r) {
    if (memcmp(read_bytes(r, 4), "mrcr", 4) != 0) stop("not a recording", "");
    return read_number(r, 4);
}

/* Input n, its type checked by the size of an element; its elements. */
static void *input(const record *c, size_t n, size_t element) {
    if (n >= c->input_count || c->inputs[n].element != element) stop("an input of ", c->name);
    return c->inputs[n].data;
}

static void *output(const record *c, size_t n, size_t element) {
    if (n >= c->output_count || c->outputs[n].element != element) stop("an output of ", c->name);
    return c->outputs[n].data;
}

static int64_t scalar(const record *c, size_t n) {
    if (n >= c->scalar_count) stop("a scalar is missing: ", c->name);
    return c->scalars[n];
}

#endif
