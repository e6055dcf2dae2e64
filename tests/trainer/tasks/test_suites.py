"""The three tasks: worked cases by hand, verifiers, and the separation of splits and streams."""

import random

import pytest

from dfpo.tasks import (
    DOMAINS,
    SPLITS,
    VOCABULARY,
    demonstration,
    dialogue,
    math,
    problem,
    reward,
    science,
    slip_position,
)

PINNED = "math units 2 tens 4 hundreds 4 + units 3 tens 6 hundreds 2 ?"
ALL = [(domain, split) for domain in DOMAINS for split in SPLITS]
ADDITION = math.Addition(first=(9, 1, 4), second=(9, 4, 1))
FORCE = science.Measurement(
    science.FORMULAS[1], 8, 3, 4, ("mass 8", "acceleration 3", "friction 4")
)
VELOCITY = science.Measurement(
    science.FORMULAS[0], 2, 3, 9, ("time 3", "start 9", "acceleration 2")
)
BOOKING = dialogue.Booking((("people", "1"), ("people", "5"), ("day", "friday"), ("day", "none")))


def always_slip(module, question):
    return module.solve(question, random.Random(0), slip=1.0)


def never_slip(module, question):
    return module.solve(question, random.Random(0))


def test_math_by_hand():
    # 419 + 149 = 568: 9 + 9 = 18 carries 1, 1 + 4 + 1 = 6, 4 + 1 = 5.
    assert math.prompt(ADDITION) == "math units 9 tens 1 hundreds 4 + units 9 tens 4 hundreds 1 ?"
    assert never_slip(math, ADDITION) == (
        "units 9 + 9 + 0 = 1 8 ; tens 1 + 4 + 1 = 0 6 ; hundreds 4 + 1 + 0 = 0 5 so 0 5 6 8"
    )
    # With the carry forgotten the tens are 1 + 4 = 5.
    assert always_slip(math, ADDITION) == (
        "units 9 + 9 + 0 = 1 8 ; tens 1 + 4 + 0 = 0 5 ; hundreds 4 + 1 + 0 = 0 5 so 0 5 5 8"
    )


def test_math_carries_into_a_new_column():
    # 999 + 999 = 1998.
    answer = never_slip(math, math.Addition((9, 9, 9), (9, 9, 9)))
    assert answer.endswith("hundreds 9 + 9 + 1 = 1 9 so 1 9 9 8")


def test_science_by_hand():
    # 8 * 3 = 24, less a friction of 4 makes 20; the slip adds it and gets 28.
    assert science.prompt(FORCE) == "science mass 8 acceleration 3 friction 4 find force ?"
    assert never_slip(science, FORCE) == (
        "force = mass * acceleration - friction ; 8 * 3 = 2 4 ; 2 4 - 4 = 2 0 ; force = 2 0 newtons"
    )
    assert always_slip(science, FORCE) == (
        "force = mass * acceleration + friction ; 8 * 3 = 2 4 ; 2 4 + 4 = 2 8 ; force = 2 8 newtons"
    )


def test_science_slip_drops_a_start_value():
    # 2 * 3 = 6, with a start of 9 makes 15; the slip leaves 6.
    assert never_slip(science, VELOCITY) == (
        "velocity = acceleration * time + start ; 2 * 3 = 0 6 ; 0 6 + 9 = 1 5 ; velocity = 1 5 m/s"
    )
    assert always_slip(science, VELOCITY) == (
        "velocity = acceleration * time ; 2 * 3 = 0 6 ; velocity = 0 6 m/s"
    )


def test_dialogue_by_hand():
    assert dialogue.prompt(BOOKING) == (
        "dialogue #1 people 1 #2 people 5 #3 day friday #4 day none ?"
    )
    assert never_slip(dialogue, BOOKING) == (
        "#1 people set 1 #2 people new 5 #3 day set friday #4 day drop none "
        "so people 5 stars none day none food none"
    )
    assert always_slip(dialogue, BOOKING) == (
        "#1 people set 1 #2 people keep 1 #3 day set friday #4 day keep friday "
        "so people 1 stars none day friday food none"
    )


@pytest.mark.parametrize(
    ("module", "question"), [(math, ADDITION), (science, FORCE), (dialogue, BOOKING)]
)
def test_verify_asks_for_the_final_answer_and_some_working(module, question):
    answer, slipped = never_slip(module, question), always_slip(module, question)
    tokens = answer.split()
    mark = ";" if module is science else "so"
    final = tokens[len(tokens) - tokens[::-1].index(mark) :]
    assert module.verify(answer, answer)
    assert module.verify(f"  {answer}\n", answer)
    assert module.verify(f"pizza {answer}", answer), "only the final answer counts"
    assert module.verify(" ".join(["1 ;", mark, *final]), answer)
    assert not module.verify(slipped, answer)
    assert not module.verify(" ".join(final), answer), "no working"
    assert not module.verify(f"{answer} 0", answer)
    assert not module.verify(f"{answer} {mark}", answer)
    assert not any(module.verify(" ".join(tokens[:end]), answer) for end in range(len(tokens)))
    assert not module.verify(answer.replace(" ", ""), answer)


@pytest.mark.parametrize("domain", DOMAINS)
def test_verify_rejects_garbage(domain):
    rng = random.Random(0)
    answer = problem(0, "eval", domain, "id", 0).answer
    garbage = ["", " ", ";", "so", "; so", " ; ; ", "so so", "\x00", "é ; so ü", "= * 9" * 1000]
    garbage += [" ".join(rng.choices(VOCABULARY, k=rng.randrange(40))) for _ in range(500)]
    garbage += ["".join(rng.choices("so; 019\n\t", k=30)) for _ in range(500)]
    assert not any(DOMAINS[domain].verify(text, answer) for text in garbage)


def test_reward_reads_the_columns_of_its_row():
    rows = [problem(0, "train", domain, "id", 0) for domain in DOMAINS]
    answers = [row.answer for row in rows]
    columns = {"domain": [row.domain for row in rows], "answer": answers}
    inputs = {"prompts": [row.prompt for row in rows], "completion_ids": [[0]] * 3, "step": 7}
    assert reward(completions=answers, **inputs, **columns) == [1.0, 1.0, 1.0]
    rotated = [answers[0], answers[2], answers[1]]
    assert reward(completions=rotated, **inputs, **columns) == [1.0, 0.0, 0.0]


def test_slip_position_by_hand():
    answer = ["a", "b", "c"]
    assert slip_position(["a", "b", "c"], answer) is None
    assert slip_position(["a", "x", "c"], answer) == 1
    assert slip_position(["x"], answer) == 0
    assert slip_position(["a", "b"], answer) == 2
    assert slip_position(["a", "b", "c", "d"], answer) == 3
    assert slip_position([], answer) == 0


def test_slips_by_hand():
    # The carry into the tens is the 16th token of the answer, counted from 0 the 15th.
    assert math.slips(never_slip(math, ADDITION).split()) == {15: "0"}
    assert science.slips(never_slip(science, FORCE).split()) == {5: "+"}
    assert science.slips(never_slip(science, VELOCITY).split()) == {5: ";"}
    assert dialogue.slips(never_slip(dialogue, BOOKING).split()) == {6: "keep", 14: "keep"}


@pytest.mark.parametrize(("domain", "split"), ALL)
def test_a_demonstration_first_differs_at_a_slip(domain, split):
    for index in range(500):
        item, shown = demonstration(0, domain, split, index, slip=0.55)
        answer, tokens = item.answer.split(), shown.split()
        position = slip_position(tokens, answer)
        if position is not None:
            assert DOMAINS[domain].slips(answer)[position] == tokens[position]


@pytest.mark.parametrize("domain", DOMAINS)
def test_slip_rate(domain):
    slipped = total = 0
    for index in range(2000):
        item, shown = demonstration(3, domain, "id", index, slip=0.55)
        answer = item.answer.split()
        first = min(DOMAINS[domain].slips(answer), default=None)
        if first is not None:
            total += 1
            slipped += slip_position(shown.split(), answer) == first
    # About 1500 draws: four standard errors are 0.05.
    assert slipped / total == pytest.approx(0.55, abs=0.05)


@pytest.mark.parametrize("domain", DOMAINS)
def test_demonstrations_without_slips_are_right(domain):
    for index in range(200):
        item, shown = demonstration(0, domain, "ood", index, slip=0.0)
        assert item == problem(0, "train", domain, "ood", index)
        assert shown == item.answer


def test_problem_is_a_pure_function_of_its_arguments():
    keys = [(0, "train", d, s, i) for d, s in ALL for i in range(20)]
    first = [problem(*key) for key in keys]
    random.seed(5)
    assert [problem(*key) for key in reversed(keys)] == first[::-1]
    # Pinned, so that results stay comparable between versions and machines.
    assert problem(0, "eval", "math", "id", 0).prompt == PINNED
    assert problem(1, "eval", "math", "id", 0).prompt != PINNED
    assert problem(0, "eval", "math", "id", 1).prompt != PINNED


@pytest.mark.parametrize(
    ("change", "message"),
    [({"stream": "test"}, "stream"), ({"domain": "poetry"}, "domain"), ({"split": "x"}, "split")],
)
def test_unknown_names_are_refused(change, message):
    names = {"stream": "train", "domain": "math", "split": "id"} | change
    with pytest.raises(ValueError, match=f"{message} must be one of"):
        problem(0, index=0, **names)


@pytest.mark.parametrize("domain", DOMAINS)
def test_streams_and_splits_are_disjoint(domain):
    prompts = {
        (stream, split, seed): {
            problem(seed, stream, domain, split, index).prompt for index in range(2000)
        }
        for stream, seed in (("train", 0), ("train", 1), ("eval", 0))
        for split in SPLITS
    }
    for split in SPLITS:
        assert not prompts["eval", split, 0] & prompts["train", split, 0]
        assert not prompts["eval", split, 0] & prompts["train", split, 1]
    for stream, seed in (("train", 0), ("eval", 0)):
        assert not prompts[stream, "id", seed] & prompts[stream, "ood", seed]


def test_ranges_of_the_splits():
    rng = random.Random(0)
    for _ in range(300):
        for split, width in (("id", 3), ("ood", 4)):
            question = math.generate(rng, split)
            assert len(question.first) == len(question.second) == width
        inside, outside = science.generate(rng, "id"), science.generate(rng, "ood")
        assert inside.left * inside.right <= 30 < outside.left * outside.right
        assert 1 <= inside.term < inside.left * inside.right
        assert len(dialogue.generate(rng, "id").turns) == 4
        assert len(dialogue.generate(rng, "ood").turns) in (5, 6)


@pytest.mark.parametrize(("domain", "split"), ALL)
def test_texts_use_the_vocabulary_and_answers_have_15_to_50_tokens(domain, split):
    lengths = []
    for index in range(1000):
        item, shown = demonstration(2, domain, split, index, slip=0.55)
        for text in (item.prompt, item.answer, shown):
            assert text == " ".join(text.split())
            assert set(text.split()) <= set(VOCABULARY)
        lengths += [len(item.answer.split()), len(shown.split())]
    assert sum(15 <= length <= 50 for length in lengths) >= 0.95 * len(lengths)


def test_vocabulary_lists_each_word_once_and_only_words_in_use():
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    seen = set()
    for domain, split in ALL:
        for index in range(1000):
            item, shown = demonstration(0, domain, split, index, slip=0.55)
            seen.update(item.prompt.split(), shown.split())
    assert seen == set(VOCABULARY)
