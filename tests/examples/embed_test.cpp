// SPDX-License-Identifier: MIT
// Tests of the sentence encoder in examples/ against embeddings that another program computed in
// double.
//
// The model's folder is the variable HEED_MINILM of the environment, the recorded embeddings are in
// the folder HEED_SHARED, models/minilm.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <heed/parallel.hpp>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "examples/sentence_encoder.hpp"
#include "examples/wordpiece.hpp"

namespace {

namespace fs = std::filesystem;
using bert::index;
using bert::matrix;

fs::path folder(const char* variable) {
  const char* path = std::getenv(variable);
  return path == nullptr ? fs::path() : fs::path(path);
}

std::string contents(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

struct recorded {
  std::vector<std::string> texts;
  std::vector<bert::token_ids> ids;
  Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> vectors;
};

class Embed : public testing::Test {
 protected:
  void SetUp() override {
    // Built only where both are said to be: a file that is missing is no reason to pass.
    ASSERT_TRUE(fs::exists(folder("HEED_MINILM") / "model.safetensors"));
    ASSERT_TRUE(fs::exists(folder("HEED_SHARED") / "models" / "minilm" / "sentences.json"));
  }
  static recorded read_recorded() {
    const fs::path at = folder("HEED_SHARED") / "models" / "minilm";
    recorded r;
    for (const auto& entry : nlohmann::json::parse(contents(at / "sentences.json"))) {
      r.texts.push_back(entry.at("text").get<std::string>());
      r.ids.push_back(entry.at("ids").get<bert::token_ids>());
    }
    const std::string npy = contents(at / "embeddings.npy");
    r.vectors.resize(static_cast<index>(r.texts.size()), 384);
    const std::size_t bytes = static_cast<std::size_t>(r.vectors.size()) * sizeof(double);
    EXPECT_EQ(npy.size() % 64, bytes % 64);
    EXPECT_NE(npy.find("'<f8'"), std::string::npos);
    std::memcpy(r.vectors.data(), npy.data() + (npy.size() - bytes), bytes);
    return r;
  }
  template <class T>
  static bert::sentence_encoder<T> encoder() {
    return bert::sentence_encoder<T>(folder("HEED_MINILM").string());
  }
};

TEST_F(Embed, TheTokenizerGivesTheRecordedIds) {
  const auto tokenizer = bert::read_wordpiece((folder("HEED_MINILM") / "vocab.txt").string());
  const recorded r = read_recorded();
  ASSERT_EQ(r.texts.size(), 24U);
  for (std::size_t t = 0; t < r.texts.size(); ++t) {
    EXPECT_EQ(tokenizer.encode(r.texts[t], 256), r.ids[t]) << r.texts[t];
  }
}

TEST_F(Embed, VectorsAreTheRecordedOnesTo1em5) {
  const recorded r = read_recorded();
  const auto model = encoder<float>();
  heed::thread_pool pool(2);
  const matrix vectors = model.encode(pool, r.ids);
  EXPECT_LT((vectors.cast<double>() - r.vectors).cwiseAbs().maxCoeff(), 1e-5);
  // Rounding is all that a text's neighbours in the batch change.
  heed::serial_executor here;
  for (std::size_t t = 0; t < r.ids.size(); ++t) {
    const matrix alone = model.encode(here, std::vector<bert::token_ids>{r.ids[t]});
    EXPECT_LT(
        (alone.row(0).cast<double>() - r.vectors.row(static_cast<index>(t))).cwiseAbs().maxCoeff(),
        1e-5)
        << r.texts[t];
  }
}

TEST_F(Embed, TheNumberOfThreadsChangesNoBit) {
  const recorded r = read_recorded();
  const auto model = encoder<float>();
  heed::serial_executor one;
  heed::thread_pool three(3);
  EXPECT_EQ(model.encode(one, r.ids), model.encode(three, r.ids));
}

TEST_F(Embed, Bfloat16PointsTheSameWay) {
  const recorded r = read_recorded();
  heed::thread_pool pool(2);
  const matrix vectors = encoder<Eigen::bfloat16>().encode(pool, r.ids);
  const Eigen::VectorXd cosine =
      (vectors.cast<double>().array() * r.vectors.array()).rowwise().sum();
  EXPECT_GT(cosine.minCoeff(), 0.999);
  EXPECT_LT(cosine.minCoeff(), 1 - 1e-9);  // it is not the float model
}

TEST_F(Embed, IdsThatTheModelDoesNotHaveAreRefused) {
  const auto model = encoder<float>();
  heed::serial_executor here;
  const auto encode = [&](bert::token_ids ids) {
    return model.encode(here, std::vector<bert::token_ids>{std::move(ids)});
  };
  EXPECT_THROW((void)encode({}), std::runtime_error);
  EXPECT_THROW((void)encode({101, -1, 102}), std::runtime_error);
  EXPECT_THROW((void)encode({101, 30522, 102}), std::runtime_error);
  EXPECT_THROW((void)encode(bert::token_ids(513, 1037)), std::runtime_error);
  EXPECT_EQ(model.encode(here, {}).rows(), 0);
}

}  // namespace
