// SPDX-License-Identifier: MIT
// Recurrences with a matrix state: every member, form, grouping and layout.
#include "linear/matrix_state/recurrence_oracle.hpp"
#include "soak/families.hpp"
#include "soak/trial.hpp"

namespace soak {

namespace {

template <class T>
void recurrence_case(trial& t) {
  using namespace recurrence_test;
  using A = heed::accumulate_t<T>;
  const auto m = static_cast<method>(t.between("member", 0, index(std::size(members)) - 1));
  const bool large = t.one_in("large", 100);
  shape s;
  const index heads = t.one_of("heads", {1, 1, 2, 3});
  s.q_heads = heads * t.one_of("q heads", {1, 1, 2, 4});
  s.k_heads = heads * t.one_of("k heads", {1, 1, 2, 4});
  s.v_heads = heads * t.one_of("v heads", {1, 1, 2});
  s.batch = t.between("batch", 1, 2);
  if (t.one_in("fewer gates", 4)) s.fewer = s.state_heads();
  s.tokens = t.extent("tokens", 1, large ? 150 : 30);
  s.d = t.extent("d", 1, large ? 70 : 12);
  s.dv = t.extent("dv", 1, large ? 70 : 12);
  const auto kind = all_gates[t.between("gates", 0, index(std::size(all_gates)) - 1)];
  const auto how = static_cast<layout>(t.between("layout", 0, 3));
  const problem<T> p(s, kind, t.bits(), how);

  recurrence_options o;
  o.scratch = t.scratch;
  if (t.one_in("chunk", 2)) o.chunk = t.between("chunk", 1, 40);
  const index form = t.between("form", 0, 4);
  if (form < 4) o.form = static_cast<linear_form>(form);
  if (about(m).write != writes::outer && o.form == linear_form::parallel) {
    o.form = linear_form::chunked;
  }
  laid_out<T, 4> out({s.batch, s.out_heads(), s.tokens, s.dv}, how);
  auto state = p.state;
  const bool kept = t.one_in("state", 2);
  const heed::view<const A, 4> start = p.state.view();
  const expected want = kept ? definition(m, s, start)(p.in()) : definition(m, s)(p.in());
  if (kept) {
    run(t.exec, m, out.view(), p.in(), state.view(), o);
  } else {
    run(t.exec, m, out.view(), p.in(), nullptr, o);
  }
  // A scan composes two transitions where the others apply one after the other.
  const double eps = double(std::numeric_limits<A>::epsilon()) *
                     (o.form == linear_form::scan ? 4 : 1) * (std::is_same_v<A, double> ? 2 : 1);
  const auto within = [&]<class S>(const auto& exact, const auto& error, const S&) {
    heed::tensor<double, 4> e(exact.extents());
    for (index i = 0; i < e.size(); ++i) {
      e.data()[i] = eps * error.data()[i] + stored<S>(exact.data()[i]);
    }
    return e;
  };
  trial::require("output", difference(out.view(), want.out, within(want.out, want.out_error, T())));
  if (kept) {
    trial::require("state",
                   difference(state.view(), want.state, within(want.state, want.state_error, A())));
  }
}

}  // namespace

void recurrence(trial& t) { recurrence_case<float>(t); }

}  // namespace soak
