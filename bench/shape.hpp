// SPDX-License-Identifier: MIT
// heed_bench --shape: what one call of one's own shape costs on this machine.
#pragma once

namespace bench {

/// Whether `--shape` is among the arguments.
[[nodiscard]] bool asks_for_shape(int argc, char** argv);

/// Measures the shape and prints it; 0, or 2 where the arguments make no shape.
[[nodiscard]] int run_shape(int argc, char** argv);

}  // namespace bench
