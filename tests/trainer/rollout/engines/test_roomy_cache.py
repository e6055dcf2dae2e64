"""Keys and values with room: those of transformers' own cache, whatever happens to the rows."""

import pytest
import torch
from cached_models import MODELS
from transformers import AutoModelForCausalLM, DynamicCache, MambaConfig, MambaForCausalLM
from transformers.cache_utils import DynamicLayer

from dfpo.rollout.engines.hf_generate import CACHE
from dfpo.rollout.engines.roomy_cache import LEAST_ROOM, RoomyLayer, roomy_cache


def states(rows, tokens, seed):
    """Keys and values: [B, H, n, D]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, 3, tokens, 4, generator=generator)


def same(ours, theirs):
    assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
    assert ours.get_seq_length() == theirs.get_seq_length()


def test_a_layer_holds_what_was_written():
    ours, theirs = RoomyLayer(), DynamicLayer()
    changes = {
        # Long after the room was made, right after it, and twice in a row.
        30: lambda layer: layer.batch_select_indices(torch.tensor([0, 2, 3, 5])),
        31: lambda layer: layer.batch_select_indices(torch.tensor([3, 0])),
        60: lambda layer: layer.batch_repeat_interleave(2),
        61: lambda layer: layer.reorder_cache(torch.tensor([1, 0, 3, 2])),
        90: lambda layer: layer.crop(-5),
    }
    rows = 6
    for step in range(200):
        new = states(rows, 7 if step == 0 else 1 + step % 3 // 2, step)
        given = [layer.update(*new.clone()) for layer in (ours, theirs)]
        same(ours, theirs)
        assert all(torch.equal(a, b) for a, b in zip(*given, strict=True))
        if change := changes.get(step):
            change(ours), change(theirs)
            same(ours, theirs)
            rows = len(theirs.keys)


def test_a_token_writes_its_own_alone():
    layer = RoomyLayer()
    layer.update(*states(2, 10, 0))
    places = [layer.keys.data_ptr()]
    for step in range(400):
        layer.update(*states(2, 1, step))
        if layer.keys.data_ptr() != places[-1]:
            places.append(layer.keys.data_ptr())
            # The room that a quarter more and LEAST_ROOM make.
            assert layer.key_room.shape[-2] == (end := layer.get_seq_length()) + 32 + end // 4
    assert LEAST_ROOM == 32
    # By hand: room for 44 tokens, 45 + 43 = 88, 89 + 54 = 143, 144 + 68 = 212, 213 + 85 = 298,
    # 299 + 106 = 405, 406 + 133.
    assert len(places) == 7


@pytest.mark.parametrize("name", MODELS)
def test_a_models_numbers_are_those_of_its_own_cache(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name]).eval()
    ids = torch.randint(1, 75, (3, 60))

    @torch.no_grad()
    def logits(cache):
        pieces = ids.split([9] + [1] * 51, dim=1)
        options = {"use_cache": True, CACHE: cache}
        return torch.cat([model(input_ids=piece, **options).logits for piece in pieces], 1)

    ours = roomy_cache(model)
    assert torch.equal(logits(ours), logits(DynamicCache(config=model.config)))
    # What forgets by itself stays transformers' own.
    assert [type(layer) is RoomyLayer for layer in ours.layers] == [name != "sliding window"] * 2


def test_a_recurrent_state_is_left_alone():
    config = MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=75, state_size=4)
    assert roomy_cache(MambaForCausalLM(config)) is None
