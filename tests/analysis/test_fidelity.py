"""The trade-off: its front is that of the definition; control is measured as it is defined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from wavespace import compose
from wavespace.analysis import CantFit, control, pareto, tradeoff
from wavespace.build import build_task
from wavespace.metrics.probes import LOWEST, concentration, pitch_probe, tones
from wavespace.reports import draw_tradeoff
from wavespace.spec import AudioSpec

points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(points)
def test_the_front_is_what_no_other_point_beats(found: list[tuple[int, int]]) -> None:
    a, b = np.array(found, float).T
    for index, on in enumerate(pareto(a, b)):
        beaten = (a <= a[index]) & (b <= b[index]) & ((a < a[index]) | (b < b[index]))
        assert on == (not beaten.any())


def test_runs_are_compared_by_the_distortion_that_they_have() -> None:
    rows = pd.DataFrame(
        {
            "val/l1_db": [1.0, 2.0, 3.0, 4.0, None],
            "test/instrument_probe": [0.5, 0.9, 0.8, None, 0.9],
            "test/map_entropy": [0.3, 0.2, 0.25, 0.1, None],
        }
    )
    found = tradeoff(rows, "test/instrument_probe")
    assert found["front"].tolist() == [True, True, False]
    assert found.attrs["distortion"] == "val/l1_db"
    assert tradeoff(rows, "test/map_entropy")["front"].tolist() == [True, True, False, True]
    drawing = draw_tradeoff(found)
    assert "3 runs, of which 2 (ringed) are on the Pareto front: 1 and 0.5; 2 and 0.9" in drawing.note
    axes = drawing.figure().axes[0]
    rings = [c for c in axes.collections if c.get_facecolor().size == 0]
    np.testing.assert_allclose(rings[0].get_offsets(), [[1, 0.5], [2, 0.9]])
    with pytest.raises(CantFit, match="no run has both"):
        tradeoff(rows, "test/rpa")


def test_tones_have_the_pitch_that_they_are_said_to_have() -> None:
    rate = 16_000
    made = tones(rate)
    assert len(made) == 216
    for wave, pitch in ((item.audio, item.labels["pitch"]) for item in made[::40]):
        spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 8 * len(wave)))
        hertz = np.fft.rfftfreq(8 * len(wave), 1 / rate)
        f0 = 440 * 2 ** ((pitch - 69) / 12)
        near = (hertz > f0 * 0.97) & (hertz < f0 * 1.03)
        assert abs(12 * np.log2(hertz[near][spectrum[near].argmax()] / f0)) < 0.3


def test_a_code_that_tells_pitch_is_told_from_one_that_does_not() -> None:
    rng = np.random.default_rng(0)
    pitch = np.repeat(np.arange(40, 88), 12)
    timbre = np.tile(np.arange(12), 48)
    telling = np.exp(-0.5 * ((pitch[:, None] - np.arange(36, 92, 2)) / 1.5) ** 2) + 0.01 * rng.normal(size=(576, 28))
    assert pitch_probe(telling, pitch, timbre) > 0.95
    assert pitch_probe(rng.normal(size=(576, 28)), pitch, timbre) < 0.15


def test_concentration_is_one_where_all_dims_carry_as_much_and_falls_to_none() -> None:
    rng = np.random.default_rng(0)
    even = rng.normal(size=(4000, 8))
    assert concentration(even) == pytest.approx(1, abs=0.01)
    assert concentration(even * [1, 0, 0, 0, 0, 0, 0, 0]) == pytest.approx(0, abs=1e-9)
    assert concentration(even * [1, 1, 0, 0, 0, 0, 0, 0]) == pytest.approx(np.log(2) / np.log(8), abs=0.01)


FRONTEND = ["frontend=log_frequency", "frontend.bins=96", "frontend.n_fft=4096", "frontend.hop=1024"]
TASK = ["task=reconstruction"]


class Bins(nn.Module):
    """A code that is the spectrogram itself."""

    dims, step = 96, 1

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2)[:, :, None]

    def decode(self, code: Tensor) -> Tensor:
        return code.transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_spectrogram_tells_pitch_better_than_its_mean_does() -> None:
    cfg = compose(["data=medley_solos", "data.sample_rate=16000", *FRONTEND, "model=dense", "model.latent=4", *TASK])
    task: Any = build_task(cfg, AudioSpec(16000, 0.5, ("instrument",)))
    task.model = Bins()
    whole = control(task)
    assert whole["pitch_probe"] > 0.5
    task.model.encode = lambda x: x.mean(2, keepdim=True)
    assert control(task)["pitch_probe"] < 0.2
    task.model = nn.Identity()
    assert control(task) == {}
    assert min(item.labels["pitch"] for item in tones(16000)) == LOWEST
    assert not torch.is_inference_mode_enabled()
