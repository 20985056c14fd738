// SPDX-License-Identifier: MIT
// The families of heed_bench, one source file each.
#pragma once

namespace bench {

void register_forward();          ///< exact attention in float and double, and the naive baselines
void register_backward();         ///< gradients of exact attention
void register_linear_backward();  ///< gradients of the recurrences
void register_narrow();           ///< exact attention on half and bfloat16 tensors
void register_modified();         ///< windows, score modifiers, lambdas
void register_traps();            ///< what once was slow or inexact, and the error over n
void register_decode();           ///< one query against a cache
void register_caches();           ///< the same from every kind of cache
void register_linear();           ///< kernelised linear attention
void register_sparse();           ///< sparse patterns
void register_selection();        ///< choosing keys, and attention to what was chosen
void register_recurrence();       ///< recurrences with a matrix state
void register_native_sparse();    ///< native sparse attention, whole and its selection
void register_sorted();           ///< tokens sorted into groups: hashed, routed
void register_length();           ///< the linear family, a thousand to a million tokens
void register_scan();             ///< diagonal scans and the causal convolution

}  // namespace bench
