// SPDX-License-Identifier: MIT
// Cases of the `fla` folder of native sparse attention, tensors batch x tokens x heads x channels:
// its compressed and its selected branch, the selection, and the whole.
//
// Sequences packed one behind another (`cu_seqlens`) are cases of batch 1, run one by one.
#include <algorithm>
#include <cmath>
#include <heed/attention.hpp>
#include <heed/score.hpp>
#include <heed/sparse.hpp>
#include <optional>
#include <string>
#include <vector>

#include "conformance/case.hpp"

namespace conformance {

namespace {

using heed::index;

std::optional<double> scale_of(const test_case& c) {
  const nlohmann::json* scale = c.attribute("scale");
  if (scale == nullptr || !scale->is_number()) return std::nullopt;
  return scale->get<double>();
}
heed::attention_options options_of(const test_case& c) {
  heed::attention_options o;
  o.scale = scale_of(c);
  return o;
}

/// Tokens of one sequence, and its compressed blocks, the last of which may be short.
struct sequence {
  heed::range tokens;
  heed::range blocks;
};
std::vector<sequence> sequences_of(const test_case& c, index tokens, index block) {
  std::vector<index> bounds{0, tokens};
  if (const array* given = c.input("cu_seqlens")) bounds = to_indices(*given);
  const nlohmann::json* listed = c.attribute("cu_seqlens");
  if (listed != nullptr && listed->is_array()) bounds = listed->get<std::vector<index>>();
  std::vector<sequence> all;
  index blocks = 0;
  for (std::size_t n = 0; n + 1 < bounds.size(); ++n) {
    const heed::range own{bounds[n], bounds[n + 1]};
    const index count = heed::ceil_div(own.size(), block);
    all.push_back({own, {blocks, blocks + count}});
    blocks += count;
  }
  return all;
}

/// Tokens `r` of a tensor seen heads first.
template <class T>
heed::view<T, 4> tokens_of(const heed::view<T, 4>& x, const heed::range& r) {
  return x.slice(2, r.begin, std::min(r.end, x.extent(2)));
}

const array& either_input(const test_case& c, const char* one, const char* other) {
  return c.input(one) != nullptr ? *c.input(one) : c.required_input(other);
}

/// The choices of each row, heads first; those that the case does not count, and blocks past the
/// end, which it hides by position, are none.
heed::tensor<index, 4> choices_of(const test_case& c, index block,
                                  const std::vector<sequence>& sequences) {
  const auto given = to_tensor<index, 4>(c.required_input("block_indices"));
  const nlohmann::json* most = c.attribute("block_counts");
  std::optional<heed::tensor<index, 3>> counts;
  if (const array* a = c.input("block_counts")) counts = to_tensor<index, 3>(*a);
  heed::tensor<index, 4> chosen(
      {given.extent(0), given.extent(2), given.extent(1), given.extent(3)});
  const auto row = [&](index b, index t, index h, index first) {
    index count = given.extent(3);
    if (counts) {
      count = (*counts)(b, t, h);
    } else if (most != nullptr && most->is_number()) {
      count = most->get<index>();
    }
    for (index s = 0; s < given.extent(3); ++s) {
      const index i = given(b, t, h, s);
      chosen(b, h, t, s) = s < count && i >= 0 && i * block <= t - first ? i : -1;
    }
  };
  for (const sequence& s : sequences) {
    for (index t = s.tokens.begin; t < s.tokens.end; ++t) {
      for (index b = 0; b < given.extent(0); ++b) {
        for (index h = 0; h < given.extent(2); ++h) row(b, t, h, s.tokens.begin);
      }
    }
  }
  return chosen;
}

/// A query sees the keys of its selected blocks that do not lie ahead of it, those of a block
/// listed n times n times.
template <class T>
void selected_blocks(const test_case& c, const std::string& scalar, comparison& results) {
  token_major<T> q(c.required_input("q"));
  token_major<T> k(c.required_input("k"));
  token_major<T> v(c.required_input("v"));
  const auto block = c.attribute<index>("block_size", 64);
  const std::vector<sequence> sequences = sequences_of(c, q.view().extent(2), block);
  const auto chosen = choices_of(c, block, sequences);
  const auto run = [&](const std::string& name, const auto& method) {
    token_major<T> out(c.output("o"));
    for (const sequence& s : sequences) {
      const heed::view<const index, 4> own =
          heed::as_view(chosen).slice(2, s.tokens.begin, s.tokens.end);
      const auto times = [own, block]<class A>(A score, const heed::position& p) {
        int n = 0;
        for (index i = 0; i < own.extent(3); ++i) {
          n += own(p.batch, p.kv_head, p.row, i) == p.key / block ? 1 : 0;
        }
        return n == 1 ? score : score + static_cast<A>(std::log(n));
      };
      method(tokens_of(out.view(), s.tokens), tokens_of(q.view(), s.tokens),
             tokens_of(k.view(), s.tokens), tokens_of(v.view(), s.tokens), own, times);
    }
    results.add("o by " + name + " in " + scalar, values_of(heed::as_view(out.memory)),
                c.output("o"));
  };
  run("naive attention", [&](const auto& out, const auto& qs, const auto& ks, const auto& vs,
                             const auto&, const auto& times) {
    heed::naive_attention_into(out, qs, ks, vs, options_of(c), times, heed::causal());
  });
  run("tiled attention", [&](const auto& out, const auto& qs, const auto& ks, const auto& vs,
                             const auto&, const auto& times) {
    heed::attention_into(out, qs, ks, vs, options_of(c), times, heed::causal());
  });
  run("selected attention", [&](const auto& out, const auto& qs, const auto& ks, const auto& vs,
                                const auto& own, const auto& times) {
    heed::selected_attention_into(out, qs, ks, vs, own, block, options_of(c), times,
                                  heed::causal());
  });
}

/// Keys and values that represent a block each, visible once their block is complete.
template <class T>
void compressed_branch(const test_case& c, const std::string& scalar, comparison& results) {
  token_major<T> q(c.required_input("q"));
  token_major<T> k(either_input(c, "k_cmp", "k"));
  token_major<T> v(either_input(c, "v_cmp", "v"));
  const auto block = c.attribute<index>("block_size", 64);
  const heed::view<T, 4> queries = q.view();
  const auto run = [&](const std::string& name, const auto& method) {
    token_major<T> out(c.output("o"));
    heed::tensor<T, 3> lse({queries.extent(0), queries.extent(2), queries.extent(1)});
    const heed::view<T, 3> rows = heed::as_view(lse).swap_axes(1, 2);
    for (const sequence& s : sequences_of(c, queries.extent(2), block)) {
      method(
          heed::into(tokens_of(out.view(), s.tokens), rows.slice(2, s.tokens.begin, s.tokens.end)),
          tokens_of(queries, s.tokens), tokens_of(k.view(), s.blocks),
          tokens_of(v.view(), s.blocks), options_of(c), heed::compressed_blocks{.length = block});
    }
    results.add("o by " + name + " in " + scalar, values_of(heed::as_view(out.memory)),
                c.output("o"));
    if (const array* expected = c.find_output("lse")) {
      results.add("lse by " + name + " in " + scalar, values_of(heed::as_view(lse)), *expected);
    }
  };
  run("naive attention", heed::naive_attention_into);
  run("tiled attention", heed::attention_into);
}

/// The selection's options: the first block and the newest two are always chosen.
heed::native_sparse_options native_options(const test_case& c, index count) {
  heed::native_sparse_options o;
  const auto block = c.attribute<index>("block_size", 64);
  o.compression = {.length = block};
  o.block = block;
  o.count = count;
  o.window = c.attribute<index>("window_size", 0);
  o.scale = scale_of(c);
  if (count < o.initial + o.local) throw unsupported("a selection of fewer than the fixed blocks");
  return o;
}

/// The choices of each row as a set.
template <class T>
void selection_of_blocks(const test_case& c, const std::string& scalar, comparison& results) {
  token_major<T> q(c.required_input("q"));
  token_major<T> k(either_input(c, "k_cmp", "k"));
  const array* named = c.find_output("block_indices");
  array expected = named != nullptr ? *named : c.output("o");
  const index count = expected.shape.back();
  const heed::native_sparse_options o = native_options(c, count);
  const index tokens = q.view().extent(2);
  std::optional<heed::tensor<index, 3>> counts;
  if (const array* a = c.input("block_counts")) counts = to_tensor<index, 3>(*a);
  heed::serial_executor serial;
  heed::tensor<index, 4> got({expected.shape[0], expected.shape[1], expected.shape[2], count});
  for (const sequence& s : sequences_of(c, tokens, o.block)) {
    const auto own = heed::compressed_block_selection(
        serial, tokens_of(q.view(), s.tokens), tokens_of(k.view(), s.blocks), s.tokens.size(),
        {.count = count, .block = o.block, .compression = o.compression, .scale = o.scale});
    for (index b = 0; b < got.extent(0); ++b) {
      for (index h = 0; h < got.extent(2); ++h) {
        for (index i = 0; i < s.tokens.size(); ++i) {
          const index t = s.tokens.begin + i;
          for (index n = 0; n < count; ++n) {
            got(b, t, h, n) = counts && n >= (*counts)(b, t, h) ? -1 : own(b, h, i, n);
          }
        }
      }
    }
  }
  std::vector<double> choices = values_of(heed::as_view(got));
  for (auto* rows : {&choices, &expected.values}) {
    for (auto at = rows->begin(); count > 0 && at != rows->end(); at += count) {
      std::sort(at, at + count);
    }
  }
  results.add("choices in " + scalar, choices, expected);
}

/// The three branches; one whose gate is absent is not added, but the selected one is, as it is.
template <class T>
void whole(const test_case& c, const std::string& scalar, comparison& results) {
  if (c.input("cu_seqlens") != nullptr) throw unsupported("cu_seqlens");
  if (c.input("block_counts") != nullptr) throw unsupported("block_counts a row");
  token_major<T> q(c.required_input("q"));
  token_major<T> k(c.required_input("k"));
  token_major<T> v(c.required_input("v"));
  const heed::view<T, 4> queries = q.view();
  const auto gate = [&](const char* name, T absent) {
    if (const array* g = c.input(name)) return to_tensor<T, 3>(*g);
    heed::tensor<T, 3> all({queries.extent(0), queries.extent(2), queries.extent(1)});
    std::fill_n(all.data(), all.size(), absent);
    return all;
  };
  const auto compressed = gate("g_cmp", T(0));
  const auto selected = gate("g_slc", T(1));
  const auto window = gate("g_swa", T(0));
  const auto heads_first = [](const heed::tensor<T, 3>& g) {
    return heed::as_view(g).swap_axes(1, 2);
  };
  const auto gates =
      heed::nsa::gates(heads_first(compressed), heads_first(selected), heads_first(window));
  token_major<T> out(c.output("o"));
  if (c.input("block_indices") != nullptr) {
    const auto block = c.attribute<index>("block_size", 64);
    const auto chosen = choices_of(c, block, sequences_of(c, queries.extent(2), block));
    heed::native_sparse_attention_into(out.view(), queries, k.view(), v.view(), gates,
                                       native_options(c, 3), heed::nsa::selection(chosen));
  } else {
    heed::native_sparse_attention_into(out.view(), queries, k.view(), v.view(), gates,
                                       native_options(c, c.attribute<index>("block_counts", 16)));
  }
  results.add("o in " + scalar, values_of(heed::as_view(out.memory)), c.output("o"));
}

}  // namespace

bool run_native_sparse(const test_case& c, comparison& results) {
  const std::string function = c.function();
  const auto in_both = [&](const auto& run) {
    run(float{}, "float");
    run(double{}, "double");
    return true;
  };
  if (function == "naive_nsa_selection") {
    return in_both([&]<class T>(T, const char* s) { selected_blocks<T>(c, s, results); });
  }
  if (function == "naive_nsa_compression") {
    return in_both([&]<class T>(T, const char* s) { compressed_branch<T>(c, s, results); });
  }
  if (function == "naive_nsa_topk") {
    return in_both([&]<class T>(T, const char* s) { selection_of_blocks<T>(c, s, results); });
  }
  if (function == "naive_nsa") {
    return in_both([&]<class T>(T, const char* s) { whole<T>(c, s, results); });
  }
  return false;
}

}  // namespace conformance
