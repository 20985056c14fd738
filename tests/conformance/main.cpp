// SPDX-License-Identifier: MIT
// Runs conformance cases: heed_conformance DIR... prints PASS, FAIL or SKIP a case and the counts.
//
// A DIR is a case folder (it holds meta.json, or codes of 8-bit floats) or any folder above case
// folders. The exit code is 0 only when at least one case was found and none failed.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "conformance/case.hpp"

namespace {

namespace fs = std::filesystem;

std::vector<fs::path> find_cases(const fs::path& root) {
  std::vector<fs::path> found;
  const auto is_case = [](const fs::path& folder) {
    return fs::exists(folder / "meta.json") || conformance::is_float8_case(folder);
  };
  if (is_case(root)) found.push_back(root);
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    if (entry.is_directory() && is_case(entry.path())) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

void run(const conformance::test_case& c, conformance::comparison& results) {
  const std::string op = c.op();
  if (op == "LatentAttention") return conformance::run_latent_attention(c, results);
  if (c.is_gradient()) {
    conformance::run_gradient(c, results);
  } else if (!c.is_operator()) {
    conformance::run_recurrence(c, results);
  } else if (op == "Attention") {
    conformance::run_attention(c, results);
  } else if (op == "FlexAttention") {
    conformance::run_flex_attention(c, results);
  } else if (op == "RotaryEmbedding") {
    conformance::run_rotary_embedding(c, results);
  } else if (op == "LinearAttention") {
    conformance::run_linear_attention(c, results);
  } else if (op == "CausalConvWithState") {
    conformance::run_causal_convolution(c, results);
  } else {
    throw conformance::unsupported(op);
  }
}

struct tally {
  int passed = 0;
  int failed = 0;
  int skipped = 0;
};

void report(const std::string& name, const conformance::comparison& results, tally& counts) {
  if (results.passed()) {
    ++counts.passed;
    std::printf("PASS %s\n", name.c_str());
  } else {
    ++counts.failed;
    std::printf("FAIL %s (largest error %.2g; %s)\n", name.c_str(), results.largest(),
                results.failure().empty() ? "nothing was compared" : results.failure().c_str());
  }
}

void run_case(const fs::path& folder, tally& counts) {
  std::string name = folder.filename().string();
  try {
    if (conformance::is_float8_case(folder)) {
      conformance::comparison results(0.0, 0.0);
      conformance::run_float8(folder, results);
      return report(name, results, counts);
    }
    const conformance::test_case c(folder);
    name = c.name();
    conformance::comparison results(c.meta().value("onnx_rtol", 0.0),
                                    c.meta().value("onnx_atol", 1e-4));
    run(c, results);
    report(name, results, counts);
  } catch (const conformance::unsupported& what) {
    ++counts.skipped;
    std::printf("SKIP %s (op not supported yet: %s)\n", name.c_str(), what.what());
  } catch (const std::exception& error) {
    ++counts.failed;
    std::printf("FAIL %s (largest error unknown; exception: %s)\n", name.c_str(), error.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: heed_conformance DIR...\n");
    return 2;
  }
  tally counts;
  for (int a = 1; a < argc; ++a) {
    if (!fs::is_directory(argv[a])) {
      std::fprintf(stderr, "heed_conformance: %s is not a directory\n", argv[a]);
      return 2;
    }
    for (const fs::path& folder : find_cases(argv[a])) run_case(folder, counts);
  }
  std::printf("%d passed, %d failed, %d skipped\n", counts.passed, counts.failed, counts.skipped);
  if (counts.passed + counts.failed + counts.skipped == 0) {
    std::fprintf(stderr, "heed_conformance: no case found\n");
    return 1;
  }
  return counts.failed == 0 ? 0 : 1;
}
