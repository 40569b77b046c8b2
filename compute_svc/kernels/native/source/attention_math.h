// Tiles of 16 numbers and the functions that attention needs of them. What a number becomes depends neither on its lane nor on the width of
// the instruction set.
#pragma once

#include <limits>

#include "lanes.h"

namespace triserve {
namespace attention {

using namespace lanes;

// As many query rows are in registers together, and as many vectors of each row's values.
constexpr int kRows = kWidth == 16 ? 4 : kWidth == 8 ? 3 : 2, kPanel = 4;

constexpr int kTile = 16, kParts = kTile / kWidth;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

inline float first_of(Lanes a) {
  float lanes[kWidth];
  store(lanes, a);
  return lanes[0];
}

// Joins 16 numbers by halves: i with i + 8, then i + 4, i + 2, i + 1.
template <class Join>
inline float joined(const Lanes (&tile)[kParts], Join join) {
  Lanes parts[kParts];
  for (int part = 0; part < kParts; ++part) parts[part] = tile[part];
  for (int half = kParts / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) parts[i] = join(parts[i], parts[i + half]);
  }
  Lanes one = parts[0];
  if constexpr (kWidth > 8) one = join(one, moved<8>(one));
  if constexpr (kWidth > 4) one = join(one, moved<4>(one));
  one = join(one, moved<2>(one));
  return first_of(join(one, moved<1>(one)));
}

// e^x: 2^n times a polynomial in what is left, within 1 ulp for x in [-87.3, 88]; below that 0. What is not a number stays so.
inline Lanes exponential(Lanes x) {
  const Lanes lowest = all(-87.3365478515625f), clamped = larger(lowest, x);
  // n + 127 in the lowest bits: 1.5 * 2^23 leaves no room for a fraction.
  const Lanes magic = all(12583039.0f), shifted = fma(clamped, all(1.44269504088896341f), magic), n = sub(shifted, magic);
  const Lanes rest = fma(n, all(1.90465432e-9f), fma(n, all(-0.693147182464599609375f), clamped));
  Lanes sum = fma(rest, all(1.393454499e-03f), all(8.363776840e-03f));
  sum = fma(sum, rest, all(4.166645557e-02f));
  sum = fma(sum, rest, all(1.666657329e-01f));
  sum = fma(sum, rest, all(0.5f));
  sum = fma(mul(sum, rest), rest, rest);
  return where_less(x, lowest, zero(), mul(add(sum, all(1.0f)), bits_left(shifted, 23)));
}

inline float exponential(float x) { return first_of(exponential(all(x))); }

// A polynomial near zero, by e^2x elsewhere; within 2 ulp.
inline Lanes hyperbolic_tangent(Lanes x) {
  const Lanes size = bits_and(x, 0x7fffffffu), square = mul(x, x);
  Lanes sum = fma(square, all(-6.104948930e-03f), all(2.100364305e-02f));
  sum = fma(sum, square, all(-5.385249853e-02f));
  sum = fma(sum, square, all(1.333278269e-01f));
  sum = fma(sum, square, all(-3.333332837e-01f));
  const Lanes near = fma(mul(sum, square), x, x);
  const Lanes capped = where_less(all(10.0f), size, all(10.0f), size);  // from there on it is 1
  const Lanes far = sub(all(1.0f), div(all(2.0f), add(exponential(add(capped, capped)), all(1.0f))));
  return where_less(size, all(0.625f), near, bits_or(far, bits_and(x, 0x80000000u)));
}

inline float rounded_to_bfloat16(float value) {
  bfloat16 half;
  narrow(value, &half);
  return widen(half);
}

}  // namespace attention
}  // namespace triserve
