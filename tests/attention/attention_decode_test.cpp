// SPDX-License-Identifier: MIT
// The contiguous cache, decode token by token and in chunks, few queries beside many, and packed
// sequences of different lengths.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <vector>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/score.hpp"
#include "heed/tensor.hpp"
#include "support/attention_oracle.hpp"
#include "support/expect_error.hpp"
#include "support/scalars.hpp"

namespace {

using heed::index;
using oracle::extents4;
using support::expect_error;

template <class T>
heed::view<const T, 4> tokens(const heed::tensor<T, 4>& t, index begin, index end) {
  return heed::as_view(t).slice(2, begin, end);
}

// --------------------------------------------------------------------------------------- cache

TEST(ContiguousCache, HoldsWhatIsAppended) {
  heed::contiguous_cache<float, double> cache(
      {.batch = 2, .kv_heads = 3, .capacity = 10, .head_dim = 4, .value_dim = 5});
  EXPECT_EQ(cache.capacity(), 10);
  EXPECT_EQ(cache.length(), 0);
  const auto k = oracle::random_tensor<float, 4>({2, 3, 10, 4}, 1);
  const auto v = oracle::random_tensor<double, 4>({2, 3, 10, 5}, 2);
  index length = 0;
  for (const index count : {1, 0, 3, 1, 5}) {
    cache.append(tokens(k, length, length + count), tokens(v, length, length + count));
    length += count;
    EXPECT_EQ(cache.length(), length);
    ASSERT_EQ(cache.keys().extents(), (extents4{2, 3, length, 4}));
    ASSERT_EQ(cache.values().extents(), (extents4{2, 3, length, 5}));
    oracle::each_index({2, 3, length, 4}, [&](index b, index h, index j, index c) {
      EXPECT_EQ(cache.keys()(b, h, j, c), k(b, h, j, c));
    });
    oracle::each_index({2, 3, length, 5}, [&](index b, index h, index j, index c) {
      EXPECT_EQ(cache.values()(b, h, j, c), v(b, h, j, c));
    });
  }
}

// What a half or bfloat16 cache holds is the nearest of its numbers; any layout may be appended.
TEST(ContiguousCache, RoundsToItsScalars) {
  heed::contiguous_cache<heed::bfloat16, heed::half> cache(
      {.batch = 1, .kv_heads = 2, .capacity = 40, .head_dim = 19});
  const auto k = oracle::random_tensor<float, 4>({1, 2, 40, 19}, 1);
  const auto v = oracle::random_tensor<double, 4>({1, 2, 40, 19}, 2);
  const oracle::laid_out<float> backwards(k, {.order = {2, 0, 3, 1}, .backwards = {0, 0, 1, 1}});
  cache.append(backwards.cview(), v);
  oracle::each_index({1, 2, 40, 19}, [&](index b, index h, index j, index c) {
    EXPECT_EQ(static_cast<float>(cache.keys()(b, h, j, c)),
              static_cast<float>(heed::bfloat16(k(b, h, j, c))));
    EXPECT_EQ(static_cast<float>(cache.values()(b, h, j, c)),
              static_cast<float>(heed::half(static_cast<float>(v(b, h, j, c)))));
  });
}

TEST(ContiguousCache, TruncateAndClearForget) {
  heed::contiguous_cache<float> cache({.kv_heads = 2, .capacity = 6, .head_dim = 3});
  const auto k = oracle::random_tensor<float, 3>({2, 6, 3}, 1);
  cache.append(k, k);
  cache.truncate(4);
  EXPECT_EQ(cache.length(), 4);
  const auto more = oracle::random_tensor<float, 3>({2, 2, 3}, 2);
  cache.append(more, more);
  EXPECT_EQ(cache.keys()(0, 1, 3, 2), k(1, 3, 2));
  EXPECT_EQ(cache.keys()(0, 1, 4, 2), more(1, 0, 2));
  expect_error<heed::shape_error>("truncate to 7 tokens, the cache holds 6",
                                  [&] { cache.truncate(7); });
  expect_error<heed::shape_error>("truncate to -1 tokens, the cache holds 6",
                                  [&] { cache.truncate(-1); });
  EXPECT_EQ(cache.length(), 6);
  cache.clear();
  EXPECT_EQ(cache.length(), 0);
  EXPECT_EQ(cache.keys().extent(2), 0);
  cache.append(k, k);
  EXPECT_EQ(cache.length(), 6);
}

TEST(ContiguousCache, AFullCacheSaysSoAndStaysAsItWas) {
  heed::contiguous_cache<float> cache({.kv_heads = 2, .capacity = 5, .head_dim = 3});
  const auto k = oracle::random_tensor<float, 3>({2, 4, 3}, 1);
  cache.append(k, k);
  const auto two = oracle::random_tensor<float, 3>({2, 2, 3}, 2);
  expect_error<heed::capacity_error>("cache holds 4 of 5 tokens, cannot append 2",
                                     [&] { cache.append(two, two); });
  EXPECT_FALSE(cache.try_append(two, two));
  EXPECT_EQ(cache.length(), 4);
  oracle::each_index({1, 2, 4, 3}, [&](index, index h, index j, index c) {
    EXPECT_EQ(cache.keys()(0, h, j, c), k(h, j, c));
  });
  EXPECT_TRUE(
      cache.try_append(heed::as_view(two).slice(1, 0, 1), heed::as_view(two).slice(1, 0, 1)));
  EXPECT_EQ(cache.length(), 5);
  EXPECT_EQ(cache.values()(0, 1, 4, 2), two(1, 0, 2));
}

TEST(ContiguousCache, WhatDoesNotFitIsRefused) {
  heed::contiguous_cache<float> cache(
      {.batch = 2, .kv_heads = 3, .capacity = 9, .head_dim = 4, .value_dim = 5});
  const auto append = [&](const extents4& k, const extents4& v) {
    cache.append(heed::tensor<float, 4>(k), heed::tensor<float, 4>(v));
  };
  const auto refuses = [&](const std::string& message, const extents4& k, const extents4& v) {
    expect_error<heed::shape_error>(message, [&] { append(k, v); });
    EXPECT_EQ(cache.length(), 0);
  };
  refuses("k has batch 1, the cache has 2", {1, 3, 1, 4}, {2, 3, 1, 5});
  refuses("k has heads 2, the cache has 3", {2, 2, 1, 4}, {2, 3, 1, 5});
  refuses("k has head dim 5, the cache has 4", {2, 3, 1, 5}, {2, 3, 1, 5});
  refuses("v has batch 1, the cache has 2", {2, 3, 1, 4}, {1, 3, 1, 5});
  refuses("v has heads 4, the cache has 3", {2, 3, 1, 4}, {2, 4, 1, 5});
  refuses("v has tokens 2, k has 1", {2, 3, 1, 4}, {2, 3, 2, 5});
  refuses("v has value dim 4, the cache has 5", {2, 3, 1, 4}, {2, 3, 1, 4});
  expect_error<heed::shape_error>("view extents [1, 1, -1, 4] are negative", [] {
    heed::contiguous_cache<float>({.capacity = -1, .head_dim = 4});
  });
}

// -------------------------------------------------------------------------------------- decode

/// Prefill in chunks of any sizes, token by token among them, against all at once.
template <class TQ, class TK>
void check_chunks() {
  EXPECT_TRUE(rc::check("chunks", [] {
    const auto batch = *rc::gen::inRange<index>(1, 3);
    const auto kv_heads = *rc::gen::inRange<index>(1, 3);
    const auto group = *rc::gen::element<index>(1, 3, 4);
    const auto seed = *rc::gen::arbitrary<unsigned>();
    auto chunks =
        *rc::gen::resize(10, rc::gen::container<std::vector<index>>(
                                 rc::gen::element<index>(0, 1, 1, 2, 4, 5, 8, 9, 33, 60)));
    chunks.push_back(1);
    index all = 0;
    for (const index c : chunks) all += c;
    const auto q = oracle::random_tensor<TQ, 4>({batch, kv_heads * group, all, 12}, seed);
    const auto k = oracle::random_tensor<TK, 4>({batch, kv_heads, all, 12}, seed + 1);
    const auto v = oracle::random_tensor<TK, 4>({batch, kv_heads, all, 10}, seed + 2);
    const auto e = oracle::expected(q, k, v, {}, heed::causal());
    heed::contiguous_cache<TK> cache({.batch = batch,
                                      .kv_heads = kv_heads,
                                      .capacity = all + 3,
                                      .head_dim = 12,
                                      .value_dim = 10});
    heed::workspace scratch;
    heed::tensor<TQ, 4> out({batch, kv_heads * group, all, 10});
    index at = 0;
    for (const index c : chunks) {
      heed::decode_into(heed::as_view(out).slice(2, at, at + c), tokens(q, at, at + c),
                        tokens(k, at, at + c), tokens(v, at, at + c), cache, {.scratch = &scratch},
                        heed::causal());
      at += c;
      RC_ASSERT(cache.length() == at);
    }
    RC_ASSERT(oracle::difference<TQ>(out, e.output, e.sizes) == "");
  }));
}

TEST(Decode, ChunksGiveWhatTheWholeGives) { check_chunks<float, float>(); }
TEST(Decode, ChunksInDouble) { check_chunks<double, double>(); }
TEST(Decode, ChunksFromAHalfCache) { check_chunks<float, heed::half>(); }
TEST(Decode, ChunksFromABfloat16Cache) { check_chunks<float, heed::bfloat16>(); }
TEST(Decode, ChunksInBfloat16) { check_chunks<heed::bfloat16, heed::bfloat16>(); }

// Every form, its position set from the cache; one that is given is refused.
TEST(Decode, EveryForm) {
  const auto k = oracle::random_tensor<float, 3>({2, 20, 8}, 1);
  const auto v = oracle::random_tensor<float, 3>({2, 20, 6}, 2);
  for (const index n : {1, 3, 15}) {
    const auto q = oracle::random_tensor<float, 3>({4, n, 8}, 3);
    const auto e = oracle::expected(q, k, v, {.scale = 0.3, .offset = 20 - n}, heed::causal());
    const auto full = [&] {
      heed::contiguous_cache<float> cache(
          {.kv_heads = 2, .capacity = 20, .head_dim = 8, .value_dim = 6});
      cache.append(k, v);
      return cache;
    };
    const auto cache = full();
    heed::serial_executor exec;
    const heed::attention_options o{.scale = 0.3};
    EXPECT_THROW((void)heed::decode(q, cache, {.offset = 999}), heed::option_error);
    EXPECT_THROW((void)heed::decode(q, cache, {.offset = std::vector<index>{0}}),
                 heed::option_error);
    EXPECT_EQ(
        oracle::difference<float>(heed::decode(q, cache, o, heed::causal()), e.output, e.sizes),
        "");
    EXPECT_EQ(oracle::difference<float>(heed::decode(exec, q, cache, o, heed::causal()), e.output,
                                        e.sizes),
              "");
    auto growing = full();
    growing.truncate(20 - n);
    const auto newest_k = heed::as_view(k).slice(1, 20 - n, 20);
    const auto newest_v = heed::as_view(v).slice(1, 20 - n, 20);
    EXPECT_EQ(
        oracle::difference<float>(heed::decode(q, newest_k, newest_v, growing, o, heed::causal()),
                                  e.output, e.sizes),
        "");
    EXPECT_EQ(growing.length(), 20);
    growing.truncate(20 - n);
    EXPECT_EQ(oracle::difference<float>(
                  heed::decode(exec, q, newest_k, newest_v, growing, o, heed::causal()), e.output,
                  e.sizes),
              "");
    heed::tensor<float, 3> out({4, n, 6});
    heed::tensor<float, 2> lse({4, n});
    heed::decode_into(heed::into(out, lse), q, cache, o, heed::causal());
    EXPECT_EQ(oracle::difference<float>(out, e.output, e.sizes), "");
    EXPECT_EQ(oracle::lse_difference<float>(lse, e.log_sum_exp, e.sizes), "");
    // No mask is implied.
    const auto open = oracle::expected(q, k, v, {.scale = 0.3});
    EXPECT_EQ(oracle::difference<float>(heed::decode(q, cache, o), open.output, open.sizes), "");
  }
}

// Whatever fails, and however late, the cache and the output are as before.
TEST(Decode, AFailureLeavesCacheAndOutputAsTheyWere) {
  heed::contiguous_cache<float> cache({.kv_heads = 2, .capacity = 4, .head_dim = 3});
  const auto two = oracle::random_tensor<float, 3>({2, 2, 3}, 1);
  cache.append(two, two);
  const auto q = oracle::random_tensor<float, 3>({4, 2, 3}, 2);
  const auto odd_q = oracle::random_tensor<float, 3>({3, 2, 3}, 2);
  const auto wide_q = oracle::random_tensor<float, 3>({4, 2, 5}, 2);
  const auto batch_q = oracle::random_tensor<float, 4>({2, 4, 2, 3}, 2);
  const auto one = heed::as_view(two).slice(1, 0, 1);
  const auto three = oracle::random_tensor<float, 3>({2, 3, 3}, 3);
  const auto three_q = oracle::random_tensor<float, 3>({4, 3, 3}, 2);
  heed::tensor<float, 3> out({4, 2, 3});
  heed::tensor<float, 3> narrow_out({4, 2, 2});
  heed::tensor<float, 2> short_lse({4, 1});
  std::fill_n(out.data(), out.size(), 7.0F);
  const auto refuses = [&](const std::string& message, auto&& call) {
    expect_error<heed::shape_error>(message, call);
    EXPECT_EQ(cache.length(), 2);
    for (index i = 0; i < out.size(); ++i) EXPECT_EQ(out.data()[i], 7.0F);
    oracle::each_index({1, 2, 2, 3}, [&](index, index h, index j, index c) {
      EXPECT_EQ(cache.keys()(0, h, j, c), two(h, j, c));
      EXPECT_EQ(cache.values()(0, h, j, c), two(h, j, c));
    });
  };
  refuses("k has tokens 1, q has 2", [&] { heed::decode_into(out, q, one, one, cache); });
  refuses("q has 3 heads, not a multiple of the cache's 2",
          [&] { (void)heed::decode(odd_q, two, two, cache); });
  refuses("q has head dim 5, the cache has 3",
          [&] { (void)heed::decode(wide_q, two, two, cache); });
  refuses("q has batch 2, the cache has 1", [&] { (void)heed::decode(batch_q, two, two, cache); });
  refuses("out has extents [1, 4, 2, 2], the result has [1, 4, 2, 3]",
          [&] { heed::decode_into(narrow_out, q, two, two, cache); });
  refuses("log-sum-exp has extents [4, 1], q has rows [4, 2]",
          [&] { heed::decode_into(heed::into(out, short_lse), q, two, two, cache); });
  const std::vector<float> logits = {1, 2};
  refuses("sink has 2 logits, q has 4 heads",
          [&] { heed::decode_into(out, q, two, two, cache, {}, heed::sink(logits)); });
  const heed::tensor<float, 1> bias({9});
  refuses(
      "bias has extents [1, 1, 1, 9], the scores have [1, 4, 2, 4] (batch, heads, queries, keys)",
      [&] { heed::decode_into(out, q, two, two, cache, {}, heed::bias(bias)); });
  expect_error<heed::capacity_error>("cache holds 2 of 4 tokens, cannot append 3",
                                     [&] { (void)heed::decode(three_q, three, three, cache); });
  EXPECT_EQ(cache.length(), 2);
  refuses("q has 3 tokens, the cache holds 2", [&] { (void)heed::decode(three_q, cache); });
  // And then it works.
  heed::decode_into(out, q, two, two, cache, {}, heed::causal());
  EXPECT_EQ(cache.length(), 4);
}

// ------------------------------------------------------------------------ few queries and many

// Both sides of the count at which one kernel hands over to the other, every grouping.
template <class T>
class FewQueries : public testing::Test {};
using scalars = test_scalars::some;
TYPED_TEST_SUITE(FewQueries, scalars);

TYPED_TEST(FewQueries, EveryCountAndGroup) {
  using T = TypeParam;
  for (index n = 1; n <= 10; ++n) {
    for (const auto& [kv_heads, group] :
         {std::pair<index, index>{1, 1}, {1, 32}, {2, 3}, {3, 1}, {1, 5}}) {
      for (const index keys : {1, 255, 1030}) {
        const auto q = oracle::random_tensor<T, 3>({kv_heads * group, n, 35}, 1);
        const auto k = oracle::random_tensor<T, 3>({kv_heads, keys, 35}, 2);
        const auto v = oracle::random_tensor<T, 3>({kv_heads, keys, 37}, 3);
        EXPECT_EQ(oracle::check(q, k, v, {.offset = keys - n}, heed::causal()), "")
            << n << " queries, " << kv_heads << " x " << group << " heads, " << keys << " keys";
      }
    }
  }
}

// A window leaves whole splits unseen; a NaN there is not seen either.
TYPED_TEST(FewQueries, SplitsThatNoQuerySees) {
  using T = TypeParam;
  for (const index n : {1, 4}) {
    const auto q = oracle::random_tensor<T, 3>({4, n, 16}, 1);
    auto k = oracle::random_tensor<T, 3>({2, 5000, 16}, 2);
    const auto v = oracle::random_tensor<T, 3>({2, 5000, 16}, 3);
    EXPECT_EQ(oracle::check(q, k, v, {.offset = 5000 - n}, heed::window{.left = 1500}), "");
    for (index j = 0; j < 3000; ++j) k(0, j, 3) = std::numeric_limits<T>::quiet_NaN();
    for (index j = 4100; j < 5000; ++j) k(1, j, 3) = std::numeric_limits<T>::infinity();
    EXPECT_EQ(
        oracle::check(q, k, v, {.offset = 4100 - n}, heed::window{.left = 900}, heed::causal()),
        "");
  }
}

// -------------------------------------------------------------------------------------- ragged

/// Each sequence of the packed result against the textbook on that sequence alone.
template <class T, class Modifiers>
void check_ragged(const std::vector<index>& q_lengths, const std::vector<index>& k_lengths,
                  unsigned seed, Modifiers modifiers) {
  std::vector<index> cu_seqlens_q = {0};
  std::vector<index> cu_seqlens_k = {0};
  for (const index n : q_lengths) cu_seqlens_q.push_back(cu_seqlens_q.back() + n);
  for (const index m : k_lengths) cu_seqlens_k.push_back(cu_seqlens_k.back() + m);
  std::vector<index> offset;
  for (std::size_t s = 0; s < q_lengths.size(); ++s) offset.push_back(k_lengths[s] - q_lengths[s]);
  const auto q = oracle::random_tensor<T, 3>({4, cu_seqlens_q.back(), 12}, seed);
  const auto k = oracle::random_tensor<T, 3>({2, cu_seqlens_k.back(), 12}, seed + 1);
  const auto v = oracle::random_tensor<T, 3>({2, cu_seqlens_k.back(), 10}, seed + 2);
  heed::tensor<T, 3> out({4, cu_seqlens_q.back(), 10});
  heed::tensor<heed::accumulate_t<T>, 2> lse({4, cu_seqlens_q.back()});
  std::fill_n(out.data(), out.size(), std::numeric_limits<T>::quiet_NaN());
  modifiers([&](const auto&... m) {
    heed::ragged_attention_into(heed::into(out, lse), q, k, v, cu_seqlens_q, cu_seqlens_k,
                                {.offset = offset}, m...);
    RC_ASSERT(oracle::same_bits(out, heed::ragged_attention(q, k, v, cu_seqlens_q, cu_seqlens_k,
                                                            {.offset = offset}, m...)));
    for (std::size_t s = 0; s < q_lengths.size(); ++s) {
      const auto rows = [&](const auto& t, const std::vector<index>& starts) {
        return heed::as_view(t).slice(1, starts[s], starts[s + 1]);
      };
      const auto e = oracle::expected(rows(q, cu_seqlens_q), rows(k, cu_seqlens_k),
                                      rows(v, cu_seqlens_k), {.offset = offset[s]}, m...);
      RC_ASSERT(oracle::difference<T>(rows(out, cu_seqlens_q), e.output, e.sizes) == "");
      RC_ASSERT(oracle::lse_difference<T>(rows(lse, cu_seqlens_q), e.log_sum_exp, e.sizes) == "");
    }
  });
}

template <class T>
void check_any_ragged() {
  EXPECT_TRUE(rc::check("ragged", [] {
    const auto count = *rc::gen::inRange<std::size_t>(0, 6);
    const auto few = *rc::gen::arbitrary<bool>();
    const auto lengths = rc::gen::element<index>(0, 0, 1, 1, 2, 5, 17, 48, 49, 130, 200);
    const auto q_lengths = *rc::gen::container<std::vector<index>>(
        count, few ? rc::gen::element<index>(0, 1, 1, 2, 3) : lengths);
    const auto k_lengths = *rc::gen::container<std::vector<index>>(count, lengths);
    const auto seed = *rc::gen::arbitrary<unsigned>();
    check_ragged<T>(q_lengths, k_lengths, seed, [](auto&& f) { f(); });
    check_ragged<T>(q_lengths, k_lengths, seed, [](auto&& f) { f(heed::causal(), heed::alibi()); });
  }));
}

TEST(Ragged, EachSequenceIsAttentionOfItsOwn) { check_any_ragged<float>(); }
TEST(Ragged, InBfloat16) { check_any_ragged<heed::bfloat16>(); }
TEST(Ragged, InDouble) { check_any_ragged<double>(); }

// One decoding sequence of thousands of keys beside short ones: splits that some do not reach.
TEST(Ragged, LongBesideShort) {
  EXPECT_TRUE(rc::check("long beside short", [] {
    check_ragged<float>({1, 1, 0, 2}, {3, 2500, 7, 1025}, *rc::gen::arbitrary<unsigned>(),
                        [](auto&& f) { f(heed::causal()); });
  }));
}

// To modifiers a sequence is a batch, its rows and keys counted from its own start.
TEST(Ragged, ModifiersSeeTheSequence) {
  const std::vector<index> cu_seqlens_q = {0, 3, 3, 63};
  const std::vector<index> cu_seqlens_k = {0, 5, 9, 79};
  const auto q = oracle::random_tensor<float, 3>({2, 63, 8}, 1);
  const auto k = oracle::random_tensor<float, 3>({2, 79, 8}, 2);
  const std::vector<index> offset = {2, 0, 10};
  const auto mask = [](const heed::position& p) {
    const index own_offset = p.batch == 0 ? 2 : p.batch == 2 ? 10 : 0;
    const index rows = p.batch == 0 ? 3 : 60;
    const index keys = p.batch == 0 ? 5 : 70;
    return p.query == p.row + own_offset && p.row >= 0 && p.row < rows && p.key >= 0 &&
           p.key < keys && (p.key + p.batch) % 2 == 0;
  };
  const auto got =
      heed::ragged_attention(q, k, k, cu_seqlens_q, cu_seqlens_k, {.offset = offset}, mask);
  for (const std::size_t s : {0U, 2U}) {
    const auto qs = heed::as_view(q).slice(1, cu_seqlens_q[s], cu_seqlens_q[s + 1]);
    const auto ks = heed::as_view(k).slice(1, cu_seqlens_k[s], cu_seqlens_k[s + 1]);
    const auto e =
        oracle::expected(qs, ks, ks, {}, [](const heed::position& p) { return p.key % 2 == 0; });
    EXPECT_EQ(
        oracle::difference<float>(heed::as_view(got).slice(1, cu_seqlens_q[s], cu_seqlens_q[s + 1]),
                                  e.output, e.sizes),
        "");
  }
  // Token-major arguments come in through heads_first.
  heed::tensor<float, 3> token_major({63, 2, 8});
  oracle::each_index({1, 2, 63, 8},
                     [&](index, index h, index i, index c) { token_major(i, h, c) = q(h, i, c); });
  heed::tensor<float, 3> token_major_out({63, 2, 8});
  heed::ragged_attention_into(heed::heads_first(token_major_out), heed::heads_first(token_major), k,
                              k, cu_seqlens_q, cu_seqlens_k, {.offset = offset}, mask);
  oracle::each_index({1, 2, 63, 8}, [&](index, index h, index i, index c) {
    EXPECT_EQ(token_major_out(i, h, c), got(h, i, c));
  });
}

TEST(Ragged, StartsThatDoNotFitAreRefused) {
  const auto q = oracle::random_tensor<float, 3>({2, 6, 8}, 1);
  const auto k = oracle::random_tensor<float, 3>({2, 9, 8}, 2);
  heed::tensor<float, 3> out({2, 6, 8});
  std::fill_n(out.data(), out.size(), 7.0F);
  const auto refuses = [&](const std::string& message, const std::vector<index>& cu_seqlens_q,
                           const std::vector<index>& cu_seqlens_k) {
    expect_error<heed::shape_error>(
        message, [&] { heed::ragged_attention_into(out, q, k, k, cu_seqlens_q, cu_seqlens_k); });
    for (index i = 0; i < out.size(); ++i) EXPECT_EQ(out.data()[i], 7.0F);
  };
  refuses("cu_seqlens_q runs from nothing to nothing, q has tokens 0 to 6", {}, {0, 9});
  refuses("cu_seqlens_q runs from 1 to 6, q has tokens 0 to 6", {1, 6}, {0, 9});
  refuses("cu_seqlens_q runs from 0 to 5, q has tokens 0 to 6", {0, 5}, {0, 9});
  refuses("cu_seqlens_k runs from 0 to 8, k has tokens 0 to 9", {0, 6}, {0, 8});
  refuses("cu_seqlens_q decreases from 4 to 3", {0, 4, 3, 6}, {0, 4, 5, 9});
  refuses("cu_seqlens_k decreases from 8 to 5", {0, 3, 4, 6}, {0, 8, 5, 9});
  refuses("cu_seqlens_k has entries 3, cu_seqlens_q has 2", {0, 6}, {0, 4, 9});
}

}  // namespace
