// Softmax of attention weights and sampling locations, forward and backward, on the CPU. Compiled once per instruction set,
// with MSDETR_ISA naming it; plain loops over the numbers of one row, which stay in the first cache and are vectorized.

#include <stdint.h>
#include <string.h>

#include "ms_deform_points.h"

#define MSDETR_INLINE inline __attribute__((always_inline))

namespace msdetr::MSDETR_ISA {
namespace {

// e^x for x <= 0, to 2 units in the last place: 2^n * e^r with |r| <= ln(2) / 2 and a polynomial. Below -87, 0; NaN stays.
MSDETR_INLINE float exp_of_negative(float x) {
  const float bounded = x < -87.0f ? -87.0f : x;
  const float shifted = bounded * 1.44269504f + 12582912.0f;  // rounds to the nearest integer, in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  int32_t bits;
  memcpy(&bits, &shifted, 4);
  bits = (bits - 0x4B400000 + 127) << 23;
  float power;
  memcpy(&power, &bits, 4);
  return x < -87.0f ? 0.0f : p * power;
}

void forward_row(const MsdetrPoints& problem, int64_t row, float* scaled, float* based) {
  const int64_t M = problem.heads, P = problem.points, n = problem.levels * P;
  const float* base = problem.base + row * problem.levels * 2;
  const float* scale = problem.scale + (problem.scales == 1 ? 0 : row) * problem.levels * 2;
  for (int64_t level = 0; level < problem.levels; ++level) {
    for (int64_t i = 2 * level * P; i < 2 * (level + 1) * P; i += 2) {
      based[i] = base[2 * level], based[i + 1] = base[2 * level + 1];
      scaled[i] = scale[2 * level], scaled[i + 1] = scale[2 * level + 1];
    }
  }
  const float* __restrict offsets = problem.projected + row * 3 * M * n;
  float* __restrict locations = problem.locations + row * 2 * M * n;
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t i = 0; i < 2 * n; ++i) locations[2 * m * n + i] = based[i] + offsets[2 * m * n + i] * scaled[i];
  }
  const float* __restrict logits = offsets + 2 * M * n;
  float* __restrict weights = problem.weights + row * M * n;
  for (int64_t m = 0; m < M; ++m) {
    float most = logits[m * n];
    for (int64_t i = 1; i < n; ++i) most = most < logits[m * n + i] ? logits[m * n + i] : most;
    for (int64_t i = 0; i < n; ++i) weights[m * n + i] = logits[m * n + i] - most;
  }
  for (int64_t i = 0; i < M * n; ++i) weights[i] = exp_of_negative(weights[i]);
  for (int64_t m = 0; m < M; ++m) {
    float sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += weights[m * n + i];
    const float share = 1 / sum;
    for (int64_t i = 0; i < n; ++i) weights[m * n + i] *= share;
  }
}

void backward_row(const MsdetrPoints& problem, int64_t row, float* scaled) {
  const int64_t M = problem.heads, P = problem.points, n = problem.levels * P;
  const float* scale = problem.scale + (problem.scales == 1 ? 0 : row) * problem.levels * 2;
  for (int64_t level = 0; level < problem.levels; ++level) {
    for (int64_t i = 2 * level * P; i < 2 * (level + 1) * P; i += 2) {
      scaled[i] = scale[2 * level], scaled[i + 1] = scale[2 * level + 1];
    }
  }
  const float* __restrict upstream = problem.grad_locations + row * 2 * M * n;
  float* __restrict gradient = problem.grad_projected + row * 3 * M * n;
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t i = 0; i < 2 * n; ++i) gradient[2 * m * n + i] = upstream[2 * m * n + i] * scaled[i];
  }
  const float* __restrict weights = problem.weights + row * M * n;
  const float* __restrict grad_weights = problem.grad_weights + row * M * n;
  float* __restrict grad_logits = gradient + 2 * M * n;
  for (int64_t m = 0; m < M; ++m) {
    float mean = 0;
    for (int64_t i = m * n; i < (m + 1) * n; ++i) mean += weights[i] * grad_weights[i];
    for (int64_t i = m * n; i < (m + 1) * n; ++i) grad_logits[i] = weights[i] * (grad_weights[i] - mean);
  }
}

}  // namespace

void points(const MsdetrPoints& problem, bool backward, int64_t first, int64_t last, float* space) {
  for (int64_t row = first; row < last; ++row) {
    if (backward) {
      backward_row(problem, row, space);
    } else {
      forward_row(problem, row, space, space + 2 * problem.levels * problem.points);
    }
  }
}

}  // namespace msdetr::MSDETR_ISA
