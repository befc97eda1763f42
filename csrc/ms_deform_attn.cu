// Forward or backward of multi-scale deformable attention on the GPU, compiled at run time for one case. Defined by
// the caller before this file:
//   VALUE, GEOMETRY      element types of value and output, and of locations and weights: float, double, Half, Bfloat
//   REAL                 double for double, else float: what everything is computed and accumulated in
//   INDEX                int, or long long where a tensor has 2^31 elements or more
//   HEADS, CHANNELS, LEVELS, POINTS, WARPS (per block)
//   PACK                 channels of one lane, which it loads at once
//   LEVEL_PARAMETERS     "int h0, int w0, int h1, …": the level sizes as kernel parameters, LEVEL_SIZES "h0, w0, h1, …"
//   NEED_VALUE, NEED_POINTS   0 or 1: which gradients the backward writes; with neither this is the forward
//   TILE_WIDTH           0: a block takes consecutive queries; else query i is token i, as in an encoder, and a block
//                        takes a tile of a level, so wide
//   POOLED               0 or 1: whether a block sums up the gradients of its pixels before it adds them to memory
//
// A team of lanes, PACK channels each, serves one query of one head; a warp holds several teams and a block
// neighbouring queries of one head, which read nearly the same pixels. The lanes of a warp first locate the points of
// its queries together, once, into shared memory; then every team walks through its points.

#include "sampling.h"

namespace {

using msdetr::Axis;

// ------------------------------------------------------------------------------------------------------------ numbers

// Sixteen-bit types as bits, so that no header is needed.
struct Half {
  unsigned short bits;
};
struct Bfloat {
  unsigned short bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(Half x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
__device__ __forceinline__ float widen(Bfloat x) { return __uint_as_float(unsigned(x.bits) << 16); }

__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(double x, double& to) { to = x; }
__device__ __forceinline__ void narrow(float x, Half& to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
__device__ __forceinline__ void narrow(float x, Bfloat& to) {  // round to nearest, ties to even; NaN stays NaN
  const unsigned bits = __float_as_uint(x);
  to.bits = x != x ? 0x7fff : (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

using Value = VALUE;
using Geometry = GEOMETRY;
using Real = REAL;
using Index = INDEX;

constexpr int power_of_two_above(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}
constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr int larger(int a, int b) { return a > b ? a : b; }

constexpr int kPack = PACK;
constexpr int kPacks = CHANNELS / kPack;
constexpr int kTeam = smaller(32, power_of_two_above(kPacks));  // lanes
constexpr int kRounds = (kPacks + kTeam - 1) / kTeam;           // packs per lane
constexpr int kTeams = 32 / kTeam;                              // per warp
constexpr int kPoints = LEVELS * POINTS;                        // per query
constexpr int kQueries = WARPS * kTeams;                        // per block
constexpr int kSlots = 1024;                                    // pixels of a block's pool
constexpr int kPoolBytes = POOLED ? kSlots * 10 + 4 + kQueries * (CHANNELS + 4) * int(sizeof(Real)) : 0;  // without `older`
constexpr int kStagedBytes = ((POOLED ? 47 : 40) * 1024 - kPoolBytes) / kQueries;  // of shared memory, per team
constexpr int kBlocks = POOLED ? sizeof(Index) == 4 ? 5 : 4 : 1;  // of a multiprocessor, at least: what shared memory allows
constexpr unsigned kAllLanes = 0xffffffffu;

struct alignas(sizeof(Value) * kPack) Pack {
  Value element[kPack];
};

// ----------------------------------------------------------------------------------------------------- staged points

// One sampling point: element offset and weight (attention times bilinear) of its four pixels, y low x low, y low x
// high, y high x low, y high x high.
struct alignas(16) Staged {
  Index offset[4];
  Real weight[4];
};

// Dot products of the output's gradient with the four pixels of a point.
struct alignas(16) Dots {
  Real corner[4];
};

constexpr int kPointBytes = sizeof(Staged) + sizeof(Dots) + (POOLED ? 4 * sizeof(short) : 0);
constexpr int kChunk = larger(1, smaller(kPoints, (kStagedBytes - 32) / kPointBytes));

// What a team keeps in shared memory: an odd number of 16-byte units, so that the teams of a warp, which read and write
// the same element of their rows at the same time, do so on different banks.
struct alignas(16) Unit {
  char bytes[16];
};
template <typename T, bool even = kChunk * sizeof(T) / 16 % 2 == 0>
struct Row {
  T point[kChunk];
};
template <typename T>
struct Row<T, true> {
  T point[kChunk];
  Unit unused;
};
static_assert(sizeof(Row<Staged>) / 16 % 2 == 1 && sizeof(Row<Dots>) / 16 % 2 == 1);

struct Level {
  int height, width, start;
};

__device__ __forceinline__ Level level_of(int point, const int (&sizes)[2 * LEVELS]) {
  Level level = {sizes[0], sizes[1], 0};
  int start = 0;
#pragma unroll
  for (int l = 1; l < LEVELS; ++l) {
    start += sizes[2 * l - 2] * sizes[2 * l - 1];
    if (point >= l * POINTS) level = {sizes[2 * l], sizes[2 * l + 1], start};
  }
  return level;
}

struct Point {
  Axis<Real, int> x, y;
  Level level;
  Real attention;
};

__device__ __forceinline__ Point read_point(const Geometry* locations, const Geometry* weights, Index index, int point,
                                            const int (&sizes)[2 * LEVELS]) {
  struct alignas(2 * sizeof(Geometry)) Pair {
    Geometry x, y;
  };
  const Pair location = reinterpret_cast<const Pair*>(locations)[index];
  Point result;
  result.level = level_of(point, sizes);
  result.x = msdetr::sample_axis<Real>(Real(widen(location.x)), result.level.width);
  result.y = msdetr::sample_axis<Real>(Real(widen(location.y)), result.level.height);
  result.attention = widen(weights[index]);
  return result;
}

// What a warp works on: kTeams queries of head `head` of image `image`.
struct Place {
  int lane, warp, team, image, head, queries;
  int start;                     // the block's first query, or that of the level its tile is in
  int height, width, top, left;  // of that level, and where in it the tile begins

  __device__ Place(int queries, const int (&sizes)[2 * LEVELS]) : queries(queries) {
    lane = threadIdx.x % 32;
    warp = threadIdx.x / 32;
    team = lane / kTeam;
    unsigned rest;
#if TILE_WIDTH
    unsigned tiles = 0;
#pragma unroll
    for (int l = 0; l < LEVELS; ++l) tiles += rows(sizes[2 * l]) * columns(sizes[2 * l + 1]);
    rest = blockIdx.x / tiles;
    unsigned tile = blockIdx.x % tiles;
    start = 0;
    height = sizes[0];
    width = sizes[1];
#pragma unroll
    for (int l = 1; l < LEVELS; ++l) {
      const unsigned before = rows(height) * columns(width);
      if (tile < before) break;
      tile -= before;
      start += height * width;
      height = sizes[2 * l];
      width = sizes[2 * l + 1];
    }
    top = tile / columns(width) * kTileHeight;
    left = tile % columns(width) * TILE_WIDTH;
#else
    const unsigned tiles = (unsigned(queries) + kQueries - 1) / kQueries;
    rest = blockIdx.x / tiles;
    start = blockIdx.x % tiles * kQueries;
#endif
    head = rest % HEADS;
    image = rest / HEADS;
  }

  // The query of a team of this warp, or -1 where there is none.
  __device__ int query(int team) const {
    const int i = warp * kTeams + team;
#if TILE_WIDTH
    const int row = top + i / TILE_WIDTH, column = left + i % TILE_WIDTH;
    return row < height && column < width ? start + row * width + column : -1;
#else
    return start + i < queries ? start + i : -1;
#endif
  }
  // Index of a query's data of this head, in units of one query and head.
  __device__ Index at(int query) const { return (Index(image) * queries + query) * HEADS + head; }

#if TILE_WIDTH
  static constexpr int kTileHeight = kQueries / TILE_WIDTH;
  static_assert(kTileHeight * TILE_WIDTH == kQueries);
  __device__ static unsigned rows(int height) { return (unsigned(height) + kTileHeight - 1) / kTileHeight; }
  __device__ static unsigned columns(int width) { return (unsigned(width) + TILE_WIDTH - 1) / TILE_WIDTH; }
#endif
};

constexpr int kRow = HEADS * CHANNELS;  // elements of a pixel

// The lanes of a warp locate points [begin, begin + kChunk) of its queries. Points past the end weigh zero, as do those of
// a team without a query. then(team, point, staged point) sees each of them.
template <typename Then>
__device__ __forceinline__ void stage(Row<Staged>* staged, const Place& place, int begin, const Geometry* locations,
                                      const Geometry* weights, const int (&sizes)[2 * LEVELS], Then then) {
  for (int i = place.lane; i < kTeams * kChunk; i += 32) {
    const int query = place.query(i / kChunk), point = begin + i % kChunk;
    Staged s = {};
    if (query >= 0 && point < kPoints) {
      const Point p = read_point(locations, weights, place.at(query) * kPoints + point, point, sizes);
      const Index low = p.level.start + Index(p.y.low) * p.level.width;
      const Index high = p.level.start + Index(p.y.high) * p.level.width;
      const Real weight_low = p.attention * p.y.weight_low, weight_high = p.attention * p.y.weight_high;
      s = {{(low + p.x.low) * kRow, (low + p.x.high) * kRow, (high + p.x.low) * kRow, (high + p.x.high) * kRow},
           {weight_low * p.x.weight_low, weight_low * p.x.weight_high, weight_high * p.x.weight_low,
            weight_high * p.x.weight_high}};
    }
    staged[i / kChunk].point[i % kChunk] = s;
    then(i / kChunk, i % kChunk, s);
  }
}

__device__ __forceinline__ bool has_channels(int round, int member) {
  return kPacks % kTeam == 0 || round * kTeam + member < kPacks;
}

}  // namespace

// ------------------------------------------------------------------------------------------------------------ forward

#if !NEED_VALUE && !NEED_POINTS

extern "C" __global__ void __launch_bounds__(WARPS * 32)
    forward(const Value* __restrict__ value, const Geometry* __restrict__ locations,
            const Geometry* __restrict__ weights, Value* __restrict__ output, int tokens, int queries,
            LEVEL_PARAMETERS) {
  __shared__ Row<Staged> shared[WARPS][kTeams];
  const int sizes[2 * LEVELS] = {LEVEL_SIZES};
  const Place place(queries, sizes);
  const int member = place.lane % kTeam, query = place.query(place.team);
  const Value* head = value + (Index(place.image) * tokens * HEADS + place.head) * CHANNELS;
  Real sum[kRounds][kPack] = {};
  for (int begin = 0; begin < kPoints; begin += kChunk) {
    stage(shared[place.warp], place, begin, locations, weights, sizes, [](int, int, const Staged&) {});
    __syncwarp();
#pragma unroll(kRounds == 1 ? smaller(4, 16 / kPack) : 1)
    for (int point = 0; point < kChunk; ++point) {
      const Staged s = shared[place.warp][place.team].point[point];
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
        for (int round = 0; round < kRounds; ++round) {
          if (!has_channels(round, member)) continue;
          const Pack pack =
              *reinterpret_cast<const Pack*>(head + s.offset[corner] + (round * kTeam + member) * kPack);
#pragma unroll
          for (int i = 0; i < kPack; ++i) sum[round][i] += s.weight[corner] * Real(widen(pack.element[i]));
        }
      }
    }
    __syncwarp();
  }
  if (query < 0) return;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    if (!has_channels(round, member)) continue;
    Pack pack;
#pragma unroll
    for (int i = 0; i < kPack; ++i) narrow(sum[round][i], pack.element[i]);
    *reinterpret_cast<Pack*>(output + place.at(query) * CHANNELS + (round * kTeam + member) * kPack) = pack;
  }
}

#else

// ----------------------------------------------------------------------------------------------------------- backward

namespace {

// target[i] += weight * grad[i] for the channels of one lane, in as few transactions as the hardware has.
__device__ __forceinline__ void add_to(float* target, float weight, const float (&grad)[kPack]) {
#if __CUDA_ARCH__ >= 900
  if constexpr (kPack % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kPack; i += 4) {
      asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(target + i), "f"(weight * grad[i]),
                   "f"(weight * grad[i + 1]), "f"(weight * grad[i + 2]), "f"(weight * grad[i + 3])
                   : "memory");
    }
    return;
  } else if constexpr (kPack == 2) {
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(target), "f"(weight * grad[0]), "f"(weight * grad[1])
                 : "memory");
    return;
  }
#endif
#pragma unroll
  for (int i = 0; i < kPack; ++i) atomicAdd(target + i, weight * grad[i]);
}

__device__ __forceinline__ void add_to(double* target, double weight, const double (&grad)[kPack]) {
#pragma unroll
  for (int i = 0; i < kPack; ++i) atomicAdd(target + i, weight * grad[i]);
}

// Sums four numbers over the lanes of a team: each exchange halves what a lane still carries, so that four sums cost
// little more than one. The sums end up in `sums` of the team, written by its first lanes.
__device__ __forceinline__ void sum_over_team(const Real (&part)[4], int member, Real* sums) {
  if constexpr (kTeam == 1) {
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) sums[corner] = part[corner];
  } else {
    const bool odd = member & 1;
    Real first = odd ? part[1] : part[0], second = odd ? part[3] : part[2];
    first += __shfl_xor_sync(kAllLanes, odd ? part[0] : part[1], 1);
    second += __shfl_xor_sync(kAllLanes, odd ? part[2] : part[3], 1);
    if constexpr (kTeam == 2) {
      sums[member] = first;
      sums[member + 2] = second;
    } else {
      const bool upper = member & 2;
      Real sum = upper ? second : first;
      sum += __shfl_xor_sync(kAllLanes, upper ? first : second, 2);
#pragma unroll
      for (int step = 4; step < kTeam; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
      if (member < 4) sums[member] = sum;
    }
  }
}

#if POOLED

// Neighbouring queries add to the same pixels again and again, and adding is what memory does slowest. So a block first
// collects who adds to which pixel, in a hash table of lists; then each pixel is summed up by one team and added once.
// An entry is a corner of a staged point of a query; where the table has no room for its pixel, it is added at once.
static_assert(kQueries * kChunk * 4 <= 32767);  // entries, numbered by a short
struct Pool {
  int pixel[kSlots];   // the token that has the slot, or -1
  int newest[kSlots];  // its newest entry, or -1
  unsigned short used[kSlots];  // slots that some token has
  int count;                    // of them
  short older[kQueries * kChunk * 4];  // the entry before an entry of the same pixel, or -1
  alignas(16) Real grad[kQueries][CHANNELS + 4];  // of the output

  __device__ __forceinline__ void clear() {
    for (int i = threadIdx.x; i < kSlots; i += WARPS * 32) pixel[i] = newest[i] = -1;
    if (threadIdx.x == 0) count = 0;
  }

  __device__ __forceinline__ bool add(int token, int entry) {
    unsigned slot = unsigned(token) * 0x9e3779b1u / (0xffffffffu / kSlots + 1);
    for (int probe = 0; probe < 16; ++probe, slot = (slot + 1) % kSlots) {
      const int before = atomicCAS(&pixel[slot], -1, token);
      if (before == -1) used[atomicAdd(&count, 1)] = (unsigned short)slot;
      if (before != -1 && before != token) continue;
      older[entry] = short(atomicExch(&newest[slot], entry));
      return true;
    }
    return false;
  }
};

#endif

}  // namespace

// grad_value is of type Real and zero at the start; it gathers atomically, so its last bits depend on the order.
extern "C" __global__ void __launch_bounds__(WARPS * 32, kBlocks)
    backward(const Value* __restrict__ grad_output, const Value* __restrict__ value,
             const Geometry* __restrict__ locations, const Geometry* __restrict__ weights,
             Real* __restrict__ grad_value, Geometry* __restrict__ grad_locations, Geometry* __restrict__ grad_weights,
             int tokens, int queries, LEVEL_PARAMETERS) {
  __shared__ Row<Staged> shared[WARPS][kTeams];
  __shared__ Row<Dots> dots[WARPS][kTeams];
  const int sizes[2 * LEVELS] = {LEVEL_SIZES};
  const Place place(queries, sizes);
  const int member = place.lane % kTeam, query = place.query(place.team);
  const Index first_element = (Index(place.image) * tokens * HEADS + place.head) * CHANNELS;
  Real grad[kRounds][kPack] = {};
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    if (query < 0 || !has_channels(round, member)) continue;
    const Pack pack = *reinterpret_cast<const Pack*>(
        grad_output + place.at(query) * CHANNELS + (round * kTeam + member) * kPack);
#pragma unroll
    for (int i = 0; i < kPack; ++i) grad[round][i] = widen(pack.element[i]);
  }
#if POOLED
  __shared__ Pool pool;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    if (!has_channels(round, member)) continue;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      pool.grad[place.warp * kTeams + place.team][(round * kTeam + member) * kPack + i] = grad[round][i];
    }
  }
  const auto collect = [&](int team, int point, const Staged& s) {
    const int q = place.warp * kTeams + team;
#pragma unroll 1  // registers
    for (int corner = 0; corner < 4; ++corner) {
      if (s.weight[corner] == Real(0) || pool.add(int(s.offset[corner] / kRow), (q * kChunk + point) * 4 + corner)) {
        continue;
      }
      for (int channel = 0; channel < CHANNELS; channel += kPack) {
        Real part[kPack];
        for (int i = 0; i < kPack; ++i) part[i] = pool.grad[q][channel + i];
        add_to(grad_value + first_element + s.offset[corner] + channel, s.weight[corner], part);
      }
    }
  };
#else
  const auto collect = [](int, int, const Staged&) {};
#endif
  for (int begin = 0; begin < kPoints; begin += kChunk) {
#if POOLED
    __syncthreads();
    pool.clear();
    __syncthreads();
#endif
    stage(shared[place.warp], place, begin, locations, weights, sizes, collect);
    __syncwarp();
#if NEED_POINTS || !POOLED
#pragma unroll(kRounds == 1 ? 2 : 1)
    for (int point = 0; point < kChunk; ++point) {
      const Staged s = shared[place.warp][place.team].point[point];
      Real part[4] = {};
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
        for (int round = 0; round < kRounds; ++round) {
          if (!has_channels(round, member)) continue;
          const Index element = first_element + s.offset[corner] + (round * kTeam + member) * kPack;
          if (NEED_POINTS) {
            const Pack pack = *reinterpret_cast<const Pack*>(value + element);
#pragma unroll
            for (int i = 0; i < kPack; ++i) part[corner] += grad[round][i] * Real(widen(pack.element[i]));
          }
          if (NEED_VALUE && !POOLED && s.weight[corner] != Real(0)) {
            add_to(grad_value + element, s.weight[corner], grad[round]);
          }
        }
      }
      if (NEED_POINTS) sum_over_team(part, member, dots[place.warp][place.team].point[point].corner);
    }
    __syncwarp();
#endif
    if (NEED_POINTS) {
      for (int i = place.lane; i < kTeams * kChunk; i += 32) {
        const int q = place.query(i / kChunk), point = begin + i % kChunk;
        if (q < 0 || point >= kPoints) continue;
        const Index index = place.at(q) * kPoints + point;
        const Point p = read_point(locations, weights, index, point, sizes);
        const Real* dot = dots[place.warp][i / kChunk].point[i % kChunk].corner;
        const auto gradient = msdetr::point_gradient(
            p.x, p.y, Real(p.level.width), Real(p.level.height), p.attention, dot[0], dot[1], dot[2], dot[3]);
        narrow(gradient.attention, grad_weights[index]);
        narrow(gradient.x, grad_locations[2 * index]);
        narrow(gradient.y, grad_locations[2 * index + 1]);
      }
      __syncwarp();
    }
#if POOLED
    __syncthreads();
    for (int i = place.warp * kTeams + place.team; i < pool.count; i += kQueries) {
      const int slot = pool.used[i];
      Real sum[kRounds][kPack] = {};
      for (int entry = pool.newest[slot]; entry >= 0; entry = pool.older[entry]) {
        const int q = entry / (4 * kChunk), point = entry / 4 % kChunk;
        const Real weight = shared[q / kTeams][q % kTeams].point[point].weight[entry % 4];
#pragma unroll
        for (int round = 0; round < kRounds; ++round) {
          if (!has_channels(round, member)) continue;
#pragma unroll
          for (int i = 0; i < kPack; ++i) sum[round][i] += weight * pool.grad[q][(round * kTeam + member) * kPack + i];
        }
      }
      Real* pixel = grad_value + first_element + Index(pool.pixel[slot]) * kRow;
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        if (has_channels(round, member)) add_to(pixel + (round * kTeam + member) * kPack, Real(1), sum[round]);
      }
    }
#endif
  }
}

#endif
