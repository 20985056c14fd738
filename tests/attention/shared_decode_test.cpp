// SPDX-License-Identifier: MIT
// Decodes of sequences that begin alike, and of trees of newest tokens: against decodes by
// themselves, path by path.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <vector>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/parallel.hpp"
#include "heed/score.hpp"
#include "support/attention_oracle.hpp"

namespace {

using heed::index;

struct shared_problem {
  shared_problem(index group, std::vector<index> own, std::vector<index> counts, index prefix)
      : cache({.sequences = static_cast<index>(own.size()),
               .kv_heads = 2,
               .pages = 400,
               .page_size = 64,
               .head_dim = 16,
               .value_dim = 12}) {
    const index sequences = cache.batch();
    if (prefix > 0) {
      cache.append(0, oracle::random_tensor<float, 3>({2, prefix, 16}, 1),
                   oracle::random_tensor<float, 3>({2, prefix, 12}, 2));
    }
    for (index s = 1; s < sequences; ++s) cache.fork(0, s);
    starts.push_back(0);
    for (index s = 0; s < sequences; ++s) {
      const auto i = static_cast<std::size_t>(s);
      const index n = own[i] + counts[i];
      const auto seed = static_cast<unsigned>(s);
      cache.append(s, oracle::random_tensor<float, 3>({2, n, 16}, 10 + seed),
                   oracle::random_tensor<float, 3>({2, n, 12}, 40 + seed));
      starts.push_back(starts.back() + counts[i]);
    }
    q = oracle::random_tensor<float, 3>({2 * group, starts.back(), 16}, 3);
  }
  heed::paged_cache<float> cache;
  std::vector<index> starts;
  heed::tensor<float, 3> q;
};

struct results {
  explicit results(const shared_problem& p)
      : out({p.q.extent(0), p.q.extent(1), 12}), lse({p.q.extent(0), p.q.extent(1)}) {}
  heed::tensor<float, 3> out;
  heed::tensor<float, 2> lse;
};

template <class... M>
void check_cascade(const shared_problem& p, index shared, const M&... modifiers) {
  results want(p), first(p);
  heed::ragged_decode_into(heed::into(want.out, want.lse), p.q, p.cache, p.starts, {},
                           modifiers...);
  heed::cascade_decode_into(heed::into(first.out, first.lse), p.q, p.cache, p.starts, shared, {},
                            modifiers...);
  for (const index threads : {1, 3}) {
    heed::thread_pool pool(threads);
    results got(p);
    heed::cascade_decode_into(pool, heed::into(got.out, got.lse), p.q, p.cache, p.starts, shared,
                              {}, modifiers...);
    for (index i = 0; i < got.out.size(); ++i) {
      ASSERT_NEAR(got.out.data()[i], want.out.data()[i], 2e-6) << i;
    }
    for (index i = 0; i < got.lse.size(); ++i) {
      ASSERT_NEAR(got.lse.data()[i], want.lse.data()[i], 4e-6) << i;
    }
    EXPECT_TRUE(oracle::same_bits(got.out, first.out)) << threads;
    EXPECT_TRUE(oracle::same_bits(got.lse, first.lse)) << threads;
  }
}

TEST(CascadeDecode, IsDecodeOfEachSequence) {
  const shared_problem p(4, {100, 0, 2500, 7, 1}, {1, 1, 2, 0, 3}, 4500);
  EXPECT_EQ(heed::shared_tokens(p.cache, p.starts), 4500 / 64 * 64);
  check_cascade(p, 4480, heed::causal());
  check_cascade(p, 100, heed::causal());  // less than a split: read one by one
  check_cascade(p, 4480, heed::causal(), heed::window{.left = 3000},
                [](float s, heed::position at) {
                  return s - 0.001F * static_cast<float>(at.query - at.key) +
                         0.01F * static_cast<float>(at.batch + at.head);
                });
}

TEST(CascadeDecode, IsTheTextbookOfEachSequence) {
  const shared_problem p(2, {30, 0, 9}, {1, 3, 2}, 2200);
  heed::tensor<float, 3> out({4, 6, 12});
  heed::cascade_decode_into(out, p.q, p.cache, p.starts, 2048, {}, heed::causal());
  for (index s = 0; s < 3; ++s) {
    const index begin = p.starts[static_cast<std::size_t>(s)];
    const index end = p.starts[static_cast<std::size_t>(s) + 1];
    const index n = p.cache.length(s);
    heed::tensor<float, 3> k({2, n, 16});
    heed::tensor<float, 3> v({2, n, 12});
    for (index h = 0; h < 2; ++h) {
      for (index j = 0; j < n; ++j) {
        std::copy_n(p.cache.keys(s, h, j).data, 16, &k(h, j, 0));
        std::copy_n(p.cache.values(s, h, j).data, 12, &v(h, j, 0));
      }
    }
    const auto want = oracle::expected(heed::as_view(p.q).slice(1, begin, end), k, v,
                                       {.offset = n - (end - begin)}, heed::causal());
    EXPECT_EQ(
        oracle::difference<float>(heed::as_view(out).slice(1, begin, end), want.output, want.sizes),
        "")
        << s;
  }
}

TEST(CascadeDecode, OfManyRowsAndOfOneHeadEach) {
  check_cascade({8, std::vector<index>(11, 5), std::vector<index>(11, 2), 2100}, 2100,
                heed::causal());
  check_cascade({1, {3, 5, 9}, {1, 1, 1}, 2048}, 2048, heed::causal());
}

TEST(CascadeDecode, MisuseIsRefused) {
  const shared_problem p(1, {3, 5}, {1, 1}, 200);
  results r(p);
  EXPECT_THROW(heed::cascade_decode_into(r.out, p.q, p.cache, p.starts, 204), heed::shape_error);
  EXPECT_THROW(heed::cascade_decode_into(r.out, p.q, p.cache, p.starts, -1), heed::shape_error);
  EXPECT_EQ(r.out(0, 0, 0), 0);
}

/// parents of a random tree, a depth first path in it, and its rows.
std::vector<index> path_to(const std::vector<index>& parents, index token) {
  std::vector<index> path;
  for (index at = token; at >= 0; at = parents[static_cast<std::size_t>(at)]) {
    path.insert(path.begin(), at);
  }
  return path;
}
template <class T, int R>
heed::tensor<T, R> rows(const heed::tensor<T, R>& x, index base, const std::vector<index>& path) {
  auto extents = x.extents();
  extents[2] = base + static_cast<index>(path.size());
  heed::tensor<T, R> out(extents);
  for (index h = 0; h < extents[1]; ++h) {
    for (index j = 0; j < extents[2]; ++j) {
      const index from = j < base ? j : base + path[static_cast<std::size_t>(j - base)];
      for (index c = 0; c < extents[3]; ++c) out(0, h, j, c) = x(0, h, from, c);
    }
  }
  return out;
}

// Each token of the tree attends as the last token of its own path; the accepted path stays.
RC_GTEST_PROP(TreeDecode, IsDecodeOfEachPath, ()) {
  const index base = *rc::gen::element<index>(0, 5, 70);
  const index n = *rc::gen::inRange<index>(1, 20);
  std::vector<index> parents;
  for (index i = 0; i < n; ++i) parents.push_back(*rc::gen::inRange<index>(-1, i));
  const auto k = oracle::random_tensor<float, 4>({1, 2, base + n, 8}, 1);
  const auto v = oracle::random_tensor<float, 4>({1, 2, base + n, 6}, 2);
  const auto q = oracle::random_tensor<float, 4>({1, 4, n, 8}, 3);
  heed::contiguous_cache<float> cache(
      {.kv_heads = 2, .capacity = base + n, .head_dim = 8, .value_dim = 6});
  cache.append(k, v);
  const auto got = heed::decode(q, cache, {}, heed::tree_mask(parents));
  for (index i = 0; i < n; ++i) {
    const auto path = path_to(parents, i);
    const auto row = rows(q, 0, {i});
    const auto want = oracle::expected(row, rows(k, base, path), rows(v, base, path), {});
    heed::tensor<float, 4> mine({1, 4, 1, 6});
    for (index h = 0; h < 4; ++h) {
      for (index c = 0; c < 6; ++c) mine(0, h, 0, c) = got(0, h, i, c);
    }
    RC_ASSERT(oracle::difference<float>(mine, want.output, want.sizes) == "");
  }
  const auto path = path_to(parents, *rc::gen::inRange<index>(0, n));
  heed::accept_path(cache, n, path);
  const auto kept_k = rows(k, base, path);
  const auto kept_v = rows(v, base, path);
  RC_ASSERT(cache.length() == kept_k.extent(2));
  for (index h = 0; h < 2; ++h) {
    for (index j = 0; j < cache.length(); ++j) {
      RC_ASSERT(cache.keys(0, h, j).data[7] == kept_k(0, h, j, 7));
      RC_ASSERT(cache.values(0, h, j).data[0] == kept_v(0, h, j, 0));
    }
  }
}

TEST(TreeDecode, PathsInPagesAndLatents) {
  heed::paged_cache<float> cache({.sequences = 2, .pages = 9, .page_size = 3, .head_dim = 1});
  heed::tensor<float, 3> k({1, 10, 1});
  for (index i = 0; i < 10; ++i) k(0, i, 0) = static_cast<float>(i);
  cache.append(0, k, k);
  cache.fork(0, 1);
  const std::vector<index> path{1, 3, 4};
  EXPECT_THROW(heed::accept_path(cache, 0, 6, path), heed::option_error);
  EXPECT_EQ(cache.length(0), 10);
  cache.clear(1);
  heed::accept_path(cache, 0, 6, path);
  EXPECT_EQ(cache.length(0), 7);
  for (index i = 0; i < 3; ++i) {
    EXPECT_EQ(*cache.keys(0, 0, 4 + i).data,
              static_cast<float>(4 + path[static_cast<std::size_t>(i)]));
  }
  cache.validate();
  const std::vector<index> back{2, 1};
  EXPECT_THROW(heed::accept_path(cache, 0, 3, back), heed::shape_error);
  EXPECT_THROW(heed::accept_path(cache, 0, 8, path), heed::shape_error);
  EXPECT_THROW(heed::accept_path(cache, 2, 3, path), heed::shape_error);

  heed::latent_cache<float> latent({.capacity = 5, .latent_dim = 2, .rope_dim = 1});
  latent.append(oracle::random_tensor<float, 3>({1, 5, 2}, 1),
                oracle::random_tensor<float, 3>({1, 5, 1}, 2));
  const float value = latent.values(0, 0, 3).data[1];
  const float rope = latent.keys(0, 0, 3).data[2];
  const std::vector<index> one{2};
  heed::accept_path(latent, 4, one);
  EXPECT_EQ(latent.length(), 2);
  EXPECT_EQ(latent.values(0, 0, 1).data[1], value);
  EXPECT_EQ(latent.keys(0, 0, 1).data[2], rope);
}

TEST(TreeDecode, MasksThatFitNoTreeAreRefused) {
  const auto x = oracle::random_tensor<float, 4>({1, 1, 3, 4}, 1);
  const std::vector<index> few{-1, 0};
  const std::vector<index> ahead{-1, 1, 0};
  EXPECT_THROW((void)heed::attention(x, x, x, {}, heed::tree_mask(few)), heed::shape_error);
  EXPECT_THROW((void)heed::attention(x, x, x, {}, heed::tree_mask(ahead)), heed::shape_error);
}

}  // namespace
