"""The harmonic sum against its formula in float64, and its output for silence and for one tone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from parts import AUDIO
from wavespace.build import build_task, check_shapes
from wavespace.config import compose
from wavespace.errors import Incompatible
from wavespace.models.harmonic_sum import HarmonicSum
from wavespace.spec import FeatureSpec
from wavespace.tasks.salience import log_bins

INPUT = FeatureSpec(1, log_bins(12, 55.0, 7040.0), 20.0, "dB", -80.0, 0.0)
OUTPUT = FeatureSpec(1, log_bins(12, 55.0, 3520.0), 20.0, "logit", -10.0, 10.0)


@pytest.mark.parametrize("values", ["amplitude", "root", "dB"])
@pytest.mark.parametrize("reference", ["frame", "scale"])
@pytest.mark.parametrize("harmonics", [1, 8])
def test_the_map_is_that_of_the_formula(values: Any, reference: Any, harmonics: int) -> None:
    rng = np.random.default_rng(0)
    level = rng.uniform(-80, 0, (2, 1, INPUT.bins, 5))
    model = HarmonicSum(INPUT, OUTPUT, harmonics=harmonics, values=values, reference=reference)
    found = model(torch.tensor(level).float()).sigmoid().double().numpy()

    x = level[:, 0]
    value = {
        "amplitude": (10 ** (x / 20) - 1e-4) / (1 - 1e-4),
        "root": (10 ** (x / 40) - 1e-2) / (1 - 1e-2),
        "dB": (x + 80) / 80,
    }[values]
    expected = np.zeros((2, OUTPUT.bins, 5))
    for i, pitch in enumerate(OUTPUT.frequencies):
        for h in range(1, harmonics + 1):
            row = int(np.rint(12 * np.log2(h * pitch / 55.0)))
            if row < INPUT.bins:
                expected[:, i] += value[:, row] / h
    expected /= sum(1 / h for h in range(1, harmonics + 1))
    if reference == "frame":
        expected /= expected.max(1, keepdims=True)
    np.testing.assert_allclose(found[:, 0], np.clip(expected, 1e-4, 1 - 1e-4), atol=2e-6)


@pytest.mark.parametrize("reference", ["frame", "scale"])
def test_silence_is_no_pitch(reference: Any) -> None:
    silence = torch.full((1, 1, INPUT.bins, 3), -80.0)
    assert float(HarmonicSum(INPUT, OUTPUT, reference=reference)(silence).sigmoid().max()) < 1e-3


def test_a_tone_with_a_weak_fundamental_is_found_there_and_its_peak_is_not() -> None:
    level = torch.full((1, 1, INPUT.bins, 1), -80.0)
    fundamental = 12
    for h in range(1, 9):
        level[0, 0, fundamental + round(12 * np.log2(h))] = -20.0 if h == 1 else -10.0
    assert int(HarmonicSum(INPUT, OUTPUT)(level)[0, 0, :, 0].argmax()) == fundamental
    assert int(HarmonicSum(INPUT, OUTPUT, harmonics=1)(level)[0, 0, :, 0].argmax()) != fundamental


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"harmonics": 0}, "harmonics = 0"), ({"values": "power"}, "values = "), ({"reference": "item"}, "reference = ")],
)
def test_settings_that_can_not_be_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        HarmonicSum(INPUT, OUTPUT, **settings)


def test_it_serves_a_map_and_refuses_heads_and_latents() -> None:
    assert check_shapes(compose(["task=salience", "frontend=cqt", "model=harmonic_sum"]), AUDIO).out_spec.channels == 1
    with pytest.raises(Incompatible, match="task=salience"):
        build_task(compose(["task=piano_roll", "model=harmonic_sum"]), AUDIO)
    latents = FeatureSpec(128, (0.0,), 75.0, "latent", -4.0, 4.0)
    with pytest.raises(Incompatible, match="harmonic_sum"):
        HarmonicSum(latents, OUTPUT)
