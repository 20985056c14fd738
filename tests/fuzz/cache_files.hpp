// SPDX-License-Identifier: MIT
// Files of caches: any bytes are refused with an exception, or give a cache that is whole and whose
// own file gives the same again. The first byte says which cache, the second what the rest is:
//
// - a file as it is; few of those come past the checksums,
// - the content of a file with right checksums, behind extents that are small or huge,
// - changes to the file of a cache with some tokens, after which its checksums are made right.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <initializer_list>
#include <span>
#include <sstream>
#include <string>
#include <utility>

#include "heed/cache.hpp"
#include "heed/cache/file/save_offloaded.hpp"
#include "heed/rotary.hpp"

namespace fuzz {

using heed::index;

class input {
 public:
  input(const std::uint8_t* data, std::size_t size) : left_(data, size) {}
  [[nodiscard]] bool empty() const { return left_.empty(); }
  std::uint8_t byte() {
    if (left_.empty()) return 0;
    const std::uint8_t b = left_.front();
    left_ = left_.subspan(1);
    return b;
  }
  /// Small, or a power of two up to 2^62.
  index extent() {
    const int b = byte();
    return b < 248 ? b % 7 : index{1} << (b - 248) * 9 % 63;
  }
  [[nodiscard]] std::string rest() const {
    return {reinterpret_cast<const char*>(left_.data()), left_.size()};
  }

 private:
  std::span<const std::uint8_t> left_;
};

/// Every row that kernels would read.
template <class Cache>
void read_rows(const Cache& cache) {
  float sum = 0;
  for (index b = 0; b < cache.batch(); ++b) {
    for (index h = 0; h < cache.kv_heads(); ++h) {
      for (index j = 0; j < cache.length(b); ++j) {
        if constexpr (heed::widening_source<Cache>) {
          float row[64];
          if (cache.head_dim() > 64 || cache.value_dim() > 64) continue;
          cache.widen_keys(b, h, {j, j + 1}, row);
          sum += row[0];
          cache.widen_values(b, h, {j, j + 1}, row);
          sum += row[0];
        } else {
          for (index c = 0; c < cache.head_dim(); ++c) {
            sum += static_cast<float>(cache.keys(b, h, j).data[c]);
          }
          for (index c = 0; c < cache.value_dim(); ++c) {
            sum += static_cast<float>(cache.values(b, h, j).data[c]);
          }
        }
      }
    }
  }
  volatile float seen = sum;
  (void)seen;
}

/// use() may refuse in these ways and no others.
template <class Use>
void refusing(const Use& use) {
  try {
    use();
  } catch (const heed::file_error&) {
  } catch (const heed::shape_error&) {
  } catch (const heed::capacity_error&) {
  } catch (const heed::option_error&) {
  }
}

template <class Cache>
std::string saved(const Cache& cache) {
  std::ostringstream to;
  heed::save_cache(to, cache);
  return to.str();
}

template <class Cache>
void load(const std::string& file) {
  refusing([&] {
    std::istringstream from(file);
    const auto cache = heed::load_cache<Cache>(from, {.most_bytes = 1 << 20});
    if constexpr (requires { cache.validate(); }) cache.validate();
    if constexpr (requires { cache.batch(); }) read_rows(cache);
    const std::string first = saved(cache);
    std::istringstream again(first);
    if (saved(heed::load_cache<Cache>(again)) != first) std::abort();
  });
}

/// A file with right checksums: the numbers, extents and bytes of the input.
inline std::string forged(input& in, const char* kind, std::initializer_list<index> first,
                          int extents) {
  std::ostringstream file;
  heed::detail::cache_writer w(file, kind);
  for (const index n : first) w.number(n);
  for (int i = 0; i < extents; ++i) w.number(in.extent());
  const std::string rest = in.rest();
  w.bytes(rest.data(), rest.size());
  w.finish();
  return file.str();
}

/// `file` with some of its bytes, or numbers of 8, replaced.
inline std::string changed(input& in, std::string file, std::size_t begin) {
  while (!in.empty() && file.size() >= begin + 8) {
    const std::size_t low = in.byte();
    const std::size_t at = begin + (low + 256U * in.byte()) % (file.size() - begin);
    if (low % 2 == 0 || at + 8 > file.size()) {
      file[at] = static_cast<char>(in.byte());
    } else {
      const std::int64_t n = in.extent() - in.byte() % 2;
      std::memcpy(file.data() + at, &n, 8);
    }
  }
  return file;
}
/// The checksum of each page is that of what it holds.
inline std::string sealed(std::string file) {
  heed::detail::file_page p;
  for (std::size_t at = 40; at + sizeof(p) <= file.size(); at += sizeof(p) + p.bytes) {
    std::memcpy(&p, file.data() + at, sizeof(p));
    if (p.bytes > file.size() - at - sizeof(p)) break;
    p.sum = p.expected(reinterpret_cast<const std::byte*>(file.data() + at + sizeof(p)));
    std::memcpy(file.data() + at, &p, sizeof(p));
  }
  return file;
}

template <class Cache>
void file_of(input& in, const Cache& cache, std::initializer_list<index> first, int extents) {
  const char* const kind = heed::detail::stored_cache<Cache>::kind;
  switch (in.byte() % 4) {
    case 0:
      return load<Cache>(in.rest());
    case 1:
      return load<Cache>(forged(in, kind, first, extents));
    default:
      return load<Cache>(sealed(changed(in, saved(cache), 56)));
  }
}
template <class Cache>
void file_of(input& in, Cache cache, int extents = 6) {
  heed::tensor<float, 4> k({cache.batch(), cache.kv_heads(), 5, cache.head_dim()});
  heed::tensor<float, 4> v({cache.batch(), cache.kv_heads(), 5, cache.value_dim()});
  for (index i = 0; i < k.size(); ++i) k.data()[i] = static_cast<float>(i);
  cache.append(k, v);
  file_of(in, cache,
          {heed::detail::scalar_name<typename Cache::key_scalar>(),
           heed::detail::scalar_name<typename Cache::value_scalar>()},
          extents);
}

/// The file that an offloaded cache lives in, with its sums made right but for those of the rows.
inline void offloaded_file(input& in) {
  using cache_type = heed::offloaded_cache<float>;
  const std::string path = "fuzz_offloaded.kv";
  static const std::string good = [&] {
    {
      auto cache = cache_type::create(path, {.capacity = 6, .head_dim = 2, .page_size = 4});
      const heed::tensor<float, 3> k({1, 5, 2});
      cache.append(k, k);
    }
    std::ostringstream all;
    all << std::ifstream(path, std::ios::binary).rdbuf();
    return all.str();
  }();
  std::string file = changed(in, good, 0);
  const auto seal = [&](std::size_t begin, std::size_t count) {
    const std::uint64_t sum = heed::detail::checksum(file.data() + begin, count);
    std::memcpy(file.data() + begin + count, &sum, 8);
  };
  seal(0, 32);
  seal(64, 64);
  seal(512, 16);
  std::ofstream(path, std::ios::binary | std::ios::trunc) << file;
  refusing([&] { read_rows(cache_type::open(path)); });
}

inline void read_file(const std::uint8_t* data, std::size_t size) {
  input in(data, size);
  constexpr heed::cache_extents e{
      .batch = 2, .kv_heads = 1, .capacity = 7, .head_dim = 3, .value_dim = 2};
  switch (in.byte() % 12) {
    case 0:
      return file_of(in, heed::contiguous_cache<float>(e));
    case 1:
      return file_of(in, heed::slot_cache<heed::half>(e));
    case 2:
      return file_of(
          in, heed::paged_cache<float>({.sequences = 2, .pages = 9, .page_size = 2, .head_dim = 3}),
          9);
    case 3:
      return file_of(in,
                     heed::paged_int4_cache(
                         {.sequences = 2, .pages = 9, .page_size = 2, .head_dim = 3, .group = 2}),
                     9);
    case 4: {
      const heed::rotary_embedding rope(heed::rotary_layout::interleaved, 2);
      return file_of(in, heed::rolling_cache<float>({.sinks = 1, .window = 3, .head_dim = 3}, rope),
                     10);
    }
    case 5:
      return file_of(in, heed::int4_cache(e, 2), 7);
    case 6:
      return file_of(in, heed::kivi_cache<8>({.capacity = 7, .head_dim = 3, .group = 2}), 7);
    case 7: {
      heed::latent_cache<float> cache({.capacity = 7, .latent_dim = 3, .rope_dim = 2});
      const heed::tensor<float, 3> latent({1, 2, 3});
      const heed::tensor<float, 3> rope({1, 2, 2});
      cache.append(latent, rope);
      return file_of(in, cache, {1, 1}, 8);
    }
    case 8:
    case 9: {
      heed::hybrid_memory<heed::contiguous_cache<float>> memory(2);
      memory.add_cache(heed::contiguous_cache<float>(e));
      memory.add_state({2, 3});
      for (int i = 0; i < 3; ++i) {
        auto step = memory.step(0);
        step.commit();
      }
      return file_of(in, memory, {1}, 9);
    }
    case 10: {
      heed::paged_kivi8_cache cache({.sequences = 2, .pages = 9, .page_size = 2, .head_dim = 3});
      return file_of(in, cache, 9);
    }
    default:
      return offloaded_file(in);
  }
}

}  // namespace fuzz
