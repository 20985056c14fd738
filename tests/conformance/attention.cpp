// SPDX-License-Identifier: MIT
// Attention: masks, caches, padding, windows, softcap, and the scores at every stage.
//
// A query of row i is at p = off + i: off is 0, the past length where a past is given, and
// nonpad_kv_seqlen[b] - queries where that is.
#include <algorithm>
#include <heed/attention.hpp>
#include <heed/cache.hpp>
#include <heed/score.hpp>
#include <optional>
#include <string>
#include <vector>

#include "conformance/case.hpp"

namespace conformance {

namespace {

using heed::index;

constexpr int slot_mask = 3;
constexpr int slot_past_key = 4;
constexpr int slot_past_value = 5;
constexpr int slot_nonpad = 6;

/// What every run of a case shares, whatever the scalar.
struct plan {
  index q_heads = 1;
  index kv_heads = 1;
  index past = 0;
  bool causal = false;
  std::optional<index> left;
  std::optional<index> right;
  std::optional<double> softcap;
  std::optional<double> scale;
  std::vector<index> lengths;  // per batch; empty without padding
  std::vector<index> offsets;
};

std::optional<index> side(const test_case& c, const char* name) {
  const auto size = c.attribute<index>(name, -1);
  return size < 0 ? std::nullopt : std::optional<index>(size);
}

plan read_plan(const test_case& c) {
  plan p;
  p.q_heads = c.attribute<index>("q_num_heads", 1);
  p.kv_heads = c.attribute<index>("kv_num_heads", 1);
  p.causal = c.attribute<int>("is_causal", 0) != 0;
  p.left = side(c, "left_window_size");
  p.right = side(c, "right_window_size");
  if (c.attribute<double>("softcap", 0.0) > 0) p.softcap = c.attribute<double>("softcap", 0.0);
  if (c.attribute("scale") != nullptr) p.scale = c.attribute<double>("scale", 1.0);
  if (const array* past = c.input(slot_past_key)) p.past = past->shape.at(2);
  if (const array* nonpad = c.input(slot_nonpad)) {
    const array& q = c.required_input(0);
    const index queries = q.shape.at(q.rank() == 3 ? 1 : 2);
    p.lengths = to_indices(*nonpad);
    for (const index n : p.lengths) p.offsets.push_back(n - queries);
  }
  return p;
}

heed::attention_options options_of(const plan& p) {
  heed::attention_options o;
  o.scale = p.scale;
  o.offset = p.offsets.empty() ? heed::offsets(p.past) : heed::offsets(p.offsets);
  return o;
}

/// The axes of a mask of any rank, right-aligned to four.
std::array<index, 4> mask_extents(const array& mask) {
  std::array<index, 4> e{1, 1, 1, 1};
  std::copy(mask.shape.begin(), mask.shape.end(),
            e.end() - static_cast<std::ptrdiff_t>(mask.rank()));
  return e;
}

/// Calls f(modifiers...) with what the case needs. Each distinct list of modifiers is a kernel
/// to compile, so there are four: none, causal, and everything with or without softcap, where what
/// the case leaves out is neutral (a window without sides, a mask of one true, a bias of one zero).
template <class F>
void with_modifiers(const test_case& c, const plan& p, index batch, index keys, const F& f) {
  const array* mask = c.input(slot_mask);
  const bool plain = mask == nullptr && !p.left && !p.right && p.lengths.empty() && !p.softcap;
  if (plain && !p.causal) return f();
  if (plain) return f(heed::causal());

  heed::tensor<unsigned char, 4> kept({1, 1, 1, 1});
  heed::tensor<double, 4> added({1, 1, 1, 1});
  kept(0, 0, 0, 0) = 1;
  if (mask != nullptr && mask->what == kind::boolean) {
    kept = heed::tensor<unsigned char, 4>(mask_extents(*mask));
    std::transform(mask->values.begin(), mask->values.end(), kept.data(),
                   [](double x) { return static_cast<unsigned char>(x != 0); });
  } else if (mask != nullptr) {
    added = heed::tensor<double, 4>(mask_extents(*mask));
    std::copy(mask->values.begin(), mask->values.end(), added.data());
  }
  const std::vector<index> lengths =
      p.lengths.empty() ? std::vector<index>(static_cast<std::size_t>(batch), keys) : p.lengths;
  // Causal is a window whose right side is 0.
  const heed::window window{.left = p.left,
                            .right = p.causal ? std::min(p.right.value_or(0), index{0}) : p.right};
  const auto visible = window && heed::lengths(lengths) && heed::keep(kept);
  if (p.softcap) return f(heed::softcap(*p.softcap), heed::bias(added), visible);
  f(heed::bias(added), visible);
}

/// The past followed by the new tokens.
template <class T>
heed::tensor<T, 4> joined(const heed::tensor<T, 4>& past, const heed::view<T, 4>& fresh) {
  auto extents = fresh.extents();
  extents[2] += past.extent(2);
  heed::tensor<T, 4> out(extents);
  for (index b = 0; b < extents[0]; ++b) {
    for (index h = 0; h < extents[1]; ++h) {
      for (index t = 0; t < extents[2]; ++t) {
        for (index d = 0; d < extents[3]; ++d) {
          out(b, h, t, d) =
              t < past.extent(2) ? past(b, h, t, d) : fresh(b, h, t - past.extent(2), d);
        }
      }
    }
  }
  return out;
}

template <class T>
void run_as(const test_case& c, const plan& p, const std::string& scalar, comparison& results) {
  const operand<T> q(c.required_input(0), p.q_heads);
  const operand<T> k(c.required_input(1), p.kv_heads);
  const operand<T> v(c.required_input(2), p.kv_heads);
  heed::view<T, 4> all_k = k.view();
  heed::view<T, 4> all_v = v.view();
  heed::tensor<T, 4> past_k;
  heed::tensor<T, 4> past_v;
  heed::tensor<T, 4> joined_k;
  heed::tensor<T, 4> joined_v;
  if (p.past > 0) {
    past_k = to_tensor<T, 4>(c.required_input(slot_past_key));
    past_v = to_tensor<T, 4>(c.required_input(slot_past_value));
    joined_k = joined(past_k, k.view());
    joined_v = joined(past_v, v.view());
    all_k = heed::as_view(joined_k);
    all_v = heed::as_view(joined_v);
  }
  const index batch = all_k.extent(0);
  const heed::attention_options options = options_of(p);
  const array& expected = *c.output(0);

  const auto attend = [&](const auto&... modifiers) {
    const auto compare = [&](const auto& method, const std::string& name) {
      operand<T> out(expected, p.q_heads);
      method(out.view(), q.view(), all_k, all_v, options, modifiers...);
      results.add("Y by " + name + " in " + scalar, out.values(), expected);
    };
    compare(heed::naive_attention_into, "naive attention");
    compare(heed::attention_into, "tiled attention");
    if (p.past > 0) {
      heed::contiguous_cache<T> cache({.batch = batch,
                                       .kv_heads = all_k.extent(1),
                                       .capacity = all_k.extent(2),
                                       .head_dim = all_k.extent(3),
                                       .value_dim = all_v.extent(3)});
      cache.append(past_k, past_v);
      operand<T> out(expected, p.q_heads);
      if (q.view().extent(2) == k.view().extent(2)) {
        auto of_cache = options;
        of_cache.offset = 0;  // the cache knows where its newest tokens are
        heed::decode_into(out.view(), q.view(), k.view(), v.view(), cache, of_cache, modifiers...);
      } else {  // the queries are not the newest tokens: no decoding, but the cache serves as well
        cache.append(k.view(), v.view());
        heed::attention_into(out.view(), q.view(), cache.keys(), cache.values(), options,
                             modifiers...);
      }
      results.add("Y by the cache in " + scalar, out.values(), expected);
      if (const array* present = c.output(1)) {
        results.add("present_key by the cache in " + scalar, values_of(cache.keys()), *present);
      }
      if (const array* present = c.output(2)) {
        results.add("present_value by the cache in " + scalar, values_of(cache.values()), *present);
      }
    }

    if (const array* scores = c.output(3)) {
      const auto stages =
          heed::naive_attention_stages(q.view(), all_k, all_v, options, modifiers...);
      const heed::tensor<heed::accumulate_t<T>, 4>* const by_mode[] = {
          &stages.scaled, &stages.softcapped, &stages.masked, &stages.probabilities};
      const auto mode = c.attribute<std::size_t>("qk_matmul_output_mode", 0);
      if (mode > 3) throw unsupported("qk_matmul_output_mode " + std::to_string(mode));
      results.add("qk_matmul_output in " + scalar, values_of(heed::as_view(*by_mode[mode])),
                  *scores);
    }
  };
  with_modifiers(c, p, batch, all_k.extent(2), attend);

  if (const array* present = c.output(1)) {
    results.add("present_key in " + scalar, values_of(all_k), *present);
  }
  if (const array* present = c.output(2)) {
    results.add("present_value in " + scalar, values_of(all_v), *present);
  }
}

}  // namespace

void run_attention(const test_case& c, comparison& results) {
  // softmax_precision names the least precision of the softmax; heed's is float or double.
  c.allow_only({"is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale",
                "softcap", "softmax_precision", "left_window_size", "right_window_size"},
               slot_nonpad, 3);
  const plan p = read_plan(c);
  if (c.required_input(0).is_half()) {
    run_as<heed::half>(c, p, "half", results);
  } else {
    run_as<float>(c, p, "float", results);
  }
  run_as<double>(c, p, "double", results);
}

}  // namespace conformance
