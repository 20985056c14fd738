// SPDX-License-Identifier: MIT
// Tests of the tokenizer in examples/ with a vocabulary of a few pieces: what each rule of its
// opening comment does to a text.
#include "examples/wordpiece.hpp"

#include <gtest/gtest.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using ids = std::vector<int>;

enum piece : int {
  pad,
  unk,
  cls,
  sep,
  mask,
  a,
  cafe,
  un,
  s_aff,
  s_able,
  dot,
  dollar,
  tokyo,
  kana,
  s_a,
  hangul,
  s_jamo,
  sigma
};

const bert::wordpiece& tokenizer() {
  static const bert::wordpiece t = [] {
    std::istringstream vocabulary(
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\ncafe\nun\n##aff\n##able\n.\n$\n東\nて\n##a\n"
        "\u1112\n##\u1161\nσ\n");
    return bert::wordpiece(vocabulary);
  }();
  return t;
}

/// The pieces between [CLS] and [SEP].
ids pieces(const std::string& text) {
  const ids all = tokenizer().encode(text, 512);
  EXPECT_GE(all.size(), 2U);
  EXPECT_EQ(all.front(), cls);
  EXPECT_EQ(all.back(), sep);
  return {all.begin() + 1, all.end() - 1};
}

std::string repeat(const std::string& text, int n) {
  std::string all;
  for (int i = 0; i < n; ++i) all += text;
  return all;
}

TEST(WordPiece, AnEmptyLineIsTheTwoMarkers) {
  EXPECT_EQ(pieces(""), ids{});
  EXPECT_EQ(pieces(" \t\r "), ids{});
}

TEST(WordPiece, TheLongestPieceComesFirst) {
  EXPECT_EQ(pieces("unaffable"), (ids{un, s_aff, s_able}));
  EXPECT_EQ(pieces("una"), (ids{un, s_a}));
}

TEST(WordPiece, AWordThatDoesNotComeOutEvenIsUnknownAsAWhole) {
  EXPECT_EQ(pieces("a unaffq a"), (ids{a, unk, a}));
}

TEST(WordPiece, AccentsAndCaseAreDropped) {
  EXPECT_EQ(pieces("café CAFÉ cafe\u0301"), (ids{cafe, cafe, cafe}));
  EXPECT_EQ(pieces("Σ"), ids{sigma});
}

TEST(WordPiece, LettersAreDecomposed) {
  EXPECT_EQ(pieces("で"), ids{kana});              // te and its voicing mark
  EXPECT_EQ(pieces("하"), (ids{hangul, s_jamo}));  // a syllable in its two jamo
}

TEST(WordPiece, IdeographsAndPunctuationAreWords) {
  EXPECT_EQ(pieces("東東a東"), (ids{tokyo, tokyo, a, tokyo}));
  EXPECT_EQ(pieces("a.a$a"), (ids{a, dot, a, dollar, a}));
  EXPECT_EQ(pieces("a—a"), (ids{a, unk, a}));
}

TEST(WordPiece, SpacesOfEveryKindSeparate) {
  EXPECT_EQ(pieces("a\u00a0a\u3000a\ta\u2028a"), (ids{a, a, a, a, a}));
}

TEST(WordPiece, ControlCharactersVanish) {
  EXPECT_EQ(pieces("ca\u0001f\u200be\ufeff"), ids{cafe});
  EXPECT_EQ(pieces(std::string("ca\0fe", 5)), ids{cafe});
  EXPECT_EQ(pieces("ca\ufffdfe"), ids{cafe});
}

TEST(WordPiece, BytesThatAreNotUtf8Vanish) {
  EXPECT_EQ(pieces("ca\xfe"
                   "fe \xe2\x82"),
            ids{cafe});
  EXPECT_EQ(pieces("\xc0\x80"), ids{});      // an overlong zero
  EXPECT_EQ(pieces("\xed\xa0\x80"), ids{});  // half of a surrogate pair
}

TEST(WordPiece, WordsOfMoreThan100CharactersAreUnknown) {
  EXPECT_EQ(pieces(repeat("a", 100)).size(), 100U);
  EXPECT_EQ(pieces(repeat("a", 101)), ids{unk});
  // Characters are counted after the accents are gone, and not their bytes.
  EXPECT_EQ(pieces(repeat("á", 100)).size(), 100U);
  EXPECT_EQ(pieces(repeat("á", 101)), ids{unk});
  EXPECT_EQ(pieces(repeat("하", 50)), ids{unk});  // 100 jamo, of which "##\u1112" is no piece
}

TEST(WordPiece, MarkersInTheTextAreTheirTokens) {
  EXPECT_EQ(pieces("a[MASK]a [SEP]"), (ids{a, mask, a, sep}));
  EXPECT_EQ(pieces("[[MASK]"), (ids{unk, mask}));
  EXPECT_EQ(pieces("[mask"), (ids{unk, unk}));
}

TEST(WordPiece, ALongTextIsCutBeforeTheLastMarker) {
  const std::string text = repeat("a ", 50);
  EXPECT_EQ(tokenizer().encode(text, 52).size(), 52U);
  EXPECT_EQ(tokenizer().encode(text, 10), (ids{cls, a, a, a, a, a, a, a, a, sep}));
  EXPECT_EQ(tokenizer().encode(text, 2), (ids{cls, sep}));
}

TEST(WordPiece, AVocabularyOfOtherLineEndsIsTheSame) {
  std::istringstream vocabulary("[UNK]\r\n[CLS]\r\n[SEP]\r\na\r\n");
  EXPECT_EQ(bert::wordpiece(vocabulary).encode("a", 8), (ids{1, 3, 2}));
}

TEST(WordPiece, AVocabularyWithoutItsMarkersIsRefused) {
  std::istringstream vocabulary("a\nb\n");
  EXPECT_THROW(bert::wordpiece{vocabulary}, std::runtime_error);
  EXPECT_THROW((void)bert::read_wordpiece("missing/vocab.txt"), std::runtime_error);
}

}  // namespace
