// Activations on blocks of floats. Every element gets the same operations wherever it stands.
#pragma once

#include "common.h"

namespace triserve {

// As kernels/native/arguments.py numbers them.
enum Activation : int64_t { NONE = 0, SILU = 1, GELU = 2, GELU_TANH = 3, RELU = 4, SIGMOID = 5 };

namespace {

// e^x within 2 units of the last place; 0 and infinity where it leaves the range; what is not a number stays so.
inline float exp_of(float x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  float bounded = x > 88.72283f ? 88.72283f : x;
  bounded = bounded < -87.33654f ? -87.33654f : bounded;
  const float shifted = bounded * 1.44269504f + kRounder;
  const float whole = shifted - kRounder;
  const float rest = (bounded - whole * 0.693359375f) - whole * -2.12194440e-4f;
  float sum = 1.9875691500e-4f;
  sum = sum * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * (rest * rest) + rest + 1.0f;
  // Twice half the power: 2^128 has no float.
  const int32_t power = static_cast<int32_t>(bits_of(shifted) - bits_of(kRounder));
  const uint32_t half = static_cast<uint32_t>(power >> 1), other = static_cast<uint32_t>(power - (power >> 1));
  const uint32_t half_bits = (half + 127u) << 23, other_bits = (other + 127u) << 23;
  float scale, other_scale;
  std::memcpy(&scale, &half_bits, sizeof scale);
  std::memcpy(&other_scale, &other_bits, sizeof other_scale);
  const float value = sum * scale * other_scale;
  return x < -87.33654f ? 0.0f : x > 88.72283f ? HUGE_VALF : value;
}

inline float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(-x)); }

// The error function within 1.2e-7 of itself: Chebyshev's fit of erfc (Numerical Recipes).
inline float erfc_of(float x) {
  const float magnitude = x < 0.0f ? -x : x;
  const float t = 1.0f / (1.0f + 0.5f * magnitude);
  float sum = 0.17087277f;
  sum = sum * t - 0.82215223f;
  sum = sum * t + 1.48851587f;
  sum = sum * t - 1.13520398f;
  sum = sum * t + 0.27886807f;
  sum = sum * t - 0.18628806f;
  sum = sum * t + 0.09678418f;
  sum = sum * t + 0.37409196f;
  sum = sum * t + 1.00002368f;
  sum = sum * t - 1.26551223f;
  const float tail = t * exp_of(-magnitude * magnitude + sum);
  return x < 0.0f ? 2.0f - tail : tail;
}

inline float activated(float x, Activation activation) {
  switch (activation) {
    case SILU:
      return x / (1.0f + exp_of(-x));
    case GELU:
      return 0.5f * x * erfc_of(x * -0.70710678f);
    case GELU_TANH:
      return x * sigmoid_of(1.59576912f * (x + 0.044715f * x * x * x));
    case RELU:
      return x < 0.0f ? 0.0f : x;
    case SIGMOID:
      return sigmoid_of(x);
    default:
      return x;
  }
}

template <Activation ACTIVATION>
void activate_all(float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = activated(values[i], ACTIVATION);
}

inline void activate(float* values, int64_t count, int64_t activation) {
  switch (activation) {
    case SILU:
      return activate_all<SILU>(values, count);
    case GELU:
      return activate_all<GELU>(values, count);
    case GELU_TANH:
      return activate_all<GELU_TANH>(values, count);
    case RELU:
      return activate_all<RELU>(values, count);
    case SIGMOID:
      return activate_all<SIGMOID>(values, count);
    default:
      return;
  }
}

}  // namespace
}  // namespace triserve
