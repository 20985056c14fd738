// SPDX-License-Identifier: MIT
// The linear family from a thousand to a million tokens, length/METHOD/f32/d:64/n:N/form:chunked:
// time grows with n, scratch does not. `sh bench/exponent.sh` fits both.
//
// One head and one thread. Short texts are taken from many, one by one, so that they come from memory
// as long ones do: a thousand tokens alone would stay in the cache and tell of that instead. Scans
// have d channels, a selective scan 16 states each. FLOPs are the method's own products, of scans
// their multiply-adds and multiplications, without exponentials.
#include <algorithm>
#include <array>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "bench/families.hpp"
#include "bench/recurrences.hpp"
#include "heed/linear.hpp"

namespace bench {
namespace {

constexpr index head_dim = 64;
constexpr index states = 16;
constexpr index most_tokens = index{1} << 20;
constexpr index tokens_in_turn = index{1} << 18;  // 64 MiB a tensor

struct length_data : recurrence_data {
  explicit length_data(const forward_shape& s)
      : recurrence_data(s),
        time_step(q.extents()),
        rates({s.head_dim, states}),
        write(repeated_tensor<3>({1, s.n, states}, 6)),
        read(repeated_tensor<3>(write.extents(), 7)),
        taps(random_tensor<float, 2>({s.head_dim, 4}, 8)) {
    for (index i = 0; i < time_step.size(); ++i) {
      time_step.data()[i] = 0.01F * static_cast<float>(1 + i % 7);
    }
    for (index c = 0; c < s.head_dim; ++c) {
      for (index i = 0; i < states; ++i) rates(c, i) = -static_cast<float>(1 + i);
    }
  }
  heed::tensor<float, 3> time_step;
  heed::tensor<float, 2> rates;
  heed::tensor<float, 3> write, read;
  heed::tensor<float, 2> taps;
};

/// Texts of one length, taken one after another.
struct texts_in_turn {
  explicit texts_in_turn(const forward_shape& s) {
    for (index i = 0; i < std::max<index>(1, tokens_in_turn / s.n); ++i) texts.emplace_back(s);
  }
  void run_next(const std::function<void(length_data&)>& call) {
    length_data& x = texts[next];
    next = (next + 1) % texts.size();
    x.scratch = std::move(scratch);
    call(x);
    scratch = std::move(x.scratch);
  }
  std::vector<length_data> texts;
  std::size_t next = 0;
  heed::workspace scratch;
};

/// Methods of one length follow each other and share its data.
void register_length(const std::string& method, index n, double flops,
                     const std::function<void(length_data&)>& call) {
  const forward_shape s = one_head(head_dim, n, true);
  const std::string name = "length/" + method + "/f32/d:" + std::to_string(head_dim) +
                           "/n:" + std::to_string(n) + "/form:chunked";
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    auto& x =
        data_of<texts_in_turn>("length/" + std::to_string(n), [&] { return texts_in_turn(s); });
    x.scratch = heed::workspace();  // of this method alone
    measure_flops<float>(state, 1, flops, x.scratch, [&] { x.run_next(call); });
    state.counters["tokens"] = static_cast<double>(n) / state.counters["seconds"];
  })->Unit(benchmark::kMicrosecond);
}

}  // namespace

void register_length() {
  for (index n = 1024; n <= most_tokens; n *= 4) {
    const auto a = heed::cost::self_attention(n, head_dim);
    const heed::cost::chunking chunks{
        .features = {}, .chunk = heed::linear_options{}.chunk, .workers = 1};
    register_length(
        "kernelised", n, heed::cost::linear_chunked(a, chunks).flops, [](length_data& x) {
          heed::linear_attention_into(pool_of(1), x.out, x.q, x.k, x.v, {.scratch = &x.scratch});
        });
    for (const recurrence& method : matrix_recurrences()) {
      register_length(
          method.name, n, method.work.flops(one_head(head_dim, n, true), true),
          [run = method.run](length_data& x) { run(pool_of(1), x, heed::linear_form::chunked); });
    }
    const double numbers = static_cast<double>(n * head_dim);
    register_length("selective_scan", n, 5 * numbers * states, [](length_data& x) {
      heed::selective_scan_options<float> o;
      o.scratch = &x.scratch;
      heed::selective_scan_into(pool_of(1), x.out, x.v, x.time_step, x.rates, x.write, x.read, o);
    });
    register_length("hgrn", n, 2 * numbers, [](length_data& x) {
      heed::hgrn_into(pool_of(1), x.out, x.v, x.channel_gate,
                      heed::scan_options{.scratch = &x.scratch});
    });
    register_length("causal_convolution", n, 8 * numbers, [](length_data& x) {
      heed::causal_convolution_into(pool_of(1), heed::as_view(x.out).swap_axes(1, 2),
                                    heed::as_view(x.v).swap_axes(1, 2), x.taps,
                                    {.scratch = &x.scratch});
    });
  }
}

}  // namespace bench
