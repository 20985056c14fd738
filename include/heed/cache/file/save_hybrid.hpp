// SPDX-License-Identifier: MIT
// A hybrid memory to a stream and back: its caches, its states, and the earlier states to which a
// rollback leads. `save_cache` and `load_cache` of save.hpp take it as they take a cache.
#pragma once

#include <algorithm>
#include <limits>

#include "heed/cache/file/save.hpp"
#include "heed/cache/hybrid.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

template <class Cache, class A>
struct stored_cache<hybrid_memory<Cache, A>> {
  using memory = hybrid_memory<Cache, A>;
  static constexpr const char* kind = "hybrid";

  static void save(cache_writer& w, const memory& m) {
    m.require_no_step();
    w.number(scalar_name<A>());
    for (const index n : {m.history_, m.length_, m.caches(), m.states()}) w.number(n);
    for (const auto& s : m.states_) {
      w.number(s.rank);
      for (const index e : s.extents) w.number(e);
    }
    for (const Cache& c : m.caches_) stored_cache<Cache>::save(w, c);
    w.numbers(m.at(m.current_), m.numbers_);
    // Those to which a rollback leads.
    for (index back = 1; back <= (std::min)(m.history_, m.length_); ++back) {
      const index s = m.find(m.length_ - back);
      w.number(s >= 0 ? 1 : 0);
      if (s >= 0) w.numbers(m.at(s), m.numbers_);
    }
  }
  static memory load(cache_reader& r) {
    r.require("scalar of the states", scalar_name<A>());
    memory m(r.number("history", 0, index{1} << 20));
    const index length = r.number("length", 0, (std::numeric_limits<index>::max)());
    const index caches = r.number("caches", 0, index{1} << 20);
    const index states = r.number("states", 0, index{1} << 20);
    for (index i = 0; i < states; ++i) {
      const index rank = r.number("axes of a state", 1, 4);
      index e[4];
      for (index& x : e) x = r.extent("extent of a state");
      if (rank == 1) m.add_state({e[0]});
      if (rank == 2) m.add_state({e[0], e[1]});
      if (rank == 3) m.add_state({e[0], e[1], e[2]});
      if (rank == 4) m.add_state({e[0], e[1], e[2], e[3]});
    }
    m.length_ = length;
    m.snapshots_[0].length = length;
    for (index i = 0; i < caches; ++i) m.add_cache(stored_cache<Cache>::load(r));
    r.numbers(m.at(0), m.numbers_);
    for (index back = 1; back <= (std::min)(m.history_, length); ++back) {
      if (r.number("snapshot", 0, 1) == 0) continue;
      r.numbers(m.at(back), m.numbers_);
      m.snapshots_[static_cast<std::size_t>(back)].length = length - back;
    }
    return m;
  }
};

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
