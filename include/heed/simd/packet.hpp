// SPDX-License-Identifier: MIT
// The widest packets of float and double that the target has, over Eigen's packet math.
//
// `packet<A>` holds `lanes<A>` numbers: 16 floats with AVX-512, 8 with AVX, 4 with SSE2 or NEON,
// one where Eigen is told not to vectorise. Every function has Eigen's generic fallback, so that
// each kernel runs on all of them. Loads and stores take any alignment.
#pragma once

#include <bit>
#include <cmath>
#include <type_traits>
#include <utility>

#include "heed/core/config.hpp"
#include "heed/core/target.hpp"
#include "heed/core/tuning.hpp"
#include "heed/core/types.hpp"
#include "heed/simd/shuffle.hpp"

namespace heed::inline HEED_TARGET::simd {

template <class A>
using packet = typename Eigen::internal::packet_traits<A>::type;

template <class A>
inline constexpr index lanes =
    static_cast<index>(Eigen::internal::unpacket_traits<packet<A>>::size);

/// Whether `fmadd` rounds once.
#if !defined(EIGEN_DONT_VECTORIZE) && \
    (defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__))
inline constexpr bool fuses_multiply_add = true;
#else
inline constexpr bool fuses_multiply_add = false;
#endif

inline constexpr index vector_registers = target::vector_registers;

template <class A>
HEED_INLINE packet<A> load(const A* p) noexcept {
  return Eigen::internal::ploadu<packet<A>>(p);
}
/// The same, kept in a register however often it is used: g++ would rather repeat a load in each
/// multiply-add, where sixteen loads for twelve of them are more than a core makes in their time.
template <class A>
HEED_INLINE packet<A> load_once(const A* p) noexcept {
  packet<A> x = load(p);
#if defined(EIGEN_VECTORIZE_FMA) && !defined(EIGEN_VECTORIZE_AVX512) && HEED_HAS_EXTENSIONS && \
    !defined(__clang__) && (defined(__x86_64__) || defined(__i386__))
  if constexpr (lanes<A> != 1) asm("" : "+x"(x));
#endif
  return x;
}
/// x, of which the compiler knows nothing more: a rounding it may not undo, such as that of
/// (x + c) - c, even where it is told that sums are associative.
template <class P>
[[nodiscard]] HEED_INLINE P opaque(P x) noexcept {
#if HEED_HAS_EXTENSIONS
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__SSE2__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  asm("" : "+m"(x));
#endif
#endif
  return x;
}
/// `at`, an index or a pointer, which g++ takes to depend on x: what is loaded from there stays behind the
/// arithmetic that makes x. Without it g++ moves loads of the next operands before the multiply-adds
/// of these, and of 32 registers of Neon keeps sums in memory.
template <class T, class P>
HEED_INLINE void order_after([[maybe_unused]] T& at, [[maybe_unused]] const P& x) noexcept {
#if defined(__aarch64__) && defined(EIGEN_VECTORIZE_NEON) && HEED_HAS_EXTENSIONS && \
    !defined(__clang__)
  asm("" : "+r"(at) : "w"(x));
#endif
}
template <class A, class P>
HEED_INLINE void store(A* p, const P& x) noexcept {
  Eigen::internal::pstoreu<A, P>(p, x);
}
template <class A>
HEED_INLINE packet<A> broadcast(A x) noexcept {
  return Eigen::internal::pset1<packet<A>>(x);
}
/// The number at p in every lane. Of Neon's multiply-adds one operand may be a lane, so that no
/// instruction copies it; clang would copy it as it loads.
template <class A>
HEED_INLINE packet<A> load_broadcast(const A* p) noexcept {
  A x = *p;
#if defined(__aarch64__) && defined(EIGEN_VECTORIZE_NEON) && defined(__clang__) && \
    HEED_HAS_EXTENSIONS
  asm("" : "+w"(x));
#endif
  return broadcast(x);
}
template <class A>
HEED_INLINE packet<A> zero() noexcept {
  return Eigen::internal::pset1<packet<A>>(A(0));
}

template <class P>
HEED_INLINE P add(const P& a, const P& b) noexcept {
  return Eigen::internal::padd(a, b);
}
template <class P>
HEED_INLINE P sub(const P& a, const P& b) noexcept {
  return Eigen::internal::psub(a, b);
}
template <class P>
HEED_INLINE P mul(const P& a, const P& b) noexcept {
  return Eigen::internal::pmul(a, b);
}
template <class P>
HEED_INLINE P div(const P& a, const P& b) noexcept {
  return Eigen::internal::pdiv(a, b);
}
/// a b + c, with one rounding where the target has a fused multiply-add.
template <class P>
HEED_INLINE P fmadd(const P& a, const P& b, const P& c) noexcept {
  return Eigen::internal::pmadd(a, b, c);
}
/// a b + c of single numbers, rounded as lanes of `fmadd` are, however the compiler vectorises the
/// loop around it.
template <class A>
HEED_INLINE A fmadd_scalar(A a, A b, A c) noexcept {
#if defined(EIGEN_VECTORIZE_FMA) || defined(EIGEN_VECTORIZE_AVX512) || defined(__aarch64__)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}
/// The larger; which operand a NaN yields is unspecified.
template <class P>
HEED_INLINE P(max)(const P& a, const P& b) noexcept {
  return Eigen::internal::pmax(a, b);
}
template <class P>
HEED_INLINE P abs(const P& a) noexcept {
  return Eigen::internal::pabs(a);
}
/// All bits where a < b, none elsewhere; for `select` and `both`.
template <class P>
HEED_INLINE P less(const P& a, const P& b) noexcept {
  return Eigen::internal::pcmp_lt(a, b);
}
template <class P>
HEED_INLINE P equal(const P& a, const P& b) noexcept {
  return Eigen::internal::pcmp_eq(a, b);
}
template <class P>
HEED_INLINE P select(const P& mask, const P& a, const P& b) noexcept {
  return Eigen::internal::pselect(mask, a, b);
}
/// Bitwise and.
template <class P>
HEED_INLINE P both(const P& a, const P& b) noexcept {
  return Eigen::internal::pand(a, b);
}
/// Whether a comparison's result has a lane that holds.
template <class P>
HEED_INLINE bool any(const P& mask) noexcept {
  return Eigen::internal::predux_any(mask);
}
/// Bit i: whether a > b in lane i; not where either is NaN.
template <class A, class P>
HEED_INLINE unsigned greater_bits(const P& a, const P& b) noexcept {
#if defined(EIGEN_VECTORIZE_AVX512)
  if constexpr (std::is_same_v<A, float>) return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
  if constexpr (std::is_same_v<A, double>) return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ);
#elif defined(EIGEN_VECTORIZE_AVX)
  if constexpr (std::is_same_v<A, float>) {
    return static_cast<unsigned>(_mm256_movemask_ps(less(b, a)));
  } else {
    return static_cast<unsigned>(_mm256_movemask_pd(less(b, a)));
  }
#else
  A x[lanes<A>];
  A y[lanes<A>];
  store(x, a);
  store(y, b);
  unsigned bits = 0;
  for (unsigned i = 0; i < static_cast<unsigned>(lanes<A>); ++i) {
    bits |= static_cast<unsigned>(x[i] > y[i]) << i;
  }
  return bits;
#endif
}
template <class P>
HEED_INLINE auto sum(const P& a) noexcept {
  return Eigen::internal::predux(a);
}

/// f(0), f(1), ... f(N - 1), each index a compile-time constant, so that arrays of packets become
/// registers without leaving the unrolling to the compiler (at -O2 g++ does not).
template <int N, class F>
HEED_INLINE void unroll(F&& f) noexcept {
  [&]<int... I>(std::integer_sequence<int, I...>) HEED_INLINE_LAMBDA {
    (f(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

/// The largest lane; NaNs may be passed over.
template <class P>
HEED_INLINE auto largest(const P& a) noexcept {
  return Eigen::internal::predux_max(a);
}

/// Asks for the cache line at `p`, which need not be a valid address, to come into the cache of
/// `Level` 1 or 2.
template <int Level = 1>
HEED_INLINE void prefetch(const void* p) noexcept {
#if HEED_HAS_EXTENSIONS
  __builtin_prefetch(p, 0, Level == 1 ? 3 : 2);
#else
  (void)p;
#endif
}

namespace detail {
/// a0 b0 a1 b1 ... of the lower half (First = 0) or the upper half (First = lanes / 2).
template <int First, class P, int... I>
HEED_INLINE P interleave(const P& a, const P& b, std::integer_sequence<int, I...>) noexcept {
  constexpr int w = static_cast<int>(sizeof...(I));
  return shuffle<(First + I / 2 + (I % 2 == 0 ? 0 : w))...>(a, b);
}
}  // namespace detail

/// lanes x lanes numbers at `src` (rows `src_stride` apart) written transposed at `dst`:
/// log2(lanes) rounds in which row r meets row r + lanes / 2.
template <class A>
HEED_INLINE void transpose(const A* src, index src_stride, A* dst, index dst_stride) noexcept {
  constexpr int w = static_cast<int>(lanes<A>);
  if constexpr (w == 1) {
    *dst = *src;
  } else {
    using order = std::make_integer_sequence<int, w>;
    packet<A> row[std::size_t{w}];
    packet<A> next[std::size_t{w}];
    unroll<w>([&](auto r) HEED_INLINE_LAMBDA { row[r] = load(src + r * src_stride); });
    unroll<std::bit_width(std::size_t{w}) - 1>([&](auto) HEED_INLINE_LAMBDA {
      unroll<w / 2>([&](auto r) HEED_INLINE_LAMBDA {
        next[2 * r] = detail::interleave<0>(row[r], row[r + w / 2], order{});
        next[2 * r + 1] = detail::interleave<w / 2>(row[r], row[r + w / 2], order{});
      });
      unroll<w>([&](auto r) HEED_INLINE_LAMBDA { row[r] = next[r]; });
    });
    unroll<w>([&](auto r) HEED_INLINE_LAMBDA { store(dst + r * dst_stride, row[r]); });
  }
}

namespace detail {
/// Numbers of the 128 bits that a register's shuffles stay within where they cost least.
template <class A>
inline constexpr int block =
    lanes<A> < static_cast<index>(16 / sizeof(A)) ? static_cast<int>(lanes<A>)
                                                  : static_cast<int>(16 / sizeof(A));

/// a0 b0 a1 b1 ... of the lower (Half = 0) or upper half of each block.
template <class A, int Half, class P, int... I>
HEED_INLINE P interleave_blocks(const P& a, const P& b, std::integer_sequence<int, I...>) noexcept {
  constexpr int n = block<A>;
  constexpr int w = static_cast<int>(sizeof...(I));
  return shuffle<(I / n * n + Half * n / 2 + I % n / 2 + (I % 2 == 0 ? 0 : w))...>(a, b);
}
/// The even (Odd = 0) or odd blocks of a, then of b.
template <class A, int Odd, class P, int... I>
HEED_INLINE P every_other_block(const P& a, const P& b, std::integer_sequence<int, I...>) noexcept {
  constexpr int n = block<A>;
  return shuffle<((2 * (I / n) + Odd) * n + I % n)...>(a, b);
}
}  // namespace detail

/// Lane i of the result is the sum of x[i]'s lanes, for `lanes` packets x. They are consumed.
///
/// Within blocks first: halving them log2(block) times turns `block` packets into one, whose blocks
/// each hold a part of those packets' sums in order; then the parts of pairs are added.
template <class A>
HEED_INLINE packet<A> sum_each(packet<A>* x) noexcept {
  constexpr int w = static_cast<int>(lanes<A>);
  constexpr int n = detail::block<A>;
  using order = std::make_integer_sequence<int, w>;
  unroll<std::bit_width(std::size_t{n}) - 1>([&](auto round) HEED_INLINE_LAMBDA {
    constexpr int left = n >> (decltype(round)::value + 1);  // of each n packets, after it
    unroll<w / n * left>([&](auto i) HEED_INLINE_LAMBDA {
      const int first = i / left * n + i % left;
      x[first] = add(detail::interleave_blocks<A, 0>(x[first], x[first + left], order{}),
                     detail::interleave_blocks<A, 1>(x[first], x[first + left], order{}));
    });
  });
  unroll<std::bit_width(std::size_t{w / n}) - 1>([&](auto round) HEED_INLINE_LAMBDA {
    constexpr int apart = n << decltype(round)::value;
    unroll<w / (2 * apart)>([&](auto i) HEED_INLINE_LAMBDA {
      const int first = i * 2 * apart;
      x[first] = add(detail::every_other_block<A, 0>(x[first], x[first + apart], order{}),
                     detail::every_other_block<A, 1>(x[first], x[first + apart], order{}));
    });
  });
  return x[0];
}

}  // namespace heed::inline HEED_TARGET::simd
