// Working memory of a kernel over a range of rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace dfpo {
namespace DFPO_VARIANT {

// n floats on a cache line boundary, so that no vector load straddles two lines.
class Floats {
  public:
    explicit Floats(int64_t n)
        : data_((float*)::operator new[]((std::size_t)n * sizeof(float), std::align_val_t(64))) {}
    ~Floats() { ::operator delete[](data_, std::align_val_t(64)); }
    Floats(const Floats&) = delete;
    Floats& operator=(const Floats&) = delete;
    operator float*() const { return data_; }

  private:
    float* data_;
};

}  // namespace DFPO_VARIANT
}  // namespace dfpo
