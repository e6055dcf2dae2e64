"""What a run says of its own numbers."""

from dfpo.config import build_config
from dfpo.run.diagnostics import warn_of_drift


def said_after(*kls, length=20.0):
    config = build_config({"policy.learning_rate": 1e-4})
    records = [{"step": i, "kl": kl, "response_length": length} for i, kl in enumerate(kls)]
    return [warn_of_drift(records[: i + 1], config) for i in range(len(records))]


def test_a_policy_that_leaves_its_first_one_says_so_once():
    said = said_after(0.0, 9.9, 17.3, 18.0, 3.0, 12.0)
    assert [line is not None for line in said] == [False, False, True, False, False, False]
    for word in ("step 2", "17.3 nats", "--policy.kl-coef", "0.001", "--policy.learning-rate"):
        assert word in said[2]


def test_long_answers_may_be_further():
    """A tenth of a nat a token: 100 of an answer of 1000."""
    assert said_after(99.0, 101.0, length=1000.0)[0] is None
    assert said_after(99.0, 101.0, length=1000.0)[1] is not None


def test_steps_without_a_reward_have_no_kl():
    assert said_after(None, None) == [None, None]
