// Layer parts on rows of floats. Each is one call; sums, activations and what is added to them are rounded once.
#include "activations.h"
#include "float_products.h"
#include "normalise.h"
#include "output.h"

namespace triserve {
namespace {

// Memory that lives through a call; of the calling thread, and of each thread.
enum Slot { ROWS = 5, ONE_ROW = 6, HIDDEN_ROWS = 7 };

// Rows [rows, inputs] of T, normalised if asked, as products take them, in memory of the calling thread.
template <class T>
FloatRows rows_for(const T* x, int64_t rows, int64_t inputs, Norm norm, int64_t threads) {
  const int64_t at_once = float_rows_at_once(rows);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (at_once == 1 && norm.weight == nullptr) return {x, rows, at_once};
  }
  auto* together = scratch_of<float>(ROWS, rows * inputs);
  const int64_t parts = (rows + at_once - 1) / at_once;
  parallel_for(parts, rows * inputs < (1 << 13) ? 1 : threads, [=](int64_t part) {
    const int64_t begin = part * at_once, count = begin + at_once < rows ? at_once : rows - begin;
    float* normed = norm.weight == nullptr ? nullptr : scratch_of<float>(ONE_ROW, inputs);
    for (int64_t r = 0; r < count; ++r) {
      const T* row = x + (begin + r) * inputs;
      float* to = together + begin * inputs + r;
      if (normed == nullptr) {
        for (int64_t k = 0; k < inputs; ++k) to[k * count] = widen(row[k]);
      } else {
        normalise_row(row, inputs, norm, normed);
        for (int64_t k = 0; k < inputs; ++k) to[k * count] = normed[k];
      }
    }
  });
  return {together, rows, at_once};
}

template <class T>
void linear(const FloatRows& x, const FloatWeight& w, int64_t activation, Output<T> out, int64_t threads) {
  for_each_panel(w, x, threads, [&](int64_t panel, int64_t begin, int64_t end) {
    alignas(64) float sums[kTaskRows * kPanelOutputs];
    multiply_panel(w, panel, x, begin, end, sums);
    activate(sums, (end - begin) * kPanelOutputs, activation);
    write_block(sums, kPanelOutputs, panel * kPanelOutputs, w.outputs, begin, end - begin, out);
  });
}

// activation(gate) * up. Both weights have the same sizes.
template <class T>
void gated_linear(const FloatRows& x, const FloatWeight& gate, const FloatWeight& up, int64_t activation, Output<T> out, int64_t threads) {
  for_each_panel(gate, x, threads, [&](int64_t panel, int64_t begin, int64_t end) {
    alignas(64) float sums[kTaskRows * kPanelOutputs], others[kTaskRows * kPanelOutputs];
    multiply_panel(gate, panel, x, begin, end, sums);
    multiply_panel(up, panel, x, begin, end, others);
    const int64_t count = (end - begin) * kPanelOutputs;
    activate(sums, count, activation);
    for (int64_t i = 0; i < count; ++i) sums[i] = sums[i] * others[i];
    write_block(sums, kPanelOutputs, panel * kPanelOutputs, gate.outputs, begin, end - begin, out);
  });
}

// What is between the products of an MLP, as the second takes it: rows at once in each other, in memory of the calling thread.
struct HiddenRows {
  float* data;
  const FloatRows& like;
  int64_t outputs;

  void put(const float* sums, int64_t first, int64_t begin, int64_t end) const {
    const int64_t most = first + kPanelOutputs < outputs ? kPanelOutputs : outputs - first;
    for (int64_t row = begin; row < end; ++row, sums += kPanelOutputs) {
      const int64_t in_unit = row % like.at_once, unit = row - in_unit;
      const int64_t count = unit + like.at_once < like.rows ? like.at_once : like.rows - unit;
      float* to = data + unit * outputs + first * count + in_unit;
      for (int64_t i = 0; i < most; ++i) to[i * count] = sums[i];
    }
  }
};

// Rows of an MLP computed together: what is between its products is kept in memory.
constexpr int64_t kMlpRows = 512;

// down(activation(gate(x)) * up(x)), or down(activation(up(x))) without a gate, of at most kMlpRows rows.
template <class T>
void mlp(const T* x, int64_t rows, Norm norm, const FloatWeight* gate, const FloatWeight& up, const FloatWeight& down, int64_t activation,
         Output<T> out, int64_t threads) {
  const FloatRows given = rows_for(x, rows, up.inputs, norm, threads);
  const HiddenRows hidden{scratch_of<float>(HIDDEN_ROWS, rows * up.outputs), given, up.outputs};
  for_each_panel(up, given, threads, [&](int64_t panel, int64_t begin, int64_t end) {
    alignas(64) float sums[kTaskRows * kPanelOutputs], others[kTaskRows * kPanelOutputs];
    const int64_t count = (end - begin) * kPanelOutputs;
    multiply_panel(gate == nullptr ? up : *gate, panel, given, begin, end, sums);
    activate(sums, count, activation);
    if (gate != nullptr) {
      multiply_panel(up, panel, given, begin, end, others);
      for (int64_t i = 0; i < count; ++i) sums[i] = sums[i] * others[i];
    }
    hidden.put(sums, panel * kPanelOutputs, begin, end);
  });
  linear(FloatRows{hidden.data, rows, given.at_once}, down, NONE, out, threads);
}

template <class T>
void whole_mlp(const void* x, int64_t rows, Norm norm, const FloatWeight* gate, const FloatWeight& up, const FloatWeight& down,
               int64_t activation, const void* add, void* out, int64_t threads) {
  for (int64_t begin = 0; begin < rows; begin += kMlpRows) {
    const int64_t count = begin + kMlpRows < rows ? kMlpRows : rows - begin, at = begin * down.outputs;
    const Output<T> part{static_cast<T*>(out) + at, add == nullptr ? nullptr : static_cast<const T*>(add) + at};
    mlp(static_cast<const T*>(x) + begin * up.inputs, count, norm, gate, up, down, activation, part, threads);
  }
}

template <class T>
void linear_of(const void* x, int64_t rows, Norm norm, const FloatWeight& w, int64_t activation, const void* add, void* out, int64_t threads) {
  linear(rows_for(static_cast<const T*>(x), rows, w.inputs, norm, threads), w, activation,
         Output<T>{static_cast<T*>(out), static_cast<const T*>(add)}, threads);
}

template <class T>
void gated_of(const void* x, int64_t rows, Norm norm, const FloatWeight& gate, const FloatWeight& up, int64_t activation, void* out,
              int64_t threads) {
  gated_linear(rows_for(static_cast<const T*>(x), rows, gate.inputs, norm, threads), gate, up, activation,
               Output<T>{static_cast<T*>(out), nullptr}, threads);
}

}  // namespace
}  // namespace triserve

// x: [rows, inputs] of the weight's dtype, normalised first unless norm_weight is null; add: [rows, outputs] of it or null; out: [rows, outputs].
TRISERVE_EXPORT void triserve_float_linear(const void* x, int64_t rows, const float* norm_weight, double eps, const triserve::FloatWeight* w,
                                           int64_t activation, const void* add, void* out, int64_t threads) {
  using namespace triserve;
  const auto run = w->dtype == BFLOAT16 ? linear_of<bfloat16> : linear_of<float>;
  run(x, rows, Norm{norm_weight, eps}, *w, activation, add, out, threads);
}

// As triserve_float_linear, of activation(gate) * up.
TRISERVE_EXPORT void triserve_float_gated_linear(const void* x, int64_t rows, const float* norm_weight, double eps,
                                                 const triserve::FloatWeight* gate, const triserve::FloatWeight* up, int64_t activation,
                                                 void* out, int64_t threads) {
  using namespace triserve;
  const auto run = gate->dtype == BFLOAT16 ? gated_of<bfloat16> : gated_of<float>;
  run(x, rows, Norm{norm_weight, eps}, *gate, *up, activation, out, threads);
}

// An MLP of rows x as above; gate may be null. What goes into down is not rounded to the dtype.
TRISERVE_EXPORT void triserve_float_mlp(const void* x, int64_t rows, const float* norm_weight, double eps, const triserve::FloatWeight* gate,
                                        const triserve::FloatWeight* up, const triserve::FloatWeight* down, int64_t activation,
                                        const void* add, void* out, int64_t threads) {
  using namespace triserve;
  const auto run = up->dtype == BFLOAT16 ? whole_mlp<bfloat16> : whole_mlp<float>;
  run(x, rows, Norm{norm_weight, eps}, gate, *up, *down, activation, add, out, threads);
}
