// What the cases of the runner are read into and written from.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt/simt.h"

// n values in the memory of the device. On the host exactly as long as said, so that reads past the end are seen.
template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) { write(values); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
#if defined(__CUDACC__)
  explicit Buffer(size_t n) : n_(n) {
    simt::check(cudaMalloc(&data_, n * sizeof(T)), "cudaMalloc");
    simt::check(cudaMemset(data_, 0, n * sizeof(T)), "cudaMemset");
  }
  Buffer(Buffer&& other) : data_(other.data_), n_(other.n_) { other.data_ = nullptr; }
  ~Buffer() { cudaFree(data_); }
  T* data() { return data_; }
  void write(const std::vector<T>& values) {
    simt::check(cudaMemcpy(data_, values.data(), n_ * sizeof(T), cudaMemcpyDefault), "copy to the device");
  }
  std::vector<T> read() {
    std::vector<T> values(n_);
    simt::check(cudaMemcpy(values.data(), data_, n_ * sizeof(T), cudaMemcpyDefault), "copy from the device");
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t n_;
#else
  explicit Buffer(size_t n) : values_(new (std::align_val_t{16}) T[n]()), n_(n) {}
  Buffer(Buffer&& other) : values_(other.values_), n_(other.n_) { other.values_ = nullptr; }
  ~Buffer() { ::operator delete[](values_, std::align_val_t{16}); }
  T* data() { return values_; }
  void write(const std::vector<T>& values) { std::copy(values.begin(), values.end(), values_); }
  std::vector<T> read() { return {values_, values_ + n_}; }

 private:
  T* values_;
  size_t n_;
#endif
};

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {}
  template <class T>
  std::vector<T> many(int64_t n) {
    std::vector<T> values(n);
    file_.read(reinterpret_cast<char*>(values.data()), n * sizeof(T));
    if (!file_) throw std::runtime_error("the case ends early");
    return values;
  }
  template <class T = int64_t>
  T one() {
    return many<T>(1)[0];
  }
  template <class T>
  std::optional<Buffer<T>> maybe(int64_t n) {
    if (!one()) return std::nullopt;
    return Buffer<T>(many<T>(n));
  }

 private:
  std::ifstream file_;
};

template <class T>
T* address(std::optional<Buffer<T>>& buffer) {
  return buffer ? buffer->data() : nullptr;
}

// The result of a case: arrays one after the other.
class Writer {
 public:
  explicit Writer(const char* path) : file_(path, std::ios::binary) {}
  template <class T>
  void add(const std::vector<T>& values) {
    file_.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
  }

 private:
  std::ofstream file_;
};
