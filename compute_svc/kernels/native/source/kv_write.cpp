// New keys and values as int8 codes in groups, into their slots of the store. The bits are those of kernels/paged_kv/kv_codes.py.
#include "common.h"

namespace triserve {
namespace {

// Numbers of fewer rows than this together are not worth waking the other threads.
constexpr int64_t kLeastShared = 1 << 15;
// Added and taken away it rounds what is small beside it to a whole number, half to even.
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
constexpr uint16_t kLargestHalf = 0x7bff;  // 65504
constexpr uint16_t kNoHalf = 0x7e00;       // what is not a number

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The smallest float16 that is no less than a finite number from 0 on; the largest there is if that is less.
uint16_t half_above(float exact) {
  if (exact > 65504.0f) return kLargestHalf;
  const uint32_t bits = bits_of(exact);
  // Below 2^-14 float16 numbers are the multiples of 2^-24. Else a float's last 13 bits go, and the exponent counts from another end.
  if (bits < 0x38800000u) return static_cast<uint16_t>(std::ceil(exact * 16777216.0f));
  return static_cast<uint16_t>(((bits + 0x1fffu) >> 13) - (112u << 10));
}

float widen_half(uint16_t half) {
  if (half < 0x0400u) return static_cast<float>(half) * 5.9604644775390625e-8f;  // 2^-24
  return float_of((static_cast<uint32_t>(half) << 13) + (112u << 23));
}

// Writes the codes of one group of `count` numbers and returns its scale.
template <class T>
uint16_t encode_group(const T* x, int64_t count, int8_t* codes) {
  // Bits of floats without their sign order as the floats do, with what is not a number above all.
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = bits_of(widen(x[i])) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  const bool is_finite = largest < 0x7f800000u;
  const uint16_t half = is_finite ? half_above(float_of(largest) / 127.0f) : kNoHalf;
  if (half == 0 || !is_finite) {
    std::memset(codes, 0, static_cast<size_t>(count));
    return half;
  }
  const float scale = widen_half(half);
  for (int64_t i = 0; i < count; ++i) {
    float code = widen(x[i]) / scale;
    code = code > 127.0f ? 127.0f : code;
    code = code < -127.0f ? -127.0f : code;
    codes[i] = static_cast<int8_t>(static_cast<int32_t>((code + kRounder) - kRounder));
  }
  return half;
}

struct Store {
  int8_t* codes;
  uint16_t* scales;
  int64_t slots;
  int64_t width;
  int64_t group;
};

template <class T>
void write(const T* rows, int64_t token_stride, int64_t head_stride, int64_t tokens, int64_t heads, const int64_t* slots, Store store,
           int64_t threads) {
  const int64_t groups = (store.width + store.group - 1) / store.group;
  const int64_t numbers = tokens * heads * store.width;
  parallel_for(tokens, numbers < kLeastShared ? 1 : threads, [=](int64_t token) {
    for (int64_t head = 0; head < heads; ++head) {
      const T* row = rows + token * token_stride + head * head_stride;
      const int64_t place = head * store.slots + slots[token];
      for (int64_t index = 0; index < groups; ++index) {
        const int64_t start = index * store.group;
        const int64_t left = store.width - start;
        store.scales[place * groups + index] =
            encode_group(row + start, left < store.group ? left : store.group, store.codes + place * store.width + start);
      }
    }
  });
}

}  // namespace
}  // namespace triserve

// rows: [tokens, heads, width] of dtype, strides in numbers, a head's numbers side by side; slots: [tokens]; codes: [heads, num_slots, width];
// scales: [heads, num_slots, ceil(width / group)] float16. Where a slot is not below num_slots nothing is written, and wrong_slot gets it.
TRISERVE_EXPORT void triserve_kv_write_int8(const void* rows, int64_t dtype, int64_t token_stride, int64_t head_stride, int64_t tokens,
                                            int64_t heads, const int64_t* slots, int8_t* codes, uint16_t* scales, int64_t num_slots,
                                            int64_t width, int64_t group, int64_t threads, int64_t* wrong_slot) {
  using namespace triserve;
  for (int64_t token = 0; token < tokens; ++token) {
    if (slots[token] < 0 || slots[token] >= num_slots) {
      *wrong_slot = slots[token];
      return;
    }
  }
  const Store store{codes, scales, num_slots, width, group};
  if (dtype == BFLOAT16) return write(static_cast<const bfloat16*>(rows), token_stride, head_stride, tokens, heads, slots, store, threads);
  write(static_cast<const float*>(rows), token_stride, head_stride, tokens, heads, slots, store, threads);
}
