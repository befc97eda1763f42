// How a call is cut into tasks that write to different places. Shared by the C interface and the kernels.
#pragma once

#include <stdint.h>

namespace msdetr {

struct Plan {
  bool by_head = false;     // head by head over a copy of its value, [tokens, stride]; else query by query, in place
  int64_t splits = 1;       // tasks per image: of its queries (forward) or of its heads (backward and by_head)
  int64_t tasks = 0;
};

}  // namespace msdetr
