// Root-mean-square norms of rows.
#pragma once

#include "common.h"

namespace triserve {

// What a row is normalised by before it is multiplied; no weight = it is not.
struct Norm {
  const float* weight;
  double eps;
};

// x / sqrt(mean of x^2 + eps) * weight. The mean is of float64, summed in 16 parts; the root is rounded to float32 once, and each of the two
// multiplications.
template <class T>
void normalise_row(const T* x, int64_t count, Norm norm, float* out) {
  double parts[16] = {};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (int lane = 0; lane < 16; ++lane) {
      const double value = widen(x[i + lane]);
      parts[lane] = parts[lane] + value * value;
    }
  }
  for (int lane = 0; i < count; ++i, ++lane) {
    const double value = widen(x[i]);
    parts[lane] = parts[lane] + value * value;
  }
  double sum = 0.0;
  for (double part : parts) sum = sum + part;
  const float factor = static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(count) + norm.eps));
  for (i = 0; i < count; ++i) out[i] = widen(x[i]) * factor * norm.weight[i];
}

}  // namespace triserve
