"""Salience without labels: its reconstruction, the terms of its losses, and that no note of the data trains it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from parts import AUDIO
from wavespace.build import build_task
from wavespace.config import compose
from wavespace.data.base import NO_NOTES, Batch, Item, collate, rng_for
from wavespace.data.synthesis.tones import Tones
from wavespace.errors import Incompatible
from wavespace.tasks.salience import log_bins
from wavespace.tasks.self_salience import (
    SLACK,
    SelfSalience,
    any_channel,
    entropy,
    focal_by_pitch,
    level,
    octave_errors,
    shift_bins,
)
from wavespace.units import midi_to_hz

RATE = AUDIO.sample_rate
SMALL = ["data=rendered", "frontend=cqt", "frontend.bins=180", "frontend.fmin=55.0", "frontend.hop=1024",
         "model=harmonic", "model.width=4", "model.dilations=[[1,1],[24,1]]", "task=self_salience",
         "task.tone_windows=2"]  # fmt: skip
OFF: dict[str, Any] = {"reconstruction": 0, "margin": "null", "consistency": 0, "tones": 0, "decay": 0}


composed = lru_cache(compose)  # takes longer than a step of a small net


def task_of(*overrides: str, **settings: Any) -> SelfSalience:
    cfg = composed((*SMALL, *overrides, *(f"task.{key}={value}" for key, value in settings.items())))
    torch.manual_seed(0)
    built = build_task(cfg, AUDIO)
    assert isinstance(built, SelfSalience)
    return built


def batch_of(count: int = 2, seed: int = 0) -> Batch:
    return collate([Tones(RATE, 1.0).item(rng_for(seed, i), f"{i}") for i in range(count)])


def losses_of(task: SelfSalience, batch: Batch, seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    example = task.training_example(batch) if task.training else task.example(batch)
    losses = task.loss(task.apply_model(example.features), example)
    if task.training:
        task.after_step(losses)
    return losses


# --- What is rebuilt -------------------------------------------------------------------------------------


def test_a_map_of_nothing_and_any_map_of_silence_rebuild_silence() -> None:
    task = task_of()
    loud = task.frontend(batch_of().audio)
    silent = torch.full_like(loud, -80.0)
    shape = (2, 1, task.out_spec.bins, loud.shape[-1])
    assert (task.synthesis(torch.zeros(shape), loud) == 0).all()
    assert (task.synthesis(torch.rand(shape), silent) == 0).all()
    assert (level(task.amplitude(silent)) == 0).all()
    assert float(task.unexplained(torch.randn(shape), silent).detach()) == 0
    assert float(task.unexplained(torch.full(shape, -100.0), loud).detach()) == pytest.approx(1, abs=1e-6)


def test_what_is_rebuilt_is_the_formula() -> None:
    task = task_of(timbres=2, harmonics=5)
    features = task.frontend(batch_of().audio)[..., :3].double()
    task = task.double()
    shares = torch.rand(2, 2, task.out_spec.bins, 3, dtype=torch.float64)
    found = task.synthesis(shares, features).detach().numpy()
    amplitude = 10 ** (features[:, 0].numpy() / 20) - 1e-4
    frequencies = np.array(task.frontend.out_spec.frequencies)
    kernels = task.kernels().detach().numpy()
    expected = np.zeros_like(amplitude)
    for i, pitch in enumerate(task.out_spec.frequencies):
        rows = [int(np.rint(24 * np.log2(h * pitch / frequencies[0]))) for h in (1, 2, 3)]
        energy = np.max([amplitude[:, r] for r in rows if 0 <= r < len(frequencies)] or [amplitude[:, 0] * 0], axis=0)
        for c, kernel in enumerate(kernels):
            for h, weight in enumerate(kernel, 1):
                lobe = np.maximum(0, 1 - np.abs(24 * np.log2(frequencies / (h * pitch))) / 2)  # (F,)
                expected += weight * lobe[:, None] * (shares[:, c, i].numpy() * energy)[:, None]
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_a_perfect_rebuilding_costs_nothing_and_any_other_something() -> None:
    task = task_of()
    features = task.frontend(batch_of().audio)
    output = torch.randn(2, 1, task.out_spec.bins, features.shape[-1])
    rebuilt = task.synthesis(task.channels(output), features).detach()
    wrong = float(task.unexplained(output, features).detach())
    task.synthesis = lambda shares, given: task.amplitude(given)  # type: ignore[method-assign]
    assert float(task.unexplained(output, features).detach()) == 0 < wrong
    task.synthesis = lambda shares, given: rebuilt  # type: ignore[method-assign]
    assert float(task.unexplained(output, features).detach()) == pytest.approx(wrong)


@pytest.mark.parametrize("steps", [-24, 5, 24])
def test_a_transposed_map_rebuilds_the_transposed_spectrogram(steps: int) -> None:
    task = task_of(harmonics=4)
    features = torch.full((1, 1, 180, 2), -80.0)
    features[:, :, 70:110] = -60 + 50 * torch.rand(1, 1, 40, 2)
    shares = torch.zeros(1, 1, task.out_spec.bins, 2)
    shares[:, :, 82:100] = torch.rand(1, 1, 18, 2)
    found = task.synthesis(shift_bins(shares, steps, 0.0), shift_bins(features, steps, -80.0))
    expected = shift_bins(task.synthesis(shares, features), steps, 0.0)
    assert float(expected.detach().max()) > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_transposed_input_has_the_transposed_map() -> None:
    task = task_of("model.harmonics=[1,2,3]")
    losses_of(task.train(), batch_of())
    task.eval()
    features = torch.full((1, 1, 180, 8), -80.0)
    features[:, :, 80:95] = -60 + 50 * torch.rand(1, 1, 15, 8)
    with torch.no_grad():
        plain, moved = (task.salience(task.apply_model(x)) for x in (features, shift_bins(features, 10, -80.0)))
    torch.testing.assert_close(moved[:, 60:130], plain[:, 50:120], rtol=1e-4, atol=1e-5)


def test_the_map_is_wider_than_the_band() -> None:
    task = task_of()
    band = task.frontend.out_spec.frequencies
    assert task.out_spec.frequencies[0] == pytest.approx(band[0] / 2)
    # The lowest bin of the band can be a partial of a pitch below it.
    assert float(task.partials[1:, 0].sum()) > 0


# --- Losses ----------------------------------------------------------------------------------------------


def test_no_note_of_the_data_teaches() -> None:
    batch = batch_of()
    seen, unseen = (losses_of(task_of().train(), b) for b in (batch, batch._replace(notes=batch.notes[:0])))
    assert seen.keys() == unseen.keys()
    assert all(torch.equal(seen[key], unseen[key]) for key in seen)


@pytest.mark.parametrize(
    ("settings", "terms"),
    [
        ({}, {"reconstruction", "sparsity", "constraint", "multiplier", "consistency", "tones", "decay"}),
        (OFF, set()),
        (OFF | {"reconstruction": 1}, {"reconstruction"}),
        (OFF | {"margin": 1}, {"sparsity", "constraint", "multiplier"}),
        (OFF | {"consistency": 1}, {"consistency"}),
        (OFF | {"tones": 1}, {"tones"}),
        (OFF | {"decay": 1}, {"decay"}),
        (OFF | {"smoothness": 1}, {"smoothness"}),
    ],
)
def test_an_ingredient_without_weight_is_not_there(settings: dict[str, Any], terms: set[str]) -> None:
    task = task_of(**settings).train()
    losses = losses_of(task, batch_of())
    assert set(losses) == terms | {"loss"}
    parts = terms - {"constraint", "multiplier"}
    assert float(losses["loss"].detach()) == pytest.approx(
        sum(float(losses[part].detach()) for part in parts), rel=1e-6, abs=1e-6
    )
    assert losses["loss"].requires_grad


def test_training_alone_adds_to_a_batch_and_a_loss_changes_nothing() -> None:
    task, batch = task_of(margin=50), batch_of()
    assert len(task.example(batch).features) == 2
    torch.manual_seed(0)
    example = task.train().training_example(batch)
    assert len(example.features) == 2 + 2 + 2
    output = task.apply_model(example.features)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    first, second = (task.loss(output, example) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(before[name], value) for name, value in task.state_dict().items())
    task.after_step(first)
    assert float(task.multiplier) > 0


def test_the_multiplier_rises_while_the_constraint_is_violated_and_falls_while_it_is_met() -> None:
    task = task_of(margin=50, ascent=0.1).train()
    batch = batch_of()
    values = [float(losses_of(task, batch)["multiplier"]) for _ in range(3)]
    assert values[0] == 0 < values[1] < values[2]
    task.margin = -50.0
    highest = float(task.multiplier)
    assert float(losses_of(task, batch)["constraint"]) == pytest.approx(-SLACK)
    assert float(task.multiplier) == pytest.approx(highest - 0.1 * SLACK)
    task.ascent = 2 * highest / SLACK
    losses_of(task, batch)
    assert float(task.multiplier) == 0
    assert "multiplier" in task.state_dict()
    before = float(task.multiplier)
    losses_of(task.eval(), batch)
    assert float(task.multiplier) == before


def test_the_violation_is_what_frames_that_sound_lack_and_none_makes_up_for_another() -> None:
    task = task_of(margin=2.5)
    features = torch.full((1, 1, 180, 3), -80.0)
    features[0, 0, :16, :2] = -20.0  # sixteen equal bins, twice, then silence
    output = torch.full((1, 1, task.out_spec.bins, 3), -100.0)
    output[0, 0, [10, 20], 0] = 3.0  # two equal pitches, then one, which is sparser than it has to be
    output[0, 0, 10, 1] = 3.0
    lacking = np.log(2) - np.log(16) + 2.5
    assert float(task.violation(output, features)) == pytest.approx(lacking / 2 - SLACK, abs=1e-4)
    assert float(task.violation(output, torch.full_like(features, -80.0))) == pytest.approx(-SLACK)


def test_entropy_of_nothing_is_nothing_and_has_a_gradient() -> None:
    values = torch.zeros(1, 5, 2, requires_grad=True)
    entropy(values).sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert float(entropy(torch.ones(1, 5, 1))) == pytest.approx(np.log(5), rel=1e-5)


def test_channels_join_to_the_chance_that_any_is_on() -> None:
    output = torch.tensor(np.random.default_rng(0).normal(0, 4, (1, 3, 7, 2)))
    expected = 1 - (1 - output.sigmoid()).prod(1)
    torch.testing.assert_close(any_channel(output).sigmoid(), expected, rtol=1e-4, atol=1e-6)
    far = torch.tensor([[[[-80.0]], [[-80.0]]], [[[80.0]], [[80.0]]]], requires_grad=True)
    any_channel(far).sum().backward()
    assert far.grad is not None
    assert far.grad.isfinite().all()


@pytest.mark.parametrize("timbres", [1, 2])
def test_the_gradient_reaches_every_parameter_and_kernels_stay_non_negative(timbres: int) -> None:
    task = task_of(timbres=timbres, decay=1.0).train()
    batch = batch_of()
    optimizer = torch.optim.SGD(task.parameters(), lr=30.0)
    losses_of(task, batch)["loss"].backward()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name
    before = task.kernels().detach().clone()
    for _ in range(3):
        optimizer.step()
    assert not torch.equal(task.kernels(), before)
    assert (task.kernels() >= 0).all()
    assert task.kernels().shape == (timbres, 10)


@pytest.mark.parametrize("term", ["reconstruction", "tones"])
def test_a_small_net_learns_a_batch_by_heart(term: str) -> None:
    task = task_of(**OFF | {term: 1}).train()
    batch = batch_of()
    torch.manual_seed(1)
    example = task.training_example(batch)
    optimizer = torch.optim.AdamW(task.parameters(), lr=2e-2)
    history = []
    for _ in range(30):
        loss = task.loss(task.apply_model(example.features), example)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.6 * history[0]


# --- Tones -----------------------------------------------------------------------------------------------


def test_tones_sound_where_their_notes_say() -> None:
    tones = Tones(RATE, 1.0, notes=4)
    task = task_of()
    hits = []
    for i in range(20):
        item = tones.item(rng_for("tones", i))
        assert item.audio.dtype == np.float32
        assert len(item.audio) == RATE
        assert np.abs(item.audio).max() <= 0.99
        assert (item.notes[:, 1] > item.notes[:, 0]).all()
        frames = task.frontend(torch.tensor(item.audio)[None, None])[0, 0]  # (F, T)
        for onset, offset, pitch, _ in item.notes:
            middle = round((max(0, onset) + min(1, offset)) / 2 * RATE / 1024)
            if midi_to_hz(pitch) > 200 and offset - onset > 0.3 and 2 < middle < frames.shape[1] - 2:
                row = round(24 * np.log2(midi_to_hz(pitch) / 55.0))
                column = frames[:, middle]
                hits.append(max(column[min(179, row + d)] for d in (0, 24, 38)) > column.median() + 10)
    assert np.mean(hits) > 0.9
    assert len(hits) > 15


def test_a_melody_is_one_note_after_the_other_and_a_chord_is_not() -> None:
    legato, most = [], {0.0: 0, 1.0: 0}
    for melodies in most:
        for i in range(20):
            onset, offset, pitch, _ = Tones(RATE, 3.0, melodies=melodies).item(rng_for("line", i)).notes.T
            assert ((pitch > 23) & (pitch < 108)).all()
            sounding = (onset[:, None] >= onset) & (onset[:, None] < offset - 1e-9)  # (K, K)
            most[melodies] = max(most[melodies], int(sounding.sum(1).max()))
            if melodies:
                legato += [np.abs(offset - start).min() < 1e-9 for start in onset]
    assert most[1.0] < most[0.0] / 2
    assert np.mean(legato) > 0.3


def test_tones_are_a_function_of_their_generator() -> None:
    tones = Tones(RATE, 0.5)
    first, again, other = (tones.item(rng_for(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.audio, again.audio)
    assert len(first.audio) != len(other.audio) or not np.array_equal(first.audio, other.audio)


def test_an_octave_too_many_costs_more_and_other_errors_do_not() -> None:
    target = torch.zeros(1, 20, 1)
    target[0, [9, 12]] = torch.tensor([[1.0], [0.5]])
    off = octave_errors(target, 3)  # three bins an octave: 9 and 12 are one apart
    expected = torch.zeros(20)
    expected[[3, 6, 15]] = 1.0
    expected[[12, 18]] = 0.5
    torch.testing.assert_close(off[0, :, 0], expected)
    assert not octave_errors(target, 30).any()

    def cost(bin: int, octaves: float) -> float:
        logit = target.logit(0.002)
        logit[0, bin] = 3.0
        return float(focal_by_pitch(logit, target, 1 + octaves * octave_errors(target, 3)))

    assert cost(15, 4) == pytest.approx(5 * cost(15, 0), rel=0.05)
    assert cost(10, 4) == pytest.approx(cost(10, 0), rel=0.05)


# --- The task --------------------------------------------------------------------------------------------


def test_validation_scores_by_notes_and_says_what_is_left_unexplained() -> None:
    task = task_of()
    batch = batch_of(3)
    losses_of(task.train(), batch)
    task.eval()
    with torch.no_grad():
        metrics = task.compute_metrics(task.eval_batch(batch), tune=True)
        example = task.example(batch)
        sample = task.sample(task.apply_model(example.features), example, 0)
    assert {"salience_f1", "unexplained", "constraint", "loss"} <= set(metrics)
    rebuilt = sample.pictures[-1]
    assert rebuilt.title == "rebuilt"
    assert rebuilt.values.shape == (180, 22)
    assert rebuilt.values.min() >= -80


def test_silence_has_no_pitch_to_rebuild() -> None:
    task = task_of()
    silent = collate([Item(np.zeros(RATE, np.float32), "silence", NO_NOTES)])
    losses = losses_of(task.train(), silent)
    assert losses["loss"].isfinite()
    losses["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())
    assert float(losses["reconstruction"].detach()) == 0


def test_normalised_features_are_refused() -> None:
    with pytest.raises(Incompatible, match="frontend=cqt"):
        task_of("frontend.normalize=frame")


@pytest.mark.parametrize(
    "settings",
    [
        {"timbres": 0}, {"harmonics": 0}, {"below": -1}, {"tones": -1}, {"tone_melodies": 2}, {"tone_octaves": -1},
        {"fmax": 20.0}, {"thresholds": "[]"},
    ],
)  # fmt: skip
def test_settings_that_can_not_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=next(iter(settings))):
        task_of(**settings)


def test_bins_are_those_of_the_front_end_with_more_below() -> None:
    task = task_of(fmax=4000)
    np.testing.assert_allclose(task.out_spec.frequencies, log_bins(24, 27.5, 4000.0), rtol=1e-9)
