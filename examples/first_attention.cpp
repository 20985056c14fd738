// SPDX-License-Identifier: MIT
// Attention on plain Eigen matrices: a lookup that blends.
//
// Each key is a colour, each value is that colour. A query asks for what resembles it; the
// scale decides how sharply it chooses.
#include <Eigen/Core>
#include <heed/attention.hpp>
#include <iomanip>
#include <iostream>

int main() {
  Eigen::MatrixXf keys(3, 2);  // tokens x channels
  keys << 1, 0,                // east
      0, 1,                    // north
      -1, 0;                   // west
  Eigen::MatrixXf values(3, 3);
  values << 1, 0, 0,  // red
      0, 1, 0,        // green
      0, 0, 1;        // blue
  Eigen::MatrixXf queries(2, 2);
  queries << 1, 0,  // due east
      0.7F, 0.7F;   // between east and north

  const Eigen::IOFormat row(2, 0, "  ", "\n", "    ");
  std::cout << std::fixed << std::setprecision(1);
  for (const double scale : {0.0, 1.0, 10.0}) {
    // softmax(scale * queries * keys') * values, without ever holding the scores.
    const Eigen::MatrixXf out = heed::attention(queries, keys, values, {.scale = scale});
    std::cout << "scale " << scale << (scale == 0 ? ": everything counts the same\n" : ":\n")
              << out.format(row) << "\n";
  }

  // The log-sum-exp of each row comes along where it is wanted: with it, results over parts of
  // the keys merge into the result over all of them.
  const auto [out, log_sum_exp] = heed::attention_with_lse(queries, keys, values);
  std::cout << std::setprecision(3) << "log-sum-exp of the rows: " << log_sum_exp(0) << ", "
            << log_sum_exp(1) << "\n";

  // The textbook formula, scores and all, takes the same arguments. It is there to check against.
  const Eigen::MatrixXf reference = heed::naive_attention(queries, keys, values);
  std::cout << std::scientific
            << "largest difference from the textbook: " << (out - reference).cwiseAbs().maxCoeff()
            << "\n";
}
