// SPDX-License-Identifier: MIT
// Tests of the tensor floor: views, owning tensors and their storages, layouts, and every adaptor.
#include "heed/tensor.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <string>
#include <system_error>
#include <type_traits>
#include <unsupported/Eigen/CXX11/Tensor>
#include <utility>
#include <vector>
#include <version>
#if defined(__cpp_lib_mdspan)
#include <mdspan>
#endif

#include "support/hostile_tensor.hpp"
#include "support/scalars.hpp"

namespace {

using heed::index;
using heed::view;

template <class Error, class F>
void expect_error(F&& f, const std::string& message) {
  try {
    f();
    ADD_FAILURE() << "no exception, expected: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), message);
  }
}

std::vector<float> ascending(index n) {
  std::vector<float> numbers(static_cast<std::size_t>(n));
  std::iota(numbers.begin(), numbers.end(), 0.0F);
  return numbers;
}

// ---------------------------------------------------------------------------------------- views

TEST(View, ARawPointerWithExtentsIsRowMajor) {
  auto data = ascending(24);
  const auto v = heed::make_view(data.data(), {2, 3, 4});
  static_assert(std::is_same_v<decltype(v), const view<float, 3>>);
  EXPECT_EQ(v.size(), 24);
  EXPECT_EQ(v.strides(), (std::array<index, 3>{12, 4, 1}));
  for (index i = 0; i < 2; ++i) {
    for (index j = 0; j < 3; ++j) {
      for (index k = 0; k < 4; ++k) {
        EXPECT_EQ(v(i, j, k), static_cast<float>(12 * i + 4 * j + k));
        EXPECT_EQ(v[i][j](k), v(i, j, k));
      }
    }
  }
}

TEST(View, AViewCanBeBuiltAndReadAtCompileTime) {
  static constexpr std::array<int, 6> data{0, 1, 2, 3, 4, 5};
  static constexpr view<const int, 2> v(data.data(), {2, 3});
  static_assert(v(1, 2) == 5);
  static_assert(v.swap_axes(0, 1)(2, 1) == 5);
  static_assert(v.slice(1, 1, 3)(0, 0) == 1);
}

TEST(View, NegativeAndZeroStrides) {
  auto data = ascending(12);
  const view<float, 2> upside_down(data.data() + 8, {3, 4}, {-4, 1});
  EXPECT_EQ(upside_down(0, 0), 8.0F);
  EXPECT_EQ(upside_down(2, 3), 3.0F);
  EXPECT_EQ(upside_down.slice(0, 1, 3)(1, 0), 0.0F);
  const view<float, 2> mirrored(data.data() + 3, {3, 4}, {4, -1});
  EXPECT_EQ(mirrored(1, 0), 7.0F);
  const view<float, 2> repeated(data.data(), {1000, 4}, {0, 1});
  EXPECT_EQ(repeated(999, 2), 2.0F);
}

TEST(View, DataNeedsNoAlignmentBeyondItsScalars) {
  alignas(64) std::array<float, 7> numbers{0, 1, 2, 3, 4, 5, 6};
  const auto off = heed::make_view(numbers.data() + 1, {2, 3});
  EXPECT_EQ(off(1, 2), 6.0F);
  Eigen::Map<Eigen::MatrixXf> map(numbers.data() + 1, 2, 3);
  EXPECT_EQ(heed::as_view(map)(1, 2), 6.0F);
}

TEST(View, ZeroExtents) {
  const view<float, 3> nothing;
  EXPECT_TRUE(nothing.empty());
  EXPECT_EQ(nothing[0].data(), nullptr);
  const view<float, 3> no_tokens(nullptr, {2, 0, 4});
  EXPECT_TRUE(no_tokens.empty());
  EXPECT_EQ(no_tokens.size(), 0);
  EXPECT_EQ(no_tokens.slice(0, 1, 2).data(), nullptr);  // a null pointer stays null
  EXPECT_EQ(no_tokens.slice(2, 1, 3).extent(2), 2);
  EXPECT_EQ(no_tokens[1].extents(), (std::array<index, 2>{0, 4}));
}

TEST(View, ConstnessGoesOneWay) {
  static_assert(std::is_convertible_v<view<float, 2>, view<const float, 2>>);
  static_assert(!std::is_convertible_v<view<const float, 2>, view<float, 2>>);
  static_assert(!std::is_convertible_v<view<float, 2>, view<double, 2>>);
  static_assert(!std::is_convertible_v<view<float, 2>, view<const float, 3>>);
  auto data = ascending(6);
  const view<float, 2> v(data.data(), {2, 3});
  const view<const float, 2> c = v;
  v(1, 1) = 40.0F;
  EXPECT_EQ(c(1, 1), 40.0F);
}

TEST(View, ErrorsNameTheExtents) {
  auto data = ascending(6);
  expect_error<heed::shape_error>([&] { (void)view<float, 2>(data.data(), {2, -3}); },
                                  "view extents [2, -3] are negative");
  const view<float, 2> v(data.data(), {2, 3});
  expect_error<heed::shape_error>([&] { (void)v.slice(1, 2, 4); },
                                  "slice [2, 4) is outside axis 1 of [2, 3]");
  expect_error<heed::shape_error>([&] { (void)v.slice(0, -1, 1); },
                                  "slice [-1, 1) is outside axis 0 of [2, 3]");
  expect_error<heed::shape_error>([&] { (void)v.slice(0, 2, 1); },
                                  "slice [2, 1) is outside axis 0 of [2, 3]");
  EXPECT_NO_THROW((void)v.slice(0, 2, 2));
}

// A view of random extents, axis order, direction and gaps; reading it must agree with a formula.
RC_GTEST_PROP(ViewProperty, SlicesSwapsAndSubviewsReadTheSameElements, ()) {
  std::array<index, 4> extents{};
  for (auto& e : extents) e = *rc::gen::inRange<index>(1, 5);
  std::array<std::size_t, 4> order{0, 1, 2, 3};
  for (std::size_t i = 3; i > 0; --i) {
    std::swap(order[i], order[*rc::gen::inRange<std::size_t>(0, i + 1)]);
  }
  std::array<index, 4> strides{};
  index step = 1;
  index start = 0;
  for (const std::size_t axis : order) {
    step *= *rc::gen::inRange<index>(1, 3);
    const bool backwards = *rc::gen::arbitrary<bool>();
    strides[axis] = backwards ? -step : step;
    if (backwards) start += (extents[axis] - 1) * step;
    step *= extents[axis];
  }
  auto data = ascending(step);
  const view<const float, 4> v(data.data() + start, extents, strides);

  const int axis = *rc::gen::inRange(0, 4);
  const int other = *rc::gen::inRange(0, 4);
  const index begin = *rc::gen::inRange<index>(0, v.extent(axis));
  const index end = *rc::gen::inRange<index>(begin, v.extent(axis) + 1);
  const auto part = v.slice(axis, begin, end);
  const auto swapped = part.swap_axes(axis, other);
  std::array<index, 4> at{};
  for (at[0] = 0; at[0] < part.extent(0); ++at[0]) {
    for (at[1] = 0; at[1] < part.extent(1); ++at[1]) {
      for (at[2] = 0; at[2] < part.extent(2); ++at[2]) {
        for (at[3] = 0; at[3] < part.extent(3); ++at[3]) {
          auto whole = at;
          whole[static_cast<std::size_t>(axis)] += begin;
          index address = start;
          for (std::size_t a = 0; a < 4; ++a) address += whole[a] * strides[a];
          const auto expected = static_cast<float>(address);
          RC_ASSERT(part(at[0], at[1], at[2], at[3]) == expected);
          RC_ASSERT(part[at[0]][at[1]][at[2]](at[3]) == expected);
          auto s = at;
          std::swap(s[static_cast<std::size_t>(axis)], s[static_cast<std::size_t>(other)]);
          RC_ASSERT(swapped(s[0], s[1], s[2], s[3]) == expected);
        }
      }
    }
  }
}

// --------------------------------------------------------------------------------------- layout

TEST(Layout, MissingAxesHaveExtentOne) {
  auto data = ascending(24);
  const auto two = heed::as_rank4(heed::make_view(data.data(), {6, 4}));
  EXPECT_EQ(two.extents(), (std::array<index, 4>{1, 1, 6, 4}));
  EXPECT_EQ(two(0, 0, 5, 3), 23.0F);
  const auto three = heed::as_rank4(heed::make_view(data.data(), {2, 3, 4}));
  EXPECT_EQ(three.extents(), (std::array<index, 4>{1, 2, 3, 4}));
  EXPECT_EQ(three(0, 1, 2, 3), 23.0F);
  const auto four = heed::as_rank4(heed::make_view(data.data(), {2, 1, 3, 4}));
  EXPECT_EQ(four.extents(), (std::array<index, 4>{2, 1, 3, 4}));
  EXPECT_EQ(four(1, 0, 2, 3), 23.0F);
}

TEST(Layout, PackedProjectionsSplitIntoHeads) {
  heed::tensor<float, 3> packed({2, 5, 12});  // batch x tokens x (3 heads of 4)
  for (index i = 0; i < packed.size(); ++i) packed.data()[i] = static_cast<float>(i);
  const auto v = heed::split_heads(packed, 3);
  EXPECT_EQ(v.extents(), (std::array<index, 4>{2, 3, 5, 4}));
  for (index b = 0; b < 2; ++b) {
    for (index h = 0; h < 3; ++h) {
      for (index t = 0; t < 5; ++t) {
        for (index c = 0; c < 4; ++c) ASSERT_EQ(&v(b, h, t, c), &packed(b, t, 4 * h + c));
      }
    }
  }
  v(1, 2, 4, 3) = -1.0F;
  EXPECT_EQ(packed(1, 4, 11), -1.0F);
  expect_error<heed::shape_error>([&] { (void)heed::split_heads(packed, 5); },
                                  "split_heads: 12 channels do not divide into 5 heads");
  expect_error<heed::shape_error>([&] { (void)heed::split_heads(packed, 0); },
                                  "split_heads: 12 channels do not divide into 0 heads");
}

TEST(Layout, AMatrixOfPackedProjectionsSplitsIntoHeads) {
  Eigen::MatrixXf columns(5, 12);
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows(5, 12);
  const auto c = heed::split_heads(columns, 3);
  const auto r = heed::split_heads(rows, 3);
  EXPECT_EQ(c.extents(), (std::array<index, 3>{3, 5, 4}));
  for (index h = 0; h < 3; ++h) {
    for (index t = 0; t < 5; ++t) {
      for (index d = 0; d < 4; ++d) {
        ASSERT_EQ(&c(h, t, d), &columns(t, 4 * h + d));
        ASSERT_EQ(&r(h, t, d), &rows(t, 4 * h + d));
      }
    }
  }
  expect_error<heed::shape_error>([&] { (void)heed::split_heads(rows, 7); },
                                  "split_heads: 12 channels do not divide into 7 heads");
}

TEST(Layout, TokenMajorReadsHeadsFirst) {
  heed::tensor<double, 4> four({2, 5, 3, 4});
  const auto v = heed::heads_first(four);
  EXPECT_EQ(v.extents(), (std::array<index, 4>{2, 3, 5, 4}));
  EXPECT_EQ(&v(1, 2, 4, 3), &four(1, 4, 2, 3));
  heed::tensor<double, 3> three({5, 3, 4});
  EXPECT_EQ(heed::heads_first(three).extents(), (std::array<index, 3>{3, 5, 4}));
  EXPECT_EQ(&heed::heads_first(three)(2, 4, 3), &three(4, 2, 3));
}

// --------------------------------------------------------------------------------------- scalars

static_assert(std::is_same_v<heed::accumulate_t<float>, float>);
static_assert(std::is_same_v<heed::accumulate_t<const double>, double>);
static_assert(std::is_same_v<heed::accumulate_t<heed::half>, float>);
static_assert(std::is_same_v<heed::accumulate_t<heed::bfloat16>, float>);
static_assert(heed::attention_scalar<const heed::half> && !heed::attention_scalar<int>);

// -------------------------------------------------------------------------------- owning tensors

template <class T>
class OwningTensor : public testing::Test {};
using Scalars = test_scalars::all;
TYPED_TEST_SUITE(OwningTensor, Scalars);

TYPED_TEST(OwningTensor, StartsAtZeroOnACacheLine) {
  for (const index tokens : {0, 1, 3, 17, 64}) {
    heed::tensor<TypeParam, 3> t({2, tokens, 5});
    EXPECT_EQ(t.size(), 10 * tokens);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(t.data()) % 64, 0U);
    for (index i = 0; i < t.size(); ++i) ASSERT_EQ(static_cast<float>(t.data()[i]), 0.0F);
  }
}

TYPED_TEST(OwningTensor, CopiesAreDeepAndAligned) {
  heed::tensor<TypeParam, 2> a({3, 5});
  a(2, 4) = TypeParam(7);
  heed::tensor<TypeParam, 2> b = a;
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(b.data()) % 64, 0U);
  a(2, 4) = TypeParam(1);
  EXPECT_EQ(static_cast<float>(std::as_const(b)(2, 4)), 7.0F);
  heed::tensor<TypeParam, 2> c;
  c = b;
  EXPECT_EQ(static_cast<float>(c(2, 4)), 7.0F);
}

TYPED_TEST(OwningTensor, AMoveTakesTheMemoryAndLeavesNothing) {
  heed::tensor<TypeParam, 2> a({3, 5});
  const auto* const memory = a.data();
  heed::tensor<TypeParam, 2> b = std::move(a);
  EXPECT_EQ(b.data(), memory);
  EXPECT_EQ(b.extent(1), 5);
  // NOLINTBEGIN(bugprone-use-after-move): what a moved-from tensor is, is the point
  EXPECT_EQ(a.extents(), (std::array<index, 2>{0, 0}));
  EXPECT_TRUE(heed::as_view(a).empty());
  a = std::move(b);
  EXPECT_EQ(a.data(), memory);
  EXPECT_EQ(b.size(), 0);
  // NOLINTEND(bugprone-use-after-move)
}

TEST(Tensor, NegativeExtentsAreRefused) {
  expect_error<heed::shape_error>([] { heed::tensor<float, 2> t({3, -1}); },
                                  "view extents [3, -1] are negative");
}

// A user's storage: somebody else's memory.
struct borrowed {
  float* memory = nullptr;
  std::size_t count = 0;
  [[nodiscard]] float* data() const { return memory; }
  [[nodiscard]] std::size_t size() const { return count; }
};

TEST(Tensor, TakesTheUsersStorage) {
  auto numbers = ascending(6);
  heed::tensor<float, 2, borrowed> t({2, 3}, borrowed{numbers.data(), numbers.size()});
  t(1, 2) = 50.0F;
  EXPECT_EQ(numbers[5], 50.0F);
  static_assert(heed::writable_tensor<decltype(t)>);
  static_assert(!heed::makeable_tensor<decltype(t)>);
  // Its results are heed's own, since nobody can lend memory for them.
  static_assert(
      std::is_same_v<decltype(heed::result_like<decltype(t)>({2, 2})), heed::tensor<float, 2>>);
  expect_error<heed::shape_error>(
      [&] {
        heed::tensor<float, 2, borrowed> big({3, 3}, borrowed{numbers.data(), numbers.size()});
      },
      "tensor of extents [3, 3] needs 9 elements, its storage has 6");
}

TEST(Tensor, TakesAVectorAsStorage) {
  heed::tensor<double, 2, std::vector<double>> t({2, 2}, std::vector<double>{1, 2, 3, 4});
  EXPECT_EQ(heed::as_view(t)(1, 0), 3.0);
}

// ---------------------------------------------------------------------------------- mapped files

#if __has_include(<sys/mman.h>)
class MappedFile : public testing::Test {
 protected:
  void SetUp() override {
    path_ =
        (std::filesystem::temp_directory_path() /
         ("heed_mapped_file_" + std::to_string(reinterpret_cast<std::uintptr_t>(this)) + ".bin"))
            .string();
    const auto numbers = ascending(12);
    std::ofstream file(path_, std::ios::binary);
    file.write(reinterpret_cast<const char*>(numbers.data()),
               static_cast<std::streamsize>(numbers.size() * sizeof(float)));
  }
  void TearDown() override { std::filesystem::remove(path_); }
  std::string path_;
};

TEST_F(MappedFile, IsAReadOnlyStorage) {
  using storage = heed::mapped_file<float>;
  const heed::tensor<float, 2, storage> t({2, 5}, storage(path_, 2 * sizeof(float)));
  EXPECT_EQ(t.storage().size(), 10);
  EXPECT_EQ(t(0, 0), 2.0F);
  EXPECT_EQ(heed::as_view(t)(1, 4), 11.0F);
  static_assert(!heed::writable_tensor<heed::tensor<float, 2, storage>>);
  static_assert(heed::tensor_like<heed::tensor<float, 2, storage>>);
}

TEST_F(MappedFile, MovesButDoesNotCopy) {
  static_assert(!std::is_copy_constructible_v<heed::mapped_file<float>>);
  heed::mapped_file<float> a(path_);
  heed::mapped_file<float> b(std::move(a));
  EXPECT_EQ(a.size(), 0);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(a.data(), nullptr);
  EXPECT_EQ(b.size(), 12);
  heed::mapped_file<float> c;
  c = std::move(b);
  EXPECT_EQ(c.data()[11], 11.0F);
}

TEST_F(MappedFile, AnEmptyFileHasNoElements) {
  std::ofstream(path_, std::ios::trunc).close();
  const heed::mapped_file<double> file(path_);
  EXPECT_EQ(file.size(), 0);
  EXPECT_EQ(file.data(), nullptr);
}

TEST_F(MappedFile, TrailingBytesThatMakeNoElementAreNotCounted) {
  std::ofstream(path_, std::ios::app | std::ios::binary) << "ab";
  EXPECT_EQ(heed::mapped_file<float>(path_).size(), 12);
}

TEST_F(MappedFile, ErrorsNameTheFile) {
  try {
    const heed::mapped_file<float> file(path_ + ".missing");
    FAIL() << "no exception";
  } catch (const std::system_error& error) {
    EXPECT_EQ(error.code(), std::errc::no_such_file_or_directory);
    EXPECT_NE(std::string(error.what()).find("cannot open " + path_ + ".missing"),
              std::string::npos);
  }
  try {
    const heed::mapped_file<float> file(std::filesystem::temp_directory_path().string());
    FAIL() << "no exception";
  } catch (const std::system_error& error) {
    EXPECT_NE(std::string(error.what()).find("cannot map "), std::string::npos);
  }
  expect_error<heed::shape_error>(
      [&] { heed::mapped_file<float> file(path_, 2); },
      "mapped_file: offset 2 in " + path_ + " of 48 bytes, elements aligned to 4");
  expect_error<heed::shape_error>(
      [&] { heed::mapped_file<float> file(path_, 52); },
      "mapped_file: offset 52 in " + path_ + " of 48 bytes, elements aligned to 4");
  using storage = heed::mapped_file<float>;
  expect_error<heed::shape_error>(
      [&] { heed::tensor<float, 2, storage> t({4, 4}, storage(path_)); },
      "tensor of extents [4, 4] needs 16 elements, its storage has 12");
}
#endif

// -------------------------------------------------------------------------------- Eigen matrices

// Every element of the view is the element of the matrix, at the same address.
template <class Matrix>
void expect_same_elements(Matrix&& m) {
  const auto v = heed::as_view(m);
  static_assert(decltype(v)::rank == 2);
  ASSERT_EQ(v.extent(0), m.rows());
  ASSERT_EQ(v.extent(1), m.cols());
  for (index i = 0; i < v.extent(0); ++i) {
    for (index j = 0; j < v.extent(1); ++j) ASSERT_EQ(&v(i, j), &m.coeffRef(i, j));
  }
}

template <int Order>
void every_kind_of_eigen_matrix() {
  using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Order>;
  matrix m(6, 8);
  expect_same_elements(m);
  expect_same_elements(std::as_const(m));
  expect_same_elements(m.block(1, 2, 3, 4));
  expect_same_elements(m.transpose());
  expect_same_elements(m.block(1, 2, 3, 4).transpose());
  expect_same_elements(m.middleRows(2, 3));
  expect_same_elements(m.row(3));
  expect_same_elements(m.col(3));
  expect_same_elements(m.diagonal());
  Eigen::Ref<matrix> ref(m);
  expect_same_elements(ref);
  const Eigen::Ref<const matrix> cref(m.block(1, 1, 2, 3));
  expect_same_elements(cref);
  Eigen::Ref<matrix, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>> loose(m.block(0, 1, 4, 5));
  expect_same_elements(loose);
  Eigen::Map<matrix> map(m.data(), 8, 6);
  expect_same_elements(map);
  Eigen::Map<const matrix> cmap(m.data(), 3, 2);
  expect_same_elements(cmap);
  Eigen::Map<matrix, Eigen::Unaligned, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>> strided(
      m.data() + 1, 2, 3, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(12, 3));
  expect_same_elements(strided);
  matrix none(0, 5);
  expect_same_elements(none);
  matrix flat(5, 0);
  expect_same_elements(flat);
}

TEST(EigenMatrix, ColumnMajor) { every_kind_of_eigen_matrix<Eigen::ColMajor>(); }
TEST(EigenMatrix, RowMajor) { every_kind_of_eigen_matrix<Eigen::RowMajor>(); }

TEST(EigenMatrix, FixedSizesArraysAndOtherScalars) {
  Eigen::Matrix<double, 3, 4> fixed;
  expect_same_elements(fixed);
  Eigen::ArrayXXf array(3, 4);
  expect_same_elements(array);
  Eigen::Matrix<heed::bfloat16, Eigen::Dynamic, 16, Eigen::RowMajor> brain(5, 16);
  expect_same_elements(brain);
  Eigen::RowVectorXf row(7);
  expect_same_elements(row);
}

TEST(EigenMatrix, ConstnessComesFromTheMatrix) {
  using matrix = Eigen::MatrixXf;
  static_assert(heed::writable_tensor<matrix&>);
  static_assert(!heed::writable_tensor<const matrix&>);
  static_assert(heed::writable_tensor<Eigen::Map<matrix>>);
  static_assert(!heed::writable_tensor<Eigen::Map<const matrix>>);
  static_assert(heed::writable_tensor<Eigen::Block<matrix>>);
  static_assert(!heed::writable_tensor<Eigen::Block<const matrix>>);
  static_assert(!heed::writable_tensor<Eigen::Ref<const matrix>>);
  static_assert(std::is_same_v<heed::scalar_of<const matrix&>, float>);
}

TEST(EigenMatrix, ExpressionsThatOwnNoMemoryAreNoTensors) {
  Eigen::MatrixXf m(3, 3);
  static_assert(!heed::tensor_like<decltype(m * 2.0F)>);
  static_assert(!heed::tensor_like<decltype(m + m)>);
  static_assert(!heed::tensor_like<decltype(m * m)>);
  static_assert(!heed::tensor_like<decltype(m.cwiseAbs())>);
  static_assert(!heed::tensor_like<decltype(m.colwise().reverse())>);
  static_assert(!heed::tensor_like<int> && !heed::tensor_like<std::vector<float>>);
}

TEST(EigenMatrix, ResultsKeepScalarAndStorageOrder) {
  using rows = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  static_assert(
      std::is_same_v<decltype(heed::result_like<Eigen::Matrix4f>({2, 2})), Eigen::MatrixXf>);
  static_assert(std::is_same_v<decltype(heed::result_like<Eigen::Ref<const rows>>({2, 2})), rows>);
  static_assert(
      std::is_same_v<decltype(heed::result_like<const Eigen::Block<rows>&>({2, 2})), rows>);
  const auto made = heed::result_like<rows>({4, 7});
  EXPECT_EQ(made.rows(), 4);
  EXPECT_EQ(made.cols(), 7);
  EXPECT_EQ(made.cwiseAbs().maxCoeff(), 0.0);
}

// --------------------------------------------------------------------------------- Eigen tensors

template <int Options>
void eigen_tensors_of_every_rank() {
  Eigen::Tensor<float, 2, Options> two(3, 4);
  Eigen::Tensor<double, 3, Options> three(2, 3, 4);
  Eigen::Tensor<heed::half, 4, Options, int> four(2, 3, 4, 5);
  const auto v2 = heed::as_view(two);
  const auto v3 = heed::as_view(three);
  const auto v4 = heed::as_view(four);
  EXPECT_EQ(v4.extents(), (std::array<index, 4>{2, 3, 4, 5}));
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 3; ++j) {
      for (int k = 0; k < 4; ++k) {
        ASSERT_EQ(&v2(j, k), &two(j, k));
        ASSERT_EQ(&v3(i, j, k), &three(i, j, k));
        for (int l = 0; l < 5; ++l) ASSERT_EQ(&v4(i, j, k, l), &four(i, j, k, l));
      }
    }
  }
  static_assert(!heed::writable_tensor<const Eigen::Tensor<float, 2, Options>&>);

  Eigen::TensorMap<Eigen::Tensor<double, 3, Options>> map(three.data(), 4, 3, 2);
  EXPECT_EQ(&heed::as_view(map)(3, 1, 1), &map(3, 1, 1));
  Eigen::TensorMap<const Eigen::Tensor<double, 3, Options>> cmap(three.data(), 4, 3, 2);
  EXPECT_EQ(&heed::as_view(cmap)(3, 2, 0), &cmap(3, 2, 0));
  static_assert(heed::writable_tensor<decltype(map)>);
  static_assert(!heed::writable_tensor<decltype(cmap)>);

  using made = Eigen::Tensor<double, 3, Options>;
  static_assert(std::is_same_v<decltype(heed::result_like<made>({1, 2, 3})), made>);
  static_assert(std::is_same_v<decltype(heed::result_like<decltype(map)>({1, 2, 3})), made>);
  static_assert(std::is_same_v<decltype(heed::result_like<decltype(cmap)>({1, 2, 3})), made>);
  const auto zeros = heed::result_like<made>({2, 0, 3});
  EXPECT_EQ(zeros.dimension(1), 0);
}

TEST(EigenTensor, ColumnMajor) { eigen_tensors_of_every_rank<Eigen::ColMajor>(); }
TEST(EigenTensor, RowMajor) { eigen_tensors_of_every_rank<Eigen::RowMajor>(); }

// ---------------------------------------------------------------------------------------- mdspan

/// What the standard says of an mdspan, for libraries that have none: extents, strides, a pointer.
template <class T, std::size_t Rank>
class strided_span {
 public:
  using element_type = T;
  using rank_type = std::size_t;
  using extents_type = std::array<int, Rank>;
  using layout_type = void;
  using accessor_type = void;
  using data_handle_type = T*;
  using reference = T&;

  strided_span(T* data, const extents_type& extents, const extents_type& strides)
      : data_(data), extents_(extents), strides_(strides) {}
  static constexpr rank_type rank() noexcept { return Rank; }
  static constexpr bool is_always_strided() noexcept { return true; }
  [[nodiscard]] int extent(rank_type a) const { return extents_[a]; }
  [[nodiscard]] int stride(rank_type a) const { return strides_[a]; }
  [[nodiscard]] T* const& data_handle() const { return data_; }

 private:
  T* data_;
  extents_type extents_, strides_;
};

/// Its elements are not what the pointer points at.
struct scaled_span : strided_span<float, 2> {
  using strided_span<float, 2>::strided_span;
  using reference = float;
};

TEST(Mdspan, ItsInterfaceIsATensor) {
  using span = strided_span<float, 3>;
  static_assert(heed::tensor_like<span> && heed::writable_tensor<span>);
  static_assert(!heed::writable_tensor<strided_span<const float, 2>>);
  static_assert(!heed::tensor_like<scaled_span>);
  auto data = ascending(24);
  const span permuted(data.data(), {4, 3, 2}, {1, 4, 12});
  const auto v = heed::as_view(permuted);
  static_assert(std::is_same_v<decltype(v), const heed::view<float, 3>>);
  EXPECT_EQ(v.extents(), (std::array<index, 3>{4, 3, 2}));
  EXPECT_EQ(&v(3, 2, 1), data.data() + 23);
}

#if defined(__cpp_lib_mdspan)
TEST(Mdspan, AnyStridedLayout) {
  auto data = ascending(24);
  const std::mdspan<float, std::dextents<int, 3>> right(data.data(), 2, 3, 4);
  EXPECT_EQ(&heed::as_view(right)(1, 2, 3), data.data() + 23);
  const std::mdspan<const float, std::dextents<int, 2>, std::layout_left> left(data.data(), 4, 6);
  EXPECT_EQ(&heed::as_view(left)(1, 2), data.data() + 9);
  const std::layout_stride::mapping<std::dextents<int, 2>> mapping(std::dextents<int, 2>(2, 3),
                                                                   std::array<int, 2>{12, 4});
  const std::mdspan<float, std::dextents<int, 2>, std::layout_stride> strided(data.data(), mapping);
  EXPECT_EQ(&heed::as_view(strided)(1, 2), data.data() + 20);
}
#endif

// --------------------------------------------------------------------------------- a user's type

TEST(HostileTensor, IsATensorThroughItsTraitsAlone) {
  using grid = hostile::grid<float>;
  static_assert(heed::tensor_like<grid> && heed::writable_tensor<grid>);
  static_assert(heed::tensor_like<const grid&> && !heed::writable_tensor<const grid>);
  static_assert(heed::makeable_tensor<grid>);
  static_assert(heed::rank_of<grid> == 2);
  grid g(3, 2);
  const auto v = heed::as_view(g);
  EXPECT_EQ(v.strides(), (std::array<index, 2>{-4, 2}));
  for (index t = 0; t < 3; ++t) {
    for (index c = 0; c < 2; ++c) v(t, c) = static_cast<float>(10 * t + c);
  }
  EXPECT_EQ(g.cells(),
            (std::vector<float>{20, -1000, 21, -1000, 10, -1000, 11, -1000, 0, -1000, 1, -1000}));
  EXPECT_EQ(heed::as_view(std::as_const(g))(2, 1), 21.0F);
}

TEST(HostileTensor, ItsResultsAreItsOwn) {
  const hostile::grid<double> made = heed::result_like<const hostile::grid<double>&>({4, 3});
  EXPECT_EQ(heed::as_view(made).extents(), (std::array<index, 2>{4, 3}));
  const hostile::grid<double> empty = heed::result_like<hostile::grid<double>>({0, 3});
  EXPECT_TRUE(heed::as_view(empty).empty());
}

}  // namespace
