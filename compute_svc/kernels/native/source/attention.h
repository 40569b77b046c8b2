// What attention is asked for, as kernels/native/attention.py lays it out.
#pragma once

#include "common.h"

namespace triserve {
namespace attention {

// A layer kind's shape and constants (AttentionSpec) and a step's requests, the same for all layers of the kind.
struct Plan {
  int64_t num_heads, num_kv_heads, head_dim, page_size, num_pages;
  int64_t window;  // 0 = none
  int64_t sinks;
  int64_t rounded_slopes;
  double scale;
  double softcap;        // 0 = none
  const float* slopes;  // [num_heads]; null = none
  int64_t num_requests;
  const int64_t* page_table;  // [num_requests, table_width]
  int64_t table_width;
  const int64_t* lengths;  // [num_requests]
  const int64_t* starts;   // [num_requests + 1]: request r's queries are rows starts[r] to starts[r + 1], its last tokens
};

// Rows of heads: [rows, heads, head_dim] of float32 or bfloat16.
struct Heads {
  const void* data;  // null = none
  int64_t dtype, row_stride, head_stride;

  // One head as floats, with zeros up to `width`.
  void read(int64_t row, int64_t head, int64_t head_dim, int64_t width, float* to) const {
    const int64_t place = row * row_stride + head * head_stride;
    if (dtype == BFLOAT16) {
      const bfloat16* from = static_cast<const bfloat16*>(data) + place;
      for (int64_t d = 0; d < head_dim; ++d) to[d] = widen(from[d]);
    } else {
      std::memcpy(to, static_cast<const float*>(data) + place, static_cast<size_t>(head_dim) * sizeof(float));
    }
    for (int64_t d = head_dim; d < width; ++d) to[d] = 0.0f;
  }
};

// A layer's tensors.
struct Layer {
  Heads queries, sink_queries;
  const float* sink_logits;  // [num_heads]; null = none
  const void* kv;            // [2 * num_kv_heads, num_pages, page_size, head_dim]
  int64_t kv_dtype;
  const uint16_t* scales;  // [2 * num_kv_heads, num_pages, page_size, ceil(head_dim / group)] float16; null = kv are numbers, not codes
  int64_t group;
  void* out;  // [rows, num_heads * head_dim] of the queries' dtype
  int64_t out_row_stride;
};

}  // namespace attention
}  // namespace triserve
