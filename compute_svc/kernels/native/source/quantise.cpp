#include "quantise.h"

namespace triserve {
namespace {

// Rows of fewer numbers than this together are not worth waking the other threads.
constexpr int64_t kLeastShared = 1 << 13;

template <class T>
void quantise_rows(const T* x, int64_t rows, int64_t columns, int64_t group, Norm norm, int8_t* codes, float* scales, int64_t threads) {
  const int64_t groups = (columns + group - 1) / group;
  parallel_for(rows, rows * columns < kLeastShared ? 1 : threads, [=](int64_t row) {
    quantise_row(x + row * columns, columns, columns, group, norm, codes + row * columns, scales + row * groups);
  });
}

}  // namespace
}  // namespace triserve

// x: [rows, columns] of dtype, group: numbers that share a scale, norm_weight: [columns] or null, codes: [rows, columns], scales: [rows, groups].
TRISERVE_EXPORT void triserve_quantise_rows(const void* x, int64_t dtype, int64_t rows, int64_t columns, int64_t group,
                                            const float* norm_weight, double eps, int8_t* codes, float* scales, int64_t threads) {
  using namespace triserve;
  const Norm norm{norm_weight, eps};
  if (dtype == BFLOAT16) return quantise_rows(static_cast<const bfloat16*>(x), rows, columns, group, norm, codes, scales, threads);
  quantise_rows(static_cast<const float*>(x), rows, columns, group, norm, codes, scales, threads);
}
