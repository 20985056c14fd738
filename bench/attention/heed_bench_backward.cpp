// SPDX-License-Identifier: MIT
// The backward pass of exact attention beside the forward pass of the same shape, each on its own
// FLOPs: 10 N M D and 4 N M D on visible pairs.
#include "bench/families.hpp"
#include "bench/forward.hpp"

namespace bench {
namespace {

template <class T>
struct backward_data : forward_data<T> {
  explicit backward_data(const forward_shape& s)
      : forward_data<T>(s),
        lse({s.heads, s.n}),
        d_out(random_tensor<T, 3>(this->out.extents(), 4)),
        dq(this->q.extents()),
        dk(this->k.extents()),
        dv(this->v.extents()) {}
  heed::tensor<heed::accumulate_t<T>, 2> lse;
  heed::tensor<T, 3> d_out, dq, dk, dv;
};

template <class T, class... M>
void register_pass(const std::string& method, const forward_shape& s, const M&... modifiers) {
  const std::string name = name_of<T>("backward", method, s);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    auto& x = data_of<backward_data<T>>(name, [&] {
      backward_data<T> made(s);
      heed::attention_into(pool_of(s.threads), heed::into(made.out, made.lse), made.q, made.k,
                           made.v, {}, modifiers...);
      return made;
    });
    measure_flops<heed::accumulate_t<T>>(state, s.threads, 2.5 * s.flops(), x.scratch, [&] {
      heed::attention_backward_into(pool_of(s.threads), heed::gradients(x.dq, x.dk, x.dv), x.q, x.k,
                                    x.v, heed::into(x.out, x.lse), x.d_out, {.scratch = &x.scratch},
                                    modifiers...);
    });
  })->Unit(benchmark::kMicrosecond);
}

template <class T>
void register_both(const forward_shape& s) {
  register_attention<T>("backward", "tiled_forward", s);
  if (s.causal) {
    register_pass<T>("tiled", s, heed::causal());
  } else {
    register_pass<T>("tiled", s);
  }
}

}  // namespace

void register_backward() {
  for (const index d : {64, 128}) {
    for (const bool causal : {false, true}) {
      for (const index n : {2048, 8192}) register_both<float>(one_head(d, n, causal));
    }
  }
  // One head on two threads, and a long one for its scratch.
  forward_shape two = one_head(64, 8192, false);
  two.threads = 2;
  register_both<float>(two);
  register_both<float>(one_head(64, 65'536, true));
  register_both<heed::bfloat16>(one_head(64, 2048, false));
}

}  // namespace bench
