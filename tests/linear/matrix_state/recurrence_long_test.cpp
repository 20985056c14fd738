// SPDX-License-Identifier: MIT
// Very many tokens: a state in float stays as near to the definition in double as a bound that does
// not grow with the text allows, or, where nothing is ever forgotten, as its root.
#include <algorithm>
#include <utility>
#include <vector>

#include "linear/matrix_state/recurrence_oracle.hpp"

namespace {

using namespace recurrence_test;
using heed::index;

/// A text of pieces, new ones each time, with one state a form; the definition goes along in
/// double.
void expect_no_drift(method m, index tokens, index piece, const std::vector<linear_form>& forms) {
  shape s{1, 1, 1, 1, piece, 16, 8};
  if (m == method::lightning) s.q_heads = s.k_heads = s.v_heads = 2;  // the first never forgets
  heed::serial_executor exec;
  heed::workspace scratch;
  laid_out<float, 4> out({1, s.q_heads, piece, s.dv}), zero({1, s.k_heads, s.d, s.dv});
  zero.each([](float& x, index) { x = 0; });
  std::vector<laid_out<float, 4>> states(forms.size(), zero);
  // A decay that is the same for all tokens errs the same way each time.
  const auto kind = m == method::retention ? errors::certain : errors::probable;
  definition exact(m, s, kind);
  double worst = 0;
  for (index at = 0; at < tokens && !testing::Test::HasFailure(); at += piece) {
    const problem<float> p(s, gates::mild, static_cast<std::uint64_t>(at + 1));
    const expected want = exact(p.in());
    for (std::size_t f = 0; f < forms.size(); ++f) {
      run(exec, m, out.view(), p.in(), states[f].view(), {.form = forms[f], .scratch = &scratch});
      const std::string what = std::to_string(int(forms[f])) + " from token " + std::to_string(at);
      worst = std::max(worst, expect_near(out.view(), want.out, want.out_error, what));
      const heed::view<const float, 4> state = std::as_const(states[f]).view();
      worst = std::max(worst, expect_near(state, want.state, want.state_error, what + " state"));
    }
  }
  testing::Test::RecordProperty(about(m).name, std::to_string(worst) + " of the bound");
}

TEST(LongRecurrence, AHundredThousandTokens) {
  for_each_method([](method m) {
    expect_no_drift(m, 100'000, 25'000, {linear_form::recurrent, linear_form::chunked});
  });
}

TEST(LongRecurrence, AMillionTokens) {
  for (const method m : {method::retention, method::gated, method::delta}) {
    SCOPED_TRACE(about(m).name);
    expect_no_drift(m, 1'000'000, 50'000, {linear_form::chunked});
  }
}

}  // namespace
