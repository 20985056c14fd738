// SPDX-License-Identifier: MIT
// Your own tensor type in heed: one specialisation, and every function takes it and gives it back.
//
// `notes` below is made up, and deliberately unlike anything heed knows: it keeps the channels of a
// token apart by a stride, newest token first.
#include <array>
#include <cstdio>
#include <heed/attention.hpp>
#include <vector>

namespace mine {

class notes {
 public:
  notes(std::ptrdiff_t tokens, std::ptrdiff_t channels)
      : tokens_(tokens), channels_(channels), cells_(static_cast<std::size_t>(tokens * channels)) {}

  [[nodiscard]] std::ptrdiff_t tokens() const { return tokens_; }
  [[nodiscard]] std::ptrdiff_t channels() const { return channels_; }
  [[nodiscard]] float* cells() { return cells_.data(); }
  [[nodiscard]] const float* cells() const { return cells_.data(); }

  /// Channel-major, and the newest token lies first in memory.
  float& at(std::ptrdiff_t token, std::ptrdiff_t channel) {
    return cells_[static_cast<std::size_t>(channel * tokens_ + (tokens_ - 1 - token))];
  }

 private:
  std::ptrdiff_t tokens_;
  std::ptrdiff_t channels_;
  std::vector<float> cells_;
};

}  // namespace mine

// The one customisation point: where the element (0, 0) is, how far apart the others are.
template <>
struct heed::tensor_traits<mine::notes> {
  static constexpr bool owns_memory = true;  // a view of a temporary would dangle: refused

  static auto to_view(mine::notes& n) { return as_seen_by_heed(n.cells(), n); }
  static auto to_view(const mine::notes& n) { return as_seen_by_heed(n.cells(), n); }

  // Optional: how results are made. Without it they are heed::tensor.
  static mine::notes make(const std::array<heed::index, 2>& extents) {
    return mine::notes(extents[0], extents[1]);
  }

 private:
  template <class T>
  static heed::view<T, 2> as_seen_by_heed(T* cells, const mine::notes& n) {
    const heed::index last = n.tokens() > 0 ? n.tokens() - 1 : 0;
    return {cells + last, {n.tokens(), n.channels()}, {-1, n.tokens()}};
  }
};

int main() {
  mine::notes q(2, 4);
  mine::notes k(3, 4);
  mine::notes v(3, 2);
  for (std::ptrdiff_t t = 0; t < 3; ++t) {
    for (std::ptrdiff_t c = 0; c < 4; ++c) k.at(t, c) = c == t ? 8.0F : 0.0F;
    v.at(t, 0) = static_cast<float>(t);
    v.at(t, 1) = static_cast<float>(10 * t);
  }
  q.at(0, 2) = 8;  // resembles key 2
  q.at(1, 0) = 8;  // resembles key 0

  mine::notes out = heed::attention(q, k, v);  // a mine::notes: no copy in, none out
  for (std::ptrdiff_t t = 0; t < out.tokens(); ++t) {
    std::printf("query %td reads (%.2f, %.2f)\n", t, static_cast<double>(out.at(t, 0)),
                static_cast<double>(out.at(t, 1)));
  }

  // A mistake is answered before anything is computed.
  try {
    (void)heed::attention(q, k, mine::notes(5, 2));
  } catch (const heed::shape_error& error) {
    std::printf("and a mistake: %s\n", error.what());
  }
}
