// SPDX-License-Identifier: MIT
// Sentence embeddings: one vector of unit length for each line of text, by
// sentence-transformers/all-MiniLM-L6-v2 as published (sh cmake/get-model.sh fetches it).
//
//   heed_embed --model DIR < lines                      a vector a line, as text
//   heed_embed --model DIR --npy vectors.npy < lines    the same as a NumPy array
//   heed_embed --model DIR --similar "a question" < lines
//   heed_embed --model DIR --matrix picture.svg < lines    how alike the lines are
//   heed_embed --demo                                   lines and a question of its own
//
// The encoder is in sentence_encoder.hpp, the tokenizer in wordpiece.hpp; here is what is done with
// them.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <heed/parallel.hpp>
#include <iostream>
#include <istream>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "sentence_encoder.hpp"
#include "similarity_picture.hpp"
#include "wordpiece.hpp"

namespace {

using bert::matrix;
using heed::index;

/// Where cmake/get-model.sh puts the model unless told otherwise.
std::string default_folder() {
  if (const char* folder = std::getenv("HEED_MINILM")) return folder;
  if (const char* cache = std::getenv("XDG_CACHE_HOME")) return std::string(cache) + "/heed/minilm";
  const char* home = std::getenv("HOME");
  return std::string(home != nullptr ? home : ".") + "/.cache/heed/minilm";
}

constexpr const char* demo_question = "How can I sign in again?";
constexpr const char* demo_lines =
    "The cat sat on the mat.\n"
    "A kitten was sleeping on a rug.\n"
    "Our cat likes to lie in the sun.\n"
    "I forgot my login credentials, what should I do?\n"
    "How do I reset my password?\n"
    "My account was locked after three attempts.\n"
    "Stock markets fell after the central bank raised interest rates.\n"
    "Investors sold shares when borrowing became dearer.\n"
    "The company earned less than analysts had expected.\n"
    "The recipe needs two cups of flour and one egg.\n"
    "Whisk the batter until it is smooth.\n"
    "Bake the cake for half an hour.\n";

/// Says on the error stream how far a long input is: at most once a second, a line that is
/// overwritten.
class progress {
 public:
  void report(std::size_t lines) {
    const auto now = std::chrono::steady_clock::now();
    if (now - said_ < std::chrono::seconds(1)) return;
    said_ = now;
    shown_ = true;
    const double seconds = std::chrono::duration<double>(now - start_).count();
    std::fprintf(stderr, "\r%zu lines, %.0f lines/s ", lines, static_cast<double>(lines) / seconds);
  }
  ~progress() {
    if (shown_) std::fputc('\n', stderr);
  }
  progress() = default;
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point said_ = start_;
  bool shown_ = false;
};

/// A NumPy array of floats, whose number of rows is known when all of them are written.
class npy_writer {
 public:
  npy_writer(const std::string& path, index columns)
      : path_(path), columns_(columns), file_(path, std::ios::binary) {
    write_header();
  }
  void write(const matrix& rows) {
    file_.write(
        reinterpret_cast<const char*>(rows.data()),
        static_cast<std::streamsize>(rows.size()) * static_cast<std::streamsize>(sizeof(float)));
    rows_ += rows.rows();
  }
  void close() {
    file_.seekp(0);
    write_header();
    file_.close();
    if (!file_) throw std::runtime_error("cannot write " + path_);
  }

 private:
  void write_header() {
    std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" +
                         std::to_string(rows_) + ", " + std::to_string(columns_) + "), }";
    header.resize(117, ' ');  // 128 bytes with what comes before and the newline
    file_ << std::string("\x93NUMPY\x01\x00\x76\x00", 10) << header << '\n';
    if (!file_) throw std::runtime_error("cannot write " + path_);
  }
  std::string path_;
  index columns_;
  index rows_ = 0;
  std::ofstream file_;
};

void print(const matrix& vectors) {
  for (index t = 0; t < vectors.rows(); ++t) {
    for (index c = 0; c < vectors.cols(); ++c) {
      std::printf(c == 0 ? "%.8g" : " %.8g", static_cast<double>(vectors(t, c)));
    }
    std::putchar('\n');
  }
}

/// A bar of `width` characters for 1, in eighths of a character.
std::string bar(float value, int width) {
  static constexpr const char* eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const int filled =
      static_cast<int>(std::clamp(value, 0.0F, 1.0F) * static_cast<float>(8 * width));
  std::string text;
  for (int i = 0; i < filled / 8; ++i) text += "█";
  text += eighths[filled % 8];
  for (int i = (filled + 7) / 8; i < width; ++i) text += "·";
  return text;
}

struct settings {
  std::string model = default_folder();
  std::string npy, similar, picture;
  std::size_t top = 10, max_tokens = 256;
  index threads = heed::thread_pool::hardware_threads();
  bool bfloat16 = false, ids = false, demo = false;
};

using receiver = std::function<void(const std::vector<std::string>&, const matrix&)>;

/// Reads lines until they are a few seconds' work, encodes them, hands them on, until none is left.
template <class T>
void encode_lines(std::istream& in, const bert::sentence_encoder<T>& encoder,
                  const bert::wordpiece& tokenizer, const settings& set, const receiver& receive) {
  static constexpr std::size_t most_lines = 512;
  static constexpr std::size_t most_bytes = 1U << 15U;
  heed::thread_pool pool(set.threads);
  progress how_far;
  std::size_t done = 0;
  bool more = true;
  while (more) {
    std::vector<std::string> lines;
    std::vector<bert::token_ids> ids;
    std::size_t bytes = 0;
    std::string line;
    while (ids.size() < most_lines && bytes < most_bytes) {
      more = static_cast<bool>(std::getline(in, line));
      if (!more) break;
      bytes += line.size();
      ids.push_back(tokenizer.encode(line, set.max_tokens));
      lines.push_back(std::move(line));
    }
    if (ids.empty()) break;
    receive(lines, encoder.encode(pool, ids));
    done += lines.size();
    how_far.report(done);
  }
}

template <class T>
void rank_lines(std::istream& in, const bert::sentence_encoder<T>& encoder,
                const bert::wordpiece& tokenizer, const settings& set) {
  heed::serial_executor here;
  const std::vector<bert::token_ids> query{tokenizer.encode(set.similar, set.max_tokens)};
  const matrix wanted = encoder.encode(here, query);
  std::vector<std::pair<float, std::string>> found;
  encode_lines(in, encoder, tokenizer, set,
               [&](const std::vector<std::string>& lines, const matrix& vectors) {
                 for (std::size_t i = 0; i < lines.size(); ++i) {
                   found.emplace_back(vectors.row(static_cast<index>(i)).dot(wanted.row(0)),
                                      lines[i]);
                 }
                 // Of a long input, only what may still be shown is kept.
                 std::stable_sort(found.begin(), found.end(),
                                  [](const auto& a, const auto& b) { return a.first > b.first; });
                 found.resize(std::min(found.size(), set.top));
               });
  for (const auto& [similarity, line] : found) {
    std::printf("%5.2f %s %s\n", static_cast<double>(similarity), bar(similarity, 20).c_str(),
                line.c_str());
  }
}

template <class T>
void draw_lines(std::istream& in, const bert::sentence_encoder<T>& encoder,
                const bert::wordpiece& tokenizer, const settings& set) {
  std::vector<std::string> texts;
  matrix all(0, encoder.shape().width);
  encode_lines(in, encoder, tokenizer, set,
               [&](const std::vector<std::string>& lines, const matrix& vectors) {
                 texts.insert(texts.end(), lines.begin(), lines.end());
                 if (texts.size() > similarity::most_texts) {
                   throw std::runtime_error("a picture shows at most " +
                                            std::to_string(similarity::most_texts) + " lines");
                 }
                 all.conservativeResize(all.rows() + vectors.rows(), Eigen::NoChange);
                 all.bottomRows(vectors.rows()) = vectors;
               });
  std::ofstream file(set.picture);
  file << similarity::to_svg(all, texts);
  if (!file.flush()) throw std::runtime_error("cannot write " + set.picture);
}

template <class T>
void run(std::istream& in, const settings& set) {
  const auto tokenizer = bert::read_wordpiece(set.model + "/vocab.txt");
  const bert::sentence_encoder<T> encoder(set.model);
  if (static_cast<index>(tokenizer.size()) > encoder.shape().vocabulary ||
      static_cast<index>(set.max_tokens) > encoder.shape().positions) {
    throw std::runtime_error("the model has " + std::to_string(encoder.shape().vocabulary) +
                             " tokens and " + std::to_string(encoder.shape().positions) +
                             " positions; asked for " + std::to_string(tokenizer.size()) + " and " +
                             std::to_string(set.max_tokens));
  }
  if (!set.picture.empty()) {
    draw_lines(in, encoder, tokenizer, set);
  } else if (!set.similar.empty()) {
    rank_lines(in, encoder, tokenizer, set);
  } else if (!set.npy.empty()) {
    npy_writer file(set.npy, encoder.shape().width);
    encode_lines(in, encoder, tokenizer, set,
                 [&](const auto&, const matrix& vectors) { file.write(vectors); });
    file.close();
  } else {
    encode_lines(in, encoder, tokenizer, set,
                 [](const auto&, const matrix& vectors) { print(vectors); });
  }
}

void print_ids(std::istream& in, const settings& set) {
  const auto tokenizer = bert::read_wordpiece(set.model + "/vocab.txt");
  for (std::string line; std::getline(in, line);) {
    const char* separator = "";
    for (const int id : tokenizer.encode(line, set.max_tokens)) {
      std::cout << std::exchange(separator, " ") << id;
    }
    std::cout << '\n';
  }
}

}  // namespace

int main(int argc, char** argv) {
  settings set;
  CLI::App app("Sentence embeddings of the lines on standard input.");
  app.add_option("--model", set.model, "folder with config.json, vocab.txt, model.safetensors")
      ->capture_default_str();
  auto* similar = app.add_option("--similar", set.similar, "rank the lines by likeness to this");
  app.add_option("--top", set.top, "lines shown of a ranking")->capture_default_str();
  app.add_option("--npy", set.npy, "write the vectors to this file")->excludes(similar);
  app.add_option("--matrix", set.picture, "draw how alike the lines are, as SVG, in this file")
      ->excludes(similar)
      ->excludes("--npy");
  app.add_flag("--bfloat16", set.bfloat16, "weights, queries, keys and values in bfloat16");
  app.add_option("--threads", set.threads, "threads")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--max-tokens", set.max_tokens, "tokens of a line; the rest of it is cut off")
      ->capture_default_str()
      ->check(CLI::Range(2, 1 << 20));
  app.add_flag("--ids", set.ids, "print the token ids instead");
  app.add_flag("--demo", set.demo, "rank a few lines of its own");
  CLI11_PARSE(app, argc, argv);

  try {
    if (!std::filesystem::exists(set.model + "/vocab.txt")) {
      throw std::runtime_error("no model in " + set.model +
                               "; this fetches it (90 MB):\n  sh cmake/get-model.sh " + set.model);
    }
    std::istringstream own_lines(demo_lines);
    if (set.demo && set.picture.empty()) {
      if (set.similar.empty()) set.similar = demo_question;
      std::printf("%s\n\n", set.similar.c_str());
    }
    std::istream& in = set.demo ? own_lines : std::cin;
    if (set.ids) {
      print_ids(in, set);
    } else if (set.bfloat16) {
      run<Eigen::bfloat16>(in, set);
    } else {
      run<float>(in, set);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "heed_embed: %s\n", error.what());
    return 1;
  }
}
