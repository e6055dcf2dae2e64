"""A policy loss of somebody's own, which calls the policy itself and knows nothing of
``batch.logprobs``. A module of its own, so that a fork of another process can import it."""

from dfpo.config.tables import Choice
from dfpo.method.losses import token_average
from dfpo.rollout.policy import token_logprobs


def looks_by_itself(policy, critic, batch, config):
    chosen, _ = token_logprobs(policy, batch.samples, 1.0, entropy=False)
    return token_average(-chosen * batch.advantages, batch.samples.mask, "token", 1), {}


OWN_LOSS = {"looks by itself": Choice("", f"{__name__}:looks_by_itself")}
