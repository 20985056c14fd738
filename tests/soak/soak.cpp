// SPDX-License-Identifier: MIT
// Random calls of every public function against plain loops in double, for as long as one likes.
//
//   soak --seconds 600                              every family, one after another
//   soak --cases 1000000 --seed 7                   so many cases
//   soak --family decode --seed 7 --case 4711       one case again
//
// Prints the cases and failures of each family; ends with 1 where a case failed.
#include <CLI/CLI.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <random>

#include "soak/families.hpp"
#include "soak/trial.hpp"

namespace {

struct family {
  const char* name;
  void (*run)(soak::trial&);
  long long cases = 0;
  long long failures = 0;
};

family families[] = {
    {"exact", soak::exact},
    {"naive", soak::naive},
    {"packed", soak::packed},
    {"decode", soak::decode},
    {"merge", soak::merge},
    {"forgetting", soak::forgetting},
    {"linformer", soak::linformer},
    {"paged_cache", soak::paged_cache},
    {"slot_cache", soak::slot_cache},
    {"quantised_cache", soak::quantised_cache},
    {"rolling_cache", soak::rolling_cache},
    {"latent", soak::latent},
    {"gradients", soak::gradients},
    {"selected", soak::selected},
    {"selected_decode", soak::selected_decode},
    {"lsh", soak::lsh},
    {"routing", soak::routing},
    {"native_sparse", soak::native_sparse},
    {"pattern", soak::pattern},
    {"top_k", soak::top_k},
    {"mixture", soak::mixture},
    {"indexer", soak::indexer},
    {"pages", soak::pages},
    {"recurrence", soak::recurrence},
    {"kernelised", soak::kernelised},
    {"cosformer", soak::cosformer},
    {"performer", soak::performer},
    {"hgrn", soak::hgrn},
    {"rwkv4", soak::rwkv4},
    {"selective_scan", soak::selective_scan},
    {"convolution", soak::convolution},
    {"rotary", soak::rotary},
};

unsigned long long seed = 0;
const family* running = nullptr;
long long running_case = 0;

void how_to_repeat(std::FILE* to) {
  std::fprintf(to, "again: soak --family %s --seed %llu --case %lld\n", running->name, seed,
               running_case);
}

extern "C" void crashed(int signal) {
  how_to_repeat(stderr);  // the process is lost: what this costs no longer matters
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

/// Whether the case held.
bool run_case(family& f, long long number) {
  running = &f;
  running_case = number;
  soak::trial t(seed, static_cast<std::uint64_t>(&f - families),
                static_cast<std::uint64_t>(number));
  ++f.cases;
  try {
    f.run(t);
    return true;
  } catch (const std::exception& error) {
    ++f.failures;
    std::printf("\nFAILED %s\n  %s\n  ", error.what(), t.text().c_str());
    how_to_repeat(stdout);
    return false;
  }
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 60;
  long long most = 0, only = -1, most_failures = 20;
  std::string name;
  CLI::App app{"Random calls of every public function of heed against plain loops in double"};
  app.add_option("--seconds", seconds, "How long to run, unless --cases is given");
  app.add_option("--cases", most, "How many cases to run");
  app.add_option("--seed", seed, "What the cases follow from; drawn where absent");
  app.add_option("--family", name, "Only this family");
  app.add_option("--case", only, "Only this case, of one family");
  app.add_option("--failures", most_failures, "End after so many failures");
  CLI11_PARSE(app, argc, argv);
  if (app.count("--seed") == 0) seed = std::random_device{}();
  for (const int signal : {SIGSEGV, SIGFPE, SIGILL, SIGABRT}) std::signal(signal, crashed);

  std::vector<family*> chosen;
  for (family& f : families) {
    if (name.empty() || name == f.name) chosen.push_back(&f);
  }
  if (chosen.empty() || (only >= 0 && chosen.size() != 1)) {
    std::fprintf(stderr, "soak: --family is one of");
    for (const family& f : families) std::fprintf(stderr, " %s", f.name);
    std::fprintf(stderr, "\n");
    return 2;
  }
  if (only >= 0) return run_case(*chosen.front(), only) ? 0 : 1;

  using clock = std::chrono::steady_clock;
  const auto begin = clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(clock::now() - begin).count(); };
  long long cases = 0, failures = 0;
  double shown = 0;
  std::printf("seed %llu\n", seed);
  for (long long number = 0;; ++number) {
    for (family* f : chosen) {
      if (most > 0 ? cases >= most : elapsed() >= seconds) goto end;
      ++cases;
      if (!run_case(*f, number)) ++failures;
      if (failures >= most_failures) goto end;
      if (elapsed() - shown >= 5) {
        shown = elapsed();
        std::printf("%6.0f s  %lld cases, %lld failed\n", shown, cases, failures);
        std::fflush(stdout);
      }
    }
  }
end:
  for (const family* f : chosen) {
    std::printf("%-16s %10lld cases %6lld failed\n", f->name, f->cases, f->failures);
  }
  std::printf("%-16s %10lld cases %6lld failed, seed %llu, %.0f s\n", "all", cases, failures, seed,
              elapsed());
  return failures == 0 ? 0 : 1;
}
