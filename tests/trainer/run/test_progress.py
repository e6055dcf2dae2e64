"""What a run knows of itself, kept in its checkpoints."""

import numpy as np
import torch
from small_rollouts import LENGTHS, make_estimate, make_rollout

from dfpo.config.types import Scored
from dfpo.run.progress import RECORDED_TOKENS, Progress, ValueRecord


def scored(unscored, invalid, problem=None):
    return Scored(torch.zeros(3), {}, unscored, invalid, problem)


def test_steps_are_counted():
    progress = Progress()
    progress.count(scored(0, 1, "first"), tokens=10)
    progress.count(scored(1, 2, "second"), tokens=20)
    progress.count(scored(3, 0), tokens=5)
    assert (progress.step, progress.tokens, progress.unscored, progress.invalid) == (3, 35, 4, 3)
    assert progress.problem == "second" and progress.steps_unscored == 2
    progress.count(scored(2, 0), tokens=5)
    assert progress.steps_unscored == 0, "one answer was scored"


def test_a_record_holds_each_token_beside_its_answers_reward():
    rollout = make_rollout(rewards=(1.0, 0.0, 1.0, 0.5))
    record = ValueRecord.from_rollout(rollout, make_estimate())
    assert record.clean.tolist() == [1.0] * 5 + [0.0] * 3 + [1.0] + [0.5] * 5
    assert record.answers.tolist() == [40] * 5 + [41] * 3 + [42] + [43] * 5
    assert len(record.quantiles) == sum(LENGTHS) < RECORDED_TOKENS


def test_its_state_is_plain_and_comes_back(tmp_path):
    progress = Progress(step=4, problem="p")
    progress.records.append(ValueRecord.from_rollout(make_rollout(), make_estimate()))
    torch.save(progress.state(), tmp_path / "state.pt")
    # weights_only: loading runs no code.
    again = Progress.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (again.step, again.problem) == (4, "p")
    for mine, theirs in zip(progress.records[0], again.records[0], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert again.cpu_seconds == progress.cpu_seconds
