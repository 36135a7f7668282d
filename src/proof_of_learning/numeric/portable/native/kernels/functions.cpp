// Functions of one number as functions.py defines them, operation by operation, and the elementwise ones that are several operations.
#include "common.h"

namespace portable {
namespace {

constexpr double MAGIC = 1.5 * 4503599627370496.0;
constexpr double LOG2E = 0x1.71547652b82fep+0, LN2_HIGH = 0x1.62e42fefa2000p-1, LN2_LOW = 0x1.9ef35793c7673p-41;
constexpr double LN2 = 0.6931471805599453, ROOT_HALF = 0.7071067811865476;
constexpr uint64_t BELOW = 0x3FE6A09E667F3BCD;  // the bits of sqrt(1/2)
constexpr double NOT_A_NUMBER = std::numeric_limits<double>::quiet_NaN(), ENDLESS = std::numeric_limits<double>::infinity();

constexpr double EXPM1[] = {0x1.0000000000000p+0, 0x1.000000287f871p-1, 0x1.55555567532adp-3, 0x1.5554accdfb593p-5,
                            0x1.1110c632a3088p-7, 0x1.6d7543e4127b8p-10, 0x1.a15179d80ae96p-13};
constexpr double LOG[] = {0x1.0000000004990p+1, 0x1.555554db62b8ap-1, 0x1.999a9bd09c3aep-2, 0x1.2432e86d5da18p-2, 0x1.e3aa5e803484dp-3};
constexpr double ERFC[] = {-0x1.479ad80c9e4bap-19, 0x1.040e60124fbc0p-2, 0x1.02e7a13c6ddecp-2, 0x1.e4d01df2ae61ap-3,
                           0x1.0c9e6e949c71fp-3, 0x1.196e09c84d53fp-2, -0x1.940bd3532fbc8p-2, 0x1.8197c9e73fc1ep-1,
                           -0x1.f12f7ce0f1e05p-1, 0x1.523070f304541p-1, -0x1.d90a432fa974fp-3, 0x1.12265b6afe7c0p-5};
constexpr double ERF[] = {0x1.20dd75040cba1p+0, -0x1.8127466155e0bp-2, 0x1.ce2efe7c7c525p-4, -0x1.b826ff5d16495p-6,
                          0x1.55e2dd6cfac0cp-8, -0x1.b62014f23ad75p-11, 0x1.8d20046681d67p-14};

template <int N> inline double polynomial(double x, const double (&c)[N]) {
    double found = x * c[N - 1];
#pragma GCC unroll 16
    for (int i = N - 2; i > 0; i--) found = (found + c[i]) * x;
    return found + c[0];
}

// exp(r) - 1, and 2**k in bits that are added to a float64's
inline double powers_of_two(double x, uint64_t& power) {
    x = x < -700.0 ? -700.0 : x;
    x = x > 700.0 ? 700.0 : x;
    const double shifted = x * LOG2E + MAGIC, k = shifted - MAGIC;
    x = x - k * LN2_HIGH;
    x = x - k * LN2_LOW;
    power = bits_of(shifted) << 52;
    return polynomial(x, EXPM1) * x;
}
inline double exp_(double x) { uint64_t power; const double less = powers_of_two(x, power) + 1.0; return double_of(bits_of(less) + power); }
inline double expm1_(double x) {
    uint64_t power;
    const double less = powers_of_two(x, power), scale = double_of(bits_of(1.0) + power);
    return less * scale + (scale - 1.0);
}
inline double log_(double x) {
    const uint64_t bits = bits_of(x), biased = (bits - BELOW + (uint64_t{1} << 62)) >> 52;  // the exponent, and 1024
    const double m = double_of(bits - ((biased - 1024) << 52));
    const double exponent = double_of(bits_of(MAGIC) + biased) - MAGIC - 1024.0;  // these are whole: no rounding
    const double t = (m - 1.0) / (m + 1.0);
    double found = polynomial(t * t, LOG) * t + exponent * LN2;
    found = x == 0 ? -ENDLESS : found;
    found = x == ENDLESS ? ENDLESS : found;
    return x >= 0 ? found : NOT_A_NUMBER;
}
inline double log1p_(double x) { return std::fabs(x) < 0x1p-20 ? x - (x * x) * 0.5 : log_(x + 1.0); }
inline double tanh_(double x) {
    x = x * 2.0;
    x = x < -60.0 ? -60.0 : x;
    x = x > 60.0 ? 60.0 : x;
    const double grown = expm1_(x);
    return grown / (grown + 2.0);
}
inline double sigmoid_(double x) { return 1.0 / (exp_(-x) + 1.0); }
inline double half_erfc(double a, double& falling) {
    falling = exp_(-(a * a));
    const double t = 1.0 / ((a > 10.2 ? 10.2 : a) * 0.45 + 1.0);
    return polynomial(t, ERFC) * falling * 0.5;
}
inline double erf_(double x) {
    const double a = std::fabs(x), near = polynomial(x * x, ERF) * x;
    double falling;
    const double far = half_erfc(a, falling) * -2.0 + 1.0;
    return a < 0.75 ? near : x < 0 ? -far : far;
}
inline double erfc_(double x) { double falling; const double tail = half_erfc(std::fabs(x), falling) * 2.0; return x < 0 ? 2.0 - tail : tail; }
inline double normal_cdf(double x, double& falling) { const double tail = half_erfc(std::fabs(x) * ROOT_HALF, falling); return x < 0 ? tail : 1.0 - tail; }
inline double gelu_(double x) { double falling; return normal_cdf(x, falling) * x; }
inline double gelu_backward_(double g, double x) { double falling; const double share = normal_cdf(x, falling); return (share + falling * x * 0.3989422804014327) * g; }
inline double tanh_inside(double x) { return (x * x * x * 0.044715 + x) * 0.7978845608028654; }
inline double gelu_tanh_(double x) { return (tanh_(tanh_inside(x)) + 1.0) * 0.5 * x; }
inline double gelu_tanh_backward_(double g, double x) {
    const double t = tanh_(tanh_inside(x)), slope = (x * x * 0.134145 + 1.0) * 0.7978845608028654, inner = (1.0 - t * t) * slope * x;
    return (t + 1.0 + inner) * 0.5 * g;
}
inline double silu_(double x) { return sigmoid_(x) * x; }
inline double silu_backward_(double g, double x) { const double s = sigmoid_(x); return ((1.0 - s) * x + 1.0) * s * g; }
inline double log_sigmoid_(double x) { return (x > 0.0 ? 0.0 : x) - log1p_(exp_(-std::fabs(x))); }
inline double log_sigmoid_backward_(double g, double x) { return sigmoid_(-x) * g; }

template <double (*F)(double)> void map(const float* x, const float*, Long n, float* y) { SIMD for (Long i = 0; i < n; i++) y[i] = static_cast<float>(F(static_cast<double>(x[i]))); }
template <double (*F)(double, double)> void map(const float* g, const float* x, Long n, float* y) {
    SIMD for (Long i = 0; i < n; i++) y[i] = static_cast<float>(F(static_cast<double>(g[i]), static_cast<double>(x[i])));
}
void roots(const float* x, const float*, Long n, float* y) { SIMD for (Long i = 0; i < n; i++) y[i] = std::sqrt(x[i]); }

using Kernel = void (*)(const float*, const float*, Long, float*);
constexpr Kernel KERNELS[] = {  // in the order of FUNCTIONS in calls.py
    map<exp_>, map<expm1_>, map<log_>, map<log1p_>, map<tanh_>, map<sigmoid_>, map<erf_>, map<erfc_>, map<gelu_>, map<gelu_backward_>,
    map<gelu_tanh_>, map<gelu_tanh_backward_>, map<silu_>, map<silu_backward_>, map<log_sigmoid_>, map<log_sigmoid_backward_>, roots,
};

}  // namespace

// For the rows of a softmax, in its file.
void exponentials(const float* x, float less, Long n, float* y) { SIMD for (Long i = 0; i < n; i++) y[i] = static_cast<float>(exp_(static_cast<double>(x[i] - less))); }
void exponentials(const float* x, Long n, float* y) { map<exp_>(x, nullptr, n, y); }
float logarithm(float x) { return static_cast<float>(log_(static_cast<double>(x))); }

}  // namespace portable

using namespace portable;

extern "C" {

int pol_function(Long which, const float* x, const float* more, Long n, float* y, Long threads) try {
    if (which < 0 || which >= static_cast<Long>(sizeof KERNELS / sizeof *KERNELS)) return 2;
    constexpr Long PIECE = 4096;
    const Long pieces = (n + PIECE - 1) / PIECE;
    parallel(pieces > 8 ? static_cast<int>(threads) : 1, pieces, [&](Long begin, Long end) {
        const Long from = begin * PIECE, to = std::min(n, end * PIECE);
        KERNELS[which](x + from, more ? more + from : nullptr, to - from, y + from);
    });
    return 0;
} catch (...) { return 1; }

// Elementwise on lists of tensors, of which entry i has counts[i] numbers. With s a number, RN each operation:
//   0: y = x + a * s   1: y = x + (a * b) * s   2: y = x + (a / b) * s   3: y = x + (a - x) * s   4: y = x * s   5: y = x / s
//   6: y = sqrt(x)     7: y = x + s             8: y = x + a             9: y = x * a           10: y = x / a
int pol_elementwise(Long which, Long tensors, const Long* counts, const float* const* xs, const float* const* as, const float* const* bs,
                    const float* numbers, float* const* ys) {
    for (Long t = 0; t < tensors; t++) {
        const Long n = counts[t];
        const float *x = xs[t], *a = as ? as[t] : nullptr, *b = bs ? bs[t] : nullptr;
        const float s = numbers ? numbers[t] : 0.0f;
        float* y = ys[t];
        switch (which) {
        case 0: SIMD for (Long i = 0; i < n; i++) y[i] = x[i] + a[i] * s; break;
        case 1: SIMD for (Long i = 0; i < n; i++) y[i] = x[i] + a[i] * b[i] * s; break;
        case 2: SIMD for (Long i = 0; i < n; i++) y[i] = x[i] + a[i] / b[i] * s; break;
        case 3: SIMD for (Long i = 0; i < n; i++) y[i] = x[i] + (a[i] - x[i]) * s; break;
        case 4: SIMD for (Long i = 0; i < n; i++) y[i] = x[i] * s; break;
        case 5: SIMD for (Long i = 0; i < n; i++) y[i] = x[i] / s; break;
        case 6: SIMD for (Long i = 0; i < n; i++) y[i] = std::sqrt(x[i]); break;
        case 7: SIMD for (Long i = 0; i < n; i++) y[i] = x[i] + s; break;
        case 8: SIMD for (Long i = 0; i < n; i++) y[i] = x[i] + a[i]; break;
        case 9: SIMD for (Long i = 0; i < n; i++) y[i] = x[i] * a[i]; break;
        case 10: SIMD for (Long i = 0; i < n; i++) y[i] = x[i] / a[i]; break;
        default: return 2;
        }
    }
    return 0;
}

// Of n words of 32 bits of Philox4x64-10, keyed by (key, 0), blocks 1, 2, ...: value[0] where one is below the limit, else value[1].
int pol_bernoulli(uint64_t key, Long n, uint64_t limit, float hit, float miss, float* y) {
    constexpr uint64_t M0 = 0xD2E7470EE14C6C93, M1 = 0xCA5A826395121157, W0 = 0x9E3779B97F4A7C15, W1 = 0xBB67AE8584CAA73B;
    constexpr int LANES = 4;  // blocks at a time, for the multiplications of one wait for each other
    for (Long start = 0; start < n; start += 8 * LANES) {
        uint64_t c[LANES][4];
        for (int l = 0; l < LANES; l++) { c[l][0] = static_cast<uint64_t>(start / 8 + l + 1); c[l][1] = c[l][2] = c[l][3] = 0; }
        uint64_t k0 = key, k1 = 0;
        for (int round = 0; round < 10; round++, k0 += W0, k1 += W1) {
#pragma GCC unroll 4
            for (int l = 0; l < LANES; l++) {
                const unsigned __int128 p0 = static_cast<unsigned __int128>(M0) * c[l][0], p1 = static_cast<unsigned __int128>(M1) * c[l][2];
                const uint64_t first = static_cast<uint64_t>(p1 >> 64) ^ c[l][1] ^ k0, third = static_cast<uint64_t>(p0 >> 64) ^ c[l][3] ^ k1;
                c[l][0] = first; c[l][1] = static_cast<uint64_t>(p1); c[l][2] = third; c[l][3] = static_cast<uint64_t>(p0);
            }
        }
        float found[8 * LANES];
        for (int l = 0; l < LANES; l++)
            for (int w = 0; w < 4; w++) {
                found[l * 8 + w * 2] = (c[l][w] & 0xffffffffu) < limit ? hit : miss;
                found[l * 8 + w * 2 + 1] = (c[l][w] >> 32) < limit ? hit : miss;
            }
        std::memcpy(y + start, found, static_cast<size_t>(std::min<Long>(8 * LANES, n - start)) * sizeof(float));
    }
    return 0;
}

}  // extern "C"
