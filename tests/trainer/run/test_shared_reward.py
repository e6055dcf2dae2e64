"""A reward that several processes share, with stand-ins for the processes: real ones are in
test_processes.py."""

import pytest

from dfpo.rollout.processes import Processes
from dfpo.run.shared_reward import SharedReward, shared_reward


class Stand:
    """One of ``count`` processes; what the first one made is handed to the others."""

    def __init__(self, rank, count, handed):
        self.rank, self.count, self.handed = rank, count, handed

    def from_lead(self, make):
        if self.rank == 0:
            self.handed.append(make())
        return self.handed[-1]


@pytest.fixture
def here(monkeypatch):
    def be(stand):
        monkeypatch.setattr(Processes, "here", staticmethod(lambda: stand))

    return be


class Judge:
    names = ("judge",)

    def __init__(self):
        self.asked = []

    def __call__(self, *batch, **options):
        self.asked.append(batch)
        return ("scored", *batch)


def test_alone_it_is_the_reward_itself(here):
    here(Stand(0, 1, []))
    judge = Judge()
    assert shared_reward(lambda: judge, None) is judge


def test_the_first_process_loads_and_scores_and_all_get_its_scores(here):
    handed, judge = [], Judge()
    here(Stand(0, 2, handed))
    first = shared_reward(lambda: judge, None)
    here(Stand(1, 2, handed))

    def must_not_load():
        raise AssertionError("loaded in the second process")

    second = shared_reward(must_not_load, None)
    assert isinstance(second, SharedReward) and second.reward is None
    assert first.names == second.names == ("judge",)

    here(Stand(0, 2, handed))
    told = first("rows", "texts")
    here(Stand(1, 2, handed))
    assert second("rows", "texts") == told == ("scored", "rows", "texts")
    assert judge.asked == [("rows", "texts")]
