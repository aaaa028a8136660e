/*
 * Floats as cells of a uniform grid, which the predictive coder takes, and bits within the cells.
 *
 * A cell is 2^cell wide: small beside the noise, so that the bits below it are as good as random.
 * A value of exponent e is one of 2^(cell - unit) in its cell, unit = max(e - mantissa, grid):
 * all values are multiples of 2^grid and have at most `mantissa` bits behind the first one. A value
 * that is frequent, or no number, is special: it is told by its class alone.
 */
#ifndef MRC_FLOAT_CELLS_H
#define MRC_FLOAT_CELLS_H

#include "range_coder.h"

enum {
    MAX_SPECIALS = 255,
    CELL_LIMIT = 1 << 30,     /* Cells lie below it, and not below its negative. */
    MAX_BINADES = 32,         /* Binades below a cell that are counted one by one. */
    LOWEST_EXPONENT = -1200   /* Below every exponent of a double. */
};

/* What is known of a type: its bits. */
typedef struct {
    int32_t bytes;
    int32_t mantissa;
    int32_t bias;
    uint64_t sign;
} float_type;

static const float_type SINGLE = {4, 23, 127, (uint64_t)1 << 31};
static const float_type DOUBLE = {8, 52, 1023, (uint64_t)1 << 63};

/* A finite magnitude as digits * 2^exponent; `top` is the exponent of its first bit. */
typedef struct {
    uint64_t digits;
    int32_t exponent;
    int32_t top;
} magnitude_parts;

static const float_type *type_of_floats(int32_t bytes) {
    return bytes == 4 ? &SINGLE : bytes == 8 ? &DOUBLE : NULL;
}

MRC_INLINE uint64_t load_float(const float_type *t, const uint8_t *values, size_t n) {
    if (t->bytes == 4) {
        uint32_t bits;
        memcpy(&bits, values + 4 * n, 4);
        return bits;
    }
    uint64_t bits;
    memcpy(&bits, values + 8 * n, 8);
    return bits;
}

MRC_INLINE void store_float(const float_type *t, uint8_t *values, size_t n, uint64_t bits) {
    if (t->bytes == 4) {
        const uint32_t single = (uint32_t)bits;
        memcpy(values + 4 * n, &single, 4);
    } else {
        memcpy(values + 8 * n, &bits, 8);
    }
}

/* The place of the highest bit; v is not 0. */
MRC_INLINE int32_t top_bit(uint64_t v) { return 63 - __builtin_clzll(v); }

/* Whether bits are those of a number; parts of its magnitude. */
MRC_INLINE int32_t take_apart(const float_type *t, uint64_t bits, magnitude_parts *p) {
    const uint64_t magnitude = bits & ~t->sign;
    const int32_t field = (int32_t)(magnitude >> t->mantissa);
    p->digits = magnitude & (((uint64_t)1 << t->mantissa) - 1);
    if (field == 2 * t->bias + 1) return 0;
    p->exponent = max32(field, 1) - t->bias - t->mantissa;
    if (field > 0) p->digits |= (uint64_t)1 << t->mantissa;
    p->top = p->digits ? p->exponent + top_bit(p->digits) : LOWEST_EXPONENT;
    return 1;
}

/* The magnitude digits * 2^exponent as bits; the type has it exactly, or *damaged is set. */
MRC_INLINE uint64_t put_together(const float_type *t, uint64_t digits, int32_t exponent,
                                 int32_t *damaged) {
    if (digits == 0) return 0;
    const int32_t top = exponent + top_bit(digits);
    const int32_t last = max32(top, 1 - t->bias) - t->mantissa; /* Exponent of the last digit. */
    const int32_t shift = exponent - last;
    *damaged |= top > t->bias || shift > 63 || shift < -63;
    if (*damaged) return 0;
    if (shift < 0 && digits & (((uint64_t)1 << -shift) - 1)) *damaged = 1;
    digits = shift < 0 ? digits >> -shift : digits << shift;
    if (digits >> t->mantissa == 0) return digits; /* Subnormal. */
    const uint64_t field = (uint64_t)(last + t->mantissa + t->bias);
    return field << t->mantissa | (digits & (((uint64_t)1 << t->mantissa) - 1));
}

/* -- bits within cells ------------------------------------------------------------------------ */

typedef struct {
    uint8_t *bytes;
    size_t capacity, size;
    uint64_t kept; /* Bits that are no whole byte yet, */
    int32_t count; /* and their number. */
    int32_t full;
} bit_writer;

/* Write at most 32 bits, the lowest first. */
MRC_INLINE void write_bits(bit_writer *w, uint64_t bits, int32_t count) {
    w->kept |= (bits & (((uint64_t)1 << count) - 1)) << w->count;
    for (w->count += count; w->count >= 8; w->count -= 8, w->kept >>= 8) {
        if (w->size < w->capacity) w->bytes[w->size++] = (uint8_t)w->kept;
        else w->full = 1;
    }
}

MRC_INLINE void write_long(bit_writer *w, uint64_t bits, int32_t count) {
    if (count > 32) {
        write_bits(w, bits, 32);
        bits >>= 32;
        count -= 32;
    }
    write_bits(w, bits, count);
}

typedef struct {
    const uint8_t *bytes;
    size_t size, next;
    uint64_t kept;
    int32_t count;
    int32_t missing; /* Bytes beyond the end were asked for. */
} bit_reader;

MRC_INLINE uint64_t read_bits(bit_reader *r, int32_t count) {
    while (r->count < count) {
        if (r->next < r->size) r->kept |= (uint64_t)r->bytes[r->next++] << r->count;
        else r->missing = 1;
        r->count += 8;
    }
    const uint64_t bits = r->kept & (((uint64_t)1 << count) - 1);
    r->kept >>= count;
    r->count -= count;
    return bits;
}

MRC_INLINE uint64_t read_long(bit_reader *r, int32_t count) {
    if (count <= 32) return read_bits(r, count);
    const uint64_t low = read_bits(r, 32);
    return low | read_bits(r, count - 32) << 32;
}

/* -- cells ------------------------------------------------------------------------------------ */

/* The exponent of the last digit that a value may have whose first one is at `top`. */
MRC_INLINE int32_t digit_of(const mrc_float_cells *c, int32_t top) {
    return max32(top - c->mantissa, c->grid);
}

/* digits * 2^exponent / 2^unit, which is an integer, or *wrong is set. */
MRC_INLINE uint64_t scaled_digits(const magnitude_parts *p, int32_t unit, int32_t *wrong) {
    const int32_t shift = p->exponent - unit;
    if (shift >= 0) {
        *wrong |= shift > 63 || (shift > 0 && p->digits >> (64 - shift) != 0);
        return *wrong ? 0 : p->digits << shift;
    }
    if (shift < -63) {
        *wrong |= p->digits != 0;
        return 0;
    }
    *wrong |= (p->digits & (((uint64_t)1 << -shift) - 1)) != 0;
    return p->digits >> -shift;
}

/* Write the bits of a magnitude below 2^cell: all digits where they are few; else its binade, one
 * bit for each that lies between, and the digits behind the first one. */
MRC_INLINE void write_small(bit_writer *w, const float_type *t, const mrc_float_cells *c,
                            uint64_t bits, const magnitude_parts *p, int32_t *wrong) {
    if (c->cell - c->grid <= c->mantissa) {
        write_long(w, scaled_digits(p, c->grid, wrong), c->cell - c->grid);
        return;
    }
    const int32_t binade = c->cell - 1 - p->top;
    if (p->digits == 0 || binade >= MAX_BINADES) {
        write_bits(w, UINT32_MAX, MAX_BINADES);
        write_long(w, bits & ~t->sign, 8 * t->bytes - 1);
        return;
    }
    write_bits(w, ((uint64_t)1 << binade) - 1, binade + 1);
    const int32_t unit = digit_of(c, p->top);
    const uint64_t digits = scaled_digits(p, unit, wrong);
    const int32_t behind = max32(p->top - unit, 0);
    write_long(w, digits & (((uint64_t)1 << behind) - 1), behind);
}

MRC_INLINE uint64_t read_small(bit_reader *r, const float_type *t, const mrc_float_cells *c,
                               int32_t *damaged) {
    if (c->cell - c->grid <= c->mantissa) {
        return put_together(t, read_long(r, c->cell - c->grid), c->grid, damaged);
    }
    int32_t binade = 0;
    while (binade < MAX_BINADES && read_bits(r, 1)) binade++;
    if (binade == MAX_BINADES) return read_long(r, 8 * t->bytes - 1);
    const int32_t top = c->cell - 1 - binade, unit = digit_of(c, top);
    if (top <= unit) return put_together(t, 1, top, damaged);
    const uint64_t digits = (uint64_t)1 << (top - unit) | read_long(r, top - unit);
    return put_together(t, digits, unit, damaged);
}

/* The cell of a value, and its bits; *wrong is set if it has none. */
MRC_INLINE int32_t split_value(bit_writer *w, const float_type *t, const mrc_float_cells *c,
                               uint64_t bits, int32_t *wrong) {
    magnitude_parts p;
    *wrong |= !take_apart(t, bits, &p) || p.top >= c->cell + 31;
    if (*wrong) return 0;
    const int32_t negative = (bits & t->sign) != 0;
    uint64_t cell = 0;
    if (p.top >= c->cell) {
        const int32_t unit = min32(digit_of(c, p.top), c->cell), below = c->cell - unit;
        const uint64_t digits = scaled_digits(&p, unit, wrong);
        cell = digits >> below;
        write_long(w, digits & (((uint64_t)1 << below) - 1), below);
    } else if (c->cell > c->grid) {
        write_small(w, t, c, bits, &p, wrong);
    } else {
        *wrong |= p.digits != 0 || negative; /* Exact cells have but 0 below 2^cell. */
    }
    *wrong |= cell >= CELL_LIMIT;
    if (!negative) return (int32_t)cell;
    return c->cell > c->grid ? -1 - (int32_t)cell : -(int32_t)cell;
}

MRC_INLINE uint64_t join_value(bit_reader *r, const float_type *t, const mrc_float_cells *c,
                               int32_t sample, int32_t *damaged) {
    const int32_t exact = c->cell <= c->grid;
    const uint64_t sign = sample < 0 ? t->sign : 0;
    const int64_t cell = sample >= 0 ? sample : exact ? -(int64_t)sample : -1 - (int64_t)sample;
    if (cell == 0) return sign | (exact ? 0 : read_small(r, t, c, damaged));
    const int32_t top = c->cell + top_bit((uint64_t)cell);
    const int32_t unit = min32(digit_of(c, top), c->cell), below = c->cell - unit;
    const uint64_t digits = (uint64_t)cell << below | read_long(r, below);
    return sign | put_together(t, digits, unit, damaged);
}

/* -- arrays ----------------------------------------------------------------------------------- */

static int32_t check_cells(const mrc_float_cells *c, const float_type *t) {
    if (t == NULL || c->special_count < 0 || c->special_count > MAX_SPECIALS) {
        return MRC_ERROR_ARGUMENT;
    }
    if (c->special_count > 0 && c->specials == NULL) return MRC_ERROR_ARGUMENT;
    const int32_t low = LOWEST_EXPONENT, high = -LOWEST_EXPONENT;
    if (c->cell < low || c->cell > high || c->grid < low || c->grid > high) {
        return MRC_ERROR_ARGUMENT;
    }
    /* A cell has at most 2^52 values of an exponent. */
    return c->mantissa < 0 || c->mantissa > t->mantissa ? MRC_ERROR_ARGUMENT : MRC_OK;
}

/* The class of a value: 0, or 1 + the number of the special value it is. */
MRC_INLINE int32_t class_of(const mrc_float_cells *c, uint64_t bits) {
    for (int32_t n = 0; n < c->special_count; n++) {
        if (c->specials[n] == bits) return n + 1;
    }
    return 0;
}

static int32_t split_floats(const mrc_float_cells *c, const uint8_t *values, size_t count,
                            uint8_t *classes, int32_t *samples, const mrc_run *run) {
    const float_type *t = type_of_floats(c->bytes);
    int32_t wrong = 0, status = check_cells(c, t);
    bit_writer w = {run->data, run->capacity, 0, 0, 0, 0};
    for (size_t n = 0; n < count && status == MRC_OK; n++) {
        const uint64_t bits = load_float(t, values, n);
        classes[n] = (uint8_t)class_of(c, bits);
        samples[n] = classes[n] ? 0 : split_value(&w, t, c, bits, &wrong);
        if (wrong) status = MRC_ERROR_ARGUMENT;
    }
    if (w.count > 0) write_bits(&w, 0, 8 - w.count);
    *run->size = w.size;
    return status == MRC_OK && w.full ? MRC_ERROR_CAPACITY : status;
}

static int32_t join_floats(const mrc_float_cells *c, const uint8_t *classes,
                           const int32_t *samples, size_t count, const uint8_t *data, size_t size,
                           uint8_t *values) {
    const float_type *t = type_of_floats(c->bytes);
    int32_t damaged = 0, status = check_cells(c, t);
    bit_reader r = {data, size, 0, 0, 0, 0};
    for (size_t n = 0; n < count && status == MRC_OK; n++) {
        if (classes[n] > c->special_count) return MRC_ERROR_DAMAGED;
        const uint64_t bits = classes[n] ? c->specials[classes[n] - 1]
                                         : join_value(&r, t, c, samples[n], &damaged);
        store_float(t, values, n, bits);
        if (damaged) status = MRC_ERROR_DAMAGED;
    }
    if (status != MRC_OK) return status;
    if (r.missing) return MRC_ERROR_TRUNCATED;
    return r.next < size || r.kept != 0 ? MRC_ERROR_TRAILING : MRC_OK;
}

/* -- measurements for the encoder ------------------------------------------------------------- */

/* What values have in common that are not special. */
static int32_t measure_floats(const mrc_float_cells *c, const uint8_t *values, size_t count,
                              mrc_float_range *out) {
    const float_type *t = type_of_floats(c->bytes);
    int32_t status = check_cells(c, t), known = 0;
    mrc_float_range range = {.grid = -LOWEST_EXPONENT};
    double before = 0;
    for (size_t n = 0; n < count && status == MRC_OK; n++) {
        const uint64_t bits = load_float(t, values, n);
        magnitude_parts p;
        if (class_of(c, bits)) continue;
        if (!take_apart(t, bits, &p) || bits == t->sign) {
            range.others++;
            continue;
        }
        double value;
        if (t->bytes == 4) {
            float single;
            memcpy(&single, values + 4 * n, 4);
            value = (double)single;
        } else {
            memcpy(&value, values + 8 * n, 8);
        }
        if (!known) range.low = range.high = before = value;
        known = 1;
        range.low = value < range.low ? value : range.low;
        range.high = value > range.high ? value : range.high;
        range.steps += fabs(value - before);
        before = value;
        range.count++;
        if (p.digits == 0) continue;
        const int32_t last = p.exponent + __builtin_ctzll(p.digits);
        range.grid = min32(range.grid, last);
        range.mantissa = max32(range.mantissa, p.top - last);
    }
    *out = range;
    return status;
}

#endif
