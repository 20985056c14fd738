// SPDX-License-Identifier: MIT
// A hybrid memory to a stream and back: its caches, its states, and the earlier states to which a
// rollback leads. `save_cache` and `load_cache` of save.hpp take it as they take a cache.
#pragma once

#include <algorithm>
#include <limits>

#include "heed/cache/file/content.hpp"
#include "heed/cache/hybrid.hpp"
#include "heed/core/checked.hpp"
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
    constexpr index most = index{1} << 20;
    r.require("scalar of the states", scalar_name<A>());
    index history = 0;
    index length = 0;
    index caches = 0;
    index states = 0;
    r.number("history", history, 0, most);
    r.number("length", length, 0, (std::numeric_limits<index>::max)());
    r.number("caches", caches, 0, most);
    r.number("states", states, 0, most);
    // A cache has 8 numbers at least, a state 5.
    r.believe(saturating_product(history + 2, 16), 64 * caches + 40 * states);
    memory m(history);
    for (index i = 0; i < states; ++i) {
      index rank = 0;
      index e[4];
      r.number("axes of a state", rank, 1, 4);
      for (index& x : e) r.extent("extent of a state", x);
      for (index axis = rank; axis < 4; ++axis) e[axis] = 1;
      const index numbers = bytes_of(e[0], e[1], e[2], e[3]);
      r.believe(saturating_product(history + 2, static_cast<index>(sizeof(A)),
                                   saturating_sum(numbers, 15)),
                0);
      if (rank == 1) m.add_state({e[0]});
      if (rank == 2) m.add_state({e[0], e[1]});
      if (rank == 3) m.add_state({e[0], e[1], e[2]});
      if (rank == 4) m.add_state({e[0], e[1], e[2], e[3]});
    }
    r.believe(0, saturating_product(m.numbers_, static_cast<index>(sizeof(A))));
    m.length_ = length;
    m.snapshots_[0].length = length;
    for (index i = 0; i < caches; ++i) m.add_cache(stored_cache<Cache>::load(r));
    r.numbers(m.at(0), m.numbers_);
    for (index back = 1; back <= (std::min)(m.history_, length); ++back) {
      index known = 0;
      r.number("snapshot", known, 0, 1);
      if (known == 0) continue;
      r.numbers(m.at(back), m.numbers_);
      m.snapshots_[static_cast<std::size_t>(back)].length = length - back;
    }
    return m;
  }
};

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
