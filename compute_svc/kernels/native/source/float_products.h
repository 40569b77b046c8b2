// Products of rows of floats with packed weights: of float32, or of bfloat16 that is widened as it is read. Every output is one chain of fused
// products over the inputs, in their order: whatever is multiplied beside it, a row gets the same bits.
#pragma once

#include <utility>

#include "lanes.h"

namespace triserve {

// As kernels/native/float_weight.py lays it out. Outputs stand in panels that are multiplied at once; of a panel every input is one stretch
// of memory, so that a weight is read as one stream.
struct FloatWeight {
  const void* data;   // [panels, inputs, kPanelOutputs] of dtype, of bfloat16 the two vectors of an input in each other
  const float* bias;  // [panels * kPanelOutputs]; null = none
  int64_t inputs;
  int64_t outputs;
  int64_t dtype;
};

// Rows of activations, those that are multiplied at once in each other: by rows at once [inputs, rows].
struct FloatRows {
  const float* values;
  int64_t rows;
  int64_t at_once;  // the last may be fewer
};

namespace {

using lanes::kWidth;
using lanes::Lanes;

// With two vectors of sums for each row and what they are made of, these fill the registers.
constexpr int kPanelVectors = 2;
constexpr int kPanelOutputs = kPanelVectors * kWidth;
constexpr int kMostRows = kWidth == 16 ? 12 : kWidth == 8 ? 6 : 2;
// Inputs of a panel that are multiplied while as many behind them are fetched, 4 or 8 KB: with 1024 of them one row and sixteen take a third
// longer, whose panel's end fetches what another thread will take.
constexpr int64_t kDepth = 64;
// Rows, in units of those at once, that one thread multiplies with a panel before it takes another.
constexpr int kUnitsPerTask = 8;
constexpr int kTaskRows = kUnitsPerTask * kMostRows;

#define TRISERVE_UNROLLED _Pragma("GCC unroll 16")

// What a call multiplies: some inputs of a panel, and the share of the inputs behind them that it fetches meanwhile. With several rows a weight
// is read slower than memory gives it, but not so slowly that what the processor fetches by itself is there in time.
template <class W>
struct Stretch {
  const W* data;
  int64_t depth;
  const char* ahead;
  int64_t ahead_step;  // bytes for each input
};

inline void load_panel(const float* from, Lanes (&weights)[kPanelVectors]) {
  TRISERVE_UNROLLED for (int v = 0; v < kPanelVectors; ++v) weights[v] = lanes::load(from + v * kWidth);
}

// Each number of 32 bits is one of both vectors: moved to the upper half it is the first's, alone there the second's.
inline void load_panel(const bfloat16* from, Lanes (&weights)[kPanelVectors]) {
  const Lanes both = lanes::load(reinterpret_cast<const float*>(from));
  weights[0] = lanes::bits_left(both, 16);
  weights[1] = lanes::bits_and(both, 0xffff0000u);
}

// sums[r * kPanelOutputs + i] goes on with the products of R rows x [depth, R] with a stretch of a panel.
template <class W, int R>
void multiply_rows(Stretch<W> stretch, const float* x, float* sums) {
  Lanes acc[R][kPanelVectors];
  TRISERVE_UNROLLED for (int r = 0; r < R; ++r)
    TRISERVE_UNROLLED for (int v = 0; v < kPanelVectors; ++v) acc[r][v] = lanes::load(sums + r * kPanelOutputs + v * kWidth);
  const W* data = stretch.data;
  const char* ahead = stretch.ahead;
  for (int64_t k = 0; k < stretch.depth; ++k, data += kPanelOutputs, x += R, ahead += stretch.ahead_step) {
    // Into the second cache: the first has what rows need.
    __builtin_prefetch(ahead, 0, 2);
    if constexpr (sizeof(W) * kPanelOutputs > 64) __builtin_prefetch(ahead + 64, 0, 2);
    Lanes weights[kPanelVectors];
    load_panel(data, weights);
    TRISERVE_UNROLLED for (int r = 0; r < R; ++r) {
      const Lanes value = lanes::all(x[r]);
      TRISERVE_UNROLLED for (int v = 0; v < kPanelVectors; ++v) acc[r][v] = lanes::fma(value, weights[v], acc[r][v]);
    }
  }
  TRISERVE_UNROLLED for (int r = 0; r < R; ++r)
    TRISERVE_UNROLLED for (int v = 0; v < kPanelVectors; ++v) lanes::store(sums + r * kPanelOutputs + v * kWidth, acc[r][v]);
}

template <class W>
using MultiplyRows = void (*)(Stretch<W>, const float*, float*);

// The functions for 1, 2, ... rows.
template <class W, int... LESS>
MultiplyRows<W> choose_for_rows(int64_t rows, std::integer_sequence<int, LESS...>) {
  static constexpr MultiplyRows<W> kChoices[] = {multiply_rows<W, LESS + 1>...};
  return kChoices[rows - 1];
}

// sums [end - begin, kPanelOutputs] = the rows' products with a panel, plus bias.
template <class W>
void multiply_panel_of(const FloatWeight& w, int64_t panel, const FloatRows& x, int64_t begin, int64_t end, float* sums) {
  std::memset(sums, 0, static_cast<size_t>(end - begin) * kPanelOutputs * sizeof(float));
  const int64_t units = (end - begin + x.at_once - 1) / x.at_once, input_bytes = kPanelOutputs * static_cast<int64_t>(sizeof(W));
  const W* data = static_cast<const W*>(w.data) + panel * w.inputs * kPanelOutputs;
  for (int64_t k = 0; k < w.inputs; k += kDepth, data += kDepth * kPanelOutputs) {
    Stretch<W> stretch{data, k + kDepth < w.inputs ? kDepth : w.inputs - k, nullptr, input_bytes / units};
    stretch.ahead = reinterpret_cast<const char*>(data) + stretch.depth * input_bytes;
    for (int64_t row = begin; row < end; row += x.at_once, stretch.ahead += stretch.depth * stretch.ahead_step) {
      const int64_t rows = row + x.at_once < x.rows ? x.at_once : x.rows - row;
      const auto multiply = choose_for_rows<W>(rows, std::make_integer_sequence<int, kMostRows>());
      multiply(stretch, x.values + row * w.inputs + k * rows, sums + (row - begin) * kPanelOutputs);
    }
  }
  if (w.bias == nullptr) return;
  const float* bias = w.bias + panel * kPanelOutputs;
  for (int64_t row = begin; row < end; ++row, sums += kPanelOutputs) {
    for (int i = 0; i < kPanelOutputs; ++i) sums[i] = sums[i] + bias[i];
  }
}

inline void multiply_panel(const FloatWeight& w, int64_t panel, const FloatRows& x, int64_t begin, int64_t end, float* sums) {
  const auto multiply = w.dtype == BFLOAT16 ? multiply_panel_of<bfloat16> : multiply_panel_of<float>;
  multiply(w, panel, x, begin, end, sums);
}

// How many rows to multiply at once: as evenly as can be, 16 as twice 8 and not as 12 and 4.
inline int64_t float_rows_at_once(int64_t rows) {
  const int64_t rounds = (rows + kMostRows - 1) / kMostRows;
  return rows == 0 ? 1 : (rows + rounds - 1) / rounds;
}

// Fewer products than these are not worth waking the other threads.
constexpr int64_t kLeastSharedProducts = 1 << 16;

// Runs body(panel, first row, row behind the last) over all panels and all rows.
template <class Body>
void for_each_panel(const FloatWeight& w, const FloatRows& x, int64_t threads, const Body& body) {
  const int64_t panels = (w.outputs + kPanelOutputs - 1) / kPanelOutputs, rows_per_task = x.at_once * kUnitsPerTask;
  const int64_t parts = (x.rows + rows_per_task - 1) / rows_per_task;
  parallel_for(panels * parts, x.rows * w.inputs * w.outputs < kLeastSharedProducts ? 1 : threads, [&](int64_t task) {
    const int64_t begin = task % parts * rows_per_task;
    body(task / parts, begin, begin + rows_per_task < x.rows ? begin + rows_per_task : x.rows);
  });
}

}  // namespace
}  // namespace triserve
