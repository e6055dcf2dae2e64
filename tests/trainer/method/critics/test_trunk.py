"""The trunk that critics read: a copy of the policy's, causal, blind to padding."""

import dataclasses

import pytest
import torch
from small_critics import critic_of, generator
from transformers import GPT2Config, GPT2LMHeadModel

from dfpo.config import build_config
from dfpo.config.types import Samples
from dfpo.method.critics import build_critic, estimate_values
from dfpo.run.defaults import complete


@pytest.mark.parametrize("algorithm", ["dfpo", "ppo"])
def test_trunk_starts_as_the_policys_and_is_its_own(policy, algorithm):
    own = {} if algorithm == "ppo" else {"critic__num_quantiles": 8}
    critic = critic_of(policy, algorithm=algorithm, **own)
    base = policy[0].base_model.state_dict()
    for name, tensor in critic.trunk.state_dict().items():
        assert torch.equal(tensor, base[name])
        assert tensor.data_ptr() != base[name].data_ptr()


@pytest.mark.parametrize("algorithm", ["dfpo", "ppo", "dvpo", "ppo-hl-gauss"])
def test_values_do_not_depend_on_padding(policy, samples, algorithm):
    """An answer alone, without the batch's padding, has the values it has in the batch, that after
    its last token among them."""
    critic = critic_of(policy, algorithm=algorithm)
    for parameter in critic.parameters():  # a head that starts at zero would hide it
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator())
    found = estimate_values(critic, samples, generator())
    for row in range(6):
        keep = samples.attention_mask[row].bool()
        count = int(samples.mask[row].sum())
        ids = samples.input_ids[row][keep].unsqueeze(0)
        alone = estimate_values(
            critic,
            Samples(ids, torch.ones_like(ids), torch.ones(1, count, dtype=torch.bool),
                    samples.truncated[row : row + 1]),
            generator(),
        )  # fmt: skip
        torch.testing.assert_close(
            found.quantiles[row, :count], alone.quantiles[0], atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(found.final[row], alone.final[0], atol=1e-4, rtol=1e-4)


def test_value_before_a_token_does_not_see_it(policy, samples):
    """Changing an answer's token leaves the values of the states before and at it alone."""
    critic = critic_of(policy)
    length = samples.mask.shape[1]
    changed = samples.input_ids.clone()
    changed[:, -length + 4] = (changed[:, -length + 4] + 1) % 60
    before = estimate_values(critic, samples, generator()).quantiles
    samples = dataclasses.replace(samples, input_ids=changed)
    after = estimate_values(critic, samples, generator()).quantiles
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5], after[:, 5])


@pytest.mark.parametrize("algorithm", ["dfpo", "ppo", "dvpo"])
def test_a_model_with_dropout_has_one_value_of_an_answer(samples, algorithm):
    """GPT-2's default of .1: values differed from call to call by more than their own spread."""
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=80, n_positions=256, n_embd=16, n_layer=2, n_head=2,
            bos_token_id=1, eos_token_id=2, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5,
        )
    ).eval()  # fmt: skip
    config = build_config({"algorithm": algorithm, "reward.low": 0, "reward.high": 1})
    critic = build_critic(model, complete(config, model, torch.tensor([0.0, 1.0])))
    with torch.no_grad():
        for parameter in critic.parameters():  # a head that starts at zero would hide it
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator()))
    before = torch.get_rng_state()
    first, second = (estimate_values(critic, samples, generator()) for _ in range(2))
    assert torch.equal(first.quantiles, second.quantiles)
    assert torch.equal(torch.get_rng_state(), before)
