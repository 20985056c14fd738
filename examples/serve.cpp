// SPDX-License-Identifier: MIT
// Serving: 64 requests share one pool of pages, a system prompt and every step's call.
//
// Requests come one after another. Each begins with the same system prompt, goes on with words of its
// own, and wants some tokens more; every fourth wants a second answer, which is a fork. A step takes
// a chunk of the prompt of those that are new beside one token of those that speak (continuous
// batching), and reads the system prompt once for all of them (cascade decode). Pages that no one uses
// stay in the prefix tree until memory runs out; then the oldest go, and if that is not enough, the
// youngest request waits and starts again.
//
//   serve                                  a line that follows the work, then a table
//   serve --numbers int8 --pages 260       smaller numbers; fewer pages, more evictions
//
// The model is feigned: queries, keys and values are numbers that follow from a token and its place,
// and the next token from the attention output, so that what is wrong in a cache is heard in the
// text: it is compared with each request served alone. For that comparison, to the bit, each step also
// reads every sequence by itself, and goes on from there; the table has the time of both.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <exception>
#include <heed/attention.hpp>
#include <heed/cache.hpp>
#include <heed/cost.hpp>
#include <heed/parallel.hpp>
#include <heed/score.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using heed::index;
using text = std::vector<std::int32_t>;

constexpr index heads = 4;
constexpr index kv_heads = 4;
constexpr index channels = 128;
constexpr index page_size = 16;
constexpr index sequences = 24;  // at the same time
constexpr index most_tokens = 2560;
constexpr index system_tokens = 2100;
constexpr index chunk = 64;  // of a prompt in one step

/// A number between -1 and 1 that follows from three others.
float number(std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  std::uint64_t x =
      a * 0x9E3779B97F4A7C15U ^ b * 0xC2B2AE3D27D4EB4FU ^ (c + 1) * 0x165667B19E3779F9U;
  x ^= x >> 31U;
  x *= 0xBF58476D1CE4E5B9U;
  x ^= x >> 29U;
  return static_cast<float>(x >> 40U) / 8388608.0F - 1;
}

struct request {
  text prompt;
  index wanted = 0;   // tokens of the answer
  bool fork = false;  // a second answer, whose first token is another
  index arrives = 0;  // step
};

std::vector<request> make_requests() {
  text system(system_tokens);
  for (std::size_t i = 0; i < system.size(); ++i)
    system[i] = static_cast<std::int32_t>(i * 7 % 997);
  std::vector<request> all;
  for (index r = 0; r < 64; ++r) {
    const auto n = static_cast<std::uint64_t>(r);
    const auto pick = [n](std::uint64_t what, int low, int high) {
      return low +
             static_cast<index>((number(n, what, 5) + 1) / 2 * static_cast<float>(high - low));
    };
    request one{system, pick(1, 8, 60), r % 4 == 3, r * 2};
    for (index i = pick(2, 5, 90); i > 0; --i) {
      one.prompt.push_back(static_cast<std::int32_t>(1000 + 64 * i + r));
    }
    all.push_back(one);
  }
  return all;
}

/// What is being served: a sequence of the cache, and what it has to say.
struct speaker {
  index request = 0;
  bool second = false;
  index sequence = 0;
  text tokens;         // the prompt, and the answer so far
  index prompt = 0;    // of these, the prompt's
  index in_cache = 0;  // of these, those whose rows are in the cache
  [[nodiscard]] index size() const { return static_cast<index>(tokens.size()); }
};

struct totals {
  index steps = 0, computed = 0, adopted = 0, said = 0, evicted = 0, restarts = 0, forks = 0;
  index peak_pages = 0;    // of the pool, in use
  index most_shared = 0;   // pages that tables named more than once: what sharing saved
  index shared_steps = 0;  // whose sequences began alike
  double seconds = 0;
  double cascade = 0, separate = 0;  // of these, attention of those steps in either way
  float difference = 0;              // the largest between the two
};

template <class T>
class server {
 public:
  server(index pages, index threads)
      : cache_({.sequences = sequences,
                .kv_heads = kv_heads,
                .pages = pages,
                .page_size = page_size,
                .head_dim = channels,
                .max_tokens = most_tokens}),
        tree_(cache_),
        pool_(threads) {
    for (index s = sequences; s > 0; --s) idle_.push_back(s - 1);
  }

  /// Serves all of them; answers[r] has one or two texts.
  std::vector<std::vector<text>> serve(const std::vector<request>& requests, bool show) {
    std::vector<std::vector<text>> answers(requests.size());
    for (std::size_t r = 0; r < requests.size(); ++r) answers[r].resize(requests[r].fork ? 2 : 1);
    std::size_t next = 0;
    const auto start = std::chrono::steady_clock::now();
    while (next < requests.size() || !waiting_.empty() || !speakers_.empty()) {
      while (next < requests.size() && requests[next].arrives <= totals_.steps) {
        waiting_.push_back({static_cast<index>(next), false, 0, requests[next].prompt,
                            static_cast<index>(requests[next].prompt.size()), 0});
        ++next;
      }
      admit();
      if (!speakers_.empty()) step(requests, answers);
      ++totals_.steps;
      if (show && totals_.steps % 8 == 0) status(next, requests.size());
    }
    totals_.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (show) std::fprintf(stderr, "\r%79s\r", "");
    cache_.validate();
    return answers;
  }

  [[nodiscard]] const totals& counts() const { return totals_; }
  [[nodiscard]] index page_bytes() const { return cache_.page_bytes(); }
  [[nodiscard]] index pages() const { return cache_.pages(); }

 private:
  [[nodiscard]] static index pages_of(index tokens) { return heed::ceil_div(tokens, page_size); }

  /// Who waits takes a sequence, with all of the prompt that the tree knows but its last token.
  void admit() {
    while (!waiting_.empty() && !idle_.empty()) {
      speaker s = waiting_.front();
      s.sequence = idle_.back();
      s.in_cache = tree_.adopt(std::span(s.tokens).first(s.tokens.size() - 1), s.sequence);
      const index need = pages_of(s.size()) - pages_of(s.in_cache);
      if (!speakers_.empty() && !make_room(need)) {
        cache_.clear(s.sequence);
        return;  // until others have ended
      }
      totals_.adopted += s.in_cache;
      waiting_.pop_front();
      idle_.pop_back();
      speakers_.push_back(s);
    }
  }
  bool make_room(index pages) {
    if (cache_.free_pages() < pages) totals_.evicted += tree_.evict(pages - cache_.free_pages());
    return cache_.free_pages() >= pages;
  }
  /// The youngest speaker waits, and begins again with what the tree then still knows.
  void send_back() {
    speaker s = speakers_.back();
    speakers_.pop_back();
    cache_.clear(s.sequence);
    idle_.push_back(s.sequence);
    s.in_cache = 0;
    waiting_.push_front(s);
    ++totals_.restarts;
  }

  /// New tokens of a speaker in this step.
  [[nodiscard]] static index count(const speaker& s) {
    return std::min(chunk, s.size() - s.in_cache);
  }

  void step(const std::vector<request>& requests, std::vector<std::vector<text>>& answers) {
    // A page for each that grows into one, and one more where a shared page is written to.
    const auto needed = [&] {
      index n = 0;
      for (const speaker& s : speakers_) {
        n += pages_of(s.in_cache + count(s)) - pages_of(s.in_cache) + (s.in_cache % page_size != 0);
      }
      return n;
    };
    while (!make_room(needed())) {
      if (speakers_.size() == 1) throw std::runtime_error("the pool is too small for one request");
      send_back();
    }
    std::vector<index> starts(sequences + 1, 0);
    for (const speaker& s : speakers_) starts[static_cast<std::size_t>(s.sequence) + 1] = count(s);
    for (std::size_t s = 0; s < sequences; ++s) starts[s + 1] += starts[s];
    const index all = starts.back();
    heed::tensor<float, 3> q({heads, all, channels});
    heed::tensor<float, 3> out({heads, all, channels});
    heed::tensor<float, 3> k({kv_heads, all, channels});
    heed::tensor<float, 3> v({kv_heads, all, channels});
    for (const speaker& s : speakers_) {
      const index first = starts[static_cast<std::size_t>(s.sequence)];
      for (index i = 0; i < count(s); ++i) feign(s, s.in_cache + i, first + i, q, k, v);
    }
    cache_.append(k, v, starts);
    attend(out, q, starts);
    totals_.computed += all;
    note_peak();
    // Forks join behind those of this step.
    std::size_t served = speakers_.size();
    for (std::size_t i = 0; i < served;) {
      speaker& s = speakers_[i];
      s.in_cache += count(s);
      const index last = starts[static_cast<std::size_t>(s.sequence) + 1] - 1;
      if (s.in_cache == s.size() && speak(requests, answers, i, last, out)) {
        --served;
      } else {
        ++i;
      }
    }
  }

  /// The output of a step; where all begin alike, of a cascade decode too.
  void attend(heed::tensor<float, 3>& out, const heed::tensor<float, 3>& q,
              const std::vector<index>& starts) {
    const auto now = [] { return std::chrono::steady_clock::now(); };
    const auto seconds = [](auto time) { return std::chrono::duration<double>(time).count(); };
    const index shared = heed::shared_tokens(cache_, starts);
    const auto start = now();
    heed::ragged_decode_into(pool_, out, q, cache_, starts, {.scratch = &scratch_}, heed::causal());
    if (shared < system_tokens / page_size * page_size || speakers_.size() < 2) return;
    const auto between = now();
    heed::tensor<float, 3> again(out.extents());
    heed::cascade_decode_into(pool_, again, q, cache_, starts, shared, {.scratch = &scratch_},
                              heed::causal());
    totals_.separate += seconds(between - start);
    totals_.cascade += seconds(now() - between);
    ++totals_.shared_steps;
    for (index i = 0; i < out.size(); ++i) {
      totals_.difference = std::max(totals_.difference, std::abs(again.data()[i] - out.data()[i]));
    }
  }

  static void feign(const speaker& s, index place, index row, heed::tensor<float, 3>& q,
                    heed::tensor<float, 3>& k, heed::tensor<float, 3>& v) {
    const auto token = static_cast<std::uint64_t>(s.tokens[static_cast<std::size_t>(place)]);
    const auto at = static_cast<std::uint64_t>(place);
    for (index c = 0; c < heads * channels; ++c) {
      const auto n = static_cast<std::uint64_t>(c);
      q(c / channels, row, c % channels) = 3 * number(token, at, n);
      if (c >= kv_heads * channels) continue;
      k(c / channels, row, c % channels) = number(token, at, n + 1000);
      v(c / channels, row, c % channels) = number(token, at, n + 2000);
    }
  }
  /// The next token of speaker i from the output of its last; true where it has ended and gone.
  bool speak(const std::vector<request>& requests, std::vector<std::vector<text>>& answers,
             std::size_t i, index row, const heed::tensor<float, 3>& out) {
    const auto r = static_cast<std::size_t>(speakers_[i].request);
    const bool begins = speakers_[i].size() == speakers_[i].prompt;
    if (begins) {
      tree_.insert(speakers_[i].tokens, speakers_[i].sequence);
      if (requests[r].fork && !speakers_[i].second && !idle_.empty()) {
        speaker other = speakers_[i];
        other.second = true;
        other.sequence = idle_.back();
        idle_.pop_back();
        cache_.fork(speakers_[i].sequence, other.sequence);
        ++totals_.forks;
        other.tokens.push_back(-1);  // another way to begin
        speakers_.push_back(other);
      } else if (requests[r].fork && !speakers_[i].second) {
        speaker other = speakers_[i];  // no sequence is idle: later, by way of the tree
        other.second = true;
        other.tokens.push_back(-1);
        other.in_cache = 0;
        waiting_.push_front(other);
      }
    }
    speaker& s = speakers_[i];
    index best = 0;
    for (index c = 0; c < heads * channels; ++c) {
      const auto at = [&](index n) { return out(n / channels, row, n % channels); };
      if (at(c) > at(best)) best = c;
    }
    s.tokens.push_back(static_cast<std::int32_t>(best));
    ++totals_.said;
    if (s.size() - s.prompt < requests[r].wanted) return false;
    answers[r][s.second ? 1 : 0].assign(s.tokens.begin() + s.prompt, s.tokens.end());
    cache_.clear(s.sequence);
    idle_.push_back(s.sequence);
    speakers_.erase(speakers_.begin() + static_cast<std::ptrdiff_t>(i));
    return true;
  }

  void note_peak() {
    const index used = cache_.pages() - cache_.free_pages();
    std::vector<bool> named(static_cast<std::size_t>(cache_.pages()));
    index again = 0;
    for (index s = 0; s < sequences; ++s) {
      for (const heed::page_id p : cache_.page_table(s)) {
        again += named[p] ? 1 : 0;
        named[p] = true;
      }
    }
    totals_.peak_pages = std::max(totals_.peak_pages, used);
    totals_.most_shared = std::max(totals_.most_shared, again);
  }
  void status(std::size_t arrived, std::size_t all) const {
    std::fprintf(stderr,
                 "\rstep %4td | %2zu of %zu came, %2zu wait, %2zu served | pages %td of %td, "
                 "%td evicted ",
                 totals_.steps, arrived, all, waiting_.size(), speakers_.size(),
                 cache_.pages() - cache_.free_pages(), cache_.pages(), totals_.evicted);
    std::fflush(stderr);
  }

  heed::paged_cache<T> cache_;
  heed::prefix_tree<heed::paged_cache<T>> tree_;
  heed::thread_pool pool_;
  heed::workspace scratch_;
  std::vector<index> idle_;  // sequences
  std::deque<speaker> waiting_;
  std::vector<speaker> speakers_;
  totals totals_;
};

/// What the cost model says of so many tokens of T: a row of codes has 8 bytes of scales.
template <class T>
double model_bytes(index tokens) {
  constexpr bool codes = std::is_same_v<T, heed::quantised_code<8>>;
  return heed::cost::kv_cache_bytes(1, tokens, kv_heads, channels, sizeof(T)) +
         heed::cost::kv_cache_bytes(1, tokens, kv_heads, 1, codes ? 8 : 0);
}

template <class T>
int run(const std::string& numbers, index pages, index threads, bool show) {
  const auto requests = make_requests();
  server<T> s(pages, threads);
  const auto answers = s.serve(requests, show);
  const totals& t = s.counts();

  // Each request by itself, in a cache of its own, says the same.
  std::size_t different = 0;
  for (std::size_t r = 0; r < requests.size(); r += 7) {
    request alone = requests[r];
    alone.arrives = 0;
    server<T> own(2 * most_tokens / page_size, 1);
    if (own.serve({alone}, false)[0] != answers[r]) ++different;
  }

  const double mib = 1024 * 1024;
  const double page = static_cast<double>(s.page_bytes());
  const double used = static_cast<double>(t.peak_pages) * page;
  const double shared = static_cast<double>(t.most_shared) * page;
  const double in_float = model_bytes<float>(t.peak_pages * page_size);
  const double model = model_bytes<T>(t.peak_pages * page_size);
  std::printf("%zu requests, %s, %td threads\n", requests.size(), numbers.c_str(), threads);
  std::printf("  steps                          %10td\n", t.steps);
  std::printf("  tokens computed                %10td\n", t.computed);
  std::printf("  tokens adopted from others     %10td\n", t.adopted);
  std::printf("  tokens said                    %10td\n", t.said);
  std::printf("  tokens computed a second       %10.0f\n",
              static_cast<double>(t.computed) / (t.seconds - t.separate));
  std::printf("  steps of one shared prompt     %10td\n", t.shared_steps);
  std::printf("  attention in them, ms          %10.1f  (%.1f by reading each apart: %.2f x)\n",
              t.cascade * 1e3, t.separate * 1e3, t.separate / t.cascade);
  std::printf("  forks, restarts                %10td %td\n", t.forks, t.restarts);
  std::printf("  pages evicted                  %10td\n", t.evicted);
  std::printf("  peak pages                     %10td of %td\n", t.peak_pages, s.pages());
  std::printf("  their bytes, MiB               %10.2f  (cost model %.2f)\n", used / mib,
              model / mib);
  std::printf("  saved by sharing, MiB          %10.2f  (%td pages)\n", shared / mib,
              t.most_shared);
  std::printf("  saved by smaller numbers, MiB  %10.2f\n", (in_float - used) / mib);
  std::printf("  slots of %td tokens, MiB      %10.2f\n", most_tokens,
              model_bytes<T>(sequences * most_tokens) / mib);
  if (different > 0 || used != model || !(t.difference < 1e-5F)) {
    std::fprintf(stderr,
                 "serve: %zu answers differ from those of requests served alone, "
                 "the outputs of cascade decodes by %g\n",
                 different, static_cast<double>(t.difference));
    return 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::string numbers = "float";
  heed::index pages = 340;
  heed::index threads = 2;
  bool quiet = false;
  CLI::App app("Serves 64 feigned requests out of one paged cache.");
  app.add_option("--numbers", numbers, "float, bfloat16, fp8 or int8")->capture_default_str();
  app.add_option("--pages", pages, "of the pool, 16 tokens each")->capture_default_str();
  app.add_option("--threads", threads, "in all")->capture_default_str();
  app.add_flag("--quiet", quiet, "no status line");
  CLI11_PARSE(app, argc, argv);
  try {
    if (numbers == "float") return run<float>(numbers, pages, threads, !quiet);
    if (numbers == "bfloat16") return run<heed::bfloat16>(numbers, pages, threads, !quiet);
    if (numbers == "fp8") return run<heed::float8_e4m3>(numbers, pages, threads, !quiet);
    if (numbers == "int8") return run<heed::quantised_code<8>>(numbers, pages, threads, !quiet);
    throw std::runtime_error("no numbers are called " + numbers);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "serve: %s\n", error.what());
    return 1;
  }
}
