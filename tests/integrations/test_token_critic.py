"""What the token critic of the adapters learns, without any of the trainers."""

import copy

import pytest
import torch
from accelerate import Accelerator
from tiny_models import make_model
from transformers import AutoModel

from dfpo.integrations.token_critic import (
    AnswerBatch,
    TokenCritic,
    ValueFlowConfig,
    fit,
    token_targets,
)


def test_targets_by_hand():
    """lam 1/2, values .4 and .2 with a spread of .1, reward 1 after two tokens; the third is not
    part of the answer. The last advantage is 1 - .2; the first .2 - .4 + .8/2. Returns are values
    and advantages; at the last token every distribution is the reward."""
    quantiles = torch.tensor([[[0.3, 0.5], [0.1, 0.3], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    advantages, targets, returns = token_targets(
        torch.tensor([1.0]), quantiles, mask, torch.tensor([0]), ValueFlowConfig(lam=0.5), 0
    )
    assert advantages[0].tolist() == pytest.approx([0.2, 0.8, 0.0])
    assert returns[0, :2].tolist() == pytest.approx([0.6, 1.0])
    assert targets[0, 1].tolist() == [1.0, 1.0]
    assert all(x in (1.0, pytest.approx(0.1), pytest.approx(0.3)) for x in targets[0, 0].tolist())


def test_the_mean_learns_the_returns_and_not_the_laws(tmp_path):
    torch.manual_seed(0)
    folder = make_model(tmp_path, chat=False)
    config = ValueFlowConfig(num_quantiles=8, epochs=30)
    critic = TokenCritic(AutoModel.from_pretrained(folder), config)
    mask = torch.ones(4, 3, dtype=torch.bool)
    answers = AnswerBatch(torch.randint(3, 20, (4, 5)), torch.ones(4, 5, dtype=torch.int64), mask)
    accelerator, means = Accelerator(cpu=True), []
    for returns in (0.1, 0.9):
        ours = copy.deepcopy(critic)
        optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-2)
        fit(
            ours, optimizer, answers, drawn=torch.full((4, 3, 8), 0.5),
            returns=torch.full((4, 3), returns), config=config, size=4,
            draws=torch.Generator().manual_seed(0), accelerator=accelerator,
        )  # fmt: skip
        means.append(ours.values(answers, 4, accelerator).mean().item())
    assert means == pytest.approx([0.1, 0.9], abs=0.1)
