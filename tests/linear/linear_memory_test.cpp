// SPDX-License-Identifier: MIT
// An allocation that fails: no function of the linear family has written to its output or its state.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "heed/linear.hpp"
#include "heed/tensor.hpp"

namespace {

/// Allocations still to succeed; negative: all do.
long remaining = -1;
bool failed = false;

void* take(std::size_t bytes, std::size_t alignment) {
  if (remaining == 0) {
    failed = true;
    throw std::bad_alloc();
  }
  if (remaining > 0) --remaining;
  void* const p = std::aligned_alloc(alignment, (bytes + alignment) / alignment * alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

void* operator new(std::size_t bytes) { return take(bytes, alignof(std::max_align_t)); }
void* operator new[](std::size_t bytes) { return take(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t a) {
  return take(bytes, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t bytes, std::align_val_t a) {
  return take(bytes, static_cast<std::size_t>(a));
}
// g++ takes the pair of new and free for a mistake where it has inlined one of the two.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

namespace {

using heed::index;
using heed::linear_form;
using heed::recurrence_options;
using heed::tensor;

template <class T, int R>
void fill(tensor<T, R>& t, unsigned seed, float low, float high) {
  for (index i = 0; i < t.size(); ++i) {
    seed = seed * 1664525U + 1013904223U;
    t.data()[i] = low + (high - low) * static_cast<float>(seed >> 8) / 16777216.0F;
  }
}
template <std::size_t R>
auto numbers(const index (&extents)[R], unsigned seed, float low = -1, float high = 1) {
  tensor<float, static_cast<int>(R)> t(std::to_array(extents));
  fill(t, seed, low, high);
  return t;
}

/// What a call writes; copied before it.
class written {
 public:
  template <class... Tensors>
  explicit written(Tensors&... all) {
    (parts_.push_back({all.data(), {all.data(), all.data() + all.size()}}), ...);
  }
  [[nodiscard]] bool unchanged() const {
    for (const part& p : parts_) {
      if (!p.copy.empty() && std::memcmp(p.at, p.copy.data(), p.copy.size() * sizeof(float)) != 0) {
        return false;
      }
    }
    return true;
  }

 private:
  struct part {
    const float* at;
    std::vector<float> copy;
  };
  std::vector<part> parts_;
};

/// Each allocation of the call fails once, until it has no more of them.
void expect_all_or_nothing(const char* name, const written& w, const std::function<void()>& call) {
  int failures = 0;
  for (long n = 0;; ++n) {
    ASSERT_LT(n, 100) << name;
    failed = false;
    bool thrown = false;
    remaining = n;
    try {
      call();
    } catch (const std::bad_alloc&) {
      thrown = true;
    }
    remaining = -1;
    ASSERT_EQ(thrown, failed) << name << ", allocation " << n;
    if (!thrown) break;
    ++failures;
    ASSERT_TRUE(w.unchanged()) << name << ", allocation " << n;
  }
  EXPECT_GT(failures, 0) << name << " allocated nothing";
  EXPECT_FALSE(w.unchanged()) << name << " wrote nothing";
}

/// Three sequences one after another, of which the middle one is by far the longest.
const std::vector<index> bounds{0, 3, 1100, 1120};
constexpr index tokens = 1120;

struct ragged_call {
  tensor<float, 4> q = numbers({1, 2, tokens, 16}, 1), k = numbers({1, 2, tokens, 16}, 2),
                   v = numbers({1, 2, tokens, 8}, 3), out = numbers({1, 2, tokens, 8}, 4),
                   state = numbers({3, 2, 16, 8}, 5),
                   rows = numbers({1, 2, tokens, 16}, 6, -0.2F, 0.0F);
  tensor<float, 3> g = numbers({1, 2, tokens}, 7, -1, 0), beta = numbers({1, 2, tokens}, 8, 0, 1);
  tensor<float, 2> u = numbers({2, 16}, 9);
  tensor<float, 1> rate = numbers({2}, 10, -1, 0);
};

/// A runtime of OpenMP that starts while allocations fail never lets go of its own lock. So the
/// default executor has its threads before.
class LinearAllocationFailure : public ::testing::Test {
 protected:
  void SetUp() override {
    const ragged_call x;
    (void)heed::linear_attention(x.q, x.k, x.v);
  }
};

TEST_F(LinearAllocationFailure, MatrixStates) {
  for (const linear_form form : {linear_form::recurrent, linear_form::chunked, linear_form::scan}) {
    const recurrence_options o{.form = form, .sequence_bounds = bounds};
    ragged_call c;
    const auto expect = [&](const char* name, const auto& call) {
      expect_all_or_nothing(name, written(c.out, c.state), call);
    };
    expect("retention", [&] { heed::retention_into(c.out, c.q, c.k, c.v, c.state, o); });
    expect("lightning", [&] {
      heed::lightning_attention_into(c.out, c.q, c.k, c.v, heed::layer_position{1, 4}, c.state, o);
    });
    expect("scalar gated",
           [&] { heed::scalar_gated_attention_into(c.out, c.q, c.k, c.v, c.g, c.state, o); });
    expect("gated", [&] { heed::gated_attention_into(c.out, c.q, c.k, c.v, c.rows, c.state, o); });
    expect("delta",
           [&] { heed::delta_attention_into(c.out, c.q, c.rows, c.v, c.beta, c.state, o); });
    expect("gated delta", [&] {
      heed::gated_delta_attention_into(c.out, c.q, c.rows, c.v, c.g, c.beta, c.state, o);
    });
    expect("channel gated delta", [&] {
      heed::channel_gated_delta_attention_into(c.out, c.q, c.rows, c.v, c.rows, c.beta, c.state, o);
    });
    expect("low rank", [&] {
      heed::low_rank_attention_into(c.out, c.q, c.k, c.v, c.rows, c.rows, c.state, o);
    });
    expect("rwkv6", [&] { heed::rwkv6_into(c.out, c.q, c.k, c.v, c.rows, c.u, c.state, o); });
    expect("rwkv7",
           [&] { heed::rwkv7_into(c.out, c.q, c.k, c.v, c.rows, c.rows, c.rows, c.state, o); });
    expect("ssd",
           [&] { heed::ssd_into(c.out, c.q, c.k, c.v, c.beta, c.rate, c.rate, c.state, o); });
  }
}

TEST_F(LinearAllocationFailure, NormalisedRetention) {
  for (const linear_form form :
       {linear_form::recurrent, linear_form::chunked, linear_form::parallel, linear_form::scan}) {
    const recurrence_options o{.form = form, .sequence_bounds = bounds};
    ragged_call c;
    heed::retention_state<float> state({.batch = 3, .heads = 2, .key_dim = 16, .value_dim = 8});
    expect_all_or_nothing("normalised retention",
                          written(c.out, state.sum, state.keys, state.decays),
                          [&] { heed::normalised_retention_into(c.out, c.q, c.k, c.v, state, o); });
    fill(c.out, 11, -1, 1);
    expect_all_or_nothing("normalised retention without a state", written(c.out),
                          [&] { heed::normalised_retention_into(c.out, c.q, c.k, c.v, o); });
  }
}

TEST_F(LinearAllocationFailure, Kernelised) {
  for (const linear_form form :
       {linear_form::recurrent, linear_form::chunked, linear_form::parallel, linear_form::scan}) {
    ragged_call c;
    heed::linear_state<float> state({.batch = 3, .kv_heads = 2, .features = 16, .value_dim = 8});
    for (const bool causal : {true, false}) {
      expect_all_or_nothing("linear attention", written(c.out, state.sum(), state.normaliser()),
                            [&] {
                              heed::linear_attention_into(
                                  c.out, c.q, c.k, c.v, state,
                                  {.causal = causal, .form = form, .sequence_bounds = bounds});
                            });
    }
  }
}

TEST_F(LinearAllocationFailure, BlocksOfFeatures) {
  const heed::random_directions<float> w(16, 32, 1);
  for (const index keys : {3, 600}) {
    for (const bool causal : {true, false}) {
      const index queries = causal ? keys : 300;
      const auto q = numbers({1, 2, queries, 16}, 1), k = numbers({1, 2, keys, 16}, 2),
                 v = numbers({1, 2, keys, 8}, 3);
      auto out = numbers({1, 2, queries, 8}, 4);
      heed::linear_state<float> state({.batch = 1, .kv_heads = 2, .features = 32, .value_dim = 8});
      expect_all_or_nothing("performer", written(out, state.sum(), state.normaliser()), [&] {
        heed::performer_attention_into(out, q, k, v, w, state,
                                       heed::performer_options{.causal = causal});
      });
      heed::linear_state<float> cos({.batch = 1, .kv_heads = 2, .features = 32, .value_dim = 8});
      expect_all_or_nothing("cosformer", written(out, cos.sum(), cos.normaliser()), [&] {
        heed::cosformer_attention_into(out, q, k, v, cos,
                                       heed::cosformer_options{.causal = causal, .horizon = 1000});
      });
    }
  }
}

/// The call is refused and has written nothing.
template <class Call>
void expect_refused(const char* name, const written& w, const Call& call) {
  std::string message;
  try {
    call();
  } catch (const heed::option_error& e) {
    message = e.what();
  }
  EXPECT_NE(message.find("in use by another call"), std::string::npos) << name << ": " << message;
  EXPECT_TRUE(w.unchanged()) << name;
}

TEST(LinearScale, IsANumberOfTheAccumulator) {
  const auto refused = [](const auto& call) {
    try {
      call();
    } catch (const heed::option_error& e) {
      return std::string(e.what()).find("scale") != std::string::npos;
    }
    return false;
  };
  ragged_call c;
  const heed::random_directions<float> w(16, 32, 1);
  for (const double scale : {1e40, -1e40, std::nan(""), HUGE_VAL}) {
    const written untouched(c.out, c.state);
    const recurrence_options o{.scale = scale};
    EXPECT_TRUE(refused([&] { heed::retention_into(c.out, c.q, c.k, c.v, o); })) << scale;
    EXPECT_TRUE(refused([&] {
      heed::linear_attention_into(c.out, c.q, c.k, c.v, {.normalise = false, .scale = scale});
    })) << scale;
    EXPECT_TRUE(refused([&] {
      heed::performer_attention_into(c.out, c.q, c.k, c.v, w,
                                     heed::performer_options{.scale = scale});
    })) << scale;
    EXPECT_TRUE(untouched.unchanged());
  }
}

TEST(LinearScratch, InUseIsRefused) {
  heed::workspace scratch;
  const heed::random_directions<float> w(16, 32, 1);
  ragged_call c;
  heed::linear_state<float> state({.batch = 1, .kv_heads = 2, .features = 32, .value_dim = 8});
  heed::retention_state<float> kept({.batch = 1, .heads = 2, .key_dim = 16, .value_dim = 8});
  const auto x = numbers({1, 100, tokens}, 1);
  const auto weight = numbers({100, 4}, 2);
  auto mixed = numbers({1, 100, tokens}, 3);
  const auto s = numbers({1, tokens, 20}, 1), dt = numbers({1, tokens, 20}, 2, -1, 0);
  auto y = numbers({1, tokens, 20}, 6);
  auto h = numbers({1, 20}, 9);
  {
    heed::scratch_lease taken(&scratch);
    const recurrence_options o{.scratch = &scratch};
    expect_refused("retention", written(c.out),
                   [&] { heed::retention_into(c.out, c.q, c.k, c.v, o); });
    expect_refused("normalised retention", written(c.out, kept.sum, kept.keys, kept.decays),
                   [&] { heed::normalised_retention_into(c.out, c.q, c.k, c.v, kept, o); });
    expect_refused("linear attention", written(c.out), [&] {
      heed::linear_attention_into(c.out, c.q, c.k, c.v, {.scratch = &scratch});
    });
    expect_refused("performer", written(c.out, state.sum(), state.normaliser()), [&] {
      heed::performer_attention_into(c.out, c.q, c.k, c.v, w, state,
                                     heed::performer_options{.scratch = &scratch});
    });
    expect_refused("cosformer", written(c.out, state.sum(), state.normaliser()), [&] {
      heed::cosformer_attention_into(
          c.out, c.q, c.k, c.v, state,
          heed::cosformer_options{.horizon = 2 * tokens, .scratch = &scratch});
    });
    expect_refused("convolution", written(mixed),
                   [&] { heed::causal_convolution_into(mixed, x, weight, {.scratch = &scratch}); });
    expect_refused("hgrn", written(y, h),
                   [&] { heed::hgrn_into(y, s, dt, h, heed::scan_options{.scratch = &scratch}); });
  }
  heed::retention_into(c.out, c.q, c.k, c.v, recurrence_options{.scratch = &scratch});
  heed::hgrn_into(y, s, dt, h, heed::scan_options{.scratch = &scratch});
}

TEST_F(LinearAllocationFailure, ConvolutionAndScans) {
  const auto x = numbers({1, 100, tokens}, 1);
  const auto weight = numbers({100, 4}, 2);
  auto out = numbers({1, 100, tokens}, 3), past = numbers({3, 100, 3}, 4);
  expect_all_or_nothing("convolution", written(out, past), [&] {
    heed::causal_convolution_into(out, x, weight,
                                  {.state = heed::as_view(past), .sequence_bounds = bounds});
  });
  const auto s = numbers({1, tokens, 20}, 1), dt = numbers({1, tokens, 20}, 2, -1, 0),
             b = numbers({1, tokens, 4}, 3);
  const auto a = numbers({20, 4}, 4, 0, 1);
  const auto decay = numbers({20}, 5);
  auto y = numbers({1, tokens, 20}, 6), h4 = numbers({3, 20, 4}, 7), r = numbers({3, 3, 20}, 8, 0);
  auto h = numbers({3, 20}, 9);
  for (const std::optional<linear_form> form :
       {std::optional<linear_form>(), std::optional(linear_form::scan)}) {
    const heed::scan_options o{.form = form, .sequence_bounds = bounds};
    expect_all_or_nothing("hgrn", written(y, h), [&] { heed::hgrn_into(y, s, dt, h, o); });
    expect_all_or_nothing("rwkv4", written(y, r),
                          [&] { heed::rwkv4_into(y, s, s, decay, decay, r, o); });
    expect_all_or_nothing("selective scan", written(y, h4), [&] {
      heed::selective_scan_into(
          y, s, dt, a, b, b, h4,
          heed::selective_scan_options<float>{.form = form, .sequence_bounds = bounds});
    });
  }
}

}  // namespace
