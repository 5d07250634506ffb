"""Fits find the parameters that made the data, within their intervals at the stated rate; else they refuse in words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import curve_fit

from wavespace.analysis import CantFit, effects, fits, parabola, power_law


def within(held: int, trials: int) -> bool:
    """Whether so many hits are likely (99.9 %) of intervals that hold the truth in 95 of 100 cases."""
    from scipy.stats import binom

    low, high = binom.interval(0.999, trials, 0.95)
    return low <= held <= high


# --- Parabola -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rates", "seeds", "noise"), [(5, 1, 0.01), (7, 1, 0.02), (7, 3, 0.06)])
def test_the_interval_of_the_optimum_holds_the_truth_at_its_rate(rates: int, seeds: int, noise: float) -> None:
    rng, held, best, trials = np.random.default_rng(rates), 0, 0, 300
    x = np.repeat(np.geomspace(1e-4, 1e-1, rates), seeds)
    for _ in range(trials):
        fit = parabola(x, 1.5 + 0.2 * np.log10(x / 2e-3) ** 2 + noise * rng.normal(size=len(x)))
        held += fit.optimum.low <= 2e-3 <= fit.optimum.high
        best += fit.best.low <= 1.5 <= fit.best.high
    assert within(held, trials)
    assert within(best, trials)


def test_a_parabola_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    x = np.geomspace(1e-4, 1e-1, 9)
    y = 2 + 0.3 * np.log10(x / 4e-3) ** 2 + 0.03 * rng.normal(size=9)
    fit = parabola(x, y)
    a, b, c = np.polyfit(np.log10(x), y, 2)
    assert fit.optimum.value == pytest.approx(10 ** (-b / (2 * a)))
    assert fit.best.value == pytest.approx(c - b**2 / (4 * a))
    np.testing.assert_allclose(fit(x), np.polyval([a, b, c], np.log10(x)))
    low, high = fit.band(x)
    assert np.all((low < fit(x)) & (fit(x) < high))


@pytest.mark.parametrize(
    ("law", "reason"),
    [
        (lambda u: u, "no interior minimum.*lowest.*0.0001; try lower"),
        (lambda u: -u, "no interior minimum.*highest.*0.1; try higher"),
        (lambda u: 0.001 * (u + 2) ** 2, "no interior minimum"),
        (lambda u: -((u + 2.5) ** 2), "no interior minimum"),
    ],
)
def test_data_without_an_interior_minimum_is_refused(law: Callable[[np.ndarray], np.ndarray], reason: str) -> None:
    x = np.geomspace(1e-4, 1e-1, 8)
    noise = np.random.default_rng(2).normal(size=8)
    with pytest.raises(CantFit, match=reason):
        parabola(x, law(np.log10(x)) + 0.05 * noise, name="optim.lr")


def test_too_few_and_senseless_points_are_refused() -> None:
    with pytest.raises(CantFit, match=r"five runs at four values of optim\.lr or more, and there are 6 at 3"):
        parabola([1, 1, 2, 2, 3, 3], [2, 2, 1, 1, 2, 2], name="optim.lr")
    with pytest.raises(CantFit, match="0 or less"):
        parabola([0, 1, 2, 3, 4], [2, 1, 0, 1, 2])
    lr = np.geomspace(1e-4, 1e-1, 7)
    spoiled = np.append(1 + np.log10(lr / 1e-3) ** 2 + 0.01 * np.arange(7) % 0.02, [np.nan, np.inf])
    assert parabola(np.append(lr, [1, 1]), spoiled).span == (lr[0], lr[-1])  # runs that diverged are left out


# --- Power law ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "seeds", "noise", "offset"), [(10, 2, 0.01, 0.5), (6, 3, 0.01, 1.0), (8, 2, 0.02, 0.3)]
)
def test_intervals_of_a_power_law_hold_the_truth_at_their_rate(
    sizes: int, seeds: int, noise: float, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fits, "LAWS", 200)  # draws of each interval; more are slower and no truer on average
    rng, trials = np.random.default_rng(sizes), 40
    x = np.repeat(np.geomspace(1e3, 1e7, sizes), seeds)
    held = np.zeros(2, int)
    for _ in range(trials):
        fit = power_law(x, (offset + 30 * x**-0.35) * np.exp(noise * rng.normal(size=len(x))))
        for index, (found, true) in enumerate(zip((fit.offset, fit.exponent), (offset, 0.35))):
            held[index] += found.low <= true <= found.high
        assert fit.bends
    assert all(within(int(count), trials) for count in held), held


def test_a_power_law_is_that_of_scipy_where_nothing_is_far_off() -> None:
    rng = np.random.default_rng(0)
    x = np.geomspace(10, 1e5, 40)
    y = (0.8 + 5 * x**-0.5) * np.exp(0.01 * rng.uniform(-1, 1, size=40))
    fit = power_law(x, y)
    law = lambda x, e, a, b: np.log(e + a * x**-b)  # noqa: E731
    reference, _ = curve_fit(law, x, np.log(y), p0=(1, 1, 0.3))
    np.testing.assert_allclose(fit(x), np.exp(law(x, *reference)), rtol=1e-3)
    np.testing.assert_allclose([fit.offset.value, fit.exponent.value], reference[[0, 2]], rtol=1e-3)


def test_a_run_far_off_hardly_moves_a_power_law() -> None:
    x = np.geomspace(10, 1e5, 12)
    y = (0.8 + 5 * x**-0.5) * np.exp(0.005 * np.random.default_rng(1).normal(size=12))
    clean = power_law(x, y)
    y[6] *= 3
    fit = power_law(x, y)
    assert fit.exponent.value == pytest.approx(clean.exponent.value, rel=0.03)
    assert fit.offset.value == pytest.approx(clean.offset.value, rel=0.03)


def test_a_straight_line_is_told_from_one_that_bends() -> None:
    rng, x = np.random.default_rng(3), np.repeat(np.geomspace(1e3, 1e7, 10), 2)
    noise = 0.01 * rng.normal(size=20)
    line = power_law(x, 30 * x**-0.35 * np.exp(noise))
    assert not line.bends
    assert line.offset.low == 0
    assert line.slope == pytest.approx(0.35, abs=0.01)
    assert "a straight line of slope -0.3" in str(line)
    assert power_law(x, (0.3 + 30 * x**-0.35) * np.exp(noise)).bends


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1, 2, 4, 8], [4, 3, 2, 1], "five values of model.width or more, and there are 4"),
        ([1, 1.2, 1.4, 1.6, 1.8], [5, 4, 3, 2, 1], "factor of four"),
        ([1, 2, 4, 8, 16], [1, 2, 3, 4, 5], "does not fall"),
        ([1, 2, 4, 8, 16], [3, 2, 1, 0, -1], "0 or less"),
        ([0, 2, 4, 8, 16], [3, 2, 1, 1, 1], "0 or less"),
    ],
)
def test_what_no_power_law_fits_is_refused(x: list[float], y: list[float], reason: str) -> None:
    with pytest.raises(CantFit, match=reason):
        power_law(x, y, name="model.width")


def test_an_exponent_that_the_data_does_not_determine_is_refused() -> None:
    x = np.geomspace(1, 6, 6)
    y = 1 + 0.05 * x**-0.5 + 0.02 * np.array([1, -1, 1, -1, 1, -1])
    with pytest.raises(CantFit, match="can't be determined"):
        power_law(x, y)


# --- Effects ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "TREES", 40)


def draws(count: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "a": rng.uniform(-1, 1, count),
            "b": rng.uniform(-1, 1, count),
            "c": rng.choice(["x", "y"], count),
            "idle": rng.uniform(-1, 1, count),
        }
    )


def test_main_effects_are_the_shares_of_variance_that_made_the_loss() -> None:
    frame = draws(400)
    loss = 2 * frame["a"] + 0.8 * (frame["c"] == "x")  # variances 4/3 and 0.16: 89 % and 11 %
    found = effects(frame, loss)
    by_key = {effect.key: effect for effect in found.effects}
    assert found.effects[0].key == "a"
    assert found.r2 > 0.9
    assert by_key["a"].importance == pytest.approx(0.89, abs=0.08)
    assert by_key["c"].importance == pytest.approx(0.11, abs=0.05)
    assert abs(by_key["idle"].importance or 0) < 0.02
    assert by_key["a"].rank is not None
    assert by_key["a"].rank.value > 0.8
    assert by_key["a"].rank.low < by_key["a"].rank.value < by_key["a"].rank.high
    assert by_key["c"].rank is None  # a kind has no order
    assert all(share < 0.05 for _, _, share in found.interactions)


def test_an_interaction_is_found_where_neither_acts_alone() -> None:
    frame = draws(500)
    found = effects(frame, 3 * frame["a"] * frame["b"])
    one, other, share = found.interactions[0]
    assert {one, other} == {"a", "b"}
    assert share > 0.4
    assert all(value < 0.1 for _, _, value in found.interactions[1:])


def test_a_forest_that_predicts_nothing_names_nothing() -> None:
    frame = draws(40)
    found = effects(frame, np.random.default_rng(1).normal(size=40))
    assert found.note is not None
    assert all(effect.importance is None for effect in found.effects)
    assert not found.interactions


def test_too_few_runs_and_nothing_to_compare_are_refused() -> None:
    frame = draws(20)
    with pytest.raises(CantFit, match="ten finished runs or more, and there are 9"):
        effects(frame[:9], np.arange(9))
    with pytest.raises(CantFit, match="no setting differs"):
        effects(frame[["a"]] * 0 + 1, np.arange(20))
    with pytest.raises(CantFit, match="same loss"):
        effects(frame, np.ones(20))
