// The C interface of the points' arithmetic: from what a query's linear layer predicts to where it looks and how much.
#pragma once

#include "ms_deform_attn.h"

#ifdef __cplusplus
extern "C" {
#endif

// All tensors are contiguous floats. A row is a query of an image.
//   locations = base + offsets * scale, where base and scale are those of the row, level and axis
//   weights   = softmax of the logits over levels and points, for each head
typedef struct {
  const float* projected;  // [rows, 3 * heads * levels * points]: offsets [heads, levels, points, 2], then logits
  const float* base;       // [rows, levels, 2]
  const float* scale;      // [scales, levels, 2]
  int64_t rows, heads, levels, points;
  int64_t scales;          // rows, or 1: the same for all
  float* locations;        // [rows, heads, levels, points, 2]
  float* weights;          // [rows, heads, levels, points]; read by the backward
  const float* grad_locations;
  const float* grad_weights;
  float* grad_projected;   // backward: as projected
} MsdetrPoints;

MSDETR_EXPORT int msdetr_points_forward(const MsdetrPoints* problem, int threads);
MSDETR_EXPORT int msdetr_points_backward(const MsdetrPoints* problem, int threads);

#ifdef __cplusplus
}
#endif
