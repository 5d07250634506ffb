"""nnAudio's layers: against their definition in float64 and against our own, and that kernels learn."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from scipy.signal import get_window
from torch import Tensor

from wavespace.build import build_task
from wavespace.config import compose
from wavespace.data.base import Batch
from wavespace.frontends.base import FrontEnd
from wavespace.frontends.cqt import CQT
from wavespace.frontends.nnaudio import NnAudioCQT, NnAudioSTFT
from wavespace.frontends.stft import LogFrequency
from wavespace.optim import AdamW
from wavespace.spec import AudioSpec

AUDIO = AudioSpec(sample_rate=22050, seconds=1.0)
CONF = Path(__file__).parents[2] / "conf" / "frontend"
SMALL: dict[type[FrontEnd], dict[str, Any]] = {
    NnAudioCQT: {"bins": 61, "bins_per_octave": 12, "fmin": 110.0, "hop": 256},
    NnAudioSTFT: {"bins": 64, "n_fft": 1024, "hop": 256},
}


def small(kind: type[FrontEnd], trainable: bool = False, **settings: Any) -> FrontEnd:
    return kind(AUDIO, **SMALL[kind] | {"trainable": trainable} | settings)


both = pytest.mark.parametrize("kind", list(SMALL), ids=lambda kind: kind.__name__)


def noise(*shape: int, level: float = 0.1) -> Tensor:
    return level * torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def reference(audio: Tensor, hop: int, hz: float, window: NDArray[np.float64], before: int) -> NDArray[np.float64]:
    """Power `(T,)` in float64, 1.0 for a full-scale sine; `before` samples of a window lie before the frame's own."""
    x = np.pad(audio.double().numpy().ravel(), (before, len(window)))
    kernel = 2 / window.sum() * window * np.exp(-2j * np.pi * hz / AUDIO.sample_rate * np.arange(len(window)))
    frames = 1 + audio.shape[-1] // hop
    return np.abs([x[t * hop : t * hop + len(window)] @ kernel for t in range(frames)]) ** 2


def test_cqt_equals_its_definition_in_float64() -> None:
    front_end, audio = small(NnAudioCQT, floor_db=-150.0), noise(1, 1, 20_000)
    expected = []
    for hz in front_end.out_spec.frequencies:
        length = int(np.ceil(AUDIO.sample_rate / (hz * (2 ** (1 / 12) - 1))))
        expected.append(reference(audio, 256, hz, get_window("hann", length), int(np.ceil(length / 2))))
    linear = 10 ** (front_end(audio)[0, 0].double().numpy() / 10)
    assert np.linalg.norm(linear - expected) <= 2e-6 * np.linalg.norm(expected)


def test_stft_equals_its_definition_in_float64() -> None:
    front_end, audio = small(NnAudioSTFT, floor_db=-150.0), noise(1, 1, 20_000)
    window = get_window("hann", 1024)
    expected = [reference(audio, 256, hz, window, 512) for hz in front_end.out_spec.frequencies]
    linear = 10 ** (front_end(audio)[0, 0].double().numpy() / 10)
    assert np.linalg.norm(linear - expected) <= 2e-6 * np.linalg.norm(expected)
    hz = np.array(front_end.out_spec.frequencies)
    np.testing.assert_allclose(hz, np.geomspace(50, 11025, 64))
    np.testing.assert_allclose(front_end.layer.bins2freq, hz, rtol=1e-9)  # type: ignore[union-attr, arg-type]


def test_cqt_is_our_cqt_to_a_tenth_of_a_decibel() -> None:
    audio = noise(2, 1, 20_000)
    ours, theirs = CQT(AUDIO, **SMALL[NnAudioCQT])(audio), small(NnAudioCQT)(audio)
    # Measured: 0.024 dB at most, in a cell 50 dB below its neighbours.
    torch.testing.assert_close(theirs, ours, atol=0.1, rtol=0)


def test_stft_is_log_frequency_at_frequencies_that_both_read() -> None:
    """Where bands are wide LogFrequency averages, so that only the mean level of noise is the same."""
    settings = SMALL[NnAudioSTFT] | {"bins": 32}
    audio = noise(1, 1, 220_500)
    theirs, ours = (
        10 ** (f(audio)[0, 0, :-1] / 10) for f in (NnAudioSTFT(AUDIO, **settings), LogFrequency(AUDIO, **settings))
    )
    ratio = 10 * (theirs.mean(1) / ours.mean(1)).log10()  # (F - 1,), without the Nyquist frequency
    # 10 s hold about 430 independent frames.
    assert ratio.abs().max() < 0.8


@both
def test_sine_reads_zero_db_at_its_bin(kind: type[FrontEnd]) -> None:
    front_end = small(kind)
    for index in (30, 45):
        hz = front_end.out_spec.frequencies[index]
        sine = torch.sin(2 * torch.pi * hz * torch.arange(22_050, dtype=torch.float64) / 22_050).float()
        level = front_end(sine[None, None])[0, 0, :, 43]
        assert level.argmax() == index
        assert abs(level[index]) < 0.02


@both
@pytest.mark.parametrize("samples", [1, 255, 256, 1023, 8_000])
def test_any_length_gives_finite_features_of_the_stated_shape(kind: type[FrontEnd], samples: int) -> None:
    front_end = small(kind)
    features = front_end(noise(2, 1, samples))
    assert features.shape == (2, 1, front_end.out_spec.bins, front_end.out_spec.frames(samples, 22_050))
    assert features.dtype == torch.float32
    assert features.isfinite().all()


@both
@pytest.mark.parametrize("trainable", [False, True])
def test_it_can_be_built_on_meta(kind: type[FrontEnd], trainable: bool) -> None:
    with torch.device("meta"):
        front_end = small(kind, trainable)
        assert front_end(torch.empty(2, 1, 22_050)).shape == (2, 1, front_end.out_spec.bins, 87)
    assert all(tensor.is_meta for tensor in (*front_end.parameters(), *front_end.buffers()))
    assert small(kind, trainable).to("meta")(torch.empty(1, 1, 500, device="meta")).shape[-1] == 2


@both
@pytest.mark.parametrize("trainable", [False, True])
def test_autocast_changes_no_bit(kind: type[FrontEnd], trainable: bool) -> None:
    front_end, audio = small(kind, trainable), noise(2, 1, 5_000)
    plain = front_end(audio)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(front_end(audio), plain)


@both
def test_compiles_without_a_break_in_the_graph(kind: type[FrontEnd]) -> None:
    audio = noise(2, 1, 5_000)
    for trainable in (False, True):
        front_end = small(kind, trainable)
        torch.compiler.reset()  # eight graphs of one function is as many as it keeps
        compiled = torch.compile(front_end, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(audio), front_end(audio), atol=1e-3, rtol=0)


@both
def test_silence_is_exactly_the_floor_and_has_a_gradient(kind: type[FrontEnd]) -> None:
    front_end = small(kind, trainable=True)
    audio = torch.zeros(1, 1, 5_000, requires_grad=True)
    features = front_end(audio)
    assert (features == -80).all()
    features.sum().backward()
    assert audio.grad is not None
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (audio, *front_end.parameters()))


@both
def test_nothing_is_printed(kind: type[FrontEnd], capfd: pytest.CaptureFixture[str]) -> None:
    small(kind)(noise(1, 1, 1_000))
    assert capfd.readouterr() == ("", "")


@both
def test_only_kernels_that_learn_are_in_a_checkpoint(kind: type[FrontEnd]) -> None:
    fixed, learned = small(kind), small(kind, trainable=True)
    assert not fixed.state_dict()
    assert not list(fixed.parameters())
    assert set(learned.state_dict()) == {name for name, _ in learned.named_parameters()}
    assert len(learned.state_dict()) == 2  # real and imaginary parts
    torch.testing.assert_close(learned(noise(1, 1, 5_000)), fixed(noise(1, 1, 5_000)), atol=1e-3, rtol=0)


@both
def test_kernels_learn_and_come_back_from_a_checkpoint(kind: type[FrontEnd]) -> None:
    front_end, audio = small(kind, trainable=True), noise(2, 1, 6_000)
    first, target = front_end(audio).detach(), small(kind)(audio) + 3.0  # to learn: half as loud again
    optimizer = AdamW(lr=1e-3).build(front_end)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = (front_end(audio) - target).abs().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.02
    # Adam's steps are of one size; kernels of unit sum would move by tens of decibels.
    assert 0 < (front_end(audio) - first).abs().mean() < 2
    assert all((after != before).any() for after, before in zip(front_end.parameters(), small(kind, True).parameters()))

    again = small(kind, trainable=True)
    again.load_state_dict(front_end.state_dict())
    assert torch.equal(again(audio), front_end(audio))


@both
def test_a_task_trains_the_kernels_with_its_model(kind: type[FrontEnd]) -> None:
    name = {NnAudioCQT: "nnaudio_cqt", NnAudioSTFT: "nnaudio_stft"}[kind]
    settings = [f"frontend.{key}={value}" for key, value in SMALL[kind].items()]
    cfg = compose(
        [
            *("data=rendered", "task=piano_roll", "model=conv2d", "model.width=4", "model.depth=2"),
            *(f"frontend={name}", "frontend.trainable=true", *settings),
        ]
    )
    torch.manual_seed(0)
    task = build_task(cfg, AudioSpec(22_050, 0.5, ("notes",)))
    before = [kernel.detach().clone() for kernel in task.frontend.parameters()]
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(11_025) / 22_050)[None, None]  # (1, 1, N)
    batch = Batch(tone, torch.tensor([11_025]), torch.tensor([[0, 0.05, 0.45, 69, 80]]), {}, ["tone"])
    optimizer = task.optim.build(task)
    losses = []
    for _ in range(3):
        example = task.training_example(batch)
        loss = task.loss(task.apply_model(example.features), example)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert all(not torch.equal(new, old) for new, old in zip(task.frontend.parameters(), before))
    assert len([key for key in task.state_dict() if key.startswith("frontend.")]) == 2


def test_cqt_kernels_learn_within_the_length_they_start_with() -> None:
    front_end = small(NnAudioCQT, trainable=True)
    layer: Any = front_end.layer
    outside = layer.cqt_kernels_real.detach().abs() + layer.cqt_kernels_imag.detach().abs() == 0  # (F, 1, width)
    assert outside[-1].sum() > 0.9 * outside.shape[-1]
    # A periodic Hann window begins with a zero of its own.
    expected = layer.lenghts - 1
    assert torch.equal((~outside).sum((1, 2)).float(), expected)
    optimizer = torch.optim.SGD(front_end.parameters(), lr=1.0)
    front_end(noise(1, 1, 6_000)).mean().backward()
    optimizer.step()
    for part in (layer.cqt_kernels_real, layer.cqt_kernels_imag):
        assert ((part != 0) & outside).sum() <= len(part)  # that zero alone


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (NnAudioCQT, {"bins": 1}, "bins = 1"),
        (NnAudioCQT, {"fmin": 5_000.0}, "audio has frequencies above 0 and up to 11025 Hz"),
        (NnAudioCQT, {"hop": 0}, "hop = 0"),
        (NnAudioSTFT, {"bins": 1}, "bins = 1"),
        (NnAudioSTFT, {"fmax": 12_000.0}, "fmax 12000 Hz"),
        (NnAudioSTFT, {"n_fft": 1023}, "n_fft = 1023"),
        (NnAudioSTFT, {"floor_db": 0.0}, "floor_db = 0"),
    ],
)
def test_settings_out_of_range_are_refused(kind: type[FrontEnd], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(kind, **settings)


@pytest.mark.parametrize(("name", "front_end"), [("nnaudio_cqt", NnAudioCQT), ("nnaudio_stft", NnAudioSTFT)])
def test_yaml_states_every_keyword_at_its_default(name: str, front_end: type[FrontEnd]) -> None:
    stated: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert stated.pop("_target_") == f"{front_end.__module__}.{front_end.__name__}"
    parameters = inspect.signature(front_end).parameters.values()
    assert stated == {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
