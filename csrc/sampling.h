// The sampling arithmetic of multi-scale deformable attention, shared by the CPU library and the CUDA kernels.
//
// A level of `size` pixels spans [0, 1]; pixel centres lie at (i + 0.5) / size. Bilinear interpolation is the product
// of two linear ones, so everything is said for one axis. Pixels outside the level have the value zero: their weight
// is zero here and their index clamped, so that callers read and multiply without branching.
#pragma once

#if defined(__CUDACC__)
#define MSDETR_INLINE __device__ __forceinline__
#else
#define MSDETR_INLINE inline __attribute__((always_inline))
#endif

namespace msdetr {

template <typename T>
struct Axis {
  int low, high;                // the two neighbouring pixels, clamped to the level
  T weight_low, weight_high;    // their linear interpolation weights; zero for a pixel outside
  T inside_low, inside_high;    // 1 for a pixel of the level, 0 outside: d weight / d pixel is -inside_low, +inside_high
};

// `location` in units of the level. Where no pixel reaches (and for infinities and NaN) both weights are zero.
template <typename T>
MSDETR_INLINE Axis<T> sample_axis(T location, int size) {
  T pixel = location * T(size) - T(0.5);
  const bool reached = (pixel > T(-1)) & (pixel < T(size));
  pixel = reached ? pixel : T(0);
  int low = int(pixel);          // towards zero,
  low -= pixel < T(low) ? 1 : 0; // then down: floor, also where there is no instruction for it
  const T fraction = pixel - T(low);
  const T inside_low = (reached & (low >= 0)) ? T(1) : T(0);
  const T inside_high = (reached & (low + 1 < size)) ? T(1) : T(0);
  Axis<T> axis;
  axis.low = low < 0 ? 0 : low;
  axis.high = low + 1 < size ? low + 1 : size - 1;
  axis.weight_low = inside_low * (T(1) - fraction);
  axis.weight_high = inside_high * fraction;
  axis.inside_low = inside_low;
  axis.inside_high = inside_high;
  return axis;
}

// Gradients of  attention * sum_rc wy_r wx_c value_rc  given d_rc = <grad_output, value_rc>, r = y low/high, c = x low/high.
template <typename T>
struct PointGradient {
  T attention, x, y;
};

template <typename T>
MSDETR_INLINE PointGradient<T> point_gradient(
    const Axis<T>& x, const Axis<T>& y, int width, int height, T attention, T d00, T d01, T d10, T d11) {
  PointGradient<T> gradient;
  gradient.attention = y.weight_low * (x.weight_low * d00 + x.weight_high * d01) +
                       y.weight_high * (x.weight_low * d10 + x.weight_high * d11);
  gradient.x = attention * T(width) *
               (y.weight_low * (x.inside_high * d01 - x.inside_low * d00) +
                y.weight_high * (x.inside_high * d11 - x.inside_low * d10));
  gradient.y = attention * T(height) *
               (x.weight_low * (y.inside_high * d10 - y.inside_low * d00) +
                x.weight_high * (y.inside_high * d11 - y.inside_low * d01));
  return gradient;
}

}  // namespace msdetr
