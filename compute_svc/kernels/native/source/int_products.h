// Products of int8 rows with packed integer weights.
#pragma once

#include <type_traits>
#include <utility>

#include "int_vectors.h"

namespace triserve {

// As kernels/int_linear/native.py lays it out. Outputs stand in tiles of 16; of a tile, every four inputs are 64 bytes, the four of each output
// together, and with 4 bits the next four inputs are the upper halves of the same bytes; with AVX2 bytes of 8 bits are first two of each
// output and then the other two. Tiles that are multiplied at once stand in each other,
// so that a weight is read as one stream: several cost a third of the memory's speed.
struct IntWeight {
  const uint8_t* data;   // [tiles / at once, inputs / 4, at once, 16, 4] of 8 bits, inputs / 8 of twice 4 bits
  const void* scales;    // [tiles / at once, groups, at once, 16] float16 or float32
  const void* offsets;   // as scales; null = none
  const float* bias;     // [tiles * 16]; null = none
  int64_t columns;       // inputs before they were filled up
  int64_t inputs;        // a multiple of 8
  int64_t outputs;
  int64_t group;  // inputs that share a scale, a multiple of 8; the last group may be shorter
  int64_t groups;
  int64_t bits;
  int64_t zero_point;  // what was added to the codes
  int64_t half_scales;  // whether scales are float16; offsets are as scales
  int64_t row_groups;  // scales of a row that is quantised for it: 1, or groups
};

// Rows of activations as a weight takes them: together by the few that are multiplied at once, so that those are read as one stream.
struct IntRows {
  const void* codes;     // by rows at once: [inputs / 4, rows, 4] of CodeFor<the weight's bits>
  const float* scales;   // [rows, scale_groups]
  int64_t scale_groups;  // 1, or the weight's
  const int32_t* sums;   // [rows, groups] of the codes of a group of inputs
  int64_t rows;
  int64_t at_once;  // the last may be fewer
};

constexpr int64_t kTile = 16;
constexpr int64_t kBlock = 32;

namespace {

// What activations are when weights of so many bits are multiplied.
template <int BITS>
using CodeFor = std::conditional_t<BITS == 8, ByteCode, int8_t>;

// With several rows a weight is read slower than memory gives it, but not so slowly that what the processor fetches by itself is there in
// time: 5 to 15 %, of one row too. Into the second cache: the first has what rows need.
constexpr int64_t kPrefetchBytes = 4096;

inline void fetch_ahead(const uint8_t* from) { __builtin_prefetch(from + kPrefetchBytes, 0, 2); }

inline Floats load_scales(const IntWeight& w, const void* scales, int64_t at) {
  return w.half_scales ? load(static_cast<const float16*>(scales) + at) : load(static_cast<const float*>(scales) + at);
}

template <int R, int T>
void clear(Floats (&totals)[R][T]) {
  TRISERVE_UNROLLED for (int r = 0; r < R; ++r)
    TRISERVE_UNROLLED for (int t = 0; t < T; ++t) totals[r][t] = zeros();
}

// R rows times T tiles: out[r * kBlock + t * kTile + i]. With one group, totals take no registers in the inner loop.
template <int R, int T, int BITS, bool GROUPED>
void multiply_tiles(const IntWeight& w, int64_t tile, const IntRows& x, int64_t row, float* out) {
  const uint8_t* data = w.data + tile * (w.inputs * kTile * BITS / 8);
  const auto* codes = static_cast<const CodeFor<BITS>*>(x.codes) + row * w.inputs;
  const int32_t* sums = x.sums + row * w.groups;
  const float* row_scales = x.scales + row * x.scale_groups;
  Floats totals[R][T];
  if constexpr (GROUPED) clear<R, T>(totals);
  for (int64_t g = 0; g < (GROUPED ? w.groups : 1); ++g) {
    const int64_t begin = g * w.group, end = begin + w.group < w.inputs ? begin + w.group : w.inputs;
    Ints acc[R][T];
    TRISERVE_UNROLLED for (int r = 0; r < R; ++r) {
      const int32_t start = -static_cast<int32_t>(w.zero_point) * sums[r * w.groups + g];
      TRISERVE_UNROLLED for (int t = 0; t < T; ++t) acc[r][t] = all(start);
    }
    if constexpr (BITS == 8) {
      for (int64_t k = begin; k < end; k += 4) {
        decltype(load_bytes(data)) weights[T];
        TRISERVE_UNROLLED for (int t = 0; t < T; ++t) {
          const uint8_t* from = data + k * (T * kTile) + t * 64;
          fetch_ahead(from);
          weights[t] = load_bytes(from);
        }
        TRISERVE_UNROLLED for (int r = 0; r < R; ++r) {
          TRISERVE_UNROLLED for (int t = 0; t < T; ++t) dot_bytes(acc[r][t], weights[t], codes + k * R + r * 4);
        }
      }
    } else {
      for (int64_t k = begin; k < end; k += 8) {
        Codes low[T], high[T];
        TRISERVE_UNROLLED for (int t = 0; t < T; ++t) {
          const uint8_t* from = data + k * (T * kTile / 2) + t * 64;
          fetch_ahead(from);
          load_halves(from, &low[t], &high[t]);
        }
        TRISERVE_UNROLLED for (int r = 0; r < R; ++r) {
          const CodeFor<BITS>*four = codes + k * R + r * 4, *next = four + 4 * R;
          TRISERVE_UNROLLED for (int t = 0; t < T; ++t) dot_halves(acc[r][t], low[t], four, high[t], next);
        }
      }
    }
    if constexpr (!GROUPED) clear<R, T>(totals);
    const float* of_group = row_scales + (x.scale_groups > 1 ? g : 0);
    TRISERVE_UNROLLED for (int t = 0; t < T; ++t) {
      const int64_t at = (tile * w.groups + g * T + t) * kTile;
      const Floats scale = load_scales(w, w.scales, at);
      TRISERVE_UNROLLED for (int r = 0; r < R; ++r) {
        totals[r][t] = totals[r][t] + to_floats(acc[r][t]) * all(of_group[r * x.scale_groups]) * scale;
      }
      if (w.offsets == nullptr) continue;
      const Floats offset = load_scales(w, w.offsets, at);
      TRISERVE_UNROLLED for (int r = 0; r < R; ++r) {
        const float sum = static_cast<float>(sums[r * w.groups + g]) * of_group[r * x.scale_groups];
        totals[r][t] = totals[r][t] + all(sum) * offset;
      }
    }
  }
  TRISERVE_UNROLLED for (int r = 0; r < R; ++r)
    TRISERVE_UNROLLED for (int t = 0; t < T; ++t) store(totals[r][t], out + r * kBlock + t * kTile);
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

// A block of outputs of a few rows: out[r * kBlock + i] = the row's product with output block * kBlock + i, plus bias.
inline void multiply_block(const IntWeight& w, int64_t block, const IntRows& x, int64_t row, int rows, float* out) {
  const MultiplyTiles multiply = w.bits == 8 ? choose<8>(w, rows) : choose<4>(w, rows);
  for (int64_t t = 0; t < kBlock / kTile; t += kTilesAtOnce) multiply(w, block * (kBlock / kTile) + t, x, row, out + t * kTile);
  if (w.bias == nullptr) return;
  const float* bias = w.bias + block * kBlock;
  for (int r = 0; r < rows; ++r, out += kBlock) {
    for (int i = 0; i < kBlock; ++i) out[i] = out[i] + bias[i];
  }
}

// How many rows to multiply at once: as evenly as can be, 16 as twice 8 and not as 12 and 4.
inline int64_t rows_at_once(const IntWeight& w, int64_t rows) {
  const int64_t most = w.groups > 1 ? kGroupedRowsAtOnce : kRowsAtOnce, rounds = (rows + most - 1) / most;
  return rows == 0 ? 1 : (rows + rounds - 1) / rounds;
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

// Puts rows that are multiplied at once in each other, every four codes.
template <class Code>
void interleave(const int8_t* codes, int64_t rows, int64_t inputs, Code* out) {
  for (int64_t r = 0; r < rows; ++r, codes += inputs) {
    for (int64_t k = 0; k < inputs; k += 4) {
      for (int64_t i = 0; i < 4; ++i) out[k * rows + r * 4 + i] = codes[k + i];
    }
  }
}

// Fewer codes or products than these are not worth waking the other threads.
constexpr int64_t kLeastSharedCodes = 1 << 13;
constexpr int64_t kLeastSharedProducts = 1 << 16;

// Memory that lives through a call; slot 0 belongs to quantise.h.
enum Slot { SUMS = 1, TOGETHER = 2, QUANTISED = 3, HIDDEN = 4 };

template <class Code>
IntRows rows_of(const IntWeight& w, const int8_t* codes, const float* scales, int64_t scale_groups, int64_t rows, int64_t threads) {
  const int64_t at_once = rows_at_once(w, rows), parts = (rows + at_once - 1) / at_once;
  const bool as_they_are = at_once == 1 && sizeof(Code) == 1;
  auto* sums = scratch_of<int32_t>(SUMS, rows * w.groups);
  auto* together = as_they_are ? nullptr : scratch_of<Code>(TOGETHER, rows * w.inputs);
  parallel_for(parts, rows * w.inputs < kLeastSharedCodes ? 1 : threads, [=, &w](int64_t part) {
    const int64_t begin = part * at_once, count = begin + at_once < rows ? at_once : rows - begin;
    for (int64_t row = begin; row < begin + count; ++row) sum_groups(codes + row * w.inputs, w, sums + row * w.groups);
    if (!as_they_are) interleave(codes + begin * w.inputs, count, w.inputs, together + begin * w.inputs);
  });
  return {as_they_are ? static_cast<const void*>(codes) : together, scales, scale_groups, sums, rows, at_once};
}

// Rows [rows, inputs] of codes as a weight takes them, in memory of the calling thread.
inline IntRows rows_for(const IntWeight& w, const int8_t* codes, const float* scales, int64_t scale_groups, int64_t rows, int64_t threads) {
  return (w.bits == 8 ? rows_of<CodeFor<8>> : rows_of<CodeFor<4>>)(w, codes, scales, scale_groups, rows, threads);
}

// Rows, in units of those at once, that one thread multiplies with a block before it takes another.
constexpr int64_t kUnitsPerTask = 8;

// Runs body(block, first row, number of rows) over all blocks of outputs and all rows, those at once together.
template <class Body>
void for_each_block(const IntWeight& w, const IntRows& x, int64_t threads, const Body& body) {
  const int64_t blocks = (w.outputs + kBlock - 1) / kBlock, rows_per_task = x.at_once * kUnitsPerTask;
  const int64_t parts = (x.rows + rows_per_task - 1) / rows_per_task;
  parallel_for(blocks * parts, x.rows * w.inputs * w.outputs < kLeastSharedProducts ? 1 : threads, [&](int64_t task) {
    const int64_t block = task / parts, begin = task % parts * rows_per_task;
    const int64_t end = begin + rows_per_task < x.rows ? begin + rows_per_task : x.rows;
    for (int64_t row = begin; row < end; row += x.at_once) {
      body(block, row, static_cast<int>(row + x.at_once < end ? x.at_once : end - row));
    }
  });
}

}  // namespace
}  // namespace triserve
