// SPDX-License-Identifier: MIT
// Masks: each against its formula, alone and combined, what they say about tiles, and that nothing
// behind a mask is ever seen.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <cstddef>
#include <functional>
#include <vector>

#include "heed/attention.hpp"
#include "heed/score.hpp"
#include "heed/tensor.hpp"
#include "support/attention_oracle.hpp"
#include "support/scalars.hpp"

#if defined(__SANITIZE_ADDRESS__)
#define HEED_TEST_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HEED_TEST_ADDRESS_SANITIZER 1
#endif
#endif
#ifdef HEED_TEST_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif

namespace {

using heed::index;
using heed::position;
using oracle::extents4;
using visibility = std::function<bool(const position&)>;

const std::vector<index> token_counts = {1,  2,  3,  5,  8,   9,   16,  17,  31,  47, 48,
                                         49, 63, 96, 97, 127, 128, 129, 192, 193, 257};

template <class T>
T pick(const std::vector<T>& from) {
  return *rc::gen::elementOf(from);
}

template <class T>
struct arguments {
  heed::tensor<T, 4> q;
  heed::tensor<T, 4> k;
  heed::tensor<T, 4> v;
};

template <class T>
arguments<T> random_arguments(index batch, index kv_heads, index group, index queries, index keys,
                              unsigned seed) {
  return {oracle::random_tensor<T, 4>({batch, kv_heads * group, queries, 18}, seed),
          oracle::random_tensor<T, 4>({batch, kv_heads, keys, 18}, seed + 1),
          oracle::random_tensor<T, 4>({batch, kv_heads, keys, 20}, seed + 2)};
}

std::vector<index> offsets_of(const heed::attention_options& options, index batch) {
  std::vector<index> o;
  for (index b = 0; b < batch; ++b) o.push_back(options.offset[b]);
  return o;
}

/// The kernel and the textbook under `mask` against the definition with the formula `visible`.
template <class T, class... M>
std::string check_formula(const arguments<T>& in, const heed::attention_options& options,
                          const visibility& visible, const M&... masks) {
  const auto want = oracle::by_definition(
      oracle::widened(in.q), oracle::widened(in.k), oracle::widened(in.v), 1 / std::sqrt(18.0),
      offsets_of(options, in.q.extent(0)), [](double s, const position&) { return s; }, visible);
  const auto sizes = oracle::expected(in.q, in.k, in.v, {}).sizes;
  const auto naive = heed::naive_attention_with_lse(in.q, in.k, in.v, options, masks...);
  const auto fast = heed::attention_with_lse(in.q, in.k, in.v, options, masks...);
  std::string text = oracle::difference<T>(naive.output, want.output, sizes);
  if (text.empty()) {
    text = oracle::lse_difference<T>(naive.log_sum_exp, want.log_sum_exp, sizes);
  }
  if (!text.empty()) return "naive: " + text;
  text = oracle::difference<T>(fast.output, want.output, sizes);
  return text.empty() ? oracle::lse_difference<T>(fast.log_sum_exp, want.log_sum_exp, sizes) : text;
}

/// Arguments of any shape, with offsets that put the diagonal anywhere, half of them per batch.
template <class T>
struct any_call {
  index batch = pick<index>({1, 2, 3});
  index queries = pick(token_counts);
  index keys = pick(token_counts);
  unsigned seed = *rc::gen::arbitrary<unsigned>();
  std::vector<index> per_batch;
  arguments<T> in =
      random_arguments<T>(batch, pick<index>({1, 2}), pick<index>({1, 3}), queries, keys, seed);
  heed::attention_options options;

  any_call() {
    if (*rc::gen::arbitrary<bool>()) {
      options.offset = any_offset();
    } else {
      for (index b = 0; b < batch; ++b) per_batch.push_back(any_offset());
      options.offset = per_batch;
    }
    RC_LOG() << "batch " << batch << " queries " << queries << " keys " << keys << " seed " << seed
             << " offset " << heed::format_extents(offsets_of(options, batch)) << "\n";
  }
  any_call(const any_call&) = delete;
  any_call& operator=(const any_call&) = delete;

  [[nodiscard]] index any_offset() const {
    return pick<index>({0, 0, -1, 1, -7, 50, keys - queries, -queries, keys, -queries - 3, -20});
  }
};

// ------------------------------------------------------------------------- each by its formula

template <class T>
class Mask : public testing::Test {};
using scalars = test_scalars::some;
TYPED_TEST_SUITE(Mask, scalars);

TYPED_TEST(Mask, Causal) {
  EXPECT_TRUE(rc::check("causal", [] {
    const any_call<TypeParam> call;
    const auto visible = [](const position& p) { return p.key <= p.query; };
    RC_ASSERT(check_formula(call.in, call.options, visible, heed::causal()) == "");
  }));
}

TYPED_TEST(Mask, Window) {
  EXPECT_TRUE(rc::check("window", [] {
    const any_call<TypeParam> call;
    const auto side = [&]() -> std::optional<index> {
      if (*rc::gen::weightedElement<bool>({{1, true}, {3, false}})) return std::nullopt;
      return pick<index>({0, 1, 2, 3, 15, 16, 40, 100, 127, 300, -1, -2, -30});
    };
    const heed::window w{.left = side(), .right = side()};
    RC_LOG() << "left " << w.left.value_or(9999) << " right " << w.right.value_or(9999) << "\n";
    const auto visible = [&](const position& p) {
      return (!w.left || p.query - *w.left <= p.key) && (!w.right || p.key <= p.query + *w.right);
    };
    RC_ASSERT(check_formula(call.in, call.options, visible, w) == "");
  }));
}

TYPED_TEST(Mask, Lengths) {
  EXPECT_TRUE(rc::check("lengths", [] {
    const any_call<TypeParam> call;
    std::vector<index> lengths;
    for (index b = 0; b < call.batch; ++b) {
      lengths.push_back(*rc::gen::inRange<index>(0, call.keys + 1));
    }
    const auto visible = [&](const position& p) {
      return p.key < lengths[static_cast<std::size_t>(p.batch)];
    };
    RC_ASSERT(check_formula(call.in, call.options, visible, heed::lengths(lengths)) == "");
  }));
}

TYPED_TEST(Mask, Documents) {
  EXPECT_TRUE(rc::check("documents", [] {
    const any_call<TypeParam> call;
    const bool per_batch = *rc::gen::arbitrary<bool>();
    const bool sorted = *rc::gen::arbitrary<bool>();
    const auto ids = [&](index tokens) {
      std::vector<index> all;
      for (index b = 0; b < (per_batch ? call.batch : 1); ++b) {
        auto row = *rc::gen::container<std::vector<index>>(static_cast<std::size_t>(tokens),
                                                           rc::gen::inRange<index>(-2, 3));
        if (sorted) std::sort(row.begin(), row.end());
        all.insert(all.end(), row.begin(), row.end());
      }
      return all;
    };
    const auto q_ids = ids(call.queries);
    const auto k_ids = ids(call.keys);
    const auto visible = [&](const position& p) {
      const index qb = q_ids.size() == static_cast<std::size_t>(call.queries) ? 0 : p.batch;
      const index kb = k_ids.size() == static_cast<std::size_t>(call.keys) ? 0 : p.batch;
      return q_ids[static_cast<std::size_t>(qb * call.queries + p.row)] ==
             k_ids[static_cast<std::size_t>(kb * call.keys + p.key)];
    };
    RC_ASSERT(check_formula(call.in, call.options, visible, heed::documents(q_ids, k_ids)) == "");
  }));
}

/// A tensor of random bools of the extents' last `R` axes, some of them 1, the last perhaps
/// narrower; and what it keeps.
template <int R>
struct random_keep {
  heed::tensor<bool, R> values;

  random_keep(const extents4& scores, unsigned seed) : values(extents(scores)) {
    std::mt19937 engine(seed);
    const auto threshold = pick<unsigned>({1, 50, 50, 95, 100});
    for (index i = 0; i < values.size(); ++i) values.data()[i] = engine() % 100 < threshold;
    RC_LOG() << "mask " << heed::format_extents(values.extents()) << "\n";
  }
  [[nodiscard]] bool operator()(const position& p) const {
    const index at[] = {p.batch, p.head, p.row, p.key};
    index offset = 0;
    for (int a = 0; a < R; ++a) {
      const index i = at[4 - R + a];
      const index e = values.extent(a);
      if (e != 1 && i >= e) return false;  // narrower
      offset = offset * e + (e == 1 ? 0 : i);
    }
    return values.data()[offset];
  }

 private:
  static typename heed::tensor<bool, R>::extents_type extents(const extents4& scores) {
    typename heed::tensor<bool, R>::extents_type e{};
    for (int a = 0; a < R; ++a) {
      const index full = scores[static_cast<std::size_t>(4 - R + a)];
      e[static_cast<std::size_t>(a)] =
          *rc::gen::weightedElement<bool>({{1, true}, {3, false}}) ? 1 : full;
    }
    index& width = e[static_cast<std::size_t>(R - 1)];
    if (*rc::gen::arbitrary<bool>()) width = *rc::gen::inRange<index>(0, width + 1);
    return e;
  }
};

template <int R>
void check_keep() {
  EXPECT_TRUE(rc::check("keep", [] {
    const any_call<float> call;
    const random_keep<R> mask({call.batch, call.in.q.extent(1), call.queries, call.keys},
                              call.seed);
    RC_ASSERT(check_formula(call.in, call.options, std::cref(mask), heed::keep(mask.values)) == "");
  }));
}

TEST(KeepMask, OfKeys) { check_keep<1>(); }
TEST(KeepMask, OfQueriesAndKeys) { check_keep<2>(); }
TEST(KeepMask, OfHeads) { check_keep<3>(); }
TEST(KeepMask, OfBatches) { check_keep<4>(); }

// Integers keep where they are not zero; a view of any strides is a mask.
TEST(KeepMask, OfIntegersAndOfAnyStrides) {
  const auto in = random_arguments<float>(1, 1, 2, 60, 70, 1);
  heed::tensor<int, 2> transposed({70, 60});
  for (index i = 0; i < transposed.size(); ++i) transposed.data()[i] = i % 3 == 0 ? 0 : -2;
  const auto visible = [&](const position& p) { return transposed(p.key, p.row) != 0; };
  EXPECT_EQ(check_formula(in, {}, visible, heed::keep(heed::as_view(transposed).swap_axes(0, 1))),
            "");
}

// ---------------------------------------------------------------------------------- combinations

TEST(MaskCombination, SeveralMasksIntersect) {
  EXPECT_TRUE(rc::check("intersect", [] {
    const any_call<float> call;
    std::vector<index> lengths;
    for (index b = 0; b < call.batch; ++b) {
      lengths.push_back(*rc::gen::inRange<index>(0, call.keys + 1));
    }
    const auto left = pick<index>({0, 3, 40, 130});
    const auto visible = [&](const position& p) {
      return p.key <= p.query && p.key >= p.query - left &&
             p.key < lengths[static_cast<std::size_t>(p.batch)] && p.key % 5 != 2;
    };
    const auto user = [](position p) { return p.key % 5 != 2; };
    RC_ASSERT(check_formula(call.in, call.options, visible, heed::causal(),
                            heed::window{.left = left}, heed::lengths(lengths), user) == "");
    RC_ASSERT(check_formula(call.in, call.options, visible,
                            (user && heed::causal()) && heed::window{.left = left} &&
                                heed::lengths(lengths)) == "");
  }));
}

// The first keys stay visible beside a sliding window.
TEST(MaskCombination, OrUnites) {
  EXPECT_TRUE(rc::check("unite", [] {
    const any_call<float> call;
    const auto left = pick<index>({0, 3, 40, 130});
    const auto first = pick<index>({0, 1, 4, 60});
    const auto visible = [&](const position& p) {
      return p.key <= p.query && (p.key >= p.query - left || p.key < first);
    };
    RC_ASSERT(check_formula(call.in, call.options, visible,
                            heed::causal() && (heed::window{.left = left} || [first](position p) {
                              return p.key < first;
                            })) == "");
    const std::vector<index> lengths(static_cast<std::size_t>(call.batch),
                                     std::min(first, call.keys));
    RC_ASSERT(check_formula(call.in, call.options, visible, heed::causal(),
                            heed::lengths(lengths) || heed::window{.left = left}) == "");
  }));
}

TEST(MaskCombination, NotInverts) {
  EXPECT_TRUE(rc::check("invert", [] {
    const any_call<float> call;
    const auto left = pick<index>({0, 3, 40, 130});
    const auto visible = [&](const position& p) {
      return p.key > p.query || p.key < p.query - left;
    };
    RC_ASSERT(check_formula(call.in, call.options, visible,
                            !(heed::causal() && heed::window{.left = left})) == "");
    RC_ASSERT(check_formula(call.in, call.options, visible,
                            !heed::causal() || !heed::window{.left = left}) == "");
  }));
}

// A user's mask sees every coordinate.
TEST(MaskCombination, AUsersMaskSeesItsPosition) {
  EXPECT_TRUE(rc::check("user's mask", [] {
    const any_call<float> call;
    const auto mask = [](const position& p) {
      return (3 * p.batch + 5 * p.head + 7 * p.kv_head + 11 * p.query + 13 * p.key + 17 * p.row) %
                 4 !=
             0;
    };
    RC_ASSERT(check_formula(call.in, call.options, mask, mask) == "");
  }));
}

TEST(MaskCombination, TheTwoAlignments) {
  const auto in = random_arguments<float>(2, 1, 1, 60, 100, 1);
  const auto top_left = [](const position& p) { return p.key <= p.row; };
  EXPECT_EQ(check_formula(in, {.offset = heed::top_left()}, top_left, heed::causal()), "");
  const auto bottom_right = [](const position& p) { return p.key <= p.row + 40; };
  EXPECT_EQ(
      check_formula(in, {.offset = heed::bottom_right(60, 100)}, bottom_right, heed::causal()), "");
  const std::vector<index> each = {40, -3};
  const auto per_batch = [](const position& p) {
    return p.key <= p.row + (p.batch == 0 ? 40 : -3);
  };
  EXPECT_EQ(check_formula(in, {.offset = each}, per_batch, heed::causal()), "");
}

// A side as far as an index reaches is as good as none.
TEST(MaskCombination, AWindowAsWideAsAnIndex) {
  constexpr index far = std::numeric_limits<index>::max();
  for (const index queries : {2, 60}) {
    const auto in = random_arguments<float>(1, 1, 1, queries, 150, 1);
    for (const index offset : {0, 90, -30}) {
      const auto all = [](const position&) { return true; };
      EXPECT_EQ(check_formula(in, {.offset = offset}, all, heed::window{.left = far, .right = far}),
                "");
      const auto causal = [](const position& p) { return p.key <= p.query; };
      EXPECT_EQ(
          check_formula(in, {.offset = offset}, causal, heed::window{.left = far}, heed::causal()),
          "");
      const auto forward = [](const position& p) { return p.key >= p.query - 5; };
      EXPECT_EQ(
          check_formula(in, {.offset = offset}, forward, heed::window{.left = 5, .right = far}),
          "");
      const auto nothing = [](const position&) { return false; };
      EXPECT_EQ(check_formula(in, {.offset = offset}, nothing, heed::window{.right = -far}), "");
    }
  }
}

// ------------------------------------------------------------------------------ what tiles hold

/// What a mask says about any tile against each of its pairs.
template <class M>
void check_tiles(const M& unbound, const heed::score_extents& e, const heed::attention_options& o) {
  const auto& mask = heed::bind_modifier(unbound, e);
  heed::tile t;
  t.batch = *rc::gen::inRange<index>(0, e.batch);
  t.head = *rc::gen::inRange<index>(0, e.heads);
  t.kv_head = t.head / (e.heads / e.kv_heads);
  t.offset = o.offset[t.batch];
  const auto some = [](index count) {
    const auto begin = *rc::gen::inRange<index>(0, count);
    const auto most = pick<index>({1, 2, 16, 48, 300});
    return heed::range{begin, std::min(count, begin + *rc::gen::inRange<index>(1, most + 1))};
  };
  t.queries = some(e.queries);
  t.queries = {t.queries.begin + t.offset, t.queries.end + t.offset};
  t.keys = some(e.keys);
  bool any = false;
  bool all = true;
  heed::range seen{0, 0};
  for (index p = t.queries.begin; p < t.queries.end; ++p) {
    for (index j = t.keys.begin; j < t.keys.end; ++j) {
      const bool v = mask(position{t.batch, t.head, t.kv_head, p, j, p - t.offset});
      any = any || v;
      all = all && v;
      if (v) seen = heed::hull(seen, {j, j + 1});
    }
  }
  const heed::coverage c = heed::coverage_of(mask, t);
  RC_LOG() << "tile queries " << t.queries.begin << ".." << t.queries.end << " keys "
           << t.keys.begin << ".." << t.keys.end << " offset " << t.offset << "\n";
  if (c == heed::coverage::empty) RC_ASSERT(!any);
  if (c == heed::coverage::full) RC_ASSERT(all);
  const heed::range held = heed::visible_keys_of(mask, t);
  if (!held.empty()) RC_ASSERT(held.begin >= t.keys.begin && held.end <= t.keys.end);
  RC_ASSERT(heed::intersect(held, seen) == seen || seen.empty());
}

TEST(MaskTiles, WhatAMaskSaysOfATileIsTrue) {
  EXPECT_TRUE(rc::check("tiles", [] {
    const any_call<float> call;
    const heed::score_extents e{call.batch, call.in.q.extent(1), call.in.k.extent(1), call.queries,
                                call.keys};
    const auto left = pick<index>({0, 1, 3, 40, 130, -2, -50});
    const auto right = pick<index>({0, 1, 3, 40, 130, -2, -50});
    std::vector<index> lengths;
    for (index b = 0; b < call.batch; ++b) {
      lengths.push_back(*rc::gen::inRange<index>(0, call.keys + 1));
    }
    auto ids = *rc::gen::container<std::vector<index>>(static_cast<std::size_t>(call.queries),
                                                       rc::gen::inRange<index>(0, 4));
    auto key_ids = *rc::gen::container<std::vector<index>>(
        static_cast<std::size_t>(call.keys * call.batch), rc::gen::inRange<index>(0, 4));
    if (*rc::gen::arbitrary<bool>()) {
      std::sort(ids.begin(), ids.end());
      for (index b = 0; b < call.batch; ++b) {
        std::sort(key_ids.begin() + b * call.keys, key_ids.begin() + (b + 1) * call.keys);
      }
    }
    const random_keep<2> random({1, 1, call.queries, call.keys}, call.seed);
    const auto keep = heed::keep(random.values);
    const heed::window w{.left = left, .right = right};
    const heed::documents documents(ids, key_ids);
    const heed::lengths padded(lengths);
    const auto user = [](position p) { return (p.query + p.key) % 3 != 0; };
    check_tiles(heed::causal(), e, call.options);
    check_tiles(w, e, call.options);
    check_tiles(heed::window{.left = left}, e, call.options);
    check_tiles(heed::window{.right = right}, e, call.options);
    check_tiles(padded, e, call.options);
    check_tiles(documents, e, call.options);
    check_tiles(keep, e, call.options);
    check_tiles(heed::causal() && w, e, call.options);
    check_tiles(heed::causal() || w, e, call.options);
    check_tiles(!heed::causal(), e, call.options);
    check_tiles(!w || padded, e, call.options);
    check_tiles(!(documents && padded) && !keep, e, call.options);
    check_tiles(documents || (user && heed::causal()), e, call.options);
    check_tiles(!(user || padded), e, call.options);
  }));
}

// A mask that always answered `partial` would pass the test above; these tiles must be known.
TEST(MaskTiles, TilesAwayFromTheEdgeAreKnown) {
  using heed::coverage;
  const auto tile = [](heed::range queries, heed::range keys) {
    heed::tile t;
    t.queries = queries;
    t.keys = keys;
    return t;
  };
  const auto square = [&](index q, index k) { return tile({q, q + 48}, {k, k + 128}); };
  EXPECT_EQ(heed::causal().coverage(square(127, 0)), coverage::full);
  EXPECT_EQ(heed::causal().coverage(square(126, 0)), coverage::partial);
  EXPECT_EQ(heed::causal().coverage(square(80, 128)), coverage::empty);
  EXPECT_EQ(heed::causal().coverage(square(81, 128)), coverage::partial);
  EXPECT_EQ(heed::causal().visible_keys(square(81, 100)), (heed::range{100, 129}));
  const heed::window w{.left = 200, .right = 0};
  EXPECT_EQ(w.coverage(square(353, 200)), coverage::full);
  EXPECT_EQ(w.coverage(square(354, 200)), coverage::partial);
  EXPECT_EQ(w.coverage(square(400, 0)), coverage::empty) << "left of the window";
  EXPECT_EQ(w.coverage(square(0, 48)), coverage::empty) << "right of the window";
  EXPECT_EQ(w.visible_keys(square(300, 0)), (heed::range{100, 128}));
  const heed::score_extents e{1, 1, 1, 96, 256};
  const std::vector<index> lengths = {128};
  EXPECT_EQ(heed::lengths(lengths).coverage(square(0, 0)), coverage::full);
  EXPECT_EQ(heed::lengths(lengths).coverage(square(0, 128)), coverage::empty);
  EXPECT_EQ(heed::lengths(lengths).coverage(square(0, 1)), coverage::partial);
  std::vector<index> q_ids(96, 0);
  std::fill(q_ids.begin() + 48, q_ids.end(), 1);
  std::vector<index> k_ids(256, 0);
  std::fill(k_ids.begin() + 128, k_ids.end(), 1);
  const heed::documents documents = heed::documents(q_ids, k_ids).bind(e);
  EXPECT_EQ(documents.coverage(square(0, 0)), coverage::full);
  EXPECT_EQ(documents.coverage(square(0, 128)), coverage::empty);
  EXPECT_EQ(documents.coverage(square(48, 0)), coverage::empty);
  EXPECT_EQ(documents.coverage(square(48, 128)), coverage::full);
  EXPECT_EQ((heed::causal() && w).coverage(square(353, 200)), coverage::full);
  EXPECT_EQ((heed::causal() && w).coverage(square(400, 0)), coverage::empty);
  EXPECT_EQ((heed::causal() || w).coverage(square(400, 0)), coverage::full);
  EXPECT_EQ((!heed::causal()).coverage(square(127, 0)), coverage::empty);
  EXPECT_EQ((!heed::causal()).coverage(square(80, 128)), coverage::full);
}

/// While it lives, the address sanitizer reports any access to these bytes; without it, nothing.
class forbidden_bytes {
 public:
  forbidden_bytes(const void* begin, std::size_t bytes) : begin_(begin), bytes_(bytes) {
#ifdef HEED_TEST_ADDRESS_SANITIZER
    ASAN_POISON_MEMORY_REGION(begin_, bytes_);
#endif
  }
  forbidden_bytes(const forbidden_bytes&) = delete;
  forbidden_bytes& operator=(const forbidden_bytes&) = delete;
  ~forbidden_bytes() {
#ifdef HEED_TEST_ADDRESS_SANITIZER
    ASAN_UNPOISON_MEMORY_REGION(begin_, bytes_);
#endif
  }

 private:
  [[maybe_unused]] const void* begin_;
  [[maybe_unused]] std::size_t bytes_;
};

// Work follows the mask: tiles that it makes empty are never computed, and what lies there is never
// read, which the address sanitizer sees.
TEST(MaskTiles, KeysPastTheLengthsAreNeverRead) {
  for (const index queries : {2, 60}) {
    const auto in = random_arguments<float>(1, 1, 1, queries, 40, 1);
    heed::tensor<float, 4> k({1, 1, 1000, 18});
    heed::tensor<float, 4> v({1, 1, 1000, 20});
    for (index j = 0; j < 1000; ++j) {
      for (index c = 0; c < 18; ++c) k(0, 0, j, c) = j < 40 ? in.k(0, 0, j, c) : NAN;
      for (index c = 0; c < 20; ++c) v(0, 0, j, c) = j < 40 ? in.v(0, 0, j, c) : NAN;
    }
    const forbidden_bytes keys(k.data() + 40 * 18, 960 * 18 * sizeof(float));
    const forbidden_bytes values(v.data() + 40 * 20, 960 * 20 * sizeof(float));
    const std::vector<index> lengths = {40};
    EXPECT_TRUE(oracle::same_bits(heed::attention(in.q, k, v, {}, heed::lengths(lengths)),
                                  heed::attention(in.q, in.k, in.v)));
    EXPECT_TRUE(oracle::same_bits(heed::naive_attention(in.q, k, v, {}, heed::lengths(lengths)),
                                  heed::naive_attention(in.q, in.k, in.v)));
  }
}

// ----------------------------------------------------------------- fully masked rows, NaN, Inf

TYPED_TEST(Mask, AFullyMaskedRowGivesZeroAndMinusInfinity) {
  using T = TypeParam;
  for (const index queries : {3, 120}) {
    auto in = random_arguments<T>(1, 2, 2, queries, 130, 1);
    const auto masked_row = [](index row) { return row % 7 == 2 || (row >= 48 && row < 96); };
    const auto mask = [masked_row](const position& p) { return !masked_row(p.row); };
    heed::tensor<T, 4> out({1, 4, queries, 20});
    heed::tensor<heed::accumulate_t<T>, 3> lse({1, 4, queries});
    heed::attention_into(heed::into(out, lse), in.q, in.k, in.v, {}, mask);
    for (index h = 0; h < 4; ++h) {
      for (index i = 0; i < queries; ++i) {
        EXPECT_EQ(lse(0, h, i) == -std::numeric_limits<heed::accumulate_t<T>>::infinity(),
                  masked_row(i));
        for (index c = 0; c < 20; ++c) {
          EXPECT_EQ(out(0, h, i, c) == T(0), masked_row(i)) << "row " << i << " channel " << c;
        }
      }
    }
    EXPECT_EQ(check_formula(in, {}, mask, mask), "");
    // All of them, by four masks that know it from the tile and one that does not.
    const std::vector<index> zero = {0};
    const auto nothing = [](const position&) { return false; };
    EXPECT_EQ(check_formula(in, {.offset = -queries}, nothing, heed::causal()), "");
    EXPECT_EQ(check_formula(in, {.offset = 1000}, nothing, heed::window{.left = 3}), "");
    EXPECT_EQ(check_formula(in, {}, nothing, heed::lengths(zero)), "");
    EXPECT_EQ(check_formula(in, {}, nothing, heed::window{.left = -3, .right = 2}), "");
    EXPECT_EQ(check_formula(in, {}, nothing, nothing), "");
  }
}

/// Numbers that must not be seen: NaN quiet, signed and with a payload, infinities, the largest.
template <class T>
std::vector<T> poisons() {
  std::vector<T> p = {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(),
                      -std::numeric_limits<T>::infinity(), std::numeric_limits<T>::max(),
                      -std::numeric_limits<T>::quiet_NaN()};
  if constexpr (std::is_same_v<T, float>) p.push_back(std::bit_cast<float>(0x7FC00001U));
  if constexpr (std::is_same_v<T, double>) p.push_back(std::bit_cast<double>(0x7FF8000000000001U));
  return p;
}

/// Keys and values that no query of their KV head may see are poisoned, in k, in v or in both; the
/// result must be, to the bit, that of clean ones. `hidden(b, j)`.
template <class T, class Hidden, class... M>
void expect_no_leak(const arguments<T>& in, const heed::attention_options& options, Hidden hidden,
                    const M&... masks) {
  const auto clean = heed::attention_with_lse(in.q, in.k, in.v, options, masks...);
  const auto naive = heed::naive_attention_with_lse(in.q, in.k, in.v, options, masks...);
  for (const T poison : poisons<T>()) {
    for (const int where : {1, 2, 3}) {
      auto k = in.k;
      auto v = in.v;
      for (index b = 0; b < k.extent(0); ++b) {
        for (index h = 0; h < k.extent(1); ++h) {
          for (index j = 0; j < k.extent(2); ++j) {
            if (!hidden(b, j)) continue;
            // Some channels only, as a half-written row would be.
            for (index c = 0; c < k.extent(3); c += 3) {
              if ((where & 1) != 0) k(b, h, j, c) = poison;
            }
            for (index c = 1; c < v.extent(3); c += 2) {
              if ((where & 2) != 0) v(b, h, j, c) = poison;
            }
          }
        }
      }
      const std::string what = std::to_string(static_cast<double>(poison)) + " in " +
                               std::to_string(where) + ", " + std::to_string(in.q.extent(2)) +
                               " queries";
      const auto sizes = oracle::expected(in.q, in.k, in.v, {}).sizes;
      const auto got = heed::attention_with_lse(in.q, k, v, options, masks...);
      EXPECT_EQ(oracle::difference<T>(got.output, oracle::widened(clean.output), sizes), "")
          << what;
      EXPECT_TRUE(oracle::same_bits(got.log_sum_exp, clean.log_sum_exp) ||
                  oracle::lse_difference<T>(
                      got.log_sum_exp,
                      oracle::expected(in.q, in.k, in.v, options, masks...).log_sum_exp, sizes)
                      .empty())
          << what;
      const auto naive_got = heed::naive_attention_with_lse(in.q, k, v, options, masks...);
      EXPECT_TRUE(oracle::same_bits(naive_got.output, naive.output)) << "naive, " << what;
      EXPECT_TRUE(oracle::same_bits(naive_got.log_sum_exp, naive.log_sum_exp)) << "naive, " << what;
    }
  }
}

TYPED_TEST(Mask, NothingBehindAMaskIsSeen) {
  using T = TypeParam;
  for (const index queries : {1, 4, 8, 100}) {
    const auto in = random_arguments<T>(1, 2, 2, queries, 150, 1);
    {
      SCOPED_TRACE("causal");
      expect_no_leak(
          in, {.offset = 30}, [&](index, index j) { return j >= 30 + queries; }, heed::causal());
    }
    {
      SCOPED_TRACE("window");
      expect_no_leak(
          in, {.offset = 45}, [&](index, index j) { return j < 40 || j > 45 + queries - 1 + 3; },
          heed::window{.left = 5, .right = 3});
    }
    {
      SCOPED_TRACE("lengths");
      const std::vector<index> lengths = {77};
      expect_no_leak(in, {}, [](index, index j) { return j >= 77; }, heed::lengths(lengths));
    }
    {
      SCOPED_TRACE("user's mask");
      expect_no_leak(
          in, {}, [](index, index j) { return j % 3 == 1; },
          [](const position& p) { return p.key % 3 != 1; });
    }
    {
      SCOPED_TRACE("keep");
      heed::tensor<bool, 1> mask({110});
      for (index j = 0; j < 110; ++j) mask(j) = j % 4 != 0;
      expect_no_leak(
          in, {}, [](index, index j) { return j >= 110 || j % 4 == 0; }, heed::keep(mask));
    }
    {
      SCOPED_TRACE("not, or");
      expect_no_leak(
          in, {.offset = 30}, [&](index, index j) { return j >= 9 && j <= 30; },
          !heed::causal() || [](position p) { return p.key < 9; });
    }
  }
}

// What an earlier group of queries must not see lies in the same block of keys as what a later one
// may: each row is compared with its own computation on clean keys. Boundaries at odd keys.
TYPED_TEST(Mask, NothingOfAnotherDocumentIsSeen) {
  using T = TypeParam;
  for (const index boundary : {48, 49, 50, 63, 77}) {
    for (const index queries : {4, 96}) {
      auto in = random_arguments<T>(1, 1, 1, queries, 128, 1);
      std::vector<index> q_ids(static_cast<std::size_t>(queries), 0);
      std::fill(q_ids.begin() + queries / 2, q_ids.end(), 1);
      std::vector<index> k_ids(128, 0);
      std::fill(k_ids.begin() + boundary, k_ids.end(), 1);
      const heed::documents documents(q_ids, k_ids);
      const auto clean = heed::attention(in.q, in.k, in.v, {}, documents);
      const auto sizes = oracle::expected(in.q, in.k, in.v, {}).sizes;
      for (const index poisoned : {boundary - 1, boundary}) {
        auto k = in.k;
        auto v = in.v;
        for (index c = 0; c < v.extent(3); ++c) {
          v(0, 0, poisoned, c) = std::numeric_limits<T>::quiet_NaN();
        }
        const auto got = heed::attention(in.q, k, v, {}, documents);
        for (index i = 0; i < queries; ++i) {
          const bool sees = (i >= queries / 2) == (poisoned >= boundary);
          for (index c = 0; c < v.extent(3); ++c) {
            const auto x = static_cast<double>(got(0, 0, i, c));
            const auto y = static_cast<double>(clean(0, 0, i, c));
            const double within = 2 * oracle::tolerance<T>(sizes).output(y);
            EXPECT_TRUE(sees ? std::isnan(x) : std::abs(x - y) <= within)
                << "row " << i << " channel " << c << " is " << x << ", not " << y << "; boundary "
                << boundary << " poisoned " << poisoned;
          }
        }
      }
    }
  }
}

// Causal rows before the poisoned key are clean, rows from it on are NaN; in every kernel.
TYPED_TEST(Mask, AnUnmaskedNanPropagates) {
  using T = TypeParam;
  for (const index queries : {3, 8, 140}) {
    const auto in = random_arguments<T>(1, 1, 2, queries, 140, 1);
    const index offset = 140 - queries;
    const auto want = oracle::expected(in.q, in.k, in.v, {.offset = offset}, heed::causal());
    for (const T poison : poisons<T>()) {
      if (!std::isnan(static_cast<double>(poison))) continue;
      for (const index at : {index{0}, offset + 1, index{139}}) {
        auto k = in.k;
        auto v = in.v;
        k(0, 0, at, 5) = poison;
        v(0, 0, at, 7) = poison;
        for (const bool in_key : {true, false}) {
          const auto got =
              in_key ? heed::attention_with_lse(in.q, k, in.v, {.offset = offset}, heed::causal())
                     : heed::attention_with_lse(in.q, in.k, v, {.offset = offset}, heed::causal());
          for (index h = 0; h < 2; ++h) {
            for (index i = 0; i < queries; ++i) {
              const bool sees = at <= offset + i;
              EXPECT_EQ(std::isnan(static_cast<double>(got.log_sum_exp(0, h, i))), sees && in_key)
                  << "row " << i << " key " << at;
              for (index c = 0; c < 20; ++c) {
                EXPECT_EQ(std::isnan(static_cast<double>(got.output(0, h, i, c))),
                          sees && (in_key || c == 7))
                    << "row " << i << " key " << at << " channel " << c << " of " << queries
                    << " queries, in " << (in_key ? "k" : "v");
                if (sees) continue;
                EXPECT_NEAR(static_cast<double>(got.output(0, h, i, c)), want.output(0, h, i, c),
                            oracle::tolerance<T>(want.sizes).output(want.output(0, h, i, c)));
              }
            }
          }
        }
      }
    }
  }
}

// A NaN in a query is that row's alone; without any mask too.
TYPED_TEST(Mask, ANanInAQueryIsItsRowsAlone) {
  using T = TypeParam;
  for (const index queries : {3, 60}) {
    const auto in = random_arguments<T>(1, 1, 2, queries, 140, 1);
    const auto clean = heed::attention_with_lse(in.q, in.k, in.v);
    for (const T poison : poisons<T>()) {
      if (!std::isnan(static_cast<double>(poison))) continue;
      auto q = in.q;
      q(0, 1, 1, 4) = poison;
      const auto got = heed::attention_with_lse(q, in.k, in.v);
      for (index h = 0; h < 2; ++h) {
        for (index i = 0; i < queries; ++i) {
          const bool poisoned = h == 1 && i == 1;
          EXPECT_EQ(std::isnan(static_cast<double>(got.log_sum_exp(0, h, i))), poisoned);
          for (index c = 0; c < 20; ++c) {
            const auto x = static_cast<double>(got.output(0, h, i, c));
            if (poisoned) {
              EXPECT_TRUE(std::isnan(x)) << x;
            } else {
              EXPECT_EQ(x, static_cast<double>(clean.output(0, h, i, c)));
            }
          }
        }
      }
    }
  }
}

}  // namespace
