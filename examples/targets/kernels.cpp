// SPDX-License-Identifier: MIT
// The kernels, compiled once for each target; the lambda is inlined into each.
#include "kernels.hpp"

#include <heed/attention.hpp>

namespace {

void attend(const float* q, const float* k, const float* v, float* out, std::ptrdiff_t tokens,
            std::ptrdiff_t channels, float slope) {
  const auto tensor = [=](auto* data) { return heed::make_view(data, {tokens, channels}); };
  heed::attention_into(tensor(out), tensor(q), tensor(k), tensor(v), {}, heed::causal(),
                       [slope](float score, heed::position p) {
                         return score - slope * static_cast<float>(p.query - p.key);
                       });
}

}  // namespace

HEED_DEFINE_TARGET(kernels, app_kernels) = {attend};
