// SPDX-License-Identifier: MIT
// What a training step of one attention head takes, memory and time, by heed and by plain Eigen
// that keeps the matrix of probabilities. Prints a table and draws the memory as an SVG.
//
//   training_memory 65536 memory.svg      # tokens at most, the drawing
//
// heed's memory is measured, the scratch of both passes and the log-sum-exp kept between them; so
// is Eigen's, the matrices of scores that it holds. Inputs, outputs and gradients are left out of
// both.
#include <Eigen/Core>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <heed/attention.hpp>
#include <heed/parallel.hpp>
#include <string>
#include <vector>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

struct measurement {
  double bytes = 0, seconds = 0;
};

struct head {
  matrix q, k, v, d_out, dq, dk, dv;

  explicit head(Eigen::Index n, Eigen::Index d = 64) {
    std::srand(1);
    for (matrix* m : {&q, &k, &v, &d_out, &dq, &dk, &dv}) *m = matrix::Random(n, d);
  }
  [[nodiscard]] float scale() const { return 1 / std::sqrt(static_cast<float>(q.cols())); }

  measurement by_tiles() {
    heed::serial_executor one;
    heed::workspace scratch;
    matrix out(q.rows(), v.cols());
    Eigen::VectorXf lse(q.rows());
    const heed::attention_options options{.scratch = &scratch};
    const auto start = std::chrono::steady_clock::now();
    heed::attention_into(one, heed::into(out, heed::view<float, 1>(lse.data(), {lse.size()})), q, k,
                         v, options);
    heed::attention_backward_into(one, heed::gradients(dq, dk, dv), q, k, v,
                                  heed::into(out, heed::view<float, 1>(lse.data(), {lse.size()})),
                                  d_out, options);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    return {static_cast<double>(scratch.size()) + static_cast<double>(lse.size()) * sizeof(float),
            time.count()};
  }

  measurement by_matrices() {
    const auto start = std::chrono::steady_clock::now();
    matrix p = scale() * (q * k.transpose());
    p = (p.colwise() - p.rowwise().maxCoeff().eval()).array().exp();
    p = p.rowwise().sum().cwiseInverse().eval().asDiagonal() * p;
    const matrix out = p * v;
    const Eigen::VectorXf delta = d_out.cwiseProduct(out).rowwise().sum();
    dv.noalias() = p.transpose() * d_out;
    matrix ds = d_out * v.transpose();
    ds = (p.array() * (ds.colwise() - delta).array() * scale()).matrix();
    dq.noalias() = ds * k;
    dk.noalias() = ds.transpose() * q;
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    return {static_cast<double>(p.size() + ds.size()) * sizeof(float), time.count()};
  }
};

/// Memory over tokens, both axes logarithmic.
class drawing {
 public:
  explicit drawing(double most) : most_(most) {}

  void curve(const std::string& name, const std::string& colour, const std::vector<double>& n,
             const std::vector<double>& bytes) {
    for (std::size_t i = 0; i < n.size(); ++i) {
      lines_ += (i == 0 ? "<path d=\"M" : "L") + at(n[i], bytes[i]);
    }
    lines_ += "\" fill=\"none\" stroke-width=\"2\" stroke=\"" + colour + "\"/>\n";
    label(at_x(n.back()) - 8, at_y(bytes.back()) - 8, "end", colour, name);
  }
  void save(const std::string& path) {
    for (double n = first_n; n <= most_; n *= 4) {
      label(at_x(n), 385, "middle", "black", std::to_string(static_cast<long>(n)));
    }
    const char* const sizes[] = {"100 KB", "1 MB", "10 MB", "100 MB", "1 GB", "10 GB", "100 GB"};
    double bytes = first_bytes;
    for (const char* size : sizes) {
      lines_ +=
          "<path d=\"M" + at(first_n, bytes) + "L" + at(most_, bytes) + "\" stroke=\"#ddd\"/>\n";
      label(72, at_y(bytes) + 4, "end", "black", size);
      bytes *= 10;
    }
    label(400, 408, "middle", "black", "tokens");
    std::ofstream(path) << "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 420\" "
                           "font-family=\"sans-serif\" font-size=\"13\">\n"
                           "<rect width=\"720\" height=\"420\" fill=\"white\"/>\n"
                        << lines_ << "</svg>\n";
  }

 private:
  static constexpr double first_n = 256, first_bytes = 1e5;
  [[nodiscard]] double at_x(double n) const {
    return 80 + 620 * std::log(n / first_n) / std::log(most_ / first_n);
  }
  [[nodiscard]] static double at_y(double bytes) {
    return 365 - 56 * std::log10(bytes / first_bytes);
  }
  [[nodiscard]] std::string at(double n, double bytes) const {
    char text[48];
    std::snprintf(text, sizeof text, "%.1f %.1f", at_x(n), at_y(bytes));
    return text;
  }
  void label(double x, double y, const std::string& anchor, const std::string& colour,
             const std::string& words) {
    lines_ += "<text x=\"" + std::to_string(x) + "\" y=\"" + std::to_string(y) +
              "\" text-anchor=\"" + anchor + "\" fill=\"" + colour + "\">" + words + "</text>\n";
  }

  double most_;
  std::string lines_;
};

int main(int argc, char** argv) {
  const long most = argc > 1 ? std::atol(argv[1]) : 1024;
  const long most_matrices = std::min(most, 8192L);  // beyond, what was seen is carried on as n^2
  std::vector<double> tokens, tiles, matrices;
  std::printf("%8s %14s %14s %12s %12s\n", "tokens", "heed, bytes", "Eigen, bytes", "heed, s",
              "Eigen, s");
  bool same = true;
  for (long n = 256; n <= most; n *= 4) {
    head h(n);
    const measurement a = h.by_tiles();
    measurement b;
    if (n <= most_matrices) {
      const matrix dq = h.dq, dk = h.dk, dv = h.dv;
      b = h.by_matrices();
      same =
          same && h.dq.isApprox(dq, 1e-4F) && h.dk.isApprox(dk, 1e-4F) && h.dv.isApprox(dv, 1e-4F);
    } else {
      b.bytes = 16 * matrices.back();
    }
    tokens.push_back(static_cast<double>(n));
    tiles.push_back(a.bytes);
    matrices.push_back(b.bytes);
    std::printf("%8ld %14.0f %14.0f %12.3f ", n, a.bytes, b.bytes, a.seconds);
    if (b.seconds > 0) {
      std::printf("%12.3f\n", b.seconds);
    } else {
      std::printf("%12s\n", "-");
    }
    std::fflush(stdout);
  }
  if (argc > 2) {
    drawing d(static_cast<double>(most));
    d.curve("matrices of probabilities", "#d62728", tokens, matrices);
    d.curve("heed", "#1f77b4", tokens, tiles);
    d.save(argv[2]);
  }
  std::printf("gradients of both %s\n", same ? "agree" : "differ");
  return same ? 0 : 1;
}
