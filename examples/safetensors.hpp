// SPDX-License-Identifier: MIT
// Tensors of a .safetensors file by name: 8 bytes with the header's length, the header in JSON
// (name -> dtype, shape, data_offsets), the data. The file is mapped, so that a tensor is read from
// the disk when it is loaded.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <cstring>
#include <heed/tensor/mapped_file.hpp>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace safetensors {

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

class file {
 public:
  explicit file(const std::string& path) : path_(path), bytes_(path) {
    const auto size = static_cast<std::uint64_t>(bytes_.size());
    std::uint64_t header = 0;
    if (size >= sizeof header) std::memcpy(&header, bytes_.data(), sizeof header);
    if (size < sizeof header || header == 0 || header > size - sizeof header) {
      throw std::runtime_error(path + " is no safetensors file");
    }
    const char* begin = bytes_.data() + sizeof header;
    header_ = nlohmann::json::parse(begin, begin + header, nullptr, false);
    if (!header_.is_object()) throw std::runtime_error(path + ": its header is no JSON object");
    data_ = begin + header;
    data_bytes_ = size - sizeof header - header;
  }

  [[nodiscard]] bool contains(const std::string& name) const { return header_.contains(name); }

  /// The tensor as rows x columns numbers (a vector is one row), from F32, F16 or BF16. Throws
  /// std::runtime_error naming the tensor where it is missing or is anything else.
  [[nodiscard]] matrix load(const std::string& name, Eigen::Index rows,
                            Eigen::Index columns) const {
    const auto entry = header_.find(name);
    if (entry == header_.end()) throw std::runtime_error(path_ + " has no tensor " + name);
    const auto type = entry->value("dtype", std::string());
    const auto shape = entry->value("shape", std::vector<std::int64_t>());
    const auto place = entry->value("data_offsets", std::vector<std::uint64_t>());
    const std::vector<std::int64_t> wanted{rows, columns};
    if (shape != wanted && !(rows == 1 && shape == std::vector<std::int64_t>{columns})) {
      throw std::runtime_error(name + " has shape " + nlohmann::json(shape).dump() + ", not " +
                               nlohmann::json(wanted).dump());
    }
    if (type == "F32") return copy<float>(name, rows, columns, place);
    if (type == "F16") return copy<Eigen::half>(name, rows, columns, place);
    if (type == "BF16") return copy<Eigen::bfloat16>(name, rows, columns, place);
    throw std::runtime_error(name + " is of type " + type + ", read are F32, F16 and BF16");
  }

 private:
  template <class T>
  [[nodiscard]] matrix copy(const std::string& name, Eigen::Index rows, Eigen::Index columns,
                            const std::vector<std::uint64_t>& place) const {
    Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> numbers(rows, columns);
    const std::uint64_t bytes = static_cast<std::uint64_t>(numbers.size()) * sizeof(T);
    if (place.size() != 2 || place[0] > place[1] || place[1] > data_bytes_ ||
        place[1] - place[0] != bytes) {
      throw std::runtime_error(path_ + ": the data of " + name + " does not fit its shape");
    }
    if (bytes > 0) std::memcpy(numbers.data(), data_ + place[0], bytes);
    return numbers.template cast<float>();
  }

  std::string path_;
  heed::mapped_file<char> bytes_;
  nlohmann::json header_;
  const char* data_ = nullptr;
  std::uint64_t data_bytes_ = 0;
};

}  // namespace safetensors
