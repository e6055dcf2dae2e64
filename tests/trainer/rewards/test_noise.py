"""Noise: rates, reproducibility, and that it is a function of the sample or the prompt alone."""

import pytest
import torch
from scipy import stats

from dfpo.config.draws import Stream, uniforms
from dfpo.config.noise import parse_noise
from dfpo.rewards.noise import NoiseInputs, corrupt, kind_id, prompt_id, student_t2

COUNT = 20_000
IDS = torch.arange(COUNT)
REWARDS = (IDS % 2).float()


def answers(ids=IDS, prompts=None, lengths=None, domains=None, votes=None, **more):
    prompts = ids // 4 if prompts is None else prompts  # four answers to a prompt
    lengths = torch.ones(len(ids)) if lengths is None else lengths
    return NoiseInputs(ids, prompts, lengths, domains or ["math"] * len(ids), votes, **more)


def apply(text, rewards=REWARDS, seen=None, seed=0, step=0, low=0.0, high=1.0):
    seen = answers(IDS[: len(rewards)]) if seen is None else seen
    return corrupt(parse_noise(text), rewards, seen, seed=seed, step=step, low=low, high=high)


def test_no_noise_changes_nothing():
    assert torch.equal(apply("none"), REWARDS)


# Five standard deviations of a binomial share of 10 000 draws at p = .3: 5 * sqrt(.21e-4) = .023.
@pytest.mark.parametrize(
    ("text", "wrong_positive", "wrong_negative"),
    [("flip=0.3", 0.3, 0.3), ("fp=0.3", 0.3, 0.0), ("fn=0.3", 0.0, 0.3), ("flip=1", 1.0, 1.0)],
)
def test_flip_rates(text, wrong_positive, wrong_negative):
    changed = apply(text) != REWARDS
    assert changed[REWARDS == 0].float().mean() == pytest.approx(wrong_positive, abs=0.023)
    assert changed[REWARDS == 1].float().mean() == pytest.approx(wrong_negative, abs=0.023)
    assert set(apply(text).tolist()) <= {0.0, 1.0}


def test_flips_per_prompt_are_the_same_at_every_step_and_for_every_answer():
    seen = answers(prompts=IDS % 5000)
    changed = apply("flip=0.3,per=prompt", seen=seen) != REWARDS
    groups = changed.view(4, 5000)
    assert (groups == groups[0]).all(), "answers to one prompt share one flip"
    # 5 sqrt(.21 / 5000) = .032
    assert groups[0].float().mean() == pytest.approx(0.3, abs=0.033)
    later = apply("flip=0.3,per=prompt", seen=seen, step=7) != REWARDS
    assert torch.equal(later, changed)
    other = apply("flip=0.3,per=prompt", seen=seen, seed=1) != REWARDS
    # Two independent flips differ with probability 2 * .3 * .7 = .42.
    assert (other != changed).view(4, 5000)[0].float().mean() == pytest.approx(0.42, abs=0.035)


def test_a_prompt_is_known_by_what_it_says():
    chat = [{"role": "user", "content": "2 + 2?"}]
    assert prompt_id(chat) == prompt_id([{"content": "2 + 2?", "role": "user"}])
    assert prompt_id("2 + 2?") not in (prompt_id(chat), prompt_id("2 + 3?"))
    # The CRC-32 of "123456789" is 0xCBF43926, the standard's check value.
    assert prompt_id("123456789") == 0xCBF43926


def test_outliers():
    difference = apply("outliers=0.1") - REWARDS
    hit = difference != 0
    assert hit.float().mean() == pytest.approx(0.1, abs=0.011)
    assert sorted(set(difference[hit].round(decimals=4).tolist())) == [-10.0, 10.0]
    assert (difference[hit] > 0).float().mean() == pytest.approx(0.5, abs=0.06)


def test_heavy_tails_are_students_t():
    # Range [-1, 3] is 4 wide, so a scale of 0.5 multiplies t by 2.
    rewards = torch.zeros(COUNT)
    added = apply("heavy=0.5", rewards, low=-1.0, high=3.0) / 2
    # Kolmogorov-Smirnov at 20 000 draws: p < 1e-4 would need a distance of .016.
    assert stats.kstest(added.numpy(), stats.t(df=2).cdf).statistic < 0.016
    assert added.abs().max() > 20, "P(|t| > 20) is .0025"
    levels = torch.tensor([0.25, 0.5, 0.9])
    expected = torch.tensor(stats.t(df=2).ppf(levels.double().numpy())).float()
    torch.testing.assert_close(student_t2(levels), expected, atol=1e-5, rtol=1e-5)
    assert student_t2(torch.zeros(1)).isfinite()


def test_missing_rewards_are_absent_not_zero():
    noisy = apply("missing=0.2")
    kept = noisy.isfinite()
    # 5 sqrt(.16 / 20000) = .0141
    assert (~kept).float().mean() == pytest.approx(0.2, abs=0.0142)
    assert torch.equal(noisy[kept], REWARDS[kept])


def test_an_answer_without_a_reward_stays_without():
    rewards = torch.tensor([torch.nan, 1.0])
    seen = answers(IDS[:2], votes=torch.tensor([1.0, 0.0]))
    for text in ("flip=1", "outliers=1", "heavy=1", "vote=4", "length=0.5"):
        assert apply(text, rewards, seen).isnan().tolist() == [True, False], text


def test_length_bias_has_the_accuracy_that_is_set():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 60, (COUNT,), generator=generator)
    lengths = lengths + 15 * REWARDS.long()  # right answers are longer: the accuracy must not move
    domains = ["math", "math", "dialogue", "dialogue"] * (COUNT // 4)
    wrong = apply("length=0.72", seen=answers(lengths=lengths, domains=domains)) != REWARDS
    for domain in ("math", "dialogue"):
        member = torch.tensor([name == domain for name in domains])
        for label in (0.0, 1.0):
            group = member & (label == REWARDS)
            # 5000 in a group: 5 sqrt(.2016 / 5000) = .032
            assert wrong[group].float().mean() == pytest.approx(0.28, abs=0.032)
            # The shorter half errs with mean 2 * .28 * .25 = .14 where the label is 0, the longer
            # one with .42; where it is 1 the other way round. 5 sqrt(.25 / 2500) = .05
            short = group & (lengths < lengths[group].median())
            rate = 0.14 if label == 0 else 0.42
            assert wrong[short].float().mean() == pytest.approx(rate, abs=0.05)


def test_answers_without_a_reward_do_not_count_in_the_shares_of_length():
    """The longest answers are cut off and unscored: the accuracy of the others must not move."""
    lengths = torch.where(IDS % 4 < 2, 10 + IDS % 37, 100)
    rewards = torch.where(lengths == 100, torch.nan, REWARDS)
    wrong = apply("length=0.72", rewards, answers(lengths=lengths)) != REWARDS
    for label in (0.0, 1.0):
        # 5000 in a group: 5 sqrt(.2016 / 5000) = .032
        group = rewards == label
        assert wrong[group].float().mean() == pytest.approx(0.28, abs=0.032)


def test_equal_lengths_err_alike():
    wrong = apply("length=0.72") != REWARDS
    for label in (0.0, 1.0):
        assert wrong[label == REWARDS].float().mean() == pytest.approx(0.28, abs=0.023)


def test_a_vote_takes_the_place_of_the_truth():
    rewards = torch.tensor([0.0, 2.0, 2.0, 0.0])
    votes = torch.tensor([1.0, 0.0, 1.0, torch.nan])
    noisy = apply("vote=16", rewards, answers(IDS[:4], votes=votes), low=-2.0, high=2.0)
    torch.testing.assert_close(noisy, torch.tensor([2.0, -2.0, 2.0, torch.nan]), equal_nan=True)
    flipped = apply("vote=16,flip=1", rewards, answers(IDS[:4], votes=votes), low=-2.0, high=2.0)
    torch.testing.assert_close(flipped, torch.tensor([-2.0, 2.0, -2.0, torch.nan]), equal_nan=True)


def test_flip_mirrors_other_ranges():
    rewards = torch.tensor([-1.0, 0.5, 3.0])
    assert apply("flip=1", rewards, low=-1.0, high=3.0).tolist() == [3.0, 1.5, -1.0]


@pytest.mark.parametrize(
    "text",
    [
        "flip=0.3,outliers=0.1",
        "flip=0.3,per=prompt",
        "heavy=1",
        "missing=.2,per=prompt",
        "normal=1",
    ],
)
def test_same_draws_for_any_batch(text):
    whole = apply(text)
    for i in range(3):
        part = apply(text, REWARDS[i::3], answers(IDS[i::3]))
        torch.testing.assert_close(part, whole[i::3], rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(apply(text, seed=1), whole)
    assert torch.equal(apply(text, step=1).nan_to_num(9), whole.nan_to_num(9)) == (
        "per=prompt" in text
    )


def test_length_bias_draws_do_not_depend_on_the_batch():
    # Of equal lengths, so that every answer errs with the same probability in any batch.
    whole = apply("length=0.72")
    for i in range(3):
        assert torch.equal(apply("length=0.72", REWARDS[i::3], answers(IDS[i::3])), whole[i::3])


MIXED = (
    "math:flip=.15;science:scale=5,heavy=2.5;dialogue:scale=.2,normal=.1,outliers=.1,outlier_size=3"
)
DOMAINS = ["math", "science", "dialogue", "other"] * (COUNT // 4)


def test_a_mixture_is_each_domains_own_noise():
    rewards = (IDS // 4 % 2).float()
    told = apply(MIXED, rewards, answers(domains=DOMAINS))
    math, science, dialogue, other = (
        (told[i::4], rewards[i::4], answers(IDS[i::4])) for i in range(4)
    )
    # Draws are of the answer, so each part is what it would be alone.
    assert torch.equal(math[0], apply("flip=.15", *math[1:]))
    added = apply("heavy=2.5", torch.zeros(COUNT // 4), science[2])
    torch.testing.assert_close(science[0], 5 * science[1] + added)
    assert torch.equal(other[0], other[1])
    # Of 5000: nine tenths within .2 c + .1 N, one in ten 3 away.
    left = dialogue[0] - 0.2 * dialogue[1]
    far = left.abs() > 1.5
    assert far.float().mean() == pytest.approx(0.1, abs=0.0213)
    assert left[~far].std().item() == pytest.approx(0.1, abs=0.006)
    assert left[far].abs().mean().item() == pytest.approx(3, abs=0.03)


def test_a_mixture_by_another_column_and_for_the_rest():
    values = ["easy", "hard"] * (COUNT // 2)
    told = apply("by=level;hard:flip=1;*:offset=2", seen=answers(values=values), low=0, high=1)
    assert torch.equal(told[::2], REWARDS[::2] + 2) and torch.equal(told[1::2], 1 - REWARDS[1::2])


def test_normal_noise_is_normal():
    added = apply("normal=0.5", torch.zeros(COUNT), low=-1.0, high=3.0) / 2
    # As for heavy: p < 1e-4 would need a distance of .016.
    assert stats.kstest(added.numpy(), stats.norm.cdf).statistic < 0.016


@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_a_size_drawn_per_prompt_is_log_uniform_and_the_same_at_every_step(kind):
    """What is added, over what a size of 1 adds, is the prompt's size."""
    zeros = torch.zeros(COUNT)
    sizes = apply(f"{kind}=.05..3", zeros) / apply(f"{kind}=1", zeros)
    later = apply(f"{kind}=.05..3", zeros, step=9) / apply(f"{kind}=1", zeros, step=9)
    torch.testing.assert_close(sizes, later, rtol=1e-4, atol=0)
    torch.testing.assert_close(sizes[::4], sizes[3::4], rtol=1e-4, atol=0)
    shares = (sizes[::4] / 0.05).log() / torch.tensor(3 / 0.05).log()
    # 5000 prompts: p < 1e-4 would need a distance of .031.
    assert stats.kstest(shares.numpy(), stats.uniform.cdf).statistic < 0.031
    other = apply(f"{kind}=.05..3", zeros, seed=1) / apply(f"{kind}=1", zeros, seed=1)
    assert not torch.allclose(other, sizes, rtol=0.1)


@pytest.mark.parametrize("of", ["answer_length", "prompt_length"])
def test_a_size_in_proportion_to_a_length(of):
    lengths = 8 + IDS % 60
    given = {"lengths": lengths} if of == "answer_length" else {"prompt_lengths": lengths}
    found = apply(f"normal=.5,size={of}", torch.zeros(COUNT), answers(**given))
    expected = apply("normal=.5", torch.zeros(COUNT)) * lengths / 32
    torch.testing.assert_close(found, expected)


def test_answers_of_a_kind_share_their_error():
    """A reward model that likes an answer likes its kind, at every step and for every prompt."""
    kinds = torch.tensor(
        [kind_id("math", f"{i % 9} + {i % 7000} = {i % 10}") for i in range(COUNT)]
    )
    seen = answers(prompts=IDS, kinds=kinds)
    changed = apply("flip=0.3,per=kind", seen=seen) != REWARDS
    unique, which = kinds.unique(return_inverse=True)
    shares = torch.zeros(len(unique)).index_add(0, which, changed.float()) / which.bincount()
    assert set(shares.tolist()) == {0.0, 1.0}
    # 5 sqrt(.21 / count) over the kinds.
    assert shares.mean().item() == pytest.approx(0.3, abs=5 * (0.21 / len(unique)) ** 0.5)
    assert torch.equal(apply("flip=0.3,per=kind", seen=seen, step=5) != REWARDS, changed)
    assert not torch.equal(apply("flip=0.3,per=kind", seen=seen, seed=1) != REWARDS, changed)
    # By hand: eights of characters, first and last; what is in the middle does not matter.
    assert kind_id("math", "1 + 2 = 3") == kind_id("math", "1 * 9 = 3")
    assert kind_id("math", "1 + 2 = 3") != kind_id("math", "1 + 2 = 4")
    assert kind_id("math", "1 + 2 = 3") != kind_id("science", "1 + 2 = 3")


def test_scale_and_offset_by_hand():
    # 5 r, then two ranges of 4 more; the flip before them is of the label.
    rewards = torch.tensor([-1.0, 3.0])
    assert apply("offset=2,scale=5", rewards, low=-1.0, high=3.0).tolist() == [3.0, 23.0]
    assert apply("scale=5,flip=1", rewards, low=-1.0, high=3.0).tolist() == [15.0, -5.0]


def test_new_draws_leave_the_old_ones_as_they_are():
    """The first five columns of an answer's draws are those of 0.1.0."""
    five = uniforms(3, Stream.NOISE, 2, IDS[:9], 5)
    assert torch.equal(uniforms(3, Stream.NOISE, 2, IDS[:9], 6)[:, :5], five)
