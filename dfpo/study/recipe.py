"""A comparison's recipe, and the cells it makes: arms x noises x domains x seeds over one base.

Every axis is a set of settings of ``dfpo.config``; what an arm, a noise or a domain is called is
the recipe's business. A cell is one run of the trainer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfpo.config import Config, ConfigError, build_config
from dfpo.config.build import flatten, read_yaml, suggestion
from dfpo.config.rules import only_read

Settings = dict[str, Any]  # dotted
KEYS = (
    "output", "baseline", "seeds", "base", "arms", "noises", "domains", "tuned", "tune",
)  # fmt: skip
# What an entry that is a bare name sets.
AXES = {"arms": "algorithm", "noises": "noise", "domains": "task"}
# A cell is watched through its metrics; it needs no plots of its own and seldom a checkpoint.
QUIET = {"plots": False, "eval.examples": 0, "threads": 1, "checkpoint_every": 10}
OWNED = ("seed", "name", "runs_dir")  # the grid's, in no recipe
NAME = re.compile(r"[\w.,:=+-]+")


@dataclass(frozen=True)
class Search:
    """How ``dfpo tune`` chooses: every arm tries as many settings, on seeds and prompts apart."""

    seeds: tuple[int, ...]
    prompts: int  # held-out training prompts whose noisy rewards choose
    prompt_seed: int
    noises: tuple[str, ...]
    domains: tuple[str, ...]
    arms: dict[str, dict[str, list[Any]]]  # arm -> setting -> values to try
    together: tuple[str, ...] = ()  # settings whose value is one for all arms that try them


@dataclass(frozen=True)
class Recipe:
    """A checked recipe, and the flags that hold for every cell."""

    output: Path
    baseline: str
    seeds: tuple[int, ...]
    base: Settings
    arms: dict[str, Settings]
    noises: dict[str, Settings]
    domains: dict[str, Settings]
    flags: Settings
    tuned: Path | None = None
    tune: Search | None = None


@dataclass(frozen=True)
class Validation:
    """Prompts on whose noisy rewards a trial is judged."""

    prompts: int
    seed: int


@dataclass(frozen=True, eq=False)
class Cell:
    """One run: where it stands in the grid, its settings, and its directory."""

    domain: str
    noise: str
    arm: str
    seed: int
    settings: Settings
    varied: Settings  # those that are not the base's
    steps: int
    run: Path
    validation: Validation | None = None

    @property
    def label(self) -> str:
        return f"{self.domain} {self.noise} {self.arm} seed {self.seed}"

    @property
    def base(self) -> Settings:
        """The settings that are the base's, without the seed."""
        return {k: v for k, v in self.settings.items() if k not in self.varied and k != "seed"}

    @property
    def place(self) -> tuple[str, str, str, int]:
        """Where it stands in the grid."""
        return self.domain, self.noise, self.arm, self.seed

    @property
    def result(self) -> Path:
        """The file that says that the cell is done, and what came of it."""
        return self.run.with_suffix(".result.json")


def load_recipe(path: Path, flags: Settings) -> Recipe:
    """The recipe in a YAML file under ``flags``; ConfigError says what is wrong with it."""
    tree = read_yaml("recipe", path)
    try:
        return parse_recipe(tree, path.parent, flags)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_recipe(tree: Mapping[str, Any], folder: Path, flags: Settings) -> Recipe:
    """``folder`` is what the recipe's ``tuned`` file stands beside."""
    _check_keys("", tree, KEYS)
    axes = {axis: _entries(axis, tree.get(axis)) for axis in AXES}
    arms = axes["arms"]
    if not arms:
        raise ConfigError("arms: is not given, must name at least one")
    baseline = tree.get("baseline", "ppo" if "ppo" in arms else next(iter(arms)))
    if not isinstance(baseline, str) or baseline not in arms:
        raise ConfigError(f"baseline: is {baseline!r}, must be one of the arms {', '.join(arms)}")
    output, tuned = tree.get("output"), tree.get("tuned")

    for name, value in (("output", output), ("tuned", tuned)):
        if value is not None and (not isinstance(value, str) or not value):
            raise ConfigError(f"{name}: is {value!r}, must be a path")

    if output is None:
        raise ConfigError("output: is not given, must be the directory to write into")
    seeds = _seeds("seeds", tree.get("seeds", 5))
    base = _settings("base", tree.get("base", {}))
    common = base | flags
    noises = axes["noises"] or {str(common.get("noise", Config.noise)): {}}
    domains = axes["domains"] or {_default_domain(common): {}}
    search = _search(tree["tune"], seeds, arms, noises, domains) if "tune" in tree else None

    return Recipe(
        Path(output), baseline, seeds, base, arms, noises, domains, flags,
        folder / tuned if tuned else None, search,
    )  # fmt: skip


def _default_domain(common: Settings) -> str:
    """What the one domain is called where a recipe names none."""
    data = common.get("data")
    return str(common.get("task") or (Path(data).stem if data else "suite"))


def grid(recipe: Recipe, tuned: Mapping[str, Settings]) -> list[Cell]:
    """All cells, checked; seeds outermost, so that an unfinished grid is a smaller complete one.

    Precedence, lowest first: base, the flags, what tuning found for the arm over its own settings.
    Settings of a domain, a noise or an arm stand in no other axis and in no flag.
    """
    arms = {arm: own_settings(recipe, arm) | tuned.get(arm, {}) for arm in recipe.arms}
    return [
        make_cell(
            recipe,
            arm,
            own,
            domain=domain,
            noise=noise,
            seed=seed,
            folder=recipe.output / "cells",
        )  # fmt: skip
        for seed in recipe.seeds
        for domain in recipe.domains
        for noise in recipe.noises
        for arm, own in arms.items()
    ]


def own_settings(recipe: Recipe, arm: str) -> Settings:
    """An arm's settings; one that names no algorithm, where the base does not either, is one."""
    if "algorithm" in recipe.base:
        return recipe.arms[arm]
    return {"algorithm": arm} | recipe.arms[arm]


def make_cell(
    recipe: Recipe,
    arm: str,
    own: Settings,  # the arm's
    *,
    domain: str,
    noise: str,
    seed: int,
    folder: Path,
    validation: Validation | None = None,
) -> Cell:
    """One cell, its configuration checked."""
    parts = {
        f"domain {domain}": recipe.domains[domain],
        f"noise {noise}": recipe.noises[noise],
        f"arm {arm}": own,
    }
    varied: Settings = {}

    for part, settings in parts.items():
        for name in settings.keys() & varied.keys():
            raise ConfigError(f"{part}: {name} is set by another axis too, must be by one")
        for name in settings.keys() & recipe.flags.keys():
            raise ConfigError(
                f"{name}: is given as a flag, must not be: {part} sets it, and its results would "
                "be called by what did not run"
            )
        varied |= settings

    # What the base and the flags say holds for the arms that read it.
    shared = only_read(recipe.base | recipe.flags, varied)
    settings = QUIET | shared | varied | {"seed": seed}
    if validation:
        settings["eval.prompts"] = 0

    try:
        steps = build_config(settings).steps
    except ConfigError as error:
        raise ConfigError(f"{', '.join(parts)}: {error}") from None

    run = folder / domain / noise / arm / f"seed{seed}"
    return Cell(domain, noise, arm, seed, settings, varied, steps, run, validation)


def _entries(axis: str, value: Any) -> dict[str, Settings]:
    """A mapping from names to settings; a list of names is short for the setting of that axis."""
    if value is None:
        return {}
    if isinstance(value, list):
        entries = {str(name): {AXES[axis]: name} for name in value}
        if len(entries) < len(value):
            raise ConfigError(f"{axis}: names one twice")
    elif isinstance(value, dict):
        entries = {str(name): _settings(f"{axis}.{name}", own) for name, own in value.items()}
    else:
        raise ConfigError(f"{axis}: is {value!r}, must be a list of names or a mapping of settings")

    for name in entries:
        if not NAME.fullmatch(name) or name.startswith("."):
            raise ConfigError(
                f"{axis}: is called {name!r}, which names a directory: letters, digits and .,:=+-_ "
                "alone; give it a name and its setting, NAME: {" + AXES[axis] + ": ...}"
            )

    return entries


def _settings(place: str, value: Any) -> Settings:
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{place}: is {value!r}, must be a mapping of settings")
    named = dict(flatten(value or {}))
    for name in OWNED:
        if name in named:
            raise ConfigError(f"{place}: {name} is given by the grid, must not be set")
    return named


def _seeds(place: str, value: Any) -> tuple[int, ...]:
    """A list of seeds, or how many of 0, 1, 2, ..."""
    count = isinstance(value, int) and not isinstance(value, bool)
    seeds = list(range(value)) if count else value
    wrong = not isinstance(seeds, list) or not seeds or len(set(map(str, seeds))) < len(seeds)
    if wrong or any(not isinstance(s, int) or isinstance(s, bool) or s < 0 for s in seeds):
        raise ConfigError(f"{place}: is {value!r}, must be a count or a list of different seeds")
    return tuple(seeds)


def _search(
    tree: Any,
    reported: tuple[int, ...],
    arms: dict[str, Settings],
    noises: dict[str, Settings],
    domains: dict[str, Settings],
) -> Search:
    if not isinstance(tree, dict):
        raise ConfigError(f"tune: is {tree!r}, must be a mapping")
    known = ("seeds", "prompts", "prompt_seed", "noises", "domains", "arms", "together")
    _check_keys("tune.", tree, known)
    seeds = _seeds("tune.seeds", tree.get("seeds", [1000, 1001]))
    prompt_seed, prompts = tree.get("prompt_seed", 2000), tree.get("prompts", 256)

    for name, value in (("prompt_seed", prompt_seed), ("prompts", prompts)):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
            raise ConfigError(f"tune.{name}: is {value!r}, must be an integer from 1 to 2147483647")

    shared = set(reported) & {*seeds, prompt_seed} or set(seeds) & {prompt_seed}
    if shared:
        raise ConfigError(
            f"tune: seed {min(shared)} is used twice; the seeds of tuning, of its prompts and of "
            "the comparison must differ"
        )

    chosen = {}
    for axis, known in (("noises", noises), ("domains", domains)):
        names = tree.get(axis, list(known))
        for name in names if isinstance(names, list) and names else [names]:
            if not isinstance(name, str) or name not in known:
                raise ConfigError(
                    f"tune.{axis}: is {names!r}, must be a list of {', '.join(known)}"
                )
        chosen[axis] = tuple(names) if isinstance(names, list) else (names,)

    spaces = _spaces(tree.get("arms", {}), arms)
    together = _together(tree.get("together", []), spaces)
    return Search(seeds, prompts, prompt_seed, **chosen, arms=spaces, together=together)


def _together(names: Any, spaces: dict[str, dict[str, list[Any]]]) -> tuple[str, ...]:
    """Settings that arms try, each with a value that all who try it have in common."""
    tried = {name for space in spaces.values() for name in space}
    if not isinstance(names, list) or not all(isinstance(n, str) and n in tried for n in names):
        raise ConfigError(f"tune.together: is {names!r}, must be a list of settings that arms try")
    for name in names:
        first, *others = [space[name] for space in spaces.values() if name in space]
        if not any(all(value in values for values in others) for value in first):
            raise ConfigError(f"tune.together: {name} has no value that all arms try")
    return tuple(names)


def _spaces(tree: Any, arms: dict[str, Settings]) -> dict[str, dict[str, list[Any]]]:
    """Each arm's values to try, equally many of them."""
    if not isinstance(tree, dict) or not all(isinstance(own, dict) for own in tree.values()):
        raise ConfigError(f"tune.arms: is {tree!r}, must map arms to settings and values to try")
    spaces = {arm: dict(flatten(own)) for arm, own in tree.items()}
    _check_keys("tune.arms.", spaces, tuple(arms))
    counts = {}

    for arm in arms:
        if not spaces.get(arm):
            raise ConfigError(
                f"tune.arms.{arm}: is not given, must say what to try: every arm is tuned"
            )
        counts[arm] = 1
        for name, values in spaces[arm].items():
            if not isinstance(values, list) or not values:
                raise ConfigError(
                    f"tune.arms.{arm}.{name}: is {values!r}, must be a list of values"
                )
            counts[arm] *= len(values)

    if len(set(counts.values())) > 1:
        said = ", ".join(f"{arm} {count}" for arm, count in counts.items())
        raise ConfigError(f"tune.arms: have {said} trials, must have equally many: one budget")
    return spaces


def _check_keys(prefix: str, tree: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in tree:
        if name not in known:
            hint = suggestion(str(name), dict.fromkeys(known)) or f"; one of {', '.join(known)}"
            raise ConfigError(f"{prefix}{name}: is no part of a recipe{hint}")
