#include "quantise.h"

namespace triserve {
namespace {

// Rows for which a parallel region pays: numbers, not rows, cost time.
constexpr int64_t kNumbersPerThread = 16384;

const float* row_as_floats(const float* x, int64_t, float*) { return x; }

const float* row_as_floats(const bfloat16* x, int64_t count, float* wide) {
  for (int64_t i = 0; i < count; ++i) wide[i] = widen(x[i]);
  return wide;
}

template <class T>
void quantise_rows(const T* x, int64_t rows, int64_t columns, int8_t* codes, float* scales, int64_t threads) {
  parallel_for(rows, rows * columns < 2 * kNumbersPerThread ? 1 : threads, [=](int64_t row) {
    float* wide = sizeof(T) == sizeof(float) ? nullptr : scratch_of<float>(0, columns);
    scales[row] = quantise_row(row_as_floats(x + row * columns, columns, wide), columns, codes + row * columns);
  });
}

}  // namespace
}  // namespace triserve

// x: [rows, columns] of dtype, codes: [rows, columns], scales: [rows].
TRISERVE_EXPORT void triserve_quantise_rows(
    const void* x, int64_t dtype, int64_t rows, int64_t columns, int8_t* codes, float* scales, int64_t threads) {
  using namespace triserve;
  if (dtype == BFLOAT16) return quantise_rows(static_cast<const bfloat16*>(x), rows, columns, codes, scales, threads);
  quantise_rows(static_cast<const float*>(x), rows, columns, codes, scales, threads);
}
