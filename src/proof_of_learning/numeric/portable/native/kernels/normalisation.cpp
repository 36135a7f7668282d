// LayerNorm, BatchNorm and softmax, forward and backward, as normalisation.py and reductions.py compose them.
#include "common.h"

namespace portable {

void exponentials(const float* x, float less, Long n, float* y);
void exponentials(const float* x, Long n, float* y);
float logarithm(float x);

namespace {

// The largest number as PyTorch has it: NaN where there is one. Float32 as integers in the order of the numbers.
inline float largest_number(const float* x, Long n) {
    const int32_t* u = reinterpret_cast<const int32_t*>(x);
    int32_t high = std::numeric_limits<int32_t>::min(), most = 0;
#pragma omp simd reduction(max : high, most)
    for (Long i = 0; i < n; i++) {
        const int32_t v = u[i], size = v & static_cast<int32_t>(MAGNITUDE), ordered = v ^ ((v >> 31) & static_cast<int32_t>(MAGNITUDE));
        high = ordered > high ? ordered : high;
        most = size > most ? size : most;
    }
    if (most > static_cast<int32_t>(EXPONENT)) return std::numeric_limits<float>::quiet_NaN();
    return float_of(static_cast<uint32_t>(high ^ ((high >> 31) & static_cast<int32_t>(MAGNITUDE))));
}

inline float inverse_root(float variance, float eps) { return 1.0f / std::sqrt(variance + eps); }

}  // namespace
}  // namespace portable

using namespace portable;

extern "C" {

// which: 0 softmax, 1 log_softmax, 2 softmax of attention, where a row of -infinity gives zeros
int pol_softmax(Long which, const float* x, Long rows, Long n, float* y, Long threads) try {
    parallel(rows * n > 1 << 15 ? static_cast<int>(threads) : 1, rows, [&](Long begin, Long end) {
        static thread_local Scratch<float> scratch;
        float* grown = which == 1 ? scratch.get(n) : nullptr;
        for (Long r = begin; r < end; r++) {
            const float* from = x + r * n;
            float* to = y + r * n;
            const float high = largest_number(from, n);
            if (which == 2 && high == -std::numeric_limits<float>::infinity()) { std::memset(to, 0, static_cast<size_t>(n) * sizeof *to); continue; }
            exponentials(from, high, n, which == 1 ? grown : to);
            const float all = total_of(which == 1 ? grown : to, n);
            if (which == 1) { const float less = logarithm(all); SIMD for (Long i = 0; i < n; i++) to[i] = (from[i] - high) - less; }
            else SIMD for (Long i = 0; i < n; i++) to[i] = to[i] / all;
        }
    });
    return 0;
} catch (...) { return 1; }

int pol_softmax_backward(Long which, const float* g, const float* y, Long rows, Long n, float* out, Long threads) try {
    parallel(rows * n > 1 << 15 ? static_cast<int>(threads) : 1, rows, [&](Long begin, Long end) {
        for (Long r = begin; r < end; r++) {
            const float *a = g + r * n, *b = y + r * n;
            float* to = out + r * n;
            if (which == 1) {
                const float all = total_of(a, n);
                exponentials(b, n, to);
                SIMD for (Long i = 0; i < n; i++) to[i] = a[i] - to[i] * all;
            } else {
                SIMD for (Long i = 0; i < n; i++) to[i] = a[i] * b[i];
                const float all = total_of(to, n);
                SIMD for (Long i = 0; i < n; i++) to[i] = to[i] - b[i] * all;
            }
        }
    });
    return 0;
} catch (...) { return 1; }

// weight and bias, [n], may be missing
int pol_layer_norm(const float* x, Long rows, Long n, const float* weight, const float* bias, float eps, float* y, float* mean, float* inverse,
                   Long threads) try {
    const float count = static_cast<float>(n);
    parallel(rows * n > 1 << 15 ? static_cast<int>(threads) : 1, rows, [&](Long begin, Long end) {
        static thread_local Scratch<float> scratch;
        float* square = scratch.get(n);
        for (Long r = begin; r < end; r++) {
            const float* from = x + r * n;
            float* to = y + r * n;
            const float m = total_of(from, n) / count;
            SIMD for (Long i = 0; i < n; i++) { const float away = from[i] - m; to[i] = away; square[i] = away * away; }
            const float inv = inverse_root(total_of(square, n) / count, eps);
            if (weight && bias) SIMD for (Long i = 0; i < n; i++) to[i] = to[i] * inv * weight[i] + bias[i];
            else {
                SIMD for (Long i = 0; i < n; i++) to[i] = to[i] * inv;
                if (weight) SIMD for (Long i = 0; i < n; i++) to[i] = to[i] * weight[i];
                if (bias) SIMD for (Long i = 0; i < n; i++) to[i] = to[i] + bias[i];
            }
            mean[r] = m;
            inverse[r] = inv;
        }
    });
    return 0;
} catch (...) { return 1; }

// by_input and part (g times the normalised values, whose columns' sums are the gradient by the weights) may be missing.
int pol_layer_norm_backward(const float* g, const float* x, Long rows, Long n, const float* mean, const float* inverse, const float* weight,
                            float* by_input, float* part, Long threads) try {
    const float count = static_cast<float>(n);
    parallel(rows * n > 1 << 15 ? static_cast<int>(threads) : 1, rows, [&](Long begin, Long end) {
        static thread_local Scratch<float> normal_, scaled_, product_;
        float *normal = normal_.get(n), *scaled = scaled_.get(n), *product = product_.get(n);
        for (Long r = begin; r < end; r++) {
            const float *a = g + r * n, *b = x + r * n, m = mean[r], inv = inverse[r];
            SIMD for (Long i = 0; i < n; i++) normal[i] = (b[i] - m) * inv;
            if (part) { float* to = part + r * n; SIMD for (Long i = 0; i < n; i++) to[i] = a[i] * normal[i]; }
            if (!by_input) continue;
            if (weight) SIMD for (Long i = 0; i < n; i++) scaled[i] = a[i] * weight[i];
            const float* s = weight ? scaled : a;
            SIMD for (Long i = 0; i < n; i++) product[i] = s[i] * normal[i];
            const float along = total_of(product, n) / count, middle = total_of(s, n) / count;
            float* to = by_input + r * n;
            SIMD for (Long i = 0; i < n; i++) to[i] = (s[i] - middle - normal[i] * along) * inv;
        }
    });
    return 0;
} catch (...) { return 1; }

// x [samples, channels, places] in training; mean, variance and inverse get one number a channel
int pol_batch_norm(const float* x, Long samples, Long channels, Long places, const float* weight, const float* bias, float eps, float* y,
                   float* mean, float* variance, float* inverse, Long threads) try {
    const Long all = samples * places;
    const float count = static_cast<float>(all);
    parallel(all * channels > 1 << 16 ? static_cast<int>(threads) : 1, channels, [&](Long begin, Long end) {
        for (Long c = begin; c < end; c++) {
            // The largest distance from the mean is that of the largest or of the smallest number, since rounding keeps the order.
            int32_t high = std::numeric_limits<int32_t>::min(), low = std::numeric_limits<int32_t>::max();
            for (Long n = 0; n < samples; n++) {
                const int32_t* u = reinterpret_cast<const int32_t*>(x + (n * channels + c) * places);
#pragma omp simd reduction(max : high) reduction(min : low)
                for (Long i = 0; i < places; i++) {
                    const int32_t v = u[i] ^ ((u[i] >> 31) & static_cast<int32_t>(MAGNITUDE));
                    high = v > high ? v : high;
                    low = v < low ? v : low;
                }
            }
            const float top = float_of(static_cast<uint32_t>(high ^ ((high >> 31) & static_cast<int32_t>(MAGNITUDE))));
            const float bottom = float_of(static_cast<uint32_t>(low ^ ((low >> 31) & static_cast<int32_t>(MAGNITUDE))));
            double grid = sum_grid(std::max(bits_of(top) & MAGNITUDE, bits_of(bottom) & MAGNITUDE), all), sum = 0;
            for (Long n = 0; n < samples; n++) sum += sum_of(x + (n * channels + c) * places, places, grid);
            const float m = static_cast<float>(sum) / count;
            float furthest = top - m, other = bottom - m;
            furthest = furthest * furthest;
            other = other * other;
            grid = sum_grid(std::max(bits_of(furthest) & MAGNITUDE, bits_of(other) & MAGNITUDE), all);
            double part[16] = {};
            sum = 0;
            for (Long n = 0; n < samples; n++) {
                const float* from = x + (n * channels + c) * places;
                Long i = 0;
                for (; i + 16 <= places; i += 16) {
                    SIMD for (int k = 0; k < 16; k++) { const float away = from[i + k] - m; part[k] += on_grid(static_cast<double>(away * away), grid); }
                }
                for (; i < places; i++) { const float away = from[i] - m; sum += on_grid(static_cast<double>(away * away), grid); }
            }
            for (int k = 0; k < 16; k++) sum += part[k];
            const float v = static_cast<float>(sum) / count, inv = inverse_root(v, eps);
            for (Long n = 0; n < samples; n++) {
                const float* from = x + (n * channels + c) * places;
                float* to = y + (n * channels + c) * places;
                if (weight && bias) { const float w = weight[c], b = bias[c]; SIMD for (Long i = 0; i < places; i++) to[i] = (from[i] - m) * inv * w + b; }
                else {
                    SIMD for (Long i = 0; i < places; i++) to[i] = (from[i] - m) * inv;
                    if (weight) { const float w = weight[c]; SIMD for (Long i = 0; i < places; i++) to[i] = to[i] * w; }
                    if (bias) { const float b = bias[c]; SIMD for (Long i = 0; i < places; i++) to[i] = to[i] + b; }
                }
            }
            mean[c] = m;
            variance[c] = v;
            inverse[c] = inv;
        }
    });
    return 0;
} catch (...) { return 1; }

// In training; by_input may be missing.
int pol_batch_norm_backward(const float* g, const float* x, Long samples, Long channels, Long places, const float* mean, const float* inverse,
                            const float* weight, float* by_input, float* by_weight, float* by_bias, Long threads) try {
    const Long all = samples * places;
    const float count = static_cast<float>(all);
    parallel(all * channels > 1 << 16 ? static_cast<int>(threads) : 1, channels, [&](Long begin, Long end) {
        for (Long c = begin; c < end; c++) {
            const float m = mean[c], inv = inverse[c];
            int32_t most = 0, most_along = 0;
            for (Long n = 0; n < samples; n++) {
                const float *a = g + (n * channels + c) * places, *b = x + (n * channels + c) * places;
#pragma omp simd reduction(max : most, most_along)
                for (Long i = 0; i < places; i++) {
                    const float product = a[i] * ((b[i] - m) * inv);
                    const int32_t u = static_cast<int32_t>(bits_of(a[i]) & MAGNITUDE), v = static_cast<int32_t>(bits_of(product) & MAGNITUDE);
                    most = u > most ? u : most;
                    most_along = v > most_along ? v : most_along;
                }
            }
            const double grid = sum_grid(static_cast<uint32_t>(most), all), grid_along = sum_grid(static_cast<uint32_t>(most_along), all);
            double part[16] = {}, part_along[16] = {}, sum = 0, sum_along = 0;
            for (Long n = 0; n < samples; n++) {
                const float *a = g + (n * channels + c) * places, *b = x + (n * channels + c) * places;
                Long i = 0;
                for (; i + 16 <= places; i += 16) {
                    SIMD for (int k = 0; k < 16; k++) {
                        const float product = a[i + k] * ((b[i + k] - m) * inv);
                        part[k] += on_grid(static_cast<double>(a[i + k]), grid);
                        part_along[k] += on_grid(static_cast<double>(product), grid_along);
                    }
                }
                for (; i < places; i++) {
                    const float product = a[i] * ((b[i] - m) * inv);
                    sum += on_grid(static_cast<double>(a[i]), grid);
                    sum_along += on_grid(static_cast<double>(product), grid_along);
                }
            }
            for (int k = 0; k < 16; k++) { sum += part[k]; sum_along += part_along[k]; }
            by_bias[c] = static_cast<float>(sum);
            by_weight[c] = static_cast<float>(sum_along);
            if (!by_input) continue;
            const float scale = weight ? weight[c] * inv : inv, middle = by_bias[c] / count, along = by_weight[c] / count;
            for (Long n = 0; n < samples; n++) {
                const float *a = g + (n * channels + c) * places, *b = x + (n * channels + c) * places;
                float* to = by_input + (n * channels + c) * places;
                SIMD for (Long i = 0; i < places; i++) to[i] = (a[i] - middle - (b[i] - m) * inv * along) * scale;
            }
        }
    });
    return 0;
} catch (...) { return 1; }

}  // extern "C"
