"""A grid of four small runs, and a recipe with a search."""

import yaml

STEPS = 4
RECIPE = {
    "seeds": [3, 4],
    "arms": ["ppo", "dfpo"],
    "noises": ["flip=0.5"],
    "base": {
        "steps": STEPS,
        "rollout": {"prompts": 3, "samples": 2, "max_new_tokens": 36},
        "critic": {"warmup_steps": 2, "warmup_epochs": 1, "num_quantiles": 5},
        "eval.prompts": 2,
        "checkpoint_every": 1,
    },
}

# Of two arms, two trials each; it trains nothing.
SEARCH = {
    "seeds": [3],
    "arms": {"ppo": {}, "dfpo": {"coef.risk": 0.2}},
    "noises": ["flip=1", "none"],
    "tuned": "found.yaml",
    "base": {
        "steps": 0,
        "rollout": {"prompts": 3, "samples": 2, "max_new_tokens": 30},
        "eval.prompts": 1,
    },
    "tune": {
        "seeds": [10],
        "prompt_seed": 20,
        "prompts": 6,
        "arms": {
            "ppo": {"policy.learning_rate": [1e-4, 1e-3]},
            "dfpo": {"policy.learning_rate": [1e-3], "coef.risk": [0.0, 0.1]},
        },
    },
}


def write(folder, **changes):
    """A recipe whose output is beside it."""
    path = folder / "grid.yaml"
    path.write_text(
        yaml.safe_dump(RECIPE | {"output": str(folder / "out")} | changes, sort_keys=False)
    )
    return str(path)
