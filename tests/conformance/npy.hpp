// SPDX-License-Identifier: MIT
// Arrays of numbers from .npy files (versions 1 and 2, C order, little endian).
//
// Every element type that the cases use fits a double exactly, so an array holds doubles and
// remembers what it was: f2, f4, f8, the integers up to 2^53, bool.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "heed/core.hpp"

namespace conformance {

enum class kind { boolean, integer, floating };

struct array {
  kind what = kind::floating;
  int bytes = 8;  ///< of one element in the file
  std::vector<heed::index> shape;
  std::vector<double> values;

  [[nodiscard]] std::size_t rank() const { return shape.size(); }
  [[nodiscard]] bool is_half() const { return what == kind::floating && bytes == 2; }
};

namespace npy {

[[nodiscard]] inline std::string between(const std::string& text, const std::string& after,
                                         char first, char last) {
  const auto key = text.find(after);
  const auto begin = key == std::string::npos ? key : text.find(first, key + after.size());
  const auto end = begin == std::string::npos ? begin : text.find(last, begin + 1);
  if (end == std::string::npos) throw std::runtime_error("npy header lacks " + after);
  return text.substr(begin + 1, end - begin - 1);
}

template <class T>
[[nodiscard]] std::vector<double> decode(const std::string& bytes, std::size_t count) {
  std::vector<double> out(count);
  for (std::size_t i = 0; i < count; ++i) {
    T element;
    std::memcpy(&element, bytes.data() + i * sizeof(T), sizeof(T));
    out[i] = static_cast<double>(element);
  }
  return out;
}

[[nodiscard]] inline std::vector<double> decode_half(const std::string& bytes, std::size_t count) {
  std::vector<double> out(count);
  for (std::size_t i = 0; i < count; ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, bytes.data() + i * sizeof bits, sizeof bits);
    out[i] = static_cast<double>(
        static_cast<float>(Eigen::half(Eigen::half_impl::raw_uint16_to_half(bits))));
  }
  return out;
}

[[nodiscard]] inline std::vector<heed::index> parse_shape(const std::string& text) {
  std::vector<heed::index> shape;
  for (std::size_t at = 0; at < text.size();) {
    if (text[at] < '0' || text[at] > '9') {
      ++at;
      continue;
    }
    std::size_t used = 0;
    shape.push_back(static_cast<heed::index>(std::stoll(text.substr(at), &used)));
    at += used;
  }
  return shape;
}

/// Throws std::runtime_error naming the file when it is not what the top of this header says.
[[nodiscard]] inline array load(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path.string());
  const std::string all{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const auto byte = [&](std::size_t i) {
    return static_cast<std::size_t>(static_cast<unsigned char>(all[i]));
  };
  if (all.size() < 12 || all.compare(0, 6, "\x93NUMPY") != 0 || byte(6) < 1 || byte(6) > 2) {
    throw std::runtime_error(path.string() + " is no npy file of version 1 or 2");
  }
  std::size_t header_at = 10;
  std::size_t header_size = byte(8) + 256 * byte(9);
  if (byte(6) == 2) {
    header_at = 12;
    header_size += 65536 * byte(10) + 16777216 * byte(11);
  }
  if (all.size() < header_at + header_size) throw std::runtime_error(path.string() + " is cut off");
  const std::string header = all.substr(header_at, header_size);
  const std::string data = all.substr(header_at + header_size);
  if (header.find("'fortran_order': False") == std::string::npos) {
    throw std::runtime_error(path.string() + " is not in C order");
  }

  array out;
  out.shape = parse_shape(between(header, "'shape':", '(', ')'));
  std::size_t count = 1;
  for (const heed::index extent : out.shape) count *= static_cast<std::size_t>(extent);
  const std::string type = between(header, "'descr':", '\'', '\'');
  if (type.size() != 3 || type[0] == '>') {
    throw std::runtime_error(path.string() + " has element type " + type);
  }
  out.bytes = type[2] - '0';
  if (data.size() < count * static_cast<std::size_t>(out.bytes)) {
    throw std::runtime_error(path.string() + " is cut off");
  }
  const std::string element = type.substr(1);
  out.what = element == "b1" ? kind::boolean : element[0] == 'f' ? kind::floating : kind::integer;
  if (element == "f2") {
    out.values = decode_half(data, count);
  } else if (element == "f4") {
    out.values = decode<float>(data, count);
  } else if (element == "f8") {
    out.values = decode<double>(data, count);
  } else if (element == "b1" || element == "u1") {
    out.values = decode<std::uint8_t>(data, count);
  } else if (element == "i1") {
    out.values = decode<std::int8_t>(data, count);
  } else if (element == "i4") {
    out.values = decode<std::int32_t>(data, count);
  } else if (element == "i8") {
    out.values = decode<std::int64_t>(data, count);
  } else {
    throw std::runtime_error(path.string() + " has element type " + type);
  }
  return out;
}

}  // namespace npy
}  // namespace conformance
