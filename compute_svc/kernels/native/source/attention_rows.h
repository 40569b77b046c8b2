// Products of query rows with keys, and of weights with values, for rows of the store wherever they lie.
#pragma once

#include <type_traits>

#include "attention_math.h"

namespace triserve {
namespace attention {

constexpr int kChunk = 128;

// Keys or values of one head as the store has them: numbers, or codes in groups with a float16 scale each (kernels/paged_kv/kv_codes.py).
//
// kWhole: head_dim is a multiple of 16, so that no vector reaches past a row.
template <class Number, bool kWhole>
struct Rows {
  const Number* data;
  int64_t head_dim;
  const uint16_t* scales;  // [rows, ceil(head_dim / group)] of codes
  int64_t group;

  inline Lanes at(int64_t row, int64_t d) const {
    const Number* from = data + row * head_dim + d;
    if (!kWhole && d + kWidth > head_dim) {
      if (d >= head_dim) return zero();
      return scaled(load_first(from, head_dim - d), row, d);
    }
    return scaled(load(from), row, d);
  }

 private:
  inline Lanes scaled(Lanes numbers, int64_t row, int64_t d) const {
    if constexpr (std::is_same<Number, int8_t>::value) return mul(numbers, scales_at(row, d));
    return numbers;
  }

  inline Lanes scales_at(int64_t row, int64_t d) const {
    const uint16_t* own = scales + row * ((head_dim + group - 1) / group);
    if (group % kWidth == 0) return all(half(own[d / group]));
    float lanes[kWidth] = {};
    for (int64_t i = 0; i < kWidth && d + i < head_dim; ++i) lanes[i] = half(own[(d + i) / group]);
    return load(lanes);
  }
};

// Calls body with count as a constant, from 1 to kMost.
template <int kMost, class Body>
inline void with_count(int count, const Body& body) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_count<kMost - 1>(count, body);
  }
  body(std::integral_constant<int, kMost>());
}

// A query times 16 keys, each a sum of four sums: over dimensions 0, 4, 8..., over 1, 5, 9... and so on.
//
// q: [kCount, width] floats. key_rows: the tile's 16 rows. scores: [kCount, kChunk], 16 of each are written.
template <int kCount, class Keys>
__attribute__((noinline)) void score_rows(const float* q, int64_t width, const Keys& keys, const int64_t* key_rows, float* scores) {
  constexpr int kFours = kWidth / 4;
  for (int part = 0; part < kParts; ++part) {
    Lanes sums[kCount][4];
    for (int i = 0; i < 4; ++i) {
      const int64_t* rows = key_rows + part * kWidth + i * kFours;
      Lanes own[kCount];
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r) own[r] = zero();
      for (int64_t d = 0; d < width; d += kWidth) {
        Lanes turned[kFours];
#pragma GCC unroll 4
        for (int n = 0; n < kFours; ++n) turned[n] = keys.at(rows[n], d);
        turn(turned);
#pragma GCC unroll 4
        for (int n = 0; n < kFours; ++n) {
#pragma GCC unroll 4
          for (int r = 0; r < kCount; ++r) own[r] = fma(quad(q + r * width + d + 4 * n), turned[n], own[r]);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r) sums[r][i] = own[r];
    }
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) store(scores + r * kChunk + part * kWidth, sum_fours(sums[r]));
  }
}

// The tile's keys as score_turned reads them. turned: 16 * width floats.
template <class Keys>
__attribute__((noinline)) void turn_keys(int64_t width, const Keys& keys, const int64_t* key_rows, float* turned) {
  constexpr int kFours = kWidth / 4;
  for (int part = 0; part < kParts; ++part) {
    for (int i = 0; i < 4; ++i) {
      for (int64_t d = 0; d < width; d += kWidth) {
        Lanes rows[kFours];
        for (int n = 0; n < kFours; ++n) rows[n] = keys.at(key_rows[part * kWidth + i * kFours + n], d);
        turn(rows);
        for (int n = 0; n < kFours; ++n) store(turned + ((part * width + d) / 4 + n) * 4 * kWidth + i * kWidth, rows[n]);
      }
    }
  }
}

// As score_rows, of keys that turn_keys has turned.
template <int kCount>
__attribute__((noinline)) void score_turned(const float* q, int64_t width, const float* turned, float* scores) {
  for (int part = 0; part < kParts; ++part) {
    Lanes sums[kCount][4];
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[r][i] = zero();
    }
    const float* from = turned + part * width * kWidth;
    for (int64_t d = 0; d < width; d += 4, from += 4 * kWidth) {
      Lanes queries[kCount];
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r) queries[r] = quad(q + r * width + d);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Lanes keys = load(from + i * kWidth);
#pragma GCC unroll 4
        for (int r = 0; r < kCount; ++r) sums[r][i] = fma(queries[r], keys, sums[r][i]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) store(scores + r * kChunk + part * kWidth, sum_fours(sums[r]));
  }
}

// Which of a chunk's tokens a row sees: [first, end), counted from the chunk's first.
struct Seen {
  int first, end;
};

// Adds weighted values of tokens [from, to) to one row's sums, token by token. out: width floats.
template <class Values>
__attribute__((noinline)) void add_values(
    const float* weights, int from, int to, const Values& values, const int64_t* value_rows, float* out, int64_t width) {
  for (int token = from; token < to; ++token) {
    const Lanes weight = all(weights[token]);
    for (int64_t d = 0; d < width; d += kWidth) store(out + d, fma(weight, values.at(value_rows[token], d), load(out + d)));
  }
}

// The same for the tokens that kCount rows have in common, kVectors vectors from dimension d on.
template <int kCount, int kVectors, class Values>
__attribute__((noinline)) void add_shared_values(
    const float* weights, int from, int to, const Values& values, const int64_t* value_rows, int64_t d, float* out, int64_t width) {
  Lanes sums[kCount][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = load(out + r * width + d + v * kWidth);
  }
  for (int token = from; token < to; ++token) {
    Lanes own[kCount];
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) own[r] = all(weights[r * kChunk + token]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Lanes value = values.at(value_rows[token], d + v * kWidth);
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r) sums[r][v] = fma(own[r], value, sums[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(out + r * width + d + v * kWidth, sums[r][v]);
  }
}

// Weighted values of kCount rows, summed token by token, each row over what it sees alone.
//
// weights: [kCount, kChunk]. value_rows: the chunk's rows. out: [kCount, width].
template <int kCount, class Values>
inline void sum_values(
    const float* weights, const Seen* seen, const Values& values, const int64_t* value_rows, float* out, int64_t width) {
  std::memset(out, 0, static_cast<size_t>(kCount * width) * sizeof(float));
  int first = seen[0].first, end = seen[0].end;
  for (int r = 1; r < kCount; ++r) {
    first = seen[r].first > first ? seen[r].first : first;
    end = seen[r].end < end ? seen[r].end : end;
  }
  const bool shared = first < end;
  for (int r = 0; r < kCount; ++r) {
    add_values(weights + r * kChunk, seen[r].first, shared ? first : seen[r].end, values, value_rows, out + r * width, width);
  }
  if (!shared) return;
  int64_t d = 0;
  for (; d + kPanel * kWidth <= width; d += kPanel * kWidth) {
    add_shared_values<kCount, kPanel>(weights, first, end, values, value_rows, d, out, width);
  }
  for (; d < width; d += kWidth) add_shared_values<kCount, 1>(weights, first, end, values, value_rows, d, out, width);
  for (int r = 0; r < kCount; ++r) {
    add_values(weights + r * kChunk, end, seen[r].end, values, value_rows, out + r * width, width);
  }
}

// The store of a layer, of whatever numbers or codes: keys of num_kv_heads heads, then values.
class Store {
 public:
  // Heads are whole vectors: their rows can be read where they lie.
  virtual bool is_whole() const = 0;
  // Rows are the numbers themselves, in float32.
  virtual bool is_plain() const = 0;
  virtual void turn(int64_t head, const int64_t* rows, int64_t width, float* turned) const = 0;
  virtual void copy(int64_t head, int64_t row, int64_t width, float* to) const = 0;
  virtual void score(int count, const float* q, int64_t width, int64_t head, const int64_t* rows, float* scores) const = 0;
  // Asks for rows that are read soon. Pages lie anywhere, and what a processor fetches ahead by itself ends with each.
  virtual void prefetch(int64_t head, const int64_t* rows, int64_t count) const = 0;
  virtual void sum(int count, const float* weights, const Seen* seen, int64_t head, const int64_t* rows, float* out, int64_t width) const = 0;

 protected:
  ~Store() = default;
};

template <class Values>
inline void sum_any(
    int count, const float* weights, const Seen* seen, const Values& values, const int64_t* rows, float* out, int64_t width) {
  with_count<kRows>(count, [&](auto constant) { sum_values<decltype(constant)::value>(weights, seen, values, rows, out, width); });
}

template <class Number, bool kWhole>
class StoreOf final : public Store {
 public:
  StoreOf(const void* data, int64_t head_rows, int64_t head_dim, const uint16_t* scales, int64_t group)
      : rows_{static_cast<const Number*>(data), head_dim, scales, group}, head_rows_(head_rows) {}

  bool is_whole() const override { return kWhole; }

  bool is_plain() const override { return kWhole && std::is_same<Number, float>::value; }

  void turn(int64_t head, const int64_t* rows, int64_t width, float* turned) const override {
    turn_keys(width, of_head(head), rows, turned);
  }

  void copy(int64_t head, int64_t row, int64_t width, float* to) const override {
    const auto from = of_head(head);
    for (int64_t d = 0; d < width; d += kWidth) store(to + d, from.at(row, d));
  }

  void score(int count, const float* q, int64_t width, int64_t head, const int64_t* rows, float* scores) const override {
    if constexpr (kWhole) {
      with_count<kRows>(count, [&](auto constant) { score_rows<decltype(constant)::value>(q, width, of_head(head), rows, scores); });
    }
  }

  void prefetch(int64_t head, const int64_t* rows, int64_t count) const override {
    constexpr int64_t kLine = 64;
    const auto from = of_head(head);
    const int64_t row_bytes = from.head_dim * static_cast<int64_t>(sizeof(Number));
    const int64_t scale_bytes = from.scales == nullptr ? 0 : (from.head_dim + from.group - 1) / from.group * static_cast<int64_t>(sizeof(uint16_t));
    for (int64_t i = 0, together; i < count; i += together) {
      // Tokens of a page lie behind each other.
      for (together = 1; i + together < count && rows[i + together] == rows[i] + together;) ++together;
      const char* data = reinterpret_cast<const char*>(from.data) + rows[i] * row_bytes;
      for (int64_t at = 0; at < together * row_bytes; at += kLine) __builtin_prefetch(data + at);
      const char* scales = reinterpret_cast<const char*>(from.scales) + rows[i] * scale_bytes;
      for (int64_t at = 0; at < together * scale_bytes; at += kLine) __builtin_prefetch(scales + at);
    }
  }

  void sum(int count, const float* weights, const Seen* seen, int64_t head, const int64_t* rows, float* out, int64_t width) const override {
    if constexpr (kWhole) sum_any(count, weights, seen, of_head(head), rows, out, width);
  }

 private:
  Rows<Number, kWhole> of_head(int64_t head) const {
    Rows<Number, kWhole> of = rows_;
    of.data += head * head_rows_ * of.head_dim;
    if (of.scales != nullptr) of.scales += head * head_rows_ * ((of.head_dim + of.group - 1) / of.group);
    return of;
  }

  const Rows<Number, kWhole> rows_;
  const int64_t head_rows_;
};

}  // namespace attention
}  // namespace triserve
