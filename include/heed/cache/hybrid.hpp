// SPDX-License-Identifier: MIT
// The memory of a hybrid model: KV caches of its attention layers and recurrent states of the
// others (GLA, delta rules, Mamba, convolutions), which advance, roll back, fork and are saved
// together.
//
//   heed::hybrid_memory<heed::contiguous_cache<float>> memory(8);       // 8 tokens can be taken back
//   const auto kv = memory.add_cache(heed::contiguous_cache<float>(extents));
//   const auto gla = memory.add_state({batch, heads, key_dim, value_dim});
//   const auto conv = memory.add_state({batch, channels, taps - 1});
//
//   auto step = memory.step(n);                                         // n more tokens
//   heed::decode_into(out, q, k, v, step.cache(kv), {}, heed::causal());
//   heed::gated_attention_into(out, q, k, v, g, step.state<4>(gla));
//   step.commit();
//   memory.rollback(3);
//
// A step that is not committed, for instance because a layer threw, leaves caches and states as
// they were. A recurrent state cannot be cut, so that the memory keeps the states after each of the
// last `history` tokens: after a rollback they have the bits of a memory that never saw the tokens
// taken back. Known are the states where steps ended; of a step of several tokens the states
// between them too, where every layer computed them token by token (`step.by_token`), as
// speculative decoding does with the tokens it drafted. `can_rollback` says so.
//
// All caches hold the same number of tokens, length(), in every batch entry. Memory: the caches,
// and (history + 2) times the states, allocated by add_cache and add_state; a step copies the states
// once, a rollback copies nothing. Every operation succeeds or changes nothing; but a step that kept
// states token by token and was then given up may have taken the place of older states that a
// rollback could reach. Reading from many threads is safe while no one writes.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "heed/cache/append_input.hpp"
#include "heed/core/checked.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/tensor/view.hpp"

namespace heed::inline HEED_TARGET {

/// `A` is the accumulator type of the recurrences: float, or double.
template <key_value_source Cache, std::floating_point A = float>
class hybrid_memory {
 public:
  /// The states and caches between `step` and `commit`; destroyed without a commit, the step did
  /// not happen. One step at a time; the memory outlives it and does not move.
  class step_guard {
   public:
    step_guard(const step_guard&) = delete;
    step_guard& operator=(const step_guard&) = delete;
    ~step_guard() {
      if (memory_ != nullptr) memory_->abandon();
    }

    /// The tokens of the step.
    [[nodiscard]] index tokens() const noexcept { return tokens_; }
    /// Throws shape_error where there is no such cache.
    [[nodiscard]] Cache& cache(index i) { return memory_->caches_[memory_->checked_cache(i)]; }
    /// State i, of R axes, to be read and written. Throws shape_error where there is none of them.
    template <int R>
    [[nodiscard]] view<A, R> state(index i) {
      return memory_->template view_of_state<R, A>(memory_->working_, i);
    }
    /// use(token, state) for each token of the step, in order; the state after each is kept. To be
    /// called once a state: option_error. Throws shape_error as `state` does, and what `use` throws.
    template <int R, class Use>
    void by_token(index i, Use&& use) {
      (void)state<R>(i);
      bool& begun = memory_->states_[static_cast<std::size_t>(i)].by_token;
      if (begun) fail<option_error>("state " + std::to_string(i) + " is computed twice in a step");
      begun = true;
      for (index t = 0; t < tokens_; ++t) {
        use(t, state<R>(i));
        if (t + 1 < tokens_) memory_->keep(i, memory_->length_ + t + 1, tokens_);
      }
    }
    /// The memory is now `tokens` longer. Throws shape_error where a cache is not: the step goes on.
    void commit() {
      memory_->commit(tokens_);
      memory_ = nullptr;
    }

   private:
    friend class hybrid_memory;
    step_guard(hybrid_memory& m, index tokens) noexcept : memory_(&m), tokens_(tokens) {}
    hybrid_memory* memory_;
    index tokens_;
  };

  /// `history` is how many tokens a rollback can take back at most. Throws option_error where it is
  /// negative.
  explicit hybrid_memory(index history = 0) : history_(history) {
    if (history < 0 || history > largest_index - 2) {
      fail<option_error>("history is " + std::to_string(history) + ", must be at least 0");
    }
    snapshots_.resize(static_cast<std::size_t>(history) + 2);
    snapshots_[0].length = 0;
  }

  /// Adds the cache of an attention layer and returns its number. Throws shape_error where it has
  /// not as many tokens as the memory; std::bad_alloc.
  index add_cache(Cache cache) {
    require_no_step();
    require_length(cache, length_, static_cast<index>(caches_.size()));
    caches_.push_back(std::move(cache));
    return static_cast<index>(caches_.size()) - 1;
  }
  /// Adds a state of zeros with R axes and returns its number. Throws shape_error where an extent is
  /// negative, option_error where the memory has tokens already; std::bad_alloc.
  template <std::size_t R>
  index add_state(const index (&extents)[R]) {
    static_assert(R >= 1 && R <= 4, "heed: a state has 1 to 4 axes");
    require_no_step();
    if (length_ != 0) {
      fail<option_error>("a state is added to a memory of " + std::to_string(length_) + " tokens");
    }
    state_place place;
    place.rank = static_cast<int>(R);
    std::copy_n(extents, R, place.extents.begin());
    place.begin = numbers_;
    place.size = checked_size("state", std::span<const index>(extents, R), sizeof(A));
    const index numbers = saturating_sum(numbers_, round_up(place.size, 16));
    const index all[] = {static_cast<index>(snapshots_.size()), numbers};
    std::vector<A> memory(static_cast<std::size_t>(checked_size("states", all, sizeof(A))));
    states_.push_back(place);
    for (index i = 0; numbers_ > 0 && i < all[0]; ++i) {
      std::copy_n(at(i), numbers_, memory.data() + i * numbers);
    }
    memory_.swap(memory);
    numbers_ = numbers;
    return static_cast<index>(states_.size()) - 1;
  }

  /// Begins a step of `tokens` more. Throws shape_error where that is negative, option_error where
  /// another step is not ended.
  [[nodiscard]] step_guard step(index tokens) {
    require_no_step();
    if (tokens < 0 || tokens > largest_index - length_) {
      fail<shape_error>("a step has " + std::to_string(tokens) + " tokens");
    }
    working_ = free_snapshot(length_);
    std::copy_n(at(current_), numbers_, at(working_));
    for (state_place& s : states_) s.by_token = false;
    return step_guard(*this, tokens);
  }

  /// Whether the states of `tokens` tokens ago are known.
  [[nodiscard]] bool can_rollback(index tokens) const noexcept {
    if (tokens < 0 || tokens > length_) return false;
    return states_.empty() || (tokens <= history_ && find(length_ - tokens) >= 0);
  }
  /// Takes the last `tokens` tokens back, everywhere. Throws option_error where their states are
  /// not known, or a step is not ended.
  void rollback(index tokens) {
    require_no_step();
    if (!can_rollback(tokens)) {
      fail<option_error>("rollback by " + std::to_string(tokens) + " of " +
                         std::to_string(length_) + " tokens: the states before them are not kept");
    }
    const index length = length_ - tokens;
    for (Cache& c : caches_) cut(c, length);
    if (states_.empty()) {
      snapshots_[static_cast<std::size_t>(current_)].length = length;
    } else {
      current_ = find(length);
    }
    length_ = length;
    for (snapshot& s : snapshots_) {
      if (s.length > length) s = {};
    }
  }
  /// Forgets all tokens: caches are empty, states zero.
  void clear() {
    require_no_step();
    for (Cache& c : caches_) cut(c, 0);
    std::fill(snapshots_.begin(), snapshots_.end(), snapshot{});
    current_ = 0;
    std::fill_n(at(0), numbers_, A(0));
    length_ = 0;
    snapshots_[0].length = 0;
  }
  /// Another memory with the same tokens, which goes on alone. Throws std::bad_alloc.
  [[nodiscard]] hybrid_memory fork() const {
    require_no_step();
    return *this;
  }

  /// Tokens of every cache, and those that the states have seen.
  [[nodiscard]] index length() const noexcept { return length_; }
  [[nodiscard]] index history() const noexcept { return history_; }
  [[nodiscard]] index caches() const noexcept { return static_cast<index>(caches_.size()); }
  [[nodiscard]] index states() const noexcept { return static_cast<index>(states_.size()); }
  /// Throws shape_error where there is no such cache.
  [[nodiscard]] const Cache& cache(index i) const { return caches_[checked_cache(i)]; }
  /// State i after length() tokens. Throws shape_error where there is none of R axes.
  template <int R>
  [[nodiscard]] view<const A, R> state(index i) const {
    return view_of_state<R, const A>(current_, i);
  }

 private:
  friend struct detail::stored_cache<hybrid_memory>;
  friend class step_guard;

  struct state_place {
    int rank = 0;
    std::array<index, 4> extents{};
    index begin = 0;  // among the numbers of a snapshot
    index size = 0;
    bool by_token = false;  // in this step
  };
  /// States after `length` tokens; -1: of none. Of tokens within a step, `kept` of the states are
  /// known by now.
  struct snapshot {
    index length = -1;
    index kept = -1;
  };

  [[nodiscard]] A* at(index s) noexcept { return memory_.data() + s * numbers_; }
  [[nodiscard]] const A* at(index s) const noexcept { return memory_.data() + s * numbers_; }
  /// The snapshot after `length` tokens, or -1.
  [[nodiscard]] index find(index length) const noexcept {
    for (std::size_t i = 0; i < snapshots_.size(); ++i) {
      if (snapshots_[i].length == length && snapshots_[i].kept < 0) return static_cast<index>(i);
    }
    return -1;
  }
  /// One that no rollback from `end` tokens may want, nor the step that goes on.
  [[nodiscard]] index free_snapshot(index end) const noexcept {
    for (index i = 0; i < static_cast<index>(snapshots_.size()); ++i) {
      const index length = snapshots_[static_cast<std::size_t>(i)].length;
      if (i != current_ && i != working_ && (length < 0 || length < end - history_)) return i;
    }
    HEED_ASSERT(false);
    return 0;
  }

  template <int R, class T>
  [[nodiscard]] view<T, R> view_of_state(index s, index i) const {
    if (i < 0 || i >= states() || states_[static_cast<std::size_t>(i)].rank != R) {
      fail<shape_error>("state " + std::to_string(i) + " of " + std::to_string(R) +
                        " axes is wanted, the memory has " + std::to_string(states()) + " states" +
                        (i >= 0 && i < states()
                             ? ", this one of " +
                                   std::to_string(states_[static_cast<std::size_t>(i)].rank) +
                                   " axes"
                             : ""));
    }
    const state_place& place = states_[static_cast<std::size_t>(i)];
    std::array<index, static_cast<std::size_t>(R)> extents{};
    std::copy_n(place.extents.begin(), R, extents.begin());
    const A* const data = at(s) + place.begin;
    if constexpr (std::is_const_v<T>) {
      return {data, extents};
    } else {
      return {const_cast<A*>(data), extents};  // NOLINT: of a step, which has the memory to write
    }
  }
  [[nodiscard]] std::size_t checked_cache(index i) const {
    if (i < 0 || i >= caches()) {
      fail<shape_error>("cache is " + std::to_string(i) + ", the memory has " +
                        std::to_string(caches()));
    }
    return static_cast<std::size_t>(i);
  }
  void require_no_step() const {
    if (working_ >= 0) fail<option_error>("a step of the memory is not ended");
  }
  static void require_length(const Cache& c, index length, index i) {
    for (index b = 0; b < c.batch(); ++b) {
      if (c.length(b) != length) {
        fail<shape_error>("cache " + std::to_string(i) + " has " + std::to_string(c.length(b)) +
                          " tokens, the memory has " + std::to_string(length));
      }
    }
  }
  static void cut(Cache& c, index length) {
    if constexpr (requires { c.truncate(index{}, index{}); }) {
      for (index b = 0; b < c.batch(); ++b) c.truncate(b, (std::min)(length, c.length(b)));
    } else {
      static_assert(
          requires { c.truncate(index{}); }, "heed: a cache of a hybrid memory can be truncated");
      c.truncate((std::min)(length, c.length()));
    }
  }

  /// State i is the one after `length` tokens, within a step of `tokens`.
  void keep(index i, index length, index tokens) noexcept {
    if (length < length_ + tokens - history_) return;
    index s = -1;
    for (index k = 0; k < static_cast<index>(snapshots_.size()); ++k) {
      const snapshot& x = snapshots_[static_cast<std::size_t>(k)];
      if (x.length == length && x.kept >= 0) s = k;
    }
    if (s < 0) {
      s = free_snapshot(length_ + tokens);
      snapshots_[static_cast<std::size_t>(s)] = {length, 0};
    }
    ++snapshots_[static_cast<std::size_t>(s)].kept;
    const state_place& place = states_[static_cast<std::size_t>(i)];
    std::copy_n(at(working_) + place.begin, place.size, at(s) + place.begin);
  }
  void commit(index tokens) {
    for (std::size_t i = 0; i < caches_.size(); ++i) {
      require_length(caches_[i], length_ + tokens, static_cast<index>(i));
    }
    for (snapshot& s : snapshots_) {
      if (s.kept < 0) continue;
      s = s.kept == states() ? snapshot{s.length, -1} : snapshot{};
    }
    length_ += tokens;
    if (tokens == 0) snapshots_[static_cast<std::size_t>(current_)] = {};
    current_ = working_;
    working_ = -1;
    snapshots_[static_cast<std::size_t>(current_)] = {length_, -1};
  }
  void abandon() noexcept {
    for (Cache& c : caches_) cut(c, length_);
    for (snapshot& s : snapshots_) {
      if (s.kept >= 0) s = {};
    }
    snapshots_[static_cast<std::size_t>(working_)] = {};
    working_ = -1;
  }

  index history_;
  index length_ = 0;
  std::vector<Cache> caches_;
  std::vector<state_place> states_;
  std::vector<A> memory_;  // [snapshots][numbers]
  index numbers_ = 0;      // of one snapshot
  std::vector<snapshot> snapshots_;
  index current_ = 0;   // after length() tokens
  index working_ = -1;  // of the step, if there is one
};

}  // namespace heed::inline HEED_TARGET
