"""Measurements of trained models: responses to tones, and missed notes, of models whose output is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from training import RENDERED
from wavespace import compose
from wavespace.analysis.note_errors import errors, shares
from wavespace.analysis.probes import Response, response
from wavespace.build import build
from wavespace.data.base import NO_NOTES
from wavespace.errors import Incompatible
from wavespace.reports.figures import draw_errors, draw_response


def test_the_response_of_spectral_peaks_is_at_the_pitches_that_sound() -> None:
    cfg = compose(["data=synthetic", "data.sample_rate=16000", "frontend=cqt", "model=harmonic_sum", "task=salience"])
    parts = build(cfg)
    found = response(parts.task)
    assert found.what == "salience"
    assert found.values.shape == (len(parts.task.out_spec.frequencies), len(found.pitches))
    assert found.accuracy is not None
    assert found.accuracy > 0.6
    audit = draw_response(found)
    assert f"{found.accuracy:.0%} are strongest at their own pitch" in audit.description
    lines = audit.figure.axes[0].get_lines()
    np.testing.assert_allclose(lines[2].get_ydata() - np.asarray(lines[0].get_ydata()), 12 * np.log2(3))


def test_a_map_that_answers_an_octave_too_high_is_told() -> None:
    pitches, rows = np.arange(40, 60), np.arange(30.0, 100)
    values = np.exp(-((rows[:, None] - pitches - 12.0) ** 2))
    found = Response(values, pitches, rows, "salience")
    assert (found.accuracy, found.octaves) == (0, 1)
    right = Response(np.exp(-((rows[:, None] - pitches) ** 2.0)), pitches, rows, "salience")
    assert (right.accuracy, right.octaves) == (1, 0)
    code = Response(np.random.default_rng(0).normal(size=(5, 20)), pitches, None, "code")
    assert code.accuracy is None
    assert "5 dimensions of a code" in draw_response(code).description


def test_errors_are_the_notes_that_decoding_misses() -> None:
    parts = build(compose([*RENDERED, "data.test_pieces=1"]))
    data, task = parts.data, parts.task
    data.prepare_data()
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    notes = batch.notes[batch.notes[:, 0] == 0, 1:].numpy().astype(float)
    kept = notes[notes[:, 2] < 64]
    task.decode = lambda heads: kept  # type: ignore[method-assign, assignment]
    found = errors(task, data)
    struck = notes[notes[:, 0] >= 0]
    assert len(found) == len(struck)
    assert (found["found"] == (found["pitch"] < 64)).all()
    assert sorted(found["velocity"]) == sorted(struck[:, 3])
    assert found["polyphony"].min() >= 1
    audit = draw_errors(found)
    assert f"of {len(struck)} missed; by pitch from 0% to 100%" in audit.description
    task.decode = lambda heads: NO_NOTES  # type: ignore[method-assign, assignment]
    assert not errors(task, data)["found"].any()


def test_polyphony_counts_what_sounds_at_the_onset() -> None:
    from wavespace.analysis.note_errors import _of_notes

    notes = np.array([[0.0, 1.0, 60, 80], [0.0, 0.4, 64, 80], [0.5, 1.0, 67, 80], [2.0, 3.0, 60, 80]])
    task: Any = SimpleNamespace(decode=lambda heads: notes[:1])
    assert _of_notes(task, SimpleNamespace(heads=None), notes) == [
        (60, 80.0, 2, True), (64, 80.0, 2, False), (67, 80.0, 2, False), (60, 80.0, 1, False),
    ]  # fmt: skip


def test_shares_have_wilsons_interval() -> None:
    from scipy.stats import binomtest

    found = pd.DataFrame({"pitch": [60] * 10 + [61] * 4 + [72], "found": [True] * 7 + [False] * 3 + [True] * 5})
    table = shares(found, "pitch", 12)
    assert table.index.tolist() == [60, 72]
    expected = binomtest(11, 14).proportion_ci(0.95, method="wilson")
    assert table.loc[60, "count"] == 14
    assert table.loc[60, "low"] == pytest.approx(expected.low, abs=1e-4)
    assert table.loc[60, "high"] == pytest.approx(expected.high, abs=1e-4)


def test_tasks_and_data_without_notes_are_refused() -> None:
    parts = build(compose(["data=medley_solos", "model=dense", "frontend=log_frequency", "task=reconstruction"]))
    with pytest.raises(Incompatible, match="finds no notes"):
        errors(parts.task, parts.data)
    parts.task.model = torch.nn.Identity()
    with pytest.raises(Incompatible, match="no code"):
        response(parts.task)
