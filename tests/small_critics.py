"""Critics on the trunk of a policy that ships."""

import torch

from dfpo.config import build_config
from dfpo.method.critics import build_critic
from dfpo.run.defaults import complete


def critic_of(policy, **settings):
    config = build_config({k.replace("__", "."): v for k, v in settings.items()})
    return build_critic(policy[0], complete(config, policy[0], torch.tensor([0.0, 1.0])))


def generator():
    return torch.Generator().manual_seed(0)
