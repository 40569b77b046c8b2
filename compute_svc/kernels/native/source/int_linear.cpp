// Layer parts on int8 rows and integer weights. Each is one call: what is between its products stays in memory of the threads.
#include "activations.h"
#include "int_products.h"
#include "output.h"
#include "quantise.h"

namespace triserve {
namespace {

template <class T>
void write_rows(const float* values, const IntWeight& w, int64_t block, int64_t row, int rows, Output<T> out) {
  write_block(values, kBlock, block * kBlock, w.outputs, row, rows, out);
}

template <class T>
void linear(const IntRows& x, const IntWeight& w, int64_t activation, Output<T> out, int64_t threads) {
  for_each_block(w, x, threads, [&](int64_t block, int64_t row, int rows) {
    alignas(64) float values[kRowsAtOnce * kBlock];
    multiply_block(w, block, x, row, rows, values);
    activate(values, rows * kBlock, activation);
    write_rows(values, w, block, row, rows, out);
  });
}

// activation(gate) * up. Both weights have the same sizes, groups and bits.
template <class T>
void gated_linear(const IntRows& x, const IntWeight& gate, const IntWeight& up, int64_t activation, Output<T> out, int64_t threads) {
  for_each_block(gate, x, threads, [&](int64_t block, int64_t row, int rows) {
    alignas(64) float values[kRowsAtOnce * kBlock], others[kRowsAtOnce * kBlock];
    multiply_block(gate, block, x, row, rows, values);
    multiply_block(up, block, x, row, rows, others);
    activate(values, rows * kBlock, activation);
    for (int i = 0; i < rows * kBlock; ++i) values[i] = values[i] * others[i];
    write_rows(values, gate, block, row, rows, out);
  });
}

// Rows [rows, columns] of T, normalised if asked, quantised for a weight.
template <class T>
IntRows quantise_for(const IntWeight& w, const T* x, int64_t rows, Norm norm, int64_t threads) {
  const int64_t code_bytes = (rows * w.inputs + 63) / 64 * 64;
  auto* codes = static_cast<int8_t*>(scratch(QUANTISED, static_cast<size_t>(code_bytes + rows * w.row_groups * 4)));
  auto* scales = reinterpret_cast<float*>(codes + code_bytes);
  const int64_t group = w.row_groups > 1 ? w.group : w.columns;
  parallel_for(rows, rows * w.columns < kLeastSharedCodes ? 1 : threads, [=, &w](int64_t row) {
    quantise_row(x + row * w.columns, w.columns, w.inputs, group, norm, codes + row * w.inputs, scales + row * w.row_groups);
  });
  return rows_for(w, codes, scales, w.row_groups, rows, threads);
}

// Rows of an MLP computed together: what is between its products is kept in memory.
constexpr int64_t kMlpRows = 512;

// down(activation(gate(x)) * up(x)), or down(activation(up(x))) without a gate, of at most kMlpRows rows.
template <class T>
void mlp(const T* x, int64_t rows, Norm norm, const IntWeight* gate, const IntWeight& up, const IntWeight& down, int64_t activation,
         Output<T> out, int64_t threads) {
  const Output<float> hidden{scratch_of<float>(HIDDEN, rows * up.outputs), nullptr};
  const IntRows given = quantise_for(up, x, rows, norm, threads);
  if (gate == nullptr) {
    linear(given, up, activation, hidden, threads);
  } else {
    gated_linear(given, *gate, up, activation, hidden, threads);
  }
  linear(quantise_for(down, hidden.data, rows, Norm{nullptr, 0.0}, threads), down, NONE, out, threads);
}

template <class T>
void linear_of(const void* x, int64_t rows, Norm norm, const IntWeight& w, int64_t activation, const void* add, void* out, int64_t threads) {
  linear(quantise_for(w, static_cast<const T*>(x), rows, norm, threads), w, activation,
         Output<T>{static_cast<T*>(out), static_cast<const T*>(add)}, threads);
}

template <class T>
void whole_mlp(const void* x, int64_t rows, Norm norm, const IntWeight* gate, const IntWeight& up, const IntWeight& down, int64_t activation,
               const void* add, void* out, int64_t threads) {
  for (int64_t begin = 0; begin < rows; begin += kMlpRows) {
    const int64_t count = begin + kMlpRows < rows ? kMlpRows : rows - begin, at = begin * down.outputs;
    const Output<T> part{static_cast<T*>(out) + at, add == nullptr ? nullptr : static_cast<const T*>(add) + at};
    mlp(static_cast<const T*>(x) + begin * up.columns, count, norm, gate, up, down, activation, part, threads);
  }
}

}  // namespace
}  // namespace triserve

// codes: [rows, inputs], scales: [rows, scale_groups], which are 1 or the weight's, add: [rows, outputs] of dtype or null, out: [rows, outputs] of dtype.
TRISERVE_EXPORT void triserve_int_linear(const int8_t* codes, const float* scales, int64_t scale_groups, int64_t rows,
                                         const triserve::IntWeight* w, int64_t activation, const void* add, void* out, int64_t dtype, int64_t threads) {
  using namespace triserve;
  const IntRows x = rows_for(*w, codes, scales, scale_groups, rows, threads);
  if (dtype == BFLOAT16) {
    return linear(x, *w, activation, Output<bfloat16>{static_cast<bfloat16*>(out), static_cast<const bfloat16*>(add)}, threads);
  }
  linear(x, *w, activation, Output<float>{static_cast<float*>(out), static_cast<const float*>(add)}, threads);
}

// As triserve_int_linear, of activation(gate) * up.
TRISERVE_EXPORT void triserve_int_gated_linear(const int8_t* codes, const float* scales, int64_t scale_groups, int64_t rows,
                                               const triserve::IntWeight* gate, const triserve::IntWeight* up, int64_t activation, void* out, int64_t dtype,
                                               int64_t threads) {
  using namespace triserve;
  const IntRows x = rows_for(*gate, codes, scales, scale_groups, rows, threads);
  if (dtype == BFLOAT16) return gated_linear(x, *gate, *up, activation, Output<bfloat16>{static_cast<bfloat16*>(out), nullptr}, threads);
  gated_linear(x, *gate, *up, activation, Output<float>{static_cast<float*>(out), nullptr}, threads);
}

// As triserve_int_linear, of rows x: [rows, columns] of dtype that are normalised first, unless norm_weight is null, and quantised.
TRISERVE_EXPORT void triserve_int_linear_of(const void* x, int64_t rows, const float* norm_weight, double eps, const triserve::IntWeight* w,
                                            int64_t activation, const void* add, void* out, int64_t dtype, int64_t threads) {
  using namespace triserve;
  const auto run = dtype == BFLOAT16 ? linear_of<bfloat16> : linear_of<float>;
  run(x, rows, Norm{norm_weight, eps}, *w, activation, add, out, threads);
}

// An MLP of rows x as above; gate may be null. What goes into down is quantised without rounding it to dtype.
TRISERVE_EXPORT void triserve_int_mlp(const void* x, int64_t rows, const float* norm_weight, double eps, const triserve::IntWeight* gate,
                                      const triserve::IntWeight* up, const triserve::IntWeight* down, int64_t activation, const void* add,
                                      void* out, int64_t dtype, int64_t threads) {
  using namespace triserve;
  const auto run = dtype == BFLOAT16 ? whole_mlp<bfloat16> : whole_mlp<float>;
  run(x, rows, Norm{norm_weight, eps}, gate, *up, *down, activation, add, out, threads);
}
