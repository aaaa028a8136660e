/* The context model of the default model (learned.md): features of reference bands, and the means
 * and scale indices of the coefficients that a pass codes. Interpreted from a weights file. */
#ifndef MRC_CONTEXT_MODEL_H
#define MRC_CONTEXT_MODEL_H

#include "integer_layers.h"
#include "lapped_transform.h"
#include "range_coder.h"
#include "rdo.h"

enum {
    COMPAND_MAX = 2047,        /* Largest magnitude that is companded. */
    LEVELS = 32753,            /* Mean magnitudes that have a logarithm. */
    RATES = 16,                /* Classes of rates. */
    MAX_SOURCES = 3,
    MAX_MIX = 8,               /* Most residual blocks of a network. */
    MAX_WIDTH = 512,
    LOW_CLASSES = 20,
    DETAIL_CLASSES = 11,
    GATE_BITS = 6,             /* Fraction bits of gates and of weights of energies. */
    GATE_MAX = 127,
    LINEAR_MAX = (1 << 17) - 1,
    MU_MAX = 1 << 22,
    Y_MAX = 1 << 23,
    INDEX_ORIGIN = 35,         /* Scale index where network and energies are 0. */
    INDEX_MAX = 207,
    INDEX_SKIP = 6             /* Symbols of lower scale indices are 0 and not coded. */
};

typedef struct {
    layer first, middle, second;
} bottleneck;

typedef struct {
    layer known[PARITIES];
    layer middle;
    layer head[PARITIES];
    int32_t energies;       /* Log-energies that scales depend on. */
    const int8_t *weights;  /* [classes][energies][64], at 8 u + w. */
} context_pass;

typedef struct {
    int32_t width, narrow;  /* Channels of the features, and inside a residual block. */
    int32_t sources;
    int32_t gates;
    int32_t classes;
    int32_t blocks;         /* Residual blocks. */
    layer source[MAX_SOURCES];
    int32_t kernel[MAX_SOURCES];
    const int16_t *class_bias; /* [classes][width] */
    const int16_t *rate_bias;  /* [RATES][width] */
    bottleneck mix[MAX_MIX];
    context_pass pass[PASSES];
} band_network;

typedef struct {
    uint32_t magic;
    coding_order order;
    band_network low, detail;
    compensation compensate;
    rounding_thresholds thresholds;
    int16_t compand[2 * COMPAND_MAX + 1];
    int8_t levels[LEVELS];
    int32_t hiding[INDICES];
    table_set depth, magnitudes[PASSES], signs;
} model;

/* Marks memory that holds a model. */
#define MODEL_MAGIC 0x4d52434dU

/* -- the weights file ------------------------------------------------------------------------- */

/* Tensors of a weights file in the order in which the model takes them. */
typedef struct {
    const mrc_tensor *tensors;
    size_t count, next;
    int32_t status;
} tensor_reader;

/* The next tensor, if it has this type and shape (-1: any); else NULL, and the reader failed. */
static const mrc_tensor *next_tensor(tensor_reader *r, int32_t type, const int64_t shape[4]) {
    static const mrc_tensor none;
    const mrc_tensor *t = r->next < r->count ? &r->tensors[r->next] : &none;
    int32_t fits = r->next < r->count && t->type == type && t->data != NULL;
    for (int32_t n = 0; n < 4; n++) {
        fits = fits && t->shape[n] >= 1 && t->shape[n] <= 1 << 16;
        fits = fits && (shape[n] < 0 || t->shape[n] == shape[n]);
    }
    if (!fits || r->status != MRC_OK) {
        if (r->status == MRC_OK) r->status = MRC_ERROR_WEIGHTS;
        return NULL;
    }
    r->next++;
    return t;
}

static const uint8_t *next_array(tensor_reader *r, int32_t type, int64_t first, int64_t second,
                                 int64_t third) {
    const int64_t shape[4] = {first, second, third, 1};
    const mrc_tensor *t = next_tensor(r, type, shape);
    return t == NULL ? NULL : t->data;
}

/* The three tensors of a layer; outputs of -1: any number. */
static int32_t next_layer(tensor_reader *r, layer_tensors *file, int64_t outputs, int64_t inputs,
                          int64_t kernel) {
    const int64_t shape[4] = {outputs, inputs, kernel, kernel};
    const mrc_tensor *weight = next_tensor(r, MRC_INT8, shape);
    if (weight == NULL) return r->status;
    file->weight = (const int8_t *)weight->data;
    file->outputs = (int32_t)weight->shape[0];
    file->inputs = (int32_t)inputs;
    file->taps = (int32_t)(kernel * kernel);
    file->bias = next_array(r, MRC_INT32, file->outputs, 1, 1);
    file->shift = next_array(r, MRC_UINT8, file->outputs, 1, 1);
    if (r->status != MRC_OK) return r->status;
    return r->status = check_layer(file);
}

/* A whole layer: its inputs tap by tap, channels in the order of the file or at 8 u + w. */
static void pack_whole(tensor_reader *r, layer *l, arena *a, const layer_tensors *file,
                       const uint8_t *raster) {
    layer_input inputs[9 * MAX_WIDTH];
    int32_t n = 0;
    for (int32_t tap = 0; tap < file->taps; tap++) {
        for (int32_t c = 0; c < file->inputs; c++, n++) {
            int32_t at = raster == NULL ? c : raster[c];
            inputs[tap * file->inputs + at] = (layer_input){(int16_t)c, (int16_t)tap};
        }
    }
    if (n % 4 != 0) r->status = MRC_ERROR_WEIGHTS;
    else pack_layer(l, a, file, inputs, n, NULL, file->outputs);
}

/* The kernel of a pass and a parity: the coefficients of earlier passes around a block. */
static void pack_known(layer *l, arena *a, const layer_tensors *file, const coding_order *order,
                       int32_t p, int32_t parity) {
    layer_input inputs[9 * MAX_KNOWN];
    int32_t n = 0;
    for (int32_t tap = 0; tap < 9; tap++) {
        int32_t row = (PARITY_ROW[parity] + tap / 3 + 1) & 1;
        int32_t near = PARITY_OF[row][(PARITY_COLUMN[parity] + tap % 3 + 1) & 1];
        for (int32_t earlier = 0; earlier < p; earlier++) {
            for (int32_t k = 0; k < order->count[earlier]; k++) {
                int16_t channel = order->channel[earlier][near][k];
                inputs[n++] = (layer_input){channel, (int16_t)tap};
            }
        }
    }
    pack_layer(l, a, file, inputs, n, NULL, file->outputs);
}

/* The outputs that a pass uses: means, scales and gates of its coefficients, two of the DC. */
static void pack_head(layer *l, arena *a, const layer_tensors *file, const coding_order *order,
                      int32_t p, int32_t parity) {
    layer_input inputs[MAX_WIDTH];
    int16_t outputs[3 * MAX_CODED + 2];
    int32_t n = 0, parts = file->outputs / CHANNELS;
    for (int32_t c = 0; c < file->inputs; c++) inputs[c] = (layer_input){(int16_t)c, 0};
    for (int32_t part = 0; part < parts; part++) {
        for (int32_t k = 0; k < order->count[p]; k++) {
            outputs[n++] = (int16_t)(part * CHANNELS + order->channel[p][parity][k]);
        }
    }
    if (parts == 3 && p == parity) {
        outputs[n++] = 3 * CHANNELS;
        outputs[n++] = 3 * CHANNELS + 1;
    }
    pack_layer(l, a, file, inputs, file->inputs, outputs, n);
}

static void read_pass(tensor_reader *r, arena *a, const coding_order *order, band_network *net,
                      int32_t p) {
    context_pass *pass = &net->pass[p];
    layer_tensors file;
    if (p > 0) {
        if (next_layer(r, &file, net->width, CHANNELS, 3) != MRC_OK) return;
        for (int32_t parity = 0; parity < PARITIES; parity++) {
            pack_known(&pass->known[parity], a, &file, order, p, parity);
        }
    }
    if (next_layer(r, &file, net->width, net->width, 1) != MRC_OK) return;
    pack_whole(r, &pass->middle, a, &file, NULL);
    int32_t outputs = net->gates ? 3 * CHANNELS + 2 : 2 * CHANNELS;
    if (next_layer(r, &file, outputs, net->width, 1) != MRC_OK) return;
    for (int32_t parity = 0; parity < PARITIES; parity++) {
        pack_head(&pass->head[parity], a, &file, order, p, parity);
    }
    pass->energies = (net->gates ? 1 : 2) + (p > 0 ? 2 : 0);
    const uint8_t *energies = next_array(r, MRC_INT8, net->classes, pass->energies, CHANNELS);
    int8_t *weights = TAKE(a, int8_t, (size_t)net->classes * pass->energies * CHANNELS);
    pass->weights = weights;
    if (energies == NULL || weights == NULL) return;
    for (int32_t row = 0; row < net->classes * pass->energies; row++) {
        for (int32_t c = 0; c < CHANNELS; c++) {
            weights[row * CHANNELS + order->raster[c]] = (int8_t)energies[row * CHANNELS + c];
        }
    }
}

static int16_t *copy_int16(arena *a, const uint8_t *from, size_t n) {
    int16_t *to = TAKE(a, int16_t, n);
    if (from == NULL || to == NULL) return to;
    for (size_t i = 0; i < n; i++) {
        to[i] = (int16_t)(uint16_t)(from[2 * i] | (uint32_t)from[2 * i + 1] << 8);
    }
    return to;
}

/* The largest magnitude of int16 [n], little-endian. */
static int32_t largest_int16(const uint8_t *from, size_t n) {
    int32_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t v = (int16_t)(uint16_t)(from[2 * i] | (uint32_t)from[2 * i + 1] << 8);
        largest = max32(largest, v < 0 ? -v : v);
    }
    return largest;
}

/* Whether all sums of rounded outputs fit int16; biases: bound of those of class and rate. */
static int32_t fits_int16(const band_network *net, int32_t biases) {
    int64_t sources = biases, trunk = MAX_ACTIVATION;
    int32_t fits = 1;
    for (int32_t m = 0; m < net->sources; m++) sources += net->source[m].largest;
    for (int32_t m = 0; m < net->blocks; m++) {
        trunk += net->mix[m].second.largest;
        fits = fits && net->mix[m].first.largest <= INT16_MAX;
        fits = fits && net->mix[m].middle.largest <= INT16_MAX;
    }
    for (int32_t p = 0; p < PASSES; p++) {
        const context_pass *pass = &net->pass[p];
        fits = fits && (p == 0 || trunk + pass->known[0].largest <= INT16_MAX);
        fits = fits && pass->middle.largest <= INT16_MAX && pass->head[0].largest <= INT16_MAX;
    }
    return fits && sources <= INT16_MAX && trunk <= INT16_MAX;
}

static void read_network(tensor_reader *r, arena *a, const coding_order *order, band_network *net,
                         int32_t blocks) {
    static const int32_t low[MAX_SOURCES] = {3, 3, 0}, detail[MAX_SOURCES] = {3, 1, 3};
    layer_tensors file;
    net->blocks = blocks;
    net->sources = net->gates ? 2 : 3;
    net->classes = net->gates ? LOW_CLASSES : DETAIL_CLASSES;
    net->width = -1;
    for (int32_t m = 0; m < net->sources; m++) {
        net->kernel[m] = net->gates ? low[m] : detail[m];
        if (next_layer(r, &file, net->width, CHANNELS, net->kernel[m]) != MRC_OK) return;
        net->width = file.outputs;
        if (net->width > MAX_WIDTH || net->width % PANEL != 0) r->status = MRC_ERROR_WEIGHTS;
        if (r->status != MRC_OK) return;
        pack_whole(r, &net->source[m], a, &file, order->raster);
    }
    size_t width = (size_t)net->width;
    const uint8_t *of_class = next_array(r, MRC_INT16, net->classes, net->width, 1);
    const uint8_t *of_rate = next_array(r, MRC_INT16, RATES, net->width, 1);
    if (r->status != MRC_OK) return;
    net->class_bias = copy_int16(a, of_class, (size_t)net->classes * width);
    net->rate_bias = copy_int16(a, of_rate, RATES * width);
    int32_t biases = largest_int16(of_class, (size_t)net->classes * width);
    biases += largest_int16(of_rate, RATES * width);
    net->narrow = -1;
    for (int32_t m = 0; m < blocks; m++) {
        if (next_layer(r, &file, net->narrow, net->width, 1) != MRC_OK) return;
        net->narrow = file.outputs;
        if (net->narrow > MAX_WIDTH || net->narrow % PANEL != 0) r->status = MRC_ERROR_WEIGHTS;
        if (r->status != MRC_OK) return;
        pack_whole(r, &net->mix[m].first, a, &file, NULL);
        if (next_layer(r, &file, net->narrow, net->narrow, 3) != MRC_OK) return;
        pack_whole(r, &net->mix[m].middle, a, &file, NULL);
        if (next_layer(r, &file, net->width, net->narrow, 1) != MRC_OK) return;
        pack_whole(r, &net->mix[m].second, a, &file, NULL);
    }
    for (int32_t p = 0; p < PASSES && r->status == MRC_OK; p++) read_pass(r, a, order, net, p);
    if (r->status == MRC_OK && !fits_int16(net, biases)) r->status = MRC_ERROR_WEIGHTS;
}

static void read_tables(tensor_reader *r, arena *a, table_set *t, int32_t rows, int32_t columns,
                        int32_t octave) {
    const uint8_t *weights = next_array(r, MRC_INT32, rows, columns, 1);
    *t = (table_set){NULL, NULL, rows, columns, octave, 0};
    if (weights == NULL) return;
    int32_t status = pack_tables(t, a, weights);
    if (status != MRC_OK) r->status = status;
}

/* Read the lookup tables at the head of the tensors. */
static void read_lookups(tensor_reader *r, model *m) {
    const uint8_t *compand = next_array(r, MRC_INT8, 2 * COMPAND_MAX + 1, 1, 1);
    const uint8_t *levels = next_array(r, MRC_INT8, LEVELS, 1, 1);
    const uint8_t *hiding = next_array(r, MRC_INT32, INDICES, 1, 1);
    if (r->status != MRC_OK) return;
    for (int32_t n = 0; n < 2 * COMPAND_MAX + 1; n++) m->compand[n] = (int8_t)compand[n];
    memcpy(m->levels, levels, LEVELS);
    for (int32_t n = 0; n < INDICES; n++) {
        m->hiding[n] = read_int32(hiding + 4 * n);
        if (m->hiding[n] < 0 || m->hiding[n] > WEIGHT_MAX) r->status = MRC_ERROR_WEIGHTS;
    }
    if (m->hiding[0] != 0) r->status = MRC_ERROR_WEIGHTS;
}

/* A model from the tensors of a weights file; with `a` empty the bytes are only counted. */
static int32_t read_model(model *m, arena *a, tensor_reader *r, const int32_t blocks[2]) {
    if (blocks[0] < 0 || blocks[0] > MAX_MIX || blocks[1] < 0 || blocks[1] > MAX_MIX) {
        return MRC_ERROR_WEIGHTS;
    }
    memset(m, 0, sizeof *m);
    order_init(&m->order);
    compensation_init(&m->compensate, a, &m->order);
    thresholds_init(&m->thresholds, INDEX_SKIP);
    read_lookups(r, m);
    read_tables(r, a, &m->depth, 1, 5, 0);
    for (int32_t p = 0; p < PASSES; p++) read_tables(r, a, &m->magnitudes[p], 68, 66, 8);
    read_tables(r, a, &m->signs, 9, 3, 8);
    m->low.gates = 1;
    if (r->status == MRC_OK) read_network(r, a, &m->order, &m->low, blocks[0]);
    if (r->status == MRC_OK) read_network(r, a, &m->order, &m->detail, blocks[1]);
    if (r->status == MRC_OK && r->next != r->count) r->status = MRC_ERROR_WEIGHTS;
    m->magic = MODEL_MAGIC;
    return r->status;
}

/* -- features of a band ----------------------------------------------------------------------- */

/* Arrays [R + 2][T + 2][channels] with a border of zeros: the element of block (0, 0). */
MRC_INLINE size_t padded_row(const slab_shape *s, size_t channels) {
    return ((size_t)s->columns + 2) * channels;
}
MRC_INLINE size_t padded_size(const slab_shape *s, size_t channels) {
    return ((size_t)s->rows + 2) * padded_row(s, channels);
}
MRC_INLINE size_t padded_start(const slab_shape *s, size_t channels) {
    return padded_row(s, channels) + channels;
}

/* A coded band as context of others: what the networks see, and magnitudes. */
typedef struct {
    int16_t *companded;  /* [R + 2][T + 2][64] */
    int16_t *magnitude;  /* [R + 2][T + 2][64] */
} source_band;

/* table: model.compand. */
MRC_INLINE int16_t companded(const int16_t *table, int32_t v) {
    return table[clamp32(v, -COMPAND_MAX, COMPAND_MAX) + COMPAND_MAX];
}

MRC_INLINE int16_t magnitude_of(int32_t v) {
    return (int16_t)min32(v < 0 ? -v : v, COMPAND_MAX);
}

/* floor(a / b) for b > 0. */
MRC_INLINE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

/* The DC of a block of y without the mean of the 3 x 3 blocks around it, borders repeated. */
static int32_t dc_removed(const int32_t *y, const slab_shape *s, int32_t r, int32_t t) {
    int64_t total = 4;
    for (int32_t dr = -1; dr <= 1; dr++) {
        int32_t row = clamp32(r + dr, 0, s->rows - 1);
        for (int32_t dt = -1; dt <= 1; dt++) {
            int32_t column = clamp32(t + dt, 0, s->columns - 1);
            total += y[((size_t)row * s->columns + column) * CHANNELS];
        }
    }
    return (int32_t)(y[((size_t)r * s->columns + t) * CHANNELS] - floor_div(total, 9));
}

/* Rows of blocks of a band, first ... end - 1: what a task works on. */
typedef struct {
    int32_t first, end;
} row_range;

/* The range and a row on either side, as far as there is one. */
static row_range with_neighbours(const slab_shape *s, row_range rows) {
    return (row_range){max32(rows.first - 1, 0), min32(rows.end + 1, s->rows)};
}

/* Fill rows of a source from a coded band y [blocks][64]; low: the DC counts without its mean. */
static void fill_source(const model *m, const slab_shape *s, const int32_t *y, int32_t low,
                        row_range rows, source_band *out) {
    const int16_t *restrict table = m->compand;
    for (int32_t r = rows.first; r < rows.end; r++) {
        size_t at = padded_start(s, CHANNELS) + (size_t)r * padded_row(s, CHANNELS);
        for (int32_t t = 0; t < s->columns; t++, at += CHANNELS) {
            const int32_t *restrict block = y + ((size_t)r * s->columns + t) * CHANNELS;
            int16_t *restrict features = out->companded + at;
            int16_t *restrict magnitude = out->magnitude + at;
            for (int32_t i = 0; i < CHANNELS; i++) features[i] = companded(table, block[i]);
            for (int32_t i = 0; i < CHANNELS; i++) magnitude[i] = magnitude_of(block[i]);
            if (low) {
                int32_t dc = dc_removed(y, s, r, t);
                features[0] = companded(table, dc);
                magnitude[0] = magnitude_of(dc);
            }
        }
    }
}

/* Sums over 3 x 3 blocks, weights 4, 2 and 1, of the values of one block: out [64]. */
MRC_INLINE void binomial_sums(const int16_t *restrict centre, size_t row, int16_t *restrict out) {
    const int16_t *above = centre - row, *below = centre + row;
    for (int32_t i = 0; i < CHANNELS; i++) {
        int32_t rows_before = above[i - CHANNELS] + 2 * centre[i - CHANNELS] + below[i - CHANNELS];
        int32_t rows_here = above[i] + 2 * centre[i] + below[i];
        int32_t rows_after = above[i + CHANNELS] + 2 * centre[i + CHANNELS] + below[i + CHANNELS];
        out[i] = (int16_t)(rows_before + 2 * rows_here + rows_after);
    }
}

/* The sums of rows of a band: out [blocks][64]. */
static void energy_sums(const slab_shape *s, const int16_t *magnitude, row_range rows,
                        int16_t *out) {
    size_t row = padded_row(s, CHANNELS);
    out += (size_t)rows.first * s->columns * CHANNELS;
    for (int32_t r = rows.first; r < rows.end; r++) {
        const int16_t *at = magnitude + padded_start(s, CHANNELS) + (size_t)r * row;
        for (int32_t t = 0; t < s->columns; t++, at += CHANNELS, out += CHANNELS) {
            binomial_sums(at, row, out);
        }
    }
}

/* A band that is being coded, and what is known of it. */
typedef struct {
    int32_t *y;              /* [blocks][64] */
    int16_t *base;           /* [blocks][width]: features of the references. */
    int16_t *narrow[2];      /* [R + 2][T + 2][narrow]: inside residual blocks, in turns. */
    int32_t low;             /* Whether it is a low band, or else a detail band. */
    int32_t *mean_reference; /* [blocks][64]: y of the references; of low bands only. */
    int8_t *energy[2];       /* [blocks][64]: log-energies of the references. */
    int16_t *magnitude;      /* [R + 2][T + 2][64]: |y|, of the DC 16 |q|; 0 where unknown. */
    int16_t *known;          /* [R + 2][T + 2][MAX_KNOWN]: companded, pass by pass. */
    int32_t class_number;
    /* Encoder only. */
    const float *target;     /* [blocks][64]: what y is to become, in 1/16 of a step. */
    int16_t *error;          /* [R + 2][T + 2][MAX_KNOWN]: y - target, pass by pass. */
} band_state;

/* What others need of a band that is decoded, kept from its first use on. */
typedef struct {
    int16_t *features[2]; /* [blocks][width]: convolutions of the network's sources. */
    int16_t *sums;        /* [blocks][64]: magnitudes around each coefficient. */
    int32_t ready[2];
    int32_t group;
} reference;

/* What a thread needs for the layers: rows of numbers, and arrays of a slice. */
typedef struct {
    int16_t *sums;       /* [T][widest layer] */
    int32_t *wide;       /* [T][MAX_CODED]: encoder only. */
    int16_t *first;      /* [T][widest layer] */
    int16_t *second;     /* [T][widest layer] */
    source_band source;
    int16_t *energy;     /* [blocks][64] */
    int16_t *features;   /* [blocks][width] */
    double *v;           /* [coefficients]: a slice of the transform. */
    double *line;        /* [T][64] */
} thread_memory;

static void add_row(int16_t *restrict to, const int16_t *restrict from, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] = (int16_t)(to[i] + from[i]);
}

/* A convolution of rows of a source band: out [blocks][width]. */
static void convolve_source(const layer *l, int32_t kernel, const slab_shape *s,
                            const source_band *from, row_range rows, int16_t *out) {
    size_t row = padded_row(s, CHANNELS);
    for (int32_t r = rows.first; r < rows.end; r++) {
        const int16_t *in = from->companded + padded_start(s, CHANNELS) + (size_t)r * row;
        window w = kernel == 3 ? nine_taps(in, CHANNELS, (ptrdiff_t)row, CHANNELS)
                               : single_tap(in, CHANNELS, CHANNELS);
        convolve(l, &w, out + (size_t)r * s->columns * l->outputs, s->columns);
    }
}

/* A residual block is trunk += second(relu8(middle(relu8(first(clamp8(trunk)))))). This is the
 * part up to `first`, of rows: out, padded, is what `middle` sees. */
static void enter_block(const band_network *net, int32_t block, const slab_shape *s, row_range rows,
                        thread_memory *m, const int16_t *trunk, int16_t *out) {
    int32_t width = net->width, narrow = net->narrow;
    size_t n = (size_t)s->columns * (size_t)width, row = padded_row(s, (size_t)narrow);
    for (int32_t r = rows.first; r < rows.end; r++) {
        clamp8_row(m->first, trunk + (size_t)r * n, (int32_t)n);
        window w = single_tap(m->first, width, width);
        convolve(&net->mix[block].first, &w, m->sums, s->columns);
        relu8_row(out + padded_start(s, (size_t)narrow) + (size_t)r * row, m->sums,
                  s->columns * narrow);
    }
}

/* The rest of a residual block, of rows. */
static void leave_block(const band_network *net, int32_t block, const slab_shape *s, row_range rows,
                        thread_memory *m, const int16_t *inner, int16_t *trunk) {
    int32_t width = net->width, narrow = net->narrow;
    size_t n = (size_t)s->columns * (size_t)width, row = padded_row(s, (size_t)narrow);
    inner += padded_start(s, (size_t)narrow);
    for (int32_t r = rows.first; r < rows.end; r++) {
        window w = nine_taps(inner + (size_t)r * row, narrow, (ptrdiff_t)row, narrow);
        convolve(&net->mix[block].middle, &w, m->sums, s->columns);
        relu8_row(m->first, m->sums, s->columns * narrow);
        w = single_tap(m->first, narrow, narrow);
        convolve(&net->mix[block].second, &w, m->sums, s->columns);
        add_row(trunk + (size_t)r * n, m->sums, n);
    }
}

/* Leave a residual block, if there is one before, and enter the next, if there is one: rows. */
static void mix_rows(const band_network *net, int32_t next, const slab_shape *s, row_range rows,
                     thread_memory *m, band_state *state) {
    if (next > 0) {
        leave_block(net, next - 1, s, rows, m, state->narrow[~next & 1], state->base);
    }
    if (next < net->blocks) {
        enter_block(net, next, s, rows, m, state->base, state->narrow[next & 1]);
    }
}

/* Rows of the features of a band from the convolutions of its sources (NULL: zeros), before the
 * residual blocks. */
static void sum_sources(const band_network *net, const slab_shape *s, const int16_t *const *from,
                        int32_t rate, row_range rows, band_state *state) {
    int16_t bias[MAX_WIDTH];
    size_t width = (size_t)net->width;
    for (size_t i = 0; i < width; i++) {
        int32_t sum = net->class_bias[(size_t)state->class_number * width + i] +
                      net->rate_bias[(size_t)rate * width + i];
        for (int32_t k = 0; k < net->sources; k++) {
            const layer *l = &net->source[k];
            if (from[k] == NULL) sum += (int32_t)round_shift(l->bias[i], l->shift[i]);
        }
        bias[i] = (int16_t)sum;
    }
    size_t end = (size_t)rows.end * s->columns;
    for (size_t block = (size_t)rows.first * s->columns; block < end; block++) {
        int16_t *out = state->base + block * width;
        memcpy(out, bias, width * sizeof *out);
        for (int32_t k = 0; k < net->sources; k++) {
            if (from[k] != NULL) add_row(out, from[k] + block * width, width);
        }
        for (size_t i = 0; i < width; i++) out[i] = (int16_t)clamp32(out[i], 0, MAX_ACTIVATION);
    }
}

/* out[i] = table[index[i]] */
static void look_up(const int8_t *restrict table, const int16_t *restrict index,
                    int8_t *restrict out, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = table[index[i]];
}

/* Make rows of the features of a reference ready that the sources `sides` (bit by bit) see.
 *
 * y: its band. */
static void prepare_reference(const model *m, const slab_shape *s, const int32_t *y, int32_t sides,
                              row_range rows, thread_memory *memory, reference *out) {
    fill_source(m, s, y, 1, with_neighbours(s, rows), &memory->source);
    energy_sums(s, memory->source.magnitude, rows, out->sums);
    for (int32_t side = 0; side < 2; side++) {
        const layer *l = &m->low.source[side];
        if (!(sides >> side & 1)) continue;
        convolve_source(l, m->low.kernel[side], s, &memory->source, rows, out->features[side]);
    }
}

/* Rows of the features and energies of a low band from those of groups before and after it (NULL:
 * none); y: the bands of these groups. */
static void low_features(const model *m, const slab_shape *s, const reference *const sides[2],
                         const int32_t *const y[2], int32_t rate, row_range rows,
                         band_state *state) {
    const int16_t *from[MAX_SOURCES] = {NULL, NULL, NULL};
    const int8_t *restrict levels = m->levels;
    size_t begin = (size_t)rows.first * s->columns * CHANNELS;
    size_t n = (size_t)(rows.end - rows.first) * s->columns * CHANNELS;
    int8_t *restrict energy = state->energy[0] + begin;
    int32_t *restrict mean = state->mean_reference + begin;
    if (sides[0] == NULL) {
        memset(energy, levels[0], n);
        memset(mean, 0, n * sizeof *mean);
    } else {
        from[0] = sides[0]->features[0];
        look_up(levels, sides[0]->sums + begin, energy, n);
        memcpy(mean, y[0] + begin, n * sizeof *mean);
    }
    if (sides[1] != NULL) {
        from[1] = sides[1]->features[1];
        const int16_t *restrict sums = sides[1]->sums + begin;
        const int32_t *restrict other = y[1] + begin;
        for (size_t i = 0; i < n; i++) energy[i] = (int8_t)((energy[i] + levels[sums[i]]) >> 1);
        for (size_t i = 0; i < n; i++) mean[i] = (mean[i] + other[i] + 1) >> 1;
    }
    sum_sources(&m->low, s, from, rate, rows, state);
}

/* Rows of what the detail bands f of all groups need of band f - 1 of a group: this band. */
static void prepare_detail(const model *m, const slab_shape *s, const int32_t *band, int32_t f,
                           row_range rows, thread_memory *memory, reference *out) {
    const band_network *net = &m->detail;
    fill_source(m, s, band, f == 1, with_neighbours(s, rows), &memory->source);
    energy_sums(s, memory->source.magnitude, rows, out->sums);
    convolve_source(&net->source[0], net->kernel[0], s, &memory->source, rows, out->features[1]);
    /* The low band is the third source of all detail bands of a group: its features are kept. */
    if (f == 1) {
        convolve_source(&net->source[2], net->kernel[2], s, &memory->source, rows,
                        out->features[0]);
    }
}

/* The detail bands that are coded, as far as their features depend on it. */
typedef struct {
    const reference *references; /* Of all groups, by `prepare_detail`. */
    int32_t groups;
    int32_t f;
} detail_step;

/* Rows of the features and energies of the detail band of group g; y: the bands of its group. */
static void detail_features(const model *m, const slab_shape *s, const int32_t *y,
                            const detail_step *step, int32_t g, int32_t rate, row_range rows,
                            thread_memory *memory, band_state *state) {
    const band_network *net = &m->detail;
    size_t begin = (size_t)rows.first * s->columns * CHANNELS;
    size_t n = (size_t)(rows.end - rows.first) * s->columns * CHANNELS;
    const reference *references = step->references;
    const int16_t *restrict here = references[g].sums + begin;
    const int16_t *restrict before = references[max32(g - 1, 0)].sums + begin;
    const int16_t *restrict after = references[min32(g + 1, step->groups - 1)].sums + begin;
    int16_t *restrict around = memory->energy + begin;
    for (size_t i = 0; i < n; i++) {
        around[i] = (int16_t)((2 * here[i] + before[i] + after[i] + 2) >> 2);
    }
    look_up(m->levels, around, state->energy[0] + begin, n);
    int32_t second = max32(step->f - 2, 0);
    const int32_t *band = y + (size_t)second * s->coefficients;
    fill_source(m, s, band, second == 0, with_neighbours(s, rows), &memory->source);
    energy_sums(s, memory->source.magnitude, rows, memory->energy);
    look_up(m->levels, memory->energy + begin, state->energy[1] + begin, n);
    convolve_source(&net->source[1], net->kernel[1], s, &memory->source, rows, memory->features);
    const int16_t *from[MAX_SOURCES] = {references[g].features[1], memory->features,
                                        references[g].features[0]};
    sum_sources(net, s, from, rate, rows, state);
}

/* -- a pass over a band ----------------------------------------------------------------------- */

/* Sums over known neighbouring frequencies: 2 along an axis, 1 diagonally; in, out at 8 u + w. */
MRC_INLINE void spectral_sums(const int16_t *restrict in, int16_t *restrict out) {
    int16_t padded[10][10] = {{0}};
    for (int32_t u = 0; u < 8; u++) memcpy(&padded[u + 1][1], in + 8 * u, 8 * sizeof *in);
    for (int32_t u = 0; u < 8; u++) {
        const int16_t *above = padded[u], *here = padded[u + 1], *below = padded[u + 2];
        for (int32_t w = 0; w < 8; w++) {
            int32_t edges = above[w + 1] + below[w + 1] + here[w] + here[w + 2];
            int32_t corners = above[w] + above[w + 2] + below[w] + below[w + 2];
            out[8 * u + w] = (int16_t)(2 * edges + corners);
        }
    }
}

/* floor((sum of four neighbours of the DCs z + 2) / 4), reflected at the border. */
static int64_t near_mean(const int32_t *z, const slab_shape *s, int32_t r, int32_t t,
                         int32_t diagonal) {
    int32_t up = s->rows == 1 ? 0 : r == 0 ? 1 : r - 1;
    int32_t down = s->rows == 1 ? 0 : r == s->rows - 1 ? s->rows - 2 : r + 1;
    int32_t left = s->columns == 1 ? 0 : t == 0 ? 1 : t - 1;
    int32_t right = s->columns == 1 ? 0 : t == s->columns - 1 ? s->columns - 2 : t + 1;
    size_t n = (size_t)s->columns;
#define DC_AT(row, column) ((int64_t)z[((size_t)(row) * n + (size_t)(column)) * CHANNELS])
    int64_t total = diagonal ? DC_AT(up, left) + DC_AT(up, right) + DC_AT(down, left) +
                                   DC_AT(down, right)
                             : DC_AT(up, t) + DC_AT(down, t) + DC_AT(r, left) + DC_AT(r, right);
#undef DC_AT
    return (total + 2) >> 2;
}

/* The prediction of a DC from the references and from its neighbours; gates [3]. */
static int64_t predict_dc(const band_state *b, const slab_shape *s, int32_t p, int32_t r, int32_t t,
                          const int32_t gates[3]) {
    int64_t before = b->mean_reference[((size_t)r * s->columns + t) * CHANNELS];
    int64_t near = before, slope = before;
    if (p > 0) {
        near = near_mean(b->y, s, r, t, p == 1);
        slope = before + near - near_mean(b->mean_reference, s, r, t, p == 1);
    }
    int64_t total = gates[0] * before + gates[1] * near + gates[2] * slope;
    return round_shift(total, GATE_BITS);
}

/* What a pass has decided of its symbols, those of all bands one after another. */
typedef struct {
    uint8_t *index; /* Scale index, 0 where no symbol is coded. */
    int32_t *mean;  /* In 1/16 of a step. */
    int32_t *q;
    float *error;   /* Encoder only: what q is the rounding of, in steps. */
} pass_symbols;

static int32_t border_of(const slab_shape *s, int32_t r, int32_t t) {
    return (r == 0 ? TOP : 0) | (r == s->rows - 1 ? BOTTOM : 0) | (t == 0 ? LEFT : 0) |
           (t == s->columns - 1 ? RIGHT : 0);
}

/* floor(16 sum / weight) for sums of magnitudes and weights 1 ... 16; factor: 16 / weight.
 *
 * The product is off by less than 2^-5 (a sum is below 2^15, a float has 24 bits), and a quotient
 * that is no integer is at least 2^-4 away from the next one. */
MRC_INLINE int32_t mean_magnitude(int32_t sum, float factor) {
    return (int32_t)((float)sum * factor + 0.03125f);
}

/* Weighted sums of the log-energies of the n coefficients of a block that pass p codes, in 1/64. */
MRC_INLINE void weigh_energies(const model *m, const context_pass *pass, const band_state *b,
                               const slab_shape *s, int32_t p, int32_t parity, int32_t r, int32_t t,
                               int32_t *restrict total) {
    const uint8_t *restrict place = m->order.place[p][parity];
    const int32_t n = m->order.count[p];
    size_t block = ((size_t)r * s->columns + t) * CHANNELS;
    const int8_t *restrict weights =
        pass->weights + (size_t)b->class_number * pass->energies * CHANNELS;
    const int8_t *restrict first = b->energy[0] + block, *restrict second = b->energy[1] + block;
    const int8_t *restrict levels = m->levels;
    int32_t of_references = b->low ? 1 : 2;
    for (int32_t k = 0; k < n; k++) total[k] = weights[place[k]] * first[place[k]];
    if (of_references == 2) {
        for (int32_t k = 0; k < n; k++) {
            total[k] += weights[CHANNELS + place[k]] * second[place[k]];
        }
    }
    if (p == 0) return;
    int16_t spatial[CHANNELS], spectral[CHANNELS];
    int32_t near[MAX_CODED], across[MAX_CODED];
    size_t row = padded_row(s, CHANNELS);
    const int16_t *at =
        b->magnitude + padded_start(s, CHANNELS) + (size_t)r * row + (size_t)t * CHANNELS;
    binomial_sums(at, row, spatial);
    spectral_sums(at, spectral);
    for (int32_t k = 0; k < n; k++) {
        near[k] = spatial[place[k]];
        across[k] = spectral[place[k]];
    }
    const float *of_blocks = m->order.spatial[p][border_of(s, r, t)][parity];
    const float *of_frequencies = m->order.spectral[p][parity];
    for (int32_t k = 0; k < n; k++) {
        near[k] = mean_magnitude(near[k], of_blocks[k]);
        across[k] = mean_magnitude(across[k], of_frequencies[k]);
    }
    const int8_t *restrict of_near = weights + of_references * CHANNELS;
    const int8_t *restrict of_across = of_near + CHANNELS;
    for (int32_t k = 0; k < n; k++) {
        total[k] += of_near[place[k]] * levels[near[k]];
        total[k] += of_across[place[k]] * levels[across[k]];
    }
}

/* round(v / 64), ties to even, for sums and products below 2^31 - 64. */
MRC_INLINE int32_t round_gate(int32_t v) { return (v + 31 + ((v >> GATE_BITS) & 1)) >> GATE_BITS; }

/* Means and scale indices of the coefficients of block (r, t) that pass p codes.
 *
 * out: the outputs of the network. */
MRC_INLINE void predict_block(const model *m, const band_network *net, const band_state *b,
                              const slab_shape *s, int32_t p, int32_t parity, int32_t r, int32_t t,
                              const int16_t *restrict out, uint8_t *restrict index,
                              int32_t *restrict mean) {
    const uint8_t *restrict place = m->order.place[p][parity];
    const int32_t n = m->order.count[p];
    int32_t total[MAX_CODED], reference[MAX_CODED];
    weigh_energies(m, &net->pass[p], b, s, p, parity, r, t, total);
    for (int32_t k = 0; k < n; k++) {
        int32_t scale = clamp32(out[n + k] + round_gate(total[k]) + INDEX_ORIGIN, 0, INDEX_MAX);
        index[k] = (uint8_t)(scale < INDEX_SKIP ? 0 : scale);
    }
    if (!b->low) {
        for (int32_t k = 0; k < n; k++) mean[k] = clamp32(out[k], -MU_MAX, MU_MAX);
        return;
    }
    const int32_t *block = b->mean_reference + ((size_t)r * s->columns + t) * CHANNELS;
    for (int32_t k = 0; k < n; k++) reference[k] = block[place[k]];
    for (int32_t k = 0; k < n; k++) {
        int32_t gate = clamp32(out[2 * n + k], -GATE_MAX, GATE_MAX);
        int32_t linear = round_gate(gate * clamp32(reference[k], -LINEAR_MAX, LINEAR_MAX));
        mean[k] = clamp32(out[k] + linear, -MU_MAX, MU_MAX);
    }
    if (p != parity) return;
    int32_t gates[3] = {out[2 * n], out[3 * n], out[3 * n + 1]};
    for (int32_t g = 0; g < 3; g++) gates[g] = clamp32(gates[g], -GATE_MAX, GATE_MAX);
    mean[0] = (int32_t)clamp64(out[0] + predict_dc(b, s, p, r, t, gates), -MU_MAX, MU_MAX);
}

/* Symbols of pass p in a band of this shape. */
static size_t symbols_of_pass(const coding_order *order, const slab_shape *s, int32_t p) {
    return s->blocks * (size_t)order->count[p];
}

/* The blocks of a parity in a row, and where the first one's symbols lie in the call. */
typedef struct {
    int32_t parity, row, column, pixels;
    size_t at;
} parity_row;

/* The next row of a range that has blocks of a parity; a walk starts with parity -1. */
static int32_t next_parity_row(const coding_order *order, const slab_shape *s, int32_t p,
                               row_range rows, parity_row *each) {
    size_t n = (size_t)order->count[p];
    if (each->parity < 0) *each = (parity_row){0, rows.first - 1, 0, 0, 0};
    else each->row += 1;
    for (; each->parity < PARITIES; each->parity++, each->row = rows.first - 1) {
        int32_t first = PARITY_ROW[each->parity];
        each->column = PARITY_COLUMN[each->parity];
        each->pixels = (s->columns - each->column + 1) / 2;
        if (each->row < rows.first) each->row = rows.first;
        if ((each->row & 1) != first) each->row++;
        if (each->row >= rows.end || each->pixels < 1) continue;
        size_t before = 0;
        for (int32_t parity = 0; parity < each->parity; parity++) {
            size_t of_rows = (size_t)((s->rows - PARITY_ROW[parity] + 1) / 2);
            before += of_rows * (size_t)((s->columns - PARITY_COLUMN[parity] + 1) / 2);
        }
        before += (size_t)((each->row - first) / 2) * (size_t)each->pixels;
        each->at = before * n;
        return 1;
    }
    return 0;
}

/* Means and scale indices of the symbols of pass p in some rows of a band.
 *
 * index, mean: of the whole band, in the order of the call. */
static void predict_rows(const model *m, const band_network *net, const band_state *b,
                         const slab_shape *s, int32_t p, row_range rows, thread_memory *memory,
                         uint8_t *index, int32_t *mean) {
    int32_t width = net->width, n = m->order.count[p];
    size_t row = padded_row(s, MAX_KNOWN);
    parity_row at = {.parity = -1};
    while (next_parity_row(&m->order, s, p, rows, &at)) {
        const layer *head = &net->pass[p].head[at.parity];
        const int16_t *base = b->base + ((size_t)at.row * s->columns + at.column) * width;
        if (p > 0) {
            const int16_t *in = b->known + padded_start(s, MAX_KNOWN) + (size_t)at.row * row +
                                (size_t)at.column * MAX_KNOWN;
            window w = nine_taps(in, m->order.known[p], (ptrdiff_t)row, MAX_KNOWN);
            w.next_pixel = 2 * MAX_KNOWN;
            convolve(&net->pass[p].known[at.parity], &w, memory->sums, at.pixels);
            for (int32_t x = 0; x < at.pixels; x++) {
                add_row(memory->sums + (size_t)x * width, base + (size_t)2 * x * width,
                        (size_t)width);
            }
            relu8_row(memory->first, memory->sums, at.pixels * width);
        } else {
            for (int32_t x = 0; x < at.pixels; x++) {
                relu8_row(memory->first + (size_t)x * width, base + (size_t)2 * x * width, width);
            }
        }
        window w = single_tap(memory->first, width, width);
        convolve(&net->pass[p].middle, &w, memory->sums, at.pixels);
        relu8_row(memory->second, memory->sums, at.pixels * width);
        w = single_tap(memory->second, width, width);
        convolve(head, &w, memory->sums, at.pixels);
        for (int32_t x = 0; x < at.pixels; x++) {
            size_t symbol = at.at + (size_t)x * n;
            predict_block(m, net, b, s, p, at.parity, at.row, at.column + 2 * x,
                          memory->sums + (size_t)x * head->panels * PANEL, index + symbol,
                          mean + symbol);
        }
    }
}

/* Take note of the symbols of pass p of a block: q, mean [n] in the order of the call. */
MRC_INLINE void update_block(const model *m, band_state *b, const slab_shape *s, int32_t p,
                             int32_t parity, int32_t r, int32_t t, const int32_t *restrict q,
                             const int32_t *restrict mean) {
    const uint8_t *restrict place = m->order.place[p][parity];
    const int16_t *restrict table = m->compand;
    const int32_t n = m->order.count[p];
    int32_t *restrict y = b->y + ((size_t)r * s->columns + t) * CHANNELS, value[MAX_CODED];
    for (int32_t k = 0; k < n; k++) value[k] = clamp32(16 * q[k] + mean[k], -Y_MAX, Y_MAX);
    for (int32_t k = 0; k < n; k++) y[place[k]] = value[k];
    if (p == PASSES - 1) return;
    size_t at = (size_t)(r + 1) * (s->columns + 2) + t + 1;
    int16_t *restrict known = b->known + at * MAX_KNOWN + m->order.known[p];
    int16_t *restrict magnitude = b->magnitude + at * CHANNELS;
    for (int32_t k = 0; k < n; k++) magnitude[place[k]] = magnitude_of(value[k]);
    if (p == parity) {
        magnitude[0] = magnitude_of(16 * q[0]);
        if (b->low) value[0] -= b->mean_reference[((size_t)r * s->columns + t) * CHANNELS];
    }
    for (int32_t k = 0; k < n; k++) known[k] = companded(table, value[k]);
}

/* Take note of the symbols of pass p in some rows of a band. */
static void update_rows(const model *m, band_state *b, const slab_shape *s, int32_t p,
                        row_range rows, const int32_t *q, const int32_t *mean) {
    size_t n = (size_t)m->order.count[p];
    parity_row at = {.parity = -1};
    while (next_parity_row(&m->order, s, p, rows, &at)) {
        for (int32_t x = 0; x < at.pixels; x++) {
            size_t symbol = at.at + (size_t)x * n;
            update_block(m, b, s, p, at.parity, at.row, at.column + 2 * x, q + symbol,
                         mean + symbol);
        }
    }
}

#endif
