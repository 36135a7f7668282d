// Sums of float32, each exact and rounded once; sums into places; pooling.
#include "common.h"

using namespace portable;

extern "C" {

// [rows] from [rows, n]
int pol_sum_rows(const float* x, Long rows, Long n, float* out, Long threads) try {
    parallel(rows * n > 1 << 16 ? static_cast<int>(threads) : 1, rows, [&](Long begin, Long end) { for (Long r = begin; r < end; r++) out[r] = total_of(x + r * n, n); });
    return 0;
} catch (...) { return 1; }

// [channels * places] summed over the first dimension: [n] from [rows, n]
int pol_sum_columns(const float* x, Long rows, Long n, float* out) try {
    static thread_local Scratch<uint32_t> most_;
    static thread_local Scratch<double> grid_, sum_;
    constexpr Long PIECE = 1024;
    for (Long start = 0; start < n; start += PIECE) {
        const Long width = std::min(PIECE, n - start);
        uint32_t* most = most_.get(PIECE);
        double *grid = grid_.get(PIECE), *sum = sum_.get(PIECE);
        std::memset(most, 0, PIECE * sizeof *most);
        largest_of_columns(x + start, rows, width, n, most);
        for (Long i = 0; i < width; i++) { grid[i] = sum_grid(most[i], rows); sum[i] = 0; }
        for (Long r = 0; r < rows; r++) {
            const float* row = x + r * n + start;
            SIMD for (Long i = 0; i < width; i++) sum[i] += on_grid(static_cast<double>(row[i]), grid[i]);
        }
        for (Long i = 0; i < width; i++) out[start + i] = static_cast<float>(sum[i]);
    }
    return 0;
} catch (...) { return 1; }

// [channels] from [samples, channels, places]
int pol_sum_channels(const float* x, Long samples, Long channels, Long places, float* out, Long threads) try {
    parallel(samples * channels * places > 1 << 16 ? static_cast<int>(threads) : 1, channels, [&](Long begin, Long end) {
        for (Long c = begin; c < end; c++) {
            uint32_t most = 0;
            for (Long n = 0; n < samples; n++) most = largest_of(x + (n * channels + c) * places, places, most);
            const double m = sum_grid(most, samples * places);
            double sum = 0;
            for (Long n = 0; n < samples; n++) sum += sum_of(x + (n * channels + c) * places, places, m);
            out[c] = static_cast<float>(sum);
        }
    });
    return 0;
} catch (...) { return 1; }

// The gradient of a table [rows, n] from that of the `count` rows that were taken, [count, n]; rows of `without` give none.
int pol_embedding_backward(const float* g, const Long* indices, Long count, Long rows, Long n, Long without, float* out) try {
    static thread_local Scratch<uint32_t> most_;
    static thread_local Scratch<double> grid_, sum_;
    uint32_t* most = most_.get(n);
    double *grid = grid_.get(n), *sum = sum_.get(rows * n);
    std::memset(most, 0, static_cast<size_t>(n) * sizeof *most);
    std::memset(sum, 0, static_cast<size_t>(rows * n) * sizeof *sum);
    for (Long i = 0; i < count; i++) {
        if (indices[i] < 0 || indices[i] >= rows) return 3;
        if (indices[i] != without) largest_of_columns(g + i * n, 1, n, n, most);
    }
    for (Long j = 0; j < n; j++) grid[j] = sum_grid(most[j], count);
    for (Long i = 0; i < count; i++) {
        double* to = sum + indices[i] * n;
        if (indices[i] == without) { SIMD for (Long j = 0; j < n; j++) to[j] += on_grid(0.0, grid[j]); continue; }
        const float* from = g + i * n;
        SIMD for (Long j = 0; j < n; j++) to[j] += on_grid(static_cast<double>(from[j]), grid[j]);
    }
    for (Long i = 0; i < rows * n; i++) out[i] = static_cast<float>(sum[i]);
    return 0;
} catch (...) { return 1; }

// The largest number of each window, and where it lies: the first among equals; a NaN counts as largest, the last one of several.
int pol_max_pool(const float* x, Long planes, Long height, Long width, Long out_height, Long out_width, const Long* settings, float* out,
                 Long* indices, Long threads) try {
    const Long kernel_height = settings[0], kernel_width = settings[1], down = settings[2], across = settings[3];
    const Long pad_height = settings[4], pad_width = settings[5];
    parallel(planes * height * width > 1 << 16 ? static_cast<int>(threads) : 1, planes, [&](Long begin, Long end) {
        for (Long p = begin; p < end; p++) {
            const float* plane = x + p * height * width;
            float* to = out + p * out_height * out_width;
            Long* place = indices + p * out_height * out_width;
            for (Long i = 0; i < out_height; i++) {
                const Long top = std::max<Long>(i * down - pad_height, 0), bottom = std::min(i * down - pad_height + kernel_height, height);
                if (kernel_height == 2 && kernel_width == 2 && across == 2 && !pad_height && !pad_width && 2 * out_width <= width) {
                    const float *first = plane + top * width, *second = first + width;
                    for (Long j = 0; j < out_width; j++) {
                        const float a = first[2 * j], b = first[2 * j + 1], c = second[2 * j], d = second[2 * j + 1];
                        const int32_t at = static_cast<int32_t>(top * width + 2 * j), below = static_cast<int32_t>(width);
                        float most = a;
                        int32_t where = at;
                        bool better = (b > most) | (b != b);
                        most = better ? b : most; where = better ? at + 1 : where;
                        better = (c > most) | (c != c);
                        most = better ? c : most; where = better ? at + below : where;
                        better = (d > most) | (d != d);
                        most = better ? d : most; where = better ? at + below + 1 : where;
                        to[i * out_width + j] = most;
                        place[i * out_width + j] = where;
                    }
                    continue;
                }
                for (Long j = 0; j < out_width; j++) {
                    const Long left = std::max<Long>(j * across - pad_width, 0), right = std::min(j * across - pad_width + kernel_width, width);
                    float most = -std::numeric_limits<float>::infinity();
                    Long where = top * width + left;
                    for (Long y = top; y < bottom; y++)
                        for (Long z = left; z < right; z++) {
                            const float value = plane[y * width + z];
                            if (value > most || value != value) { most = value; where = y * width + z; }
                        }
                    to[i * out_width + j] = most;
                    place[i * out_width + j] = where;
                }
            }
        }
    });
    return 0;
} catch (...) { return 1; }

// Its gradient. apart: no two windows share a place; else sums of at most `terms`, on one grid for the whole tensor.
int pol_max_pool_backward(const float* g, const Long* indices, Long planes, Long places, Long outputs, Long apart, Long terms, float* out, Long threads) try {
    for (Long i = 0; i < planes * outputs; i++) if (indices[i] < 0 || indices[i] >= places) return 3;
    const double m = apart ? 0.0 : sum_grid(largest_of(g, planes * outputs), terms);
    parallel(planes * places > 1 << 16 ? static_cast<int>(threads) : 1, planes, [&](Long begin, Long end) {
        static thread_local Scratch<double> sums_;
        double* sums = sums_.get(apart ? 1 : places);
        for (Long p = begin; p < end; p++) {
            const float* from = g + p * outputs;
            const Long* place = indices + p * outputs;
            float* to = out + p * places;
            if (apart) {
                std::memset(to, 0, static_cast<size_t>(places) * sizeof *to);
                for (Long i = 0; i < outputs; i++) to[place[i]] = 0.0f + from[i];
            } else {
                std::memset(sums, 0, static_cast<size_t>(places) * sizeof *sums);
                for (Long i = 0; i < outputs; i++) sums[place[i]] += on_grid(static_cast<double>(from[i]), m);
                for (Long i = 0; i < places; i++) to[i] = static_cast<float>(sums[i]);
            }
        }
    });
    return 0;
} catch (...) { return 1; }

}  // extern "C"
