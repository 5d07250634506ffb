"""What a sweep says: a parabola in log learning rate, a power law with an offset, effects of what was drawn at random.

Each fit gives its numbers with an interval, or refuses in a sentence where the data can't carry them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wavespace.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

Float = NDArray[np.float64]

LEVEL = 0.95
"""Share of intervals that are to hold the truth."""

DRAWS, LAWS = 2000, 1000
"""Draws from which intervals are read, and of power laws, each of which is fitted."""


class CantFit(UserError):
    """The data can't carry the fit; the message says why, and what would."""


class Interval(NamedTuple):
    """An estimate, and the bounds that hold the truth in `LEVEL` of cases."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def _interval(value: float, draws: Float) -> Interval:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))


def _points(x: ArrayLike, y: ArrayLike, what: str) -> tuple[Float, Float]:
    """Pairs that are finite, `x` above 0, by ascending x."""
    xs, ys = (np.asarray(values, dtype=float).ravel() for values in (x, y))
    if len(xs) != len(ys):
        raise ValueError(f"{len(xs)} settings and {len(ys)} losses; there must be one for one")
    kept = np.isfinite(xs) & np.isfinite(ys)
    if np.any(xs[kept] <= 0):
        raise CantFit(f"{what} is 0 or less in some runs, and has no logarithm there")
    order = np.argsort(xs[kept], kind="stable")
    return xs[kept][order], ys[kept][order]


def _noisy(solution: Float, covariance: Any, freedom: int, rng: np.random.Generator) -> Float:
    """Draws `(DRAWS, P)` about a least-squares solution: a parametric bootstrap whose noise level is drawn too.

    With the level fixed, intervals of few points would be as narrow as if the scatter were known.
    """
    root = np.linalg.cholesky(covariance + 1e-300 * np.eye(len(covariance)))
    scale = np.sqrt(freedom / rng.chisquare(freedom, size=(DRAWS, 1)))
    return solution + scale * (rng.normal(size=(DRAWS, len(solution))) @ root.T)


# --- A parabola ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parabola:
    """`y = best + curvature * log10(x / optimum)**2`.

    Attributes:
        optimum: where it is least.
        best: its least value.
        curvature: what a factor of ten away from the optimum costs.
        noise: standard deviation of the points about it.
        points: how many it is of.
        span: the lowest and highest setting of these.
        draws: coefficients `(DRAWS, 3)` of the intervals, of 1, u, u**2 with u = log10(x / centre).
        centre: see `draws`.
    """

    optimum: Interval
    best: Interval
    curvature: Interval
    noise: float
    points: int
    span: tuple[float, float]
    draws: Float
    centre: float

    def __call__(self, x: ArrayLike) -> Float:
        """The parabola at settings `(K,)`."""
        return self.best.value + self.curvature.value * np.log10(np.asarray(x) / self.optimum.value) ** 2

    def band(self, x: ArrayLike) -> tuple[Float, Float]:
        """Lower and upper bound `(K,)` of the curve at settings `(K,)`."""
        u = np.log10(np.asarray(x, dtype=float) / self.centre)
        curves = self.draws @ np.stack([np.ones_like(u), u, u**2])  # (DRAWS, K)
        low, high = np.quantile(curves, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return low, high

    def __str__(self) -> str:
        return (
            f"least at {self.optimum}, where it is {self.best}; a factor of ten away costs {self.curvature.value:.3g}"
        )


def parabola(x: ArrayLike, y: ArrayLike, *, name: str = "the setting", within: float | None = None) -> Parabola:
    """Fit a loss against the logarithm of a setting, a learning rate above all, by least squares.

    The interval of the optimum is that of the ratio of two noisy coefficients (Fieller, 1954), by bootstrap.

    Args:
        x: settings `(K,)`, above 0; seeds of one setting are points of their own.
        y: losses `(K,)`, less is better; what is not finite is left out.
        name: of the setting, for messages.
        within: take only settings that are at most this factor from that of the least mean loss.

    Raises:
        CantFit: there are fewer than four settings or five runs, or the data shows no minimum inside what was tried.
    """
    xs, ys = _points(x, y, name)
    if within and len(xs):
        values, of = np.unique(xs, return_inverse=True)
        least = values[np.argmin(np.bincount(of, ys) / np.bincount(of))]
        near = np.abs(np.log(xs / least)) <= np.log(within) + 1e-9
        xs, ys = xs[near], ys[near]
    values, of = np.unique(xs, return_inverse=True)
    if len(values) < 4 or len(xs) < 5:
        raise CantFit(
            f"a parabola takes five runs at four values of {name} or more, and there are {len(xs)} at {len(values)}"
        )
    means = np.bincount(of, ys) / np.bincount(of)
    place = int(np.argmin(means))
    if place in (0, len(values) - 1):
        side, beyond = ("lowest", "lower") if place == 0 else ("highest", "higher")
        raise CantFit(
            f"no interior minimum: the best runs have the {side} {name} that was tried, {values[place]:g}; "
            f"try {beyond} ones"
        )
    centre = float(np.exp(np.log(values).mean()))
    u = np.log10(xs / centre)
    design = np.stack([np.ones_like(u), u, u**2], axis=1)  # (K, 3)
    solution, *_ = np.linalg.lstsq(design, ys, rcond=None)
    freedom = len(xs) - 3
    noise = float(np.sqrt(np.sum((ys - design @ solution) ** 2) / freedom))
    covariance = noise**2 * np.linalg.inv(design.T @ design)
    draws = _noisy(solution, covariance, freedom, np.random.default_rng(0))
    convex = float(np.mean(draws[:, 2] > 0))
    optimum = -solution[1] / (2 * solution[2]) if solution[2] > 0 else np.inf
    if convex < (1 + LEVEL) / 2 or solution[2] <= 0:
        raise CantFit(
            f"no interior minimum: {name} from {values[0]:g} to {values[-1]:g} makes no valley that stands out from "
            f"the scatter of {noise:.2g}; try a wider range, or more seeds"
        )
    if not u.min() < optimum < u.max():
        raise CantFit(
            f"no interior minimum: the parabola is least at {centre * 10**optimum:.3g}, outside of the {name} that was "
            f"tried, {values[0]:g} to {values[-1]:g}; try a wider range"
        )
    draws = draws[draws[:, 2] > 0]
    where = centre * 10 ** np.clip(-draws[:, 1] / (2 * draws[:, 2]), -300, 300)
    least_of = draws[:, 0] - draws[:, 1] ** 2 / (4 * draws[:, 2])
    return Parabola(
        optimum=_interval(centre * 10**optimum, where),
        best=_interval(solution[0] - solution[1] ** 2 / (4 * solution[2]), least_of),
        curvature=_interval(solution[2], draws[:, 2]),
        noise=noise,
        points=len(xs),
        span=(float(values[0]), float(values[-1])),
        draws=draws,
        centre=centre,
    )


# --- A power law --------------------------------------------------------------------------------------------

EXPONENTS = np.geomspace(0.01, 5, 160)
GOLDEN = (5**0.5 - 1) / 2

HUBER = 1.5
"""Scatters by which a point may be off before it counts less."""


@dataclass(frozen=True)
class PowerLaw:
    """`L = offset + scale * x**-exponent`, held against a straight line in log-log, `offset = 0`.

    Attributes:
        offset: what no size removes; 0 where the line does as well.
        scale: of what a size removes.
        exponent: how fast.
        noise: standard deviation of log L about it, robust.
        points: how many it is of.
        span: the least and largest size of these.
        gain: by how much Akaike's criterion, for few points, prefers the offset to the straight line; above 2 it is
            supported, below it the line says as much.
        line: exponent of the straight line.
        draws: `(LAWS, 3)` of offset, log scale, exponent.
        unit: sizes are in it: their geometric mean.
    """

    offset: Interval
    scale: Interval
    exponent: Interval
    noise: float
    points: int
    span: tuple[float, float]
    gain: float
    line: Interval
    draws: Float
    unit: float

    @property
    def bends(self) -> bool:
        """Whether the data supports the offset."""
        return self.gain > 2

    def __call__(self, x: ArrayLike) -> Float:
        """The law at sizes `(K,)`."""
        return self.offset.value + self.scale.value * np.asarray(x, dtype=float) ** -self.exponent.value

    def band(self, x: ArrayLike) -> tuple[Float, Float]:
        """Lower and upper bound `(K,)` of the curve at sizes `(K,)`."""
        u = np.asarray(x, dtype=float) / self.unit
        offset, scale, exponent = (column[:, None] for column in self.draws.T)
        low, high = np.quantile(offset + np.exp(scale) * u**-exponent, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return low, high

    def __str__(self) -> str:
        law = f"L = E + a x^-b with E = {self.offset}, b = {self.exponent}"
        if self.bends:
            return f"{law}; the data supports the offset over a straight line (AICc better by {self.gain:.1f})"
        return f"{law}; a straight line of slope -{self.line.value:.3g} says as much (AICc {self.gain:+.1f})"


def power_law(x: ArrayLike, y: ArrayLike, *, name: str = "the size") -> PowerLaw:
    """Fit losses against a size (parameters, data, compute) by a power law with an offset.

    Residuals are of log L, with Huber's loss, as in Hoffmann et al., "Training compute-optimal large language models"
    (2022). For each exponent the two other numbers follow in closed form to first order, so that the whole fit is
    a search along one line, with no start to choose; scipy polishes it. Intervals are a parametric bootstrap whose
    noise level is drawn too.

    Args:
        x: sizes `(K,)`, above 0.
        y: losses `(K,)`, above 0; what is not finite is left out.
        name: of the size, for messages.

    Raises:
        CantFit: fewer than five sizes, less than a factor of four between them, losses that are not above 0 or do not
            fall, or an exponent that can't be told.
    """
    xs, ys = _points(x, y, name)
    sizes = np.unique(xs)
    if len(sizes) < 5:
        raise CantFit(f"a power law with an offset takes five values of {name} or more, and there are {len(sizes)}")
    if sizes[-1] < 4 * sizes[0]:
        raise CantFit(
            f"{name} goes from {sizes[0]:g} to {sizes[-1]:g} only; a power law takes a factor of four or more"
        )
    if np.any(ys <= 0):
        raise CantFit("some losses are 0 or less, and a power law is fitted to their logarithms")
    unit = float(np.exp(np.log(xs).mean()))
    u, target = xs / unit, np.log(ys)

    slope, weight = _line(u, target)
    if slope[1] >= 0:
        raise CantFit(f"the loss does not fall as {name} grows, so there is no power law to fit")
    found, noise, weights = _law(u, target)
    freedom = len(xs) - 3
    rng = np.random.default_rng(0)
    spread = noise * np.sqrt(freedom / rng.chisquare(freedom, size=(LAWS, 1)))
    fitted = np.log(_curve(found, u))  # (K,)
    draws = _laws(u, fitted + spread * rng.normal(size=(LAWS, len(u))), weights)
    edge = np.mean((draws[:, 2] <= EXPONENTS[0] * 1.01) | (draws[:, 2] >= EXPONENTS[-1] * 0.99))
    if edge > 1 - LEVEL:
        raise CantFit(
            f"the exponent can't be told from these {len(xs)} runs: {name} spans too little for a scatter of "
            f"{100 * noise:.2g}% in the loss; try more sizes, further apart, or more seeds"
        )
    # Both by the same loss: Huber's, at the scatter of the richer law.
    losses = [_huber(target - (slope[0] + slope[1] * np.log(u)), noise), _huber(target - fitted, noise)]
    line = _line_draws(u, target, weight, rng)
    return PowerLaw(
        offset=_interval(found[0], draws[:, 0]),
        scale=_interval(np.exp(found[1]) * unit ** found[2], np.exp(draws[:, 1]) * unit ** draws[:, 2]),
        exponent=_interval(found[2], draws[:, 2]),
        noise=noise,
        points=len(xs),
        span=(float(sizes[0]), float(sizes[-1])),
        gain=_aicc(losses[0], 2, len(xs)) - _aicc(losses[1], 3, len(xs)),
        line=_interval(-slope[1], -line),
        draws=draws,
        unit=unit,
    )


def _curve(law: Float, u: Float) -> Float:
    """Losses `(K,)` of offset, log scale and exponent at sizes in units."""
    return law[0] + np.exp(law[1]) * u ** -law[2]


def _huber(residual: Float, noise: float) -> float:
    """Mean of Huber's loss, doubled so that it is the mean square of small residuals, in squares of the noise."""
    size = np.abs(residual) / max(noise, 1e-12)
    return float(np.mean(np.where(size <= HUBER, size**2, 2 * HUBER * size - HUBER**2)))


def _aicc(loss: float, parameters: int, points: int) -> float:
    """Akaike's criterion for few points, of a mean loss; the scatter is a parameter too."""
    k = parameters + 1
    return points * np.log(max(loss, 1e-300)) + 2 * k + 2 * k * (k + 1) / max(points - k - 1, 1)


def _scatter(residual: Float, parameters: int) -> float:
    """Standard deviation of residuals by Huber's weights, with what the fit has used up given back."""
    size = float(np.median(np.abs(residual))) / 0.6745
    weight = np.minimum(1, 3 * max(size, 1e-12) / np.maximum(np.abs(residual), 1e-300))
    return max(float(np.sqrt(np.sum((weight * residual) ** 2) / max(1, len(residual) - parameters))), 1e-9)


def _line(u: Float, target: Float) -> tuple[Float, Float]:
    """Intercept and slope of log L against log size, by iterated Huber weights, and these `(K,)`."""
    design = np.stack([np.ones_like(u), np.log(u)], axis=1)
    weight = np.ones_like(u)
    for _ in range(20):
        root = np.sqrt(weight)
        solution, *_ = np.linalg.lstsq(design * root[:, None], target * root, rcond=None)
        residual = target - design @ solution
        weight = np.minimum(1, HUBER * _scatter(residual, 2) / np.maximum(np.abs(residual), 1e-300))
    return solution, weight


def _line_draws(u: Float, target: Float, weight: Float, rng: np.random.Generator) -> Float:
    """Draws `(DRAWS,)` of the straight line's slope."""
    design = np.stack([np.ones_like(u), np.log(u)], axis=1)
    inverse = np.linalg.inv(design.T @ (design * weight[:, None]))
    solution = inverse @ (design.T @ (weight * target))
    noise = _scatter(target - design @ solution, 2)
    return _noisy(solution, noise**2 * inverse, len(u) - 2, rng)[:, 1]


def _law(u: Float, target: Float) -> tuple[Float, float, Float]:
    """Offset, log scale and exponent; the scatter; Huber's weights `(K,)`."""
    from scipy.optimize import least_squares

    weight = np.ones_like(u)
    for _ in range(8):
        found = _laws(u, target[None], weight)[0]
        residual = target - np.log(_curve(found, u))
        noise = _scatter(residual, 3)
        weight = np.minimum(1, HUBER * noise / np.maximum(np.abs(residual), 1e-300))
    bounds = ([0, -np.inf, EXPONENTS[0]], [np.inf, np.inf, EXPONENTS[-1]])
    start = np.clip(found, [0, -700, EXPONENTS[0]], [np.inf, 700, EXPONENTS[-1]])
    polished = least_squares(
        lambda law: np.log(_curve(law, u)) - target,
        start,
        bounds=bounds,
        loss="huber",
        f_scale=HUBER * noise,
        x_scale="jac",
    )
    found = polished.x
    found[0] = found[0] if found[0] > 1e-9 * np.exp(target.min()) else 0.0  # the solver stays inside its bounds
    residual = target - np.log(_curve(found, u))
    noise = _scatter(residual, 3)
    return found, noise, np.minimum(1, HUBER * noise / np.maximum(np.abs(residual), 1e-300))


def _laws(u: Float, targets: Float, weight: Float) -> Float:
    """Offset, log scale and exponent `(D, 3)` of many sets of log losses `(D, K)` at once.

    For small residuals `log(law) - log(L) = law / L - 1`, which is linear in offset and scale; along exponents the
    least sum of squares is found on a grid, then between neighbours.
    """
    powers = u[:, None] ** -EXPONENTS  # (K, E)
    inverse = np.exp(-targets)  # (D, K)
    w1, w2 = weight * inverse, weight * inverse**2
    w, t0, s0 = float(weight.sum()), w1.sum(1), w2.sum(1)
    coarse = _errors(w, t0[:, None], s0[:, None], w1 @ powers, w2 @ powers, w2 @ powers**2)[0]  # (D, E)
    best = np.clip(np.argmin(coarse, axis=1), 1, len(EXPONENTS) - 2)

    def at(logarithm: Float) -> tuple[Float, Float, Float]:
        exact = u ** -np.exp(logarithm)[:, None]  # (D, K)
        return _errors(w, t0, s0, (w1 * exact).sum(1), (w2 * exact).sum(1), (w2 * exact**2).sum(1))

    low, high = np.log(EXPONENTS[best - 1]), np.log(EXPONENTS[best + 1])  # (D,)
    for _ in range(24):  # golden section, as the error has a kink where the offset reaches 0
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        lower = at(left)[0] < at(right)[0]
        low, high = np.where(lower, low, left), np.where(lower, right, high)
    _, offset, scale = at((low + high) / 2)
    return np.stack([offset, np.log(scale), np.exp((low + high) / 2)], axis=1)


def _errors(w: Any, t0: Float, s0: Float, t1: Float, s1: Float, s2: Float) -> tuple[Float, Float, Float]:
    """Least `sum w (law / L - 1)**2` with its offset >= 0 and its scale, from sums over points.

    `t0` and `t1` are sums of w / L and w p / L, with p the power of the size; `s0`, `s1` and `s2` of w / L², w p / L²
    and w p² / L².
    """
    determinant = s0 * s2 - s1**2
    solvable = determinant > 1e-12 * s0 * s2
    offset = np.where(solvable, (t0 * s2 - t1 * s1) / np.where(solvable, determinant, 1.0), 0.0).clip(min=0)
    scale = np.maximum((t1 - offset * s1) / s2, 1e-300)
    error = w - 2 * (offset * t0 + scale * t1) + offset**2 * s0 + 2 * offset * scale * s1 + scale**2 * s2
    return error, offset, scale


# --- Effects of what was drawn at random --------------------------------------------------------------------

TREES, FOLDS, SHUFFLES, MOST_VARYING = 100, 5, 4, 20


@dataclass(frozen=True)
class Effect:
    """What one setting does to the loss.

    Attributes:
        key: the setting.
        rank: Spearman's correlation with the loss, and its interval; None of a setting without an order.
        p: the chance of a rank correlation as large if there were none.
        importance: share of the loss's variance that the forest loses on held-out runs when the setting is shuffled,
            halved: for effects that add up, the share that is this setting's. None where the forest predicts nothing.
    """

    key: str
    rank: Interval | None
    p: float | None
    importance: float | None


@dataclass(frozen=True)
class Effects:
    """Main effects, the strongest first, and interactions.

    Attributes:
        effects: a setting each.
        interactions: pairs of settings with the share of variance that is of neither alone, the strongest first.
        r2: share of the variance of held-out runs that the forest predicts.
        note: why there are no importances, or None.
        runs: how many it is of.
    """

    effects: list[Effect]
    interactions: list[tuple[str, str, float]]
    r2: float
    note: str | None
    runs: int


def effects(settings: pd.DataFrame, loss: ArrayLike) -> Effects:
    """Main effects and interactions of a random search: rank correlations, and a small forest's permutation
    importances.

    The forest predicts runs that it was not taught on. Shuffling a setting among them costs twice the variance that is
    the setting's own or shared (Breiman, 2001); shuffling two together costs, of what both share, only once, so
    `(I_i + I_j - I_ij)` tells their interaction.

    Args:
        settings: a column a setting, a row a run; text and truths are taken as kinds, numbers in their order.
        loss: `(K,)`, less is better.

    Raises:
        CantFit: fewer than ten runs with a finite loss, or nothing that differs.
    """
    import pandas as pd
    from scipy.stats import spearmanr
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    target = np.asarray(loss, dtype=float)
    kept = np.isfinite(target)
    target, frame = target[kept], settings[kept]
    varying = [key for key in frame if frame[key].astype("string").fillna("").nunique() > 1]
    if len(target) < 10:
        raise CantFit(f"effects take ten finished runs or more, and there are {len(target)}")
    if not varying:
        raise CantFit("no setting differs between these runs")
    if len(varying) > MOST_VARYING:
        raise CantFit(f"{len(varying)} settings differ between these runs, and {MOST_VARYING} at most are told apart")
    if np.ptp(target) == 0:
        raise CantFit("all runs have the same loss")
    ordered = [
        key
        for key in varying
        if pd.api.types.is_numeric_dtype(frame[key]) and not pd.api.types.is_bool_dtype(frame[key])
    ]
    columns = np.stack([_numbers(frame[key], key in ordered) for key in varying], axis=1)  # (K, S)

    rng = np.random.default_rng(0)
    missing = np.full((FOLDS, len(varying)), np.nan)
    pairs = list(combinations(range(len(varying)), 2))
    shared = np.full((FOLDS, len(pairs)), np.nan)
    predicted = np.empty_like(target)
    for fold, (taught, held) in enumerate(KFold(FOLDS, shuffle=True, random_state=0).split(columns)):
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, max_features=0.7, random_state=0, n_jobs=1)
        forest.fit(columns[taught], target[taught])
        predicted[held] = forest.predict(columns[held])
        base = np.mean((target[held] - predicted[held]) ** 2)

        def cost(which: list[int], held: Any = held, forest: Any = forest, base: Any = base) -> float:
            """Rise of the mean square error as settings are shuffled together."""
            changed = np.tile(columns[held], (SHUFFLES, 1))  # (SHUFFLES * H, S)
            for part in range(SHUFFLES):
                order = rng.permutation(len(held))
                rows = slice(part * len(held), (part + 1) * len(held))
                changed[rows, which] = columns[held][order][:, which]
            return float(np.mean((np.tile(target[held], SHUFFLES) - forest.predict(changed)) ** 2) - base)

        missing[fold] = [cost([i]) for i in range(len(varying))]
        if len(pairs) <= 28:  # of eight settings
            shared[fold] = [missing[fold][i] + missing[fold][j] - cost([i, j]) for i, j in pairs]
    variance = float(target.var())
    r2 = 1 - float(np.mean((target - predicted) ** 2)) / variance
    weak = r2 < 0.1
    importance = missing.mean(axis=0) / (2 * variance)

    found = []
    for index, key in enumerate(varying):
        rank, p = None, None
        if key in ordered:
            known = np.isfinite(columns[:, index])
            if known.sum() > 3 and np.ptp(columns[known, index]) > 0:
                result = spearmanr(columns[known, index], target[known])
                # Fisher's transform, with the variance of ranks (Bonett and Wright, 2000).
                half = 1.96 * np.sqrt((1 + result.statistic**2 / 2) / max(known.sum() - 3, 1))
                centre = np.arctanh(np.clip(result.statistic, -0.999999, 0.999999))
                rank = Interval(float(result.statistic), *map(float, np.tanh([centre - half, centre + half])))
                p = float(result.pvalue)
        found.append(Effect(str(key), rank, p, None if weak else float(importance[index])))
    found.sort(key=lambda effect: -(effect.importance or abs(effect.rank.value if effect.rank else 0)))
    interactions = [
        (str(varying[i]), str(varying[j]), float(value))
        for (i, j), value in zip(pairs, shared.mean(0) / (2 * variance))
    ]
    interactions = [] if weak else sorted((x for x in interactions if np.isfinite(x[2])), key=lambda x: -x[2])
    note = (
        f"the forest predicts runs that it was not taught on no better than their mean does (R² {r2:.2f}), "
        "so it names no importances"
    )
    return Effects(found, interactions, r2, note if weak else None, len(target))


def _numbers(column: pd.Series, ordered: bool) -> Float:
    """A setting as numbers, kinds by their place in the alphabet."""
    import pandas as pd

    if not ordered:
        return column.astype("string").fillna("").factorize(sort=True)[0].astype(float)
    return pd.to_numeric(column, errors="coerce").astype("Float64").to_numpy(dtype=float, na_value=np.nan)
