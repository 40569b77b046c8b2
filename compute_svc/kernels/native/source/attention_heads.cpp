// New queries and keys are rotated to their positions, and keys and values go to their slots, in one pass over a token's heads.
#include "common.h"

namespace triserve {
namespace {

// Numbers for which a parallel region pays.
constexpr int64_t kParallelNumbers = 1 << 16;

// Pairs (i, i + dims / 2) by their angles; every operation is rounded by itself, as in kernels/rotary.
template <class Number>
void rotate(Number* head, const float* cosines, const float* sines, int64_t dims) {
  const int64_t half = dims / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float first = widen(head[i]), second = widen(head[half + i]);
    narrow(first * cosines[i] + second * sines[i], head + i);
    narrow(second * cosines[half + i] + first * sines[half + i], head + half + i);
  }
}

template <class Number, class Stored>
void copy(const Number* from, Stored* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) narrow(widen(from[i]), to + i);
}

struct Heads {
  int64_t tokens, row_stride, num_heads, num_kv_heads, head_dim;
  const float *cosines, *sines;  // dims of each token
  int64_t dims, angles_stride;
  const int64_t* slots;
  int64_t num_slots;
};

template <class Number, class Stored>
int64_t place(Number* data, Stored* kv, const Heads& heads, int64_t threads) {
  for (int64_t token = 0; token < heads.tokens; ++token) {
    if (heads.slots[token] < 0 || heads.slots[token] >= heads.num_slots) return token;
  }
  const int64_t numbers = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim;
  parallel_for(heads.tokens, heads.tokens * numbers < kParallelNumbers ? 1 : threads, [&](int64_t token) {
    Number* row = data + token * heads.row_stride;
    if (heads.dims > 0) {
      for (int64_t head = 0; head < heads.num_heads + heads.num_kv_heads; ++head) {
        rotate(row + head * heads.head_dim, heads.cosines + token * heads.angles_stride, heads.sines + token * heads.angles_stride, heads.dims);
      }
    }
    for (int64_t head = 0; head < 2 * heads.num_kv_heads; ++head) {
      const int64_t place = head * heads.num_slots + heads.slots[token];
      copy(row + (heads.num_heads + head) * heads.head_dim, kv + place * heads.head_dim, heads.head_dim);
    }
  });
  return -1;
}

template <class Number>
int64_t place(Number* data, void* kv, int64_t kv_dtype, const Heads& heads, int64_t threads) {
  if (kv_dtype == BFLOAT16) return place(data, static_cast<bfloat16*>(kv), heads, threads);
  return place(data, static_cast<float*>(kv), heads, threads);
}

}  // namespace
}  // namespace triserve

// data: [tokens, num_heads + 2 * num_kv_heads, head_dim] of dtype, a row's heads side by side: queries, keys, values. cosines and sines:
// [tokens, dims], rows angles_stride apart. kv: [2 * num_kv_heads, num_slots, head_dim]. wrong: the first token
// whose slot is not in the store, and then nothing is done; -1 = none.
TRISERVE_EXPORT void triserve_place_heads(
    void* data, int64_t dtype, int64_t tokens, int64_t row_stride, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
    const float* cosines, const float* sines, int64_t dims, int64_t angles_stride, const int64_t* slots, void* kv, int64_t kv_dtype, int64_t num_slots,
    int64_t threads, int64_t* wrong) {
  using namespace triserve;
  const Heads heads{tokens, row_stride, num_heads, num_kv_heads, head_dim, cosines, sines, dims, angles_stride, slots, num_slots};
  *wrong = dtype == BFLOAT16 ? place(static_cast<bfloat16*>(data), kv, kv_dtype, heads, threads)
                             : place(static_cast<float*>(data), kv, kv_dtype, heads, threads);
}
