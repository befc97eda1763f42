// Calls the CPU library with random sizes and contents, to be built with sanitizers: fuzz CALLS SEED.
// Every tensor is an allocation of exactly its size, so that a step outside is seen. One forward call in 16 is compared
// with a scalar loop. Exits with 1 on a wrong value or return code; sanitizers end the process themselves.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "ms_deform_attn.h"

namespace {

using Random = std::mt19937_64;

int64_t uniform(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

template <typename T>
std::unique_ptr<T[]> values(Random& random, int64_t count, double low, double high) {
  std::unique_ptr<T[]> result(new T[count]);
  std::uniform_real_distribution<double> distribution(low, high);
  for (int64_t i = 0; i < count; ++i) result[i] = T(distribution(random));
  return result;
}

// Mostly inside and around the border; some exactly on it, far away or not finite.
template <typename T>
T location(Random& random) {
  constexpr T kSpecial[] = {T(0), T(1), T(0.5), T(-1), T(2), T(1e30), T(-1e30), std::numeric_limits<T>::infinity(),
                            -std::numeric_limits<T>::infinity(), std::numeric_limits<T>::quiet_NaN(),
                            std::numeric_limits<T>::max(), std::numeric_limits<T>::denorm_min()};
  if (uniform(random, 0, 7) == 0) return kSpecial[uniform(random, 0, std::size(kSpecial) - 1)];
  return T(std::uniform_real_distribution<double>(-0.3, 1.3)(random));
}

template <typename T>
double sampled(const T* value, const MsdetrDeformAttn& p, int64_t image, int64_t start, int64_t height, int64_t width,
               int64_t head, int64_t channel, double x, double y) {
  if (!(x > -1 && x < double(width) && y > -1 && y < double(height))) return 0;
  double sum = 0;
  const int64_t left = int64_t(std::floor(x)), top = int64_t(std::floor(y));
  for (int64_t row = top; row <= top + 1; ++row) {
    for (int64_t column = left; column <= left + 1; ++column) {
      if (row < 0 || row >= height || column < 0 || column >= width) continue;
      const double weight = (1 - std::fabs(x - double(column))) * (1 - std::fabs(y - double(row)));
      const int64_t token = image * p.tokens + start + row * width + column;
      sum += weight * double(value[(token * p.heads + head) * p.channels + channel]);
    }
  }
  return sum;
}

template <typename T>
bool output_is_right(const MsdetrDeformAttn& p) {
  const T *value = static_cast<const T*>(p.value), *locations = static_cast<const T*>(p.locations),
          *weights = static_cast<const T*>(p.weights), *output = static_cast<const T*>(p.output);
  for (int64_t place = 0; place < p.batch * p.queries * p.heads; ++place) {
    for (int64_t channel = 0; channel < p.channels; ++channel) {
      double sum = 0;
      int64_t start = 0;
      for (int64_t level = 0; level < p.levels; ++level) {
        const int64_t height = p.shapes[2 * level], width = p.shapes[2 * level + 1];
        for (int64_t i = 0; i < p.points; ++i) {
          const int64_t point = (place * p.levels + level) * p.points + i;
          const T x = locations[2 * point] * T(width) - T(0.5), y = locations[2 * point + 1] * T(height) - T(0.5);
          sum += double(weights[point]) * sampled(value, p, place / p.heads / p.queries, start, height, width,
                                                  place % p.heads, channel, double(x), double(y));
        }
        start += height * width;
      }
      if (!(std::fabs(sum - double(output[place * p.channels + channel])) <= 1e-4 * double(p.levels * p.points))) {
        std::fprintf(stderr, "wrong value: %g instead of %g\n", double(output[place * p.channels + channel]), sum);
        return false;
      }
    }
  }
  return true;
}

template <typename T>
bool call(Random& random) {
  MsdetrDeformAttn p = {};
  p.batch = uniform(random, 0, 9) ? uniform(random, 1, 2) : 0;
  p.heads = uniform(random, 1, 3);
  p.channels = uniform(random, 0, 3) ? uniform(random, 1, 20) : uniform(random, 1, 140);
  p.levels = uniform(random, 1, 4);
  p.points = uniform(random, 1, 5);
  p.queries = uniform(random, 0, 9) ? uniform(random, 1, 5) : 0;
  std::unique_ptr<int64_t[]> shapes(new int64_t[2 * p.levels]);
  for (int64_t level = 0; level < p.levels; ++level) {
    shapes[2 * level] = uniform(random, 1, 6);
    shapes[2 * level + 1] = uniform(random, 1, 6);
    p.tokens += shapes[2 * level] * shapes[2 * level + 1];
  }
  const int64_t elements = p.batch * p.tokens * p.heads * p.channels, outputs = p.batch * p.queries * p.heads * p.channels;
  const int64_t points = p.batch * p.queries * p.heads * p.levels * p.points;
  const auto value = values<T>(random, elements, -1, 1), weights = values<T>(random, points, 0, 1);
  const auto grad_output = values<T>(random, outputs, -1, 1);
  std::unique_ptr<T[]> locations(new T[2 * points]), output(new T[outputs]), grad_value(new T[elements]);
  std::unique_ptr<T[]> grad_locations(new T[2 * points]), grad_weights(new T[points]);
  for (int64_t i = 0; i < 2 * points; ++i) locations[i] = location<T>(random);
  p.value = value.get();
  p.locations = locations.get();
  p.weights = weights.get();
  p.shapes = shapes.get();
  p.output = output.get();
  p.grad_output = grad_output.get();
  const int64_t needed = uniform(random, 1, 3);
  if (needed & 1) p.grad_value = grad_value.get();
  if (needed & 2) p.grad_locations = grad_locations.get(), p.grad_weights = grad_weights.get();

  msdetr_set_instruction_set(int(uniform(random, 0, 2)));
  const int dtype = sizeof(T) == 8 ? MSDETR_DOUBLE : MSDETR_FLOAT;
  const int threads = uniform(random, 0, 99) ? 1 : 3;
  const bool backward = uniform(random, 0, 1);
  const int code = backward ? msdetr_deform_attn_backward(&p, dtype, threads) : msdetr_deform_attn_forward(&p, dtype, threads);
  if (code != MSDETR_OK) {
    std::fprintf(stderr, "return code %d\n", code);
    return false;
  }
  if (!backward) return uniform(random, 0, 15) || output_is_right<T>(p);
  for (int64_t i = 0; p.grad_value && i < elements; ++i) {
    if (!std::isfinite(grad_value[i])) return false;
  }
  for (int64_t i = 0; p.grad_weights && i < points; ++i) {
    if (!std::isfinite(grad_weights[i]) || !std::isfinite(grad_locations[2 * i]) ||
        !std::isfinite(grad_locations[2 * i + 1])) {
      return false;
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const long calls = std::atol(argv[1]);
  Random random(std::strtoull(argv[2], nullptr, 10));
  for (long i = 0; i < calls; ++i) {
    const bool right = uniform(random, 0, 3) ? call<float>(random) : call<double>(random);
    if (!right) {
      std::fprintf(stderr, "call %ld failed\n", i);
      return 1;
    }
  }
  std::printf("%ld\n", calls);
  return 0;
}
