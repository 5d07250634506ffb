"""Normalisation: what each kind does to features, what the spec says of it, and that training measures a front-end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from wavespace import checkpoint
from wavespace.build import build, check_shapes
from wavespace.config import compose
from wavespace.config.construction import make
from wavespace.data.base import Batch, DataModule, collate
from wavespace.errors import ConfigError, Incompatible
from wavespace.frontends.base import LEAST, FrontEnd, scaled
from wavespace.frontends.cqt import CQT, HarmonicCQT
from wavespace.frontends.mel import Mel
from wavespace.frontends.nnaudio import NnAudioCQT, NnAudioSTFT
from wavespace.frontends.stft import LogFrequency, MultiResolution
from wavespace.models.blocks import Scale
from wavespace.models.harmonic import Harmonic
from wavespace.models.peaks import Peaks
from wavespace.optim import AdamW
from wavespace.runfolder import RunFolder
from wavespace.spec import AudioSpec, FeatureSpec, Normalization
from wavespace.tasks.base import Task
from wavespace.tasks.piano_roll import PianoRoll
from wavespace.tasks.reconstruction import Reconstruction
from wavespace.training import baseline, run

AUDIO = AudioSpec(sample_rate=8000, seconds=1.0)
SMALL: dict[type[FrontEnd], dict[str, Any]] = {
    LogFrequency: {"bins": 40, "n_fft": 1024, "hop": 256},
    Mel: {"bins": 30, "n_fft": 1024, "hop": 256},
    MultiResolution: {"bins_per_octave": 12, "fmin": 100.0, "n_ffts": (1024,), "crossovers": (), "hop": 256},
    CQT: {"bins": 40, "bins_per_octave": 12, "fmin": 110.0, "hop": 256},
    HarmonicCQT: {"bins": 30, "bins_per_octave": 12, "fmin": 110.0},
    NnAudioCQT: {"bins": 40, "bins_per_octave": 12, "fmin": 110.0, "hop": 256},
    NnAudioSTFT: {"bins": 40, "n_fft": 1024, "hop": 256},
}
in_decibels = pytest.mark.parametrize("kind", list(SMALL), ids=lambda kind: kind.__name__)


def small(kind: type[FrontEnd], normalize: Normalization = "none", **changed: Any) -> FrontEnd:
    return kind(AUDIO, normalize=normalize, **SMALL[kind] | changed)


class Latents(FrontEnd):
    """Three channels that are the audio itself, a sample a frame, times 1, 2 and -3."""

    def __init__(self, normalize: Normalization) -> None:
        super().__init__(AUDIO, FeatureSpec(3, (2000.0,), 8000.0, "latent", -10.0, 10.0), normalize)

    def compute(self, audio: Tensor) -> Tensor:
        return torch.stack([audio, 2 * audio, -3 * audio], 1).unsqueeze(2)  # (B, 3, 1, N)


def noise(*shape: int, level: float = 0.1) -> Tensor:
    return level * torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def fading(samples: int = 16_000) -> Tensor:
    """A chord `(1, 1, N)` that falls by 20 dB, and noise far below it."""
    t = torch.arange(samples, dtype=torch.float64) / 8000
    tones = sum((torch.sin(2 * torch.pi * hz * t) for hz in (220.0, 277.2, 329.6, 1318.5)), torch.zeros(samples))
    fall = 10 ** (-t / t[-1])
    return ((0.2 * tones + noise(samples, level=1e-3).double()) * fall).float()[None, None]


# --- By frame ----------------------------------------------------------------------------------------------


@in_decibels
def test_by_frame_is_decibels_below_the_peak_of_each_frame(kind: type[FrontEnd]) -> None:
    audio = fading()
    features = small(kind, "frame")(audio)[0].double().numpy()  # (C, F, T)
    levels = small(kind, floor_db=-180.0)(audio)[0].double().numpy()
    expected = np.maximum(levels - levels.max((0, 1)), -80)
    np.testing.assert_allclose(features, expected, atol=1e-4)
    assert (features.max((0, 1)) == 0).all()
    assert features.min() >= -80


@in_decibels
@pytest.mark.parametrize("gain", [2.0**-5, 0.25, 2.0, 16.0])
def test_by_frame_gain_changes_nothing(kind: type[FrontEnd], gain: float) -> None:
    """Powers of two scale float32 exactly, so that all that may differ is the logarithm's last digit."""
    front_end, audio = small(kind, "frame"), fading()
    assert small(kind)(audio * gain).amax((1, 2)).min() > -80  # no frame is silence
    features = front_end(audio)
    assert (features < -40).any()
    torch.testing.assert_close(front_end(audio * gain), features, atol=1e-4, rtol=0)


@in_decibels
@settings(max_examples=15, deadline=None)
@given(decibels=st.floats(-20, 20))
def test_by_frame_any_gain_changes_nothing_but_rounding(kind: type[FrontEnd], decibels: float) -> None:
    front_end, audio = small(kind, "frame"), noise(1, 1, 8_000)
    features, other = front_end(audio), front_end(audio * 10 ** (decibels / 20))
    # An FFT in float32 rounds at 1e-7 of the frame's largest bin, which is 1e-4 dB of one 40 dB below it.
    heard = features > -40
    assert heard.float().mean() > 0.9 or kind is HarmonicCQT  # whose upper channels end at the Nyquist frequency
    torch.testing.assert_close(other[heard], features[heard], atol=1e-3, rtol=0)


@in_decibels
def test_by_frame_silence_is_the_floor_and_has_a_gradient(kind: type[FrontEnd]) -> None:
    front_end = small(kind, "frame", floor_db=-70.0)
    quiet = noise(1, 1, 8_000, level=1e-5)  # bins of noise lie lower still
    assert (front_end(quiet) == -70).all()
    audio = torch.zeros(1, 1, 8_000, requires_grad=True)
    features = front_end(audio)
    assert (features == -70).all()
    features.sum().backward()
    assert audio.grad is not None
    assert audio.grad.isfinite().all()


def test_by_frame_knows_neither_its_neighbours_nor_the_rest_of_the_batch() -> None:
    front_end, audio = small(LogFrequency, "frame"), fading()
    loud_end = audio.clone()
    loud_end[..., 8_000:] *= 100
    both = front_end(torch.cat([audio, loud_end]))
    torch.testing.assert_close(both[:1], front_end(audio), atol=1e-3, rtol=0)
    torch.testing.assert_close(both[1, ..., :28], both[0, ..., :28], atol=1e-3, rtol=0)


def test_latents_by_frame_have_a_mean_square_of_one() -> None:
    audio = noise(2, 1, 500)
    audio += 0.01 * audio.sign()
    features = Latents("frame")(audio)
    torch.testing.assert_close(features.square().mean((1, 2)), torch.ones(2, 500), atol=1e-4, rtol=0)
    expected = audio.sign() * torch.tensor([1.0, 2.0, -3.0]).view(3, 1) / math.sqrt(14 / 3)  # (2, 3, 500)
    torch.testing.assert_close(features[:, :, 0], expected, atol=1e-4, rtol=0)
    silence = Latents("frame")(torch.zeros(1, 1, 10))
    assert torch.equal(silence, torch.zeros(1, 3, 1, 10))


# --- By dataset --------------------------------------------------------------------------------------------


@in_decibels
def test_by_dataset_is_what_scikit_learn_scales_to(kind: type[FrontEnd]) -> None:
    """`StandardScaler` on rows of frames, in float64; small deviations are raised to a hundredth of the range."""
    batches = [noise(2, 1, 9_000), 0.1 * fading(), noise(3, 1, 4_000, level=1e-3)]
    front_end, plain = small(kind, "dataset"), small(kind)
    front_end.measure(batches)

    def rows(features: Tensor) -> np.ndarray[Any, Any]:  # (B, C, F, T) to (B * T, C * F)
        return features.double().permute(0, 3, 1, 2).flatten(2).flatten(0, 1).numpy()

    scaler = StandardScaler().fit(np.concatenate([rows(plain(audio)) for audio in batches]))
    deviation = np.maximum(np.sqrt(scaler.var_), 0.8)
    if kind is not HarmonicCQT:  # whose upper channels end at the Nyquist frequency
        assert (scaler.var_ > 0.64).all()
    np.testing.assert_allclose(front_end.mean.flatten().numpy(), scaler.mean_, rtol=1e-6)
    np.testing.assert_allclose(front_end.std.flatten().numpy(), deviation, rtol=1e-6)
    audio = noise(2, 1, 7_000, level=0.02)
    expected = (rows(plain(audio)) - scaler.mean_) / deviation
    np.testing.assert_allclose(rows(front_end(audio)), expected, atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 23), max_size=6), level=st.floats(0.01, 100), offset=st.floats(-1000, 1000))
def test_how_the_audio_is_divided_does_not_matter(cuts: list[int], level: float, offset: float) -> None:
    """Nor does a mean far from zero: the audio here is the feature."""
    audio = noise(24, 1, 50, level=level) + offset
    front_end = Latents("dataset")
    edges = [0, *sorted(set(cuts)), 24]
    front_end.measure(audio[first:last] for first, last in zip(edges, edges[1:]))
    exact = audio.double().numpy()
    np.testing.assert_allclose(front_end.mean.flatten(), exact.mean() * np.array([1, 2, -3]), rtol=1e-6, atol=1e-6)
    deviation = np.maximum(exact.std() * np.array([1, 2, 3]), LEAST * 20)
    np.testing.assert_allclose(front_end.std.flatten(), deviation, rtol=1e-5)


def test_what_never_changes_reads_zero_and_what_is_new_there_stays_in_reach() -> None:
    front_end = small(LogFrequency, "dataset", floor_db=-50.0)
    tone = torch.sin(torch.arange(8_000) * 0.3)[None, None]
    front_end.measure([tone, tone])
    silent = (front_end.mean[0, :, 0] == -50).nonzero().flatten()  # bins far from the tone
    assert len(silent) > 5
    assert (front_end.std[0, silent] == 0.5).all()
    assert (front_end(tone)[0, 0, silent] == 0).all()
    assert 10 < front_end(noise(1, 1, 8_000))[0, 0, silent].max() <= 50 / 0.5


def test_by_dataset_is_undone_before_the_inverse() -> None:
    front_end, plain, audio = small(Mel, "dataset"), small(Mel), fading()
    front_end.measure([audio, noise(1, 1, 8_000)])
    assert front_end.invertible
    features = front_end(audio)
    back = features * front_end.std + front_end.mean
    torch.testing.assert_close(back, plain(audio), atol=1e-4, rtol=0)
    assert torch.equal(front_end.inverse(features, 16_000), plain.inverse(back, 16_000))


def test_only_a_front_end_by_dataset_is_measured_and_only_on_audio() -> None:
    with pytest.raises(ValueError, match="normalize is frame; only a front-end with dataset is measured"):
        small(Mel, "frame").measure([noise(1, 1, 1_000)])
    with pytest.raises(ValueError, match="there is no audio to measure"):
        small(Mel, "dataset").measure([])


def test_until_it_is_measured_values_are_as_they_come() -> None:
    front_end, audio = small(CQT, "dataset"), noise(1, 1, 4_000)
    assert torch.equal(front_end(audio), small(CQT)(audio))
    with torch.device("meta"):
        front_end = small(CQT, "dataset")
        assert front_end(torch.empty(2, 1, 8_000)).shape == (2, 1, 40, 32)
        assert front_end.mean.is_meta


# --- What the spec says, and who takes it ------------------------------------------------------------------


@in_decibels
def test_the_spec_and_the_checkpoint_say_which(kind: type[FrontEnd]) -> None:
    none, frame, dataset = (small(kind, normalize) for normalize in ("none", "frame", "dataset"))  # type: ignore[arg-type]
    assert (none.out_spec.unit, none.out_spec.low, none.out_spec.high) == ("dB", -80, 0)
    assert (frame.out_spec.unit, frame.out_spec.low, frame.out_spec.high) == ("dB", -80, 0)
    assert (dataset.out_spec.unit, dataset.out_spec.low, dataset.out_spec.high) == ("standardized", -4, 4)
    for front_end, said in (
        (none, "dB"),
        (frame, "dB, normalised by frame"),
        (dataset, "standardized, normalised by dataset"),
    ):
        assert str(front_end.out_spec).endswith(f" frames/s, {said}")
        assert front_end.out_spec.to_dict()["normalization"] == front_end.out_spec.normalization
        assert front_end.out_spec.frequencies == none.out_spec.frequencies
    assert not none.state_dict()
    assert not frame.state_dict()
    shape = (none.out_spec.channels, none.out_spec.bins, 1)
    assert {key: value.shape for key, value in dataset.state_dict().items()} == {"mean": shape, "std": shape}


def test_models_see_about_one() -> None:
    latents = Latents("frame").out_spec
    assert (latents.unit, latents.low, latents.high) == ("latent", -4, 4)
    scale = Scale(small(Mel, "dataset").out_spec)
    assert torch.equal(scale.normalize(torch.tensor([-4.0, 0.0, 2.0])), torch.tensor([-1.0, 0.0, 0.5]))


def test_parts_that_read_decibels_take_them_by_frame_and_refuse_deviations() -> None:
    frame, dataset = small(MultiResolution, "frame"), small(MultiResolution, "dataset")
    roll = PianoRoll(frame).out_spec
    assert Reconstruction(frame).out_spec == frame.out_spec
    assert Peaks(frame.out_spec, roll)(frame(fading())).shape == (1, 4, 88, 63)
    assert Harmonic(frame.out_spec, roll, width=4)(frame(fading())).shape == (1, 4, 88, 63)
    unit = "standardized, normalised by dataset"
    with pytest.raises(
        Incompatible, match=f"task=reconstruction measures errors in dB, and MultiResolution .* {unit}; "
    ):
        Reconstruction(dataset)
    with pytest.raises(Incompatible, match=f"model=peaks reads dB .*{unit}"):
        Peaks(dataset.out_spec, roll)
    # Harmonics lie in rows, whatever their unit.
    assert Harmonic(dataset.out_spec, roll, width=4)(dataset(fading())).shape == (1, 4, 88, 63)
    assert PianoRoll(dataset).out_spec.unit == "logit"


def test_by_frame_there_is_no_inverse_as_the_level_is_gone() -> None:
    front_end = small(LogFrequency, "frame")
    assert not front_end.invertible
    with pytest.raises(Incompatible, match=r"^LogFrequency with normalize=frame has no inverse, .*use normalize=none"):
        front_end.inverse(front_end(noise(1, 1, 8_000)), 8_000)
    with pytest.raises(Incompatible, match=r"^CQT has no inverse"):
        small(CQT, "frame").inverse(torch.zeros(1, 1, 40, 32), 8_000)


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="normalize = peak: input should be 'none', 'frame' or 'dataset'"):
        small(Mel, "peak")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"frontend\.normalize"):
        compose(["frontend.normalize=peak"])


# --- In training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", ["frame", "dataset"])
@pytest.mark.parametrize("kind", [NnAudioCQT, NnAudioSTFT], ids=lambda kind: kind.__name__)
def test_kernels_learn_under_normalisation(kind: type[FrontEnd], normalize: Normalization) -> None:
    front_end, audio = small(kind, normalize, trainable=True), noise(2, 1, 4_000)
    if normalize == "dataset":
        front_end.measure([audio])
    keys = {name for name, _ in front_end.named_parameters()}
    assert set(front_end.state_dict()) == keys | ({"mean", "std"} if normalize == "dataset" else set())
    target = front_end(audio).detach().roll(1, dims=2)
    optimizer = AdamW(lr=1e-3).build(front_end)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = (front_end(audio) - target).square().mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in front_end.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


RUN = [
    "data=synthetic", "data.sample_rate=8000", "data.seconds=0.5", "data.pitch=[100.0,1000.0]", "data.batch_size=2",
    "data.lowpass=null", "data.reverb=null", "data.val_items=1", "data.test_items=1",
    "frontend=log_frequency", "frontend.bins=24", "frontend.n_fft=512", "frontend.hop=128",
    "frontend.normalize=dataset", "model=conv2d", "model.width=2", "model.depth=2", "task=piano_roll",
    "trainer.max_steps=6", "trainer.val_check_interval=6", "save_every=2",
    "trainer.accelerator=cpu", "trainer.precision=32-true",
]  # fmt: skip


def first_windows(cfg: Any, count: int) -> Tensor:
    data: DataModule = make(cfg.data, "data")
    data.setup("fit")
    return scaled(collate([data.train_set[position] for position in range(count)]).audio)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training that measures 16 windows, and draws nothing."""
    monkeypatch.setattr(baseline, "WINDOWS", 16)
    monkeypatch.setattr("wavespace.training.fit.save_samples", lambda *_: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else threads follow from the number of workers


@pytest.mark.usefixtures("short")
def test_a_run_is_measured_once_on_its_first_windows_whoever_loads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compose([*RUN, "data.workers=0", f"runs={tmp_path / 'whole'}"])
    run.run(whole)
    state = torch.load(RunFolder.of(whole).last, weights_only=True)["state_dict"]
    mean, std = state["frontend.mean"], state["frontend.std"]
    plain = LogFrequency(AudioSpec(8000, 0.5), bins=24, n_fft=512, hop=128)
    audio = first_windows(whole, 16)
    levels = plain(audio).double().numpy()  # (16, 1, 24, T)
    np.testing.assert_allclose(mean[:, :, 0], levels.mean((0, 3)), rtol=1e-6)
    np.testing.assert_allclose(std[:, :, 0], np.maximum(levels.std((0, 3)), 0.8), rtol=1e-6)

    # The checkpoint alone gives the same features.
    task = checkpoint.load(RunFolder.of(whole).path)
    assert torch.equal(task.frontend(audio), (plain(audio) - mean) / std)
    assert checkpoint.read(RunFolder.of(whole).path)["specs"]["features"]["normalization"] == "dataset"

    # With loader processes, and stopped on the way, it is the same run; what goes on is not measured again.
    broken = compose([*RUN, "data.workers=2", f"runs={tmp_path / 'broken'}"])
    begin = Task.on_train_batch_start

    def stop(task: Task, batch: Batch, batch_idx: int) -> None:
        if task.global_step == 3:
            raise RuntimeError("stopped")
        begin(task, batch, batch_idx)

    monkeypatch.setattr(Task, "on_train_batch_start", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        run.run(broken)
    monkeypatch.setattr(Task, "on_train_batch_start", begin)
    monkeypatch.setattr(FrontEnd, "measure", None)
    run.run(broken)
    found = torch.load(RunFolder.of(broken).last, weights_only=True)["state_dict"]
    assert all(torch.equal(found[key], value) for key, value in state.items())


def test_a_baseline_hears_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wavespace.training.baseline.score", lambda *args, **kwargs: {})
    cfg = compose(RUN)
    cfg.baseline = cfg.model
    parts = build(cfg)
    parts.task.frontend.measure([noise(2, 1, 4_000)])
    other = baseline.baseline(cfg, parts).frontend
    assert other is not parts.task.frontend
    audio = noise(1, 1, 4_000)
    assert torch.equal(other(audio), parts.task.frontend(audio))


def test_a_check_on_meta_needs_no_measurement() -> None:
    cfg = compose(RUN)
    assert check_shapes(cfg, make(cfg.data, "data").spec).frontend.out_spec.unit == "standardized"
