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
constexpr bool kMasks = true;
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

#if defined(__AVX2__)
// The first `lanes` lanes of eight or four, as AVX2's masked instructions want them.
template <typename T>
MSDETR_INLINE __m256i first_lanes(int lanes) {
  alignas(32) static constexpr int32_t kOnes[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  const int width = int(sizeof(T)) / 4;
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kOnes + 8 - width * lanes));
}
#endif

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
#elif defined(__AVX2__)
  if constexpr (sizeof(T) * W == 32) {
    if constexpr (sizeof(T) == 4) {
      return (typename Simd<T, W>::Vector)_mm256_maskload_ps(from, first_lanes<T>(lanes));
    } else {
      return (typename Simd<T, W>::Vector)_mm256_maskload_pd(from, first_lanes<T>(lanes));
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
#elif defined(__AVX2__)
  if constexpr (sizeof(T) * W == 32) {
    if constexpr (sizeof(T) == 4) {
      _mm256_maskstore_ps(to, first_lanes<T>(lanes), (__m256)v);
    } else {
      _mm256_maskstore_pd(to, first_lanes<T>(lanes), (__m256d)v);
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

template <typename T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};
template <typename T>
using Integer = typename IntegerOf<T>::type;

// As many points as a register holds.
template <typename T>
constexpr int kPoints = kRegisterBytes / int(sizeof(T));
template <typename T>
using Reals = typename Simd<T, kPoints<T>>::Vector;

// What `locate` finds of the points of one register, for each corner (y low x low, y low x high, y high x low, y high x
// high): its row, that is its token, its weight (attention times bilinear), and in the backward its dot product with the
// output gradient. All of a point lies at constant distances from one address.
template <typename T>
struct alignas(64) Located {
  Integer<T> row[4][kPoints<T>];
  T weight[4][kPoints<T>];
  T dot[4][kPoints<T>];
};

// The level of each of those points.
template <typename T>
struct alignas(64) Levels {
  Integer<T> width[kPoints<T>], height[kPoints<T>], start[kPoints<T>];
};

// The points of a query's heads, padded to full registers.
template <typename T>
struct Points {
  int64_t count;
  Levels<T>* levels;
  Located<T>* located;

  // Calls function(located, first lane, lanes) for the registers that `count` points from `first` lie in.
  template <typename Function>
  MSDETR_INLINE void for_registers(int64_t first, int64_t count, Function function) const {
    const int64_t end = first + count;
    for (int64_t i = first; i < end;) {
      const int64_t lane = int64_t(uint64_t(i) % kPoints<T>), rest = end - i;
      const int64_t lanes = kPoints<T> - lane < rest ? kPoints<T> - lane : rest;
      function(located[uint64_t(i) / kPoints<T>], lane, lanes);
      i += lanes;
    }
  }
};

// The lanes of one register of points, read from the call's tensors. Those past a query's points are not used; past the
// end of the tensors, which have `rest` points from here on, they are not read either.
template <typename T>
struct Lanes {
  alignas(kRegisterBytes) T x[kPoints<T>], y[kPoints<T>], attention[kPoints<T>];

  MSDETR_INLINE Lanes(const T* locations, const T* weights, int64_t rest) {
    if (rest >= kPoints<T>) {
      for (int i = 0; i < kPoints<T>; ++i) {
        x[i] = locations[2 * i];
        y[i] = locations[2 * i + 1];
        attention[i] = weights[i];
      }
    } else {
      for (int i = 0; i < kPoints<T>; ++i) {
        x[i] = i < rest ? locations[2 * i] : T(-1);
        y[i] = i < rest ? locations[2 * i + 1] : T(-1);
        attention[i] = i < rest ? weights[i] : T(0);
      }
    }
  }
};

template <typename T>
void locate(const Points<T>& points, const T* locations, const T* attention, int64_t rest) {
  using Real = Simd<T, kPoints<T>>;
  using Int = Simd<Integer<T>, kPoints<T>>;
  for (int64_t i = 0; i < points.count; i += kPoints<T>) {
    const Lanes<T> lanes(locations + 2 * i, attention + i, rest - i);
    const Levels<T>& levels = points.levels[i / kPoints<T>];
    Located<T>& located = points.located[i / kPoints<T>];
    const auto width = Int::load(levels.width), height = Int::load(levels.height), start = Int::load(levels.start);
    const auto x = sample_axis<T>(Real::load(lanes.x), width), y = sample_axis<T>(Real::load(lanes.y), height);
    const auto low = start + y.low * width, high = start + y.high * width;
    const auto weight_low = Real::load(lanes.attention) * y.weight_low;
    const auto weight_high = Real::load(lanes.attention) * y.weight_high;
    Int::store(located.row[0], low + x.low);
    Int::store(located.row[1], low + x.high);
    Int::store(located.row[2], high + x.low);
    Int::store(located.row[3], high + x.high);
    Real::store(located.weight[0], weight_low * x.weight_low);
    Real::store(located.weight[1], weight_low * x.weight_high);
    Real::store(located.weight[2], weight_high * x.weight_low);
    Real::store(located.weight[3], weight_high * x.weight_high);
  }
}

// From the dot products to the gradients of locations and attention weights.
template <typename T>
void point_gradients(const Points<T>& points, const T* locations, const T* attention, int64_t rest, T* grad_locations,
                     T* grad_attention) {
  using Real = Simd<T, kPoints<T>>;
  using Int = Simd<Integer<T>, kPoints<T>>;
  for (int64_t i = 0; i < points.count; i += kPoints<T>) {
    Lanes<T> lanes(locations + 2 * i, attention + i, rest - i);
    const Levels<T>& levels = points.levels[i / kPoints<T>];
    const Located<T>& located = points.located[i / kPoints<T>];
    const auto width = Int::load(levels.width), height = Int::load(levels.height);
    const auto x = sample_axis<T>(Real::load(lanes.x), width), y = sample_axis<T>(Real::load(lanes.y), height);
    Reals<T> real_width, real_height;
    to_real(width, real_width);
    to_real(height, real_height);
    const auto gradient = point_gradient(
        x, y, real_width, real_height, Real::load(lanes.attention), Real::load(located.dot[0]),
        Real::load(located.dot[1]), Real::load(located.dot[2]), Real::load(located.dot[3]));
    Real::store(lanes.x, gradient.x);
    Real::store(lanes.y, gradient.y);
    Real::store(lanes.attention, gradient.attention);
    T* to = grad_locations + 2 * i;
    if (points.count - i >= kPoints<T>) {
      for (int lane = 0; lane < kPoints<T>; ++lane) {
        to[2 * lane] = lanes.x[lane];
        to[2 * lane + 1] = lanes.y[lane];
        grad_attention[i + lane] = lanes.attention[lane];
      }
    } else {
      for (int lane = 0; lane < points.count - i; ++lane) {
        to[2 * lane] = lanes.x[lane];
        to[2 * lane + 1] = lanes.y[lane];
        grad_attention[i + lane] = lanes.attention[lane];
      }
    }
  }
}

// ------------------------------------------------------------------------------------------------ blocks of channels

template <typename T, int W>
struct Kernel {
  using V = typename Simd<T, W>::Vector;
  static constexpr int kGroup = W >= 4 ? W / 4 : 1;    // points whose 4 dot products fill one vector
  static constexpr int kDots = W >= 4 ? W : 4;
  static constexpr int64_t kAhead = 8;                 // queries between fetching and use

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

  // output = sum over points and corners of weight * row. Rows of a copy are PADDED to whole vectors.
  template <int NV, bool PARTIAL, bool PADDED>
  static void gather(const Points<T>& points, int64_t first, int64_t count, const T* value, int64_t stride,
                     const Last& last, T* output) {
    constexpr int kSets = NV <= 2 ? 4 : 2;  // independent sums, so that additions do not wait for each other
    V sum[kSets][NV] = {};
    points.for_registers(first, count, [&](const Located<T>& located, int64_t lane, int64_t lanes) {
      for (const int64_t end = lane + lanes; lane < end; ++lane) {
        for (int corner = 0; corner < 4; ++corner) {
          const T* row = value + located.row[corner][lane] * stride;
          const T weight = located.weight[corner][lane];
          for (int k = 0; k < NV; ++k) {
            sum[corner % kSets][k] += weight * Block<NV, PARTIAL && !PADDED>::load(row, k, last);
          }
        }
      }
    });
    for (int k = 0; k < NV; ++k) {
      V total = sum[0][k] + sum[1][k];
      if constexpr (kSets == 4) total += sum[2][k] + sum[3][k];
      Block<NV, PARTIAL>::store(output, k, total, last);
    }
  }

  // One group of at most kGroup points: dot products of the rows with `grad`, and weight * grad added to their gradients.
  template <int NV, bool PARTIAL, bool VALUE, bool DOTS, bool FULL>  // PARTIAL: of the rows
  static MSDETR_INLINE void scatter_group(Located<T>& located, int64_t lane, int64_t count, const T* value,
                                          T* grad_value, int64_t stride, const Last& last, const V (&grad)[NV],
                                          bool add) {
    V dots[kDots];
    for (int p = 0; p < kGroup; ++p) {
      for (int corner = 0; corner < 4; ++corner) {
        V dot = {};
        if (FULL || p < count) {
          const int64_t offset = located.row[corner][lane + p] * stride;
          if constexpr (DOTS) {
            for (int k = 0; k < NV; ++k) dot += grad[k] * Block<NV, PARTIAL>::load(value + offset, k, last);
          }
          if constexpr (VALUE) {
            const T weight = located.weight[corner][lane + p];
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
        T* dot = located.dot[corner] + lane;
        for (int p = 0; p < (FULL ? kGroup : count); ++p) {
          dot[p] = add ? dot[p] + sums[corner * kGroup + p] : sums[corner * kGroup + p];
        }
      }
    }
  }

  template <int NV, bool PARTIAL, bool PADDED, bool VALUE, bool DOTS>
  static void scatter(const Points<T>& points, int64_t first, int64_t count, const T* value, T* grad_value,
                      int64_t stride, const Last& last, const T* grad_output, bool add) {
    V grad[NV];
    for (int k = 0; k < NV; ++k) grad[k] = Block<NV, PARTIAL>::load(grad_output, k, last);
    if (PARTIAL && !kMasks) {
      for (int lane = 0; lane < last.skip; ++lane) grad[NV - 1][lane] = T(0);
    }
    points.for_registers(first, count, [&](Located<T>& located, int64_t lane, int64_t lanes) {
      for (; lanes >= kGroup; lane += kGroup, lanes -= kGroup) {
        scatter_group<NV, PARTIAL && !PADDED, VALUE, DOTS, true>(
            located, lane, kGroup, value, grad_value, stride, last, grad, add);
      }
      if (lanes > 0) {
        scatter_group<NV, PARTIAL && !PADDED, VALUE, DOTS, false>(
            located, lane, lanes, value, grad_value, stride, last, grad, add);
      }
    });
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
  T* value_copy = nullptr;        // copied: the value of the task's heads, [heads, S, stride]
  T* grad_copy = nullptr;
  int64_t stride;
  void* memory = nullptr;

  Kernel(const MsdetrDeformAttn& p, bool copied, bool backward, int64_t heads)
      : problem(p), M(p.heads), D(p.channels), S(p.tokens), Q(p.queries), n(p.levels * p.points), stride(M * D) {
    constexpr int64_t kAlign = 64;
    const int64_t count = heads * n;
    const int64_t registers = (count + kPoints<T> - 1) / kPoints<T>;
    if (copied) stride = kMasks ? (D + W - 1) / W * W : D;
    const int64_t copy = copied ? (heads * S * stride * int64_t(sizeof(T)) + kAlign - 1) / kAlign * kAlign : 0;
    const int64_t copies = copy * (backward && p.grad_value ? 2 : 1);
    const int64_t bytes = copies + registers * int64_t(sizeof(Levels<T>) + sizeof(Located<T>));
    if (posix_memalign(&memory, kAlign, size_t(bytes))) memory = nullptr;
    if (!memory) return;
    char* at = static_cast<char*>(memory);
    const auto take = [&at](int64_t bytes) {
      char* taken = at;
      at += bytes;
      return taken;
    };
    if (copied) value_copy = reinterpret_cast<T*>(take(copy));
    if (copied && copies > copy) grad_copy = reinterpret_cast<T*>(take(copy));
    points.count = count;
    points.levels = reinterpret_cast<Levels<T>*>(take(registers * int64_t(sizeof(Levels<T>))));
    points.located = reinterpret_cast<Located<T>*>(at);
    memset(at, 0, size_t(registers) * sizeof(Located<T>));  // of lanes without a point as well: to compute with denormals is slow
    for (int64_t i = 0; i < registers * kPoints<T>; ++i) {
      int64_t level = i % n / p.points, start = 0;  // every head's points are alike; the padding goes on with them
      for (int64_t before = 0; before < level; ++before) start += p.shapes[2 * before] * p.shapes[2 * before + 1];
      Levels<T>& levels = points.levels[i / kPoints<T>];
      levels.height[i % kPoints<T>] = Integer<T>(p.shapes[2 * level]);
      levels.width[i % kPoints<T>] = Integer<T>(p.shapes[2 * level + 1]);
      levels.start[i % kPoints<T>] = Integer<T>(start);
    }
  }
  ~Kernel() { free(memory); }
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  // Element offsets of query q, head m of image b in the tensors of points and of outputs.
  int64_t point_offset(int64_t b, int64_t q, int64_t m) const { return ((b * Q + q) * M + m) * n; }
  int64_t output_offset(int64_t b, int64_t q, int64_t m) const { return ((b * Q + q) * M + m) * D; }

  // One token's channels between the call's tensors and a copy, whose row is padded with zeros.
  template <bool TO_COPY>
  MSDETR_INLINE void copy_row(const T* from, T* to) const {
    int64_t c = 0;
    for (; c + W <= D; c += W) Simd<T, W>::store(to + c, Simd<T, W>::load(from + c));
    if (c == D) return;
    if (!kMasks) c = D - W;  // moved back, as in Last
    const V rest = load_last<T, W>(from + c, int(D - c));
    if (TO_COPY) {
      Simd<T, W>::store(to + c, rest);
    } else {
      store_last<T, W>(to + c, rest, int(D - c));
    }
  }

  void copy_heads(const T* value, int64_t first_head, int64_t last_head) {
    T* to = value_copy;
    for (int64_t m = first_head; m < last_head; ++m) {
      for (int64_t s = 0; s < S; ++s, to += stride) {
        const T* from = value + (s * M + m) * D;
        if (s + kAhead < S) fetch_lines<false>(from + kAhead * M * D, D);
        copy_row<true>(from, to);
      }
    }
  }

  void copy_gradient_back(T* grad_value, int64_t first_head, int64_t last_head) const {
    const T* from = grad_copy;
    for (int64_t m = first_head; m < last_head; ++m) {
      for (int64_t s = 0; s < S; ++s, from += stride) {
        T* to = grad_value + (s * M + m) * D;
        if (s + kAhead < S) fetch_lines<true>(to + kAhead * M * D, D);
        copy_row<false>(from, to);
      }
    }
  }

  // What the pass over some of the heads will need of a later query. Their parts of one query lie apart from those of the
  // next, at a distance that the processor does not foresee, and waiting for them took a third of an encoder's time.
  MSDETR_INLINE void fetch(int64_t b, int64_t q, int64_t first_head, int64_t last_head, bool backward) const {
    if (q >= Q || last_head - first_head == M) return;
    const int64_t point = point_offset(b, q, first_head), points_here = (last_head - first_head) * n;
    const int64_t output = output_offset(b, q, first_head), outputs = (last_head - first_head) * D;
    fetch_lines<false>(at(problem.locations, 2 * point), 2 * points_here);
    fetch_lines<false>(at(problem.weights, point), points_here);
    if (!backward) {
      fetch_lines<true>(at(problem.output, output), outputs);
    } else {
      fetch_lines<false>(at(problem.grad_output, output), outputs);
      if (problem.grad_weights) {
        fetch_lines<true>(at(problem.grad_locations, 2 * point), 2 * points_here);
        fetch_lines<true>(at(problem.grad_weights, point), points_here);
      }
    }
  }
  template <bool WRITE>
  static MSDETR_INLINE void fetch_lines(const T* from, int64_t count) {
    constexpr int64_t kLine = 64 / int64_t(sizeof(T));
    for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(from + i, WRITE);
  }
  static MSDETR_INLINE const T* at(const void* tensor, int64_t offset) { return static_cast<const T*>(tensor) + offset; }

  template <bool PADDED>
  void forward_query(int64_t b, int64_t q, int64_t first_head, int64_t last_head, const T* value) {
    const T* locations = static_cast<const T*>(problem.locations) + 2 * point_offset(b, q, first_head);
    const T* attention = static_cast<const T*>(problem.weights) + point_offset(b, q, first_head);
    const int64_t rest = point_offset(problem.batch, 0, 0) - point_offset(b, q, first_head);
    locate(points, locations, attention, rest);
    for (int64_t m = first_head; m < last_head; ++m) {
      const T* head = value_copy ? value_copy + (m - first_head) * S * stride : value + m * D;
      T* output = static_cast<T*>(problem.output) + output_offset(b, q, m);
      for_blocks(D, [&](auto shape, int64_t c, const Last& last) {
        gather<shape.vectors, shape.partial, PADDED>(points, (m - first_head) * n, n, head + c, stride, last, output + c);
      });
    }
  }

  template <bool PADDED>
  void forward(int64_t b, int64_t first_head, int64_t last_head, int64_t first_query, int64_t last_query) {
    const T* value = static_cast<const T*>(problem.value) + b * S * M * D;
    if (value_copy) copy_heads(value, first_head, last_head);
    for (int64_t q = first_query; q < last_query; ++q) {
      fetch(b, q + kAhead, first_head, last_head, false);
      forward_query<PADDED>(b, q, first_head, last_head, value);
    }
  }

  template <bool PADDED, bool VALUE, bool DOTS>
  void backward_query(int64_t b, int64_t q, int64_t first_head, int64_t last_head, const T* value, T* grad_value) {
    const int64_t offset = point_offset(b, q, first_head);
    const T* locations = static_cast<const T*>(problem.locations) + 2 * offset;
    const T* attention = static_cast<const T*>(problem.weights) + offset;
    const int64_t rest = point_offset(problem.batch, 0, 0) - offset;
    locate(points, locations, attention, rest);
    for (int64_t m = first_head; m < last_head; ++m) {
      const T* head = value_copy ? value_copy + (m - first_head) * S * stride : value + m * D;
      T* grad_head = !VALUE ? nullptr : grad_copy ? grad_copy + (m - first_head) * S * stride : grad_value + m * D;
      const T* grad_output = static_cast<const T*>(problem.grad_output) + output_offset(b, q, m);
      for_blocks(D, [&](auto shape, int64_t c, const Last& last) {
        scatter<shape.vectors, shape.partial, PADDED, VALUE, DOTS>(
            points, (m - first_head) * n, n, head + c, VALUE ? grad_head + c : nullptr, stride, last, grad_output + c,
            c > 0);
      });
    }
    if constexpr (DOTS) {
      point_gradients(points, locations, attention, rest, static_cast<T*>(problem.grad_locations) + 2 * offset,
                      static_cast<T*>(problem.grad_weights) + offset);
    }
  }

  template <bool PADDED, bool VALUE, bool DOTS>
  void backward(int64_t b, int64_t first_head, int64_t last_head) {
    const T* value = static_cast<const T*>(problem.value) + b * S * M * D;
    T* grad_value = VALUE ? static_cast<T*>(problem.grad_value) + b * S * M * D : nullptr;
    if (value_copy) copy_heads(value, first_head, last_head);
    if (VALUE && grad_copy) {
      memset(grad_copy, 0, size_t((last_head - first_head) * S * stride) * sizeof(T));
    } else if (VALUE) {
      for (int64_t s = 0; s < S; ++s) {
        memset(grad_value + (s * M + first_head) * D, 0, size_t((last_head - first_head) * D) * sizeof(T));
      }
    }
    for (int64_t q = 0; q < Q; ++q) {
      fetch(b, q + kAhead, first_head, last_head, true);
      backward_query<PADDED, VALUE, DOTS>(b, q, first_head, last_head, value, grad_value);
    }
    if (VALUE && grad_copy) copy_gradient_back(grad_value, first_head, last_head);
  }

  static bool run(const MsdetrDeformAttn& problem, bool backward, const Plan& plan, int64_t task) {
    const int64_t b = task / plan.splits, split = task % plan.splits;
    const auto cut = [&](int64_t total, int64_t i) { return total * i / plan.splits; };
    const int64_t first_head = plan.split_heads ? cut(problem.heads, split) : 0;
    const int64_t last_head = plan.split_heads ? cut(problem.heads, split + 1) : problem.heads;
    Kernel kernel(problem, plan.copied, backward, last_head - first_head);
    if (!kernel.memory) return false;
    const int64_t first_query = plan.split_heads ? 0 : cut(problem.queries, split);
    const int64_t last_query = plan.split_heads ? problem.queries : cut(problem.queries, split + 1);
    if (kMasks && plan.copied) {
      kernel.template run_padded<kMasks>(backward, b, first_head, last_head, first_query, last_query);
    } else {
      kernel.template run_padded<false>(backward, b, first_head, last_head, first_query, last_query);
    }
    return true;
  }

  template <bool PADDED>
  void run_padded(bool is_backward, int64_t b, int64_t first_head, int64_t last_head, int64_t first_query,
                  int64_t last_query) {
    if (!is_backward) {
      forward<PADDED>(b, first_head, last_head, first_query, last_query);
    } else if (problem.grad_value && problem.grad_weights) {
      this->template backward<PADDED, true, true>(b, first_head, last_head);
    } else if (problem.grad_value) {
      this->template backward<PADDED, true, false>(b, first_head, last_head);
    } else if (problem.grad_weights) {
      this->template backward<PADDED, false, true>(b, first_head, last_head);
    }
  }
};

template <typename T>
bool run_typed(const MsdetrDeformAttn& problem, bool backward, const Plan& plan, int64_t task) {
  constexpr int kWidest = kRegisterBytes / int(sizeof(T));
  if constexpr (kMasks) {
    return Kernel<T, kWidest>::run(problem, backward, plan, task);
  } else {
    if (problem.channels >= kWidest) return Kernel<T, kWidest>::run(problem, backward, plan, task);
    return Kernel<T, 1>::run(problem, backward, plan, task);
  }
}

}  // namespace

bool run(const MsdetrDeformAttn& problem, int dtype, bool backward, const Plan& plan, int64_t task) {
  return dtype == MSDETR_DOUBLE ? run_typed<double>(problem, backward, plan, task)
                                : run_typed<float>(problem, backward, plan, task);
}

}  // namespace msdetr::MSDETR_ISA
