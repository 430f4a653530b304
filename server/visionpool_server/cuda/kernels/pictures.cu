// Pictures of any size to one batch of a model's numbers: resized, padded or cut, normalised, in the model's order and type.
//
// One thread makes one output pixel, all channels of it; the grid is (columns, rows, pictures). Every step of the arithmetic
// is that of the CPU, rounded alike: `cv2.resize` with INTER_LINEAR on bytes (OpenCV 4.11 to 5.0, modules/imgproc/src/resize.cpp:
// weights of 11 bits, columns before rows), then `Arithmetic.apply` in float32. To half the size OpenCV takes the mean of four,
// which comes to the same. No library's headers are used, so that NVRTC compiles it alone, and g++ behind tests/cuda_shims.

enum Type { UINT8, FLOAT16, FLOAT32 };

struct Picture {  // as `PICTURE` in cuda/sources.py
    long long pixels;               // where row 0 lies or would lie, in bytes behind `staged`
    double step_y, step_x;          // source pixels for each of the resized ones
    int rows, columns, pitch;       // of the source; bytes from row to row
    int resized;                    // 0: as it is
    int paired;                     // 1: only two rows are there for each one that shows, one after the other
    int top, left, bottom, right;   // what shows of the resized picture, the last two exclusive
    int y, x;                       // its pixel under the first one of the output; may be negative
    unsigned char fill[4];
};
static_assert(sizeof(Picture) == 72, "cuda/sources.py says the same");

struct Taps {  // two neighbours along an axis, and their weights of 11 bits
    int first, second, weight_first, weight_second;
};

#ifndef VISIONPOOL_SHIMS
static __device__ unsigned short half_bits(float value)
{
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

static __device__ Taps taps_at(int position, double step, int count)
{
    const float at = __double2float_rn(__dsub_rn(__dmul_rn(__dadd_rn(position, 0.5), step), 0.5));
    const float whole = floorf(at), share = __fsub_rn(at, whole);
    const int first = (int)whole;
    Taps taps;  // at the borders both are the outermost pixel
    taps.first = min(max(first, 0), count - 1);
    taps.second = min(max(first + 1, 0), count - 1);
    taps.weight_first = __float2int_rn(__fmul_rn(__fsub_rn(1.0f, share), 2048.0f));
    taps.weight_second = __float2int_rn(__fmul_rn(share, 2048.0f));
    return taps;
}

static __device__ int bilinear(
    const unsigned char* above, const unsigned char* below, const Taps& y, int first, int second, const Taps& x)
{
    const int upper = above[first] * x.weight_first + above[second] * x.weight_second;
    const int lower = below[first] * x.weight_first + below[second] * x.weight_second;
    const int sum = ((y.weight_first * (upper >> 4)) >> 16) + ((y.weight_second * (lower >> 4)) >> 16);
    return min(max((sum + 2) >> 2, 0), 255);
}

static __device__ void store(void* target, long long index, int type, float value)
{
    if (type == FLOAT32)
        ((float*)target)[index] = value;
    else if (type == FLOAT16)
        ((unsigned short*)target)[index] = half_bits(value);
    else
        ((unsigned char*)target)[index] = (unsigned char)min(max((int)value, 0), 255);
}

// `staged`: a Picture for each of the batch, and their pixels behind them, of `source_type` UINT8, or FLOAT32 (as they are).
// `reversed`: the model's channels are in the other order; `factor`, `shift` are in the model's.
// `interleaved`: the target is NHWC, not NCHW.
extern "C" __global__ void prepare_pictures(
    const unsigned char* __restrict__ staged, void* __restrict__ target, int height, int width, int channels,
    int reversed, int interleaved, int source_type, int target_type, float factor_0, float factor_1, float factor_2,
    float shift_0, float shift_1, float shift_2)
{
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = blockIdx.y * blockDim.y + threadIdx.y;
    if (column >= width || row >= height)
        return;
    const Picture picture = ((const Picture*)staged)[blockIdx.z];
    const int y = row + picture.y, x = column + picture.x;
    const bool shows = y >= picture.top && y < picture.bottom && x >= picture.left && x < picture.right;

    Taps down = {0, 0, 0, 0}, across = {0, 0, 0, 0};
    if (shows && picture.resized) {
        down = taps_at(y, picture.step_y, picture.rows);
        across = taps_at(x, picture.step_x, picture.columns);
        if (picture.paired) {
            down.first = 2 * (y - picture.top);
            down.second = down.first + 1;
        }
    } else if (shows) {
        down.first = y;
        across.first = x;
    }
    const unsigned char* pixels = staged + picture.pixels;
    const unsigned char* above = pixels + (long long)down.first * picture.pitch;
    const unsigned char* below = pixels + (long long)down.second * picture.pitch;

    const long long plane = (long long)height * width, pixel = (long long)row * width + column;
    const long long start = blockIdx.z * plane * channels;
    for (int channel = 0; channel < 3; channel++) {
        if (channel >= channels)
            break;
        const int first = across.first * channels + channel, second = across.second * channels + channel;
        float value;
        if (!shows)
            value = picture.fill[channel];
        else if (source_type == FLOAT32)
            value = ((const float*)above)[first];
        else if (picture.resized)
            value = bilinear(above, below, down, first, second, across);
        else
            value = above[first];
        const int to = reversed ? channels - 1 - channel : channel;
        const float factor = to == 0 ? factor_0 : to == 1 ? factor_1 : factor_2;
        const float shift = to == 0 ? shift_0 : to == 1 ? shift_1 : shift_2;
        const long long index = interleaved ? start + pixel * channels + to : start + to * plane + pixel;
        store(target, index, target_type, __fsub_rn(__fmul_rn(value, factor), shift));
    }
}
