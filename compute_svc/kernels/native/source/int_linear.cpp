// Layer parts on int8 rows and integer weights. Each is one call: what is between its products stays in memory of the threads.
#include "activations.h"
#include "int_products.h"
#include "quantise.h"

namespace triserve {
namespace {

// Slots of memory that lives through a call; slot 0 belongs to quantise.h.
enum Slot { SUMS = 1, CODES = 2, SCALES = 3 };

constexpr int64_t kLeastQuantised = 1 << 15;

// A residual to add, or other factor, and where results go: [rows, outputs] of T.
template <class T>
struct Output {
  T* data;
  const T* add;
};

IntRows with_sums(const int8_t* codes, const float* scales, int64_t rows, const IntWeight& w, int32_t* sums, int64_t threads) {
  parallel_for(rows, rows * w.inputs < kLeastQuantised ? 1 : threads,
               [=, &w](int64_t row) { sum_groups(codes + row * w.inputs, w, sums + row * w.groups); });
  return {codes, scales, sums, rows};
}

template <class T>
void write_rows(const float* values, const IntWeight& w, int64_t block, int64_t row, int rows, Output<T> out) {
  const int64_t first = block * kBlock, count = first + kBlock < w.outputs ? kBlock : w.outputs - first;
  for (int r = 0; r < rows; ++r, values += kBlock) {
    const int64_t at = (row + r) * w.outputs + first;
    if (out.add == nullptr) {
      for (int64_t i = 0; i < count; ++i) narrow(values[i], out.data + at + i);
    } else {
      for (int64_t i = 0; i < count; ++i) narrow(values[i] + widen(out.add[at + i]), out.data + at + i);
    }
  }
}

template <class T>
void linear(const IntRows& x, const IntWeight& w, int64_t activation, Output<T> out, int64_t threads) {
  for_each_block(w, x.rows, threads, [&](int64_t block, int64_t row, int rows) {
    alignas(64) float values[kRowsAtOnce * kBlock];
    multiply_block(w, block, x, row, rows, values);
    activate(values, rows * kBlock, activation);
    write_rows(values, w, block, row, rows, out);
  });
}

// activation(gate) * up. Both weights have the same sizes, groups and bits.
template <class T>
void gated_linear(const IntRows& x, const IntWeight& gate, const IntWeight& up, int64_t activation, Output<T> out, int64_t threads) {
  for_each_block(gate, x.rows, threads, [&](int64_t block, int64_t row, int rows) {
    alignas(64) float values[kRowsAtOnce * kBlock], others[kRowsAtOnce * kBlock];
    multiply_block(gate, block, x, row, rows, values);
    multiply_block(up, block, x, row, rows, others);
    activate(values, rows * kBlock, activation);
    for (int i = 0; i < rows * kBlock; ++i) values[i] = values[i] * others[i];
    write_rows(values, gate, block, row, rows, out);
  });
}

}  // namespace
}  // namespace triserve

// codes: [rows, inputs], scales: [rows], add: [rows, outputs] of dtype or null, out: [rows, outputs] of dtype.
TRISERVE_EXPORT void triserve_int_linear(const int8_t* codes, const float* scales, int64_t rows, const triserve::IntWeight* w,
                                         int64_t activation, const void* add, void* out, int64_t dtype, int64_t threads) {
  using namespace triserve;
  const IntRows x = with_sums(codes, scales, rows, *w, scratch_of<int32_t>(SUMS, rows * w->groups), threads);
  if (dtype == BFLOAT16) {
    return linear(x, *w, activation, Output<bfloat16>{static_cast<bfloat16*>(out), static_cast<const bfloat16*>(add)}, threads);
  }
  linear(x, *w, activation, Output<float>{static_cast<float*>(out), static_cast<const float*>(add)}, threads);
}

// As triserve_int_linear, of activation(gate) * up.
TRISERVE_EXPORT void triserve_int_gated_linear(const int8_t* codes, const float* scales, int64_t rows, const triserve::IntWeight* gate,
                                               const triserve::IntWeight* up, int64_t activation, void* out, int64_t dtype,
                                               int64_t threads) {
  using namespace triserve;
  const IntRows x = with_sums(codes, scales, rows, *gate, scratch_of<int32_t>(SUMS, rows * gate->groups), threads);
  if (dtype == BFLOAT16) return gated_linear(x, *gate, *up, activation, Output<bfloat16>{static_cast<bfloat16*>(out), nullptr}, threads);
  gated_linear(x, *gate, *up, activation, Output<float>{static_cast<float*>(out), nullptr}, threads);
}
