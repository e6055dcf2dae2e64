// Working memory of a kernel over a range of rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace dfpo {
namespace DFPO_VARIANT {

// n numbers on a cache line boundary, so that no vector load straddles two lines.
template <typename T>
class Scratch {
  public:
    explicit Scratch(int64_t n)
        : data_((T*)::operator new[]((std::size_t)n * sizeof(T), std::align_val_t(64))) {}
    ~Scratch() { ::operator delete[](data_, std::align_val_t(64)); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    operator T*() const { return data_; }

  private:
    T* data_;
};

using Floats = Scratch<float>;

}  // namespace DFPO_VARIANT
}  // namespace dfpo
