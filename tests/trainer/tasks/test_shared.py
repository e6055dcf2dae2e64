"""The suite with a shared skill: worked cases by hand, its slips, its splits."""

import random

import pytest

from dfpo.tasks import SPLITS, SUITES, slip_position
from dfpo.tasks.shared import columns, dialogue, math, science

SHARED = SUITES["shared"]
ALL = [(domain, split) for domain in SHARED.domains for split in SPLITS]
SUM = math.Sum((9, 1, 4), (9, 4, 1))
POSITION = science.Measurement(science.FORMULAS[1], 8, 3, 19, ("time", "origin", "velocity"))
BOOKING = dialogue.Booking(
    (("people", 27), ("day", "friday"), ("people", 18), ("day", "monday"))
)  # fmt: skip


class Draws:
    """Stands for random.Random: the uniforms it is told to draw, in turn."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)


def never_slip(module, question):
    return module.solve(question, random.Random(0))


def always_slip(module, question):
    # Above 1 / OWN, so that a domain's own slip is made too.
    return module.solve(question, random.Random(0), slip=2.5)


def test_math_by_hand():
    # 419 + 149 = 568; without the carry into the tens 558, which is read from its units on.
    assert math.prompt(SUM) == "math units 9 tens 1 hundreds 4 + units 9 tens 4 hundreds 1 ?"
    assert never_slip(math, SUM) == (
        "units 9 + 9 + 0 = 1 8 ; tens 1 + 4 + 1 = 0 6 ; hundreds 4 + 1 + 0 = 0 5 so 0 5 6 8"
    )
    assert always_slip(math, SUM).endswith(
        "; tens 1 + 4 + 0 = 0 5 ; hundreds 4 + 1 + 0 = 0 5 so 8 5 5 0"
    )


def test_science_by_hand():
    # 8 * 3 = 24 and 19 are 43.
    assert science.prompt(POSITION) == "science time 3 origin 1 9 velocity 8 find position ?"
    assert never_slip(science, POSITION) == (
        "position = velocity * time + origin ; 8 * 3 = 2 4 ; units 4 + 9 + 0 = 1 3 ; "
        "tens 2 + 1 + 1 = 0 4 ; position = 4 3 metres"
    )
    assert always_slip(science, POSITION) == (
        "position = velocity * time ; 8 * 3 = 2 4 ; position = 2 4 metres"
    )
    # The term kept (.5 is above .5 * .6), the carry forgotten: 33.
    assert science.solve(POSITION, Draws(0.5, 0.5), slip=0.6).endswith(
        "= 0 3 ; position = 3 3 metres"
    )


def test_dialogue_by_hand():
    # 27 people and 18 more are 45; forgetting the carry, 35.
    assert dialogue.prompt(BOOKING) == (
        "dialogue #1 people 2 7 #2 day friday #3 people more 1 8 #4 day monday ?"
    )
    assert never_slip(dialogue, BOOKING) == (
        "#1 people set 2 7 #2 day set friday #3 people more units 7 + 8 + 0 = 1 5 ; "
        "tens 2 + 1 + 1 = 0 4 #4 day new monday so people 4 5 day monday food none"
    )
    assert always_slip(dialogue, BOOKING) == (
        "#1 people set 2 7 #2 day set friday #3 people more units 7 + 8 + 0 = 1 5 ; "
        "tens 2 + 1 + 0 = 0 3 #4 day keep friday so people 3 5 day friday food none"
    )


@pytest.mark.parametrize(
    ("module", "question", "thresholds"),
    [
        (math, SUM, [1.0, 0.5]),  # the carry into the tens, then the end from which it is read
        (science, POSITION, [0.5, 1.0]),  # the term, then the carry
        (dialogue, BOOKING, [1.0, 0.5]),  # the carry, then the correction
    ],
)
def test_a_domains_own_slip_is_half_as_likely(module, question, thresholds):
    """At slip .6 a draw just above makes none, one just below makes it."""
    right = never_slip(module, question)
    spared = Draws(*(0.6 * share + 1e-6 for share in thresholds))
    assert module.solve(question, spared, slip=0.6) == right and spared.values == []
    for place, share in enumerate(thresholds):
        before = [0.6 * other + 1e-6 for other in thresholds[:place]]
        shown = module.solve(question, Draws(*before, 0.6 * share - 1e-6, 1.0), slip=0.6).split()
        position = slip_position(shown, right.split())
        assert module.slips(right.split())[position] == shown[position]


@pytest.mark.parametrize(("domain", "split"), ALL)
def test_demonstrations_differ_first_at_a_slip_and_use_the_vocabulary(domain, split):
    module = SHARED.domains[domain]
    lengths, kinds, carried = [], set(), 0
    for index in range(600):
        item, shown = SHARED.demonstration(0, domain, split, index, slip=0.6)
        answer, tokens = item.answer.split(), shown.split()
        assert set(item.prompt.split()) | set(answer) | set(tokens) <= set(SHARED.vocabulary)
        assert module.verify(item.answer, item.answer)
        carried += bool(columns.carries(answer))
        lengths.append(max(len(answer), len(tokens)))
        position = slip_position(tokens, answer)
        if position is not None:
            assert module.slips(answer)[position] == tokens[position]
            kinds.add(position in columns.carries(answer))
    assert max(lengths) < 64, "MAX_NEW_TOKENS of the starting policy, with the end token"
    assert kinds == {True, False}, "the shared slip and the domain's own"
    assert 0.6 < carried / 600 < 0.9


@pytest.mark.parametrize("split", SPLITS)
def test_results_are_the_sums(split):
    """By Python's arithmetic."""
    for index in range(300):
        words = SHARED.problem(1, "eval", "math", split, index)
        half = words.prompt.split()[1:-1]
        plus = half.index("+")
        first, second = (int("".join(part[1::2][::-1])) for part in (half[:plus], half[plus + 1 :]))
        assert int(SHARED.extract(words.answer, "math").replace(" ", "")) == first + second

        question = science.generate(random.Random(index), split)
        final = science.extract(never_slip(science, question)).split()
        assert int(final[2] + final[3]) == question.left * question.right + question.term <= 99

        booking = dialogue.generate(random.Random(index), split)
        final = dialogue.extract(never_slip(dialogue, booking)).split()
        people = [said for slot, said in booking.turns if slot == "people"]
        assert int(final[1] + final[2]) == sum(people) <= 99 and len(people) == 2
        for slot in dialogue.SLOTS:
            said = [value for name, value in booking.turns if name == slot]
            assert final[final.index(slot) + 1] == (said or ["none"])[-1]


def test_ranges_of_the_splits():
    rng = random.Random(0)
    for _ in range(300):
        assert len(math.generate(rng, "id").first) == 3
        assert len(math.generate(rng, "ood").first) == 4
        inside, outside = science.generate(rng, "id"), science.generate(rng, "ood")
        assert inside.left * inside.right <= 30 < outside.left * outside.right
        assert len(dialogue.generate(rng, "id").turns) == 4
        assert len(dialogue.generate(rng, "ood").turns) in (5, 6)


@pytest.mark.parametrize("domain", SHARED.domains)
def test_streams_are_disjoint(domain):
    for split in SPLITS:
        train, held = (
            {SHARED.problem(0, stream, domain, split, i).prompt for i in range(1000)}
            for stream in ("train", "eval")
        )
        assert not train & held
