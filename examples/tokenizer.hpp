// SPDX-License-Identifier: MIT
// Text to token ids and back, by the byte-pair merges of a llama2.c tokenizer file.
#pragma once

#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llama {

class tokenizer {
 public:
  static constexpr int begin_of_text = 1;

  /// The file does not say how many pieces it holds: the model does.
  tokenizer(const std::string& path, std::size_t vocabulary) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot open " + path);
    const auto longest = take<std::uint32_t>(file);
    for (std::size_t id = 0; id < vocabulary; ++id) {
      scores_.push_back(take<float>(file));
      const auto length = take<std::uint32_t>(file);
      if (!file || length > longest) {
        throw std::runtime_error(path + " is no tokenizer of " + std::to_string(vocabulary) +
                                 " pieces");
      }
      std::string piece(length, '\0');
      file.read(piece.data(), static_cast<std::streamsize>(length));
      ids_.emplace(piece, static_cast<int>(id));
      pieces_.push_back(std::move(piece));
    }
    if (!ids_.contains(" ")) throw std::runtime_error(path + " has no piece for a space");
  }

  /// Begins with the begin-of-text token. Characters first, then the best merge until none is left.
  [[nodiscard]] std::vector<int> encode(const std::string& text) const {
    std::vector<int> ids{begin_of_text};
    if (!text.empty()) ids.push_back(ids_.at(" "));
    for (std::size_t at = 0; at < text.size();) {
      std::size_t end = at + 1;
      while (end < text.size() && end < at + 4 && is_continuation(text[end])) ++end;
      const auto known = ids_.find(text.substr(at, end - at));
      if (known != ids_.end()) {
        ids.push_back(known->second);
        at = end;
      } else {
        for (; at < end; ++at) ids.push_back(static_cast<unsigned char>(text[at]) + first_byte);
      }
    }
    while (merge_best(ids)) {
    }
    return ids;
  }

  /// The text of `id` where it follows `previous`: the space that begins a text is not printed.
  [[nodiscard]] std::string decode(int previous, int id) const {
    const std::string& piece = pieces_.at(static_cast<std::size_t>(id));
    if (id >= first_byte && id < first_byte + 256) {
      return std::string(1, static_cast<char>(id - first_byte));
    }
    return previous == begin_of_text && piece.starts_with(' ') ? piece.substr(1) : piece;
  }

 private:
  static constexpr int first_byte = 3;  // pieces 3 to 258 are the bytes 0 to 255

  static bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; }

  template <class T>
  static T take(std::ifstream& file) {
    T x{};
    file.read(reinterpret_cast<char*>(&x), sizeof x);
    return x;
  }

  bool merge_best(std::vector<int>& ids) const {
    float best_score = -1e10F;
    std::size_t best = 0;
    int merged = -1;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto found = ids_.find(pieces_[static_cast<std::size_t>(ids[i])] +
                                   pieces_[static_cast<std::size_t>(ids[i + 1])]);
      if (found == ids_.end()) continue;
      const float score = scores_[static_cast<std::size_t>(found->second)];
      if (score > best_score) {
        best_score = score;
        best = i;
        merged = found->second;
      }
    }
    if (merged < 0) return false;
    ids[best] = merged;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    return true;
  }

  std::vector<std::string> pieces_;
  std::vector<float> scores_;
  std::unordered_map<std::string, int> ids_;
};

}  // namespace llama
