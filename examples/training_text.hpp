// SPDX-License-Identifier: MIT
// A text for training: its characters as tokens, how hard it is to predict, and sequences of it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer.hpp"

namespace llama {

inline constexpr int byte_vocabulary = 260;

/// A tokenizer file without merges: a byte is a token, a space has one of its own.
inline void save_byte_tokenizer(const std::string& path) {
  std::vector<std::string> pieces{"<unk>", "\n<s>\n", "\n</s>\n"};
  for (unsigned byte = 0; byte < 256; ++byte) {
    char piece[8];
    std::snprintf(piece, sizeof piece, "<0x%02X>", byte);
    pieces.emplace_back(piece);
  }
  pieces.emplace_back(" ");
  std::ofstream file(path, std::ios::binary);
  const auto put = [&](auto x) { file.write(reinterpret_cast<const char*>(&x), sizeof x); };
  put(std::uint32_t{7});
  for (const std::string& piece : pieces) {
    put(0.0F);
    put(static_cast<std::uint32_t>(piece.size()));
    file.write(piece.data(), static_cast<std::streamsize>(piece.size()));
  }
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// Bits a token that are left when `known` tokens before it are known: the entropy of the text's
/// own frequencies, 0 for single tokens and 1 for pairs.
inline double entropy_bits(std::span<const int> tokens, std::size_t known) {
  std::map<std::pair<int, int>, double> pairs;
  std::map<int, double> contexts;
  for (std::size_t i = known; i < tokens.size(); ++i) {
    const int context = known == 0 ? 0 : tokens[i - 1];
    pairs[{context, tokens[i]}] += 1;
    contexts[context] += 1;
  }
  double bits = 0;
  for (const auto& [pair, count] : pairs) bits -= count * std::log2(count / contexts[pair.first]);
  return bits / static_cast<double>(tokens.size() - known);
}

/// A sequence of length + 1 tokens that begins at a word somewhere in `tokens`, behind the token
/// that begins a text.
inline std::vector<int> draw_sequence(std::span<const int> tokens, int space, std::size_t length,
                                      std::mt19937_64& random) {
  const std::size_t last = tokens.size() - length;
  std::size_t at = static_cast<std::size_t>(random() % last);
  for (std::size_t step = 0; step < last && tokens[at] != space; ++step) at = (at + 1) % last;
  std::vector<int> drawn{tokenizer::begin_of_text};
  drawn.insert(drawn.end(), tokens.begin() + static_cast<std::ptrdiff_t>(at),
               tokens.begin() + static_cast<std::ptrdiff_t>(at + length));
  return drawn;
}

}  // namespace llama
