// A row of finite numbers in ascending order, and where a number would stand in it.
#pragma once

#include "../rows.h"
#include "../scratch.h"
#include "../simd.h"

namespace dfpo {
namespace DFPO_VARIANT {

class SortedRow {
  public:
    explicit SortedRow(int64_t n) : n_(n), keys_(n), swap_(n), values_(n) {}

    // By radix, in an order that depends on the numbers alone.
    void sort(const float* x) {
        bool sorted = true;
        for (int64_t i = 1; i < n_; i++) sorted &= x[i - 1] <= x[i];
        for (int64_t i = 0; i < n_; i++) keys_[i] = ordered_bits(x[i]) << 32 | (uint64_t)i;
        if (!sorted) sort_keys();
        for (int64_t i = 0; i < n_; i++) values_[i] = x[index(i)];
    }

    int64_t size() const { return n_; }
    float value(int64_t i) const { return values_[i]; }
    // Where the i-th smallest stood.
    int64_t index(int64_t i) const { return (int64_t)(uint32_t)keys_[i]; }

    // How many are less than x, and how many are no greater, for a vector of x.
    DFPO_INLINE IVec less(Vec x) const {
        return rank([x](Vec value) DFPO_INLINE_LAMBDA { return value < x; });
    }
    DFPO_INLINE IVec no_greater(Vec x) const {
        return rank([x](Vec value) DFPO_INLINE_LAMBDA { return value <= x; });
    }

  private:
    static constexpr int kBits = 8, kBins = 1 << kBits, kPasses = 32 / kBits;

    // Negative numbers compare in reverse by their bits; a set sign makes a number smaller.
    static uint64_t ordered_bits(float x) {
        const uint32_t bits = float_to_bits(x);
        return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
    }

    static int bin(uint64_t key, int pass) {
        return (int)(key >> (32 + kBits * pass)) & (kBins - 1);
    }

    void sort_keys() {
        int64_t starts[kPasses][kBins] = {};
        for (int64_t i = 0; i < n_; i++)
            for (int pass = 0; pass < kPasses; pass++) starts[pass][bin(keys_[i], pass)]++;
        uint64_t *from = keys_, *to = swap_;
        static_assert(kPasses % 2 == 0, "the last pass ends in keys_");
        for (int pass = 0; pass < kPasses; pass++) {
            int64_t start = 0;
            for (int64_t& place : starts[pass]) {
                const int64_t count = place;
                place = start;
                start += count;
            }
            for (int64_t i = 0; i < n_; i++) to[starts[pass][bin(from[i], pass)]++] = from[i];
            uint64_t* other = from;
            from = to;
            to = other;
        }
    }

    // Binary search without a branch; `before` holds for a beginning of the row.
    template <typename Before>
    DFPO_INLINE IVec rank(const Before& before) const {
        IVec low{};
        int left = (int)n_;
        while (left > 1) {
            const int half = left / 2;
            low += before(gather(values_, low + (half - 1))) & half;
            left -= half;
        }
        return low + (before(gather(values_, low)) & 1);
    }

    const int64_t n_;
    const Scratch<uint64_t> keys_, swap_;  // ordered bits of a number above its index
    const Floats values_;
};

}  // namespace DFPO_VARIANT
}  // namespace dfpo
