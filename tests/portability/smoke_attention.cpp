// SPDX-License-Identifier: MIT
// Exact attention of every scalar, a cache, threads, rotary embedding, and mdspan where there is
// one.
#include <bit>
#include <cstdint>
#include <cstring>
#include <heed/attention.hpp>
#include <heed/cache.hpp>
#include <heed/parallel.hpp>
#include <heed/rotary.hpp>
#include <vector>
#include <version>
#if defined(__cpp_lib_mdspan)
#include <mdspan>
#endif

#include "../support/tile_operands.hpp"
#include "smoke.hpp"

namespace smoke {
namespace {

constexpr heed::index n = 70;
constexpr heed::index d = 40;

template <class T>
void attention_of() {
  const auto q = numbers<T, 4>({1, 4, n, d}, 1);
  const auto k = numbers<T, 4>({1, 2, n, d}, 2);
  const auto v = numbers<T, 4>({1, 2, n, d}, 3);
  const auto bias = [](auto s, heed::position p) {
    return s + static_cast<decltype(s)>(p.query % 3) / 8;
  };
  report("attention", name_of<T>(),
         difference(heed::attention(q, k, v, {}, heed::causal(), bias),
                    heed::naive_attention(q, k, v, {}, heed::causal(), bias)),
         allowed<T>(n + d));
}

/// The last of n tokens, the others in the cache.
void cached() {
  using T = heed::bfloat16;
  const auto q = numbers<T, 4>({1, 4, 1, d}, 4);
  const auto k = numbers<T, 4>({1, 2, n, d}, 5);
  const auto v = numbers<T, 4>({1, 2, n, d}, 6);
  heed::contiguous_cache<T> cache({.batch = 1, .kv_heads = 2, .capacity = n, .head_dim = d});
  cache.append(heed::as_view(k).slice(2, 0, n - 1), heed::as_view(v).slice(2, 0, n - 1));
  const auto out = heed::decode(q, heed::as_view(k).slice(2, n - 1, n),
                                heed::as_view(v).slice(2, n - 1, n), cache);
  report("decode from a cache", name_of<T>(), difference(out, heed::naive_attention(q, k, v)),
         allowed<T>(n + d));
}

void threaded() {
  const auto q = numbers<float, 4>({2, 4, n, d}, 7);
  heed::thread_pool pool(3);
  report(
      "threads: the same bits", "float",
      difference(heed::attention(pool, q, q, q), heed::attention(heed::serial_executor{}, q, q, q)),
      0);
}

void rotated() {
  constexpr heed::index tokens = 5;
  auto x = numbers<float, 4>({1, 2, tokens, d}, 8);
  auto want = x;
  for (heed::index h = 0; h < 2; ++h) {
    for (heed::index t = 0; t < tokens; ++t) {
      for (heed::index i = 0; i < d / 2; ++i) {
        const double angle = double(t) * std::pow(10000.0, -2.0 * double(i) / double(d));
        const double a = double(x(0, h, t, 2 * i));
        const double b = double(x(0, h, t, 2 * i + 1));
        want(0, h, t, 2 * i) = static_cast<float>(a * std::cos(angle) - b * std::sin(angle));
        want(0, h, t, 2 * i + 1) = static_cast<float>(b * std::cos(angle) + a * std::sin(angle));
      }
    }
  }
  const heed::rotary_embedding rope(heed::rotary_layout::interleaved, d);
  heed::apply_rotary(x, rope);
  report("rotary embedding", "float", difference(x, want), allowed<float>(4));
}

/// Every code of a stored scalar: widened in packets as one by one, and what is narrowed comes back.
template <class T, class Code>
double wrong_codes() {
  constexpr heed::index count = heed::index{1} << (8 * sizeof(Code));
  std::vector<Code> codes(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<Code>(i);
  std::vector<T> stored(codes.size());
  std::memcpy(static_cast<void*>(stored.data()), codes.data(), codes.size() * sizeof(Code));
  std::vector<float> wide(codes.size());
  std::vector<T> back(codes.size());
  heed::simd::widen_row(stored.data(), wide.data(), count);
  double wrong = 0;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const auto want = static_cast<float>(stored[i]);
    if (!(wide[i] == want || (std::isnan(wide[i]) && std::isnan(want)))) ++wrong;
  }
  if constexpr (sizeof(T) == 2) {
    // Numbers between two codes, too.
    for (std::size_t i = 0; i + 1 < wide.size(); ++i)
      wide[i] += (wide[i + 1] - wide[i]) / 4 * static_cast<float>(i % 5);
    heed::simd::narrow_row(wide.data(), back.data(), count);
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const auto want = static_cast<float>(static_cast<T>(wide[i]));
      const auto got = static_cast<float>(back[i]);
      if (!(got == want || (std::isnan(got) && std::isnan(want)))) ++wrong;
    }
  }
  return wrong;
}

void converted() {
  report("codes that convert otherwise", "half", wrong_codes<heed::half, std::uint16_t>(), 0);
  report("codes that convert otherwise", "bfloat16", wrong_codes<heed::bfloat16, std::uint16_t>(),
         0);
  report("codes that convert otherwise", "float8",
         wrong_codes<heed::float8_e4m3, std::uint8_t>() +
             wrong_codes<heed::float8_e5m2, std::uint8_t>(),
         0);
  report("codes that convert otherwise", "8, 4 bits",
         wrong_codes<std::uint8_t, std::uint8_t>() +
             wrong_codes<heed::simd::low_nibble, std::uint8_t>() +
             wrong_codes<heed::simd::high_nibble, std::uint8_t>(),
         0);
}

/// Sums of pairs of bfloat16 rounded to odd, in plain C++ beside double; and, where the processor has it,
/// Arm's matrix instruction beside the plain form, bit for bit: numbers of any size, and some that are
/// none.
void multiplied() {
  using plain = heed::simd::emulated_bf16_rows<4>;
  const oracle::row_operands even = oracle::random_rows(64, 1, 3, false);
  const auto got = oracle::product<plain>(even);
  const oracle::exact_product want(even);
  double error = 0;  // of what 64 roundings to odd may take
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double bound = 64 * std::ldexp(want.sizes[i], -23);
    error = std::fmax(error, std::fabs(double{got[i]} - want.sums[i]) / bound);
  }
  report("products of rows, plain form", "bfloat16", error, 1);
#if HEED_HAS_BF16_ROWS
  static_assert(heed::kernel::matrix_block<float>::serves<
                heed::bfloat16, heed::api::tensor_source<heed::bfloat16, heed::bfloat16>>);
  double differing = 0;
  for (unsigned seed = 0; seed < 200; ++seed) {
    const int spread = static_cast<int>(seed) % 120;
    const auto numbers = static_cast<heed::index>(8 + seed % 8 * 8);
    const oracle::row_operands o = oracle::random_rows(numbers, seed, spread, seed % 4 == 3);
    const auto unit = oracle::product<heed::simd::bf16_rows>(o);
    const auto same = oracle::product<plain>(o);
    for (std::size_t i = 0; i < same.size(); ++i) {
      const auto bits = [](float x) { return std::bit_cast<std::uint32_t>(x); };
      if (bits(unit[i]) != bits(same[i])) ++differing;
    }
  }
  report("matrix instruction: the same bits", "bfloat16", differing, 0);
#endif
}

#if defined(__cpp_lib_mdspan)
void spanned() {
  const auto q = numbers<float, 2>({n, d}, 9);
  const std::mdspan<const float, std::dextents<int, 2>> span(q.data(), int{n}, int{d});
  heed::tensor<float, 2> out({n, d});
  const std::mdspan<float, std::dextents<int, 2>> to(out.data(), int{n}, int{d});
  heed::attention_into(to, span, span, span);
  report("std::mdspan", "float", difference(out, heed::naive_attention(q, q, q)),
         allowed<float>(n + d));
}
#endif

}  // namespace

void attention_family() {
  attention_of<float>();
  attention_of<double>();
  attention_of<heed::half>();
  attention_of<heed::bfloat16>();
  cached();
  threaded();
  rotated();
  converted();
  multiplied();
#if defined(__cpp_lib_mdspan)
  spanned();
#endif
}

}  // namespace smoke
