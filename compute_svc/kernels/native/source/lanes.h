// Vectors of floats as attention and products use them: kWidth lanes of the instruction set that this build is for. Every operation gives the same bits in
// a lane whatever the width: products and sums are fused (one rounding), which each instruction set and std::fma do alike.
#pragma once

#include "common.h"

namespace triserve {
namespace lanes {

#if defined(TRISERVE_AVX512)

constexpr int kWidth = 16;

struct Lanes {
  __m512 v;
};

inline Lanes zero() { return {_mm512_setzero_ps()}; }
inline Lanes all(float value) { return {_mm512_set1_ps(value)}; }
inline Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline Lanes load_first(const float* from, int64_t count) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), from)};
}
inline Lanes widened(__m256i halves) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))}; }
inline Lanes load(const bfloat16* from) { return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
inline Lanes load(const int8_t* from) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))))};
}
inline void store(float* to, Lanes a) { _mm512_storeu_ps(to, a.v); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes sub(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes mul(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes div(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
// a > b ? a : b in each lane: b where one is not a number.
inline Lanes larger(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
// x < limit ? a : b in each lane.
inline Lanes where_less(Lanes x, Lanes limit, Lanes a, Lanes b) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_LT_OQ), b.v, a.v)};
}
inline Lanes bits_left(Lanes a, int count) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), static_cast<unsigned>(count)))};
}
inline Lanes bits_and(Lanes a, uint32_t bits) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(static_cast<int>(bits))))};
}
inline Lanes bits_or(Lanes a, Lanes b) {
  return {_mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))};
}
// Four floats, again and again.
inline Lanes quad(const float* from) { return {_mm512_broadcast_f32x4(_mm_loadu_ps(from))}; }
// Lane i is what lane i + kStep was, for the first kStep lanes of every 2 * kStep.
template <int kStep>
inline Lanes moved(Lanes a) {
  if constexpr (kStep == 8) return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)};
  if constexpr (kStep == 4) return {_mm512_shuffle_f32x4(a.v, a.v, 0xb1)};
  return {_mm512_permute_ps(a.v, kStep == 2 ? 0x4e : 0xb1)};
}

// kWidth / 4 rows of kWidth numbers become as many vectors: the n-th holds the n-th four of each row.
inline void turn(Lanes (&rows)[kWidth / 4]) {
  const __m512 a = _mm512_shuffle_f32x4(rows[0].v, rows[1].v, 0x88), b = _mm512_shuffle_f32x4(rows[0].v, rows[1].v, 0xdd);
  const __m512 c = _mm512_shuffle_f32x4(rows[2].v, rows[3].v, 0x88), d = _mm512_shuffle_f32x4(rows[2].v, rows[3].v, 0xdd);
  rows[0].v = _mm512_shuffle_f32x4(a, c, 0x88);
  rows[1].v = _mm512_shuffle_f32x4(b, d, 0x88);
  rows[2].v = _mm512_shuffle_f32x4(a, c, 0xdd);
  rows[3].v = _mm512_shuffle_f32x4(b, d, 0xdd);
}

// Lane n of a[i]'s share, kWidth / 4 lanes from lane i * kWidth / 4 on, is the sum of the n-th four lanes of a[i]: (0 + 1) + (2 + 3).
inline Lanes sum_fours(const Lanes (&a)[4]) {
  const __m512d low = _mm512_castps_pd(_mm512_unpacklo_ps(a[0].v, a[1].v)), high = _mm512_castps_pd(_mm512_unpackhi_ps(a[0].v, a[1].v));
  const __m512d more_low = _mm512_castps_pd(_mm512_unpacklo_ps(a[2].v, a[3].v));
  const __m512d more_high = _mm512_castps_pd(_mm512_unpackhi_ps(a[2].v, a[3].v));
  const __m512 first = _mm512_castpd_ps(_mm512_unpacklo_pd(low, more_low)), second = _mm512_castpd_ps(_mm512_unpackhi_pd(low, more_low));
  const __m512 third = _mm512_castpd_ps(_mm512_unpacklo_pd(high, more_high));
  const __m512 fourth = _mm512_castpd_ps(_mm512_unpackhi_pd(high, more_high));
  const __m512 sums = _mm512_add_ps(_mm512_add_ps(first, second), _mm512_add_ps(third, fourth));
  return {_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), sums)};
}

#elif defined(TRISERVE_AVX2)

constexpr int kWidth = 8;

struct Lanes {
  __m256 v;
};

inline Lanes zero() { return {_mm256_setzero_ps()}; }
inline Lanes all(float value) { return {_mm256_set1_ps(value)}; }
inline Lanes load(const float* from) { return {_mm256_loadu_ps(from)}; }
inline Lanes load_first(const float* from, int64_t count) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {_mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes))};
}
inline Lanes widened(__m128i halves) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16))}; }
inline Lanes load(const bfloat16* from) { return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
inline Lanes load(const int8_t* from) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))))};
}
inline void store(float* to, Lanes a) { _mm256_storeu_ps(to, a.v); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes add(Lanes a, Lanes b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Lanes sub(Lanes a, Lanes b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Lanes mul(Lanes a, Lanes b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Lanes div(Lanes a, Lanes b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Lanes larger(Lanes a, Lanes b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Lanes where_less(Lanes x, Lanes limit, Lanes a, Lanes b) {
  return {_mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(x.v, limit.v, _CMP_LT_OQ))};
}
inline Lanes bits_left(Lanes a, int count) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.v), count))}; }
inline Lanes bits_and(Lanes a, uint32_t bits) {
  return {_mm256_and_ps(a.v, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(bits))))};
}
inline Lanes bits_or(Lanes a, Lanes b) { return {_mm256_or_ps(a.v, b.v)}; }
inline Lanes quad(const float* from) { return {_mm256_broadcast_ps(reinterpret_cast<const __m128*>(from))}; }
template <int kStep>
inline Lanes moved(Lanes a) {
  if constexpr (kStep == 4) return {_mm256_permute2f128_ps(a.v, a.v, 1)};
  return {_mm256_permute_ps(a.v, kStep == 2 ? 0x4e : 0xb1)};
}

inline void turn(Lanes (&rows)[kWidth / 4]) {
  const __m256 first = _mm256_permute2f128_ps(rows[0].v, rows[1].v, 0x20);
  rows[1].v = _mm256_permute2f128_ps(rows[0].v, rows[1].v, 0x31);
  rows[0].v = first;
}

inline Lanes sum_fours(const Lanes (&a)[4]) {
  const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(a[0].v, a[1].v), _mm256_hadd_ps(a[2].v, a[3].v));
  return {_mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))};
}

#else

constexpr int kWidth = 4;

struct Lanes {
  float v[4];
};

template <class Operation>
inline Lanes each(Operation operation) {
  return {{operation(0), operation(1), operation(2), operation(3)}};
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline Lanes all(float value) { return {{value, value, value, value}}; }
inline Lanes zero() { return all(0.0f); }
inline Lanes load(const float* from) { return {{from[0], from[1], from[2], from[3]}}; }
inline Lanes load_first(const float* from, int64_t count) {
  return each([=](int i) { return i < count ? from[i] : 0.0f; });
}
inline Lanes load(const bfloat16* from) {
  return each([=](int i) { return widen(from[i]); });
}
inline Lanes load(const int8_t* from) {
  return each([=](int i) { return static_cast<float>(from[i]); });
}
inline void store(float* to, Lanes a) { std::memcpy(to, a.v, sizeof a.v); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  return each([=](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
inline Lanes add(Lanes a, Lanes b) {
  return each([=](int i) { return a.v[i] + b.v[i]; });
}
inline Lanes sub(Lanes a, Lanes b) {
  return each([=](int i) { return a.v[i] - b.v[i]; });
}
inline Lanes mul(Lanes a, Lanes b) {
  return each([=](int i) { return a.v[i] * b.v[i]; });
}
inline Lanes div(Lanes a, Lanes b) {
  return each([=](int i) { return a.v[i] / b.v[i]; });
}
inline Lanes larger(Lanes a, Lanes b) {
  return each([=](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Lanes where_less(Lanes x, Lanes limit, Lanes a, Lanes b) {
  return each([=](int i) { return x.v[i] < limit.v[i] ? a.v[i] : b.v[i]; });
}
inline Lanes bits_left(Lanes a, int count) {
  return each([=](int i) { return float_of(bits_of(a.v[i]) << count); });
}
inline Lanes bits_and(Lanes a, uint32_t bits) {
  return each([=](int i) { return float_of(bits_of(a.v[i]) & bits); });
}
inline Lanes bits_or(Lanes a, Lanes b) {
  return each([=](int i) { return float_of(bits_of(a.v[i]) | bits_of(b.v[i])); });
}
inline Lanes quad(const float* from) { return load(from); }
template <int kStep>
inline Lanes moved(Lanes a) {
  return each([=](int i) { return a.v[(i + kStep) % kWidth]; });
}
inline void turn(Lanes (&)[1]) {}
inline Lanes sum_fours(const Lanes (&a)[4]) {
  return each([&](int i) { return (a[i].v[0] + a[i].v[1]) + (a[i].v[2] + a[i].v[3]); });
}

#endif

inline Lanes load_first(const bfloat16* from, int64_t count) {
  float wide[kWidth] = {};
  for (int64_t i = 0; i < count; ++i) wide[i] = widen(from[i]);
  return load(wide);
}

inline Lanes load_first(const int8_t* from, int64_t count) {
  float wide[kWidth] = {};
  for (int64_t i = 0; i < count; ++i) wide[i] = static_cast<float>(from[i]);
  return load(wide);
}

// A float16 number by its bits, exactly.
inline float half(uint16_t bits) {
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
  // Without infinities and what is not a number, a shift and another exponent; those below the smallest normal number become normal.
  uint32_t wide = rest << 13;
  float value;
  if (rest >= 0x7c00u) {
    wide |= 0x7f800000u;
    std::memcpy(&value, &wide, sizeof value);
  } else {
    std::memcpy(&value, &wide, sizeof value);
    value *= 0x1p112f;
  }
  wide = bits_of(value) | sign;
  std::memcpy(&value, &wide, sizeof value);
  return value;
#endif
}

}  // namespace lanes
}  // namespace triserve
