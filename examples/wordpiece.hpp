// SPDX-License-Identifier: MIT
// Text to token ids as BERT's uncased models read it (Devlin et al. 2018, arXiv 1810.04805).
//
//   clean       control characters vanish, white space becomes a space, CJK ideographs are words
//   normalise   canonical decomposition without its accents, lower case
//   split       at white space; each punctuation character is a word
//   pieces      the longest piece of the vocabulary, then the longest "##piece", ...; a word that
//               does not come out even, or has more than 100 characters, is [UNK]
//
// Markers such as [MASK] in the text are their tokens. Bytes that are not UTF-8 vanish. The table
// of characters is utf8proc's; the tokenizer that the models were published with has an older one, so
// that a few hundred marks and signs which Unicode has taken in since 2015 come out differently.
#pragma once

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <istream>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bert {

class wordpiece {
 public:
  static constexpr std::size_t longest_word = 100;  // characters

  /// A piece a line; its id is the line's number, from 0.
  explicit wordpiece(std::istream& vocabulary) {
    std::string piece;
    for (int id = 0; std::getline(vocabulary, piece); ++id) {
      if (piece.ends_with('\r')) piece.pop_back();
      longest_piece_ = std::max(longest_piece_, piece.size());
      ids_.emplace(piece, id);
    }
    begin_ = marker("[CLS]");
    end_ = marker("[SEP]");
    unknown_ = marker("[UNK]");
  }

  /// [CLS], the text's pieces, [SEP]: at most `most` tokens (at least 2), the rest is cut off.
  [[nodiscard]] std::vector<int> encode(std::string_view text, std::size_t most) const {
    std::vector<int> ids{begin_};
    while (!text.empty()) {
      const auto [at, name] = first_marker(text);
      for (const std::string& word : words(text.substr(0, at))) append_pieces(word, ids);
      if (at == std::string_view::npos) break;
      ids.push_back(ids_.find(std::string(name))->second);
      text.remove_prefix(at + name.size());
    }
    ids.resize(std::min(ids.size(), std::max<std::size_t>(most, 2) - 1));
    ids.push_back(end_);
    return ids;
  }

  [[nodiscard]] std::size_t size() const { return ids_.size(); }

 private:
  using character = utf8proc_int32_t;

  int marker(const char* name) const {
    const auto found = ids_.find(name);
    if (found == ids_.end()) {
      throw std::runtime_error(std::string("the vocabulary has no ") + name);
    }
    return found->second;
  }

  /// The first marker in the text that the vocabulary knows, and where; npos when there is none.
  [[nodiscard]] std::pair<std::size_t, std::string_view> first_marker(std::string_view text) const {
    static constexpr std::array<std::string_view, 5> markers{"[PAD]", "[UNK]", "[CLS]", "[SEP]",
                                                             "[MASK]"};
    for (auto at = text.find('['); at != std::string_view::npos; at = text.find('[', at + 1)) {
      for (const auto name : markers) {
        if (text.substr(at).starts_with(name) && ids_.contains(std::string(name))) {
          return {at, name};
        }
      }
    }
    return {std::string_view::npos, {}};
  }

  static std::vector<std::string> words(std::string_view text) {
    std::vector<std::string> all;
    bool within = false;
    for (const character c : normalised(cleaned(text))) {
      if (is_space(c)) {
        within = false;
        continue;
      }
      const bool alone = is_punctuation(c);
      if (!within || alone) all.emplace_back();
      append(c, all.back());
      within = !alone;
    }
    return all;
  }

  static std::string cleaned(std::string_view text) {
    std::string clean;
    for (std::size_t at = 0; at < text.size();) {
      character c = 0;
      const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at;
      const auto length =
          utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size() - at), &c);
      at += length > 0 ? static_cast<std::size_t>(length) : 1;
      if (length <= 0 || c == 0xFFFD) continue;
      if (c == '\t' || c == '\n' || c == '\r' || is_space(c)) {
        clean += ' ';
      } else if (is_ideograph(c)) {
        clean += ' ';
        append(c, clean);
        clean += ' ';
      } else if (!is_control(c)) {
        append(c, clean);
      }
    }
    return clean;
  }

  /// Canonically decomposed, without nonspacing marks, in lower case.
  static std::vector<character> normalised(const std::string& text) {
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
    const auto size = static_cast<utf8proc_ssize_t>(text.size());
    const auto decompose = [&](std::vector<character>& to) {
      return utf8proc_decompose(bytes, size, to.data(), static_cast<utf8proc_ssize_t>(to.size()),
                                UTF8PROC_DECOMPOSE);
    };
    std::vector<character> all(text.size());
    const auto needed = decompose(all);
    if (needed < 0) throw std::runtime_error(utf8proc_errmsg(needed));
    if (static_cast<std::size_t>(needed) > all.size()) {
      all.resize(static_cast<std::size_t>(needed));
      (void)decompose(all);
    }
    all.resize(static_cast<std::size_t>(needed));
    std::erase_if(all, [](character c) { return utf8proc_category(c) == UTF8PROC_CATEGORY_MN; });
    for (character& c : all) c = utf8proc_tolower(c);
    return all;
  }

  void append_pieces(const std::string& word, std::vector<int>& ids) const {
    const auto characters = std::count_if(word.begin(), word.end(), begins_character);
    const std::size_t before = ids.size();
    std::string piece;
    for (std::size_t at = 0; at < word.size();) {
      const std::string_view prefix = at == 0 ? "" : "##";
      std::size_t end = std::min(word.size(), at + longest_piece_);
      auto found = ids_.end();
      for (; end > at; --end) {
        if (end < word.size() && !begins_character(word[end])) continue;
        piece = prefix;
        piece.append(word, at, end - at);
        found = ids_.find(piece);
        if (found != ids_.end()) break;
      }
      if (found == ids_.end() || static_cast<std::size_t>(characters) > longest_word) {
        ids.resize(before);
        ids.push_back(unknown_);
        return;
      }
      ids.push_back(found->second);
      at = end;
    }
  }

  static bool begins_character(char byte) {
    return (static_cast<unsigned char>(byte) & 0xC0U) != 0x80U;
  }
  static void append(character c, std::string& text) {
    std::array<utf8proc_uint8_t, 4> bytes{};
    const auto length = utf8proc_encode_char(c, bytes.data());
    text.append(reinterpret_cast<const char*>(bytes.data()), static_cast<std::size_t>(length));
  }

  static bool is_space(character c) {
    const auto kind = utf8proc_category(c);
    return c == ' ' || kind == UTF8PROC_CATEGORY_ZS || kind == UTF8PROC_CATEGORY_ZL ||
           kind == UTF8PROC_CATEGORY_ZP;
  }
  static bool is_control(character c) {
    const auto kind = utf8proc_category(c);
    return kind == UTF8PROC_CATEGORY_CC || kind == UTF8PROC_CATEGORY_CF ||
           kind == UTF8PROC_CATEGORY_CO;
  }
  static bool is_punctuation(character c) {
    if ((c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) ||
        (c >= 123 && c <= 126)) {
      return true;  // all of ASCII's symbols too
    }
    const auto kind = utf8proc_category(c);
    return kind >= UTF8PROC_CATEGORY_PC && kind <= UTF8PROC_CATEGORY_PO;
  }
  static bool is_ideograph(character c) {
    static constexpr std::array<std::pair<character, character>, 8> blocks{{{0x4E00, 0x9FFF},
                                                                            {0x3400, 0x4DBF},
                                                                            {0x20000, 0x2A6DF},
                                                                            {0x2A700, 0x2B73F},
                                                                            {0x2B740, 0x2B81F},
                                                                            {0x2B920, 0x2CEAF},
                                                                            {0xF900, 0xFAFF},
                                                                            {0x2F800, 0x2FA1F}}};
    return std::any_of(blocks.begin(), blocks.end(),
                       [c](const auto& b) { return c >= b.first && c <= b.second; });
  }

  std::unordered_map<std::string, int> ids_;
  std::size_t longest_piece_ = 0;
  int begin_ = 0, end_ = 0, unknown_ = 0;
};

/// The vocabulary in the file `path`.
inline wordpiece read_wordpiece(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path);
  return wordpiece(file);
}

}  // namespace bert
