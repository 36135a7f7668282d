// Shared by the kernels of portable arithmetic: the grid of ADR 0028, vectors of float64, threads.
//
// Every kernel computes what the definition says and nothing else, so that the result does not depend on the width of the vectors, on
// the number of threads or on the compiler: sums are exact, all else is a fixed sequence of single IEEE operations. It has to be
// compiled with -ffp-contract=off and without -ffast-math. Where fused multiply-add is named, products and sums are exact.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <thread>
#include <vector>

#define SIMD _Pragma("omp simd")

namespace portable {

using Long = int64_t;

inline uint32_t bits_of(float x) { uint32_t u; std::memcpy(&u, &x, 4); return u; }
inline float float_of(uint32_t u) { float x; std::memcpy(&x, &u, 4); return x; }
inline uint64_t bits_of(double x) { uint64_t u; std::memcpy(&u, &x, 8); return u; }
inline double double_of(uint64_t u) { double x; std::memcpy(&x, &u, 8); return x; }
inline double power_of_two(int e) { return double_of(static_cast<uint64_t>(e + 1023) << 52); }

inline int ceil_log2(Long n) { int k = 0; while ((Long{1} << k) < n) k++; return k; }

// ---- the grid: (x + M) - M with M = 1.5 * 2**(t + e - p), where 2**(e-1) is the power of two at or below the largest magnitude ----

constexpr uint32_t MAGNITUDE = 0x7fffffffu;  // the bits of |x|: as integers they are in the order of the magnitudes, NaN above all
constexpr uint32_t EXPONENT = 0x7f800000u;
constexpr uint32_t SMALLEST = 0x00800000u;  // the bits of 2**-126

// 2**(e-1) for the bits of a largest magnitude; infinity where it is infinite or NaN.
inline float power_below(uint32_t largest) { return float_of(std::max(largest, SMALLEST) & EXPONENT); }

// M for an operand of a product (float32), and for a sum of n terms (float64).
inline float product_grid(uint32_t largest, int p) { return power_below(largest) * static_cast<float>(1.5 * power_of_two(24 - p)); }
inline double sum_grid(uint32_t largest, Long n) { return static_cast<double>(power_below(largest)) * (1.5 * power_of_two(2 + ceil_log2(n))); }

inline float on_grid(float x, float m) { return (x + m) - m; }
inline double on_grid(double x, double m) { return (x + m) - m; }

inline uint32_t largest_of(const float* x, Long n, uint32_t most = 0) {
    const int32_t* u = reinterpret_cast<const int32_t*>(x);
    int32_t m = static_cast<int32_t>(most);
#pragma omp simd reduction(max : m)
    for (Long i = 0; i < n; i++) { int32_t v = u[i] & static_cast<int32_t>(MAGNITUDE); m = v > m ? v : m; }
    return static_cast<uint32_t>(m);
}

// Of each of n columns; adds to what `most` holds.
inline void largest_of_columns(const float* x, Long rows, Long n, Long stride, uint32_t* most) {
    int32_t* m = reinterpret_cast<int32_t*>(most);
    for (Long r = 0; r < rows; r++) {
        const int32_t* u = reinterpret_cast<const int32_t*>(x + r * stride);
        SIMD for (Long i = 0; i < n; i++) { int32_t v = u[i] & static_cast<int32_t>(MAGNITUDE); m[i] = v > m[i] ? v : m[i]; }
    }
}

// The exact sum, on the grid of m. Thirty-two partial sums, for the order does not count.
inline double sum_of(const float* x, Long n, double m) {
    double part[32] = {};
    Long i = 0;
    for (; i + 32 <= n; i += 32) {
        SIMD for (int k = 0; k < 32; k++) part[k] += on_grid(static_cast<double>(x[i + k]), m);
    }
    double sum = 0;
    for (int k = 0; k < 32; k++) sum += part[k];
    for (; i < n; i++) sum += on_grid(static_cast<double>(x[i]), m);
    return sum;
}

// The sum of n numbers, rounded once.
inline float total_of(const float* x, Long n) { return static_cast<float>(sum_of(x, n, sum_grid(largest_of(x, n), n))); }

// ---- memory and threads ----------------------------------------------------------------------------------

// Memory of this thread that is kept from call to call, for new pages cost as much as the work on them. At most 64 MiB stay.
template <typename T> class Scratch {
public:
    T* get(Long count) {
        size_t bytes = (static_cast<size_t>(std::max<Long>(count, 1)) * sizeof(T) + 127) / 64 * 64;
        if (bytes > size_ || (size_ > KEPT && bytes <= KEPT)) {
            std::free(at_);
            size_ = 0;
            at_ = std::aligned_alloc(64, bytes);
            if (!at_) throw std::bad_alloc();
            size_ = bytes;
        }
        return static_cast<T*>(at_);
    }
    ~Scratch() { std::free(at_); }

private:
    static constexpr size_t KEPT = size_t{64} << 20;
    void* at_ = nullptr;
    size_t size_ = 0;
};

// body(begin, end) over n pieces, in that many threads at most. They are started for the call: a process may fork between two.
template <typename Body> void parallel(int threads, Long n, const Body& body) {
    Long count = std::min<Long>(std::max(threads, 1), n);
    if (count <= 1) { if (n > 0) body(Long{0}, n); return; }
    std::vector<std::thread> others;
    others.reserve(static_cast<size_t>(count - 1));
    for (Long t = 1; t < count; t++) {
        try { others.emplace_back([&, t] { body(n * t / count, n * (t + 1) / count); }); }
        catch (...) { body(n * t / count, n * (t + 1) / count); }  // no thread to be had
    }
    body(Long{0}, n / count);
    for (auto& other : others) other.join();
}

}  // namespace portable
