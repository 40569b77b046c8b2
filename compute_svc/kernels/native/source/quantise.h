// Rows of activations to int8, one scale a row.
#pragma once

#include "common.h"

namespace triserve {

// Added and taken away it rounds what is small beside it to a whole number, half to even.
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23

// Quantises one row held as float32: scale = max |x| / 127, code = x / scale rounded half to even. A row of zeros, or whose scale is not a
// finite number above zero, has codes 0; the scale tells which.
inline float quantise_row(const float* x, int64_t count, int8_t* codes) {
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

}  // namespace triserve
