// Rows of activations to int8, with a scale for each row, or for each group of a row's numbers.
#pragma once

#include "normalise.h"

namespace triserve {

// Added and taken away it rounds what is small beside it to a whole number, half to even.
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23

// Quantises one group held as float32: scale = max |x| / 127, code = x / scale rounded half to even. A group of zeros, or whose scale is not
// a finite number above zero, has codes 0; the scale tells which.
inline float quantise_group(const float* x, int64_t count, int8_t* codes) {
  // Bits of floats without their sign order as the floats do, with what is not a number above all.
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  float amax;
  std::memcpy(&amax, &largest, sizeof amax);
  const float scale = amax / 127.0f;
  if (!(scale > 0.0f) || !(scale < HUGE_VALF)) {
    std::memset(codes, 0, static_cast<size_t>(count));
    return scale;
  }
  for (int64_t i = 0; i < count; ++i) {
    // A scale so small that it is rounded itself can give more than 127.
    float code = x[i] / scale;
    code = code > 127.0f ? 127.0f : code;
    code = code < -127.0f ? -127.0f : code;
    codes[i] = static_cast<int8_t>(static_cast<int32_t>((code + kRounder) - kRounder));
  }
  return scale;
}

// Normalises and quantises one row into scales, one for each `group` numbers, the last for fewer, and codes, which have room for `padded` of
// which the last are zeros.
template <class T>
void quantise_row(const T* x, int64_t count, int64_t padded, int64_t group, Norm norm, int8_t* codes, float* scales) {
  const float* wide;
  float* made = scratch_of<float>(0, count);
  if (norm.weight != nullptr) {
    normalise_row(x, count, norm, made);
    wide = made;
  } else if constexpr (sizeof(T) == sizeof(float)) {
    wide = x;
  } else {
    for (int64_t i = 0; i < count; ++i) made[i] = widen(x[i]);
    wide = made;
  }
  std::memset(codes + count, 0, static_cast<size_t>(padded - count));
  for (int64_t begin = 0; begin < count; begin += group) {
    *scales++ = quantise_group(wide + begin, begin + group < count ? group : count - begin, codes + begin);
  }
}

}  // namespace triserve
