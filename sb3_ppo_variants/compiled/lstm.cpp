// The recurrence of an LSTM over sequences of any lengths, forward and backward, in single precision, without padding.
//
// Rows of a matrix are steps; those of a sequence follow each other, and is_start says where the next one begins. Step t of
// all sequences is made at once: a product of their rows with the recurrent weights, and then the gates i, f, g and o.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#ifdef __AVX512F__
constexpr int LANES = 16, MAX_ROWS = 6;
#else
constexpr int LANES = 8, MAX_ROWS = 3;
#endif
// Columns of a product that are computed at once: as many registers as there are for MAX_ROWS rows
constexpr int PANEL = 4 * LANES;

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4)));

static inline vec load(const float* x, int n) {
    vec result = {};
    if (n >= LANES) return *(const unaligned*)x;
    std::memcpy(&result, x, n * sizeof(float));
    return result;
}

static inline void store(float* x, vec values, int n) {
    if (n >= LANES) *(unaligned*)x = values;
    else std::memcpy(x, &values, n * sizeof(float));
}

// 2^k e^r, |r| <= ln(2)/2, and a polynomial for e^r; NaN stays NaN
static inline vec exponential(vec x) {
    const vec low = vec{} - 87.0f, high = vec{} + 88.0f, magic = vec{} + 12582912.0f;
    x = x < low ? low : x;
    x = x > high ? high : x;
    vec k = x * 1.44269504f + magic - magic;
    vec r = x - k * 0.693359375f + k * 2.12194440e-4f;
    vec p = ((((r * 1.38888889e-3f + 8.33333333e-3f) * r + 4.16666667e-2f) * r + 0.166666667f) * r + 0.5f) * r * r + r + 1.0f;
    ivec exponent = (__builtin_convertvector(k, ivec) + 127) << 23;
    return p * (vec)exponent;
}

static inline vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }
static inline vec hyperbolic(vec x) { return 2.0f / (1.0f + exponential(-2.0f * x)) - 1.0f; }

// A matrix of n_inner rows in panels of some columns each, for products from the right
struct Panels {
    int n_inner, n_columns;
    std::vector<float> memory;
    float* values;

    Panels(const float* matrix, int n_inner, int n_columns, int stride_inner, int stride_column)
        : n_inner(n_inner), n_columns(n_columns), memory((size_t)(n_columns + PANEL - 1) / PANEL * n_inner * PANEL + LANES) {
        // Vectors do not cross the border of a cache line
        values = (float*)(((uintptr_t)memory.data() + 4 * LANES - 1) / (4 * LANES) * (4 * LANES));
        for (int first = 0; first < n_columns; first += PANEL) {
            float* panel = values + (size_t)first * n_inner;
            int width = std::min(PANEL, n_columns - first);
            const float* source = matrix + (size_t)first * stride_column;
            if (stride_column == 1) {
                for (int inner = 0; inner < n_inner; inner++)
                    std::memcpy(panel + inner * PANEL, source + (size_t)inner * stride_inner, width * sizeof(float));
            } else {
                for (int i = 0; i < width; i++)
                    for (int inner = 0; inner < n_inner; inner++)
                        panel[inner * PANEL + i] = source[(size_t)i * stride_column + (size_t)inner * stride_inner];
            }
        }
    }
};

// to += from * panel
template <int ROWS>
static void add_product(float* const* to, const float* const* from, const float* panel, int n_inner, int width) {
    vec sums[ROWS][4] = {};
    for (int inner = 0; inner < n_inner; inner++, panel += PANEL)
        for (int row = 0; row < ROWS; row++)
            for (int i = 0; i < 4; i++) sums[row][i] += from[row][inner] * *(const vec*)(panel + i * LANES);
    for (int row = 0; row < ROWS; row++)
        for (int i = 0; i < 4 && i * LANES < width; i++) {
            float* x = to[row] + i * LANES;
            store(x, load(x, width - i * LANES) + sums[row][i], width - i * LANES);
        }
}

// to += from * matrix, for rows anywhere in memory
static void add_products(std::vector<float*>& to, const std::vector<const float*>& from, const Panels& matrix) {
    for (int column = 0; column < matrix.n_columns; column += PANEL) {
        const float* panel = matrix.values + (size_t)column * matrix.n_inner;
        int width = std::min(PANEL, matrix.n_columns - column);
        float* targets[MAX_ROWS];
        for (int row = 0, n = to.size(); row < n;) {
            int rows = std::min(MAX_ROWS, n - row);
            for (int i = 0; i < rows; i++) targets[i] = to[row + i] + column;
            const float* const* sources = from.data() + row;
            switch (rows) {
                case 1: add_product<1>(targets, sources, panel, matrix.n_inner, width); break;
                case 2: add_product<2>(targets, sources, panel, matrix.n_inner, width); break;
                case 3: add_product<3>(targets, sources, panel, matrix.n_inner, width); break;
#ifdef __AVX512F__
                case 4: add_product<4>(targets, sources, panel, matrix.n_inner, width); break;
                case 5: add_product<5>(targets, sources, panel, matrix.n_inner, width); break;
                default: add_product<6>(targets, sources, panel, matrix.n_inner, width);
#endif
            }
            row += rows;
        }
    }
}

// The rows of the first steps of all sequences, longest first, and how many sequences have a step t
struct Sequences {
    std::vector<int> starts;
    std::vector<int> counts;

    Sequences(const uint8_t* is_start, int n_rows) {
        std::vector<int> all, lengths;
        for (int row = 0; row < n_rows; row++) {
            if (row == 0 || is_start[row]) {
                all.push_back(row);
                lengths.push_back(0);
            }
            lengths.back()++;
        }
        std::vector<int> order(all.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return lengths[a] > lengths[b]; });
        for (int i : order) starts.push_back(all[i]);
        counts.assign(lengths[order[0]], 0);
        for (int length : lengths)
            for (int t = 0; t < length; t++) counts[t]++;
    }
};

// gates: the input's part of the gates, which become the gates; weight: (4 size, size); h0, c0: the states before a step, of
// which those at starts count; h, c: those after it
extern "C" void lstm_forward(
    int n_rows, int size, const uint8_t* is_start, const float* weight, const float* h0, const float* c0, float* gates, float* h,
    float* c
) {
    const Sequences sequences(is_start, n_rows);
    const Panels panels(weight, size, 4 * size, 1, size);
    std::vector<float*> to;
    std::vector<const float*> from;
    for (int t = 0, n_steps = sequences.counts.size(); t < n_steps; t++) {
        to.clear();
        from.clear();
        for (int i = 0; i < sequences.counts[t]; i++) {
            size_t row = sequences.starts[i] + t;
            to.push_back(gates + row * 4 * size);
            from.push_back(t == 0 ? h0 + row * size : h + (row - 1) * size);
        }
        add_products(to, from, panels);
        for (int i = 0; i < sequences.counts[t]; i++) {
            size_t row = sequences.starts[i] + t;
            const float* before = t == 0 ? c0 + row * size : c + (row - 1) * size;
            float* gate = to[i];
            for (int k = 0; k < size; k += LANES) {
                int n = size - k;
                vec in = sigmoid(load(gate + k, n)), forget = sigmoid(load(gate + size + k, n));
                vec candidate = hyperbolic(load(gate + 2 * size + k, n)), out = sigmoid(load(gate + 3 * size + k, n));
                vec cell = forget * load(before + k, n) + in * candidate;
                store(gate + k, in, n);
                store(gate + size + k, forget, n);
                store(gate + 2 * size + k, candidate, n);
                store(gate + 3 * size + k, out, n);
                store(c + row * size + k, cell, n);
                store(h + row * size + k, out * hyperbolic(cell), n);
            }
        }
    }
}

// dh: the gradient of h, to which that by later steps is added; dgates: that of the input's part of the gates
extern "C" void lstm_backward(
    int n_rows, int size, const uint8_t* is_start, const float* weight, const float* c0, const float* gates, const float* c,
    float* dh, float* dgates
) {
    const Sequences sequences(is_start, n_rows);
    const Panels panels(weight, 4 * size, size, size, 1);
    std::vector<float> dcells(sequences.starts.size() * size, 0.0f);
    std::vector<float*> to;
    std::vector<const float*> from;
    for (int t = (int)sequences.counts.size() - 1; t >= 0; t--) {
        to.clear();
        from.clear();
        for (int i = 0; i < sequences.counts[t]; i++) {
            size_t row = sequences.starts[i] + t;
            const float *before = t == 0 ? c0 + row * size : c + (row - 1) * size, *gate = gates + row * 4 * size;
            float *dgate = dgates + row * 4 * size, *dcell = dcells.data() + (size_t)i * size;
            for (int k = 0; k < size; k += LANES) {
                int n = size - k;
                vec in = load(gate + k, n), forget = load(gate + size + k, n);
                vec candidate = load(gate + 2 * size + k, n), out = load(gate + 3 * size + k, n);
                vec squashed = hyperbolic(load(c + row * size + k, n)), gradient = load(dh + row * size + k, n);
                vec dc = load(dcell + k, n) + gradient * out * (1.0f - squashed * squashed);
                store(dgate + k, dc * candidate * in * (1.0f - in), n);
                store(dgate + size + k, dc * load(before + k, n) * forget * (1.0f - forget), n);
                store(dgate + 2 * size + k, dc * in * (1.0f - candidate * candidate), n);
                store(dgate + 3 * size + k, gradient * squashed * out * (1.0f - out), n);
                store(dcell + k, dc * forget, n);
            }
            if (t > 0) {
                to.push_back(dh + (row - 1) * size);
                from.push_back(dgate);
            }
        }
        add_products(to, from, panels);
    }
}
