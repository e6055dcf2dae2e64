"""How answers are parted into micro-batches and shared out."""

import random

import torch

from dfpo.config.types import Samples
from dfpo.rollout.batches import Parts, by_parts, micro_batches, share_of
from dfpo.rollout.processes import Processes


def test_batches_keep_to_their_budget_and_hold_every_row_once():
    """Over random lengths: no row twice or missing, none over budget but a row alone, and padding
    below that of the order given."""
    draws = random.Random(0)
    for _ in range(200):
        count, budget = draws.randint(1, 40), draws.randint(10, 400)
        prompts = [draws.randint(1, 30) for _ in range(count)]
        answers = [draws.randint(1, 60) for _ in range(count)]
        least = draws.randint(1, 4)
        batches = micro_batches(prompts, answers, budget, least)
        assert sorted(i for batch in batches for i in batch) == list(range(count))
        assert len(batches) >= min(least, count)
        for batch in batches:
            width = max(prompts[i] for i in batch) + max(answers[i] for i in batch)
            assert len(batch) * width <= budget or len(batch) == 1

        processes = [Processes(rank, least) for rank in range(least)]
        shares = [share_of(batches, prompts, answers, one) for one in processes]
        assert sorted(map(tuple, sum(shares, []))) == sorted(map(tuple, batches))
        assert shares[0], "the first process always has a part"


def test_batches_by_hand():
    # Sorted by length: rows 1 (9), 0 (6), 2 (3). 2 x (5 + 4) is over 15; 2 x (3 + 3) is not.
    assert micro_batches([3, 5, 2], [3, 4, 1], 15) == [[1], [0, 2]]
    assert micro_batches([3, 5, 2], [3, 4, 1], 27) == [[0, 1, 2]]
    assert micro_batches([3, 5, 2], [3, 4, 1], 27, least=3) == [[1], [0], [2]]
    assert micro_batches([3, 5, 2], [3, 4, 1], 1) == [[1], [0], [2]]
    assert micro_batches([], [], 5) == []


def test_a_part_has_no_column_that_pads_all():
    ids = torch.tensor([[0, 0, 7, 8, 9, 0], [1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 0, 0]])
    kept = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]])
    samples = Samples(ids, kept, kept[:, 3:].bool(), torch.zeros(3, dtype=torch.bool))
    assert samples.lengths == [2, 3, 1] and samples.prompt_lengths == [1, 3, 2]
    part = samples.part([2, 0])
    assert part.input_ids.tolist() == [[1, 2, 3, 0], [0, 7, 8, 9]]
    assert part.mask.tolist() == [[True, False], [True, True]]
    assert part.lengths == [1, 2] and part.prompt_lengths == [2, 1]


def test_what_is_computed_by_parts_lies_where_it_belongs():
    """Each answer gets its own numbers back, whatever it was in a batch with."""
    ids = torch.tensor([[0, 0, 7, 8, 9, 0], [1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 0, 0]])
    kept = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]])
    samples = Samples(ids, kept, kept[:, 3:].bool(), torch.zeros(3, dtype=torch.bool))

    def compute(part, rows):
        tokens = torch.where(part.mask, part.tokens, 0).unsqueeze(-1)
        return Parts({"tokens": tokens}, {"rows": torch.tensor(rows, dtype=torch.float32)})

    for budget in (1, 7, 100):
        tokens, answers = by_parts(compute, samples, budget)
        assert tokens["tokens"][..., 0].tolist() == [[8, 9, 0], [4, 5, 6], [3, 0, 0]], budget
        assert answers["rows"].tolist() == [0, 1, 2]
