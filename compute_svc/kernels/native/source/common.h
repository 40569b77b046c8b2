// What every source shares: the C interface, number formats, threads. No float operation may be contracted (-ffp-contract=off): a row's bits
// are those of the ATen path, which rounds every operation by itself.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512VNNI__)
#define TRISERVE_AVX512 1
#elif defined(__AVX2__)
#define TRISERVE_AVX2 1
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define TRISERVE_EXPORT extern "C" __attribute__((visibility("default")))

namespace triserve {

// Number formats of tensors, as kernels/native/library.py numbers them.
enum DType : int64_t { FLOAT32 = 0, BFLOAT16 = 1 };

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

inline float widen(float value) { return value; }

inline float widen(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// Finite numbers only.
inline float widen(float16 value) {
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13, sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  float wide;
  std::memcpy(&wide, &magnitude, sizeof wide);
  // Multiplied by 2^112 the exponent is float32's, of small numbers too.
  wide *= 5.192296858534828e33f;
  uint32_t bits;
  std::memcpy(&bits, &wide, sizeof bits);
  bits |= sign;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline void narrow(float value, float* out) { *out = value; }

// To the nearest, ties to even, as torch does; what is not a number stays so.
inline void narrow(float value, bfloat16* out) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}

// libgomp's GOMP_parallel as torch has it loaded: a second OpenMP in the process would spin against the first.
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
extern GompParallel gomp_parallel;

// Runs body(i) for every i < count. Each i is run by one thread wholly, so that threads change no bits. `threads` must be what torch uses: a
// team of another size would end threads and start them again. With 1, or one i, there is no parallel region.
template <class Body>
void parallel_for(int64_t count, int64_t threads, const Body& body) {
  if (threads <= 1 || count <= 1 || gomp_parallel == nullptr) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  struct Shared {
    const Body* body;
    std::atomic<int64_t> next;
    int64_t count;
  } shared{&body, {0}, count};
  gomp_parallel(
      [](void* argument) {
        auto* work = static_cast<Shared*>(argument);
        for (int64_t i; (i = work->next.fetch_add(1, std::memory_order_relaxed)) < work->count;) (*work->body)(i);
      },
      &shared, static_cast<unsigned>(threads), 0);
}

// Memory of the calling thread that grows and is kept: steps ask for the same sizes again and again. One user at a time: `slot` tells apart
// what is alive together.
constexpr int kScratchSlots = 16;
void* scratch(int slot, size_t bytes);

template <class T>
T* scratch_of(int slot, int64_t count) {
  return static_cast<T*>(scratch(slot, static_cast<size_t>(count) * sizeof(T)));
}

}  // namespace triserve
