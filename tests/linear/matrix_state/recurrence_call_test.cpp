// SPDX-License-Identifier: MIT
// How the recurrences with a matrix state are called: in pieces, ragged, by many threads, without
// tokens, with a NaN or a wrong argument, and with very many tokens.
#include <rapidcheck.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "heed/parallel.hpp"
#include "linear/matrix_state/recurrence_oracle.hpp"

namespace {

using namespace recurrence_test;
using heed::index;

template <class T>
using state_of = laid_out<heed::accumulate_t<T>, 4>;

/// A state written to a file and read again.
template <class A>
laid_out<A, 4> restored(const laid_out<A, 4>& state) {
  std::vector<std::byte> file(static_cast<std::size_t>(state.size()) * sizeof(A));
  if (!file.empty()) std::memcpy(file.data(), state.view().data(), file.size());
  laid_out<A, 4> again(state.view().extents());
  if (!file.empty()) std::memcpy(again.view().data(), file.data(), file.size());
  return again;
}

/// The tokens between cuts one after another, the state saved and restored between them.
template <class T>
void run_pieces(method m, const inputs<T>& p, const std::vector<index>& cuts, laid_out<T, 4>& out,
                state_of<T>& state, const recurrence_options& o) {
  heed::serial_executor exec;
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
    state_of<T> again = restored(state);
    run(exec, m, out.view().slice(2, cuts[i], cuts[i + 1]), p.tokens(cuts[i], cuts[i + 1]),
        again.view(), o);
    state = again;
  }
}

template <class T>
void expect_pieces() {
  const bool held = rc::check([] {
    shape s{1, 2, 2, 2, *rc::gen::inRange<index>(1, 120), 17, 20};
    s.q_heads *= *rc::gen::element<index>(1, 2);
    const auto seed = *rc::gen::arbitrary<std::uint32_t>();
    auto cuts = *rc::gen::container<std::vector<index>>(rc::gen::inRange<index>(0, s.tokens + 1));
    cuts.push_back(0);
    cuts.push_back(s.tokens);
    std::sort(cuts.begin(), cuts.end());  // equal neighbours: pieces without tokens
    const problem<T> p(s, gates::mild, seed);
    SCOPED_TRACE(s.text());
    for_each_method([&](method m) {
      const heed::view<const heed::accumulate_t<T>, 4> start = p.state.view();
      const expected want = definition(m, s, start)(p.in());
      laid_out<T, 4> whole(want.out.extents()), out(want.out.extents());
      auto state = p.state, whole_state = p.state;
      run_pieces(m, p.in(), cuts, out, state, {});
      expect_near(out.view(), want.out, want.out_error, "pieces");
      expect_near(state.view(), want.state, want.state_error, "pieces' state");
      // Token by token the pieces do not show at all, nor in chunks where they are whole, as long as
      // the state is not summed with a compensation, which ends with a call: up to 16 chunks.
      for (const auto form : {linear_form::recurrent, linear_form::chunked}) {
        const recurrence_options o{.form = form, .chunk = 5};
        if (s.tokens > 16 * (form == linear_form::chunked ? 5 : 1)) continue;
        auto at = cuts;
        for (index& c : at) c = form == linear_form::chunked && c < s.tokens ? c / 5 * 5 : c;
        state = whole_state = p.state;
        run_pieces(m, p.in(), at, out, state, o);
        run_pieces(m, p.in(), {0, s.tokens}, whole, whole_state, o);
        EXPECT_TRUE(same_bits(out.view(), whole.view())) << int(form);
        EXPECT_TRUE(same_bits(state.view(), whole_state.view())) << int(form);
      }
    });
    RC_ASSERT(!testing::Test::HasFailure());
  });
  EXPECT_TRUE(held);
}
TEST(RecurrenceCalls, PiecesMakeTheWhole) { expect_pieces<float>(); }
TEST(RecurrenceCalls, PiecesOfHalvesMakeTheWhole) { expect_pieces<heed::half>(); }

// One key again and again: the corrections of a chunk hang on one another as much as they can.
TEST(RecurrenceCalls, OneKeyForEveryToken) {
  const index tokens = 200;
  const problem<float> p({1, 2, 2, 2, tokens, 16, 20}, gates::tiny, 14);
  auto in = p.in();
  for (auto* x : {&in.k, &in.a, &in.b}) {
    auto strides = x->strides();
    strides[2] = 0;
    *x = heed::view<const float, 4>(x->data(), x->extents(), strides);
  }
  heed::serial_executor exec;
  const heed::view<const float, 4> start = p.state.view();
  for_each_method([&](method m) {
    const expected want = definition(m, p.s, start)(in);
    for_each_form(m, [&](linear_form form) {
      for (const index chunk : {16, 64, 200}) {
        laid_out<float, 4> out({1, 2, tokens, 20});
        auto state = p.state;
        run(exec, m, out.view(), in, state.view(), {.form = form, .chunk = chunk});
        expect_near(out.view(), want.out, want.out_error, "out");
        expect_near(state.view(), want.state, want.state_error, "state");
      }
    });
  });
}

// Sequences laid end to end, a state each, are what each is alone, to the bit.
TEST(RecurrenceCalls, RaggedSequences) {
  const std::vector<index> ragged[] = {{0, 7, 7, 40, 60}, {0, 0, 60}, {0, 60, 60}, {0, 16, 17, 60}};
  for (const auto& bounds : ragged) {
    const auto sequences = static_cast<index>(bounds.size()) - 1;
    const problem<float> p({1, 4, 2, 2, 60, 9, 16}, gates::mild, 12);
    const problem<float> states({sequences, 4, 2, 2, 0, 9, 16}, gates::mild, 13);
    heed::serial_executor exec;
    for_each_method([&](method m) {
      for_each_form(m, [&](linear_form form) {
        laid_out<float, 4> out({1, 4, 60, 16}), alone({1, 4, 60, 16});
        auto state = states.state, own = states.state;
        run(exec, m, out.view(), p.in(), state.view(),
            recurrence_options{.form = form, .sequence_bounds = bounds});
        for (index i = 0; i < sequences; ++i) {
          const index from = bounds[std::size_t(i)], to = bounds[std::size_t(i) + 1];
          run(exec, m, alone.view().slice(2, from, to), p.in().tokens(from, to),
              own.view().slice(0, i, i + 1), recurrence_options{.form = form});
        }
        EXPECT_TRUE(same_bits(out.view(), alone.view()));
        EXPECT_TRUE(same_bits(state.view(), own.view()));
      });
    });
  }
}

template <class T>
void expect_same_bits_by_threads() {
  const problem<T> p({2, 8, 2, 4, 90, 16, 20}, gates::mild, 21);
  heed::serial_executor serial;
  heed::thread_pool pools[] = {heed::thread_pool(1), heed::thread_pool(2), heed::thread_pool(7)};
  for_each_method([&](method m) {
    for_each_form(m, [&](linear_form form) {
      laid_out<T, 4> one({2, 8, 90, 20}), many({2, 8, 90, 20});
      auto state = p.state;
      run(serial, m, one.view(), p.in(), state.view(), recurrence_options{.form = form});
      for (auto& pool : pools) {
        auto other = p.state;
        run(pool, m, many.view(), p.in(), other.view(), recurrence_options{.form = form});
        EXPECT_TRUE(same_bits(one.view(), many.view())) << pool.concurrency();
        EXPECT_TRUE(same_bits(state.view(), other.view())) << pool.concurrency();
      }
    });
  });
}
TEST(ParallelRecurrence, SameBitsForAnyNumberOfThreads) {
  expect_same_bits_by_threads<float>();
  expect_same_bits_by_threads<heed::half>();
}

// No token at all leaves the state's bits alone.
TEST(RecurrenceCalls, NoTokens) {
  const problem<float> p({2, 2, 2, 2, 0, 5, 3}, gates::mild, 3);
  heed::serial_executor exec;
  for_each_method([&](method m) {
    for_each_form(m, [&](linear_form form) {
      auto state = p.state;
      laid_out<float, 4> out({2, 2, 0, 3});
      run(exec, m, out.view(), p.in(), state.view(), recurrence_options{.form = form});
      EXPECT_TRUE(same_bits(state.view(), p.state.view()));
    });
  });
}

// A NaN of one token is met by it and by later ones alone: in a value by its channel, in a key or
// a gate by every channel; and no other head.
TEST(RecurrenceCalls, NaNReachesNoEarlierToken) {
  constexpr index tokens = 90, d = 19, channels = 18;
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  const problem<float> p({1, 2, 2, 2, tokens, d, channels}, gates::mild, 5);
  heed::serial_executor exec;
  for_each_method([&](method m) {
    for_each_form(m, [&](linear_form form) {
      const recurrence_options o{.form = form};
      const bool has_gate = about(m).decay == decays::of_token ||
                            about(m).decay == decays::of_channel ||
                            about(m).decay == decays::of_rate;
      laid_out<float, 4> clean({1, 2, tokens, channels}), out({1, 2, tokens, channels});
      run(exec, m, clean.view(), p.in(), nullptr, o);
      for (const index at : {0, 15, 16, 17, 40, 63, 64, 80, 89}) {
        for (const char where : {'v', 'k', 'g'}) {
          if (where == 'g' && !has_gate) continue;
          auto broken = p;
          if (where == 'v') {
            broken.v.view()(0, 1, at, 3) = nan;
          } else if (where == 'k') {
            broken.k.view()(0, 1, at, 4) = nan;
          } else {
            broken.g.view()(0, 1, at, 4) = nan;
            broken.scalar_g.view()(0, 1, at) = broken.dt.view()(0, 1, at) = nan;
          }
          const index from = where == 'g' && about(m).read_before ? at + 1 : at;
          run(exec, m, out.view(), broken.in(), nullptr, o);
          index wrong = 0;
          for (index h = 0; h < 2; ++h) {
            for (index t = 0; t < tokens; ++t) {
              for (index c = 0; c < channels; ++c) {
                const bool met = h == 1 && t >= from && (c == 3 || where != 'v');
                wrong += met ? !std::isnan(out.view()(0, h, t, c))
                             : out.view()(0, h, t, c) != clean.view()(0, h, t, c);
              }
            }
          }
          EXPECT_EQ(wrong, 0) << "in " << where << " at " << at;
        }
      }
    });
  });
}

// What a kept workspace holds from before is never read.
TEST(RecurrenceCalls, ScratchMayHoldAnything) {
  const problem<float> p({1, 4, 2, 2, 37, 19, 21}, gates::mild, 6);
  heed::serial_executor exec;
  for_each_method([&](method m) {
    for_each_form(m, [&](linear_form form) {
      heed::workspace fresh;
      laid_out<float, 4> out({1, 4, 37, 21}), again({1, 4, 37, 21});
      auto state = p.state, other = p.state;
      run(exec, m, out.view(), p.in(), state.view(), {.form = form, .scratch = &fresh});
      std::memset(fresh.reserve(fresh.size()), 0xFF, fresh.size());  // NaN everywhere
      run(exec, m, again.view(), p.in(), other.view(), {.form = form, .scratch = &fresh});
      EXPECT_TRUE(same_bits(out.view(), again.view()));
      EXPECT_TRUE(same_bits(state.view(), other.view()));
    });
  });
}

// No form keeps a number for every pair of tokens, however long a chunk is wanted.
TEST(RecurrenceCalls, ScratchOfPairsIsThatOfAChunk) {
  heed::serial_executor exec;
  const auto bytes = [&](method m, linear_form form, index tokens) {
    const problem<float> p({1, 1, 1, 1, tokens, 4, 4}, gates::mild, 6);
    heed::workspace scratch;
    laid_out<float, 4> out({1, 1, tokens, 4});
    run(exec, m, out.view(), p.in(), nullptr,
        {.form = form, .chunk = 1'000'000, .scratch = &scratch});
    return scratch.size();
  };
  for_each_method([&](method m) {
    for_each_form(m, [&](linear_form form) {
      const std::size_t of_tokens = bytes(m, form, 300);
      EXPECT_LE(bytes(m, form, 600), form == linear_form::parallel ? 2 * of_tokens : of_tokens);
    });
  });
}

// Each input may have a scalar of its own; all are what they are in float.
TEST(RecurrenceCalls, ScalarsMix) {
  const problem<heed::bfloat16> p({1, 2, 2, 2, 40, 12, 10}, gates::mild, 8);
  const auto widened = [](const auto& x) {
    heed::tensor<float, 4> y(x.view().extents());
    auto from = x;
    from.each([&](heed::bfloat16& e, index i) { y.data()[i] = static_cast<float>(e); });
    return y;
  };
  const auto q = widened(p.q), k = widened(p.k), v = widened(p.v), g = widened(p.g);
  auto state = p.state, other = p.state;
  const heed::tensor<float, 4> out =
      heed::gated_attention(q, p.k.view(), v, p.g.view(), state.view());
  EXPECT_TRUE(same_bits(out, heed::gated_attention(q, k, v, g, other.view())));
  EXPECT_TRUE(same_bits(state.view(), other.view()));
}

// Without the axes of batch, or of batch and heads, the numbers are the same; so they are where a
// gate lies once for all tokens and channels, with strides of zero.
TEST(RecurrenceCalls, RanksAndStridesOfZero) {
  const problem<float> all({1, 1, 1, 1, 40, 12, 10}, gates::mild, 9);
  const auto p = all.in();
  const auto three = [](const auto& x) { return x[0]; };
  const auto two = [](const auto& x) { return x[0][0]; };
  const auto row = [](const heed::view<const float, 3>& x) {
    return heed::view<const float, 1>(x.data(), {x.extent(2)}, {x.stride(2)});
  };
  EXPECT_TRUE(same_bits(heed::rwkv6(p.q, p.k, p.v, p.g, p.u),
                        heed::rwkv6(three(p.q), three(p.k), three(p.v), three(p.g), p.u)));
  EXPECT_TRUE(same_bits(heed::delta_attention(p.q, p.k, p.v, p.beta),
                        heed::delta_attention(two(p.q), two(p.k), two(p.v), row(p.beta))));
  EXPECT_TRUE(
      same_bits(heed::ssd(p.q, p.k, p.v, p.dt, p.rate, p.skip),
                heed::ssd(three(p.q), three(p.k), three(p.v), three(p.dt), p.rate, p.skip)));

  const float gate = -0.125F;
  const heed::view<const float, 4> one(&gate, p.k.extents(), {0, 0, 0, 0});
  const heed::tensor<float, 4> many = [&] {
    heed::tensor<float, 4> x(p.k.extents());
    std::fill_n(x.data(), x.size(), gate);
    return x;
  }();
  EXPECT_TRUE(same_bits(heed::gated_attention(p.q, p.k, p.v, one),
                        heed::gated_attention(p.q, p.k, p.v, many)));
  const heed::view<const float, 3> number(&gate, {1, 1, 40}, {0, 0, 0});
  const heed::view<const float, 3> numbers(many.data(), {1, 1, 40}, {40, 40, 1});
  EXPECT_TRUE(same_bits(heed::scalar_gated_attention(p.q, p.k, p.v, number),
                        heed::scalar_gated_attention(p.q, p.k, p.v, numbers)));
}

// The scale multiplies what the state answers, and nothing else: a power of two, to the bit.
TEST(RecurrenceCalls, ScaleOfTheAnswer) {
  const problem<float> p({1, 2, 2, 2, 40, 16, 10}, gates::mild, 10);
  heed::serial_executor exec;
  for_each_method([&](method m) {
    if (m == method::ssd) return;  // its skip is not scaled
    for_each_form(m, [&](linear_form form) {
      laid_out<float, 4> out({1, 2, 40, 10}), scaled({1, 2, 40, 10});
      auto state = p.state, other = p.state;
      run(exec, m, out.view(), p.in(), state.view(), {.form = form});
      const double factor = about(m).scaled ? 0.25 : 1;
      run(exec, m, scaled.view(), p.in(), other.view(), {.scale = -2 * factor, .form = form});
      out.each([](float& x, index) { x *= -2; });
      EXPECT_TRUE(same_bits(out.view(), scaled.view()));
      EXPECT_TRUE(same_bits(state.view(), other.view()));
    });
  });
}

TEST(RecurrenceCalls, WrongArgumentsAreNamed) {
  const problem<float> all({1, 2, 2, 2, 9, 4, 6}, gates::mild, 1);
  const auto p = all.in();
  const auto message = [](auto&& f) -> std::string {
    try {
      f();
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "nothing was thrown";
  };
  heed::tensor<float, 4> wide({1, 2, 9, 5});
  const heed::tensor<float, 4> shorter({1, 2, 8, 4}), three({1, 3, 9, 4});
  const heed::tensor<float, 3> numbers({1, 3, 9});
  const heed::tensor<float, 2> bonus({2, 5});
  heed::tensor<float, 4> state({1, 2, 4, 5});
  EXPECT_EQ(message([&] { (void)heed::gated_attention(p.q, p.k, p.v, wide); }),
            "g has channels 5, k has 4");
  EXPECT_EQ(message([&] { (void)heed::gated_attention(p.q, p.k, p.v, shorter); }),
            "g has tokens 8, q has 9");
  EXPECT_EQ(message([&] { (void)heed::gated_attention(p.q, p.k, p.v, three); }),
            "g has 3 heads, which do not divide the state's 2");
  EXPECT_EQ(message([&] { (void)heed::delta_attention(p.q, p.k, p.v, numbers); }),
            "beta has 3 heads, which do not divide the state's 2");
  EXPECT_EQ(message([&] { (void)heed::rwkv6(p.q, p.k, p.v, p.g, bonus); }),
            "u has channels 5, k has 4");
  EXPECT_EQ(message([&] { (void)heed::gated_attention(p.q, p.k, p.v, p.g, state); }),
            "state has extents [1, 2, 4, 5], the call needs [1, 2, 4, 6]");
  EXPECT_EQ(message([&] {
              (void)heed::gated_attention(p.q, p.k, p.v, p.g, recurrence_options{.chunk = 0});
            }),
            "chunk is 0, must be at least 1");
  const index bounds[] = {0, 5, 4, 9};
  EXPECT_EQ(message([&] {
              (void)heed::gated_attention(p.q, p.k, p.v, p.g,
                                          recurrence_options{.sequence_bounds = bounds});
            }),
            "sequence_bounds [0, 5, 4, 9] do not rise from 0 to q's tokens 9");
  EXPECT_THROW((void)heed::delta_attention(p.q, p.k, p.v, p.beta,
                                           recurrence_options{.form = linear_form::parallel}),
               heed::option_error);
  // What was thrown for was found before anything was written.
  heed::tensor<float, 4> out({1, 2, 9, 6});
  std::fill_n(out.data(), out.size(), 7.0F);
  EXPECT_THROW(heed::gated_attention_into(out, p.q, p.k, p.v, p.g, state), heed::shape_error);
  EXPECT_EQ(std::count(out.data(), out.data() + out.size(), 7.0F), out.size());
  EXPECT_EQ(message([&] { heed::gated_attention_into(wide, p.q, p.k, p.v, p.g); }),
            "out has extents [1, 2, 9, 5], the result has [1, 2, 9, 6]");
}

}  // namespace
