"""A grid of four small runs."""

import yaml

STEPS = 6
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


def write(folder, **changes):
    """A recipe whose output is beside it."""
    path = folder / "grid.yaml"
    path.write_text(
        yaml.safe_dump(RECIPE | {"output": str(folder / "out")} | changes, sort_keys=False)
    )
    return str(path)
