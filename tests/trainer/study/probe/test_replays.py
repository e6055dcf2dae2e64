"""What a critic knows: its scores against scipy and hand numbers, its probe against the policy."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
import scipy.stats
import torch

from dfpo.__main__ import main
from dfpo.config import ConfigError, build_config, stored_settings
from dfpo.config.noise import parse_noise
from dfpo.run import checkpoint
from dfpo.run.setup import set_up
from dfpo.study.probe.command import labels, summarise_groups
from dfpo.study.probe.replays import Probe, play, plays_of, probe
from dfpo.study.probe.scores import SCORES, critic_scores, crps, cvar, wasserstein

RNG = np.random.default_rng(0)


def test_wasserstein_is_scipys():
    first, second = RNG.normal(size=(5, 7)), RNG.integers(0, 2, (5, 64)).astype(float)
    expected = [scipy.stats.wasserstein_distance(a, b) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(wasserstein(first, second), expected, atol=1e-12)


def test_crps_is_the_integral_it_stands_for():
    """CRPS(F, y) = int (F(x) - 1{x >= y})^2 dx, on a fine grid."""
    predicted, observed = RNG.normal(size=(3, 6)), RNG.normal(size=(3, 4))
    grid = np.linspace(-6, 6, 200_001)
    step = grid[1] - grid[0]
    for p, o, found in zip(predicted, observed, crps(predicted, observed), strict=True):
        distribution = np.searchsorted(np.sort(p), grid, side="right") / len(p)
        expected = np.mean([((distribution - (grid >= y)) ** 2).sum() * step for y in o])
        assert found == pytest.approx(expected, abs=1e-3)


def test_cvar_by_hand():
    values = np.array([[4.0, 1.0, 3.0, 2.0]])
    assert cvar(values, 0.25) == pytest.approx(1.0)
    assert cvar(values, 0.5) == pytest.approx(1.5)
    assert cvar(values, 0.375) == pytest.approx((1 + 2 * 0.5) / 1.5)  # the edge counts in part


def known_probe(quantiles, advantages, flip=False):
    """Two answers of three tokens. The first is right whatever follows; the second's first token
    is a coin, and what follows it is wrong."""
    true = np.array([1, 1, 1, 0.5, 0, 0])
    # Right and wrong plays take turns, so that both halves are alike.
    clean = np.stack([np.arange(64) % 2 < 2 * p for p in true]).astype(float)
    after = np.stack([np.arange(64) % 2 < 2 * p for p in (1, 1, 1, 0, 0, 0)]).astype(float)
    return Probe(
        np.asarray(quantiles, float), clean, 1 - clean if flip else clean, after,
        np.asarray(advantages, float), np.array([0, 0, 0, 1, 1, 1]), ("math", "math"),
        (("a",) * 3, ("b",) * 3), np.array([1.0, 0.0]),
    )  # fmt: skip


def test_a_perfect_critic_by_hand():
    distribution = [[1, 1], [1, 1], [1, 1], [0, 1], [0, 0], [0, 0]]
    found = {
        key: value[0]
        for key, value in critic_scores(
            known_probe(distribution, [[0, 0, 0, -0.5, 0, 0]]), 1.0
        ).items()
    }
    assert found["explained_variance"] == pytest.approx(1)
    for key in ("bias", "noisy_bias", "w1", "w1_floor", "cvar_error", "cvar_floor"):
        assert found[key] == pytest.approx(0, abs=1e-12)
    # CRPS 0 but at the coin: E|X-Y| 1/2 - E|X-X'|/2 1/4 = 1/4; of one for all with 3.5 of 6 ones
    # (37 of its 64 quantiles, p = .578125): p (1 - p) for a sure 1 is (1-p)^2, for a sure 0 p^2.
    p = 37 / 64
    pooled = (3 * (1 - p) ** 2 + 2 * p**2 + (0.5 - p * (1 - p))) / 6
    assert found["crps_skill"] == pytest.approx(1 - (0.25 / 6) / pooled, rel=1e-2)
    # The one token that decides has all the advantage, of the true sign.
    assert found["sign_agreement"] == found["sign_ceiling"] == found["decided"] == 1
    assert found["turn_share"] == 1
    assert found["turn_chance"] == pytest.approx(1 / 6)


def test_a_wrong_critic_by_hand():
    middle = [[0.5]] * 6
    probed = known_probe(middle, [[0.1, 0.1, 0.1, 0.1, 0.1, 0.1], [0, 0, 0, -0.1, 0, 0]], flip=True)
    found = {key: value[0] for key, value in critic_scores(probed, 1.0).items()}
    assert found["explained_variance"] == pytest.approx(0)
    assert found["bias"] == pytest.approx(0.5 - 3.5 / 6)
    assert found["noisy_bias"] == pytest.approx(0.5 - 2.5 / 6)
    assert found["w1"] == pytest.approx(0.5)
    assert found["cvar_error"] == pytest.approx(0.5)  # a point in the middle of tails at 0 and 1
    assert found["sign_agreement"] == pytest.approx(0.5)  # wrong in one of two draws of the noise
    # Mean sizes .05 each but .1 on the deciding token.
    assert found["turn_share"] == pytest.approx(0.1 / 0.35)


def many_states(quantiles, clean, after, advantages):
    """20 answers of equally many states each."""
    answer = np.repeat(np.arange(20), len(clean) // 20)
    words = (("a",) * (len(clean) // 20),) * 20
    return Probe(
        quantiles, clean, clean, after, advantages, answer, ("math",) * 20, words, np.zeros(20)
    )


def test_true_advantages_score_the_ceiling_though_few_tokens_turn():
    """One token in 40 falls from 1/2 to 0. Decided by all plays at two errors, 5 % false alarms
    would outnumber them and true advantages agree on little more than half."""
    rng = np.random.default_rng(1)
    turns = np.arange(4000) % 40 == 0
    clean = (rng.random((4000, 64)) < 0.5).astype(float)
    after = (rng.random((4000, 64)) < np.where(turns, 0, 0.5)[:, None]).astype(float)
    true = np.where(turns, -0.5, 0.0)[None]
    found = critic_scores(many_states(np.full((4000, 1), 0.5), clean, after, true), 1.0)
    assert found["sign_agreement"][0] > 0.9
    # Chance tokens, some ten of 110, agree by 1/2 with a spread of sqrt(10)/2: 1.6 / 110 = .014
    assert found["sign_agreement"][0] == pytest.approx(found["sign_ceiling"][0], abs=0.045)
    assert 100 <= found["decided"][0] <= 125


def test_a_perfect_distribution_scores_the_floor_of_cvar():
    clean = np.random.default_rng(2).normal(size=(2000, 64))
    distribution = np.tile(scipy.stats.norm.ppf((np.arange(200) + 0.5) / 200), (2000, 1))
    found = critic_scores(many_states(distribution, clean, clean, np.zeros((1, 2000))), 1.0)
    assert found["cvar_error"][0] == pytest.approx(found["cvar_floor"][0], rel=0.1)
    assert found["cvar_floor"][0] > 0.1


def test_what_nothing_decides_is_left_out_of_json():
    """No advantage at all has no share on any token; JSON has no NaN."""
    found = critic_scores(known_probe([[0.5]] * 6, np.zeros((1, 6))), 1.0)
    assert found["turn_share"] == (None, None, None)
    assert "NaN" not in json.dumps(found)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    words = ["--steps", "1", "--critic.warmup-steps", "1", "--eval.prompts", "2"]
    words += ["--rollout.prompts", "3", "--rollout.samples", "2", "--critic.num-quantiles", "4"]
    words += ["--plots", "false", "--noise", "flip=0.25", "--eval.batch-size", "600"]
    assert main(["train", *words, "--runs-dir", str(folder), "--name", "run"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def probed(run):
    setup = set_up(build_config(stored_settings("run", run)), run)
    checkpoint.restore(setup)
    return setup, probe(setup, play(setup, 2, 8))


def test_a_probe_holds_every_state(probed):
    _, found = probed
    states = len(found.answer)
    assert found.quantiles.shape == (states, 4) and found.clean.shape == (states, 8)
    assert found.advantages.shape[1] == states
    lengths = np.bincount(found.answer)
    assert [len(words) for words in found.words] == lengths.tolist()
    assert found.domains == ("math", "math", "science", "science", "dialogue", "dialogue")
    ends = np.cumsum(lengths) - 1
    for answer, end in enumerate(ends):
        start = end - lengths[answer] + 1
        np.testing.assert_array_equal(found.after[start:end], found.clean[start + 1 : end + 1])
        assert (found.after[end] == found.rewards[answer]).all()
    assert set(np.unique(found.clean)) <= {0.0, 1.0}


def test_plays_from_the_last_state_end_as_the_answer(probed):
    """Nothing is left but the end token, which this policy never misses."""
    _, found = probed
    ends = np.cumsum(np.bincount(found.answer)) - 1
    np.testing.assert_array_equal(found.clean[ends].mean(1), found.rewards)


def test_noise_corrupts_the_plays_at_its_rate(probed):
    _, found = probed
    rate = (found.noisy != found.clean).mean()
    assert rate == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / found.clean.size) ** 0.5)


@pytest.mark.parametrize("noise", ["missing=1", "missing=0.5", "vote=2"])
def test_the_answers_do_not_depend_on_the_noise(probed, noise):
    setup, found = probed
    noisy = dataclasses.replace(setup, noise=parse_noise(noise))
    other = probe(noisy, play(noisy, 2, 8))
    assert other.words == found.words
    np.testing.assert_array_equal(other.clean, found.clean)
    if noise == "missing=1":
        assert np.isnan(other.noisy).all()


def test_answers_that_nothing_scores_are_named(probed):
    setup, _ = probed

    def unscored(*words, **options):
        scored = setup.reward(*words, **options)
        return scored.without(torch.ones(len(scored.values), dtype=torch.bool))

    with pytest.raises(ConfigError, match="reward: scores none of 6 answers"):
        play(dataclasses.replace(setup, reward=unscored), 2, 8)


def test_the_same_probe_again_is_the_same(probed):
    setup, found = probed
    again = probe(setup, play(setup, 2, 8))
    np.testing.assert_array_equal(found.clean, again.clean)
    np.testing.assert_array_equal(found.advantages, again.advantages)


def test_critics_of_one_policy_look_on_at_the_same_plays(run, tmp_path, monkeypatch):
    other, calls = tmp_path / "other", []
    shutil.copytree(run, other)

    def counted(*words):
        calls.append(words)
        return play(*words)

    monkeypatch.setattr("dfpo.study.probe.command.play", counted)
    assert main(["critic", str(run), str(other), "--answers", "1", "--plays", "2"]) == 0
    assert len(calls) == 1


def test_other_policies_and_noises_play_otherwise(probed):
    setup, _ = probed
    known = plays_of(setup)
    config = dataclasses.replace(setup.config, noise="none")
    assert plays_of(dataclasses.replace(setup, config=config)) != known
    policy = copy.deepcopy(setup.policy)
    assert plays_of(dataclasses.replace(setup, policy=policy)) == known
    next(policy.parameters()).data[0, 0] += 1
    assert plays_of(dataclasses.replace(setup, policy=policy)) != known


def test_the_command(run, tmp_path, capsys):
    words = ["critic", str(run), "--answers", "1", "--plays", "2"]
    assert main([*words, "--plot", str(tmp_path / "all.png"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    report = printed[str(run)]
    assert printed["groups"] == {}
    assert report == json.loads((run / "critic.json").read_text())
    assert set(report["scores"]) == set(SCORES) and report["answers"] == 3
    for file in (
        tmp_path / "all.png",
        *(run / "plots" / f"critic_{n}.png" for n in ("values", "answers")),
    ):
        assert file.stat().st_size > 10_000


def test_runs_of_one_name_and_algorithm_stand_beside_each_other_and_their_mean(
    run, tmp_path, capsys
):
    runs = [tmp_path / name / "seed0" for name in "ab"]
    for path in runs:
        shutil.copytree(run, path)
    words = ["critic", *map(str, runs), str(runs[0]), "--answers", "1", "--plays", "2"]
    assert main([*words, "--plot", str(tmp_path / "all.png")]) == 0
    table = capsys.readouterr().out.splitlines()
    columns = table[0].partition("]")[2]
    assert " ".join(columns.split()) == "a/seed0 b/seed0 dfpo, flip=0.25: mean of 2"
    assert table[2].count("[") == 3, "the run that was given twice is one"
    assert (tmp_path / "all.png").stat().st_size > 10_000


def test_labels_are_the_shortest_ends_that_differ():
    assert labels(["runs/a", "runs/b"]) == ["a", "b"]
    runs = [f"cells/suite/none/{arm}/seed{seed}" for arm in ("ppo", "dfpo") for seed in (0, 1)]
    assert labels(runs) == ["ppo/seed0", "ppo/seed1", "dfpo/seed0", "dfpo/seed1"]


def test_means_of_runs_by_hand():
    def report(noise, value):
        return {"algorithm": "ppo", "noise": noise, "scores": dict.fromkeys(SCORES, value)}

    none = (None, None, None)
    found = {
        "a": report("none", (1.0, 0.0, 2.0)), "b": report("none", (3.0, 2.0, 4.0)),
        "c": report("flip=0.3", (1.0, 0.0, 2.0)), "d": report("missing=1", none),
        "e": report("missing=1", none),
    }  # fmt: skip
    means = summarise_groups(found)
    assert {name: group["runs"] for name, group in means.items()} == {
        "ppo, none": ["a", "b"], "ppo, missing=1": ["d", "e"],
    }  # fmt: skip
    # t_1(.975) = 12.706, s = sqrt(2): 12.706 sqrt(2) / sqrt(2)
    for score in means["ppo, none"]["scores"].values():
        assert score == pytest.approx((2.0, 2 - 12.706, 2 + 12.706), abs=1e-3)
    assert means["ppo, missing=1"]["scores"]["bias"] == none


@pytest.mark.parametrize(
    "words, said",
    [
        (["--plot", "none/here.png"], "plot: is none/here.png, but none is no directory"),
        (["--plot", "all.doc"], "plot: is all.doc, must end in one of"),
        (["--plot", "all"], "plot: is all, must end in one of"),
        (["--plays", "1"], "plays: is 1, must be at least 2"),
    ],
)
def test_wrong_words_are_named_before_the_first_probe(
    run, tmp_path, monkeypatch, capsys, words, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dfpo.study.probe.command.probe", None)
    assert main(["critic", str(run), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("algorithm, said", [("grpo", "has a critic"), (None, "holds no config")])
def test_what_has_no_critic(tmp_path, capsys, algorithm, said):
    if algorithm:
        words = ["--steps", "0", "--eval.prompts", "1", "--runs-dir", str(tmp_path), "--name", "a"]
        assert main(["train", "--algorithm", algorithm, *words]) == 0
    else:
        (tmp_path / "a").mkdir()
    assert main(["critic", str(tmp_path / "a")]) == 2
    assert said in capsys.readouterr().err


def test_torch_is_left_as_it_was(probed):
    assert torch.is_grad_enabled()
