// The straightforward way to put the operator on a GPU, as the yardstick of benchmarks/ms_deform_attn.py: one thread
// per element of the output. Every thread works out its points for itself; in the backward a block holds the channels
// of one query and head, adds to grad_value with one atomic per channel and pixel, and sums the gradients of locations
// and weights in shared memory. VALUE is float or Bfloat, the rest as for csrc/ms_deform_attn.cu; CHANNELS is a power
// of two.

#include "sampling.h"

struct Bfloat {
  unsigned short bits;
};
using Value = VALUE;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(Bfloat x) { return __uint_as_float(unsigned(x.bits) << 16); }
__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(float x, Bfloat& to) {
  const unsigned bits = __float_as_uint(x);
  to.bits = (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

extern "C" __global__ void forward(const Value* value, const Value* locations, const Value* weights, Value* output,
                                   int tokens, int queries, long long elements, LEVEL_PARAMETERS) {
  const long long element = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (element >= elements) return;
  const int sizes[] = {LEVEL_SIZES};
  const int channel = element % CHANNELS, head = element / CHANNELS % HEADS;
  const long long place = element / CHANNELS;
  const Value* image = value + place / HEADS / queries * tokens * HEADS * CHANNELS;
  long long point = place * LEVELS * POINTS;
  float sum = 0;
  int start = 0;
  for (int level = 0; level < LEVELS; ++level) {
    const int height = sizes[2 * level], width = sizes[2 * level + 1];
    for (int p = 0; p < POINTS; ++p, ++point) {
      const auto x = msdetr::sample_axis<float>(widen(locations[2 * point]), width);
      const auto y = msdetr::sample_axis<float>(widen(locations[2 * point + 1]), height);
      const auto at = [&](int row, int column) {
        return widen(image[((start + row * width + column) * HEADS + head) * CHANNELS + channel]);
      };
      sum += widen(weights[point]) *
             (y.weight_low * (x.weight_low * at(y.low, x.low) + x.weight_high * at(y.low, x.high)) +
              y.weight_high * (x.weight_low * at(y.high, x.low) + x.weight_high * at(y.high, x.high)));
    }
    start += height * width;
  }
  narrow(sum, output[element]);
}

__device__ void sum_block(float* shared, float* result) {
  __syncthreads();
  for (int half = CHANNELS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  *result = shared[0];
  __syncthreads();
}

extern "C" __global__ void backward(const Value* grad_output, const Value* value, const Value* locations,
                                    const Value* weights, float* grad_value, Value* grad_locations,
                                    Value* grad_weights, int tokens, int queries, LEVEL_PARAMETERS) {
  __shared__ float shared[CHANNELS];
  const int sizes[] = {LEVEL_SIZES};
  const int channel = threadIdx.x, head = blockIdx.x % HEADS;
  const long long place = blockIdx.x;
  const long long image = place / HEADS / queries * tokens * HEADS * CHANNELS;
  const float grad = widen(grad_output[place * CHANNELS + channel]);
  long long point = place * LEVELS * POINTS;
  int start = 0;
  for (int level = 0; level < LEVELS; ++level) {
    const int height = sizes[2 * level], width = sizes[2 * level + 1];
    for (int p = 0; p < POINTS; ++p, ++point) {
      const auto x = msdetr::sample_axis<float>(widen(locations[2 * point]), width);
      const auto y = msdetr::sample_axis<float>(widen(locations[2 * point + 1]), height);
      const float attention = widen(weights[point]);
      float dots[4];
      for (int corner = 0; corner < 4; ++corner) {
        const int row = corner / 2 ? y.high : y.low, column = corner % 2 ? x.high : x.low;
        const float weight =
            (corner / 2 ? y.weight_high : y.weight_low) * (corner % 2 ? x.weight_high : x.weight_low) * attention;
        const long long element = image + ((start + row * width + column) * HEADS + head) * CHANNELS + channel;
        dots[corner] = grad * widen(value[element]);
        if (weight != 0) atomicAdd(grad_value + element, weight * grad);
      }
      const auto mine = msdetr::point_gradient(x, y, float(width), float(height), attention, dots[0], dots[1], dots[2],
                                               dots[3]);
      const float parts[3] = {mine.attention, mine.x, mine.y};
      float sums[3];
      for (int i = 0; i < 3; ++i) {
        shared[channel] = parts[i];
        sum_block(shared, sums + i);
      }
      if (channel == 0) {
        narrow(sums[0], grad_weights[point]);
        narrow(sums[1], grad_locations[2 * point]);
        narrow(sums[2], grad_locations[2 * point + 1]);
      }
    }
    start += height * width;
  }
}
