"""Scores of held-out answers: pass@k, several samples, stop strings."""

import itertools
import json
import math

import pytest
import torch

from dfpo.__main__ import main
from dfpo.config import ConfigError, build_config
from dfpo.run.evaluate import _cell, averages, pass_at_k
from dfpo.tasks import SPLITS, SUITES

FEW = ["--eval.prompts", "4", "--json"]


@pytest.mark.parametrize(("n", "k"), [(5, 1), (5, 2), (6, 3), (6, 6)])
def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_right_answer(n, k):
    for c in range(n + 1):
        draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_has_no_bias():
    """Over all outcomes of n answers, each right with chance p, its mean is 1 - (1 - p)^k; that of
    1 - (1 - c / n)^k is not."""
    n, k, p = 6, 3, 0.3
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = sum(w * pass_at_k(n, c, k) for c, w in enumerate(weights))
    plugged = sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(weights))
    assert mean == pytest.approx(1 - 0.7**3)
    assert plugged < mean - 0.02


def test_a_cell_by_hand():
    config = build_config({"eval.samples": 3, "eval.pass_at": (2,), "eval.right": 0.5})
    nan = math.nan
    sampled = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, nan], [nan, 0.0, nan]])
    cell = _cell({"sampled": sampled, "greedy": torch.tensor([[1.0], [0.0], [nan]])}, config)
    # Means of prompts 1/3, 1 and 0; pass@2 is 1 - C(2, 2) / C(3, 2) = 2/3 and 1, and the third
    # prompt has too few scored answers.
    assert cell["sampled"] == pytest.approx(4 / 9)
    spread = ((1 / 9) ** 2 + (5 / 9) ** 2 + (4 / 9) ** 2) / 2
    assert cell["sampled_se"] == pytest.approx((spread / 3) ** 0.5)
    assert cell["pass@2"] == pytest.approx(5 / 6) and cell["pass@2_se"] == pytest.approx(1 / 6)
    assert cell["greedy"] == 0.5 and cell["prompts"] == 2
    assert averages({"math": {"id": cell}})["id_pass@2"] == pytest.approx(5 / 6)


def test_pass_at_needs_as_many_answers():
    with pytest.raises(ConfigError, match=r"eval.pass_at: is 8, must be at most eval.samples = 4"):
        build_config({"eval.samples": 4, "eval.pass_at": (1, 8)})


def found(capsys, *words):
    from dfpo.rollout.policy import SHIPPED_POLICY

    assert main(["eval", str(SHIPPED_POLICY), *FEW, *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_eval_with_several_answers(capsys):
    mean = found(capsys, "--eval.samples", "4", "--eval.pass-at", "1,4")["mean"]
    # With as many answers as prompts have, pass@1 is the mean, and pass@4 is at least that.
    assert mean["id_pass@1"] == pytest.approx(mean["id"])
    assert mean["id_pass@4"] > mean["id_pass@1"]


def test_top_k_of_one_is_greedy(capsys):
    mean = found(capsys, "--eval.top-k", "1")["mean"]
    assert mean["id"] == mean["id_greedy"] and mean["ood"] == mean["ood_greedy"]


def test_answers_are_shown_of_domains_and_splits_in_turn(capsys):
    shown = [answer["prompt"] for answer in found(capsys, "--show", "7")["answers"]]
    suite = SUITES["suite"]
    first = [suite.problem(0, "eval", d, s, 0).prompt for d in suite.domains for s in SPLITS]
    assert shown[:6] == first
    assert shown[6] == suite.problem(0, "eval", "math", "id", 1).prompt


def test_an_answer_ends_before_a_stop_string(capsys):
    def answers(*words):
        return [a["answer"] for a in found(capsys, "--show", "3", *words)["answers"]]

    whole = answers()
    word = whole[0].split()[2]
    assert answers("--eval.stop", word) == [text.partition(word)[0] for text in whole]
