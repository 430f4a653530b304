// What of CUDA our kernels use, for g++: each thread of the grid becomes one turn of a loop. It proves indexing and arithmetic;
// of races, of barriers and of how wide a warp is it knows nothing.
#pragma once
#define VISIONPOOL_SHIMS
#define __global__
#define __device__

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

using std::max;
using std::min;

struct Dimensions {
    unsigned x, y, z;
};
static Dimensions gridDim, blockDim, blockIdx, threadIdx;

static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline float __double2float_rn(double a) { return (float)a; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline int __float2int_rn(float a) { return (int)std::nearbyint(a); }

// To the nearest half, ties to even, as cvt.rn.f16.f32.
static inline unsigned short half_bits(float value)
{
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const unsigned sign = (bits >> 16) & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000)
        return 0x7fff;
    if (bits >= 0x47800000)  // 65536 and more: infinity
        return sign | 0x7c00;
    if (bits < 0x38800000)  // below 2**-14 halves are multiples of 2**-24
        return sign | (unsigned)std::nearbyint(std::fabs(value) * 16777216.0f);
    bits += 0xfff + ((bits >> 13) & 1);
    return sign | ((bits - 0x38000000) >> 13);
}

template <class... Arguments, std::size_t... Index>
void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<Index...>)
{
    kernel(*(Arguments*)arguments[Index]...);
}

template <class... Arguments>
void launch(void (*kernel)(Arguments...), const unsigned* grid, const unsigned* block, void** arguments)
{
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {block[0], block[1], block[2]};
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)
                for (threadIdx.z = 0; threadIdx.z < blockDim.z; threadIdx.z++)
                    for (threadIdx.y = 0; threadIdx.y < blockDim.y; threadIdx.y++)
                        for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++)
                            call(kernel, arguments, std::index_sequence_for<Arguments...>{});
}
