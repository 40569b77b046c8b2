// Products of int8 rows with packed integer weights.
#pragma once

#include <utility>

#include "int_vectors.h"

namespace triserve {

// As kernels/int_linear/native.py lays it out. Outputs stand in tiles of 16, two to a block; of a tile, every four inputs are 64 bytes, the
// four of each output together, and with 4 bits the next four inputs are the upper halves of the same bytes.
struct IntWeight {
  const uint8_t* data;   // [tiles, inputs / 4, 16, 4] of 8 bits, [tiles, inputs / 8, 16, 4] of twice 4 bits
  const float* scales;   // [tiles, groups, 16]
  const float* offsets;  // as scales; null = none
  const float* bias;     // [tiles * 16]; null = none
  int64_t inputs;        // a multiple of 8
  int64_t outputs;
  int64_t group;  // inputs that share a scale, a multiple of 8; the last group may be shorter
  int64_t groups;
  int64_t bits;
  int64_t zero_point;  // what was added to the codes
};

// Rows of activations. [rows, inputs] codes, [rows] scales, [rows, groups] sums of a group's codes.
struct IntRows {
  const int8_t* codes;
  const float* scales;
  const int32_t* sums;
  int64_t rows;
};

constexpr int64_t kTile = 16;
constexpr int64_t kBlock = 32;

namespace {

inline int32_t load_four(const int8_t* from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  return four;
}

template <int R, int T>
void clear(Floats (&totals)[R][T]) {
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) totals[r][t] = zeros();
}

// R rows times T tiles, without the rows' scales: out[r * kBlock + t * kTile + i]. With one group, totals take no registers in the inner loop.
template <int R, int T, int BITS, bool GROUPED>
void multiply_tiles(const IntWeight& w, int64_t tile, const IntRows& x, int64_t row, float* out) {
  const int64_t tile_bytes = w.inputs * kTile * BITS / 8;
  const uint8_t* data = w.data + tile * tile_bytes;
  const int8_t* codes = x.codes + row * w.inputs;
  const int32_t* sums = x.sums + row * w.groups;
  Floats totals[R][T];
  if constexpr (GROUPED) clear<R, T>(totals);
  for (int64_t g = 0; g < (GROUPED ? w.groups : 1); ++g) {
    const int64_t begin = g * w.group, end = begin + w.group < w.inputs ? begin + w.group : w.inputs;
    Ints acc[R][T];
    for (int r = 0; r < R; ++r) {
      const int32_t start = -static_cast<int32_t>(w.zero_point) * sums[r * w.groups + g];
      for (int t = 0; t < T; ++t) acc[r][t] = all(start);
    }
    if constexpr (BITS == 8) {
      for (int64_t k = begin; k < end; k += 4) {
        Codes weights[T];
        for (int t = 0; t < T; ++t) weights[t] = load_bytes(data + t * tile_bytes + k * kTile);
        for (int r = 0; r < R; ++r) {
          const int32_t four = load_four(codes + r * w.inputs + k);
          for (int t = 0; t < T; ++t) acc[r][t] = dot_bytes(acc[r][t], weights[t], four);
        }
      }
    } else {
      for (int64_t k = begin; k < end; k += 8) {
        Codes low[T], high[T];
        for (int t = 0; t < T; ++t) load_halves(data + t * tile_bytes + k * kTile / 2, &low[t], &high[t]);
        for (int r = 0; r < R; ++r) {
          const int8_t* eight = codes + r * w.inputs + k;
          for (int t = 0; t < T; ++t) acc[r][t] = dot_halves(acc[r][t], low[t], load_four(eight), high[t], load_four(eight + 4));
        }
      }
    }
    if constexpr (!GROUPED) clear<R, T>(totals);
    for (int t = 0; t < T; ++t) {
      const int64_t at = ((tile + t) * w.groups + g) * kTile;
      const Floats scale = load(w.scales + at);
      for (int r = 0; r < R; ++r) totals[r][t] = totals[r][t] + scale * to_floats(acc[r][t]);
      if (w.offsets == nullptr) continue;
      const Floats offset = load(w.offsets + at);
      for (int r = 0; r < R; ++r) totals[r][t] = totals[r][t] + offset * all(static_cast<float>(sums[r * w.groups + g]));
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) store(totals[r][t], out + r * kBlock + t * kTile);
}

using MultiplyTiles = void (*)(const IntWeight&, int64_t, const IntRows&, int64_t, float*);

// The functions for 1, 2, ... rows.
template <int T, int BITS, bool GROUPED, int... LESS>
MultiplyTiles choose_for_rows(int rows, std::integer_sequence<int, LESS...>) {
  static constexpr MultiplyTiles kChoices[] = {multiply_tiles<LESS + 1, T, BITS, GROUPED>...};
  return kChoices[rows - 1];
}

template <int BITS>
MultiplyTiles choose(const IntWeight& w, int rows) {
  if (w.groups > 1) return choose_for_rows<kTilesAtOnce, BITS, true>(rows, std::make_integer_sequence<int, kGroupedRowsAtOnce>());
  return choose_for_rows<kTilesAtOnce, BITS, false>(rows, std::make_integer_sequence<int, kRowsAtOnce>());
}

// Rows to multiply at once.
inline int rows_at_once(const IntWeight& w) { return w.groups > 1 ? kGroupedRowsAtOnce : kRowsAtOnce; }

// A block of outputs of a few rows: out[r * kBlock + i] = the row's product with output block * kBlock + i, times the row's scale, plus bias.
inline void multiply_block(const IntWeight& w, int64_t block, const IntRows& x, int64_t row, int rows, float* out) {
  const MultiplyTiles multiply = w.bits == 8 ? choose<8>(w, rows) : choose<4>(w, rows);
  for (int64_t t = 0; t < kBlock / kTile; t += kTilesAtOnce) multiply(w, block * (kBlock / kTile) + t, x, row, out + t * kTile);
  for (int r = 0; r < rows; ++r) {
    const float scale = x.scales[row + r];
    float* of_row = out + r * kBlock;
    for (int i = 0; i < kBlock; ++i) of_row[i] = of_row[i] * scale;
    if (w.bias == nullptr) continue;
    const float* bias = w.bias + block * kBlock;
    for (int i = 0; i < kBlock; ++i) of_row[i] = of_row[i] + bias[i];
  }
}

// Sums of each group's codes of one row.
inline void sum_groups(const int8_t* codes, const IntWeight& w, int32_t* sums) {
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t begin = g * w.group, end = begin + w.group < w.inputs ? begin + w.group : w.inputs;
    int32_t sum = 0;
    for (int64_t k = begin; k < end; ++k) sum += codes[k];
    sums[g] = sum;
  }
}

// Rows that one thread multiplies with a block before it takes another.
constexpr int64_t kRowsPerTask = 64;

// Products smaller than this, in multiplications, are not worth waking the other threads.
constexpr int64_t kLeastShared = 1 << 16;

// Runs body(block, first row, number of rows) over all blocks of outputs, for at most rows_at_once rows at a time.
template <class Body>
void for_each_block(const IntWeight& w, int64_t rows, int64_t threads, const Body& body) {
  const int64_t blocks = (w.outputs + kBlock - 1) / kBlock, parts = (rows + kRowsPerTask - 1) / kRowsPerTask;
  const int at_once = rows_at_once(w);
  parallel_for(blocks * parts, rows * w.inputs * w.outputs < kLeastShared ? 1 : threads, [&](int64_t task) {
    const int64_t block = task / parts, begin = task % parts * kRowsPerTask;
    const int64_t end = begin + kRowsPerTask < rows ? begin + kRowsPerTask : rows;
    for (int64_t row = begin; row < end; row += at_once) body(block, row, static_cast<int>(end - row < at_once ? end - row : at_once));
  });
}

}  // namespace
}  // namespace triserve
