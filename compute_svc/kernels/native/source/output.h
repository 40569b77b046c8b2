// Where a product's results go.
#pragma once

#include "common.h"

namespace triserve {

// A residual to add, or other factor, and where results go: [rows, outputs] of T.
template <class T>
struct Output {
  T* data;
  const T* add;
};

// Writes outputs from `first` on, `width` of them or as many as there are, of some rows: values [rows, width].
template <class T>
void write_block(const float* values, int64_t width, int64_t first, int64_t outputs, int64_t row, int64_t rows, Output<T> out) {
  const int64_t count = first + width < outputs ? width : outputs - first;
  for (int64_t r = 0; r < rows; ++r, values += width) {
    const int64_t at = (row + r) * outputs + first;
    if (out.add == nullptr) {
      for (int64_t i = 0; i < count; ++i) narrow(values[i], out.data + at + i);
    } else {
      for (int64_t i = 0; i < count; ++i) narrow(values[i] + widen(out.add[at + i]), out.data + at + i);
    }
  }
}

}  // namespace triserve
