"""Salience: losses restated in float64, peaks between bins, what a perfect map scores, and that a net can learn one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parts import AUDIO, small_task
from wavespace.build import build_task
from wavespace.config import compose
from wavespace.config.construction import make
from wavespace.data.base import NO_NOTES, Batch, Item, Notes, collate
from wavespace.data.labels import pitch_salience
from wavespace.models.blocks import Rebin
from wavespace.tasks.decode import peak_pitches, strongest_pitches
from wavespace.tasks.salience import Salience, balanced, focal, log_bins
from wavespace.units import midi_to_hz

RATE = AUDIO.sample_rate
FRAME = 512 / RATE
# Notes begin and end between frames, so that none is cut in two.
CHORD: Notes = np.array([[5.5, 22.5, 60.2, 90], [5.5, 35.5, 64, 70], [24.5, 39.5, 72.4, 40]]) * [FRAME, FRAME, 1, 1]
TUNE: Notes = np.array([[5.5, 13.5, 60.2, 90], [18.5, 31.5, 67.9, 40]]) * [FRAME, FRAME, 1, 1]


def task_of(**settings: object) -> Salience:
    task = small_task("log_frequency", "unet", "salience", *(f"task.{key}={value}" for key, value in settings.items()))
    assert isinstance(task, Salience)
    return task


def batch_of(*notes: Notes, seconds: tuple[float, ...] | None = None) -> Batch:
    lengths = [round(RATE * s) for s in seconds or [1.0] * len(notes)]
    return collate([Item(np.zeros(n, np.float32), f"{n}", part) for n, part in zip(lengths, notes)])


def perfect_output(task: Salience, batch: Batch, frames: int) -> Tensor:
    return torch.logit(task.target(batch, frames).clamp(1e-6, 1 - 1e-6))[:, None]


# --- Losses ----------------------------------------------------------------------------------------------

cells = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def random_cells(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Logits, and targets of which most are 0, as float64 `(2, 5, 7)`."""
    logit = torch.tensor(rng.normal(0, 4, (2, 5, 7)), requires_grad=True)
    return logit, torch.tensor(rng.uniform(0, 1, (2, 5, 7)) * (rng.random((2, 5, 7)) < 0.3))


@given(cells)
@settings(max_examples=50, deadline=None)
def test_the_balanced_loss_and_its_gradient_are_the_formulas(rng: np.random.Generator) -> None:
    logit, y = random_cells(rng)
    p = 1 / (1 + np.exp(-logit.detach().numpy()))
    target = y.numpy()
    positive, negative = max(1, target.sum()), max(1, (1 - target).sum())
    expected = -(np.sum(target * np.log(p)) / positive + np.sum((1 - target) * np.log(1 - p)) / negative) / 2
    loss = balanced(logit, y)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9)
    loss.backward()
    slope = (-target * (1 - p) / positive + (1 - target) * p / negative) / 2
    np.testing.assert_allclose(logit.grad, slope, rtol=1e-9, atol=1e-15)


def test_classes_weigh_alike_in_the_balanced_loss_however_rare_one_is() -> None:
    for share in (1, 10, 500):
        target = torch.zeros(1000)
        target[:share] = 1
        assert float(balanced(torch.zeros(1000), target)) == pytest.approx(math.log(2), rel=1e-5)
        gradient = torch.func.grad(balanced)(torch.zeros(1000), target)
        assert float(gradient[:share].sum()) == pytest.approx(-0.25, rel=1e-5)
        assert float(gradient[share:].sum()) == pytest.approx(0.25, rel=1e-5)
    silence = balanced(torch.full((1000,), -3.0), torch.zeros(1000))
    assert float(silence) == pytest.approx(math.log1p(math.exp(-3)) / 2, rel=1e-5)


@given(cells, st.sampled_from([0.5, 1.0, 2.0, 3.5]))
@settings(max_examples=50, deadline=None)
def test_the_focal_loss_and_its_gradient_are_the_formulas(rng: np.random.Generator, gamma: float) -> None:
    logit, y = random_cells(rng)
    p = 1 / (1 + np.exp(-logit.detach().numpy()))
    target = y.numpy()
    entropy = -target * np.log(p) - (1 - target) * np.log(1 - p)
    loss = focal(logit, y, gamma)
    assert float(loss.detach()) == pytest.approx(np.mean(np.abs(target - p) ** gamma * entropy), rel=1e-4)
    loss.backward()
    off, sign = np.abs(target - p), np.sign(p - target)
    # By the product rule: the slope of cross-entropy is p - y, that of p is p (1 - p).
    slope = off**gamma * (p - target) + gamma * off ** (gamma - 1) * sign * p * (1 - p) * entropy
    clear = off > 1e-5  # below, the loss counts as much as at 1e-6
    np.testing.assert_allclose(logit.grad.numpy()[clear], slope[clear] / p.size, rtol=1e-7, atol=1e-12)


@given(cells)
@settings(max_examples=30, deadline=None)
def test_the_focal_loss_with_gamma_0_is_cross_entropy(rng: np.random.Generator) -> None:
    logit, y = random_cells(rng)
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logit, y)
    assert focal(logit, y, 0.0).item() == pytest.approx(plain.item(), rel=1e-12)
    expected, found = (torch.autograd.grad(loss, logit)[0] for loss in (plain, focal(logit, y, 0.0)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("logit", [-200.0, 200.0])
@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_sure_cells_have_finite_losses_and_gradients(logit: float, target: float) -> None:
    for loss in (balanced, lambda x, y: focal(x, y, 0.5), lambda x, y: focal(x, y, 2.0)):
        x = torch.tensor([logit], requires_grad=True)
        value = loss(x, torch.tensor([target]))
        value.backward()
        assert value.isfinite()
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("settings", [{}, {"loss": "focal", "gamma": 1.5}, {"labels": "power", "spread_cents": 40.0}])
def test_the_task_takes_its_loss_of_its_own_labels(settings: dict[str, object]) -> None:
    task, batch = task_of(**settings), batch_of(CHORD, NO_NOTES, TUNE)
    output = torch.randn(3, 1, task.out_spec.bins, 44, generator=torch.Generator().manual_seed(0))
    labels = pitch_salience(
        batch.notes,
        batch=3,
        frequencies=task.out_spec.frequencies,
        frame_rate=RATE / 512,
        frames=44,
        kind="power" if "labels" in settings else "activation",
        spread_cents=float(settings.get("spread_cents", 25.0)),  # type: ignore[arg-type]
    )
    expected = focal(output[:, 0], labels, 1.5) if "loss" in settings else balanced(output[:, 0], labels)
    assert float(task.loss(output, task.example(batch))["loss"]) == float(expected)


# --- Peaks -----------------------------------------------------------------------------------------------


@given(st.lists(st.floats(41.0, 80.0), min_size=1, max_size=5), st.sampled_from([24, 36, 60]), st.floats(0.1, 1.0))
@settings(max_examples=60, deadline=None)
def test_labels_are_decoded_to_their_pitches(pitches: list[float], per_octave: int, height: float) -> None:
    apart = sorted(pitches)
    apart = [pitch for i, pitch in enumerate(apart) if i == 0 or pitch - apart[i - 1] > 2]
    axis = log_bins(per_octave, midi_to_hz(39), midi_to_hz(82))
    notes = torch.tensor([[0, 0.0, 1.0, pitch, 127.0] for pitch in apart], dtype=torch.float64)
    labels = pitch_salience(
        notes, batch=1, frequencies=axis, frame_rate=10, frames=3, kind="activation", spread_cents=25.0
    )[0]
    found = peak_pitches(height * labels[:, 1:2].numpy(), axis, 0.5 * height)
    assert (found[:, 0] == 0).all()
    if len(apart) == 1 or min(np.diff(apart)) > 4:  # else two sides of one valley
        np.testing.assert_allclose(found[:, 1], apart, atol=1e-3)  # a tenth of a cent
    top = strongest_pitches(height * labels[:, 1:2].numpy(), axis)
    assert np.abs(top[0, 0] - np.array(apart)).min() < 1e-3


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(0, 6), st.sampled_from([0.3, 0.5]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_peaks_are_those_of_a_plain_loop(seed: int, bins: int, frames: int, threshold: float, coarse: bool) -> None:
    salience = np.random.default_rng(seed).random((bins, frames))
    salience = salience.round(1) if coarse else salience  # many equal neighbours
    frequencies = [440 * 2 ** (row / 24) for row in range(bins)]
    expected = []
    for t in range(frames):
        for row in range(bins):
            here = salience[row, t]
            below = salience[row - 1, t] if row else -1
            above = salience[row + 1, t] if row < bins - 1 else -1
            if here >= threshold and here > below and here >= above:
                shift = 0.0
                if 0 < row < bins - 1:
                    a, b, c = (math.log(max(value, 1e-6)) for value in (below, here, above))
                    shift = (a - c) / (a - 2 * b + c) / 2
                expected.append([t, 69 + (row + shift) / 2, here])
    found = peak_pitches(salience, frequencies, threshold)
    np.testing.assert_allclose(found, np.array(expected).reshape(-1, 3), atol=1e-9)
    top = strongest_pitches(salience, frequencies)
    assert top.shape == (frames, 2)
    for t in range(frames):
        assert top[t, 1] == salience[:, t].max()
        peaks = found[found[:, 0] == t]
        if len(peaks):
            assert top[t, 0] in peaks[peaks[:, 2] == peaks[:, 2].max(), 1]


def test_a_flat_map_has_no_slope_to_divide_by() -> None:
    frequencies = [100.0, 200.0, 400.0, 800.0]
    for value in (0.0, 1.0):
        top = strongest_pitches(np.full((4, 2), value, np.float32), frequencies)
        assert np.isfinite(top).all()
    assert len(peak_pitches(np.zeros((4, 3), np.float32), frequencies, 0.1)) == 0
    (one,) = peak_pitches(np.ones((4, 1), np.float32), frequencies, 0.1)
    assert one[1] == pytest.approx(69 + 12 * math.log2(100 / 440))


# --- Metrics ---------------------------------------------------------------------------------------------


def test_the_targets_themselves_score_one_and_padding_is_not_scored() -> None:
    task = task_of()
    batch = batch_of(CHORD, TUNE, NO_NOTES, seconds=(2.0, 1.0, 1.5))
    output = perfect_output(task, batch, 87)
    output[1, :, 50, 50:] = 9.0  # a pitch in the padding of an item that has 44 frames
    outputs = task.eval_outputs(output, task.example(batch))
    assert [item.melody is not None for item in outputs] == [False, True, False]
    metrics = task.compute_metrics(outputs, tune=False)
    for name in ("f1", "precision", "recall", "accuracy", "chroma_f1"):
        assert metrics[f"salience_{name}"] == 1.0
    assert metrics["octave_share_of_fp"] == metrics["vfa"] == 0
    assert metrics["rpa"] == metrics["rca"] == metrics["vr"] == 1
    assert metrics["salience_threshold"] == 0.5
    melody = outputs[1].melody
    assert melody is not None
    assert len(melody.reference) == len(melody.strongest) == 100
    assert task.monitor.removeprefix("val/") in metrics
    assert set(task.table) <= set(metrics)


def test_without_a_single_voice_there_are_no_metrics_of_one() -> None:
    task, batch = task_of(), batch_of(CHORD, NO_NOTES)
    output = perfect_output(task, batch, 44)
    assert "rpa" not in task.compute_metrics(task.eval_outputs(output, task.example(batch)), tune=False)


def test_where_instruments_are_told_apart_each_has_its_pitch_accuracy() -> None:
    task, batch = task_of(), batch_of(TUNE, TUNE, TUNE, CHORD)
    output = perfect_output(task, batch, 44)
    output[1] = perfect_output(task, batch_of(TUNE + np.array([0, 0, 5, 0])), 44)[0]
    told = batch._replace(labels={"instrument": torch.tensor([2, 0, 0, 1])})
    metrics = task.compute_metrics(task.eval_outputs(output, task.example(told)), tune=False)
    assert {name: value for name, value in metrics.items() if name.startswith("rpa_")} == {"rpa_0": 0.5, "rpa_2": 1.0}
    assert not any(
        name.startswith("rpa_")
        for name in task.compute_metrics(task.eval_outputs(output, task.example(batch)), tune=False)
    )


def test_an_octave_error_is_one_of_pitch_and_not_of_chroma() -> None:
    task, batch = task_of(), batch_of(TUNE)
    up = perfect_output(task, batch_of(TUNE + np.array([0, 0, 12, 0])), 44)
    metrics = task.compute_metrics(task.eval_outputs(up, task.example(batch)), tune=False)
    assert metrics["salience_f1"] == metrics["rpa"] == 0
    assert metrics["salience_chroma_f1"] == metrics["rca"] == metrics["vr"] == metrics["octave_share_of_fp"] == 1


def test_validation_chooses_the_threshold_and_the_checkpoint_keeps_it() -> None:
    task, batch = task_of(thresholds="[0.2,0.4,0.7]"), batch_of(CHORD)
    output = torch.logit(0.55 * perfect_output(task, batch, 44).sigmoid())
    output[0, 0, 5] = torch.logit(torch.tensor(0.3))  # a weak pitch that is none
    outputs = task.eval_outputs(output, task.example(batch))
    assert float(task.threshold) == 0.5
    before = task.compute_metrics(outputs, tune=False)
    assert before["salience_threshold"] == 0.5
    metrics = task.compute_metrics(outputs, tune=True)
    assert metrics["salience_threshold"] == pytest.approx(0.4)
    assert metrics["salience_f1"] == 1.0
    task.threshold.fill_(0.2)  # as of another validation
    assert task.compute_metrics(outputs, tune=False)["salience_f1"] < 1
    assert float(task.state_dict()["threshold"]) == pytest.approx(0.2)


def test_a_sample_shows_what_was_played_and_what_was_found() -> None:
    task, batch = task_of(), batch_of(CHORD, TUNE, seconds=(2.0, 1.0))
    output = perfect_output(task, batch, 87)
    sample = task.sample(output, task.example(batch), 1)
    assert [picture.title for picture in sample.pictures] == ["input", "target", "prediction"]
    assert [picture.values.shape for picture in sample.pictures] == [(48, 44), (271, 44), (271, 44)]
    np.testing.assert_allclose(sample.pictures[2].values, sample.pictures[1].values, atol=1e-5)
    assert sample.pictures[1].values.max() > 0.9
    assert len(sample.sounds["input"]) == RATE
    assert len(sample.reference) == len(sample.estimate) == 0


# --- Settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"thresholds": ()},
        {"thresholds": (0.5, 0.0)},
        {"spread_cents": 0.0},
        {"gamma": -1.0},
        {"labels": "onset"},
        {"loss": "l1"},
        {"bins_per_octave": 0},
        {"fmin": 0.0},
        {"fmin": 440.0, "fmax": 445.0},
        {"fmax": float("nan")},
    ],
)
def test_settings_that_can_not_be_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Salience(task_of().frontend, **settings)  # type: ignore[arg-type]


@given(st.integers(1, 100), st.floats(20, 400), st.integers(1, 300))
@settings(max_examples=200)
def test_bins_are_evenly_spaced_up_to_the_highest(per_octave: int, fmin: float, steps: int) -> None:
    for more in (1e-9, 0.5, 0.99):
        bins = log_bins(per_octave, fmin, fmin * 2 ** ((steps + more) / per_octave))
        assert len(bins) == steps + 1
        assert bins[0] == fmin
        np.testing.assert_allclose(np.diff(np.log2(bins)), 1 / per_octave, rtol=1e-6)


def test_bins_of_the_front_end_need_no_change_of_axis() -> None:
    task = small_task("log_frequency", "unet", "salience")
    assert any(isinstance(part, Rebin) and part.weight is not None for part in task.model.modules())
    cfg = compose(["data=synthetic", "frontend=cqt", "model=unet", "model.width=2", "task=salience"])
    frontend = make(cfg.frontend, "frontend", in_spec=AUDIO)
    cfg.task.update(bins_per_octave=24, fmin=27.5, fmax=frontend.out_spec.frequencies[-1])
    task = build_task(cfg, AUDIO)  # type: ignore[assignment]
    assert task.out_spec.frequencies == frontend.out_spec.frequencies
    assert not any(isinstance(part, Rebin) and part.weight is not None for part in task.model.modules())


# --- Learning --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["balanced", "focal"])
def test_a_small_net_learns_a_batch_by_heart(loss: str) -> None:
    cfg = compose(
        [
            *("data=synthetic", "data.sample_rate=16000", "data.seconds=1.0", "data.workers=0"),
            *("data.voices=[1,3]", "data.pitch=[100.0,1000.0]"),
            *("frontend=cqt", "frontend.fmin=100.0", "frontend.bins=120"),
            *("model=harmonic", "model.width=8", "model.dilations=[[1,1],[24,1],[1,2]]"),
            *("task=salience", "task.bins_per_octave=24", "task.fmin=100.0", "task.fmax=1100.0", f"task.loss={loss}"),
        ]
    )
    data = make(cfg.data, "data")
    data.setup()
    batch = collate([data.train_set[position] for position in range(4)])
    torch.manual_seed(0)
    task = build_task(cfg, data.spec)
    example = task.example(batch)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=0.02)
    task.train()
    for _ in range(50):
        optimizer.zero_grad()
        task.loss(task.apply_model(example.features), example)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        metrics = task.eval().compute_metrics(task.eval_outputs(task.apply_model(example.features), example), tune=True)
    assert metrics["salience_f1"] > 0.9
