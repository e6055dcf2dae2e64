"""How well predicted distributions match the returns that were played: functions of arrays."""

from __future__ import annotations

import numpy as np

from dfpo.study.probe.replays import Probe

TAIL = 0.25  # of either CVaR that is scored
# Errors of a change of value from which on its token is decided: few tokens turn, so at two the
# false alarms outnumber them.
DECIDED = 3
TURN = 0.3  # change of the true value, in ranges of the reward, from which on a token decides
RESAMPLES = 1000
# key -> what it is, in the order of the report
SCORES = {
    "explained_variance": "share of the true value's variance over states that the mean explains",
    "bias": "mean predicted return less the true value, clean",
    "noisy_bias": "the same against the value under the noisy reward, which was taught",
    "w1": "Wasserstein-1 distance from the predicted distribution to that of the noisy return",
    "w1_floor": "what a perfect distribution would score, since plays are finite",
    "crps_skill": "1 - CRPS / CRPS of one distribution for all states; noisy return",
    "cvar_error": f"size of the error in the mean of the lowest {TAIL:.0%} and of the highest "
    f"{TAIL:.0%} of noisy returns",
    "cvar_floor": "what a perfect distribution would score, since plays are finite",
    "sign_agreement": "advantages of the true sign, on decided tokens",
    "sign_ceiling": "what the true advantages would score, since plays are finite",
    "decided": "number of tokens whose true advantage is not 0, by one half of the plays",
    "turn_share": "share of the size of all advantages that lies on deciding tokens",
    "turn_chance": "share of tokens that decide",
}


def critic_scores(
    probe: Probe, reward_range: float
) -> dict[str, tuple[float | None, float | None, float | None]]:
    """Each of SCORES with its 95 % interval, by a bootstrap over answers, whose states depend on
    each other. None where nothing decides it."""
    terms = state_terms(probe, reward_range)
    whole = summarise(terms)
    members = [np.flatnonzero(probe.answer == a) for a in range(len(probe.domains))]
    rng = np.random.default_rng(0)
    drawn = []

    for _ in range(RESAMPLES):
        chosen = rng.integers(len(members), size=len(members))
        rows = np.concatenate([members[a] for a in chosen])
        drawn.append(summarise({key: value[rows] for key, value in terms.items()}))

    named = {}
    for key in SCORES:
        values = np.array([summary[key] for summary in drawn])
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
        named[key] = tuple(float(x) if np.isfinite(x) else None for x in (whole[key], low, high))

    return named


def state_terms(probe: Probe, reward_range: float) -> dict[str, np.ndarray]:
    """Per state [N], what the scores are sums of."""
    predicted, plays = probe.quantiles.mean(1), probe.clean.shape[1]
    noisy = np.where(np.isfinite(probe.noisy), probe.noisy, probe.clean)
    half = plays // 2
    first, second = slice(half), slice(half, 2 * half)
    change, error = _change(probe, slice(None))
    # One half of the plays decides, the other gives the sign: a token that chance chose would
    # bring its sign along.
    moved, moved_error = _change(probe, first)
    sign = np.sign(_change(probe, second)[0])

    return {
        "predicted": predicted,
        "true": probe.clean.mean(1),
        "noisy": noisy.mean(1),
        "w1": wasserstein(probe.quantiles, noisy),
        # Two halves differ by twice the error that all plays leave in one.
        "w1_floor": wasserstein(noisy[:, first], noisy[:, second]) / 2,
        "crps": crps(probe.quantiles, noisy),
        "crps_pooled": crps(np.broadcast_to(_grid(noisy), (len(noisy), 64)), noisy),
        "cvar": _tail_error(probe.quantiles, noisy),
        "cvar_floor": _tail_error(noisy[:, first], noisy[:, second]) / 2,
        "decided": np.abs(moved) > DECIDED * np.maximum(moved_error, 1e-12),
        "agree": (1 + np.sign(probe.advantages) * sign).mean(0) / 2,
        "halves_agree": (1 + np.sign(moved) * sign) / 2,
        "size": np.abs(probe.advantages).mean(0),
        "turn": (np.abs(change) >= TURN * reward_range) & (np.abs(change) > 2 * error),
    }


def summarise(terms: dict[str, np.ndarray]) -> dict[str, float]:
    """SCORES of some states."""
    true, predicted, size = terms["true"], terms["predicted"], terms["size"]
    decided, turn = terms["decided"], terms["turn"]
    return {
        "explained_variance": 1 - _ratio((true - predicted).var(), true.var()),
        "bias": float((predicted - true).mean()),
        "noisy_bias": float((predicted - terms["noisy"]).mean()),
        "w1": float(terms["w1"].mean()),
        "w1_floor": float(terms["w1_floor"].mean()),
        "crps_skill": 1 - _ratio(terms["crps"].mean(), terms["crps_pooled"].mean()),
        "cvar_error": float(terms["cvar"].mean()),
        "cvar_floor": float(terms["cvar_floor"].mean()),
        "sign_agreement": _ratio(terms["agree"][decided].sum(), decided.sum()),
        "sign_ceiling": _ratio(terms["halves_agree"][decided].sum(), decided.sum()),
        "decided": float(decided.sum()),
        "turn_share": _ratio(size[turn].sum(), size.sum()),
        "turn_chance": float(turn.mean()),
    }


def wasserstein(first: np.ndarray, second: np.ndarray) -> np.ndarray:  # [N, Q], [N, M] -> [N]
    """W1 = int |F(x) - G(x)| dx between the distributions of two sets of equally likely values."""
    points = np.sort(np.concatenate([first, second], 1), 1)
    gap = np.abs(_distribution(first, points) - _distribution(second, points))
    return (gap[:, :-1] * np.diff(points, axis=1)).sum(1)


def crps(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:  # [N, Q], [N, M] -> [N]
    """Mean over observations y of E|X - y| - E|X - X'| / 2, X and X' drawn from the prediction.

    Source: Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation".
    """
    error = np.abs(predicted[:, :, None] - observed[:, None, :]).mean((1, 2))
    ordered, count = np.sort(predicted, 1), predicted.shape[1]
    # sum over pairs |x_i - x_j| = 2 sum_i (2 i - count + 1) x_(i)
    pairs = 2 * (ordered * (2 * np.arange(count) - count + 1)).sum(1) / count**2
    return error - pairs / 2


def cvar(values: np.ndarray, tail: float) -> np.ndarray:  # [N, M] -> [N]
    """Mean of the lowest fraction ``tail``, the value on its edge in part."""
    count = values.shape[1]
    weight = np.clip(tail * count - np.arange(count), 0, 1)
    return (np.sort(values, 1) * weight).sum(1) / (tail * count)


def _tail_error(first: np.ndarray, second: np.ndarray) -> np.ndarray:  # [N, Q], [N, M] -> [N]
    """Size of the difference of CVaR, mean over both tails."""
    tails = (np.abs(cvar(s * first, TAIL) - cvar(s * second, TAIL)) for s in (1, -1))
    return sum(tails) / 2


def _change(probe: Probe, plays: slice) -> tuple[np.ndarray, np.ndarray]:  # [N], [N]
    """Of the true value at each token, by some of the plays, and its standard error."""
    before, after = probe.clean[:, plays], probe.after[:, plays]
    error = np.sqrt((before.var(1) + after.var(1)) / before.shape[1])
    return after.mean(1) - before.mean(1), error


def _distribution(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Share of each row's values at or below each of its points."""
    return np.stack(
        [
            np.searchsorted(np.sort(v), p, side="right") / len(v)
            for v, p in zip(values, points, strict=True)
        ]
    )


def _grid(values: np.ndarray) -> np.ndarray:  # [N, M] -> [64]
    """Midpoint quantiles of all values together."""
    return np.quantile(values, (np.arange(64) + 0.5) / 64)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
