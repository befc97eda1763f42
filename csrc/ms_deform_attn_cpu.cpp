// C interface of the CPU library: picks the instruction set and shares tasks among threads.

#include "ms_deform_attn.h"

#include <atomic>
#include <new>
#include <thread>
#include <vector>

#include "ms_deform_attn_plan.h"
#include "ms_deform_points.h"

#define MSDETR_DECLARE(isa)                                                                           \
  namespace msdetr::isa {                                                                             \
  bool run(const MsdetrDeformAttn& problem, int dtype, bool backward, const Plan& plan, int64_t task); \
  void points(const MsdetrPoints& problem, bool backward, int64_t first, int64_t last, float* space);  \
  }
MSDETR_DECLARE(baseline)
#ifdef MSDETR_X86
MSDETR_DECLARE(avx2)
MSDETR_DECLARE(avx512)
#endif

namespace msdetr {
namespace {

int best_instruction_set() {
#ifdef MSDETR_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    return wide ? MSDETR_AVX512 : MSDETR_AVX2;
  }
#endif
  return MSDETR_BASELINE;
}

std::atomic<int> instruction_set{-1};
std::atomic<MsdetrParallel> host_parallel{nullptr};

int current_instruction_set() {
  const int isa = instruction_set.load(std::memory_order_relaxed);
  return isa < 0 ? best_instruction_set() : isa;
}

// Runs loop(argument) on so many threads at once, this one among them.
void run_on_threads(int threads, void (*loop)(void*), void* argument) {
  if (threads <= 1) {
    loop(argument);
  } else if (const MsdetrParallel parallel = host_parallel) {
    parallel(loop, argument, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    try {
      for (int i = 1; i < threads; ++i) others.emplace_back(loop, argument);
    } catch (const std::exception&) {  // fewer threads than asked for: the others do all the work
    }
    loop(argument);
    for (std::thread& other : others) other.join();
  }
}

struct Work {
  const MsdetrDeformAttn& problem;
  int dtype;
  bool backward;
  int isa;
  Plan plan;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};

  bool run(int64_t task) const {
    switch (isa) {
#ifdef MSDETR_X86
      case MSDETR_AVX512: return avx512::run(problem, dtype, backward, plan, task);
      case MSDETR_AVX2: return avx2::run(problem, dtype, backward, plan, task);
#endif
      default: return baseline::run(problem, dtype, backward, plan, task);
    }
  }

  // Tasks are handed out in order; they write to different places, so it does not matter who runs which.
  static void loop(void* argument) {
    Work& work = *static_cast<Work*>(argument);
    for (;;) {
      const int64_t task = work.next.fetch_add(1, std::memory_order_relaxed);
      if (task >= work.plan.tasks || work.failed.load(std::memory_order_relaxed)) return;
      if (!work.run(task)) work.failed = true;
    }
  }
};

// A task goes through its queries in order, and for each through its heads.
//
// Where many queries share the tokens, a copy with the tokens of a head side by side and its channels padded to whole
// registers pays: of one head at a time when all heads together do not stay in the cache, else of several. The backward
// of different heads writes to different places, so only heads are shared out there.
Plan make_plan(const MsdetrDeformAttn& problem, int dtype, bool backward, int threads) {
  const int64_t size = dtype == MSDETR_DOUBLE ? 8 : 4;
  const int64_t image_bytes = problem.tokens * problem.heads * problem.channels * size;
  const bool large = image_bytes > (int64_t(1) << 20);
  const bool shared = 4 * problem.queries * problem.levels * problem.points > 8 * problem.tokens;
  Plan plan;
  plan.copied = shared && (backward || problem.batch * problem.heads >= threads);
  plan.split_heads = backward || plan.copied;
  // Some tasks for each thread, so that none waits long for the others; but heads that are not copied stay together, since a
  // head's part of a token is short.
  const int64_t parts = threads == 1 ? 1 : (backward && !plan.copied ? 1 : 4) * threads;
  const int64_t wanted = (parts + problem.batch - 1) / problem.batch;
  const int64_t most = plan.split_heads ? problem.heads : problem.queries;
  plan.splits = plan.copied && large ? problem.heads : wanted < most ? wanted : most;
  plan.tasks = plan.splits * problem.batch;
  return plan;
}

int execute(const MsdetrDeformAttn& problem, int dtype, bool backward, int threads) {
  if (dtype != MSDETR_FLOAT && dtype != MSDETR_DOUBLE) return MSDETR_UNSUPPORTED;
  if (problem.tokens > INT32_MAX || problem.heads * problem.levels * problem.points > INT32_MAX / 16) {
    return MSDETR_UNSUPPORTED;  // tokens and the points of one query are counted in 32 bits
  }
  if (problem.batch == 0) return MSDETR_OK;
  if (threads < 1) threads = 1;
  const int isa = current_instruction_set();
  Work work{problem, dtype, backward, isa, make_plan(problem, dtype, backward, threads)};
  if (threads > work.plan.tasks) threads = static_cast<int>(work.plan.tasks);
  run_on_threads(threads, Work::loop, &work);
  return work.failed ? MSDETR_NO_MEMORY : MSDETR_OK;
}

// The points of all rows, in parts of `kRows` that are handed out in order.
struct Rows {
  static constexpr int64_t kRows = 256;
  const MsdetrPoints& problem;
  bool backward;
  int isa;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};

  void run(int64_t first, int64_t last, float* space) const {
    switch (isa) {
#ifdef MSDETR_X86
      case MSDETR_AVX512: return avx512::points(problem, backward, first, last, space);
      case MSDETR_AVX2: return avx2::points(problem, backward, first, last, space);
#endif
      default: return baseline::points(problem, backward, first, last, space);
    }
  }

  static void loop(void* argument) {
    Rows& rows = *static_cast<Rows*>(argument);
    const int64_t size = 4 * rows.problem.levels * rows.problem.points;  // offsets and scales of one head
    float* space = new (std::nothrow) float[static_cast<size_t>(size)];
    if (!space) rows.failed = true;
    for (int64_t first; space && (first = rows.next.fetch_add(kRows)) < rows.problem.rows;) {
      rows.run(first, first + kRows < rows.problem.rows ? first + kRows : rows.problem.rows, space);
    }
    delete[] space;
  }
};

int execute_points(const MsdetrPoints& problem, bool backward, int threads) {
  const int64_t parts = (problem.rows + Rows::kRows - 1) / Rows::kRows;
  Rows rows{problem, backward, current_instruction_set()};
  run_on_threads(threads > parts ? static_cast<int>(parts) : threads, Rows::loop, &rows);
  return rows.failed ? MSDETR_NO_MEMORY : MSDETR_OK;
}

}  // namespace
}  // namespace msdetr

extern "C" {

int msdetr_interface_version(void) { return MSDETR_INTERFACE; }

int msdetr_deform_attn_forward(const MsdetrDeformAttn* problem, int dtype, int threads) {
  return msdetr::execute(*problem, dtype, false, threads);
}

int msdetr_deform_attn_backward(const MsdetrDeformAttn* problem, int dtype, int threads) {
  return msdetr::execute(*problem, dtype, true, threads);
}

int msdetr_points_forward(const MsdetrPoints* problem, int threads) {
  return msdetr::execute_points(*problem, false, threads);
}

int msdetr_points_backward(const MsdetrPoints* problem, int threads) {
  return msdetr::execute_points(*problem, true, threads);
}

int msdetr_best_instruction_set(void) { return msdetr::best_instruction_set(); }

int msdetr_set_instruction_set(int isa) {
  const int best = msdetr::best_instruction_set();
  msdetr::instruction_set = isa < 0 || isa > best ? best : isa;
  return msdetr::instruction_set;
}

void msdetr_set_parallel(MsdetrParallel parallel) { msdetr::host_parallel = parallel; }
}
