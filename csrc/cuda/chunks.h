// How a scan over the tokens of sequences is spread over the card: in chunks of tokens, one block
// each, and what a block leaves in memory for the blocks that come after it in its sequence.
#pragma once

#include "../scan_args.h"
#include "launch.h"

namespace dfpo {
namespace DFPO_VARIANT {

constexpr int kWarp = 32;
// Floats that a block leaves behind per particle: a map or a state.
constexpr int kMostLeft = 8;

// Unmasked tokens of a chunk: how many, and the first.
struct Unmasked {
    int32_t count, first;
};

// The chunks of all sequences. `places` counts places for them, of which packed sequences leave
// some empty: their lengths are known on the device alone.
struct Chunks {
    int64_t groups;   // of kWarp neighbouring particles
    int64_t places;   // in each group
    int32_t lanes;    // particles that a block takes
    int32_t slots;    // neighbouring tokens' shares: slots * lanes threads have work
    int32_t tokens;   // of a chunk
    int32_t window;   // chunks that follow each other by their maps; windows follow by a state
    int32_t per_row;  // chunks of a sequence, when padded

    bool wide;

    int64_t blocks() const { return places * groups; }
    bool direct() const { return lanes == kWarp; }
};

// Tokens of a thread, direct: with a warp of neighbouring particles, or with fewer. Wide shares
// spread what a block does once over more tokens, narrow ones make more blocks of few tokens.
constexpr int batch_of(bool direct, bool wide) { return direct ? (wide ? 16 : 8) : (wide ? 8 : 4); }

// Two for each multiprocessor of an H100.
#if !defined(DFPO_ENOUGH_BLOCKS)
#define DFPO_ENOUGH_BLOCKS 264
#endif

// `total`: tokens of all sequences.
inline Chunks chunks_of(int64_t count, int64_t length, bool packed, int64_t total,
                        int64_t num_quantiles, bool wide = true) {
    Chunks c;
    c.wide = wide;
    c.groups = (num_quantiles + kWarp - 1) / kWarp;
    c.lanes = (int32_t)(num_quantiles < kWarp ? num_quantiles : kWarp);
    c.slots = kThreads / c.lanes;
    c.tokens = c.slots * batch_of(c.direct(), wide);
    c.window = c.slots < 16 ? 16 : c.slots;
    // An empty sequence has a chunk too, which passes its bootstrap's gradient on.
    c.per_row = (int32_t)(length == 0 ? 1 : (length + c.tokens - 1) / c.tokens);
    c.places = packed ? total / c.tokens + count : count * c.per_row;
    if (wide && c.blocks() < DFPO_ENOUGH_BLOCKS)
        return chunks_of(count, length, packed, total, num_quantiles, false);
    return c;
}

// Memory between blocks, in one piece: what starts as zero, and what is written before it is read.
struct Scratch {
    uint32_t* ticket;
    uint32_t* flags;   // [places, groups]
    Unmasked* counts;  // [places]
    float* left;       // [places, groups, kMostLeft, lanes]

    static size_t zeroed_bytes(const Chunks& c) {
        return (sizeof(uint32_t) * (1 + (size_t)c.blocks()) + 15) / 16 * 16;
    }
    static size_t bytes(const Chunks& c) {
        return zeroed_bytes(c) + sizeof(Unmasked) * (size_t)c.places +
               sizeof(float) * (size_t)c.blocks() * kMostLeft * (size_t)c.lanes;
    }
    static Scratch in(void* data, const Chunks& c) {
        char* p = (char*)data;
        Scratch s;
        s.ticket = (uint32_t*)p;
        s.flags = s.ticket + 1;
        s.counts = (Unmasked*)(p + zeroed_bytes(c));
        s.left = (float*)(s.counts + c.places);
        return s;
    }
};

// One chunk of a sequence, and where its fellows are: chunk i lies at place first + i * stride.
struct Place {
    int64_t b;
    int32_t chunk, chunks;
    int64_t first, stride;

    DFPO_INLINE int64_t at(int32_t i) const { return first + i * stride; }
    // Not one of the places that packed sequences leave empty.
    DFPO_INLINE bool there() const { return chunk < chunks; }

    // Padded sequences take their first chunks together, then their second ones: when a chunk
    // begins, the one before it has long been there.
    DFPO_INLINE static Place of(const Sequences& s, const Chunks& c, int64_t place) {
        if (!s.offsets) {
            const uint32_t count = (uint32_t)s.count, chunk = (uint32_t)place / count;
            const int64_t b = (uint32_t)place - chunk * count;
            return {b, (int32_t)chunk, c.per_row, b, s.count};
        }
        // Sequence b has the places from begin(b) on, enough for its length wherever it starts.
        const auto begin = [&](int64_t b) { return s.offsets[b] / c.tokens + b; };
        int64_t low = 0, high = s.count;
        while (high - low > 1) {
            const int64_t middle = (low + high) / 2;
            if (begin(middle) <= place)
                low = middle;
            else
                high = middle;
        }
        const int64_t length = s.offsets[low + 1] - s.offsets[low];
        const int64_t chunks = length == 0 ? 1 : (length + c.tokens - 1) / c.tokens;
        return {low, (int32_t)(place - begin(low)), (int32_t)chunks, begin(low), 1};
    }
};

}  // namespace DFPO_VARIANT
}  // namespace dfpo
