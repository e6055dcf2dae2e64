// Tokens of sequences as tiles of float32 lanes, for kernels that walk the token axis.
//
// A scan is written once, on vectors, and runs on either of two groups of lanes:
//   ParticleLanes  one sequence, kVecs vectors of its particles, or one that is not full; a token's
//                  reward and role are shared by all lanes.
//   SequenceLanes  one particle (Q = 1) of kLanes sequences. Tiles of kBlock tokens a sequence are
//                  transposed in registers: memory is touched in whole runs, so rows that lie a
//                  power of two apart do not push each other out of the cache.
// Both cut a sequence into blocks of kBlock tokens counted from its end. Slot j of block k is token
// origin + j with origin = length - kBlock (k + 1); slots below 0 do not exist.
#pragma once

#include "../scan_args.h"
#include "../simd.h"
#include "transpose.h"

namespace dfpo {
namespace DFPO_VARIANT {

// Lane vectors of slot j start at data + j * stride; data null where the tensor is absent.
struct Tile {
    float* data;
    int64_t stride;
    bool past_cache;  // written by `stream`

    explicit operator bool() const { return data != nullptr; }
    DFPO_INLINE float* at(int slot) const { return data + slot * stride; }
};

// n elements `stride` apart, from element i, as float32.
inline void read_strided(const Tokens& x, int64_t i, int64_t stride, int n, float* out) {
    if (stride == 1) {
        const Rows row{x.data, x.dtype, i};
        const float* in = read_row(row, 1, n, out);
        if (in != out) std::memcpy(out, in, n * sizeof(float));
    } else {
        for (int j = 0; j < n; j++) out[j] = read_element(x.data, x.dtype, i + j * stride);
    }
}

inline void write_strided(const Tokens& x, int64_t i, int64_t stride, int n, const float* in) {
    if (stride == 1 && x.dtype == Dtype::f32)
        std::memcpy((float*)x.data + i, in, n * sizeof(float));
    else if (stride == 1)
        write_row({x.data, x.dtype, i}, 1, n, in);
    else
        for (int j = 0; j < n; j++) write_element(x.data, x.dtype, i + j * stride, in[j]);
}

// roles[j] |= p[j] is zero ? if_zero : if_set
template <typename Element>
DFPO_INLINE void add_roles(const Element* p, int shift, int n, int if_zero, int if_set,
                           uint8_t* roles) {
    for (int j = 0; j < n; j++) roles[j] |= (uint8_t)((Element)(p[j] << shift) ? if_set : if_zero);
}

inline void add_roles(const Flags& x, int64_t i, int n, int if_zero, int if_set, uint8_t* roles) {
    if (x.token_stride != 1) {
        for (int j = 0; j < n; j++)
            roles[j] |= (uint8_t)(is_set(x, i + j * x.token_stride) ? if_set : if_zero);
        return;
    }
    switch (x.log2_size) {
        case 0:
            return add_roles((const uint8_t*)x.data + i, 0, n, if_zero, if_set, roles);
        case 1:
            return add_roles((const uint16_t*)x.data + i, x.floating, n, if_zero, if_set, roles);
        case 2:
            return add_roles((const uint32_t*)x.data + i, x.floating, n, if_zero, if_set, roles);
        default:
            return add_roles((const uint64_t*)x.data + i, x.floating, n, if_zero, if_set, roles);
    }
}

// Roles (scan_args.h) of tokens [begin, begin + n) of sequence b.
inline void read_roles(const Sequences& s, int64_t b, int64_t begin, int n, uint8_t* roles) {
    std::memset(roles, 0, n);
    if (s.mask_mode != MaskMode::none)
        add_roles(s.mask, sequence_start(s, s.mask, b) + begin * s.mask.token_stride, n,
                  masked_role(s.mask_mode), 0, roles);
    if (s.done.data)
        add_roles(s.done, sequence_start(s, s.done, b) + begin * s.done.token_stride, n, 0, kStop,
                  roles);
}

// The roles of one slot, lane by lane: skip(a, b) is a where the token is skipped and b elsewhere.
struct Roles {
    IVec bits;

    DFPO_INLINE Vec skip(Vec a, Vec b) const { return (bits & kSkip) != 0 ? a : b; }
    DFPO_INLINE Vec blank(Vec a, Vec b) const { return (bits & kBlank) != 0 ? a : b; }
    DFPO_INLINE Vec stop(Vec a, Vec b) const { return (bits & kStop) != 0 ? a : b; }
};

// No lane has any.
struct NoRoles {
    DFPO_INLINE Vec skip(Vec, Vec b) const { return b; }
    DFPO_INLINE Vec blank(Vec, Vec b) const { return b; }
    DFPO_INLINE Vec stop(Vec, Vec b) const { return b; }
};

// step(roles of slot j), without a role where that is known beforehand: most tokens have none.
template <typename Lanes, typename Step>
DFPO_INLINE void at_slot(const Lanes& lanes, int j, const Step& step) {
    if (lanes.plain(j))
        step(NoRoles{});
    else
        step(lanes.roles_at(j));
}

// Whether an output is so large that it will not be in the cache when it is read: writing past the
// cache then spares reading what is overwritten.
inline bool writes_past_cache(const Sequences& s) {
    constexpr int64_t kLargeOutput = 2 << 20;  // elements
    const int64_t tokens = s.offsets ? s.offsets[s.count] : s.count * s.length;
    return tokens * s.num_quantiles >= kLargeOutput;
}

template <int kVectors, bool kFull>
struct ParticleLanes {
    static constexpr int kVecs = kVectors, kWidth = kVecs * kLanes, kBlock = 32, kTiles = 4;

    const Sequences& sequences;
    const bool large;
    int64_t b, q;  // this sequence, from this particle on
    int width;     // particles in use: kWidth if kFull, else fewer than kLanes
    int64_t length, origin;
    int first;
    uint8_t roles[kBlock];
    float rewards[kBlock], reward_sums[kBlock];
    float scratch[kTiles][kBlock * kWidth];

    explicit ParticleLanes(const Sequences& s) : sequences(s), large(writes_past_cache(s)) {}

    void start(int64_t sequence, int64_t particle) {
        b = sequence;
        q = particle;
        width = kFull ? kWidth : (int)(sequences.num_quantiles - particle);
        length = sequence_length(sequences, b);
    }

    int64_t blocks() const { return (length + kBlock - 1) / kBlock; }

    void seek(int64_t block) {
        origin = length - kBlock * (block + 1);
        first = origin < 0 ? (int)-origin : 0;
        read_roles(sequences, b, origin + first, kBlock - first, roles + first);
    }

    DFPO_INLINE bool plain(int j) const { return roles[j] == 0; }
    DFPO_INLINE bool all_skip(int j) const { return roles[j] & kSkip; }
    DFPO_INLINE Roles roles_at(int j) const { return {splat_int(roles[j])}; }

    int64_t index(const Tokens& x, int j) const {
        return sequence_start(sequences, x, b) + (origin + j) * x.token_stride;
    }

    // Vector i of slot j; lanes past the last particle are 0 and their memory is not touched.
    DFPO_INLINE Vec get(const Tile& tile, int j, int i) const {
        return kFull ? load(tile.at(j) + i * kLanes) : load_first(tile.at(j), width);
    }

    DFPO_INLINE void put(const Tile& tile, int j, int i, Vec v) const {
        if (!kFull)
            store_first(tile.at(j), v, width);
        else if (tile.past_cache)
            stream(tile.at(j) + i * kLanes, v);
        else
            store(tile.at(j) + i * kLanes, v);
    }

    Tile read(const Tokens& x, int slot) {
        if (!x.data) return {};
        const Tile tile = write_to(x, slot);
        if (x.dtype != Dtype::f32)
            for (int j = first; j < kBlock; j++)
                read_strided(x, index(x, j) + q, 1, width, tile.at(j));
        return tile;
    }

    // Where to compute an output tile; `written` brings it home.
    Tile write_to(const Tokens& x, int slot) {
        if (!x.data) return {};
        if (x.dtype != Dtype::f32) return {scratch[slot], kWidth, false};
        float* data = (float*)x.data + index(x, 0) + q;
        return {data, x.token_stride, large && x.token_stride % kLanes == 0 && on_vector(data)};
    }

    void written(const Tokens& x, const Tile& tile) const {
        if (!x.data || x.dtype == Dtype::f32) return;
        for (int j = first; j < kBlock; j++)
            write_strided(x, index(x, j) + q, 1, width, tile.at(j));
    }

    void read_rewards(const Tokens& x) {
        read_strided(x, index(x, first), x.token_stride, kBlock - first, rewards + first);
    }

    DFPO_INLINE Vec reward(int j) const { return splat(rewards[j]); }

    // A reward's gradient sums over all particles of the sequence, block after block of them.
    DFPO_INLINE void add_reward_grad(int j, const Vec grad[kVecs]) {
        Vec total = grad[0];
        for (int i = 1; i < kVecs; i++) total += grad[i];
        reward_sums[j] = sum(total);
    }

    void write_reward_grads(const Tokens& x) {
        if (!x.data) return;
        float* out = (float*)x.data + index(x, 0);
        for (int j = first; j < kBlock; j++)
            out[j] = q == 0 ? reward_sums[j] : out[j] + reward_sums[j];
    }

    // Row b of a [B, Q] tensor, 0 where it is absent.
    void read_state(const Rows& x, Vec state[kVecs]) const {
        float row[kWidth] = {};
        if (x.data) read_strided({x.data, x.dtype, 0, 0}, b * x.stride + q, 1, width, row);
        for (int i = 0; i < kVecs; i++) state[i] = load(row + i * kLanes);
    }

    void write_state(float* x, const Vec state[kVecs]) const {
        if (!x) return;
        float row[kWidth];
        for (int i = 0; i < kVecs; i++) store(row + i * kLanes, state[i]);
        std::memcpy(x + b * sequences.num_quantiles + q, row, width * sizeof(float));
    }

    Vec per_sequence(const float* x) const { return splat(x[b]); }
};

struct SequenceLanes {
    // A run of a row long enough for the prefetcher; six tiles stay in the L2 cache.
    static constexpr int kVecs = 1, kBlock = 256, kTiles = 6;

    const Sequences& sequences;
    const bool large;
    int64_t b;
    int lanes;  // sequences in use, [b, b + lanes)
    int64_t length[kLanes], longest, origin[kLanes];
    int first_of[kLanes], first;
    alignas(64) int32_t roles[kBlock / 4 * kLanes];  // those of four slots in each element
    alignas(64) float scratch[kTiles][kBlock * kLanes];

    explicit SequenceLanes(const Sequences& s) : sequences(s), large(writes_past_cache(s)) {}

    void start(int64_t sequence, int64_t end) {
        b = sequence;
        lanes = end - b < kLanes ? (int)(end - b) : kLanes;
        longest = 0;
        for (int lane = 0; lane < kLanes; lane++) {
            length[lane] = lane < lanes ? sequence_length(sequences, b + lane) : 0;
            if (length[lane] > longest) longest = length[lane];
        }
    }

    int64_t blocks() const { return (longest + kBlock - 1) / kBlock; }

    void seek(int64_t block) {
        first = kBlock;
        for (int lane = 0; lane < kLanes; lane++) {
            origin[lane] = length[lane] - kBlock * (block + 1);
            const int64_t absent = origin[lane] < 0 ? -origin[lane] : 0;
            first_of[lane] = absent < kBlock ? (int)absent : kBlock;
            if (first_of[lane] < first) first = first_of[lane];
        }
        // Before a sequence begins there is nothing to do: skip.
        uint8_t by_lane[kLanes][kBlock];
        const float* rows[kLanes];
        for (int lane = 0; lane < kLanes; lane++) {
            const int begin = first_of[lane];
            std::memset(by_lane[lane], kSkip, begin);
            if (begin < kBlock)
                read_roles(sequences, b + lane, origin[lane] + begin, kBlock - begin,
                           by_lane[lane] + begin);
            rows[lane] = (const float*)by_lane[lane];
        }
        transpose_in(rows, (float*)roles, first / 4, kBlock / 4);
    }

    // Lanes differ, so finding out costs more than it would spare.
    static constexpr bool plain(int) { return false; }
    static constexpr bool all_skip(int) { return false; }
    DFPO_INLINE Roles roles_at(int j) const {
        return {(IVec)load((const float*)roles + j / 4 * kLanes) >> j % 4 * 8};
    }

    DFPO_INLINE Vec get(const Tile& tile, int j, int) const { return load(tile.data + j * kLanes); }
    DFPO_INLINE void put(const Tile& tile, int j, int, Vec v) const {
        store(tile.data + j * kLanes, v);
    }

    int64_t index(const Tokens& x, int lane, int j) const {
        return sequence_start(sequences, x, b + lane) + (origin[lane] + j) * x.token_stride;
    }

    bool direct(const Tokens& x, int lane) const {
        return x.dtype == Dtype::f32 && x.token_stride == 1 && first_of[lane] == 0;
    }

    Tile read(const Tokens& x, int slot) {
        if (!x.data) return {};
        float staging[kLanes][kBlock];
        const float* rows[kLanes];
        for (int lane = 0; lane < kLanes; lane++) {
            if (direct(x, lane)) {
                rows[lane] = (const float*)x.data + index(x, lane, 0);
                continue;
            }
            const int begin = first_of[lane];
            for (int j = 0; j < begin; j++) staging[lane][j] = 0.0f;
            if (begin < kBlock)
                read_strided(x, index(x, lane, begin), x.token_stride, kBlock - begin,
                             staging[lane] + begin);
            rows[lane] = staging[lane];
        }
        transpose_in(rows, scratch[slot], first, kBlock);
        return {scratch[slot], kLanes, false};
    }

    Tile write_to(const Tokens& x, int slot) {
        return x.data ? Tile{scratch[slot], kLanes, false} : Tile{};
    }

    void written(const Tokens& x, const Tile& tile) const {
        if (!x.data) return;
        float staging[kLanes][kBlock];
        float* rows[kLanes];
        bool past_cache = large;
        for (int lane = 0; lane < kLanes; lane++) {
            rows[lane] = direct(x, lane) ? (float*)x.data + index(x, lane, 0) : staging[lane];
            past_cache &= direct(x, lane) && on_vector(rows[lane]);
        }
        for (int j = first / kLanes * kLanes; j < kBlock; j += kLanes) {
            Vec v[kLanes];
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; i++) v[i] = load(tile.data + (j + i) * kLanes);
            transpose(v);
            if (past_cache) {
#pragma GCC unroll 16
                for (int lane = 0; lane < kLanes; lane++) stream(rows[lane] + j, v[lane]);
            } else {
#pragma GCC unroll 16
                for (int lane = 0; lane < kLanes; lane++) store(rows[lane] + j, v[lane]);
            }
        }
        for (int lane = 0; lane < lanes; lane++) {
            const int begin = first_of[lane];
            if (!direct(x, lane) && begin < kBlock)
                write_strided(x, index(x, lane, begin), x.token_stride, kBlock - begin,
                              staging[lane] + begin);
        }
    }

    void read_rewards(const Tokens& x) { read(x, 5); }

    DFPO_INLINE Vec reward(int j) const { return load(scratch[5] + j * kLanes); }

    DFPO_INLINE void add_reward_grad(int j, const Vec grad[1]) {
        store(scratch[5] + j * kLanes, grad[0]);
    }

    void write_reward_grads(const Tokens& x) const {
        written(x, {(float*)scratch[5], kLanes, false});
    }

    void read_state(const Rows& x, Vec state[1]) const {
        state[0] = Vec{};
        for (int lane = 0; x.data && lane < lanes; lane++)
            state[0][lane] = read_element(x.data, x.dtype, (b + lane) * x.stride);
    }

    void write_state(float* x, const Vec state[1]) const {
        for (int lane = 0; x && lane < lanes; lane++) x[b + lane] = state[0][lane];
    }

    Vec per_sequence(const float* x) const { return load_first(x + b, lanes); }

    // rows[lane][slot] -> tile[slot][lane] from slot begin on, or a little before
    static DFPO_INLINE void transpose_in(const float* const rows[kLanes], float* tile, int begin,
                                         int end) {
        for (int j = begin / kLanes * kLanes; j < end; j += kLanes) {
            Vec v[kLanes];
#pragma GCC unroll 16
            for (int lane = 0; lane < kLanes; lane++) v[lane] = load(rows[lane] + j);
            transpose(v);
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; i++) store(tile + (j + i) * kLanes, v[i]);
        }
    }
};

// Groups of kVecs whole vectors of particles, from q on; then q is the first particle left.
template <int kVecs, bool kFull, typename Scan>
void for_particles(const Sequences& s, int64_t begin, int64_t end, int64_t* q, const Scan& scan) {
    constexpr int64_t kLeast = kFull ? kVecs * kLanes : 1;
    if (s.num_quantiles - *q < kLeast) return;
    ParticleLanes<kVecs, kFull> lanes(s);
    for (; s.num_quantiles - *q >= kLeast; *q += kVecs * kLanes)
        for (int64_t b = begin; b < end; b++) {
            lanes.start(b, *q);
            scan(lanes);
        }
}

// Calls scan(lanes) until every particle of sequences [begin, end) has been in one group of lanes.
template <typename Scan>
void for_lanes(const Sequences& s, int64_t begin, int64_t end, const Scan& scan) {
    if (s.num_quantiles == 1) {
        SequenceLanes lanes(s);
        for (int64_t b = begin; b < end; b += kLanes) {
            lanes.start(b, end);
            scan(lanes);
        }
    } else {
        int64_t q = 0;
        for_particles<4, true>(s, begin, end, &q, scan);
        for_particles<2, true>(s, begin, end, &q, scan);
        for_particles<1, true>(s, begin, end, &q, scan);
        for_particles<1, false>(s, begin, end, &q, scan);
    }
    finish_streams();
}

}  // namespace DFPO_VARIANT
}  // namespace dfpo
