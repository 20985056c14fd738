// SPDX-License-Identifier: MIT
// One call of one's own shape: time, rates and scratch of a method, without writing code.
#include "bench/shape.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "bench/harness.hpp"
#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/cost.hpp"
#include "heed/linear.hpp"

namespace bench {

namespace {

constexpr const char* usage =
    "heed_bench --shape b4,h24,kv24,n3333,d72,bf16,causal [--method attention]\n"
    "  bB      batch, 1                       hH    query heads, 1\n"
    "  kvH     heads of keys and values, H    nN    queries (needed)\n"
    "  mM      keys, N                        dD    head dim (needed)\n"
    "  dvD     value dim, D                   tT    threads, 1\n"
    "  f32, f64, f16, bf16: scalar, f32       causal\n"
    "  --method: attention, naive, decode (the queries are the newest of m cached tokens),\n"
    "            linear, retention, gated, delta (f32, causal), product (Eigen's [n, d] x [d, m]\n"
    "            into [n, m] of every head: what others reach with a matrix product, f32)\n";

struct bad_shape : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct request {
  index batch = 1, heads = 1, queries = 0, dim = 0, threads = 1;
  std::optional<index> kv, key_count, values;
  std::string scalar = "f32", method = "attention";
  bool causal = false;

  [[nodiscard]] index kv_heads() const { return kv.value_or(heads); }
  [[nodiscard]] index keys() const { return key_count.value_or(queries); }
  [[nodiscard]] index value_dim() const { return values.value_or(dim); }

  void word(std::string_view w) {
    if (w == "causal") {
      causal = true;
      return;
    }
    if (w == "f32" || w == "f64" || w == "f16" || w == "bf16") {
      scalar = w;
      return;
    }
    const std::size_t letters = std::min(w.find_first_of("0123456789-"), w.size());
    const std::string_view name = w.substr(0, letters), digits = w.substr(letters);
    index number = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    const auto text = std::string(w);
    if (error != std::errc() || end != digits.data() + digits.size()) {
      throw bad_shape("'" + text + "' is neither a word of a shape nor letters and a number");
    }
    if (number < 1 || number > (index{1} << 40)) {
      throw bad_shape("'" + text + "' has a number outside 1 .. 2^40");
    }
    if (name == "b") {
      batch = number;
    } else if (name == "h") {
      heads = number;
    } else if (name == "kv") {
      kv = number;
    } else if (name == "n") {
      queries = number;
    } else if (name == "m") {
      key_count = number;
    } else if (name == "d") {
      dim = number;
    } else if (name == "dv") {
      values = number;
    } else if (name == "t") {
      threads = number;
    } else {
      throw bad_shape("'" + text + "': there is no extent '" + std::string(name) + "'");
    }
  }
  void check() const {
    if (queries == 0) throw bad_shape("the shape has no n, the number of queries");
    if (dim == 0) throw bad_shape("the shape has no d, the head dim");
    if (heads % kv_heads() != 0) {
      throw bad_shape("h " + std::to_string(heads) + " is not a multiple of kv " +
                      std::to_string(kv_heads()));
    }
    if (method == "decode" && queries > keys()) {
      throw bad_shape("decode: n " + std::to_string(queries) + " new tokens, the cache has m " +
                      std::to_string(keys()));
    }
    const bool softmax = method == "attention" || method == "decode";
    if (!softmax && scalar != "f32") throw bad_shape(method + " is measured in f32 alone");
    if (method == "product" && (threads != 1 || causal || value_dim() != dim)) {
      throw bad_shape("product has one thread, no mask and no value dim");
    }
    if (!softmax && method != "naive" && method != "product" && keys() != queries) {
      throw bad_shape(method + " pairs tokens: m " + std::to_string(keys()) + " must be n " +
                      std::to_string(queries));
    }
    const double cells = static_cast<double>(batch) *
                         (static_cast<double>(heads) * static_cast<double>(queries) +
                          static_cast<double>(kv_heads()) * static_cast<double>(keys())) *
                         static_cast<double>(dim + value_dim());
    if (cells > 4e9) throw bad_shape("the tensors have more than 4e9 numbers");
  }
};

/// Times calls for about a second, at least three, and prints the median.
template <class T, class Call>
int report(const request& r, double flops, const heed::workspace& scratch, const Call& call) {
  call();  // memory, caches
  std::vector<double> seconds;
  const auto begin = probes::clock::now();
  while (seconds.size() < 3 || (probes::seconds_since(begin) < 1 && seconds.size() < 10000)) {
    const auto start = probes::clock::now();
    call();
    seconds.push_back(probes::seconds_since(start));
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  const double numbers =
      static_cast<double>(r.batch) *
      (static_cast<double>(r.heads * r.queries) + static_cast<double>(r.kv_heads() * r.keys())) *
      static_cast<double>(r.dim + r.value_dim());
  std::printf(
      "%s: batch %td, heads %td over %td, queries %td, keys %td, head dim %td, value dim %td, "
      "%s%s, threads %td\n",
      r.method.c_str(), r.batch, r.heads, r.kv_heads(), r.queries, r.keys(), r.dim, r.value_dim(),
      r.scalar.c_str(), r.causal ? ", causal" : "", r.threads);
  std::printf("time     %12.6f ms  median of %zu, fastest %.6f\n", median * 1e3, seconds.size(),
              seconds.front() * 1e3);
  std::printf("GFLOP/s  %12.2f     of %.4g GFLOP on visible pairs\n", flops / median * 1e-9,
              flops * 1e-9);
  std::printf("GB/s     %12.2f     of q, k, v and out, %.4g MB\n",
              numbers * sizeof(T) / median * 1e-9, numbers * sizeof(T) * 1e-6);
  std::printf("scratch  %12zu bytes\n", scratch.size());
  return 0;
}

[[nodiscard]] double attention_flops(const request& r) {
  double pairs = static_cast<double>(r.queries) * static_cast<double>(r.keys());
  if (r.causal) {  // row i sees key j <= i + offset, the offset of a decode
    const index offset = r.method == "decode" ? r.keys() - r.queries : 0;
    pairs = 0;
    for (index i = 0; i < r.queries; ++i) {
      pairs += static_cast<double>(std::min(r.keys(), offset + i + 1));
    }
  }
  return 2 * static_cast<double>(r.batch * r.heads) * pairs *
         static_cast<double>(r.dim + r.value_dim());
}

template <class T>
struct operands {
  heed::tensor<T, 4> q, k, v, out;
  heed::workspace scratch;
  explicit operands(const request& r)
      : q(random_tensor<T, 4>({r.batch, r.heads, r.queries, r.dim}, 1)),
        k(random_tensor<T, 4>({r.batch, r.kv_heads(), r.keys(), r.dim}, 2)),
        v(random_tensor<T, 4>({r.batch, r.kv_heads(), r.keys(), r.value_dim()}, 3)),
        out({r.batch, r.heads, r.queries, r.value_dim()}) {}
};

/// causal() or no mask, as one type: half the code of two.
[[nodiscard]] heed::window mask_of(const request& r) {
  heed::window w;
  if (r.causal) w.right = 0;
  return w;
}

template <class T>
int softmax(const request& r) {
  operands<T> x(r);
  heed::thread_pool& pool = pool_of(r.threads);
  if (r.method == "attention") {
    return report<T>(r, attention_flops(r), x.scratch, [&] {
      heed::attention_into(pool, x.out, x.q, x.k, x.v, {.scratch = &x.scratch}, mask_of(r));
    });
  }
  heed::contiguous_cache<T> cache({.batch = r.batch,
                                   .kv_heads = r.kv_heads(),
                                   .capacity = r.keys(),
                                   .head_dim = r.dim,
                                   .value_dim = r.value_dim()});
  cache.append(x.k, x.v);
  return report<T>(r, attention_flops(r), x.scratch, [&] {
    heed::decode_into(pool, x.out, x.q, std::as_const(cache), {.scratch = &x.scratch}, mask_of(r));
  });
}

/// Methods that are measured in float alone.
int others(const request& r) {
  operands<float> x(r);
  heed::thread_pool& pool = pool_of(r.threads);
  if (r.method == "naive") {
    return report<float>(r, attention_flops(r), x.scratch, [&] {
      heed::naive_attention_into(pool, x.out, x.q, x.k, x.v, {.scratch = &x.scratch}, mask_of(r));
    });
  }
  if (r.method == "product") {
    using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    using input = Eigen::Map<const matrix>;
    matrix s(r.queries, r.keys());
    return report<float>(r, attention_flops(r) / 2, x.scratch, [&] {
      for (index head = 0; head < r.batch * r.heads; ++head) {
        const index kv_head = head / (r.heads / r.kv_heads());
        s.noalias() = input(x.q.data() + head * r.queries * r.dim, r.queries, r.dim) *
                      input(x.k.data() + kv_head * r.keys() * r.dim, r.keys(), r.dim).transpose();
      }
    });
  }
  const auto tokens = static_cast<double>(r.batch * r.heads) * static_cast<double>(r.queries);
  const double state = static_cast<double>(r.dim) * static_cast<double>(r.value_dim());
  if (r.method == "linear") {
    const heed::linear_options o{.scratch = &x.scratch};
    return report<float>(r, 4 * tokens * state, x.scratch,
                         [&] { heed::linear_attention_into(pool, x.out, x.q, x.k, x.v, o); });
  }
  const heed::recurrence_options o{.scratch = &x.scratch};
  if (r.method == "retention") {
    return report<float>(r, 4 * tokens * state, x.scratch,
                         [&] { heed::retention_into(pool, x.out, x.q, x.k, x.v, o); });
  }
  if (r.method == "gated") {
    heed::tensor<float, 4> g({r.batch, r.kv_heads(), r.queries, r.dim});
    std::fill_n(g.data(), g.size(), -0.1F);
    return report<float>(r, 4 * tokens * state, x.scratch,
                         [&] { heed::gated_attention_into(pool, x.out, x.q, x.k, x.v, g, o); });
  }
  if (r.method == "delta") {
    heed::tensor<float, 3> beta({r.batch, r.kv_heads(), r.queries});
    std::fill_n(beta.data(), beta.size(), 0.5F);
    // Unit keys, so that the state stays bounded.
    for (index row = 0; row < x.k.size() / r.dim; ++row) {
      float square = 0;
      float* const key = x.k.data() + row * r.dim;
      for (index c = 0; c < r.dim; ++c) square += key[c] * key[c];
      for (index c = 0; c < r.dim; ++c) key[c] /= std::sqrt(square);
    }
    return report<float>(r, 6 * tokens * state, x.scratch,
                         [&] { heed::delta_attention_into(pool, x.out, x.q, x.k, x.v, beta, o); });
  }
  throw bad_shape("there is no method '" + r.method + "'");
}

[[nodiscard]] request parse(int argc, char** argv) {
  request r;
  for (int i = 1; i < argc; ++i) {
    std::string_view a = argv[i];
    const auto value = [&](std::string_view option) -> std::optional<std::string_view> {
      if (a.substr(0, option.size()) != option) return {};
      if (a.size() == option.size()) {
        if (i + 1 == argc) throw bad_shape(std::string(option) + " needs a value");
        return std::string_view(argv[++i]);
      }
      if (a[option.size()] != '=') return {};
      return a.substr(option.size() + 1);
    };
    if (const auto method = value("--method")) {
      r.method = *method;
    } else if (auto shape = value("--shape")) {
      while (true) {
        const std::size_t comma = shape->find(',');
        r.word(shape->substr(0, comma));
        if (comma == std::string_view::npos) break;
        shape = shape->substr(comma + 1);
      }
    } else {
      throw bad_shape("--shape goes with --method alone, not with '" + std::string(a) + "'");
    }
  }
  r.check();
  return r;
}

}  // namespace

bool asks_for_shape(int argc, char** argv) {
  return std::any_of(argv, argv + argc, [](std::string_view a) {
    return a == "--shape" || a.substr(0, 8) == "--shape=";
  });
}

int run_shape(int argc, char** argv) {
  try {
    const request r = parse(argc, argv);
    if (r.method != "attention" && r.method != "decode") return others(r);
    if (r.scalar == "f64") return softmax<double>(r);
    if (r.scalar == "f16") return softmax<heed::half>(r);
    if (r.scalar == "bf16") return softmax<heed::bfloat16>(r);
    return softmax<float>(r);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "heed_bench: %s\n%s", error.what(), usage);
    return 2;
  }
}

}  // namespace bench
