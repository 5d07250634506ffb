"""Fits to the runs of a sweep: a parabola, a power law with an offset, effects of settings."""

from __future__ import annotations

from collections.abc import Callable
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
"""Share of intervals that contain the true value."""
BOUNDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)

DRAWS, LAWS = 2000, 1000
"""Bootstrap draws of a parabola, and of a power law, where each draw is a fit of its own."""


class CantFit(UserError):
    """The data doesn't determine the fit; the message says why, and what would."""


class Interval(NamedTuple):
    """An estimate, and bounds that contain the true value in `LEVEL` of cases."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        value, low, high = (f"{each:#.3g}".rstrip(".") for each in self)  # 1.00, not 1
        return f"{value} ({low} to {high})"


def _interval(value: Any, draws: Float) -> Interval:
    return Interval(float(value), *map(float, np.quantile(draws, BOUNDS)))


@dataclass(frozen=True)
class Curve:
    """A fitted curve of one setting.

    Attributes:
        found: its three parameters, at settings in `unit`.
        draws: bootstrap draws of these `(D, 3)`.
        unit: geometric mean of the settings.
        span: the lowest and highest setting.
    """

    found: Float
    draws: Float
    unit: float
    span: tuple[float, float]

    def __call__(self, x: ArrayLike) -> Float:
        """The curve at settings `(K,)`."""
        return self._values(self.found, np.log(np.asarray(x, dtype=float) / self.unit))

    def band(self, x: ArrayLike) -> tuple[Float, Float]:
        """Lower and upper bound `(K,)` of the curve at settings `(K,)`."""
        curves = self._values(self.draws.T[:, :, None], np.log(np.asarray(x, dtype=float) / self.unit))  # (D, K)
        low, high = np.quantile(curves, BOUNDS, axis=0)
        return low, high

    def _values(self, parameters: Float, logs: Float) -> Float:
        raise NotImplementedError


def _points(x: ArrayLike, y: ArrayLike, name: str) -> tuple[Float, Float]:
    """Finite pairs in ascending order of `x`, which has to be above 0."""
    xs, ys = (np.asarray(values, dtype=float).ravel() for values in (x, y))
    if len(xs) != len(ys):
        raise ValueError(f"{len(xs)} settings and {len(ys)} losses; there must be one for one")
    kept = np.isfinite(xs) & np.isfinite(ys)
    if np.any(xs[kept] <= 0):
        raise CantFit(f"{name} is 0 or less in some runs, and has no logarithm there")
    order = np.argsort(xs[kept], kind="stable")
    return xs[kept][order], ys[kept][order]


# --- A parabola ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parabola(Curve):
    """`y = best + curvature * log10(x / optimum)**2`; parameters are those of numpy's polynomials of log(x / unit).

    Attributes:
        optimum: where it is least.
        best: its least value.
        curvature: what a factor of ten away from the optimum costs.
    """

    optimum: Interval
    best: Interval
    curvature: float

    def _values(self, parameters: Float, logs: Float) -> Float:
        return np.asarray(np.polyval(parameters, logs), dtype=float)

    def __str__(self) -> str:
        costs = f"a factor of ten away costs {self.curvature:.3g}"
        return f"least at {self.optimum}, where it is {self.best}; {costs}"


def parabola(x: ArrayLike, y: ArrayLike, *, name: str = "the setting") -> Parabola:
    """Fit a loss against the logarithm of a setting, a learning rate above all, by least squares.

    Intervals are a parametric bootstrap of the coefficients by their t-distribution; that of the optimum is the
    interval of the ratio of two of them (Fieller, 1954).

    Args:
        x: settings `(K,)`, above 0; seeds of one setting are points of their own.
        y: losses `(K,)`, less is better; what is not finite is left out.
        name: of the setting, for messages.

    Raises:
        CantFit: there are fewer than four settings or five runs, or the data shows no minimum inside what was tried.
    """
    from scipy.stats import multivariate_t

    xs, ys = _points(x, y, name)
    _refuse_edges(xs, ys, name)
    unit = float(np.exp(np.log(xs).mean()))
    logs, freedom = np.log(xs / unit), len(xs) - 3
    found, covariance = np.polyfit(logs, ys, 2, cov=True)
    noise = float(np.sqrt(np.sum((ys - np.polyval(found, logs)) ** 2) / freedom))
    draws = multivariate_t(found, covariance, df=freedom, allow_singular=True, seed=0).rvs(DRAWS)
    convex = draws[:, 0] > 0
    tried = f"the {name} that was tried, {xs[0]:g} to {xs[-1]:g}"
    if convex.mean() < BOUNDS[1] or found[0] <= 0:
        raise CantFit(
            f"no interior minimum: {tried}, makes no valley that stands out from the scatter of {noise:.2g}; "
            "try a wider range, or more seeds"
        )
    draws = draws[convex]
    optimum, *places = -np.append(found[1], draws[:, 1]) / (2 * np.append(found[0], draws[:, 0]))
    if not logs[0] < optimum < logs[-1]:
        least = unit * np.exp(optimum)
        raise CantFit(
            f"no interior minimum: the parabola is least at {least:.3g}, outside of {tried}; try a wider range"
        )
    return Parabola(
        *(found, draws, unit, (float(xs[0]), float(xs[-1]))),
        optimum=_interval(unit * np.exp(optimum), unit * np.exp(np.clip(places, -600, 600))),
        best=_interval(np.polyval(found, optimum), np.polyval(draws.T, places)),
        curvature=float(found[0] * np.log(10) ** 2),
    )


def _refuse_edges(xs: Float, ys: Float, name: str) -> None:
    """Raise `CantFit` where settings are too few, or the best of them is the lowest or highest."""
    values, of = np.unique(xs, return_inverse=True)
    if len(values) < 4 or len(xs) < 5:
        raise CantFit(
            f"a parabola takes five runs at four values of {name} or more, and there are {len(xs)} at {len(values)}"
        )
    best = values[np.argmin(np.bincount(of, ys) / np.bincount(of))]
    if best in (values[0], values[-1]):
        side, beyond = ("lowest", "lower") if best == values[0] else ("highest", "higher")
        raise CantFit(
            f"no interior minimum: the best runs have the {side} {name} that was tried, {best:g}; try {beyond} ones"
        )


# --- A power law --------------------------------------------------------------------------------------------

EXPONENTS = (0.01, 5.0)
"""Exponents outside of these are as good as none: a logarithm, and a step."""

MOST_TRIED = 100
"""Evaluations of one fit, enough where the data determines the exponent."""

HUBER = 1.5
"""Standard deviations by which a point may be off before it counts less."""


@dataclass(frozen=True)
class PowerLaw(Curve):
    """`L = offset + scale * x**-exponent`, compared with a straight line in log-log, `offset = 0`.

    Parameters are log offset, log scale and exponent.

    Attributes:
        offset: what no size removes; 0 where the line fits as well.
        exponent: how fast the rest falls.
        gain: by how much Akaike's criterion for few points prefers the offset to the straight line; the data supports
            it above 2.
        slope: exponent of the straight line.
    """

    offset: Interval
    exponent: Interval
    gain: float
    slope: float

    @property
    def bends(self) -> bool:
        """Whether the data supports the offset."""
        return self.gain > 2

    def _values(self, parameters: Float, logs: Float) -> Float:
        return np.exp(_law(parameters, logs))

    def __str__(self) -> str:
        law = f"L = E + a x^-b with E = {self.offset}, b = {self.exponent}"
        if self.bends:
            return f"{law}; the data supports the offset over a straight line (AICc better by {self.gain:.1f})"
        return f"{law}; a straight line of slope -{self.slope:.3g} fits as well (AICc {self.gain:+.1f})"


def power_law(x: ArrayLike, y: ArrayLike, *, name: str = "the size") -> PowerLaw:
    """Fit losses against a size (parameters, data, compute) by a power law with an offset.

    Residuals are of log L, with Huber's loss, and the parameters are log offset, log scale and exponent, as in Hoffmann
    et al., "Training compute-optimal large language models" (2022). Intervals are a parametric bootstrap, whose noise
    level is drawn too: if it were fixed, intervals of few points would be too narrow.

    Args:
        x: sizes `(K,)`, above 0.
        y: losses `(K,)`, above 0; what is not finite is left out.
        name: of the size, for messages.

    Raises:
        CantFit: fewer than five sizes, less than a factor of four between them, losses that are not above 0 or do not
            fall, or an exponent that the data doesn't determine.
    """
    xs, ys = _points(x, y, name)
    _refuse_sizes(xs, ys, name)
    unit = float(np.exp(np.log(xs).mean()))
    logs, target, count = np.log(xs / unit), np.log(ys), len(xs)

    line, _, _ = _robust(_line, logs, target, [[target.mean(), 0.0]])
    if line[1] <= 0:
        raise CantFit(f"the loss does not fall as {name} grows, so there is no power law to fit")
    starts = [[target.min() - 1, target.mean(), exponent] for exponent in (0.1, 0.5, 2)]
    found, noise, weight = _robust(_law, logs, target, starts)
    draws = _bootstrap(found, noise, weight, logs)
    if np.mean((draws[:, 2] < EXPONENTS[0]) | (draws[:, 2] > EXPONENTS[1])) > 1 - LEVEL:
        raise CantFit(
            f"the exponent can't be determined from these {count} runs: {name} spans too little for a scatter of "
            f"{100 * noise:.2g}% in the loss; try more sizes, further apart, or more seeds"
        )
    for law in (found, *draws):  # the logarithm of an offset of 0 only ever falls
        law[0] = law[0] if law[0] > target.min() - 14 else -np.inf
    # Both by the same loss: Huber's, at the scatter of the power law.
    criteria = [_aicc((target - curve(law, logs)) / noise, len(law)) for curve, law in ((_line, line), (_law, found))]
    return PowerLaw(
        *(found, draws, unit, (float(xs[0]), float(xs[-1]))),
        offset=_interval(np.exp(found[0]), np.exp(draws[:, 0])),
        exponent=_interval(found[2], draws[:, 2]),
        gain=criteria[0] - criteria[1],
        slope=float(line[1]),
    )


def _refuse_sizes(xs: Float, ys: Float, name: str) -> None:
    """Raise `CantFit` where sizes are too few or too near one another, or losses have no logarithm."""
    count = len(np.unique(xs))
    if count < 5:
        raise CantFit(f"a power law with an offset takes five values of {name} or more, and there are {count}")
    if xs[-1] < 4 * xs[0]:
        raise CantFit(f"{name} goes from {xs[0]:g} to {xs[-1]:g} only; a power law takes a factor of four or more")
    if np.any(ys <= 0):
        raise CantFit("some losses are 0 or less, and a power law is fitted to their logarithms")


def _line(line: Float, logs: Float) -> Float:
    """Log losses of log scale and exponent at the logarithms of sizes."""
    return line[0] - line[1] * logs


def _law(law: Float, logs: Float) -> Float:
    """Log losses of log offset, log scale and exponent at the logarithms of sizes."""
    return np.logaddexp(law[0], _line(law[1:], logs))


def _least_squares(
    curve: Callable[[Float, Float], Float], logs: Float, target: Float, weight: Float, start: ArrayLike
) -> tuple[Float, float]:
    """Parameters of the least weighted sum of squares near a start, and that sum."""
    from scipy.optimize import leastsq

    root = np.sqrt(weight)
    found, _, details, _, _ = leastsq(
        lambda law: root * (curve(law, logs) - target), start, full_output=True, maxfev=MOST_TRIED
    )
    return found, float(np.sum(details["fvec"] ** 2))


def _robust(
    curve: Callable[[Float, Float], Float], logs: Float, target: Float, starts: list[list[float]]
) -> tuple[Float, float, Float]:
    """Parameters by Huber's loss, the standard deviation about the curve, and the weight `(K,)` of each point."""
    weight = np.ones_like(target)
    for _ in range(10):
        fits = [_least_squares(curve, logs, target, weight, start) for start in starts]
        found = min(fits, key=lambda fit: fit[1])[0]
        size = np.maximum(np.abs(target - curve(found, logs)), 1e-300)
        clipped = np.minimum(size, 3 * max(np.median(size) / 0.6745, 1e-12))  # what is far off counts as 3 deviations
        noise = max(float(np.sqrt(np.sum(clipped**2) / (len(size) - len(found)))), 1e-9)
        weight = np.minimum(1, HUBER * noise / size)
    return found, noise, weight


def _bootstrap(found: Float, noise: float, weight: Float, logs: Float) -> Float:
    """Power laws `(LAWS, 3)` fitted to losses that are drawn about one."""
    rng, freedom = np.random.default_rng(0), len(logs) - 3
    fitted = _law(found, logs)
    spread = noise * np.sqrt(freedom / rng.chisquare(freedom, size=(LAWS, 1)))
    start = [max(found[0], fitted.min() - 3), *found[1:]]  # an offset of nearly 0 would have no gradient
    targets = fitted + spread * rng.normal(size=(LAWS, len(logs)))
    return np.stack([_least_squares(_law, logs, target, weight, start)[0] for target in targets])


def _aicc(residual: Float, parameters: int) -> float:
    """Akaike's criterion for few points by Huber's loss of residuals in deviations; their size is a parameter too."""
    from scipy.special import huber

    points, k = len(residual), parameters + 1
    loss = max(2 * float(np.mean(huber(HUBER, residual))), 1e-300)
    return points * np.log(loss) + 2 * k + 2 * k * (k + 1) / max(points - k - 1, 1)


# --- Effects of settings that were drawn at random ----------------------------------------------------------

TREES, FOLDS, SHUFFLES, MOST_VARYING, MOST_PAIRED = 100, 5, 4, 20, 8


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
        effects: one for each setting.
        interactions: pairs of settings with the share of variance that is of neither alone, the strongest first; of
            `MOST_PAIRED` settings at most.
        r2: share of the variance of held-out runs that the forest predicts.
        note: why there are no importances, or None.
    """

    effects: list[Effect]
    interactions: list[tuple[str, str, float]]
    r2: float
    note: str | None


def effects(settings: pd.DataFrame, loss: ArrayLike) -> Effects:
    """Main effects and interactions of a random search: rank correlations, and a forest's permutation importances.

    Args:
        settings: a column for each setting, a row for each run; text and booleans are kinds, numbers have an order.
        loss: `(K,)`, less is better.

    Raises:
        CantFit: fewer than ten runs with a finite loss, or nothing that differs.
    """
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    target = np.asarray(loss, dtype=float)
    kept = np.isfinite(target)
    target, frame = target[kept], settings[kept]
    varying = [key for key in frame if frame[key].astype("string").fillna("").nunique() > 1]
    if len(target) < 10:
        raise CantFit(f"effects take ten finished runs or more, and there are {len(target)}")
    if not varying:
        raise CantFit("no setting differs between these runs")
    if len(varying) > MOST_VARYING:
        raise CantFit(f"{len(varying)} settings differ between these runs, and {MOST_VARYING} at most can be compared")
    if np.ptp(target) == 0:
        raise CantFit("all runs have the same loss")
    ordered = [is_numeric_dtype(frame[key]) and not is_bool_dtype(frame[key]) for key in varying]
    columns = np.stack([_numbers(frame[key], order) for key, order in zip(varying, ordered)], axis=1)  # (K, S)
    shares, r2 = _shares(columns, target)
    weak = r2 < 0.1
    found = []
    for index, key in enumerate(varying):
        rank, p = _rank(columns[:, index], target) if ordered[index] else (None, None)
        found.append(Effect(str(key), rank, p, None if weak else shares[index,]))
    found.sort(key=lambda effect: -(effect.importance or abs(effect.rank.value if effect.rank else 0)))
    pairs = [] if weak else [pair for pair in shares if len(pair) == 2]
    interactions = [(str(varying[i]), str(varying[j]), shares[i,] + shares[j,] - shares[i, j]) for i, j in pairs]
    note = (
        f"the forest predicts runs that it was not fitted to no better than their mean does (R² {r2:.2f}), "
        "so it names no importances"
    )
    return Effects(found, sorted(interactions, key=lambda x: -x[2]), r2, note if weak else None)


def _shares(columns: Float, target: Float) -> tuple[dict[tuple[int, ...], float], float]:
    """Shares of variance of settings and of pairs of settings, and the forest's R², all on held-out runs.

    Shuffling a setting costs twice the variance that is the setting's own or shared (Breiman, 2001); shuffling two
    together costs, of what both share, only once, so the sum of their shares less that of the pair is their
    interaction. scikit-learn's `permutation_importance` shuffles one column at a time.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    rng, varying = np.random.default_rng(0), range(columns.shape[1])
    groups: list[tuple[int, ...]] = [(index,) for index in varying]
    groups += combinations(varying, 2) if len(varying) <= MOST_PAIRED else []
    costs = np.zeros(len(groups))
    predicted = np.empty_like(target)
    for fitted, held in KFold(FOLDS, shuffle=True, random_state=0).split(columns):
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, max_features=0.7, random_state=0, n_jobs=1)
        forest.fit(columns[fitted], target[fitted])
        predicted[held] = forest.predict(columns[held])
        for place, group in enumerate(groups):
            shuffled = np.tile(columns[held], (SHUFFLES, 1))
            orders = np.concatenate([rng.permutation(held) for _ in range(SHUFFLES)])
            shuffled[:, group] = columns[orders][:, group]
            error = np.mean((np.tile(target[held], SHUFFLES) - forest.predict(shuffled)) ** 2)
            costs[place] += (error - np.mean((target[held] - predicted[held]) ** 2)) / FOLDS
    variance = target.var()
    r2 = 1 - float(np.mean((target - predicted) ** 2) / variance)
    return dict(zip(groups, (costs / (2 * variance)).tolist())), r2


def _rank(column: Float, target: Float) -> tuple[Interval | None, float | None]:
    """Spearman's correlation with its interval, and its p; None of too few known values, or of one value."""
    from scipy.stats import spearmanr

    known = np.isfinite(column)
    if known.sum() <= 3 or np.ptp(column[known]) == 0:
        return None, None
    rank, p = map(float, spearmanr(column[known], target[known]))
    # Fisher's transform, with the variance of ranks (Bonett and Wright, 2000).
    half = 1.96 * np.sqrt((1 + rank**2 / 2) / (known.sum() - 3))
    centre = np.arctanh(np.clip(rank, -0.999999, 0.999999))
    return Interval(rank, float(np.tanh(centre - half)), float(np.tanh(centre + half))), p


def _numbers(column: pd.Series, ordered: bool) -> Float:
    """A setting as numbers, kinds by their place in the alphabet."""
    import pandas as pd

    if not ordered:
        return column.astype("string").fillna("").factorize(sort=True)[0].astype(float)
    return pd.to_numeric(column, errors="coerce").astype("Float64").to_numpy(dtype=float, na_value=np.nan)
