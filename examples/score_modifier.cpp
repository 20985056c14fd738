// SPDX-License-Identifier: MIT
// A lambda changes the scores: no kernel to write, none to wait for.
//
// A modifier is `(float score, heed::position p) -> float`, a mask is `(heed::position p) -> bool`.
// The compiler inlines both into the kernel. Here queries and keys are zero, so that every score
// begins equal, and the values are the identity, so that the output shows the weights themselves.
#include <Eigen/Core>
#include <cmath>
#include <cstdio>
#include <heed/attention.hpp>
#include <heed/score.hpp>

namespace {

void show(const char* title, const Eigen::MatrixXf& weights) {
  std::printf("%s\n", title);
  for (Eigen::Index i = 0; i < weights.rows(); ++i) {
    std::printf("   ");
    for (Eigen::Index j = 0; j < weights.cols(); ++j) {
      if (weights(i, j) > 0) {
        std::printf(" %.2f", static_cast<double>(weights(i, j)));
      } else {
        std::printf("    .");
      }
    }
    std::printf("\n");
  }
}

}  // namespace

int main() {
  constexpr Eigen::Index tokens = 8;
  const Eigen::MatrixXf zero = Eigen::MatrixXf::Zero(tokens, 4);
  const Eigen::MatrixXf identity = Eigen::MatrixXf::Identity(tokens, tokens);

  // Scores fall off with distance.
  const auto nearby = [](float score, heed::position p) {
    const auto distance = static_cast<float>(p.query > p.key ? p.query - p.key : p.key - p.query);
    return score - 0.5F * distance;
  };
  show("nearby tokens weigh more:", heed::attention(zero, zero, identity, {}, nearby));

  // Modifiers and masks line up behind the options, as many as one likes.
  show("the same, and nothing from the future:",
       heed::attention(zero, zero, identity, {}, nearby, heed::causal()));

  // Masks combine. A lambda may be beside one of heed's own.
  const auto first_token = [](heed::position p) { return p.key == 0; };
  show("the last three tokens, and the first:",
       heed::attention(zero, zero, identity, {},
                       heed::causal() && (heed::window{.left = 2} || first_token)));

  // Scores of -inf are masked too, and a row that sees nothing gives zero, not NaN.
  const auto even_only = [](float score, heed::position p) {
    return p.query % 2 == 0 ? score : -INFINITY;
  };
  show("odd rows see nothing:", heed::attention(zero, zero, identity, {}, even_only));
}
