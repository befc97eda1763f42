// Forward and backward of multi-scale deformable attention on the CPU. Compiled once per instruction set, with
// MSDETR_ISA naming it; nothing here but inline templates of its own namespace, so that no wider instruction leaks
// into code shared with the others.
//
// For one query the points of its heads are located first, all at once (rows and bilinear weights, in SIMD across
// points); then each head gathers its rows (in SIMD across channels). The backward computes, per point and corner,
// one dot product with the output's gradient and adds one multiple of it to the gradient of value.

#include <stdlib.h>
#include <string.h>

#include "ms_deform_attn.h"
#include "ms_deform_attn_plan.h"
#include "sampling.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace msdetr::MSDETR_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
constexpr bool kMasks = true;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
constexpr bool kMasks = false;
#else
constexpr int kRegisterBytes = 16;
constexpr bool kMasks = false;
#endif

// ---------------------------------------------------------------------------------------------- vectors of channels

template <typename T, int W>
struct Simd {
  typedef T Vector __attribute__((vector_size(W * sizeof(T))));
  static MSDETR_INLINE Vector load(const T* from) {
    Vector v;
    memcpy(&v, from, sizeof v);
    return v;
  }
  static MSDETR_INLINE void store(T* to, Vector v) { memcpy(to, &v, sizeof v); }
};

// Where the last vector of a block of channels lies. With masks it starts where the others end and has `lanes` lanes;
// without, it is full and moved back so that it ends with the block, and its first `skip` lanes repeat channels.
struct Last {
  int64_t offset;
  int lanes, skip;
};

template <typename T, int W>
MSDETR_INLINE typename Simd<T, W>::Vector load_last(const T* from, int lanes) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) * W == 64) {
    if constexpr (sizeof(T) == 4) {
      return (typename Simd<T, W>::Vector)_mm512_maskz_loadu_ps(__mmask16((1u << lanes) - 1), from);
    } else {
      return (typename Simd<T, W>::Vector)_mm512_maskz_loadu_pd(__mmask8((1u << lanes) - 1), from);
    }
  }
#endif
  (void)lanes;
  return Simd<T, W>::load(from);
}

template <typename T, int W>
MSDETR_INLINE void store_last(T* to, typename Simd<T, W>::Vector v, int lanes) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) * W == 64) {
    if constexpr (sizeof(T) == 4) {
      _mm512_mask_storeu_ps(to, __mmask16((1u << lanes) - 1), (__m512)v);
    } else {
      _mm512_mask_storeu_pd(to, __mmask8((1u << lanes) - 1), (__m512d)v);
    }
    return;
  }
#endif
  (void)lanes;
  Simd<T, W>::store(to, v);
}

// sums[i] = the sum of the lanes of v[i], for W vectors of W lanes.
template <typename T, int W>
MSDETR_INLINE void sum_lanes(const typename Simd<T, W>::Vector (&v)[W], T* sums) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4 && W == 16) {
    __m512 quads[4];
    for (int i = 0; i < 4; ++i) {
      const __m512 a = (__m512)v[4 * i], b = (__m512)v[4 * i + 1], c = (__m512)v[4 * i + 2], d = (__m512)v[4 * i + 3];
      const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
      const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
      quads[i] = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
    }
    const __m512 left = _mm512_add_ps(
        _mm512_shuffle_f32x4(quads[0], quads[1], 0x88), _mm512_shuffle_f32x4(quads[0], quads[1], 0xDD));
    const __m512 right = _mm512_add_ps(
        _mm512_shuffle_f32x4(quads[2], quads[3], 0x88), _mm512_shuffle_f32x4(quads[2], quads[3], 0xDD));
    _mm512_storeu_ps(sums, _mm512_add_ps(
        _mm512_shuffle_f32x4(left, right, 0x88), _mm512_shuffle_f32x4(left, right, 0xDD)));
    return;
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 4 && W == 8) {
    __m256 quads[2];
    for (int i = 0; i < 2; ++i) {
      quads[i] = _mm256_hadd_ps(_mm256_hadd_ps((__m256)v[4 * i], (__m256)v[4 * i + 1]),
                                _mm256_hadd_ps((__m256)v[4 * i + 2], (__m256)v[4 * i + 3]));
    }
    _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_permute2f128_ps(quads[0], quads[1], 0x20),
                                         _mm256_permute2f128_ps(quads[0], quads[1], 0x31)));
    return;
  }
#endif
  for (int i = 0; i < W; ++i) {
    T sum = v[i][0];
    for (int lane = 1; lane < W; ++lane) sum += v[i][lane];
    sums[i] = sum;
  }
}

// -------------------------------------------------------------------------------------------------- sampling points

// The points of a query's heads: level sizes per point, and what `locate` finds. One array per quantity; per corner c:
// row (its token) and weight (attention times bilinear), and in the backward its dot product with the output gradient.
template <typename T>
struct Points {
  int64_t count;
  int32_t *width, *height, *start;
  int32_t* row[4];
  T* weight[4];
  T* dot[4];
};

template <typename T>
void locate(Points<T>& points, const T* __restrict locations, const T* __restrict attention) {
  const int32_t* __restrict width = points.width;
  const int32_t* __restrict height = points.height;
  const int32_t* __restrict start = points.start;
  int32_t *__restrict row0 = points.row[0], *__restrict row1 = points.row[1], *__restrict row2 = points.row[2],
          *__restrict row3 = points.row[3];
  T *__restrict weight0 = points.weight[0], *__restrict weight1 = points.weight[1],
    *__restrict weight2 = points.weight[2], *__restrict weight3 = points.weight[3];
  for (int64_t i = 0; i < points.count; ++i) {
    const Axis<T> x = sample_axis(locations[2 * i], width[i]);
    const Axis<T> y = sample_axis(locations[2 * i + 1], height[i]);
    const int32_t low = start[i] + y.low * width[i], high = start[i] + y.high * width[i];
    const T weight_low = attention[i] * y.weight_low, weight_high = attention[i] * y.weight_high;
    row0[i] = low + x.low;
    row1[i] = low + x.high;
    row2[i] = high + x.low;
    row3[i] = high + x.high;
    weight0[i] = weight_low * x.weight_low;
    weight1[i] = weight_low * x.weight_high;
    weight2[i] = weight_high * x.weight_low;
    weight3[i] = weight_high * x.weight_high;
  }
}

// From the dot products to the gradients of locations and attention weights.
template <typename T>
void point_gradients(const Points<T>& points, const T* __restrict locations, const T* __restrict attention,
                     T* __restrict grad_locations, T* __restrict grad_attention) {
  const int32_t* __restrict width = points.width;
  const int32_t* __restrict height = points.height;
  const T *__restrict dot0 = points.dot[0], *__restrict dot1 = points.dot[1], *__restrict dot2 = points.dot[2],
          *__restrict dot3 = points.dot[3];
  for (int64_t i = 0; i < points.count; ++i) {
    const Axis<T> x = sample_axis(locations[2 * i], width[i]);
    const Axis<T> y = sample_axis(locations[2 * i + 1], height[i]);
    const PointGradient<T> gradient =
        point_gradient(x, y, width[i], height[i], attention[i], dot0[i], dot1[i], dot2[i], dot3[i]);
    grad_attention[i] = gradient.attention;
    grad_locations[2 * i] = gradient.x;
    grad_locations[2 * i + 1] = gradient.y;
  }
}

// ------------------------------------------------------------------------------------------------ blocks of channels

template <typename T, int W>
struct Kernel {
  using V = typename Simd<T, W>::Vector;
  static constexpr int kGroup = W >= 4 ? W / 4 : 1;    // points whose 4 dot products fill one vector
  static constexpr int kDots = W >= 4 ? W : 4;

  // `vectors` vectors of channels, the last one as `Last` says.
  template <int NV, bool PARTIAL>
  struct Block {
    static MSDETR_INLINE V load(const T* from, int k, const Last& last) {
      if (PARTIAL && k == NV - 1) return load_last<T, W>(from + last.offset, last.lanes);
      return Simd<T, W>::load(from + k * W);
    }
    static MSDETR_INLINE void store(T* to, int k, V v, const Last& last) {
      if (PARTIAL && k == NV - 1) {
        store_last<T, W>(to + last.offset, v, last.lanes);
      } else {
        Simd<T, W>::store(to + k * W, v);
      }
    }
  };

  // output = sum over points and corners of weight * row.
  template <int NV, bool PARTIAL>
  static void gather(const Points<T>& points, int64_t first, int64_t count, const T* value, int64_t stride,
                     const Last& last, T* output) {
    constexpr int kSets = NV <= 2 ? 4 : 2;  // independent sums, so that additions do not wait for each other
    V sum[kSets][NV] = {};
    const int32_t *row0 = points.row[0] + first, *row1 = points.row[1] + first, *row2 = points.row[2] + first,
                  *row3 = points.row[3] + first;
    const T *weight0 = points.weight[0] + first, *weight1 = points.weight[1] + first,
            *weight2 = points.weight[2] + first, *weight3 = points.weight[3] + first;
    for (int64_t i = 0; i < count; ++i) {
      const T* rows[4] = {value + row0[i] * stride, value + row1[i] * stride, value + row2[i] * stride,
                          value + row3[i] * stride};
      const T weights[4] = {weight0[i], weight1[i], weight2[i], weight3[i]};
      for (int corner = 0; corner < 4; ++corner) {
        for (int k = 0; k < NV; ++k) {
          sum[corner % kSets][k] += weights[corner] * Block<NV, PARTIAL>::load(rows[corner], k, last);
        }
      }
    }
    for (int k = 0; k < NV; ++k) {
      V total = sum[0][k] + sum[1][k];
      if constexpr (kSets == 4) total += sum[2][k] + sum[3][k];
      Block<NV, PARTIAL>::store(output, k, total, last);
    }
  }

  // One group of at most kGroup points: dot products of the rows with `grad`, and weight * grad added to their gradients.
  template <int NV, bool PARTIAL, bool VALUE, bool DOTS, bool FULL>
  static MSDETR_INLINE void scatter_group(const Points<T>& points, int64_t i, int64_t count, const T* value,
                                          T* grad_value, int64_t stride, const Last& last, const V (&grad)[NV],
                                          bool add) {
    V dots[kDots];
    for (int p = 0; p < kGroup; ++p) {
      for (int corner = 0; corner < 4; ++corner) {
        V dot = {};
        if (FULL || p < count) {
          const int64_t offset = points.row[corner][i + p] * stride;
          if constexpr (DOTS) {
            for (int k = 0; k < NV; ++k) dot += grad[k] * Block<NV, PARTIAL>::load(value + offset, k, last);
          }
          if constexpr (VALUE) {
            const T weight = points.weight[corner][i + p];
            T* target = grad_value + offset;
            for (int k = 0; k < NV; ++k) {
              const V sum = Block<NV, PARTIAL>::load(target, k, last) + weight * grad[k];
              Block<NV, PARTIAL>::store(target, k, sum, last);
            }
          }
        }
        dots[corner * kGroup + p] = dot;
      }
    }
    if constexpr (DOTS) {
      T sums[kDots];
      if constexpr (W >= 4) {
        sum_lanes<T, W>(dots, sums);
      } else {
        for (int corner = 0; corner < 4; ++corner) {
          sums[corner] = dots[corner][0];
          for (int lane = 1; lane < W; ++lane) sums[corner] += dots[corner][lane];
        }
      }
      for (int corner = 0; corner < 4; ++corner) {
        T* dot = points.dot[corner] + i;
        for (int p = 0; p < (FULL ? kGroup : count); ++p) {
          dot[p] = add ? dot[p] + sums[corner * kGroup + p] : sums[corner * kGroup + p];
        }
      }
    }
  }

  template <int NV, bool PARTIAL, bool VALUE, bool DOTS>
  static void scatter(const Points<T>& points, int64_t first, int64_t count, const T* value, T* grad_value,
                      int64_t stride, const Last& last, const T* grad_output, bool add) {
    V grad[NV];
    for (int k = 0; k < NV; ++k) grad[k] = Block<NV, PARTIAL>::load(grad_output, k, last);
    if (PARTIAL && !kMasks) {
      for (int lane = 0; lane < last.skip; ++lane) grad[NV - 1][lane] = T(0);
    }
    int64_t i = 0;
    for (; i + kGroup <= count; i += kGroup) {
      scatter_group<NV, PARTIAL, VALUE, DOTS, true>(
          points, first + i, kGroup, value, grad_value, stride, last, grad, add);
    }
    if (i < count) {
      scatter_group<NV, PARTIAL, VALUE, DOTS, false>(
          points, first + i, count - i, value, grad_value, stride, last, grad, add);
    }
  }

  static Last last_of(int64_t channels, int vectors) {
    const int lanes = int(channels - (vectors - 1) * W);
    if (kMasks) return {(vectors - 1) * W, lanes, 0};
    return {channels - W, W, W - lanes};
  }

  // Calls function(first channel, channels of the block, vectors, partial) for blocks of at most four vectors.
  template <typename Function>
  static MSDETR_INLINE void for_blocks(int64_t channels, Function function) {
    for (int64_t c = 0; c < channels; c += 4 * W) {
      const int64_t rest = channels - c < 4 * W ? channels - c : 4 * W;
      const int vectors = int((rest + W - 1) / W);
      const bool partial = rest % W != 0;
      const Last last = last_of(rest, vectors);
      switch (2 * vectors + partial) {
        case 2: function(Shape<1, false>{}, c, last); break;
        case 3: function(Shape<1, true>{}, c, last); break;
        case 4: function(Shape<2, false>{}, c, last); break;
        case 5: function(Shape<2, true>{}, c, last); break;
        case 6: function(Shape<3, false>{}, c, last); break;
        case 7: function(Shape<3, true>{}, c, last); break;
        case 8: function(Shape<4, false>{}, c, last); break;
        default: function(Shape<4, true>{}, c, last); break;
      }
    }
  }
  template <int NV, bool PARTIAL>
  struct Shape {
    static constexpr int vectors = NV;
    static constexpr bool partial = PARTIAL;
  };

  // ------------------------------------------------------------------------------------------------- tasks

  const MsdetrDeformAttn& problem;
  const int64_t M, D, S, Q, n;    // heads, channels, tokens, queries, points of one head and query
  Points<T> points;
  T* value_copy = nullptr;        // by_head: the value of one head, [S, stride]
  T* grad_copy = nullptr;
  int64_t stride;
  void* memory = nullptr;

  Kernel(const MsdetrDeformAttn& p, bool by_head, bool backward, int64_t heads)
      : problem(p), M(p.heads), D(p.channels), S(p.tokens), Q(p.queries), n(p.levels * p.points), stride(M * D) {
    constexpr int64_t kAlign = 64;
    const int64_t count = heads * n;
    const int64_t padded = (count + 15) / 16 * 16;
    const int64_t arrays = 7 * padded * int64_t(sizeof(int32_t)) + (backward ? 8 : 4) * padded * int64_t(sizeof(T));
    if (by_head) stride = D * int64_t(sizeof(T)) % kAlign == 0 || !kMasks ? D : (D * int64_t(sizeof(T)) + kAlign - 1) / kAlign * kAlign / int64_t(sizeof(T));
    const int64_t copy = by_head ? (S * stride * int64_t(sizeof(T)) + kAlign - 1) / kAlign * kAlign : 0;
    const int64_t copies = copy * (backward && p.grad_value ? 2 : 1);
    if (posix_memalign(&memory, kAlign, size_t(copies + arrays))) memory = nullptr;
    if (!memory) return;
    char* at = static_cast<char*>(memory);
    const auto take = [&at](int64_t bytes) {
      char* taken = at;
      at += bytes;
      return taken;
    };
    if (by_head) value_copy = reinterpret_cast<T*>(take(copy));
    if (by_head && copies > copy) grad_copy = reinterpret_cast<T*>(take(copy));
    points.count = count;
    for (T*& array : points.weight) array = reinterpret_cast<T*>(take(padded * sizeof(T)));
    for (T*& array : points.dot) array = backward ? reinterpret_cast<T*>(take(padded * sizeof(T))) : nullptr;
    for (int32_t*& array : points.row) array = reinterpret_cast<int32_t*>(take(padded * sizeof(int32_t)));
    points.width = reinterpret_cast<int32_t*>(take(padded * sizeof(int32_t)));
    points.height = reinterpret_cast<int32_t*>(take(padded * sizeof(int32_t)));
    points.start = reinterpret_cast<int32_t*>(take(padded * sizeof(int32_t)));
    int64_t i = 0, start = 0;
    for (int64_t level = 0; level < p.levels; ++level) {
      const int64_t height = p.shapes[2 * level], width = p.shapes[2 * level + 1];
      for (int64_t point = 0; point < p.points; ++point, ++i) {
        points.height[i] = int32_t(height);
        points.width[i] = int32_t(width);
        points.start[i] = int32_t(start);
      }
      start += height * width;
    }
    for (; i < count; ++i) {
      points.height[i] = points.height[i - n];
      points.width[i] = points.width[i - n];
      points.start[i] = points.start[i - n];
    }
  }
  ~Kernel() { free(memory); }
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  // Element offsets of query q, head m of image b in the tensors of points and of outputs.
  int64_t point_offset(int64_t b, int64_t q, int64_t m) const { return ((b * Q + q) * M + m) * n; }
  int64_t output_offset(int64_t b, int64_t q, int64_t m) const { return ((b * Q + q) * M + m) * D; }

  void copy_head(const T* from) {
    for (int64_t s = 0; s < S; ++s) memcpy(value_copy + s * stride, from + s * M * D, size_t(D) * sizeof(T));
  }

  void forward_query(int64_t b, int64_t q, int64_t first_head, int64_t last_head, const T* value) {
    const T* locations = static_cast<const T*>(problem.locations) + 2 * point_offset(b, q, first_head);
    const T* attention = static_cast<const T*>(problem.weights) + point_offset(b, q, first_head);
    locate(points, locations, attention);
    for (int64_t m = first_head; m < last_head; ++m) {
      const T* head = value_copy ? value_copy : value + m * D;
      T* output = static_cast<T*>(problem.output) + output_offset(b, q, m);
      for_blocks(D, [&](auto shape, int64_t c, const Last& last) {
        gather<shape.vectors, shape.partial>(points, (m - first_head) * n, n, head + c, stride, last, output + c);
      });
    }
  }

  void forward(int64_t b, int64_t first_head, int64_t last_head, int64_t first_query, int64_t last_query) {
    const T* value = static_cast<const T*>(problem.value) + b * S * M * D;
    if (value_copy) copy_head(value + first_head * D);
    for (int64_t q = first_query; q < last_query; ++q) forward_query(b, q, first_head, last_head, value);
  }

  template <bool VALUE, bool DOTS>
  void backward_query(int64_t b, int64_t q, int64_t first_head, int64_t last_head, const T* value, T* grad_value) {
    const int64_t offset = point_offset(b, q, first_head);
    const T* locations = static_cast<const T*>(problem.locations) + 2 * offset;
    const T* attention = static_cast<const T*>(problem.weights) + offset;
    locate(points, locations, attention);
    for (int64_t m = first_head; m < last_head; ++m) {
      const T* head = value_copy ? value_copy : value + m * D;
      T* grad_head = !VALUE ? nullptr : grad_copy ? grad_copy : grad_value + m * D;
      const T* grad_output = static_cast<const T*>(problem.grad_output) + output_offset(b, q, m);
      for_blocks(D, [&](auto shape, int64_t c, const Last& last) {
        scatter<shape.vectors, shape.partial, VALUE, DOTS>(
            points, (m - first_head) * n, n, head + c, VALUE ? grad_head + c : nullptr, stride, last, grad_output + c,
            c > 0);
      });
    }
    if constexpr (DOTS) {
      point_gradients(points, locations, attention, static_cast<T*>(problem.grad_locations) + 2 * offset,
                      static_cast<T*>(problem.grad_weights) + offset);
    }
  }

  template <bool VALUE, bool DOTS>
  void backward(int64_t b, int64_t first_head, int64_t last_head) {
    const T* value = static_cast<const T*>(problem.value) + b * S * M * D;
    T* grad_value = VALUE ? static_cast<T*>(problem.grad_value) + b * S * M * D : nullptr;
    if (value_copy) copy_head(value + first_head * D);
    if (VALUE && grad_copy) {
      memset(grad_copy, 0, size_t(S * stride) * sizeof(T));
    } else if (VALUE) {
      for (int64_t s = 0; s < S; ++s) {
        memset(grad_value + (s * M + first_head) * D, 0, size_t((last_head - first_head) * D) * sizeof(T));
      }
    }
    for (int64_t q = 0; q < Q; ++q) backward_query<VALUE, DOTS>(b, q, first_head, last_head, value, grad_value);
    if (VALUE && grad_copy) {
      T* to = grad_value + first_head * D;
      for (int64_t s = 0; s < S; ++s) memcpy(to + s * M * D, grad_copy + s * stride, size_t(D) * sizeof(T));
    }
  }

  static bool run(const MsdetrDeformAttn& problem, bool backward, const Plan& plan, int64_t task) {
    const int64_t b = task / plan.splits, split = task % plan.splits;
    const auto cut = [&](int64_t total, int64_t i) { return total * i / plan.splits; };
    const bool split_heads = plan.by_head || backward;
    const int64_t first_head = split_heads ? cut(problem.heads, split) : 0;
    const int64_t last_head = split_heads ? cut(problem.heads, split + 1) : problem.heads;
    Kernel kernel(problem, plan.by_head, backward, last_head - first_head);
    if (!kernel.memory) return false;
    if (!backward) {
      kernel.forward(b, first_head, last_head, split_heads ? 0 : cut(problem.queries, split),
                     split_heads ? problem.queries : cut(problem.queries, split + 1));
    } else if (problem.grad_value && problem.grad_weights) {
      kernel.template backward<true, true>(b, first_head, last_head);
    } else if (problem.grad_value) {
      kernel.template backward<true, false>(b, first_head, last_head);
    } else if (problem.grad_weights) {
      kernel.template backward<false, true>(b, first_head, last_head);
    }
    return true;
  }
};

template <typename T>
bool run_typed(const MsdetrDeformAttn& problem, bool backward, const Plan& plan, int64_t task) {
  constexpr int kWidest = kRegisterBytes / int(sizeof(T));
  if (kMasks || problem.channels >= kWidest) return Kernel<T, kWidest>::run(problem, backward, plan, task);
  if constexpr (kWidest > 4) {
    if (problem.channels >= 4) return Kernel<T, 4>::run(problem, backward, plan, task);
  }
  return Kernel<T, 1>::run(problem, backward, plan, task);
}

}  // namespace

bool run(const MsdetrDeformAttn& problem, int dtype, bool backward, const Plan& plan, int64_t task) {
  return dtype == MSDETR_DOUBLE ? run_typed<double>(problem, backward, plan, task)
                                : run_typed<float>(problem, backward, plan, task);
}

}  // namespace msdetr::MSDETR_ISA
