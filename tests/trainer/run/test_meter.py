"""Bytes counted on the meta device, against sums by hand."""

import pytest
import torch
import torch.nn.functional as F

from dfpo.run.meter import LARGE, Bytes, most_bytes


def empty(*shape, **options):
    return torch.empty(*shape, device="meta", **options)


def test_what_is_freed_is_no_longer_counted():
    def work():
        first = empty(100)  # 400 bytes
        second = first * 2  # 800 with it
        del first
        return second + 1  # 800 again

    assert most_bytes(work).together == 800


def test_views_and_known_tensors_cost_nothing():
    weight = empty(10, 10)
    assert most_bytes(lambda: weight.t().reshape(100), [weight]).together == 400, "a copy"
    assert most_bytes(lambda: weight.t()[2:], [weight]).together == 0


def test_a_layer_keeps_what_backward_needs():
    weight, state = empty(3, 5, requires_grad=True), empty(7, 5)

    def work():
        product = F.linear(state, weight)  # 84 bytes
        (product.square()).sum().backward()

    # product 84 and its square 84; then sum 4, and its gradient 4 expands; 2 * product 84 times the
    # gradient 84; and of the weight 60.
    most = most_bytes(work, [weight, state]).together
    assert 84 * 3 + 60 <= most <= 84 * 4 + 60 + 8
    assert weight.grad.shape == weight.shape


@pytest.mark.parametrize("masked", [False, True])
def test_attention_holds_no_score_for_each_pair(masked):
    query = empty(1, 2, 1000, 8)
    mask = empty(1, 1, 1000, 1000, dtype=torch.bool) if masked else None
    own = F.scaled_dot_product_attention
    most = most_bytes(
        lambda: F.scaled_dot_product_attention(query, query, query, attn_mask=mask), [query]
    )
    assert F.scaled_dot_product_attention is own
    scores, numbers = 2 * 1000 * 1000 * 4, 1000 * 1000 * 4 if masked else 0
    assert numbers + 64_000 <= most.together < numbers + 64_000 + 20_000 < numbers + scores


def test_small_and_large_blocks_are_counted_apart():
    def work():
        small = empty(LARGE // 4 - 1)
        del small
        return empty(LARGE // 4)

    assert most_bytes(work) == Bytes(LARGE, LARGE - 4, LARGE)
    assert Bytes.of(8, LARGE) + Bytes.of(1) == Bytes(LARGE + 9, 9, LARGE)
    assert Bytes.most(Bytes(5, 2, 3), Bytes(4, 4, 0)) == Bytes(5, 4, 3)
