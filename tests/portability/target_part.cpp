// SPDX-License-Identifier: MIT
// Attention for one target of several in a program: compiled once for each, HEED_PART its function.
#include <heed/attention.hpp>

#ifndef HEED_PART
#error "HEED_PART names the function of this target"
#endif

const char* HEED_PART(const float* q, const float* k, const float* v, float* out, std::ptrdiff_t n,
                      std::ptrdiff_t d);

#define HEED_TEXT_OF(x) #x
#define HEED_TEXT(x) HEED_TEXT_OF(x)

/// Causal, each score raised by a hundredth of the key's position. Returns the target's name.
const char* HEED_PART(const float* q, const float* k, const float* v, float* out, std::ptrdiff_t n,
                      std::ptrdiff_t d) {
  const auto result = heed::make_view(out, {n, d});
  heed::attention_into(result, heed::make_view(q, {n, d}), heed::make_view(k, {n, d}),
                       heed::make_view(v, {n, d}), {}, heed::causal(),
                       [](float s, heed::position p) { return s + 0.01F * float(p.key); });
  return HEED_TEXT(HEED_TARGET);
}
