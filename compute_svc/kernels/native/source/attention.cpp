// Attention over KV pages, where they lie: decode rows and prefill chunks alike. What it computes is defined in kernels/native/attention.py.
#include "attention.h"

#include "attention_rows.h"

namespace triserve {
namespace attention {
namespace {

// Query rows of a block: they share turned keys and what a cache holds.
constexpr int64_t kMaxRows = 96;
// Multiplications for which a parallel region pays.
constexpr double kParallelWork = 1 << 19;
// Tiles of keys that are asked for before they are read.
constexpr int kTilesAhead = 2;
// Scratch slots: of the calling thread, and of every thread.
enum Slot { TASKS = 4, PARTS = 5, BLOCK = 6 };

int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// A stretch of chunks for consecutive queries of a request and the heads that share a key head. With sinks its sink section is unit 0.
struct Task {
  int64_t request, kv_head, first_row, num_queries, position;  // of the first query
  int64_t first_chunk, num_units;                              // of all its tasks together
  int64_t unit, end_unit;                                      // of this one
  int64_t part;                                                // where its units' sums go in the parts; -1 = it has all units
};

// Softmax sums of one row: the largest score, the sum of the weights, and [width] weighted values.
struct Sums {
  float largest, total;
};

// Adds a unit's sums to those of the units before it.
void join(Sums& sums, float* values, const Sums& more, const float* more_values, int64_t width) {
  const float largest = more.largest > sums.largest ? more.largest : sums.largest;
  const float kept = exponential(sums.largest - largest), joined = exponential(more.largest - largest);
  sums.total = std::fma(sums.total, kept, more.total * joined);
  sums.largest = largest;
  for (int64_t d = 0; d < width; d += kWidth) {
    store(values + d, fma(load(values + d), all(kept), mul(load(more_values + d), all(joined))));
  }
}

// Scratch of one task.
struct Block {
  float *queries, *sink_queries, *scores, *turned, *values, *sums, *unit_sums;
  int64_t *rows, *identity;

  Block(int64_t rows_padded, int64_t width) {
    const int64_t counts[] = {rows_padded * width, rows_padded * width, rows_padded * kChunk, kTile * width,
                              kChunk * width,      rows_padded * width, kRows * width};
    int64_t floats = 0;
    for (int64_t count : counts) floats += count;
    float* next = scratch_of<float>(BLOCK, floats + 4 * kChunk);
    float** parts[] = {&queries, &sink_queries, &scores, &turned, &values, &sums, &unit_sums};
    for (int i = 0; i < 7; ++i) {
      *parts[i] = next;
      next += counts[i];
    }
    rows = reinterpret_cast<int64_t*>(next);
    identity = rows + kChunk;
    for (int64_t i = 0; i < kChunk; ++i) identity[i] = i;
  }
};

class Attention {
 public:
  Attention(const Plan& plan, const Layer& layer, const Store& store)
      : plan_(plan),
        layer_(layer),
        store_(store),
        group_(plan.num_heads / plan.num_kv_heads),
        width_(round_up(plan.head_dim, kTile)) {}

  // Runs a task; its sums go to the output, or one after the other to `parts` where it has not all units.
  //
  // next: the task that this thread is likely to run then; null = none.
  void run(const Task& task, const Task* next, Sums* part_sums, float* part_values) const {
    const int64_t rows = task.num_queries * group_;
    Block block(round_up(rows, kRows), width_);
    read_queries(layer_.queries, task, block.queries);
    if (plan_.sinks) read_queries(layer_.sink_queries, task, block.sink_queries);
    Sums sums[kMaxRows];
    start(task, sums, block.sums);
    for (int64_t unit = task.unit; unit < task.end_unit; ++unit) {
      if (next != nullptr && unit + 1 == task.end_unit && store_.is_whole() && next->num_queries * group_ <= kRows) {
        prefetch_keys(*next, (next->first_chunk + next->unit) * kChunk);
      }
      int64_t part = task.part < 0 ? -1 : task.part + (unit - task.unit) * rows;
      attend(task, unit, block, part < 0 ? sums : part_sums + part, part < 0 ? block.sums : part_values + part * width_, part >= 0);
    }
    if (task.part < 0) finish(task, sums, block.sums);
  }

  // Joins what the tasks of one query block gave.
  void join_parts(const Task& task, const Sums* part_sums, const float* part_values) const {
    const int64_t rows = task.num_queries * group_;
    Block block(round_up(rows, kRows), width_);
    Sums sums[kMaxRows];
    start(task, sums, block.sums);
    for (int64_t part = 0; part < task.num_units * rows; ++part) {
      const int64_t row = part % rows;
      if (part_sums[part].total < 0.0f) continue;  // it sees nothing there
      join(sums[row], block.sums + row * width_, part_sums[part], part_values + part * width_, width_);
    }
    finish(task, sums, block.sums);
  }

 private:
  void read_queries(const Heads& heads, const Task& task, float* to) const {
    for (int64_t row = 0; row < task.num_queries * group_; ++row) {
      heads.read(task.first_row + row / group_, task.kv_head * group_ + row % group_, plan_.head_dim, width_, to + row * width_);
    }
  }

  // A sink logit is one score more, whose value is zero.
  void start(const Task& task, Sums* sums, float* values) const {
    for (int64_t row = 0; row < task.num_queries * group_; ++row) {
      sums[row] = {kNothing, 0.0f};
      if (layer_.sink_logits != nullptr) sums[row] = {layer_.sink_logits[task.kv_head * group_ + row % group_], 1.0f};
    }
    std::memset(values, 0, static_cast<size_t>(task.num_queries * group_ * width_) * sizeof(float));
  }

  void finish(const Task& task, const Sums* sums, const float* values) const {
    for (int64_t row = 0; row < task.num_queries * group_; ++row) {
      const int64_t head = task.kv_head * group_ + row % group_;
      const int64_t place = (task.first_row + row / group_) * layer_.out_row_stride + head * plan_.head_dim;
      for (int64_t d = 0; d < plan_.head_dim; d += kWidth) {
        float divided[kWidth];
        store(divided, div(load(values + row * width_ + d), all(sums[row].total)));
        const int64_t count = plan_.head_dim - d < kWidth ? plan_.head_dim - d : kWidth;
        if (layer_.queries.dtype == BFLOAT16) {
          for (int64_t i = 0; i < count; ++i) narrow(divided[i], static_cast<bfloat16*>(layer_.out) + place + d + i);
        } else {
          std::memcpy(static_cast<float*>(layer_.out) + place + d, divided, static_cast<size_t>(count) * sizeof(float));
        }
      }
    }
  }

  // What a query sees of a unit, counted from the unit's first token.
  Seen seen_by(int64_t position, bool sink_section, int64_t base) const {
    const int64_t after = position + 1;
    if (sink_section) return {0, static_cast<int>(after < plan_.sinks ? after : plan_.sinks)};
    int64_t first = plan_.window && after > plan_.window ? after - plan_.window : 0;
    first = (first > plan_.sinks ? first : plan_.sinks) - base;
    const int64_t end = after - base < kChunk ? after - base : kChunk;
    return {static_cast<int>(first > 0 ? first : 0), static_cast<int>(end)};
  }

  // One unit for all rows of the task that see something of it.
  //
  // apart: its sums are written to `sums` and `values` for each row, not joined with what is there.
  void attend(const Task& task, int64_t unit, const Block& block, Sums* sums, float* values, bool apart) const {
    const bool sink_section = plan_.sinks && unit == 0;
    const int64_t base = sink_section ? 0 : (task.first_chunk + unit - (plan_.sinks ? 1 : 0)) * kChunk;
    const int rows = static_cast<int>(task.num_queries * group_);
    Seen seen[kMaxRows];
    int begin = rows, end = 0, first_token = kChunk, end_token = 0;
    for (int row = 0; row < rows; ++row) {
      const Seen of_row = seen[row] = seen_by(task.position + row / group_, sink_section, base);
      if (apart) sums[row].total = -1.0f;
      if (of_row.first >= of_row.end) continue;
      if (begin == rows) begin = row;
      end = row + 1;
      first_token = of_row.first < first_token ? of_row.first : first_token;
      end_token = of_row.end > end_token ? of_row.end : end_token;
    }
    if (begin >= end) return;
    find_rows(task.request, base, end_token, block.rows);
    const bool few = store_.is_whole() && end - begin <= kRows;
    score(sink_section ? block.sink_queries : block.queries, task.kv_head, block, seen, begin, end, first_token, end_token, few);
    Sums unit_sums[kMaxRows];
    for (int row = begin; row < end; ++row) {
      unit_sums[row] = weigh(block.scores + row * kChunk, seen[row], task, row, base);
    }
    if (few && !sink_section && unit + 1 < task.end_unit) prefetch_keys(task, base + kChunk);
    const int64_t value_head = plan_.num_kv_heads + task.kv_head;
    const bool in_place = few || store_.is_plain();
    for (int token = in_place ? end_token : first_token; token < end_token; ++token) {
      store_.copy(value_head, block.rows[token], width_, block.values + token * width_);
    }
    for (int row = begin; row < end; row += kRows) {
      const int count = end - row < kRows ? end - row : kRows;
      const float* weights = block.scores + row * kChunk;
      float* to = apart ? values + row * width_ : block.unit_sums;
      if (in_place) {
        store_.sum(count, weights, seen + row, value_head, block.rows, to, width_);
      } else {
        sum_any(count, weights, seen + row, Rows<float, true>{block.values, width_, nullptr, 0}, block.identity, to, width_);
      }
      for (int i = row; i < row + count; ++i) {
        if (apart) {
          sums[i] = unit_sums[i];
        } else {
          join(sums[i], values + i * width_, unit_sums[i], block.unit_sums + (i - row) * width_, width_);
        }
      }
    }
  }

  // Where a chunk's tokens lie: rows of a head, the last again and again up to a whole tile.
  void find_rows(int64_t request, int64_t base, int end, int64_t* rows) const {
    const int64_t* pages = plan_.page_table + request * plan_.table_width;
    int64_t page = base / plan_.page_size, offset = base % plan_.page_size;
    for (int64_t token = 0; token < end; ++page, offset = 0) {
      const int64_t first = pages[page] * plan_.page_size + offset, left = plan_.page_size - offset;
      const int64_t count = left < end - token ? left : end - token;
      for (int64_t i = 0; i < count; ++i) rows[token + i] = first + i;
      token += count;
    }
    for (int64_t token = end; token < round_up(end, kTile); ++token) rows[token] = rows[end - 1];
  }

  // Asks for the first keys of the chunk at `base`.
  void prefetch_keys(const Task& task, int64_t base) const {
    const int64_t seen = task.position + task.num_queries - base;
    int64_t rows[kTilesAhead * kTile];
    if (seen <= 0) return;
    const int count = static_cast<int>(seen < kTilesAhead * kTile ? seen : kTilesAhead * kTile);
    find_rows(task.request, base, count, rows);
    store_.prefetch(task.kv_head, rows, count);
  }

  // Scores of rows [begin, end) against the chunk's tokens that any of them sees.
  void score(const float* queries, int64_t head, const Block& block, const Seen* seen, int begin, int end, int first_token, int end_token,
             bool few) const {
    for (int tile = first_token / kTile * kTile; tile < end_token; tile += kTile) {
      float* scores = block.scores + tile;
      if (few) {
        const int ahead = tile + kTilesAhead * kTile;
        if (ahead < end_token) store_.prefetch(head, block.rows + ahead, kTile);
        store_.prefetch(plan_.num_kv_heads + head, block.rows + tile, kTile);
        store_.score(end - begin, queries + begin * width_, width_, head, block.rows + tile, scores + begin * kChunk);
        continue;
      }
      store_.turn(head, block.rows + tile, width_, block.turned);
      for (int row = begin; row < end; row += kRows) {
        const int count = end - row < kRows ? end - row : kRows;
        // Later rows see no less to the end, and no more before.
        if (tile >= seen[row + count - 1].end || tile + kTile <= seen[row].first) continue;
        with_count<kRows>(count, [&](auto constant) {
          score_turned<decltype(constant)::value>(queries + row * width_, width_, block.turned, scores + row * kChunk);
        });
      }
    }
  }

  // Scores of one row become weights: scaled, capped, less the price of distance, then e^(score - largest).
  Sums weigh(float* scores, Seen seen, const Task& task, int row, int64_t base) const {
    static const float kIndex[kTile] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int begin = seen.first / kTile * kTile;
    const float scale = static_cast<float>(plan_.softcap > 0 ? plan_.scale / plan_.softcap : plan_.scale);
    Lanes largest[kParts], total[kParts];
    for (int part = 0; part < kParts; ++part) {
      largest[part] = all(kNothing);
      total[part] = zero();
    }
    for (int tile = begin; tile < seen.end; tile += kTile) {
      const bool cut = tile < seen.first || tile + kTile > seen.end;
      for (int part = 0; part < kParts; ++part) {
        float* at = scores + tile + part * kWidth;
        Lanes score = mul(load(at), all(scale));
        if (plan_.softcap > 0) score = mul(hyperbolic_tangent(score), all(static_cast<float>(plan_.softcap)));
        if (plan_.slopes != nullptr) score = add(score, distance_bias(task, row, base + tile + part * kWidth));
        if (cut) {
          const Lanes index = add(load(kIndex + part * kWidth), all(static_cast<float>(tile)));
          score = where_less(index, all(static_cast<float>(seen.end)), score, all(kNothing));
          score = where_less(index, all(static_cast<float>(seen.first)), all(kNothing), score);
        }
        largest[part] = larger(largest[part], score);
        store(at, score);
      }
    }
    const float top = joined(largest, [](Lanes a, Lanes b) { return larger(a, b); });
    for (int tile = begin; tile < seen.end; tile += kTile) {
      for (int part = 0; part < kParts; ++part) {
        float* at = scores + tile + part * kWidth;
        const Lanes weight = exponential(sub(load(at), all(top)));
        total[part] = add(total[part], weight);
        store(at, weight);
      }
    }
    return {top, joined(total, [](Lanes a, Lanes b) { return add(a, b); })};
  }

  // What the scores of kWidth keys from position `key` on gain.
  Lanes distance_bias(const Task& task, int row, int64_t key) const {
    const float slope = plan_.slopes[task.kv_head * group_ + row % group_];
    const int64_t query = task.position + row / group_;
    float bias[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      bias[i] = plan_.rounded_slopes
                    ? rounded_to_bfloat16(slope * rounded_to_bfloat16(static_cast<float>(key + i))) * static_cast<float>(plan_.scale)
                    : slope * static_cast<float>(key + i - query);
    }
    return load(bias);
  }

  const Plan& plan_;
  const Layer& layer_;
  const Store& store_;
  const int64_t group_, width_;
};

// Query blocks of all requests, cut into stretches of chunks where there are too few for the threads.
struct Tasks {
  Task* tasks;
  int64_t count = 0, parts = 0;
  double work = 0;

  Tasks(const Plan& plan, int64_t threads) {
    const int64_t group = plan.num_heads / plan.num_kv_heads, per_block = group < kMaxRows ? kMaxRows / group : 1;
    int64_t blocks = 0, units = 0;
    for (int64_t request = 0; request < plan.num_requests; ++request) {
      const int64_t queries = plan.starts[request + 1] - plan.starts[request];
      const int64_t own = round_up(queries, per_block) / per_block;
      blocks += own;
      units += own * (plan.lengths[request] / kChunk + 2);
    }
    // Cutting changes no bit: units are joined in order either way.
    const int64_t wanted = threads > 1 ? 8 * threads : 1, whole = blocks * plan.num_kv_heads;
    const int64_t pieces = whole >= wanted ? 1 : (wanted + whole - 1) / whole;
    tasks = scratch_of<Task>(TASKS, pieces > 1 ? units * plan.num_kv_heads : whole);
    for (int64_t request = 0; request < plan.num_requests; ++request) {
      const int64_t start = plan.starts[request], end = plan.starts[request + 1];
      // The last first: they take longest.
      for (int64_t block = round_up(end - start, per_block) / per_block - 1; block >= 0; --block) {
        const int64_t row = start + block * per_block;
        const int64_t queries = end - row < per_block ? end - row : per_block;
        for (int64_t head = 0; head < plan.num_kv_heads; ++head) {
          append(plan, {request, head, row, queries, plan.lengths[request] - (end - row), 0, 0, 0, 0, -1}, pieces, group);
        }
      }
    }
  }

 private:
  void append(const Plan& plan, Task task, int64_t pieces, int64_t group) {
    const int64_t after = task.position + 1;
    const int64_t first_seen = plan.window && after > plan.window ? after - plan.window : 0;
    task.first_chunk = first_seen / kChunk;
    task.num_units = (task.position + task.num_queries - 1) / kChunk + 1 - task.first_chunk + (plan.sinks ? 1 : 0);
    const int64_t length = pieces < task.num_units ? (task.num_units + pieces - 1) / pieces : task.num_units;
    const double rows = static_cast<double>(task.num_queries * group);
    work += rows * static_cast<double>(task.num_units * kChunk * 2 * plan.head_dim);
    for (task.unit = 0; task.unit < task.num_units; task.unit += length) {
      task.end_unit = task.unit + length < task.num_units ? task.unit + length : task.num_units;
      if (length < task.num_units) {
        task.part = parts;
        parts += (task.end_unit - task.unit) * task.num_queries * group;
      }
      tasks[count++] = task;
    }
  }
};

void run(const Plan& plan, const Layer& layer, const Store& store, int64_t threads) {
  const Attention attention(plan, layer, store);
  const Tasks tasks(plan, threads);
  if (tasks.work < kParallelWork) threads = 1;
  const int64_t width = round_up(plan.head_dim, kTile);
  Sums* part_sums = scratch_of<Sums>(PARTS, tasks.parts * (1 + (width + 1) / 2));
  float* part_values = reinterpret_cast<float*>(part_sums + tasks.parts);
  parallel_for(tasks.count, threads, [&](int64_t i) {
    attention.run(tasks.tasks[i], i + threads < tasks.count ? tasks.tasks + i + threads : nullptr, part_sums, part_values);
  });
  if (tasks.parts == 0) return;
  parallel_for(tasks.count, threads, [&](int64_t i) {
    const Task& task = tasks.tasks[i];
    if (task.part >= 0 && task.unit == 0) attention.join_parts(task, part_sums + task.part, part_values + task.part * width);
  });
}

template <class Number>
void run(const Plan& plan, const Layer& layer, int64_t threads) {
  const int64_t head_rows = plan.num_pages * plan.page_size;
  if (plan.head_dim % kTile) {
    return run(plan, layer, StoreOf<Number, false>(layer.kv, head_rows, plan.head_dim, layer.scales, layer.group), threads);
  }
  run(plan, layer, StoreOf<Number, true>(layer.kv, head_rows, plan.head_dim, layer.scales, layer.group), threads);
}

}  // namespace
}  // namespace attention
}  // namespace triserve

// Sets `wrong` to the first request whose pages are not all in the store or do not hold its tokens; -1 = there is none.
TRISERVE_EXPORT void triserve_attention_check(const triserve::attention::Plan* plan, int64_t* wrong) {
  for (int64_t request = 0; request < plan->num_requests; ++request) {
    const int64_t length = plan->lengths[request], pages = (length + plan->page_size - 1) / plan->page_size;
    const int64_t queries = plan->starts[request + 1] - plan->starts[request];
    if (queries < 1 || queries > length || pages > plan->table_width) return void(*wrong = request);
    for (int64_t i = 0; i < pages; ++i) {
      const int64_t page = plan->page_table[request * plan->table_width + i];
      if (page < 0 || page >= plan->num_pages) return void(*wrong = request);
    }
  }
  *wrong = -1;
}

// sink_q may be null, and then its strides mean nothing; sink_logits may be null. Where scales are not, kv are int8 codes and kv_dtype means
// nothing.
TRISERVE_EXPORT void triserve_attention(
    const triserve::attention::Plan* plan, int64_t dtype, const void* q, int64_t q_row_stride, int64_t q_head_stride, const void* sink_q,
    int64_t sink_row_stride, int64_t sink_head_stride, const float* sink_logits, const void* kv, int64_t kv_dtype, const uint16_t* scales,
    int64_t group, void* out, int64_t out_row_stride, int64_t threads) {
  using namespace triserve;
  const attention::Layer layer{{q, dtype, q_row_stride, q_head_stride},
                               {sink_q, dtype, sink_row_stride, sink_head_stride},
                               sink_logits,
                               kv,
                               kv_dtype,
                               scales,
                               group,
                               out,
                               out_row_stride};
  if (scales != nullptr) return attention::run<int8_t>(*plan, layer, threads);
  if (kv_dtype == BFLOAT16) return attention::run<bfloat16>(*plan, layer, threads);
  attention::run<float>(*plan, layer, threads);
}
