// The sampling arithmetic of multi-scale deformable attention, shared by the CPU library and the CUDA kernels.
//
// A level of `size` pixels spans [0, 1]; pixel centres lie at (i + 0.5) / size. Bilinear interpolation is the product
// of two linear ones, so everything is said for one axis. Pixels outside the level have the value zero: their weight
// is zero here and their index clamped, so that callers read and multiply without branching.
//
// Real is float or double. T and I are Real and int for one point (CUDA), or vectors of equally many lanes of Real and
// of a signed integer of its width for many points (CPU); `select`, `to_int` and `to_real` tell the two apart.
#pragma once

#if defined(__CUDACC__)
#define MSDETR_INLINE __device__ __forceinline__
#else
#define MSDETR_INLINE inline __attribute__((always_inline))
#endif

namespace msdetr {

#if defined(__CUDACC__)
template <typename T>
MSDETR_INLINE T select(bool mask, T yes, T no) {
  return mask ? yes : no;
}
template <typename T>
MSDETR_INLINE void to_int(T from, int& to) {
  to = int(from);
}
template <typename T>
MSDETR_INLINE void to_real(int from, T& to) {
  to = T(from);
}
#else
template <typename M, typename V>
MSDETR_INLINE V select(M mask, V yes, V no) {
  return mask ? yes : no;
}
template <typename V, typename I>
MSDETR_INLINE void to_int(V from, I& to) {
  to = __builtin_convertvector(from, I);
}
template <typename I, typename V>
MSDETR_INLINE void to_real(I from, V& to) {
  to = __builtin_convertvector(from, V);
}
#endif

template <typename T, typename I>
struct Axis {
  I low, high;                // the two neighbouring pixels, clamped to the level
  T weight_low, weight_high;  // their linear interpolation weights; zero for a pixel outside
  T inside_low, inside_high;  // 1 for a pixel of the level, 0 outside: d weight / d pixel is -inside_low, +inside_high
};

// `location` in units of the level. Where no pixel reaches, and for infinities and NaN, both weights are zero.
template <typename Real, typename T, typename I>
MSDETR_INLINE Axis<T, I> sample_axis(T location, I size) {
  const T zero = {}, one = zero + Real(1);
  const I none = {};
  T length, floor;
  I low;
  to_real(size, length);
  T pixel = location * length - Real(0.5);
  const auto reached = (pixel > Real(-1)) & (pixel < length);  // false for NaN
  pixel = select(reached, pixel, zero);
  to_int(pixel, low);                               // towards zero,
  to_real(low, floor);
  low = low - select(pixel < floor, none + 1, none);  // then down: floor, also where there is no instruction for it
  to_real(low, floor);
  const I high = low + 1;
  const auto inside_low = reached & (low >= 0), inside_high = reached & (high < size);
  const T fraction = pixel - floor;
  Axis<T, I> axis;
  axis.low = select(low < 0, none, low);
  axis.high = select(high < size, high, size - 1);
  axis.weight_low = select(inside_low, one - fraction, zero);
  axis.weight_high = select(inside_high, fraction, zero);
  axis.inside_low = select(inside_low, one, zero);
  axis.inside_high = select(inside_high, one, zero);
  return axis;
}

// Gradients of attention * sum_rc wy_r wx_c value_rc, given dot_rc = <grad_output, value_rc>; r and c: low or high.
template <typename T>
struct PointGradient {
  T attention, x, y;
};

template <typename T, typename I>
MSDETR_INLINE PointGradient<T> point_gradient(
    const Axis<T, I>& x, const Axis<T, I>& y, T width, T height, T attention, T dot00, T dot01, T dot10, T dot11) {
  PointGradient<T> gradient;
  gradient.attention = y.weight_low * (x.weight_low * dot00 + x.weight_high * dot01) +
                       y.weight_high * (x.weight_low * dot10 + x.weight_high * dot11);
  gradient.x = attention * width *
               (y.weight_low * (x.inside_high * dot01 - x.inside_low * dot00) +
                y.weight_high * (x.inside_high * dot11 - x.inside_low * dot10));
  gradient.y = attention * height *
               (x.weight_low * (y.inside_high * dot10 - y.inside_low * dot00) +
                x.weight_high * (y.inside_high * dot11 - y.inside_low * dot01));
  return gradient;
}

}  // namespace msdetr
