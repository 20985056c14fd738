// SPDX-License-Identifier: MIT
// What a model costs on this machine: the cost model's bounds from this machine's probes, and one
// layer measured beside them.
#pragma once

#include <string>
#include <vector>

#include "heed/core.hpp"

namespace wall {

/// Names that `print_model` knows.
[[nodiscard]] std::vector<std::string> model_names();

/// Prints prefill, a token, and the cache's bytes by kind of cache, and measures the attention of
/// one layer at `tokens` tokens with `threads` threads. `peak` in FLOP/s, `bandwidth` in bytes/s.
void print_model(const std::string& name, heed::index tokens, heed::index threads, double peak,
                 double bandwidth);

}  // namespace wall
