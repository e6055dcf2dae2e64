"""The suite with headroom: worked cases by hand, its slips and their contexts, its splits."""

import random

import pytest

from dfpo.tasks import SPLITS, SUITES, slip_position
from dfpo.tasks.hard import dialogue, math, science

HARD = SUITES["hard"]
ALL = [(domain, split) for domain in HARD.domains for split in SPLITS]
DIFFERENCE = math.Sum((3, 1, 4, 8), "-", (9, 4, 1, 2))
ADDITION = math.Sum((9, 1, 4, 8), "+", (9, 4, 1, 2))
FORCE = science.Measurement(
    science.FORMULAS[1], 8, 3, 4, 2, ("push", "mass", "friction", "acceleration")
)
BOOKING = dialogue.Booking(
    (("people", "3"), ("day", "friday"), ("people", "more 2"), ("day", "none"), ("people", "4"))
)


class Draws:
    """Stands for random.Random: the uniforms it is told to draw, in turn."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)


def never_slip(module, question):
    return module.solve(question, random.Random(0))


def always_slip(module, question):
    # Above 1 / SELDOM, so that contexts which invite no slip meet it too.
    return module.solve(question, random.Random(0), slip=2.5)


def test_differences_by_hand():
    # 8413 - 2149 = 6264: 3 - 9 borrows and leaves 4, 1 - 4 - 1 borrows and leaves 6, 4 - 1 - 1 = 2.
    assert math.prompt(DIFFERENCE) == (
        "math units 3 tens 1 hundreds 4 thousands 8 - units 9 tens 4 hundreds 1 thousands 2 ?"
    )
    assert never_slip(math, DIFFERENCE) == (
        "units 3 - 9 - 0 = 1 4 ; tens 1 - 4 - 1 = 1 6 ; hundreds 4 - 1 - 1 = 0 2 ; "
        "thousands 8 - 2 - 0 = 0 6 so 0 6 2 6 4"
    )
    # The smaller digit from the larger in units and tens: nothing is ever borrowed.
    assert always_slip(math, DIFFERENCE) == (
        "units 9 - 3 - 0 = 0 6 ; tens 4 - 1 - 0 = 0 3 ; hundreds 4 - 1 - 0 = 0 3 ; "
        "thousands 8 - 2 - 0 = 0 6 so 0 6 3 3 6"
    )


def test_sums_by_hand():
    # 8419 + 2149 = 10568; with the carry into the tens forgotten 10558.
    assert never_slip(math, ADDITION) == (
        "units 9 + 9 + 0 = 1 8 ; tens 1 + 4 + 1 = 0 6 ; hundreds 4 + 1 + 0 = 0 5 ; "
        "thousands 8 + 2 + 0 = 1 0 so 1 0 5 6 8"
    )
    assert always_slip(math, ADDITION).endswith("so 1 0 5 5 8")


def test_science_by_hand():
    # 8 * 3 = 24, less a friction of 4, with a push of 2 makes 22.
    assert science.prompt(FORCE) == ("science push 2 mass 8 friction 4 acceleration 3 find force ?")
    assert never_slip(science, FORCE) == (
        "force = mass * acceleration - friction + push ; 8 * 3 = 2 4 ; 2 4 - 4 = 2 0 ; "
        "2 0 + 2 = 2 2 ; force = 2 2 newtons"
    )
    # The friction added, the push left out: 28.
    assert always_slip(science, FORCE) == (
        "force = mass * acceleration + friction ; 8 * 3 = 2 4 ; 2 4 + 4 = 2 8 ; force = 2 8 newtons"
    )


def test_dialogue_by_hand():
    assert dialogue.prompt(BOOKING) == (
        "dialogue #1 people 3 #2 day friday #3 people more 2 #4 day none #5 people 4 ?"
    )
    assert never_slip(dialogue, BOOKING) == (
        "#1 people set 3 #2 day set friday #3 people more 3 + 2 = 5 #4 day drop friday "
        "#5 people new 4 so people 4 stars none day none food none"
    )
    # The increase is taken for a value, the cancellation and the correction are ignored.
    assert always_slip(dialogue, BOOKING) == (
        "#1 people set 3 #2 day set friday #3 people new 2 #4 day keep friday "
        "#5 people keep 2 so people 2 stars none day friday food none"
    )


@pytest.mark.parametrize(
    ("module", "question", "contexts"),
    [
        # Carry of 1 under the even digit 1 + 4: an odd upper digit invites it in a sum.
        (math, math.Sum((9, 1), "+", (9, 4)), [1.0]),
        (math, math.Sum((9, 2), "+", (9, 4)), [0.5]),
        # A difference asks twice: for the larger digit first (units), for the borrow (tens).
        (math, math.Sum((3, 6), "-", (9, 4)), [1.0, 1.0]),
        (math, math.Sum((3, 5), "-", (9, 4)), [1.0, 0.5]),
        # A smaller digit with a borrow of its own: the even 2 invites losing the borrow, and the
        # borrow makes exchanging the digits rare. The top column has no smaller digit.
        (math, math.Sum((3, 2, 9), "-", (9, 4, 1)), [1.0, 1.0, 0.5, 0.5]),
        # Friction before mass, or after; push first or last, or in between.
        (science, FORCE, [0.5, 1.0]),
        (science, science.Measurement(
            science.FORMULAS[1], 8, 3, 4, 2, ("friction", "push", "mass", "acceleration")
        ), [1.0, 0.5]),
        # An increase below the old value, a cancelled word, a slot not spoken of just before.
        (dialogue, BOOKING, [0.5, 1.0, 1.0]),
        (dialogue, dialogue.Booking(
            (("people", "2"), ("people", "more 2"), ("people", "3"), ("people", "none"))
        ), [1.0, 0.5, 0.5]),
    ],
)  # fmt: skip
def test_contexts_invite_slips(module, question, contexts):
    """At slip .8 a draw just above context * .8 makes no slip, one just below makes the first."""
    right = never_slip(module, question)
    spared = Draws(*(0.8 * context + 1e-6 for context in contexts))
    assert module.solve(question, spared, slip=0.8) == right
    assert spared.values == []
    for place, context in enumerate(contexts):
        before = [0.8 * c + 1e-6 for c in contexts[:place]]
        # What follows a slip may ask more or fewer times.
        draws = Draws(*before, 0.8 * context - 1e-6, *[1.0] * 5)
        shown = module.solve(question, draws, slip=0.8).split()
        position = slip_position(shown, right.split())
        assert module.slips(right.split())[position] == shown[position]


@pytest.mark.parametrize(("domain", "split"), ALL)
def test_demonstrations_differ_first_at_a_slip_and_use_the_vocabulary(domain, split):
    module = HARD.domains[domain]
    lengths, kinds = [], set()
    for index in range(600):
        item, shown = HARD.demonstration(0, domain, split, index, slip=0.75)
        answer, tokens = item.answer.split(), shown.split()
        assert set(item.prompt.split()) | set(answer) | set(tokens) <= set(HARD.vocabulary)
        assert module.verify(item.answer, item.answer)
        assert item == HARD.problem(0, "train", domain, split, index)
        lengths.append(max(len(answer), len(tokens)))
        position = slip_position(tokens, answer)
        if position is not None:
            assert module.slips(answer)[position] == tokens[position]
            kinds.add((answer[position], tokens[position]))
    assert max(lengths) < 64, "sft.MAX_NEW_TOKENS, with the end token"
    assert len(kinds) >= 2, "several kinds of slips"


@pytest.mark.parametrize("domain", HARD.domains)
def test_differences_sums_and_results_stay_in_range(domain):
    for split in SPLITS:
        for index in range(300):
            problem = HARD.problem(1, "eval", domain, split, index)
            final = HARD.extract(problem.answer, domain).split()
            words = problem.prompt.split()
            if domain == "math":
                half = len(words) // 2 - 1
                first, second = (
                    int("".join(words[k::2][: half // 2][::-1])) for k in (2, 2 + half + 1)
                )
                result = first - second if "-" in words else first + second
                assert int("".join(final)) == result >= 0
            if domain == "science":
                assert 1 <= int(final[2] + final[3]) <= 99
            if domain == "dialogue":
                people = final[final.index("people") + 1]
                assert people == "none" or 1 <= int(people) <= 9


@pytest.mark.parametrize("domain", HARD.domains)
def test_streams_and_splits_are_disjoint(domain):
    prompts = {
        (stream, split): {HARD.problem(0, stream, domain, split, i).prompt for i in range(1000)}
        for stream in ("train", "eval")
        for split in SPLITS
    }
    for split in SPLITS:
        assert not prompts["train", split] & prompts["eval", split]
    for stream in ("train", "eval"):
        assert not prompts[stream, "id"] & prompts[stream, "ood"]


def test_ranges_of_the_splits():
    rng = random.Random(0)
    for _ in range(300):
        assert len(math.generate(rng, "id").first) == 4
        assert len(math.generate(rng, "ood").first) == 5
        inside, outside = science.generate(rng, "id"), science.generate(rng, "ood")
        assert inside.left * inside.right <= 30 < outside.left * outside.right
        assert len(dialogue.generate(rng, "id").turns) == 5
        assert len(dialogue.generate(rng, "ood").turns) in (6, 7)
