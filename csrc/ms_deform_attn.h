// The C interface of the CPU library: raw pointers and sizes, no framework.
#pragma once

#include <stdint.h>

#define MSDETR_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// All tensors are contiguous, of one type (float or double), in the layouts of msdetr.ops.ms_deform_attn.
typedef struct {
  const void* value;        // [batch, tokens, heads, channels]
  const void* locations;    // [batch, queries, heads, levels, points, 2]
  const void* weights;      // [batch, queries, heads, levels, points]
  const int64_t* shapes;    // [levels, 2]: height, width
  int64_t batch, tokens, heads, channels, queries, levels, points;
  void* output;             // forward: [batch, queries, heads, channels]
  const void* grad_output;  // backward: as output
  void* grad_value;         // backward, each may be null where it is not needed; overwritten
  void* grad_locations;     // null exactly where grad_weights is
  void* grad_weights;
} MsdetrDeformAttn;

enum { MSDETR_INTERFACE = 1 };  // raised with every change of this file
enum { MSDETR_FLOAT = 0, MSDETR_DOUBLE = 1 };
enum { MSDETR_OK = 0, MSDETR_NO_MEMORY = 1, MSDETR_UNSUPPORTED = 2 };
enum { MSDETR_BASELINE = 0, MSDETR_AVX2 = 1, MSDETR_AVX512 = 2 };  // instruction sets

MSDETR_EXPORT int msdetr_interface_version(void);

// The result is the same, bit for bit, whatever the number of threads.
MSDETR_EXPORT int msdetr_deform_attn_forward(const MsdetrDeformAttn* problem, int dtype, int threads);
MSDETR_EXPORT int msdetr_deform_attn_backward(const MsdetrDeformAttn* problem, int dtype, int threads);

// The best instruction set of this processor that the library was built with; and the choice of a lesser one.
// Setting returns the one that is in force from now on.
MSDETR_EXPORT int msdetr_best_instruction_set(void);
MSDETR_EXPORT int msdetr_set_instruction_set(int isa);

// Runs work(argument) on `threads` threads at once. With OpenMP's GOMP_parallel handed in, the threads are those the
// host program already has; with null, or without a call, threads are started for each call.
typedef void (*MsdetrParallel)(void (*work)(void*), void* argument, unsigned threads, unsigned flags);
MSDETR_EXPORT void msdetr_set_parallel(MsdetrParallel parallel);

#ifdef __cplusplus
}
#endif
