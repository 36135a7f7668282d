// Products: operands on grids of 20 to 22 bits, multiplied and added in float64 without rounding.
//
// All of them are one routine. Tiles of ROWS by WIDTH sums stay in registers; the left operand is read number by number, through a
// pointer for each row and one list of places for all of them, so that a convolution needs no copy of its windows; the right operand
// lies in panels of WIDTH columns.
#include "common.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#endif

namespace portable {
namespace {

#if defined(__AVX512F__)
using Vector = __m512d;
constexpr int LANES = 8, VECTORS = 2, ROWS = 12;
inline Vector load(const double* p) { return _mm512_loadu_pd(p); }
inline void store(double* p, Vector v) { _mm512_storeu_pd(p, v); }
inline Vector all(double x) { return _mm512_set1_pd(x); }
inline Vector plus_product(Vector sum, Vector a, Vector b) { return _mm512_fmadd_pd(a, b, sum); }
inline void store_rounded(float* p, Vector v) { _mm256_storeu_ps(p, _mm512_cvtpd_ps(v)); }
inline void store_rounded_plus(float* p, Vector v, const float* c) { _mm256_storeu_ps(p, _mm256_add_ps(_mm512_cvtpd_ps(v), _mm256_loadu_ps(c))); }
#elif defined(__AVX2__) && defined(__FMA__)
using Vector = __m256d;
constexpr int LANES = 4, VECTORS = 2, ROWS = 6;
inline Vector load(const double* p) { return _mm256_loadu_pd(p); }
inline void store(double* p, Vector v) { _mm256_storeu_pd(p, v); }
inline Vector all(double x) { return _mm256_set1_pd(x); }
inline Vector plus_product(Vector sum, Vector a, Vector b) { return _mm256_fmadd_pd(a, b, sum); }
inline void store_rounded(float* p, Vector v) { _mm_storeu_ps(p, _mm256_cvtpd_ps(v)); }
inline void store_rounded_plus(float* p, Vector v, const float* c) { _mm_storeu_ps(p, _mm_add_ps(_mm256_cvtpd_ps(v), _mm_loadu_ps(c))); }
#else
typedef double Vector __attribute__((vector_size(16)));
constexpr int LANES = 2, VECTORS = 2, ROWS = 4;
inline Vector load(const double* p) { Vector v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(double* p, Vector v) { std::memcpy(p, &v, sizeof v); }
inline Vector all(double x) { return Vector{x, x}; }
inline Vector plus_product(Vector sum, Vector a, Vector b) { return sum + a * b; }
inline void store_rounded(float* p, Vector v) { for (int i = 0; i < LANES; i++) p[i] = static_cast<float>(v[i]); }
inline void store_rounded_plus(float* p, Vector v, const float* c) { for (int i = 0; i < LANES; i++) p[i] = static_cast<float>(v[i]) + c[i]; }
#endif

constexpr int WIDTH = LANES * VECTORS;
constexpr Long DEPTH = 320;  // terms for which a panel stays in the first cache
constexpr Long BLOCK = 192;  // rows whose sums stay there too

inline Long panels_of(Long n) { return (n + WIDTH - 1) / WIDTH; }

// held (+)= the products of `depth` terms
template <int R>
__attribute__((always_inline)) inline void accumulate(Long depth, const double* const* rows, const int32_t* places, const double* panel,
                                                      Vector (&held)[R][VECTORS]) {
    const double* row[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) row[r] = rows[r];
    for (Long k = 0; k < depth; k++) {
        const Long place = places[k];
        Vector right[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) right[v] = load(panel + k * WIDTH + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const Vector left = all(row[r][place]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) held[r][v] = plus_product(held[r][v], left, right[v]);
        }
    }
}

// sums[R][WIDTH] (+)= the products of `depth` terms
template <int R>
inline void tile(Long depth, const double* const* rows, const int32_t* places, const double* panel, double* sums, bool add) {
    Vector held[R][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) held[r][v] = add ? load(sums + r * WIDTH + v * LANES) : all(0.0);
    }
    accumulate<R>(depth, rows, places, panel, held);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) store(sums + r * WIDTH + v * LANES, held[r][v]);
    }
}

// The same for all terms of a product that has few, rounded, with `more` added, if anything.
inline void rounded_tile(Long depth, const double* const* rows, const int32_t* places, const double* panel, float* out, Long down,
                         const float* more, Long more_down) {
    Vector held[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) held[r][v] = all(0.0);
    }
    accumulate<ROWS>(depth, rows, places, panel, held);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            float* to = out + r * down + v * LANES;
            if (more) store_rounded_plus(to, held[r][v], more + r * more_down + v * LANES);
            else store_rounded(to, held[r][v]);
        }
    }
}

template <int R>
void remaining(Long count, Long depth, const double* const* rows, const int32_t* places, const double* panel, double* sums, bool add) {
    if (count == R) { tile<R>(depth, rows, places, panel, sums, add); return; }
    if constexpr (R > 1) remaining<R - 1>(count, depth, rows, places, panel, sums, add);
}

// sums[count][WIDTH] (+)= rows times panel, over all terms; exact as long as these are at most a stretch
void stretch_sums(const double* const* rows, Long count, const int32_t* places, Long terms, const double* panel, double* sums, bool add) {
    const Long blocks = std::max<Long>(1, (terms + DEPTH - 1) / DEPTH), step = (terms + blocks - 1) / blocks;
    for (Long k = 0; k == 0 || k < terms; k += std::max<Long>(step, 1)) {
        const Long depth = std::min(step, terms - k);
        Long i = 0;
        for (; i + ROWS <= count; i += ROWS) tile<ROWS>(depth, rows + i, places + k, panel + k * WIDTH, sums + i * WIDTH, add || k);
        if (i < count) remaining<ROWS - 1>(count - i, depth, rows + i, places + k, panel + k * WIDTH, sums + i * WIDTH, add || k);
        if (terms == 0) break;
    }
}

// The same where there are more terms: the sums of the stretches, added from the first to the last. `part` is as large as `sums`.
void sums_of(const double* const* rows, Long count, const int32_t* places, Long terms, Long stretch, const double* panel, double* sums,
             double* part) {
    stretch_sums(rows, count, places, std::min(terms, stretch), panel, sums, false);
    for (Long k = stretch; k < terms; k += stretch) {
        stretch_sums(rows, count, places + k, std::min(stretch, terms - k), panel + k * WIDTH, part, false);
        SIMD for (Long i = 0; i < count * WIDTH; i++) sums[i] = sums[i] + part[i];
    }
}

// A matrix of float32 in memory: the number (i, j) lies at i * down + j * across.
struct Matrix {
    const float* at;
    Long down, across;
};

// The largest magnitude of each of n columns (of the transposed: rows), over `terms` rows.
void column_grids(Matrix b, Long terms, Long n, int bits, float* grid) {
    static thread_local Scratch<uint32_t> scratch;
    uint32_t* most = scratch.get(n);
    std::memset(most, 0, static_cast<size_t>(n) * 4);
    if (b.across == 1) largest_of_columns(b.at, terms, n, b.down, most);
    else if (b.down == 1) for (Long j = 0; j < n; j++) most[j] = largest_of(b.at + j * b.across, terms);
    else for (Long j = 0; j < n; j++) for (Long k = 0; k < terms; k++) most[j] = std::max(most[j], bits_of(b.at[k * b.down + j * b.across]) & MAGNITUDE);
    for (Long j = 0; j < n; j++) grid[j] = product_grid(most[j], bits);
}

// The columns of b, [terms, n], on their grids, in panels: [panel][terms][WIDTH].
void pack(Matrix b, Long terms, Long n, const float* grid, double* panels) {
    const Long whole = b.across == 1 ? n / WIDTH : 0;
    for (Long k = 0; k < terms; k += 8)  // a few rows at a time: rows that are a power of two apart share their place in a cache
        for (Long p = 0; p < whole; p++) {
            const float *x = b.at + k * b.down + p * WIDTH, *g = grid + p * WIDTH;
            double* to = panels + (p * terms + k) * WIDTH;
            for (Long i = 0; i < std::min<Long>(8, terms - k); i++) {
                SIMD for (int j = 0; j < WIDTH; j++) to[i * WIDTH + j] = static_cast<double>(on_grid(x[i * b.down + j], g[j]));
            }
        }
    panels += whole * terms * WIDTH;
    for (Long p = whole; p < panels_of(n); p++, panels += terms * WIDTH) {
        const Long first = p * WIDTH, width = std::min<Long>(WIDTH, n - first);
        const float* g = grid + first;
        if (width < WIDTH) std::memset(panels, 0, static_cast<size_t>(terms) * WIDTH * sizeof(double));
        if (b.down == 1) {
            constexpr Long PIECE = 64;
            double piece[WIDTH][PIECE];
            for (Long k = 0; k < terms; k += PIECE) {
                const Long length = std::min(PIECE, terms - k);
                for (Long j = 0; j < width; j++) {
                    const float* x = b.at + (first + j) * b.across + k;
                    const float m = g[j];
                    SIMD for (Long i = 0; i < length; i++) piece[j][i] = static_cast<double>(on_grid(x[i], m));
                }
                double* to = panels + k * WIDTH;
                if (width == WIDTH) for (Long i = 0; i < length; i++) for (int j = 0; j < WIDTH; j++) to[i * WIDTH + j] = piece[j][i];
                else for (Long i = 0; i < length; i++) for (Long j = 0; j < width; j++) to[i * WIDTH + j] = piece[j][i];
            }
        } else {
            for (Long k = 0; k < terms; k++)
                for (Long j = 0; j < width; j++)
                    panels[k * WIDTH + j] = static_cast<double>(on_grid(b.at[k * b.down + (first + j) * b.across], g[j]));
        }
    }
}

// One product, [m, terms] times [terms, n]; to each sum is added, once it is rounded, what `more` has (rows `down` apart), if anything.
void product(Matrix a, Matrix b, Long m, Long terms, Long n, int bits, Long stretch, const float* more, Long more_down, Long more_across,
             float* out, Long out_down) {
    static thread_local Scratch<double> panels_, left_, sums_, part_;
    static thread_local Scratch<float> grids_, rows_grid_;
    static thread_local Scratch<int32_t> places_;
    static thread_local Scratch<const double*> rows_;
    const Long block = std::max<Long>(ROWS * 2, std::min<Long>(BLOCK, (Long{24} << 10) / std::max<Long>(terms, 1)) / ROWS * ROWS);
    float* grid = grids_.get(n);
    column_grids(b, terms, n, bits, grid);
    double* panels = panels_.get(panels_of(n) * terms * WIDTH);
    pack(b, terms, n, grid, panels);
    const bool along = a.across == 1;  // else down == 1
    float* row_grid = rows_grid_.get(m);
    if (!along) column_grids(Matrix{a.at, a.across, a.down}, terms, m, bits, row_grid);
    double* left = left_.get(block * terms);
    double* sums = sums_.get(block * WIDTH);
    double* part = terms > stretch ? part_.get(block * WIDTH) : nullptr;
    int32_t* places = places_.get(terms);
    const double** rows = rows_.get(block);
    // Row by row; or, where the numbers of a column are neighbours, in strips of ROWS rows.
    for (Long k = 0; k < terms; k++) places[k] = static_cast<int32_t>(along ? k : k * ROWS);
    for (Long i = 0; i < block; i++) rows[i] = along ? left + i * terms : left + i / ROWS * ROWS * terms + i % ROWS;
    for (Long start = 0; start < m; start += block) {
        const Long count = std::min(block, m - start);
        if (along) {
            for (Long i = 0; i < count; i++) {
                const float* x = a.at + (start + i) * a.down;
                const float g = product_grid(largest_of(x, terms), bits);
                double* to = left + i * terms;
                SIMD for (Long k = 0; k < terms; k++) to[k] = static_cast<double>(on_grid(x[k], g));
            }
        } else {
            for (Long i = 0; i < count; i += ROWS) {
                const Long height = std::min<Long>(ROWS, count - i);
                const float *from = a.at + (start + i) * a.down, *g = row_grid + start + i;
                double* to = left + i * terms;
                if (a.down == 1 && height == ROWS)
                    for (Long k = 0; k < terms; k++) {
                        SIMD for (int r = 0; r < ROWS; r++) to[k * ROWS + r] = static_cast<double>(on_grid(from[k * a.across + r], g[r]));
                    }
                else
                    for (Long k = 0; k < terms; k++)
                        for (Long r = 0; r < height; r++) to[k * ROWS + r] = static_cast<double>(on_grid(from[k * a.across + r * a.down], g[r]));
            }
        }
        for (Long p = 0; p < panels_of(n); p++) {
            const Long first = p * WIDTH, width = std::min<Long>(WIDTH, n - first);
            const double* panel = panels + p * terms * WIDTH;
            Long done = 0;
            if (terms <= std::min(DEPTH, stretch) && width == WIDTH && (!more || more_across == 1))
                for (; done + ROWS <= count; done += ROWS)
                    rounded_tile(terms, rows + done, places, panel, out + (start + done) * out_down + first, out_down,
                                 more ? more + (start + done) * more_down + first : nullptr, more_down);
            if (done == count) continue;
            sums_of(rows + done, count - done, places, terms, stretch, panel, sums + done * WIDTH, part);
            for (Long i = done; i < count; i++) {
                float* to = out + (start + i) * out_down + first;
                const double* s = sums + i * WIDTH;
                if (!more) {
                    if (width == WIDTH) SIMD for (int j = 0; j < WIDTH; j++) to[j] = static_cast<float>(s[j]);
                    else for (Long j = 0; j < width; j++) to[j] = static_cast<float>(s[j]);
                } else {
                    const float* c = more + (start + i) * more_down + first * more_across;
                    if (width == WIDTH && more_across == 1) SIMD for (int j = 0; j < WIDTH; j++) to[j] = static_cast<float>(s[j]) + c[j];
                    else for (Long j = 0; j < width; j++) to[j] = static_cast<float>(s[j]) + c[j * more_across];
                }
            }
        }
    }
}

// ---- convolution in two dimensions -----------------------------------------------------------------------

struct Shape {  // as handed over: samples, channels and filters of one group, groups, places of the input, of the output, the kernel, ...
    Long samples, channels, filters, groups, height, width, out_height, out_width, kernel_height, kernel_width;
    Long stride_height, stride_width, padding_height, padding_width, dilation_height, dilation_width;
    Long padded_height() const { return height + 2 * padding_height; }
    Long padded_width() const { return width + 2 * padding_width; }
    Long area() const { return kernel_height * kernel_width; }
    Long outputs() const { return out_height * out_width; }
};

// One channel on its grid, with zeros around it.
void padded(const float* x, const Shape& s, float m, double* to) {
    const Long wide = s.padded_width();
    std::memset(to, 0, static_cast<size_t>(s.padded_height() * wide) * sizeof(double));
    for (Long y = 0; y < s.height; y++) {
        double* row = to + (y + s.padding_height) * wide + s.padding_width;
        const float* from = x + y * s.width;
        SIMD for (Long k = 0; k < s.width; k++) row[k] = static_cast<double>(on_grid(from[k], m));
    }
}

// Where a kernel's terms lie, from the first of a window on, and where the windows do.
void kernel_places(const Shape& s, Long channels, int32_t* to) {
    for (Long c = 0; c < channels; c++)
        for (Long i = 0; i < s.kernel_height; i++)
            for (Long j = 0; j < s.kernel_width; j++)
                *to++ = static_cast<int32_t>((c * s.padded_height() + i * s.dilation_height) * s.padded_width() + j * s.dilation_width);
}

void window_places(const Shape& s, int32_t* to) {
    for (Long y = 0; y < s.out_height; y++)
        for (Long x = 0; x < s.out_width; x++)
            *to++ = static_cast<int32_t>(y * s.stride_height * s.padded_width() + x * s.stride_width);
}

// [samples, groups * filters, outputs] from x [samples, groups * channels, height, width] and panels of one group after the other.
void convolve(const float* x, const Shape& s, const double* panels, Long stretch, int bits, const float* bias, float* out, int threads) {
    const Long terms = s.channels * s.area(), plane = s.height * s.width, wide = s.padded_height() * s.padded_width();
    const Long all = s.groups * s.channels, filters = s.filters, outputs = s.outputs();
    std::vector<int32_t> places(static_cast<size_t>(std::max<Long>(terms, 1))), windows(static_cast<size_t>(std::max<Long>(outputs, 1)));
    kernel_places(s, s.channels, places.data());
    window_places(s, windows.data());
    parallel(threads, s.samples, [&](Long begin, Long end) {
        static thread_local Scratch<double> image_, sums_, part_;
        double* image = image_.get(all * wide);
        double* sums = sums_.get(BLOCK * WIDTH);
        double* part = part_.get(terms > stretch ? BLOCK * WIDTH : 1);
        const double* rows[BLOCK];
        for (Long n = begin; n < end; n++) {
            const float* sample = x + n * all * plane;
            const float m = product_grid(largest_of(sample, all * plane), bits);
            for (Long c = 0; c < all; c++) padded(sample + c * plane, s, m, image + c * wide);
            for (Long g = 0; g < s.groups; g++)
                for (Long start = 0; start < outputs; start += BLOCK) {
                    const Long count = std::min(BLOCK, outputs - start);
                    for (Long i = 0; i < count; i++) rows[i] = image + g * s.channels * wide + windows[static_cast<size_t>(start + i)];
                    for (Long p = 0; p < panels_of(filters); p++) {
                        sums_of(rows, count, places.data(), terms, stretch, panels + (g * panels_of(filters) + p) * terms * WIDTH, sums, part);
                        const Long first = g * filters + p * WIDTH, width = std::min<Long>(WIDTH, filters - p * WIDTH);
                        for (Long j = 0; j < width; j++) {
                            float* to = out + (n * s.groups * filters + first + j) * outputs + start;
                            const double* from = sums + j;
                            if (bias) { const float b = bias[first + j]; for (Long i = 0; i < count; i++) to[i] = static_cast<float>(from[i * WIDTH]) + b; }
                            else for (Long i = 0; i < count; i++) to[i] = static_cast<float>(from[i * WIDTH]);
                        }
                    }
                }
        }
    });
}

void channel_grids(const float* x, Long samples, Long channels, Long plane, int bits, float* grid) {
    for (Long c = 0; c < channels; c++) {
        uint32_t most = 0;
        for (Long n = 0; n < samples; n++) most = largest_of(x + (n * channels + c) * plane, plane, most);
        grid[c] = product_grid(most, bits);
    }
}

}  // namespace
}  // namespace portable

using namespace portable;

extern "C" {

// out [batch, m, n] = a [batch, m, terms] times b [batch, terms, n] (+ more); strides in numbers
int pol_matmul(const float* a, Long a_batch, Long a_down, Long a_across, const float* b, Long b_batch, Long b_down, Long b_across,
               const float* more, Long more_batch, Long more_down, Long more_across, float* out, Long batch, Long m, Long terms, Long n,
               Long bits, Long stretch, Long threads) try {
    if (batch == 1 && threads > 1 && m * n * terms > 1 << 20) {
        parallel(static_cast<int>(threads), m >= n ? (m + 47) / 48 : 1, [&](Long begin, Long end) {
            const Long first = begin * 48, count = std::min(end * 48, m) - first;
            if (m < n) product(Matrix{a, a_down, a_across}, Matrix{b, b_down, b_across}, m, terms, n, static_cast<int>(bits), stretch, more, more_down, more_across, out, n);
            else product(Matrix{a + first * a_down, a_down, a_across}, Matrix{b, b_down, b_across}, count, terms, n, static_cast<int>(bits), stretch,
                         more ? more + first * more_down : nullptr, more_down, more_across, out + first * n, n);
        });
        return 0;
    }
    parallel(m * n * terms * batch > 1 << 20 ? static_cast<int>(threads) : 1, batch, [&](Long begin, Long end) {
        for (Long i = begin; i < end; i++)
            product(Matrix{a + i * a_batch, a_down, a_across}, Matrix{b + i * b_batch, b_down, b_across}, m, terms, n, static_cast<int>(bits), stretch,
                    more ? more + i * more_batch : nullptr, more_down, more_across, out + i * m * n, n);
    });
    return 0;
} catch (...) { return 1; }

// The convolution of x by w [groups * filters, channels, kernel]; settings: the sixteen numbers of a Shape.
int pol_convolution(const float* x, const float* w, const float* bias, const Long* settings, Long bits, Long stretch, float* out, Long threads) try {
    Shape s;
    static_assert(sizeof s == 16 * sizeof(Long), "sixteen numbers");
    std::memcpy(&s, settings, sizeof s);
    const Long terms = s.channels * s.area();
    static thread_local Scratch<double> panels_;
    static thread_local Scratch<float> grids_;
    double* panels = panels_.get(s.groups * panels_of(s.filters) * terms * WIDTH);
    float* grid = grids_.get(s.filters);
    for (Long g = 0; g < s.groups; g++) {
        const Matrix filters{w + g * s.filters * terms, 1, terms};
        column_grids(filters, terms, s.filters, static_cast<int>(bits), grid);
        pack(filters, terms, s.filters, grid, panels + g * panels_of(s.filters) * terms * WIDTH);
    }
    convolve(x, s, panels, stretch, static_cast<int>(bits), bias, out, static_cast<int>(threads));
    return 0;
} catch (...) { return 1; }

// The gradient by the weights [groups * filters, channels, kernel]: sums over samples and places, `step` samples to a stretch.
int pol_convolution_by_weight(const float* g, const float* x, const Long* settings, Long bits, Long step, float* out, Long threads) try {
    Shape s;
    std::memcpy(&s, settings, sizeof s);
    const Long terms = s.channels * s.area(), plane = s.height * s.width, wide = s.padded_height() * s.padded_width();
    const Long outputs = s.outputs(), count = panels_of(s.filters);
    static thread_local Scratch<float> grids_;
    float* grid_x = grids_.get(s.groups * (s.channels + s.filters));
    float* grid_g = grid_x + s.groups * s.channels;
    channel_grids(x, s.samples, s.groups * s.channels, plane, static_cast<int>(bits), grid_x);
    channel_grids(g, s.samples, s.groups * s.filters, outputs, static_cast<int>(bits), grid_g);
    std::vector<int32_t> kernel(static_cast<size_t>(std::max<Long>(terms, 1))), windows(static_cast<size_t>(std::max<Long>(outputs, 1)));
    kernel_places(s, s.channels, kernel.data());
    window_places(s, windows.data());
    // Threads take panels of filters of a group; each rounds the images for itself, which is little beside the products.
    parallel(static_cast<int>(threads), s.groups * count, [&](Long begin, Long end) {
        static thread_local Scratch<double> image_, panel_, sums_, all_;
        double* image = image_.get(s.channels * wide);
        double* panel = panel_.get(outputs * WIDTH);
        double* sums = sums_.get((end - begin) * terms * WIDTH);
        double* whole = all_.get((end - begin) * terms * WIDTH);
        std::vector<const double*> rows(static_cast<size_t>(std::max<Long>(terms, 1)));
        for (Long k = 0; k < terms; k++) rows[static_cast<size_t>(k)] = image + kernel[static_cast<size_t>(k)];
        for (Long n = 0; n < s.samples; n++) {
            const bool fresh = n % step == 0;
            for (Long piece = begin; piece < end; piece++) {
                const Long group = piece / count, first = (piece % count) * WIDTH, width = std::min<Long>(WIDTH, s.filters - first);
                if (piece == begin || piece % count == 0)
                    for (Long c = 0; c < s.channels; c++)
                        padded(x + (n * s.groups * s.channels + group * s.channels + c) * plane, s, grid_x[group * s.channels + c], image + c * wide);
                const Long filter = group * s.filters + first;
                pack(Matrix{g + (n * s.groups * s.filters + filter) * outputs, 1, outputs}, outputs, width, grid_g + filter, panel);
                stretch_sums(rows.data(), terms, windows.data(), outputs, panel, sums + (piece - begin) * terms * WIDTH, !fresh);
            }
            if (n % step == step - 1 || n == s.samples - 1) {
                const Long size = (end - begin) * terms * WIDTH;
                if (n < step) std::memcpy(whole, sums, static_cast<size_t>(size) * sizeof(double));
                else SIMD for (Long i = 0; i < size; i++) whole[i] = whole[i] + sums[i];
            }
        }
        for (Long piece = begin; piece < end; piece++) {
            const Long first = (piece % count) * WIDTH, width = std::min<Long>(WIDTH, s.filters - first);
            const double* from = whole + (piece - begin) * terms * WIDTH;
            for (Long j = 0; j < width; j++) {
                float* to = out + ((piece / count) * s.filters + first + j) * terms;
                for (Long k = 0; k < terms; k++) to[k] = s.samples ? static_cast<float>(from[k * WIDTH + j]) : 0.0f;
            }
        }
    });
    return 0;
} catch (...) { return 1; }

}  // extern "C"
