"""Tasks: losses restated in float64, padding that does not count, and what a perfect output scores."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor

from parts import AUDIO, FRONTENDS, small_task, sound_of
from wavespace.config import compose
from wavespace.data.base import NO_NOTES, Batch, Item, Notes, collate
from wavespace.errors import Incompatible
from wavespace.frontends.base import FrontEnd, scaled
from wavespace.inference import stream
from wavespace.optim import AdamW
from wavespace.spec import PIANO_PITCHES, AudioSpec, FeatureSpec
from wavespace.tasks.base import Example, Task
from wavespace.tasks.piano_roll import HEADS, Conditioning, PianoRoll
from wavespace.tasks.reconstruction import Reconstruction
from wavespace.tasks.salience import Salience
from wavespace.tasks.self_salience import SelfSalience

RATE = AUDIO.sample_rate
NOTES: Notes = np.array([[0.1, 0.5, 60, 90], [0.1, 0.8, 64, 70], [0.55, 0.9, 60, 40], [0.95, 1.3, 108, 127]])


def piano_roll(**settings: object) -> PianoRoll:
    task = small_task("multi_resolution", "harmonic", "piano_roll", *(f"task.{k}={v}" for k, v in settings.items()))
    assert isinstance(task, PianoRoll)
    return task


def batch_of(*notes: Notes, seconds: tuple[float, ...] | None = None) -> Batch:
    """Items of one second, or of their own lengths, with these notes in them."""
    lengths = [round(RATE * s) for s in seconds or [1.0] * len(notes)]
    rng = np.random.default_rng(0)
    return collate([Item((0.1 * rng.normal(size=n)).astype("f4"), f"{n}", part) for n, part in zip(lengths, notes)])


def targets_of(notes: Notes, frames: int, frame_rate: float) -> NDArray[np.float64]:
    """Onset, frame, velocity, offset `(4, 88, T)` of notes, a cell at a time."""
    target = np.zeros((4, 88, frames))
    for onset, offset, pitch, velocity in notes:
        key = PIANO_PITCHES.index(int(pitch))
        for t in range(frames):
            height = max(0.0, 1 - abs(t - onset * frame_rate) / 2)
            if height > target[0, key, t]:
                target[0, key, t], target[2, key, t] = height, velocity / 127
            target[1, key, t] = max(target[1, key, t], onset * frame_rate <= t < offset * frame_rate)
            target[3, key, t] = max(target[3, key, t], 1 - abs(t - offset * frame_rate) / 2)
    return target


def cross_entropy(logit: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    probability = 1 / (1 + np.exp(-logit))
    return -target * np.log(probability) - (1 - target) * np.log(1 - probability)


@pytest.mark.parametrize(("given", "said"), [({"los": 0}, r"gives \['los'\]"), (torch.zeros(()), "gives a Tensor")])
def test_a_loss_of_another_form_is_told(given: object, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = small_task("mel", "unet", "reconstruction")
    monkeypatch.setattr(task, "loss", lambda *_: given)
    with pytest.raises(Incompatible, match=f"Reconstruction.loss {said}; it must give a dict of losses with 'loss'"):
        task.training_step(batch_of(NOTES), 0)


# --- Piano roll ------------------------------------------------------------------------------------------


def test_the_piano_roll_loss_is_the_formula_in_float64() -> None:
    weights = {
        "onset_weight": 3.0,
        "onset_positive": 5.0,
        "frame_weight": 2.0,
        "offset_weight": 0.5,
        "velocity_weight": 7.0,
    }
    task = piano_roll(**weights)
    batch = batch_of(NOTES, NO_NOTES, NOTES[:2] + np.array([0.013, 0.021, 3, 5]))
    output = 2 * torch.randn(3, 4, 88, 44, generator=torch.Generator().manual_seed(0))
    found = task.loss(output, task.example(batch))

    rate = RATE / 512
    targets = np.stack(
        [targets_of(batch.notes[batch.notes[:, 0] == i, 1:].double().numpy(), 44, rate) for i in range(3)]
    )
    logits = output.double().numpy()
    weight = np.where(targets[:, 0] > 0, 5.0, 1.0)
    expected = {
        "onset": np.mean(weight * cross_entropy(logits[:, 0], targets[:, 0])),
        "frame": np.mean(cross_entropy(logits[:, 1], targets[:, 1])),
        "offset": np.mean(cross_entropy(logits[:, 3], targets[:, 3])),
        "velocity": np.sum(targets[:, 0] * (1 / (1 + np.exp(-logits[:, 2])) - targets[:, 2]) ** 2)
        / max(1.0, targets[:, 0].sum()),
    }
    expected["loss"] = sum(weights[f"{name}_weight"] * value for name, value in expected.items())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-5), name


def perfect_output(task: PianoRoll, batch: Batch, frames: int) -> Tensor:
    rows = [batch.notes[batch.notes[:, 0] == i, 1:].double().numpy() for i in range(len(batch.names))]
    targets = np.stack([targets_of(notes, frames, task.out_spec.frame_rate) for notes in rows])
    return torch.logit(torch.tensor(targets, dtype=torch.float32).clamp(1e-4, 1 - 1e-4))


def test_the_targets_themselves_have_the_least_loss() -> None:
    task, batch = piano_roll(), batch_of(NOTES, NOTES[1:])
    best = perfect_output(task, batch, 44)
    least = task.loss(best, task.example(batch))
    generator = torch.Generator().manual_seed(0)
    for size in (0.1, 1.0, 4.0):
        for head in range(4):
            other = best.clone()
            other[:, head] += size * torch.randn(2, 88, 44, generator=generator)
            worse = task.loss(other, task.example(batch))
            assert worse["loss"] > least["loss"]
            assert worse[HEADS[head]] > least[HEADS[head]]


def test_the_targets_themselves_score_one_and_padding_is_not_decoded() -> None:
    task = piano_roll()
    inside = [NOTES[:3], NOTES[:2], NO_NOTES]
    batch = batch_of(*inside, seconds=(2.0, 1.0, 1.5))
    output = perfect_output(task, batch, 87)
    output[1, :2, 30, 50:] = 9.0  # a note in the padding of an item that has 44 frames
    outputs = task.eval_outputs(output, task.example(batch))
    assert [item.heads.shape for item in outputs] == [(4, 88, 87), (4, 88, 44), (4, 88, 65)]
    assert [item.seconds for item in outputs] == pytest.approx([2.0, 1.0, 1.5], abs=1e-4)
    for item, notes in zip(outputs, inside):
        np.testing.assert_allclose(task.decode(item.heads)[:, [0, 2, 3]], notes[:, [0, 2, 3]], atol=1e-3)
    metrics = task.compute_metrics(outputs, tune=False)
    for name in ("note_f1_onset", "note_f1_onset_offset", "note_f1_onset_offset_velocity"):
        assert metrics[name] == 1.0
    assert metrics["frame_f1"] > 0.95
    assert metrics["onset_threshold"] == 0.5


def test_a_note_from_before_the_item_is_scored_by_frames_alone() -> None:
    task = piano_roll()
    ringing = np.array([[-0.5, 0.4, 40, 80], *NOTES[:3]])
    batch = batch_of(ringing)
    output = perfect_output(task, batch, 44)
    assert output[0, 0, 40 - 21].max() < -5, "it has no onset to learn either"
    metrics = task.compute_metrics(task.eval_outputs(output, task.example(batch)), tune=False)
    assert metrics["note_f1_onset"] == 1.0
    assert metrics["frame_recall"] < 0.95, "as no note is decoded for it"


def test_validation_chooses_the_onset_threshold_and_the_checkpoint_keeps_it() -> None:
    task = piano_roll(onset_thresholds="[0.2,0.4,0.7]")
    batch = batch_of(NOTES[:3])
    output = perfect_output(task, batch, 44)
    quiet = torch.logit(0.55 * output[:, 0].sigmoid().clamp(1e-4, 1 - 1e-4))
    output[:, 0] = torch.maximum(quiet, torch.logit(torch.tensor(1e-4)))
    output[:, 0, 10, [5, 15, 25]] = torch.logit(torch.tensor(0.3))  # three weak onsets that are none
    assert float(task.onset_threshold) == 0.5
    assert task.compute_metrics(task.eval_outputs(output, task.example(batch)), tune=False)["onset_threshold"] == 0.5
    metrics = task.compute_metrics(task.eval_outputs(output, task.example(batch)), tune=True)
    assert metrics["onset_threshold"] == pytest.approx(0.4)
    assert metrics["note_f1_onset"] == 1.0
    assert float(task.state_dict()["onset_threshold"]) == pytest.approx(0.4)


def test_validation_chooses_how_notes_end_by_their_offsets() -> None:
    """The frame head dies away too soon and to 0.25 only; the offset head has a false maximum of 0.4 in each note."""
    task = piano_roll(frame_thresholds="[0.2,0.5]", offset_thresholds="[0.3,0.6]")
    batch = batch_of(NOTES[:3])
    heads = perfect_output(task, batch, 44).sigmoid()
    heads[:, 1] *= 0.25
    for onset, _, pitch, _ in NOTES[:3]:
        heads[0, 3, int(pitch) - 21, round(onset * task.out_spec.frame_rate) + 4] = 0.4
    output = torch.logit(heads.clamp(1e-4, 1 - 1e-4))
    metrics = task.compute_metrics(task.eval_outputs(output, task.example(batch)), tune=True)
    assert metrics["frame_threshold"] == pytest.approx(0.2)
    assert metrics["offset_threshold"] == pytest.approx(0.6)
    assert metrics["note_f1_onset_offset"] == 1.0
    assert float(task.state_dict()["offset_threshold"]) == pytest.approx(0.6)


def test_conditioning_changes_frames_and_offsets_by_their_own_key_and_leaves_onsets_alone() -> None:
    torch.manual_seed(0)
    layer = Conditioning().eval()
    torch.nn.init.normal_(layer.head.weight)
    heads = torch.randn(1, 4, 88, 100, requires_grad=True)
    out = layer(heads)
    torch.testing.assert_close(out[:, [0, 2]], heads[:, [0, 2]])
    changed = heads.detach().clone()
    changed[0, 0, 40, 50] += 3.0
    moved = (layer(changed) - out).abs().amax(dim=(0, 1)) > 1e-6  # (88, T)
    assert set(torch.nonzero(moved)[:, 0].tolist()) == {40}
    at = torch.nonzero(moved)[:, 1]
    assert int(at.min()) == 50 - layer.context
    assert int(at.max()) == 50 + layer.context
    out[:, 1].sum().backward()
    assert heads.grad is not None
    assert float(heads.grad[:, 0].abs().max()) == 0.0, "what frames make of onsets does not teach onsets"
    assert float(heads.grad[:, 1].abs().max()) > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"onset_thresholds": ()},
        {"onset_thresholds": (0.5, 0.0)},
        {"frame_thresholds": (1.5,)},
        {"offset_thresholds": ()},
    ],
)
def test_thresholds_that_can_not_be_are_refused_at_once(settings: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match="threshold"):
        PianoRoll(piano_roll().frontend, **settings)  # type: ignore[arg-type]


def test_a_sample_shows_what_was_played_and_what_was_found() -> None:
    task = piano_roll()
    batch = batch_of(NOTES[:3], NOTES[:2], seconds=(2.0, 1.0))
    output = perfect_output(task, batch, 87)
    sample = task.sample(output, task.example(batch), 1)
    assert [picture.title for picture in sample.pictures] == ["input", "target", "prediction"]
    assert [picture.values.shape for picture in sample.pictures] == [
        (task.frontend.out_spec.bins, 44),
        (88, 44),
        (88, 44),
    ]
    np.testing.assert_array_equal(sample.sounds["input"], batch.audio[1, 0, :RATE])
    np.testing.assert_allclose(sample.pictures[2].values, sample.pictures[1].values, atol=1e-3)
    assert len(sample.reference) == len(sample.estimate) == 2


def test_the_baseline_finds_the_notes_of_a_tone_sequence() -> None:
    task = small_task("multi_resolution", "peaks", "piano_roll")
    pitches = (60, 64, 67, 72, 76, 79, 84)
    notes = np.array([[0.3 + 0.4 * i, 0.6 + 0.4 * i, pitch, 90] for i, pitch in enumerate(pitches)])
    outputs = task.eval_batch(collate([Item(sound_of(notes, RATE, 3.5), "", notes)]))
    metrics = task.compute_metrics(outputs, tune=True)
    assert metrics["note_recall_onset"] >= 0.85
    assert metrics["note_f1_onset"] > 0.3  # partials are notes to it, too
    silence = task.eval_batch(collate([Item(np.zeros(RATE, np.float32), "")]))
    assert len(task.decode(silence[0].heads)) == 0  # type: ignore[attr-defined]


# --- Reconstruction --------------------------------------------------------------------------------------


def test_l1_is_a_mean_over_the_frames_that_hold_sound() -> None:
    task = small_task("log_frequency", "conv2d", "reconstruction")
    batch = batch_of(NO_NOTES, NO_NOTES, NO_NOTES, seconds=(1.0, 0.3, 0.01))
    batch.audio[0, :, RATE // 2 :] = 0
    example = task.example(batch)
    features = example.features
    output = features + torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    counts = [task.frontend.out_spec.frames(int(n), RATE) for n in batch.lengths]
    assert counts == [44, 13, 1]
    errors = [(output - features)[i, :, :, :n].double().abs().numpy() for i, n in enumerate(counts)]

    loss = task.loss(output, example)["loss"]
    assert float(loss) == pytest.approx(np.concatenate([e.ravel() for e in errors]).mean(), rel=1e-5)
    outputs = task.eval_outputs(output, example)
    assert [item.l1 for item in outputs] == pytest.approx([error.mean() for error in errors], rel=1e-5)
    metrics = task.compute_metrics(outputs, tune=True)
    assert metrics["loss"] == metrics["l1_db"] == pytest.approx(np.mean([e.mean() for e in errors]), rel=1e-5)
    sounding = [features[i, :, :, :n].numpy() > -80 for i, n in enumerate(counts)]
    assert 0 < np.mean(sounding[0]) < 1
    above = [error[where].mean() for error, where in zip(errors, sounding)]
    assert metrics["l1_db_above_floor"] == pytest.approx(np.mean(above), rel=1e-5)

    for i, n in enumerate(counts):  # what is beyond the end counts nowhere
        output[i, :, :, n:] = 1e6
    assert float(task.loss(output, example)["loss"]) == float(loss)
    assert task.eval_outputs(output, example) == outputs
    assert float(task.loss(features, example)["loss"]) == 0


class Silent(FrontEnd):
    """A front-end of any hop, for its spec alone."""

    def __init__(self, rate: int, hop: int) -> None:
        super().__init__(AudioSpec(rate, 1.0), FeatureSpec(1, (100.0, 200.0), rate / hop, "dB", -80, 0))


@settings(deadline=None, max_examples=200)
@given(
    rate=st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000]),
    hop=st.integers(100, 1_000),
    count=st.integers(1, 50_000),
    beside=st.sampled_from([-1, 0, 1]),
)
def test_frames_that_count_are_those_of_the_spec_in_recordings_of_minutes(
    rate: int, hop: int, count: int, beside: int
) -> None:
    task = Reconstruction(Silent(rate, hop))
    samples = count * hop + beside
    frames = task.out_spec.frames(samples, rate)
    features = torch.zeros(1, 1, 1, frames + 2)
    batch = Batch(torch.zeros(1, 1, 1), torch.tensor([samples]), torch.zeros(0, 5), {}, [""])
    output = torch.zeros_like(features)
    output[..., frames:] = 1.0
    example = Example(batch, features, task.targets(batch, features))
    assert float(task.loss(output, example)["loss"]) == 0
    output[..., frames - 1] = 1.0
    assert float(task.loss(output, example)["loss"]) > 0


def test_a_perfect_reconstruction_sounds_as_its_input_resynthesised() -> None:
    task = small_task("log_frequency", "conv2d", "reconstruction")
    batch = batch_of(NO_NOTES, NO_NOTES, seconds=(0.5, 0.3))
    example = task.example(batch)
    sample = task.sample(example.features, example, 1)
    samples = round(0.3 * RATE)
    np.testing.assert_array_equal(sample.sounds["input"], batch.audio[1, 0, :samples])
    np.testing.assert_array_equal(sample.sounds["reconstruction"], sample.sounds["input, resynthesised"])
    assert sample.sounds["reconstruction"].shape == (samples,)
    assert not sample.pictures[2].values.any()
    silent = small_task("multi_resolution", "conv2d", "reconstruction")  # which has no inverse
    example = silent.example(batch)
    assert list(silent.sample(example.features, example, 0).sounds) == ["input"]


# --- Shared ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [PianoRoll, Reconstruction, Salience, SelfSalience])
def test_the_shipped_configuration_has_the_defaults_of_the_class(task: type[Task]) -> None:
    name = task.__module__.rpartition(".")[2]
    shipped: Any = OmegaConf.to_container(compose([f"task={name}"]).task, resolve=True)
    assert shipped.pop("_target_") == f"{task.__module__}.{task.__name__}"
    defaults = {name: p.default for name, p in inspect.signature(task).parameters.items() if name != "frontend"}
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in shipped.items()} == defaults


def test_int16_audio_is_the_same_sound() -> None:
    task = small_task("log_frequency", "conv2d", "reconstruction")
    whole = np.random.default_rng(0).integers(-32768, 32768, RATE).astype(np.int16)
    numbers = collate([Item(whole, "")]).audio
    floats = collate([Item((whole / 32768).astype(np.float32), "")]).audio
    assert torch.equal(scaled(numbers), floats)
    assert torch.equal(task.frontend(numbers), task.frontend(floats))


WAVE = np.random.default_rng(0).integers(-9000, 9000, RATE).astype(np.int16)


@pytest.mark.parametrize("name", FRONTENDS)
def test_a_front_end_takes_whatever_is_audio_and_refuses_what_is_not(name: str) -> None:
    task = small_task(name, "conv2d", "reconstruction")
    expected = task.frontend(torch.from_numpy(WAVE / 32768).float().reshape(1, 1, -1))
    for audio in (WAVE, torch.from_numpy(WAVE), WAVE / 32768, (WAVE / 32768).astype(np.float32)):
        for entry in (task.frontend, task.frontend.raw_features):
            torch.testing.assert_close(entry(audio.reshape(1, 1, -1)), expected)
        assert task(audio.reshape(1, 1, -1)).shape[0] == 1
        for shape in ((-1,), (1, -1), (1, 2, -1), (1, 1, 1, -1)):
            with pytest.raises(ValueError, match=r"a front-end takes \(batch, 1, samples\)"):
                task.frontend(audio.reshape(shape))
    for wrong in (np.int32, np.uint8, bool):
        with pytest.raises(TypeError, match="it must be floating point"):
            task.frontend(WAVE.astype(wrong).reshape(1, 1, -1))


def test_a_stream_takes_int16_and_refuses_what_is_not_mono() -> None:
    task = small_task("mel", "conv2d", "reconstruction")
    floats = torch.cat(list(stream(task, [(WAVE / 32768).astype(np.float32)])), -1)
    torch.testing.assert_close(torch.cat(list(stream(task, [WAVE])), -1), floats)
    with pytest.raises(ValueError, match="it must be mono"):
        list(stream(task, [WAVE.reshape(2, -1)]))
    with pytest.raises(TypeError, match="or int16"):
        list(stream(task, [WAVE.astype(np.int32)]))


@given(
    warmup=st.floats(0, 0.9),
    final=st.floats(0, 1),
    lr=st.floats(1e-6, 1),
    times=st.lists(st.floats(0, 1), min_size=2),
)
def test_the_rate_rises_linearly_and_falls_as_a_cosine(
    warmup: float, final: float, lr: float, times: list[float]
) -> None:
    optim = AdamW(lr=lr, warmup=warmup, final=final)
    for progress in times:
        if progress < warmup:
            expected = lr * progress / warmup
        else:
            expected = lr * (final + (1 - final) * np.cos(np.pi / 2 * (progress - warmup) / (1 - warmup)) ** 2)
        assert optim.rate(progress) == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert optim.rate(warmup) == pytest.approx(lr)
    assert optim.rate(1.0) == pytest.approx(lr * final)


def test_weight_decay_spares_biases_and_norms() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    decayed, spared = AdamW(weight_decay=0.5).build(model).param_groups
    assert decayed["weight_decay"] == 0.5
    assert decayed["params"] == [model[0].weight]
    assert spared["weight_decay"] == 0.0
    assert {id(p) for p in spared["params"]} == {id(model[0].bias), id(model[1].weight), id(model[1].bias)}


@pytest.mark.parametrize(
    "settings",
    [{"lr": 0.0}, {"lr": float("nan")}, {"weight_decay": -1.0}, {"betas": (0.9, 1.0)}, {"warmup": 1.0}, {"final": 1.1}],
)
def test_optimizer_settings_that_can_not_be_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} = "):
        AdamW(**settings)  # type: ignore[arg-type]


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(Incompatible, match="no parameters to train"):
        small_task("multi_resolution", "peaks", "piano_roll").configure_optimizers()
