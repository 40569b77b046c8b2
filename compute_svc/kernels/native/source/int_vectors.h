// Sixteen outputs at a time: what the instruction sets do differently in a product of integers. Exact in all of them.
#pragma once

#include "common.h"

namespace triserve {
namespace {

// Loops over registers: left to itself GCC 12 keeps the longer ones, and with them the sums in memory.
#define TRISERVE_UNROLLED _Pragma("GCC unroll 16")

// Four codes, or two wide ones, as they stand in memory.
template <class Code>
int32_t load_four(const Code* from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  return four;
}

#if defined(TRISERVE_AVX512)

// Weights are unsigned bytes, activations signed ones; sums of four products go to 32 bits without saturation.
constexpr int kRowsAtOnce = 12, kGroupedRowsAtOnce = 6, kTilesAtOnce = 2;
// What activations are when weights of 8 bits are multiplied.
using ByteCode = int8_t;

struct Ints {
  __m512i v;
};
struct Floats {
  __m512 v;
};
struct Codes {
  __m512i v;
};

inline Ints all(int32_t value) { return {_mm512_set1_epi32(value)}; }
inline Floats zeros() { return {_mm512_setzero_ps()}; }
inline Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline Floats load(const float16* from) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))}; }
inline Floats all(float value) { return {_mm512_set1_ps(value)}; }
inline void store(Floats value, float* to) { _mm512_storeu_ps(to, value.v); }
inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats to_floats(Ints value) { return {_mm512_cvtepi32_ps(value.v)}; }

inline Codes load_bytes(const uint8_t* from) { return {_mm512_loadu_si512(from)}; }

inline void load_halves(const uint8_t* from, Codes* low, Codes* high) {
  const __m512i both = _mm512_loadu_si512(from), mask = _mm512_set1_epi8(15);
  low->v = _mm512_and_si512(both, mask);
  high->v = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
}

// By hand, as GCC 12 keeps a copy of every sum, and from 20 of them on in memory.
inline void dot_bytes(Ints& sum, const Codes& weights, const int8_t* four) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(weights.v), "v"(_mm512_set1_epi32(load_four(four))));
}

inline void dot_halves(Ints& sum, const Codes& low, const int8_t* four, const Codes& high, const int8_t* next) {
  dot_bytes(sum, low, four);
  dot_bytes(sum, high, next);
}

#elif defined(TRISERVE_AVX2)

// Bytes are widened to 16 bits, weights as they are loaded and activations once: vpmaddwd adds two products in 32 bits. That is as many
// multiplications as vpmaddubsw needs, which saturates at 32767 unless it gets one side's absolute values and the other with those signs, and
// nothing else. Halves of bytes are unsigned and small: of them vpmaddubsw adds two products, and two such sums make at most 4 * 15 * 127.
constexpr int kRowsAtOnce = 6, kGroupedRowsAtOnce = 3, kTilesAtOnce = 1;
using ByteCode = int16_t;

struct Ints {
  __m256i v[2];
};
struct Floats {
  __m256 v[2];
};
struct Codes {
  __m256i v[2];
};
// Two inputs of 8 outputs each, then of the other 8, then the next two inputs.
struct WideCodes {
  __m256i v[4];
};

inline Ints all(int32_t value) { return {{_mm256_set1_epi32(value), _mm256_set1_epi32(value)}}; }
inline Floats zeros() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
inline Floats load(const float* from) { return {{_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}}; }
inline Floats load(const float16* from) {
  const auto* halves = reinterpret_cast<const __m128i*>(from);
  return {{_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))}};
}
inline Floats all(float value) { return {{_mm256_set1_ps(value), _mm256_set1_ps(value)}}; }
inline void store(Floats value, float* to) {
  _mm256_storeu_ps(to, value.v[0]);
  _mm256_storeu_ps(to + 8, value.v[1]);
}
inline Floats operator+(Floats a, Floats b) { return {{_mm256_add_ps(a.v[0], b.v[0]), _mm256_add_ps(a.v[1], b.v[1])}}; }
inline Floats operator*(Floats a, Floats b) { return {{_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])}}; }
inline Floats to_floats(Ints value) { return {{_mm256_cvtepi32_ps(value.v[0]), _mm256_cvtepi32_ps(value.v[1])}}; }

inline WideCodes load_bytes(const uint8_t* from) {
  WideCodes codes;
  const auto* parts = reinterpret_cast<const __m128i*>(from);
  TRISERVE_UNROLLED for (int i = 0; i < 4; ++i) codes.v[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128(parts + i));
  return codes;
}

inline void load_halves(const uint8_t* from, Codes* low, Codes* high) {
  const __m256i mask = _mm256_set1_epi8(15);
  for (int i = 0; i < 2; ++i) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from) + i);
    low->v[i] = _mm256_and_si256(both, mask);
    high->v[i] = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
  }
}

inline void dot_bytes(Ints& sum, const WideCodes& weights, const int16_t* four) {
  const __m256i two = _mm256_set1_epi32(load_four(four)), next = _mm256_set1_epi32(load_four(four + 2));
  TRISERVE_UNROLLED for (int i = 0; i < 2; ++i) {
    sum.v[i] = _mm256_add_epi32(sum.v[i], _mm256_madd_epi16(weights.v[i], two));
    sum.v[i] = _mm256_add_epi32(sum.v[i], _mm256_madd_epi16(weights.v[i + 2], next));
  }
}

inline void dot_halves(Ints& sum, const Codes& low, const int8_t* four, const Codes& high, const int8_t* next) {
  const __m256i ones = _mm256_set1_epi16(1), every0 = _mm256_set1_epi32(load_four(four)), every1 = _mm256_set1_epi32(load_four(next));
  TRISERVE_UNROLLED for (int i = 0; i < 2; ++i) {
    const __m256i fours = _mm256_add_epi16(_mm256_maddubs_epi16(low.v[i], every0), _mm256_maddubs_epi16(high.v[i], every1));
    sum.v[i] = _mm256_add_epi32(sum.v[i], _mm256_madd_epi16(fours, ones));
  }
}

#else

constexpr int kRowsAtOnce = 2, kGroupedRowsAtOnce = 2, kTilesAtOnce = 1;
using ByteCode = int8_t;

struct Ints {
  int32_t v[16];
};
struct Floats {
  float v[16];
};
struct Codes {
  int8_t v[64];
};

inline Ints all(int32_t value) {
  Ints made;
  for (int i = 0; i < 16; ++i) made.v[i] = value;
  return made;
}
inline Floats all(float value) {
  Floats made;
  for (int i = 0; i < 16; ++i) made.v[i] = value;
  return made;
}
inline Floats zeros() { return all(0.0f); }
inline Floats load(const float* from) {
  Floats made;
  std::memcpy(made.v, from, sizeof made.v);
  return made;
}
inline Floats load(const float16* from) {
  Floats made;
  for (int i = 0; i < 16; ++i) made.v[i] = widen(from[i]);
  return made;
}
inline void store(Floats value, float* to) { std::memcpy(to, value.v, sizeof value.v); }
inline Floats operator+(Floats a, Floats b) {
  for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
  return a;
}
inline Floats operator*(Floats a, Floats b) {
  for (int i = 0; i < 16; ++i) a.v[i] *= b.v[i];
  return a;
}
inline Floats to_floats(Ints value) {
  Floats made;
  for (int i = 0; i < 16; ++i) made.v[i] = static_cast<float>(value.v[i]);
  return made;
}

inline Codes load_bytes(const uint8_t* from) {
  Codes codes;
  std::memcpy(codes.v, from, sizeof codes.v);
  return codes;
}

inline void load_halves(const uint8_t* from, Codes* low, Codes* high) {
  for (int i = 0; i < 64; ++i) {
    low->v[i] = static_cast<int8_t>(from[i] & 15);
    high->v[i] = static_cast<int8_t>(from[i] >> 4);
  }
}

inline void dot_bytes(Ints& sum, const Codes& weights, const int8_t* each) {
  for (int i = 0; i < 16; ++i) {
    const int8_t* four = weights.v + 4 * i;
    sum.v[i] += four[0] * each[0] + four[1] * each[1] + four[2] * each[2] + four[3] * each[3];
  }
}

inline void dot_halves(Ints& sum, const Codes& low, const int8_t* four, const Codes& high, const int8_t* next) {
  dot_bytes(sum, low, four);
  dot_bytes(sum, high, next);
}

#endif

}  // namespace
}  // namespace triserve
