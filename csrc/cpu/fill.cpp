#include <algorithm>

#include "../common/abi.h"
#include "../common/kv_copy_forward.h"
#include "decode.h"

DYNKERN_EXPORT void dynkern_kv_copy_forward_range(const dynkern::KvCopyForward* args, int64_t begin,
                                                  int64_t end);

namespace dynkern {

CacheView::CacheView(const Model& model, const Decode& args)
    : model_(model), args_(args), element_(element_bytes(model.kv_dtype)) {}

Place CacheView::place(int64_t layer, int64_t slot, int64_t at) const {
  const int64_t heads = static_cast<int64_t>(lane(layer, slot)) * model_.num_heads;
  const int64_t offset = (heads * args_.capacity + at) * model_.head_size * element_;
  return {static_cast<uint8_t*>(args_.k) + offset, static_cast<uint8_t*>(args_.v) + offset};
}

KvFiller::KvFiller(Steps& steps, const Decode& args, const CacheView& cache)
    : steps_(steps), args_(args), cache_(cache), model_(steps.model()) {}

void KvFiller::project(int64_t layer, const float* source, const Rows& rows,
                       const std::vector<int32_t>& at) {
  std::vector<Place> places(rows.size());
  for (size_t j = 0; j < rows.size(); ++j) places[j] = cache_.place(layer, rows[j], at[j]);
  steps_.project_kv(model_.layers[layer], source, rows.data(), static_cast<int64_t>(rows.size()),
                    places.data(), cache_.head_stride());
  filled_[layer] += static_cast<int64_t>(rows.size());
}

void KvFiller::before_layer(int64_t layer, const Rows& rows) {
  if (args_.kv_fill == kDeferred) flush(layer, rows);
}

void KvFiller::skipped(int64_t layer, const Rows& rows) {
  if (rows.empty()) return;
  if (args_.kv_fill == kProject) {
    std::vector<int32_t> at(rows.size());
    for (size_t j = 0; j < rows.size(); ++j) at[j] = cache_.length(layer, rows[j]);
    project(layer, nullptr, rows, at);
  } else if (args_.kv_fill == kDeferred) {
    Rows full;
    for (const int32_t row : rows) {
      const int64_t entry = layer * args_.n_slots + row;
      int64_t& count = args_.waiting_count[entry];
      std::copy_n(steps_.h() + row * model_.hidden, model_.hidden,
                  args_.waiting + (entry * args_.waiting_tokens + count) * model_.hidden);
      if (++count == args_.waiting_tokens) full.push_back(row);
    }
    flush(layer, full);
  }
}

void KvFiller::flush(int64_t layer, const Rows& rows) {
  const int64_t d = model_.hidden;
  Rows owners;
  std::vector<int32_t> at;
  std::vector<float> source;
  for (const int32_t row : rows) {
    const int64_t entry = layer * args_.n_slots + row;
    const float* waiting = args_.waiting + entry * args_.waiting_tokens * d;
    const int64_t count = args_.waiting_count[entry];
    source.insert(source.end(), waiting, waiting + count * d);
    for (int64_t i = 0; i < count; ++i) {
      owners.push_back(row);
      at.push_back(cache_.length(layer, row)++);
    }
    args_.waiting_count[entry] = 0;
  }
  if (!owners.empty()) project(layer, source.data(), owners, at);
}

void KvFiller::copy_forward(const Rows& alive, const uint8_t* ran) {
  const int64_t n_rows = args_.n_slots, n_layers = model_.num_layers;
  std::vector<int32_t> lane(static_cast<size_t>(n_layers * n_rows), -1);
  std::vector<int32_t> source(lane.size(), -1), position(static_cast<size_t>(n_rows), 0);
  for (const int32_t row : alive) {
    position[static_cast<size_t>(row)] = static_cast<int32_t>(args_.position[row]);
    int32_t nearest = -1;
    for (int64_t l = 0; l < n_layers && nearest < 0; ++l) {
      if (ran[l * n_rows + row]) nearest = static_cast<int32_t>(l);
    }
    for (int64_t l = 0; l < n_layers; ++l) {
      const auto at = static_cast<size_t>(l * n_rows + row);
      lane[at] = cache_.lane(l, row);
      if (ran[at]) {
        nearest = static_cast<int32_t>(l);
      } else {
        source[at] = nearest;
      }
    }
  }
  const int64_t element = element_bytes(model_.kv_dtype);
  const KvCopyForward copy{static_cast<uint8_t*>(args_.k),
                           static_cast<uint8_t*>(args_.v),
                           lane.data(),
                           source.data(),
                           position.data(),
                           args_.n_lanes,
                           model_.num_heads,
                           args_.capacity,
                           model_.head_size * element,
                           n_layers,
                           n_rows};
  parallel_for(steps_.n_threads(), n_layers, [&](int64_t l, int64_t) {
    dynkern_kv_copy_forward_range(&copy, l * n_rows, (l + 1) * n_rows);
  });
}

void KvFiller::end_pass(const Rows& alive, const uint8_t* ran) {
  const bool own_lengths = args_.kv_fill == kMask || args_.kv_fill == kDeferred;
  if (args_.kv_fill == kCopy) copy_forward(alive, ran);
  for (int64_t l = 0; l < model_.num_layers; ++l) {
    for (const int32_t row : alive) {
      cache_.length(l, row) += own_lengths ? ran[l * args_.n_slots + row] : 1;
    }
  }
}

}  // namespace dynkern
