// Scans over the tokens of sequences, each an affine recursion of a small state per particle,
// spread over the whole card: a block takes a chunk of tokens of up to a warp of particles, its
// threads shares of a few neighbouring tokens.
//
//   1  A thread reads its tokens and finds what they do to any state, an affine map.
//   2  The block composes the maps, and leaves what the chunk does to any state for later chunks.
//   3  It composes what the chunks before it in its window have left and applies that to the state
//      that the window before has left. The last chunk of a window leaves the state after it.
//   4  Each thread walks its tokens again, now from the right state, and writes the results.
//
// So every input is read once and every output written once. Maps are composed in an order that
// depends on positions alone, whichever block is first: the same bits every time.
//
// A Scan is made for a sequence b, and has
//   Args, Token, Map, kState, kForth (first token first), kDraws (random bits), kSums (over
//   particles) kInputs, kOutputs, Column input(i), output(i)   tensors [B, T, Q] that are read and
//   written Column rewards()                                [B, T], absent where none is read Token
//   token(role, reward, inputs, follows)      follows: the random bit, follows(q, number) void
//   start(q, state), finish(q, state)          before the first token, after the last one Out
//   step(token, state)                          Out: float y[kOutputs], sum (with kSums) Map
//   identity(), void add(map, token), Map after(later, earlier), void apply(map, state) void
//   write_sum(group, t, sum)                   of Out::sum over the particles of a group
#pragma once

#include "chunks.h"
#include "compose.h"
#include "walk.h"

namespace dfpo {
namespace DFPO_VARIANT {

template <typename Args>
struct ScanWork {
    Args args;
    Chunks chunks;
    Scratch scratch;
};

// Numbers steps from the first unmasked token, so that padding changes nothing.
struct Numbers {
    MaskMode mode;
    bool forth;
    int32_t first;  // unmasked token of the sequence, or its length
    int32_t base;   // unmasked tokens on the left of the chunk
    int32_t steps;  // of the chunk

    // At token t, from the count of the chunk's steps walked over before it.
    DFPO_INLINE int32_t at(int32_t t, int32_t walked) const {
        if (mode == MaskMode::none) return t;
        if (mode == MaskMode::zero) return t - first;
        return base + (forth ? walked : steps - 1 - walked);
    }
};

// --- kernels ------------------------------------------------------------------------------------

// The unmasked tokens of every chunk, from which others number their steps.
template <typename Scan>
__global__ void __launch_bounds__(kThreads, kBlocks)
    count_kernel(ScanWork<typename Scan::Args> work) {
    const Sequences& s = work.args.sequences;
    const int64_t at = blockIdx.x;
    const Place place = Place::of(s, work.chunks, at);
    if (!place.there()) return;
    const Walk walk(s, place.b, Scan::kForth);
    const int32_t begin = place.chunk * work.chunks.tokens;
    Unmasked own{0, INT32_MAX};
    for (int i = (int)threadIdx.x; i < work.chunks.tokens; i += kThreads) {
        const int32_t position = begin + i;
        if (position >= walk.length || !walk.unmasked(position)) continue;
        const int32_t t = walk.token(position);
        own = {own.count + 1, t < own.first ? t : own.first};
    }
    const Unmasked all = join_unmasked(own);
    if (threadIdx.x == 0) work.scratch.counts[at] = all;
}

template <typename Scan>
DFPO_DEVICE Numbers numbers_of(const ScanWork<typename Scan::Args>& work, const Place& place,
                               int32_t length) {
    const MaskMode mode = work.args.sequences.mask_mode;
    Numbers numbers{mode, Scan::kForth, 0, 0, 0};
    if (mode == MaskMode::none) return numbers;
    Unmasked own{0, INT32_MAX};
    for (int32_t i = (int32_t)threadIdx.x; i < place.chunks; i += kThreads) {
        const Unmasked chunk = work.scratch.counts[place.at(i)];
        const bool left = Scan::kForth ? i < place.chunk : i > place.chunk;
        own.count += left ? chunk.count : 0;
        own.first = chunk.first < own.first ? chunk.first : own.first;
    }
    const Unmasked all = join_unmasked(own);
    numbers.first = all.first < length ? all.first : length;
    numbers.base = all.count;
    numbers.steps = work.scratch.counts[place.at(place.chunk)].count;
    return numbers;
}

// What the threads of a block share of its chunk.
template <typename Scan>
struct SharedChunk {
    uint8_t* roles;   // [tokens]
    float* rewards;   // [tokens]
    float* elements;  // [inputs or outputs, padded tokens * lanes]
    float* sums;      // [tokens * lanes]
};

// One thread's part in its block's chunk.
template <typename Scan, bool kDirect, bool kWide>
class ScanThread {
  public:
    using Map = typename Scan::Map;
    using Work = ScanWork<typename Scan::Args>;
    static constexpr int kBatch = batch_of(kDirect, kWide);
    static constexpr int kElements = padded_size(kThreads * kBatch);
    static constexpr int kMapFloats = (int)(sizeof(Map) / sizeof(float));
    static_assert(kMapFloats <= kMostLeft && Scan::kState <= kMostLeft, "");

    DFPO_INLINE ScanThread(const Work& work, const Place& place, int64_t group,
                           const SharedChunk<Scan>& shared)
        : work_(work),
          c_(work.chunks),
          place_(place),
          group_(group),
          shared_(shared),
          lanes_(kDirect ? kWarp : c_.lanes),
          slots_(kDirect ? kThreads / kWarp : c_.slots),
          slot_((int)threadIdx.x / lanes_),
          lane_((int)threadIdx.x % lanes_),
          q_(group * kWarp + lane_),
          own_lane_(q_ < work.args.sequences.num_quantiles),
          scan_(work.args, place.b),
          walk_(work.args.sequences, place.b, Scan::kForth),
          begin_(place.chunk * c_.tokens) {}

    DFPO_DEVICE void run() {
        load();
        __syncthreads();
        if constexpr (Scan::kDraws) draw();

        Map all;
        const Map before =
            compose_before(scan_.identity(), own_map(), slot_, slots_, lanes_, After{scan_}, &all);
        const bool last = place_.chunk == place_.chunks - 1;
        const bool ends_window = place_.chunk % c_.window == c_.window - 1;
        if (!last && !ends_window) leave(slot_ == 0, all.x, kMapFloats);

        float state[Scan::kState];
        find_state(state);
        scan_.apply(before, state);
        walk_tokens(state);
        // Where the last slot has arrived.
        const bool at_end = slot_ == slots_ - 1;
        if (!last && ends_window) leave(at_end, state, Scan::kState);
        if (last && at_end && own_lane_) scan_.finish(q_, state);
        write_results();
    }

  private:
    struct After {
        const Scan& scan;
        DFPO_INLINE Map operator()(const Map& later, const Map& earlier) const {
            return scan.after(later, earlier);
        }
    };

    // Elements that a thread has in flight.
    static constexpr int kFlight = kWide ? 8 : 4;

    // Calls visit(j, i, position, lane) for kFlight of the thread's part of the chunk's elements
    // from the first-th on, neighbouring threads on neighbouring ones.
    template <typename Visit>
    DFPO_DEVICE void share_elements(int first, const Visit& visit) const {
        DFPO_UNROLL(8)
        for (int j = 0; j < kFlight; j++) {
            const unsigned i = threadIdx.x + (unsigned)((first + j) * kThreads);
            const unsigned lanes = (unsigned)lanes_;
            const unsigned token = i / lanes, lane = i - token * lanes;
            const int32_t position = begin_ + (int32_t)token;
            const bool there =
                (kDirect ? own_lane_ : token < (unsigned)c_.tokens) && position < walk_.length;
            if (there) visit(j, (int)i, position, group_ * kWarp + lane);
        }
    }

    DFPO_DEVICE void load() const {
        const Column rewards = scan_.rewards();
        for (int i = (int)threadIdx.x; i < c_.tokens; i += kThreads) {
            const int32_t role = walk_.role(begin_ + i);
            shared_.roles[i] = (uint8_t)role;
            const bool read = !(role & (kAbsent | kSkip | kBlank)) && rewards.there();
            const int64_t at = rewards.at(walk_.token(begin_ + i));
            shared_.rewards[i] = read ? rewards.read(rewards.dtype(), at) : 0.0f;
        }
        DFPO_UNROLL(1)
        for (int k = 0; k < Scan::kInputs; k++) {
            const Column input = scan_.input(k);
            if (!input.there()) continue;
            float* const elements = shared_.elements + k * kElements;
            with_dtype(input.dtype(), [&](Dtype dtype) {
                DFPO_UNROLL(1)
                for (int first = 0; first < kBatch; first += kFlight) {
                    // All of them in flight before the first one is put down.
                    float x[kFlight];
                    share_elements(first, [&](int j, int, int32_t position, int64_t q) {
                        x[j] = input.read(dtype, input.at(walk_.token(position)) + q);
                    });
                    share_elements(
                        first, [&](int j, int i, int32_t, int64_t) { elements[padded(i)] = x[j]; });
                }
            });
        }
    }

    DFPO_INLINE int32_t role_of(int j) const {
        // Threads left over have no tokens.
        return slot_ < slots_ ? shared_.roles[slot_ * kBatch + j] : kSkip | kAbsent;
    }

    DFPO_INLINE int element_of(int j) const { return (slot_ * kBatch + j) * lanes_ + lane_; }

    DFPO_INLINE typename Scan::Token token_of(int j, int32_t role) const {
        float x[Scan::kInputs];
        DFPO_UNROLL(2)
        for (int k = 0; k < Scan::kInputs; k++)
            x[k] = own_lane_ && scan_.input(k).there()
                       ? shared_.elements[k * kElements + padded(element_of(j))]
                       : 0.0f;
        return scan_.token(role, shared_.rewards[slot_ * kBatch + j], x, bits_ >> j & 1);
    }

    // The random bits of the thread's tokens.
    DFPO_DEVICE void draw() {
        const Numbers numbers = numbers_of<Scan>(work_, place_, walk_.length);
        int32_t steps = 0, all;
        DFPO_UNROLL(4)
        for (int j = 0; j < kBatch; j++) steps += !(role_of(j) & kSkip);
        int32_t walked = compose_before(0, steps, slot_, slots_, lanes_, AddCounts(), &all);
        DFPO_UNROLL(1)
        for (int j = 0; j < kBatch; j++) {
            if (role_of(j) & kSkip) continue;
            const int32_t t = walk_.token(begin_ + slot_ * kBatch + j);
            bits_ |= (uint32_t)scan_.follows(q_, numbers.at(t, walked++)) << j;
        }
    }

    DFPO_DEVICE Map own_map() const {
        Map map = scan_.identity();
        DFPO_UNROLL(4)
        for (int j = 0; j < kBatch; j++)
            if (const int32_t role = role_of(j); !(role & kAbsent))
                scan_.add(map, token_of(j, role));
        return map;
    }

    // Where chunk i of the sequence leaves its floats, and the flag that says so.
    DFPO_INLINE float* left_by(int32_t i) const {
        return work_.scratch.left + (place_.at(i) * c_.groups + group_) * kMostLeft * c_.lanes +
               lane_;
    }
    DFPO_INLINE uint32_t* flag_of(int32_t i) const {
        return work_.scratch.flags + place_.at(i) * c_.groups + group_;
    }

    // What the threads that are `chosen`, one a particle, know.
    DFPO_DEVICE void leave(bool chosen, const float* x, int count) const {
        if (chosen)
            for (int i = 0; i < count; i++) left_by(place_.chunk)[i * c_.lanes] = x[i];
        __syncthreads();
        if (threadIdx.x == 0) raise_flag(flag_of(place_.chunk));
    }

    // The state that the chunk begins with.
    DFPO_DEVICE void find_state(float* state) const {
        const int32_t window = place_.chunk / c_.window * c_.window;
        scan_.start(own_lane_ ? q_ : 0, state);
        if (window > 0) {
            wait_for_flag(flag_of(window - 1));
            for (int i = 0; i < Scan::kState; i++) state[i] = left_by(window - 1)[i * c_.lanes];
        }
        if (place_.chunk == window) return;
        // The chunks since then, some of them each slot.
        const int32_t each = (c_.window + slots_ - 1) / slots_;
        const int32_t begin = window + slot_ * each, end = place_.chunk;
        Map earlier = scan_.identity();
        for (int32_t i = begin; i < begin + each && i < end; i++) {
            wait_for_flag(flag_of(i));
            Map chunk;
            for (int k = 0; k < kMapFloats; k++) chunk.x[k] = left_by(i)[k * c_.lanes];
            earlier = scan_.after(chunk, earlier);
        }
        Map gap;
        compose_before(scan_.identity(), earlier, slot_, (end - window + each - 1) / each, lanes_,
                       After{scan_}, &gap);
        scan_.apply(gap, state);
    }

    DFPO_DEVICE void walk_tokens(float* state) const {
        DFPO_UNROLL(4)
        for (int j = 0; j < kBatch; j++) {
            const int32_t role = role_of(j);
            if (role & kAbsent) continue;
            const auto out = scan_.step(token_of(j, role), state);
            // In the place of its inputs.
            DFPO_UNROLL(2)
            for (int k = 0; k < Scan::kOutputs; k++)
                shared_.elements[k * kElements + padded(element_of(j))] = out.y[k];
            if constexpr (Scan::kSums && kDirect) {
                const float sum = warp_sum(out.sum);
                const int32_t t = walk_.token(begin_ + slot_ * kBatch + j);
                if (lane_ == 0) scan_.write_sum(group_, t, sum);
            } else if constexpr (Scan::kSums)
                shared_.sums[padded(element_of(j))] = out.sum;
        }
    }

    // From shared memory, side by side.
    DFPO_DEVICE void write_results() const {
        __syncthreads();
        DFPO_UNROLL(1)
        for (int k = 0; k < Scan::kOutputs; k++) {
            const Column output = scan_.output(k);
            if (!output.there()) continue;
            const float* const elements = shared_.elements + k * kElements;
            with_dtype(output.dtype(), [&](Dtype dtype) {
                DFPO_UNROLL(1)
                for (int first = 0; first < kBatch; first += kFlight)
                    share_elements(first, [&](int, int i, int32_t position, int64_t q) {
                        output.write(dtype, output.at(walk_.token(position)) + q,
                                     elements[padded(i)]);
                    });
            });
        }
        if constexpr (Scan::kSums && !kDirect)
            for (int i = (int)threadIdx.x; i < c_.tokens; i += kThreads) {
                if (begin_ + i >= walk_.length) continue;
                float sum = 0.0f;
                for (int k = 0; k < lanes_; k++) sum += shared_.sums[padded(i * lanes_ + k)];
                scan_.write_sum(0, walk_.token(begin_ + i), sum);
            }
    }

    const Work& work_;
    const Chunks& c_;
    const Place place_;
    const int64_t group_;
    const SharedChunk<Scan> shared_;
    const int lanes_, slots_, slot_, lane_;
    const int64_t q_;
    // Lanes past the last particle scan zeros, and write nothing.
    const bool own_lane_;
    const Scan scan_;
    const Walk walk_;
    const int32_t begin_;
    uint32_t bits_ = 0;  // bit j: does the particle follow at the thread's token j
};

template <typename Scan, bool kDirect, bool kWide>
__global__ void __launch_bounds__(kThreads, kBlocks)
    scan_kernel(ScanWork<typename Scan::Args> work) {
    using Thread = ScanThread<Scan, kDirect, kWide>;
    constexpr int kTokens = (kDirect ? kThreads / kWarp : kThreads) * Thread::kBatch;
    constexpr int kColumns = Scan::kInputs > Scan::kOutputs ? Scan::kInputs : Scan::kOutputs;
    DFPO_SHARED(uint32_t, ticket, 1);
    DFPO_SHARED(uint8_t, roles, kTokens);
    DFPO_SHARED(float, rewards, kTokens);
    DFPO_SHARED(float, elements, kColumns* Thread::kElements);
    DFPO_SHARED(float, sums, Scan::kSums && !kDirect ? Thread::kElements : 1);
    if (threadIdx.x == 0) *ticket = draw_ticket(work.scratch.ticket);
    __syncthreads();
    const uint32_t groups = (uint32_t)work.chunks.groups, at = *ticket / groups;
    const Place place = Place::of(work.args.sequences, work.chunks, at);
    if (place.there())
        Thread(work, place, *ticket - at * groups, {roles, rewards, elements, sums}).run();
}

// --- launch -------------------------------------------------------------------------------------

template <typename Scan>
const char* launch_scan(const typename Scan::Args& args, ScratchSpace space, Queue queue) {
    const Sequences& s = args.sequences;
    const Chunks c =
        chunks_of(s.count, s.length, s.offsets != nullptr, space.tokens, s.num_quantiles);
    if (c.blocks() > INT32_MAX) return "more sequences and quantiles than one launch can take";
    if (space.bytes < Scratch::bytes(c)) return "less scratch memory than scan_plan says";
    if (c.blocks() == 0) return nullptr;
    if ((s.offsets ? space.tokens : s.length) > INT32_MAX - c.tokens)
        return "more tokens in a sequence than a scan can count";
    const ScanWork<typename Scan::Args> work{args, c, Scratch::in(space.data, c)};
    const char* error = clear(space.data, Scratch::zeroed_bytes(c), queue);
    if constexpr (Scan::kDraws)
        if (!error && s.mask_mode != MaskMode::none)
            error = launch(count_kernel<Scan>, work, c.places, queue);
    if (error) return error;
    const auto kernel =
        c.direct() ? (c.wide ? scan_kernel<Scan, true, true> : scan_kernel<Scan, true, false>)
                   : (c.wide ? scan_kernel<Scan, false, true> : scan_kernel<Scan, false, false>);
    return launch(kernel, work, c.blocks(), queue);
}

}  // namespace DFPO_VARIANT
}  // namespace dfpo
