"""How far a run is, and what its closing tables and plots need: kept in every checkpoint."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import torch

from dfpo.config.types import Estimate, Rollout, Scored
from dfpo.run.evaluate import Scores
from dfpo.run.examples import Fan

# Of a run's last steps, for the calibration plot: so many, and so many tokens of each.
RECORDED_STEPS, RECORDED_TOKENS = 20, 4096


class ValueRecord(NamedTuple):
    """Predicted return quantiles of some tokens beside the return that followed."""

    quantiles: np.ndarray  # [N, Q]
    clean: np.ndarray  # [N]
    noisy: np.ndarray  # [N]
    answers: np.ndarray  # [N], which answer a token belongs to

    @staticmethod
    def from_rollout(rollout: Rollout, estimate: Estimate) -> ValueRecord:
        mask = rollout.samples.mask
        length = mask.sum(-1)
        per_token = (
            x.repeat_interleave(length)
            for x in (rollout.clean_rewards, rollout.rewards, rollout.answers.sample_ids)
        )
        # An odd stride meets every position of answers of equal length.
        stride = max(1, int(length.sum()) // RECORDED_TOKENS) | 1
        kept = (x[::stride].cpu().numpy() for x in (estimate.quantiles[mask].float(), *per_token))

        return ValueRecord(*kept)


@dataclass
class Progress:
    """Changes from step to step; everything else of a run is frozen."""

    step: int = 0  # steps done
    tokens: int = 0  # answer tokens sampled
    unscored: int = 0  # answers that no reward scored
    invalid: int = 0  # answers on which a reward failed
    problem: str | None = None  # the latest such failure
    steps_unscored: int = 0  # latest steps in a row in which no answer had a reward
    before: Scores | None = None  # evaluation of the first policy
    latest: Scores | None = None  # evaluation of the policy after ``evaluated`` steps
    evaluated: int = -1
    best: float | None = None  # highest value of eval.metric so far
    best_step: int | None = None
    stale: int = 0  # evaluations in a row that were no better
    has_drifted: bool = False  # the policy was once far from the one it began from
    fans: list[Fan] = field(default_factory=list)
    records: list[ValueRecord] = field(default_factory=list)
    seconds: float = 0.0  # of all processes that worked on the run, up to ``tick``
    cpu_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def tick(self) -> None:
        """Adds the time since the last tick."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.seconds += wall - self._wall
        self.cpu_seconds += cpu - self._cpu
        self._wall, self._cpu = wall, cpu

    def count(self, scored: Scored, tokens: int) -> None:
        """One more step."""
        self.step += 1
        self.tokens += tokens
        self.unscored += scored.unscored
        self.invalid += scored.invalid
        self.problem = scored.problem or self.problem
        lost = scored.unscored + scored.invalid == len(scored.values)
        self.steps_unscored = self.steps_unscored + 1 if lost else 0

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, which load without unpickling code."""
        self.tick()
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {
            "fans": [f._asdict() | {"quantiles": torch.from_numpy(f.quantiles)} for f in self.fans],
            "records": [[torch.from_numpy(x) for x in record] for record in self.records],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        fans = [Fan(**f | {"quantiles": f["quantiles"].numpy()}) for f in state["fans"]]
        records = [ValueRecord(*(x.numpy() for x in record)) for record in state["records"]]
        return cls(**state | {"fans": fans, "records": records})
