// Weighted sums of gathered rows, and inner products, in one pass over memory. Compiled on request only: see kernels.py.
//
// Shape suffixes: R rows of the result, B instances, E edges, ER indexed [edge][row].
//
// A row is one instance of a feature map, taken as a flat run of elements in memory order: contiguous, channels_last, or any other dense
// layout that all tensors share. A tensor laid out otherwise is copied first. Work is split over (row, chunk); chunks have one size whatever
// the number of threads, so results do not depend on it.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

using at::Tensor;
using at::vec::Vectorized;

constexpr int64_t CHUNK = 1 << 13;  // elements of a row that one task handles
constexpr int64_t GROUP = 4;  // rows read side by side
constexpr int64_t GRAIN = 1 << 15;  // elements read, below which one thread is faster than two

template <typename T>
using Wide = at::opmath_type<T>;  // float32 for float16 and bfloat16, else T itself

// Two vectors of the accumulator's type, which is one vector of a 16-bit type.
template <typename T>
struct Pair {
  using Vector = Vectorized<Wide<T>>;
  static constexpr int64_t width = 2 * Vector::size();
  static constexpr bool is_wide = std::is_same_v<T, Wide<T>>;

  static std::tuple<Vector, Vector> load(const T* from) {
    if constexpr (is_wide) {
      return {Vector::loadu(from), Vector::loadu(from + Vector::size())};
    } else {
      return at::vec::convert_to_float<T>(Vectorized<T>::loadu(from));
    }
  }

  static void store(T* to, const Vector& low, const Vector& high) {
    if constexpr (is_wide) {
      low.store(to);
      high.store(to + Vector::size());
    } else {
      at::vec::convert_from_float<T>(low, high).store(to);
    }
  }
};

// The elements of a vector, added from the first to the last.
template <typename T>
T sum_lanes(const Vectorized<T>& vector) {
  T lanes[Vectorized<T>::size()];
  vector.store(lanes);
  T total = 0;
  for (const T lane : lanes) {
    total += lane;
  }
  return total;
}

template <typename T>
struct Source {
  const T* row;
  Wide<T> weight;
};

// to[i] = sum over the sources of weight * row[i], or what is there already plus that sum, left to right.
template <typename T>
void sum_group(T* to, bool is_first, const Source<T>* sources, int64_t num_sources, int64_t begin, int64_t end) {
  using P = Pair<T>;
  using Vector = typename P::Vector;
  const T* start = is_first ? sources[0].row : to;
  const Wide<T> scale = is_first ? sources[0].weight : 1;
  int64_t i = begin;
  for (; i + 2 * P::width <= end; i += 2 * P::width) {
    const Vector factor(scale);
    auto [a, b] = P::load(start + i);
    auto [c, d] = P::load(start + i + P::width);
    a = a * factor, b = b * factor, c = c * factor, d = d * factor;
    for (int64_t s = is_first; s < num_sources; ++s) {
      const Vector weight(sources[s].weight);
      const auto [e, f] = P::load(sources[s].row + i);
      const auto [g, h] = P::load(sources[s].row + i + P::width);
      a = at::vec::fmadd(e, weight, a), b = at::vec::fmadd(f, weight, b);
      c = at::vec::fmadd(g, weight, c), d = at::vec::fmadd(h, weight, d);
    }
    P::store(to + i, a, b);
    P::store(to + i + P::width, c, d);
  }
  for (; i < end; ++i) {
    Wide<T> total = static_cast<Wide<T>>(start[i]) * scale;
    for (int64_t s = is_first; s < num_sources; ++s) {
      total = std::fma(static_cast<Wide<T>>(sources[s].row[i]), sources[s].weight, total);
    }
    to[i] = static_cast<T>(total);
  }
}

// A chunk of the result stays in the cache while few sources at a time are read: more would be slower than memory. 16-bit types go through
// their accumulators once, so as to be rounded once.
template <typename T>
void sum_chunk(T* to, const Source<T>* sources, int64_t num_sources, int64_t begin, int64_t end) {
  const int64_t group = Pair<T>::is_wide ? GROUP : num_sources;
  for (int64_t s = 0; s < num_sources; s += group) {
    sum_group(to, s == 0, sources + s, std::min(group, num_sources - s), begin, end);
  }
}

// to[n] = <rows[n], grad> over a chunk, non-finite elements of the rows taken as 0. Rows read side by side keep more reads under way.
template <typename T, int N>
void dot_chunk(double* to, const T* const* rows, const T* grad, int64_t begin, int64_t end) {
  using P = Pair<T>;
  using Vector = typename P::Vector;
  const Vector zero(0);
  // x - x is 0 for finite x alone; a comparison gives all ones or all zeros, as a mask.
  const auto finite = [&](const Vector& x) { return x & ((x - x) == zero); };
  Vector low[N], high[N];
  for (int n = 0; n < N; ++n) {
    low[n] = high[n] = zero;
  }
  int64_t i = begin;
  for (; i + P::width <= end; i += P::width) {
    const auto [p, q] = P::load(grad + i);
    for (int n = 0; n < N; ++n) {
      const auto [a, b] = P::load(rows[n] + i);
      low[n] = at::vec::fmadd(finite(a), p, low[n]);
      high[n] = at::vec::fmadd(finite(b), q, high[n]);
    }
  }
  for (int n = 0; n < N; ++n) {
    Wide<T> total = sum_lanes(low[n] + high[n]);
    for (int64_t j = i; j < end; ++j) {
      const auto x = static_cast<Wide<T>>(rows[n][j]);
      total += (std::isfinite(x) ? x : 0) * static_cast<Wide<T>>(grad[j]);
    }
    to[n] = total;
  }
}

template <typename T>
void dot_chunks(double* to, const T* const* rows, int64_t num_rows, const T* grad, int64_t begin, int64_t end) {
  for (; num_rows >= GROUP; num_rows -= GROUP, rows += GROUP, to += GROUP) {
    dot_chunk<T, GROUP>(to, rows, grad, begin, end);
  }
  switch (num_rows) {
    case 3:
      return dot_chunk<T, 3>(to, rows, grad, begin, end);
    case 2:
      return dot_chunk<T, 2>(to, rows, grad, begin, end);
    case 1:
      return dot_chunk<T, 1>(to, rows, grad, begin, end);
  }
}

// What a node of the backward pass reads of one consumer, for one instance.
template <typename T>
struct Flow {
  const T* row;
  Wide<T> weight;
};

// to[i] = sum over the flows of weight * row[i], left to right, or what is there already plus that sum; products[n] = <feature, rows[n]>, non-finite
// elements of the feature taken as 0. One pass over the rows does both. A weight of 0 leaves its row out of the sum.
template <typename T, int N>
void flow_chunk(T* to, double* products, bool is_first, const Flow<T>* flows, const T* feature, int64_t begin, int64_t end) {
  using P = Pair<T>;
  using Vector = typename P::Vector;
  const Vector zero(0), nothing(-0.0);  // x + -0.0 is x to the bit
  const auto finite = [&](const Vector& x) { return x & ((x - x) == zero); };
  Vector low[N], high[N];
  for (int n = 0; n < N; ++n) {
    low[n] = high[n] = zero;
  }
  int64_t i = begin;
  for (; i + P::width <= end; i += P::width) {
    auto [x, y] = P::load(feature + i);
    x = finite(x), y = finite(y);
    Vector a = nothing, b = nothing;
    if (!is_first) {
      std::tie(a, b) = P::load(to + i);
    }
    for (int n = 0; n < N; ++n) {
      const auto [p, q] = P::load(flows[n].row + i);
      low[n] = at::vec::fmadd(x, p, low[n]);
      high[n] = at::vec::fmadd(y, q, high[n]);
      if (flows[n].weight != 0) {
        const Vector weight(flows[n].weight);
        a = at::vec::fmadd(p, weight, a), b = at::vec::fmadd(q, weight, b);
      }
    }
    P::store(to + i, a, b);
  }
  for (int n = 0; n < N; ++n) {
    Wide<T> total = sum_lanes(low[n] + high[n]);
    for (int64_t j = i; j < end; ++j) {
      const auto x = static_cast<Wide<T>>(feature[j]);
      total += (std::isfinite(x) ? x : 0) * static_cast<Wide<T>>(flows[n].row[j]);
    }
    products[n] = total;
  }
  for (int64_t j = i; j < end; ++j) {
    Wide<T> total = is_first ? static_cast<Wide<T>>(-0.0) : static_cast<Wide<T>>(to[j]);
    for (int n = 0; n < N; ++n) {
      if (flows[n].weight != 0) {
        total = std::fma(static_cast<Wide<T>>(flows[n].row[j]), flows[n].weight, total);
      }
    }
    to[j] = static_cast<T>(total);
  }
}

template <typename T>
void flow_chunks(T* to, double* products, const Flow<T>* flows, int64_t num_flows, const T* feature, int64_t begin, int64_t end) {
  bool is_first = true;
  for (; num_flows >= GROUP; num_flows -= GROUP, flows += GROUP, products += GROUP, is_first = false) {
    flow_chunk<T, GROUP>(to, products, is_first, flows, feature, begin, end);
  }
  switch (num_flows) {
    case 3:
      return flow_chunk<T, 3>(to, products, is_first, flows, feature, begin, end);
    case 2:
      return flow_chunk<T, 2>(to, products, is_first, flows, feature, begin, end);
    case 1:
      return flow_chunk<T, 1>(to, products, is_first, flows, feature, begin, end);
  }
}

// (num_rows, ...) laid out as `like` is: as `empty_rows` in kernels.py does.
Tensor empty_rows(int64_t num_rows, const Tensor& like) {
  auto sizes = like.sizes().vec();
  sizes[0] = num_rows;
  if (like.is_contiguous()) {
    return at::empty(sizes, like.options());
  }
  const auto row = at::empty_like(like.narrow(0, 0, 1));
  auto strides = row.strides().vec();
  strides[0] = row.numel();
  return at::empty_strided(sizes, strides, like.options());
}

// `value` itself where its rows are laid out as those of `layout`, else a copy that is.
Tensor laid_out(const Tensor& value, const Tensor& layout) {
  for (int64_t axis = 1; axis < value.dim(); ++axis) {
    if (value.size(axis) != 1 && value.stride(axis) != layout.stride(axis)) {
      return empty_rows(value.size(0), layout).copy_(value);
    }
  }
  return value;
}

void check_features(at::TensorList features, const Tensor& like) {
  for (const auto& feature : features) {
    TORCH_CHECK(feature.device().is_cpu(), "dggraph: expected CPU tensors, got one on ", feature.device());
    TORCH_CHECK(
        feature.scalar_type() == like.scalar_type(),
        "dggraph: features need one dtype, got ", feature.scalar_type(), " beside ", like.scalar_type());
    TORCH_CHECK(
        feature.dim() == like.dim() && feature.sizes().slice(1) == like.sizes().slice(1),
        "dggraph: features need rows of one shape, got ", feature.sizes(), " beside ", like.sizes());
  }
}

Tensor sum_rows(at::TensorList features, const std::optional<Tensor>& places_ER, const Tensor& weights_ER) {
  const auto num_edges = static_cast<int64_t>(features.size());
  TORCH_CHECK(num_edges > 0 && features[0].dim() > 0, "dggraph::sum_rows: features must be one tensor (rows, ...) per edge");
  TORCH_CHECK(
      weights_ER.dim() == 2 && weights_ER.size(0) == num_edges,
      "dggraph::sum_rows: weights must be (edges, rows) for ", num_edges, " edges, got ", weights_ER.sizes());
  const int64_t num_rows = weights_ER.size(1);
  check_features(features, features[0]);
  const Tensor total = empty_rows(num_rows, features[0]);
  if (total.numel() == 0) {
    return total;
  }
  const int64_t size = total.numel() / num_rows;
  const Tensor weights = weights_ER.to(at::kCPU, at::kDouble);
  const auto weight = weights.accessor<double, 2>();
  Tensor places;
  if (places_ER.has_value()) {
    TORCH_CHECK(
        places_ER->sizes() == weights_ER.sizes(),
        "dggraph::sum_rows: places must be shaped as the weights are, ", weights_ER.sizes(), ", got ", places_ER->sizes());
    places = places_ER->to(at::kCPU, at::kLong);
  } else {
    places = at::arange(num_rows, at::kLong).expand({num_edges, num_rows});
  }
  const auto place = places.accessor<int64_t, 2>();

  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, total.scalar_type(), "dggraph::sum_rows", [&] {
    // 1. Which sources each row reads: `sources`, from `first[r]` to `first[r + 1]`.
    std::vector<Source<scalar_t>> sources;
    std::vector<int64_t> first(num_rows + 1, 0);
    std::vector<Tensor> kept(num_edges);
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t e = 0; e < num_edges; ++e) {
        if (weight[e][r] == 0) {
          continue;
        }
        if (!kept[e].defined()) {
          kept[e] = laid_out(features[e], total);
        }
        TORCH_CHECK_INDEX(
            0 <= place[e][r] && place[e][r] < kept[e].size(0),
            "dggraph::sum_rows: row ", r, " reads row ", place[e][r], " of edge ", e, ", which has ", kept[e].size(0));
        const auto* row = kept[e].const_data_ptr<scalar_t>() + place[e][r] * kept[e].stride(0);
        sources.push_back({row, static_cast<Wide<scalar_t>>(weight[e][r])});
      }
      first[r + 1] = static_cast<int64_t>(sources.size());
    }
    // 2. One task per row and chunk.
    auto* to = total.data_ptr<scalar_t>();
    const int64_t num_chunks = at::divup(size, CHUNK);
    const int64_t read = std::min(size, CHUNK) * std::max<int64_t>(1, first[num_rows] / num_rows);
    at::parallel_for(0, num_rows * num_chunks, at::divup(GRAIN, read), [&](int64_t from, int64_t until) {
      for (int64_t task = from; task < until; ++task) {
        const int64_t r = task / num_chunks, begin = task % num_chunks * CHUNK, end = std::min(begin + CHUNK, size);
        if (first[r] == first[r + 1]) {
          std::memset(to + r * size + begin, 0, (end - begin) * sizeof(scalar_t));
        } else {
          sum_chunk(to + r * size, sources.data() + first[r], first[r + 1] - first[r], begin, end);
        }
      }
    });
  });
  return total;
}

Tensor inner_products(at::TensorList features, const Tensor& grad) {
  const auto num_edges = static_cast<int64_t>(features.size());
  TORCH_CHECK(num_edges > 0 && grad.dim() > 0, "dggraph::inner_products: features must be one tensor (B, ...) per edge");
  check_features(features, grad);
  const int64_t num_rows = grad.size(0);
  const auto wide = at::promoteTypes(grad.scalar_type(), at::kFloat);
  const int64_t size = num_rows == 0 ? 0 : grad.numel() / num_rows, num_chunks = at::divup(size, CHUNK);
  if (grad.numel() == 0) {
    return at::zeros({num_rows, num_edges}, grad.options().dtype(wide));
  }
  const Tensor layout = empty_rows(1, features[0]);
  std::vector<Tensor> kept;
  for (const auto& feature : features) {
    TORCH_CHECK(feature.size(0) == num_rows, "dggraph::inner_products: ", feature.sizes(), " beside a gradient ", grad.sizes());
    kept.push_back(laid_out(feature, layout));
  }
  const Tensor flow = laid_out(grad, layout);
  // Chunks are added up in float64.
  const Tensor parts = at::empty({num_rows, num_chunks, num_edges}, grad.options().dtype(at::kDouble));
  auto* part = parts.data_ptr<double>();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "dggraph::inner_products", [&] {
    std::vector<const scalar_t*> rows;  // [b][e]
    for (int64_t b = 0; b < num_rows; ++b) {
      for (const auto& feature : kept) {
        rows.push_back(feature.const_data_ptr<scalar_t>() + b * feature.stride(0));
      }
    }
    const auto* flows = flow.const_data_ptr<scalar_t>();
    const int64_t read = std::min(size, CHUNK) * num_edges;
    at::parallel_for(0, num_rows * num_chunks, at::divup(GRAIN, read), [&](int64_t from, int64_t until) {
      for (int64_t task = from; task < until; ++task) {
        const int64_t b = task / num_chunks, begin = task % num_chunks * CHUNK, end = std::min(begin + CHUNK, size);
        dot_chunks(part + task * num_edges, rows.data() + b * num_edges, num_edges, flows + b * flow.stride(0), begin, end);
      }
    });
  });
  return parts.sum(1).to(wide);
}

std::tuple<Tensor, Tensor> sum_and_products(at::TensorList grads, const Tensor& weights_BE, const Tensor& feature) {
  const auto num_edges = static_cast<int64_t>(grads.size());
  TORCH_CHECK(num_edges > 0 && feature.dim() > 0, "dggraph::sum_and_products: grads must be one tensor (B, ...) per edge");
  check_features(grads, feature);
  const int64_t num_rows = feature.size(0);
  TORCH_CHECK(
      weights_BE.dim() == 2 && weights_BE.size(0) == num_rows && weights_BE.size(1) == num_edges,
      "dggraph::sum_and_products: weights must be (", num_rows, ", ", num_edges, "), got ", weights_BE.sizes());
  const Tensor total = empty_rows(num_rows, feature);
  if (total.numel() == 0) {
    return {total, at::zeros({num_rows, num_edges}, feature.options())};
  }
  const int64_t size = total.numel() / num_rows, num_chunks = at::divup(size, CHUNK);
  std::vector<Tensor> kept;
  for (const auto& grad : grads) {
    TORCH_CHECK(grad.size(0) == num_rows, "dggraph::sum_and_products: ", grad.sizes(), " beside a feature ", feature.sizes());
    kept.push_back(laid_out(grad, total));
  }
  const Tensor read = laid_out(feature, total), weights = weights_BE.to(at::kCPU, at::kDouble);
  const auto weight = weights.accessor<double, 2>();
  // Chunks are added up in float64.
  const Tensor parts = at::empty({num_rows, num_chunks, num_edges}, feature.options().dtype(at::kDouble));
  auto* part = parts.data_ptr<double>();
  AT_DISPATCH_FLOATING_TYPES(feature.scalar_type(), "dggraph::sum_and_products", [&] {
    std::vector<Flow<scalar_t>> flows;  // [b][e]
    std::vector<bool> is_open(num_rows, false);
    for (int64_t b = 0; b < num_rows; ++b) {
      for (int64_t e = 0; e < num_edges; ++e) {
        flows.push_back({kept[e].const_data_ptr<scalar_t>() + b * kept[e].stride(0), static_cast<scalar_t>(weight[b][e])});
        is_open[b] = is_open[b] || weight[b][e] != 0;
      }
    }
    auto* to = total.data_ptr<scalar_t>();
    const auto* from = read.const_data_ptr<scalar_t>();
    const int64_t step = read.stride(0), cost = std::min(size, CHUNK) * num_edges;
    at::parallel_for(0, num_rows * num_chunks, at::divup(GRAIN, cost), [&](int64_t first, int64_t until) {
      for (int64_t task = first; task < until; ++task) {
        const int64_t b = task / num_chunks, begin = task % num_chunks * CHUNK, end = std::min(begin + CHUNK, size);
        flow_chunks(to + b * size, part + task * num_edges, flows.data() + b * num_edges, num_edges, from + b * step, begin, end);
        if (!is_open[b]) {
          std::memset(to + b * size + begin, 0, (end - begin) * sizeof(scalar_t));
        }
      }
    });
  });
  return {total, parts.sum(1).to(feature.scalar_type())};
}

// weight @ (mean over positions of one image's features) + bias, as numbers: what a linear router gives before its gate. `axis` is that of
// the channels, 1 or 3.
std::vector<double> pooled_logits(const Tensor& features, const Tensor& weight, const Tensor& bias, int64_t axis) {
  const int64_t channels = weight.size(1), positions = features.numel() / channels;
  TORCH_CHECK(features.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat && bias.scalar_type() == at::kFloat,
              "pooled_logits takes float32.");
  TORCH_CHECK(features.dim() == 4 && features.size(0) == 1, "pooled_logits takes one feature map.");
  const bool is_first = axis == 1 && features.is_contiguous();
  const bool is_last = axis == 1 ? features.is_contiguous(at::MemoryFormat::ChannelsLast) : features.is_contiguous();
  TORCH_CHECK((is_first || is_last) && features.size(axis) == channels, "pooled_logits takes dense features of ", channels, " channels.");
  using Vector = Vectorized<float>;
  const Tensor matrix = weight.contiguous();
  const float* from = features.const_data_ptr<float>();
  const float* rows = matrix.const_data_ptr<float>();
  const float* offsets = bias.const_data_ptr<float>();
  std::vector<float> sums(channels, 0.f);
  if (is_first) {
    at::parallel_for(0, channels, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, positions)), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const float* row = from + c * positions;
        Vector total(0.f);
        int64_t i = 0;
        for (; i + Vector::size() <= positions; i += Vector::size()) {
          total = total + Vector::loadu(row + i);
        }
        float sum = sum_lanes(total);
        for (; i < positions; ++i) {
          sum += row[i];
        }
        sums[c] = sum;
      }
    });
  } else {
    for (int64_t i = 0; i < positions; ++i) {
      const float* row = from + i * channels;
      int64_t c = 0;
      for (; c + Vector::size() <= channels; c += Vector::size()) {
        (Vector::loadu(sums.data() + c) + Vector::loadu(row + c)).store(sums.data() + c);
      }
      for (; c < channels; ++c) {
        sums[c] += row[c];
      }
    }
  }
  std::vector<double> logits(weight.size(0));
  for (size_t e = 0; e < logits.size(); ++e) {
    const float* row = rows + e * channels;
    Vector total(0.f);
    int64_t c = 0;
    for (; c + Vector::size() <= channels; c += Vector::size()) {
      total = at::vec::fmadd(Vector::loadu(row + c), Vector::loadu(sums.data() + c), total);
    }
    float sum = sum_lanes(total);
    for (; c < channels; ++c) {
      sum += row[c] * sums[c];
    }
    logits[e] = offsets[e] + sum / static_cast<float>(positions);
  }
  return logits;
}

}  // namespace

TORCH_LIBRARY(dggraph, library) {
  library.def("sum_rows(Tensor[] features, Tensor? places_ER, Tensor weights_ER) -> Tensor", {at::Tag::pt2_compliant_tag});
  library.def(
      "sum_and_products(Tensor[] grads, Tensor weights_BE, Tensor feature) -> (Tensor, Tensor)", {at::Tag::pt2_compliant_tag});
  library.def("pooled_logits(Tensor features, Tensor weight, Tensor bias, int axis) -> float[]");
  library.def("inner_products(Tensor[] features, Tensor grad) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(dggraph, CPU, library) {
  library.impl("sum_rows", &sum_rows);
  library.impl("pooled_logits", &pooled_logits);
  library.impl("inner_products", &inner_products);
  library.impl("sum_and_products", &sum_and_products);
}
