// SPDX-License-Identifier: MIT
// Tests of the decoder in examples/ against recorded runs of its model by another program.
//
// The model and the recordings are found in the folder HEED_SHARED (a definition, or else a
// variable of the environment), models/stories260K; without it the tests are skipped.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "examples/llama.hpp"
#include "examples/tokenizer.hpp"

namespace {

namespace fs = std::filesystem;

fs::path model_folder() {
  const char* shared = std::getenv("HEED_SHARED");
  return shared == nullptr ? fs::path() : fs::path(shared) / "models" / "stories260K";
}

class Story : public testing::Test {
 protected:
  void SetUp() override {
    // Built only where there is a model: a file that is missing from it is no reason to pass.
    ASSERT_TRUE(fs::exists(model_folder() / "stories260K.bin")) << model_folder();
  }
  static const llama::model& model() {
    static const llama::model m((model_folder() / "stories260K.bin").string());
    return m;
  }
  static const llama::tokenizer& tokenizer() {
    static const llama::tokenizer t((model_folder() / "tok512.bin").string(), 512);
    return t;
  }
  static std::string golden(const std::string& file) {
    std::ifstream in(model_folder() / "golden" / file, std::ios::binary);
    EXPECT_TRUE(in) << file;
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }
  /// The ids of a recording: the prompt's, and the whole sequence.
  static std::pair<std::vector<int>, std::vector<int>> golden_ids(const std::string& file) {
    std::istringstream text(golden(file));
    std::vector<int> lines[2];
    for (auto& ids : lines) {
      std::string line;
      std::getline(text, line);
      std::istringstream numbers(line);
      for (int id = 0; numbers >> id;) ids.push_back(id);
    }
    return {lines[0], lines[1]};
  }
  static std::string text_of(const std::vector<int>& ids) {
    std::string text;
    for (std::size_t i = 1; i < ids.size(); ++i) text += tokenizer().decode(ids[i - 1], ids[i]);
    return text + "\n";
  }

  static int likeliest(const llama::matrix& states) {
    llama::index best = 0;
    (void)model().logits(states.bottomRows(1)).row(0).maxCoeff(&best);
    return static_cast<int>(best);
  }
  /// `steps` positions from a prompt, whose tokens are read `chunk` at a time.
  static std::vector<int> greedy(std::vector<int> ids, std::size_t steps, std::size_t chunk) {
    llama::memory memory = model().blank_memory();
    llama::matrix states;
    for (std::size_t at = 0; at < ids.size(); at += chunk) {
      states = model().read(std::span(ids).subspan(at, std::min(chunk, ids.size() - at)), memory);
    }
    while (ids.size() <= steps) {
      const int next = likeliest(states);
      if (next == llama::tokenizer::begin_of_text) break;
      ids.push_back(next);
      if (ids.size() <= steps) states = model().read(std::span(ids).last(1), memory);
    }
    return ids;
  }
};

TEST_F(Story, TheTokenizerGivesTheRecordedIds) {
  const auto cases = nlohmann::json::parse(golden("encode.json"));
  ASSERT_FALSE(cases.empty());
  for (const auto& c : cases) {
    EXPECT_EQ(tokenizer().encode(c.at("text").get<std::string>()),
              c.at("ids").get<std::vector<int>>())
        << c.at("text");
  }
}

TEST_F(Story, GreedyTextIsTheRecordedText) {
  for (const std::string name : {"once-upon-a-time", "empty-prompt"}) {
    const auto [prompt, whole] = golden_ids(name + ".ids.txt");
    const std::string text = name == "empty-prompt" ? "" : golden(name + ".prompt.txt");
    ASSERT_EQ(tokenizer().encode(text), prompt);
    const auto ids = greedy(prompt, 256, prompt.size());
    EXPECT_EQ(ids, whole) << name;
    EXPECT_EQ(text_of(ids), golden(name + ".txt"));
  }
}

TEST_F(Story, APromptInChunksIsTheSameStory) {
  const auto [prompt, whole] = golden_ids("once-upon-a-time.ids.txt");
  // A long prompt: most of the story itself.
  const std::vector<int> start(whole.begin(), whole.begin() + 201);
  for (const std::size_t chunk : {1U, 3U, 64U, 200U, 201U}) {
    EXPECT_EQ(greedy(start, 256, chunk), whole) << "chunks of " << chunk;
  }
}

// The states of a chunk differ from those of single tokens by rounding alone: sums of `dim`
// products in other orders, a few layers deep.
TEST_F(Story, ChunksGiveTheLogitsOfSingleTokens) {
  const auto [prompt, whole] = golden_ids("once-upon-a-time.ids.txt");
  const std::span<const int> tokens = std::span(whole).first(130);
  const auto read = [&](std::size_t chunk) {
    llama::memory memory = model().blank_memory();
    llama::matrix logits(static_cast<llama::index>(tokens.size()), model().shape().vocabulary);
    for (std::size_t at = 0; at < tokens.size(); at += chunk) {
      const std::size_t n = std::min(chunk, tokens.size() - at);
      logits.middleRows(static_cast<llama::index>(at), static_cast<llama::index>(n)) =
          model().logits(model().read(tokens.subspan(at, n), memory));
    }
    return logits;
  };
  const llama::matrix single = read(1);
  for (const std::size_t chunk : {2U, 7U, 64U, 129U, 130U}) {
    EXPECT_LT((read(chunk) - single).cwiseAbs().maxCoeff(), 1e-4F) << "chunks of " << chunk;
  }
}

TEST_F(Story, LogitsAreTheRecordedOnesTo1em4) {
  const auto [prompt, whole] = golden_ids("empty-prompt.ids.txt");
  const std::string bytes = golden("empty-prompt.logits8.f32.bin");
  ASSERT_EQ(bytes.size(), 8 * 512 * sizeof(float));
  llama::matrix recorded(8, 512);
  std::memcpy(recorded.data(), bytes.data(), bytes.size());
  llama::memory memory = model().blank_memory();
  const llama::matrix logits = model().logits(model().read(std::span(whole).first(8), memory));
  EXPECT_LT((logits - recorded).cwiseAbs().maxCoeff(), 1e-4F);
}

// Codes of 8 bits in place of floats: of the tokens of both stories, each read after the recorded
// ones before it, 99 in 100 stay the likeliest.
TEST_F(Story, EightBitsChooseTheSameTokens) {
  int same = 0;
  int all = 0;
  for (const std::string name : {"once-upon-a-time", "empty-prompt"}) {
    const auto [prompt, whole] = golden_ids(name + ".ids.txt");
    const auto likeliest_of = [&](auto memory) {
      std::vector<llama::index> best(whole.size());
      const llama::matrix logits = model().logits(model().read(std::span(whole), memory));
      for (llama::index i = 0; i < logits.rows(); ++i) {
        (void)logits.row(i).maxCoeff(&best[static_cast<std::size_t>(i)]);
      }
      return best;
    };
    const auto want = likeliest_of(model().blank_memory());
    const auto got = likeliest_of(
        model().blank_memory([](llama::index) { return heed::int8_cache(model().extents()); }));
    for (std::size_t i = 0; i < want.size(); ++i) same += got[i] == want[i] ? 1 : 0;
    all += static_cast<int>(want.size());
  }
  EXPECT_GT(all, 400);
  EXPECT_GE(same * 100, all * 99) << same << " of " << all;
}

TEST_F(Story, TokensBeyondTheContextAreRefused) {
  llama::memory memory = model().blank_memory();
  const std::vector<int> tokens(512, 1);
  (void)model().read(tokens, memory);
  EXPECT_THROW((void)model().read(std::span(tokens).first(1), memory), heed::shape_error);
}

TEST_F(Story, AFileThatIsNoCheckpointIsRefused) {
  EXPECT_THROW(llama::model((model_folder() / "tok512.bin").string()), std::runtime_error);
  EXPECT_THROW(llama::model((model_folder() / "missing.bin").string()), std::system_error);
  EXPECT_THROW(llama::tokenizer((model_folder() / "stories260K.bin").string(), 512),
               std::runtime_error);
  EXPECT_THROW(llama::tokenizer((model_folder() / "tok512.bin").string(), 513), std::runtime_error);
}

}  // namespace
