// Runs a CUDA kernel on the CPU, one thread per lane, to check its arithmetic where there is no GPU. Slow and plain:
// blocks one after another; __syncthreads is a barrier of a block's threads, __syncwarp and shuffles are ones of a warp's 32,
// so a kernel that does not reach them with all lanes hangs instead of passing. Nothing else orders the threads, so ThreadSanitizer sees a barrier
// that is missing around shared memory, as AddressSanitizer sees a step outside of a tensor.
#pragma once

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mutex>
#include <thread>
#include <vector>

#define __CUDACC__
#define __device__
#define __forceinline__ inline
#define __global__
#define __shared__ static
#define __launch_bounds__(...)

struct Index1 {
  unsigned x;
};
static thread_local Index1 threadIdx;
static Index1 blockIdx;

struct Warp {
  pthread_barrier_t barrier;
  double shuffled[32];
};
static Warp* warps;

static pthread_barrier_t block_barrier;
static inline void __syncthreads() { pthread_barrier_wait(&block_barrier); }

static void wait_for_warp() { pthread_barrier_wait(&warps[threadIdx.x / 32].barrier); }
static inline void __syncwarp() { wait_for_warp(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  double* lanes = warps[threadIdx.x / 32].shuffled;
  lanes[threadIdx.x % 32] = double(value);
  wait_for_warp();
  const T result = T(lanes[(threadIdx.x % 32) ^ mask]);
  wait_for_warp();
  return result;
}

static std::mutex memory;

template <typename T>
T atomicAdd(T* target, T value) {
  const std::lock_guard<std::mutex> lock(memory);
  const T before = *target;
  *target += value;
  return before;
}
static inline int atomicExch(int* target, int value) {
  const std::lock_guard<std::mutex> lock(memory);
  const int before = *target;
  *target = value;
  return before;
}
static inline int atomicCAS(int* target, int expected, int value) {
  const std::lock_guard<std::mutex> lock(memory);
  const int before = *target;
  if (before == expected) *target = value;
  return before;
}

// red.global.add.vN.f32: its address must be a multiple of all its bytes.
template <int N>
void vector_add(float* target, const float (&values)[N]) {
  if (uintptr_t(target) % (N * sizeof(float)) != 0) {
    fprintf(stderr, "a vector addition at a misaligned address\n");
    abort();
  }
  for (int i = 0; i < N; ++i) atomicAdd(target + i, values[i]);
}

static inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
static inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
static inline float half_to_float(unsigned short bits) {
  _Float16 x;
  memcpy(&x, &bits, sizeof x);
  return float(x);
}
static inline unsigned short float_to_half(float x) {
  const _Float16 half = _Float16(x);
  unsigned short bits;
  memcpy(&bits, &half, sizeof bits);
  return bits;
}

template <typename Kernel>
void run_grid(int blocks, int warps_per_block, Kernel kernel) {
  std::vector<Warp> all(warps_per_block);
  warps = all.data();
  for (Warp& warp : all) pthread_barrier_init(&warp.barrier, nullptr, 32);
  pthread_barrier_init(&block_barrier, nullptr, 32 * warps_per_block);
  for (int block = 0; block < blocks; ++block) {
    blockIdx.x = unsigned(block);
    std::vector<std::thread> threads;
    for (int i = 0; i < 32 * warps_per_block; ++i) {
      threads.emplace_back([i, &kernel] {
        threadIdx.x = unsigned(i);
        kernel();
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  for (Warp& warp : all) pthread_barrier_destroy(&warp.barrier);
  pthread_barrier_destroy(&block_barrier);
}

// ------------------------------------------------------------------------------------------------ tensors through files

// A tensor in an allocation of exactly its size, read from a file: eight bytes that count its own, then those.
struct Tensor {
  int64_t bytes = 0;
  void* data = nullptr;

  explicit Tensor(FILE* file) {
    if (fread(&bytes, sizeof bytes, 1, file) != 1) abort();
    data = malloc(size_t(bytes));
    if (fread(data, 1, size_t(bytes), file) != size_t(bytes)) abort();
  }
  ~Tensor() { free(data); }
  Tensor(const Tensor&) = delete;
  void write(FILE* file) const {
    if (fwrite(data, 1, size_t(bytes), file) != size_t(bytes)) abort();
  }
  template <typename T>
  operator T*() const {
    return static_cast<T*>(data);
  }
};
