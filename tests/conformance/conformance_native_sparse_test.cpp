// SPDX-License-Identifier: MIT
// The conformance runner on cases of native sparse attention written here: what the recorded cases
// do not show (grouped heads, block sizes that divide nothing, blocks past the end or listed twice,
// packed sequences, the log-sum-exp, the selection, the whole).
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <vector>

// The runner itself: its functions are in no header.
#include "conformance/native_sparse.cpp"

namespace {

namespace fs = std::filesystem;
using conformance::comparison;
using heed::index;

/// Numbers in row-major order.
struct numbers {
  std::vector<index> shape;
  std::vector<double> values;

  explicit numbers(std::vector<index> s, unsigned seed = 0) : shape(std::move(s)) {
    index size = 1;
    for (const index e : shape) size *= e;
    std::mt19937 engine(seed);
    std::normal_distribution<double> normal;
    for (index i = 0; i < size; ++i) values.push_back(seed == 0 ? 0.0 : normal(engine));
  }
  template <class... I>
  double& operator()(I... at) {
    index offset = 0;
    std::size_t axis = 0;
    ((offset = offset * shape[axis++] + at), ...);
    return values[static_cast<std::size_t>(offset)];
  }
};

/// A case folder in the temporary folder, gone with it.
class case_folder {
 public:
  explicit case_folder(const std::string& function)
      : folder_(fs::temp_directory_path() /
                ("heed_case_" + std::to_string(::getpid()) + function)) {
    fs::create_directories(folder_);
    meta_ = {{"name", function}, {"source", "nsa/naive.py:" + function}};
    meta_["params"] = nlohmann::json::object();
    meta_["inputs"] = nlohmann::json::object();
    meta_["outputs"] = nlohmann::json::object();
  }
  ~case_folder() { fs::remove_all(folder_); }
  case_folder(const case_folder&) = delete;
  case_folder& operator=(const case_folder&) = delete;

  void parameter(const std::string& name, double value) {
    if (value == std::floor(value)) {
      meta_["params"][name] = static_cast<index>(value);
    } else {
      meta_["params"][name] = value;
    }
  }
  void input(const std::string& name, const numbers& x) { write("inputs", "in_", name, x); }
  void output(const std::string& name, const numbers& x) { write("outputs", "out_", name, x); }

  /// "" where the runner finds the case passed.
  [[nodiscard]] std::string run() const {
    std::ofstream(folder_ / "meta.json") << meta_;
    const conformance::test_case c(folder_);
    comparison results(0.0, 1e-4);
    if (!conformance::run_native_sparse(c, results)) return "no case of native sparse attention";
    if (results.passed()) return "";
    return results.failure() + " is off by " + std::to_string(results.largest());
  }

 private:
  void write(const char* list, const std::string& prefix, const std::string& name,
             const numbers& x) {
    meta_[list][name] = x.shape;
    std::string shape;
    for (const index e : x.shape) shape += std::to_string(e) + ", ";
    std::string header = "{'descr': '<f8', 'fortran_order': False, 'shape': (" + shape + "), }";
    header += std::string(63 - (10 + header.size()) % 64, ' ') + "\n";
    std::ofstream file(folder_ / (prefix + name + ".npy"), std::ios::binary);
    const char start[] = {'\x93', 'N', 'U', 'M', 'P', 'Y', 1, 0, static_cast<char>(header.size()),
                          0};
    file.write(start, sizeof start);
    file << header;
    file.write(reinterpret_cast<const char*>(x.values.data()),
               static_cast<std::streamsize>(x.values.size() * sizeof(double)));
  }

  fs::path folder_;
  nlohmann::json meta_;
};

struct row_result {
  std::vector<double> out;
  double lse = 0;
};

/// One row of attention, tokens x heads x channels: key j counts times(j) times.
row_result attend(numbers& q, numbers& k, numbers& v, index b, index t, index h, double scale,
                  const std::function<double(index)>& times) {
  const index group = q.shape[2] / k.shape[2];
  row_result r{std::vector<double>(static_cast<std::size_t>(v.shape[3])), 0};
  double sum = 0;
  for (index j = 0; j < k.shape[1]; ++j) {
    double dot = 0;
    for (index c = 0; c < q.shape[3]; ++c) dot += q(b, t, h, c) * k(b, j, h / group, c);
    const double weight = times(j) * std::exp(scale * dot);
    sum += weight;
    for (std::size_t c = 0; c < r.out.size(); ++c) {
      r.out[c] += weight * v(b, j, h / group, static_cast<index>(c));
    }
  }
  for (double& x : r.out) x = sum == 0 ? 0 : x / sum;
  r.lse = std::log(sum);
  return r;
}

/// f(b, t, h) for every row.
template <class F>
void each_row(const numbers& q, F&& f) {
  for (index b = 0; b < q.shape[0]; ++b) {
    for (index t = 0; t < q.shape[1]; ++t) {
      for (index h = 0; h < q.shape[2]; ++h) f(b, t, h);
    }
  }
}

struct inputs {
  numbers q{{2, 45, 6, 12}, 1};
  numbers k{{2, 45, 2, 12}, 2};
  numbers v{{2, 45, 2, 7}, 3};
};

TEST(ConformanceNativeSparse, CompressedBranch) {
  for (const index block : {1, 4, 7, 64}) {
    inputs in;
    const index blocks = heed::ceil_div(45, block);
    numbers k({2, blocks, 2, 12}, 4);
    numbers v({2, blocks, 2, 7}, 5);
    numbers o({2, 45, 6, 7});
    numbers lse({2, 45, 6});
    each_row(in.q, [&](index b, index t, index h) {
      const auto r = attend(in.q, k, v, b, t, h, 0.3,
                            [&](index j) { return (j + 1) * block - 1 <= t ? 1.0 : 0.0; });
      for (index c = 0; c < 7; ++c) o(b, t, h, c) = r.out[static_cast<std::size_t>(c)];
      lse(b, t, h) = r.lse;
    });
    case_folder folder("naive_nsa_compression");
    folder.parameter("block_size", static_cast<double>(block));
    folder.parameter("scale", 0.3);
    folder.input("q", in.q);
    folder.input("k_cmp", k);
    folder.input("v_cmp", v);
    folder.output("o", o);
    folder.output("lse", lse);
    EXPECT_EQ(folder.run(), "") << "block " << block;
    o(1, 40, 3, 2) += 0.001;
    folder.output("o", o);
    EXPECT_NE(folder.run(), "");
  }
}

TEST(ConformanceNativeSparse, SelectedBranchWithBlocksPastTheEndAndTwice) {
  for (const index block : {1, 5, 16}) {
    inputs in;
    numbers chosen({2, 45, 2, 5});
    std::mt19937 draw(7);
    for (index n = 0; n < 2 * 45 * 2; ++n) {
      // The row's own block, so that none is empty; any others, some past the end, some none.
      chosen.values[static_cast<std::size_t>(5 * n)] = static_cast<double>(n / 2 % 45 / block);
      for (index s = 1; s < 5; ++s) {
        chosen.values[static_cast<std::size_t>(5 * n + s)] = static_cast<double>(draw() % 49) - 2;
      }
    }
    numbers o({2, 45, 6, 7});
    each_row(in.q, [&](index b, index t, index h) {
      const auto r = attend(in.q, in.k, in.v, b, t, h, 1 / std::sqrt(12.0), [&](index j) {
        double times = 0;
        for (index s = 0; s < 5; ++s) {
          times += chosen(b, t, h / 3, s) == static_cast<double>(j / block) && j <= t ? 1 : 0;
        }
        return times;
      });
      for (index c = 0; c < 7; ++c) o(b, t, h, c) = r.out[static_cast<std::size_t>(c)];
    });
    case_folder folder("naive_nsa_selection");
    folder.parameter("block_size", static_cast<double>(block));
    folder.input("q", in.q);
    folder.input("k", in.k);
    folder.input("v", in.v);
    folder.input("block_indices", chosen);
    folder.output("o", o);
    EXPECT_EQ(folder.run(), "") << "block " << block;
  }
}

TEST(ConformanceNativeSparse, PackedSequences) {
  numbers q({1, 45, 6, 12}, 1);
  numbers k({1, 4 + 3 + 5, 2, 12}, 4);
  numbers v({1, 4 + 3 + 5, 2, 7}, 5);
  numbers bounds({4});
  bounds.values = {0, 14, 25, 45};
  const index first_block[] = {0, 4, 7, 12};
  numbers o({1, 45, 6, 7});
  each_row(q, [&](index b, index t, index h) {
    const std::size_t n = t < 14 ? 0 : t < 25 ? 1 : 2;
    const auto local = t - static_cast<index>(bounds.values[n]);
    const auto r = attend(q, k, v, b, t, h, 0.3, [&](index j) {
      const index own = j - first_block[n];
      return own >= 0 && j < first_block[n + 1] && (own + 1) * 4 - 1 <= local ? 1.0 : 0.0;
    });
    for (index c = 0; c < 7; ++c) o(b, t, h, c) = r.out[static_cast<std::size_t>(c)];
  });
  case_folder folder("naive_nsa_compression");
  folder.parameter("block_size", 4);
  folder.parameter("scale", 0.3);
  folder.input("q", q);
  folder.input("k_cmp", k);
  folder.input("v_cmp", v);
  folder.input("cu_seqlens", bounds);
  folder.output("o", o);
  EXPECT_EQ(folder.run(), "");
}

/// The whole by its definition, and the selection it makes: blocks of 4, six a row.
struct whole_case {
  inputs in;
  numbers g_cmp{{2, 45, 6}, 6};
  numbers g_slc{{2, 45, 6}, 7};
  numbers g_swa{{2, 45, 6}, 8};
  numbers kc{{2, 12, 2, 12}};
  numbers chosen{{2, 45, 2, 6}};
  numbers o{{2, 45, 6, 7}};

  whole_case() {
    const double scale = 1 / std::sqrt(12.0);
    numbers vc({2, 12, 2, 7});
    for (index b = 0; b < 2; ++b) {
      for (index j = 0; j < 44; ++j) {
        for (index h = 0; h < 2; ++h) {
          for (index c = 0; c < 12; ++c) kc(b, j / 4, h, c) += in.k(b, j, h, c) / 4;
          for (index c = 0; c < 7; ++c) vc(b, j / 4, h, c) += in.v(b, j, h, c) / 4;
        }
      }
    }
    each_row(in.q, [&](index b, index t, index h) {
      if (h % 3 == 0) select(b, t, h / 3, scale);
      const auto first = attend(in.q, kc, vc, b, t, h, scale,
                                [&](index j) { return (j + 1) * 4 - 1 <= t ? 1.0 : 0.0; });
      const auto second = attend(in.q, in.k, in.v, b, t, h, scale, [&](index j) {
        for (index s = 0; s < 6; ++s) {
          if (chosen(b, t, h / 3, s) == static_cast<double>(j / 4) && j <= t) return 1.0;
        }
        return 0.0;
      });
      const auto third = attend(in.q, in.k, in.v, b, t, h, scale,
                                [&](index j) { return j <= t && t - j < 9 ? 1.0 : 0.0; });
      for (std::size_t c = 0; c < 7; ++c) {
        o(b, t, h, static_cast<index>(c)) = g_cmp(b, t, h) * first.out[c] +
                                            g_slc(b, t, h) * second.out[c] +
                                            g_swa(b, t, h) * third.out[c];
      }
    });
  }

 private:
  void select(index b, index t, index h, double scale) {
    std::vector<std::pair<double, index>> order;
    std::vector<double> weight(12, 0.0);
    for (index head = 3 * h; head < 3 * h + 3; ++head) {
      std::vector<double> e;
      double sum = 0;
      for (index n = 0; (n + 1) * 4 - 1 <= t; ++n) {
        double dot = 0;
        for (index c = 0; c < 12; ++c) dot += in.q(b, t, head, c) * kc(b, n, h, c);
        e.push_back(std::exp(scale * dot));
        sum += e.back();
      }
      for (std::size_t n = 0; n < e.size(); ++n) weight[n] += e[n] / sum;
    }
    for (index n = 0; n <= t / 4; ++n) {
      const bool fixed = n == 0 || n >= t / 4 - 1;
      order.emplace_back(fixed ? -100.0 : -weight[static_cast<std::size_t>(n)], n);
    }
    std::sort(order.begin(), order.end());
    for (index s = 0; s < 6; ++s) {
      const auto at = static_cast<std::size_t>(s);
      chosen(b, t, h, s) = at < order.size() ? static_cast<double>(order[at].second) : -1.0;
    }
  }
};

TEST(ConformanceNativeSparse, SelectionAndWhole) {
  whole_case w;
  case_folder selection("naive_nsa_topk");
  selection.parameter("block_counts", 6);
  selection.parameter("block_size", 4);
  selection.input("q", w.in.q);
  selection.input("k_cmp", w.kc);
  selection.output("block_indices", w.chosen);
  EXPECT_EQ(selection.run(), "");

  case_folder whole("naive_nsa");
  whole.parameter("block_counts", 6);
  whole.parameter("block_size", 4);
  whole.parameter("window_size", 9);
  whole.input("q", w.in.q);
  whole.input("k", w.in.k);
  whole.input("v", w.in.v);
  whole.input("g_cmp", w.g_cmp);
  whole.input("g_slc", w.g_slc);
  whole.input("g_swa", w.g_swa);
  whole.output("o", w.o);
  EXPECT_EQ(whole.run(), "");
  whole.input("block_indices", w.chosen);
  EXPECT_EQ(whole.run(), "");
  w.o(0, 30, 1, 1) += 0.001;
  whole.output("o", w.o);
  EXPECT_NE(whole.run(), "");
}

}  // namespace
