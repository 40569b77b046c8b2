// The library itself: what it was built for, torch's threads, scratch memory.
#include "common.h"

namespace triserve {

GompParallel gomp_parallel = nullptr;

namespace {

struct Scratch {
  void* data[kScratchSlots] = {};
  size_t bytes[kScratchSlots] = {};
  ~Scratch() {
    for (void* part : data) std::free(part);
  }
};

thread_local Scratch own_scratch;

}  // namespace

void* scratch(int slot, size_t bytes) {
  Scratch& own = own_scratch;
  if (own.bytes[slot] < bytes) {
    std::free(own.data[slot]);
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    own.data[slot] = std::aligned_alloc(64, rounded);
    if (own.data[slot] == nullptr) std::abort();
    own.bytes[slot] = rounded;
  }
  return own.data[slot];
}

}  // namespace triserve

// GOMP_parallel of the OpenMP that torch has loaded; null = everything runs on the calling thread.
TRISERVE_EXPORT void triserve_use_threads_of(triserve::GompParallel gomp_parallel) { triserve::gomp_parallel = gomp_parallel; }

// Runs body(argument, i) for every i < count on the threads: what known-answer tests check the threads with.
TRISERVE_EXPORT void triserve_count_up(int64_t* counts, int64_t count, int64_t threads) {
  triserve::parallel_for(count, threads, [=](int64_t i) { counts[i] += i; });
}
