// How a call is cut into tasks that write to different places. Shared by the C interface and the kernels.
#pragma once

#include <stdint.h>

namespace msdetr {

struct Plan {
  bool copied = false;      // the task's heads of value are copied, [heads, tokens, channels padded to whole vectors]
  bool split_heads = false; // an image's tasks are ranges of its heads, else of its queries
  int64_t splits = 1;       // tasks per image
  int64_t tasks = 0;
};

}  // namespace msdetr
