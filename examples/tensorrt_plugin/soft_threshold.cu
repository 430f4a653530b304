// y = sign(x) * max(|x| - threshold, 0), element by element.
extern "C" __global__ void soft_threshold(const float* x, float* y, float threshold, long long count) {
    long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    if (i >= count) {
        return;
    }
    float size = fabsf(x[i]) - threshold;
    y[i] = size > 0.0f ? copysignf(size, x[i]) : 0.0f;
}
