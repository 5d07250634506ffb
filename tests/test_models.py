"""Models: any size in, the asked size out; batch and time do not matter; they learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from parts import AUDIO, small_task
from wavespace.data.base import Item, collate
from wavespace.models.blocks import Rebin, Scale, pad_to
from wavespace.models.conv2d import Conv2D
from wavespace.models.harmonic import Harmonic, HarmonicStack
from wavespace.models.peaks import Peaks
from wavespace.models.unet import UNet
from wavespace.spec import PIANO_PITCHES, FeatureSpec, midi_to_hz

KEYS = tuple(midi_to_hz(pitch) for pitch in PIANO_PITCHES)
ROLL = FeatureSpec(4, KEYS, 43.0, "logit", -10, 10)


def decibels(bins: int, channels: int = 2) -> FeatureSpec:
    return FeatureSpec(channels, tuple(np.geomspace(30, 9000, bins).tolist()), 43.0, "dB", -80, 0)


MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "unet": (UNet, {"width": 3, "depth": 2}),
    "unet gated": (UNet, {"width": 3, "depth": 2, "skips": "gated", "pool": "both", "norm": "group"}),
    "unet none": (UNet, {"width": 3, "depth": 2, "skips": "none", "kernel": (5, 1)}),
    "conv2d": (Conv2D, {"width": 3, "depth": 3}),
    "conv2d both": (Conv2D, {"width": 3, "depth": 2, "pool_time": True, "norm": "group"}),
    "harmonic": (Harmonic, {"width": 4, "dilations": ((1, 1), (12, 1), (1, 2))}),
    "peaks": (Peaks, {}),
}


def model_of(name: str, in_spec: FeatureSpec, out_spec: FeatureSpec, **more: Any) -> nn.Module:
    """A model in evaluation mode, with the running statistics of a batch, so that its output follows its input."""
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    model = kind(in_spec, out_spec, **settings | more)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(features(in_spec, 2, 40, seed=3))
    return model.eval()


def features(spec: FeatureSpec, batch: int, frames: int, seed: int = 0) -> Tensor:
    noise = torch.randn(batch, spec.channels, spec.bins, frames, generator=torch.Generator().manual_seed(seed))
    return (noise * 15 - 40).clamp(spec.low, spec.high)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=6, deadline=None)
@given(bins=st.integers(5, 70), frames=st.integers(1, 37), batch=st.integers(1, 3), channels=st.integers(1, 3))
def test_every_size_comes_out_as_the_task_asks(name: str, bins: int, frames: int, batch: int, channels: int) -> None:
    in_spec = decibels(bins, channels)
    for out_spec in (ROLL,) if name == "peaks" else (ROLL, in_spec):
        kind, settings = MODELS[name]
        model = kind(in_spec, out_spec, **settings).eval()
        output = model(features(in_spec, batch, frames))
        assert output.shape == (batch, out_spec.channels, out_spec.bins, frames)
        assert output.isfinite().all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_an_item_does_not_see_its_batch(name: str, layout: torch.memory_format) -> None:
    spec = decibels(50)
    model = model_of(name, spec, ROLL)
    batch = features(spec, 3, 21)
    together = model(batch.contiguous(memory_format=layout))
    for i, item in enumerate(batch):
        torch.testing.assert_close(model(item[None])[0], together[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "peaks"])
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    spec = decibels(50)
    for out_spec in (ROLL, spec):
        model = model_of(name, spec, out_spec).train()
        output = model(features(spec, 2, 21))
        (output * torch.randn_like(output)).sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize(
    ("name", "shift"),
    [
        ("unet", 1),
        ("unet none", 1),
        ("conv2d", 1),
        ("harmonic", 1),
        ("peaks", 1),
        ("conv2d both", 4),
        ("unet gated", 4),
    ],
)
@torch.no_grad()
def test_a_shift_by_the_pooling_shifts_the_output(name: str, shift: int) -> None:
    spec = decibels(50)
    model = model_of(name, spec, ROLL, **({} if name in ("harmonic", "peaks") else {"norm": "batch"}))
    x = features(spec, 1, 120)
    output, shifted = model(x), model(x.roll(shift, -1))
    middle = slice(45, 75)  # no model here sees further than 40 frames
    torch.testing.assert_close(shifted.roll(-shift, -1)[..., middle], output[..., middle], rtol=1e-4, atol=1e-4)
    assert output[..., middle].std(-1).max() > 0.02


@pytest.mark.parametrize("name", ["unet", "unet gated", "unet none", "conv2d", "conv2d both"])
@torch.no_grad()
def test_what_pads_to_the_pooling_is_at_the_end_and_cut_off(name: str) -> None:
    spec = decibels(33)
    model: Any = model_of(name, spec, spec, norm="batch")
    bins, frames = (33 + -33 % multiple for multiple in model.multiple)
    assert bins > 33
    wide: Any = model_of(name, decibels(bins), decibels(bins), norm="batch")
    wide.load_state_dict(model.state_dict())
    x = features(spec, 1, 33)
    padded = F.pad(x, (0, frames - 33, 0, bins - 33), value=-40.0)  # the middle of the range, which is scaled to 0
    torch.testing.assert_close(wide(padded)[:, :, :33, :33], model(x), rtol=0, atol=1e-4)


# --- Blocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "low", "high"), [(decibels(5), -1.0, 1.0), (ROLL, -10.0, 10.0)])
def test_scale_maps_a_range_in_decibels_and_leaves_logits(spec: FeatureSpec, low: float, high: float) -> None:
    scale = Scale(spec)
    ends = torch.tensor([spec.low, spec.high])
    torch.testing.assert_close(scale.into(ends), torch.tensor([low, high]))
    x = torch.linspace(2 * spec.low, spec.high + 20, 100)  # nothing is cut off
    torch.testing.assert_close(scale.out(scale.into(x)), x)
    assert scale.into(x).diff().min() > 0


@given(n=st.integers(2, 40), m=st.integers(2, 40), seed=st.integers(0, 99))
@settings(deadline=None)
def test_rebin_starts_as_interpolation_on_a_log_axis(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = (np.sort(rng.uniform(20, 10_000, size)) for size in (n, m))
    x = rng.normal(size=(2, 3, n, 4))
    expected = np.empty((2, 3, m, 4))
    for i, frequency in enumerate(target):
        above = int(np.clip(np.searchsorted(source, frequency), 1, n - 1))
        left, right = np.log(source[above - 1]), np.log(source[above])
        share = np.clip((np.log(frequency) - left) / (right - left), 0, 1)  # beyond the ends: the end
        expected[:, :, i] = (1 - share) * x[:, :, above - 1] + share * x[:, :, above]
    found = Rebin(source, target)(torch.tensor(x, dtype=torch.float32))  # type: ignore[arg-type]
    np.testing.assert_allclose(found.detach(), expected, atol=1e-5)


def test_rebin_between_equal_axes_is_nothing() -> None:
    rebin = Rebin(KEYS, KEYS)
    x = torch.randn(1, 2, 88, 3)
    assert rebin(x) is x
    assert not list(rebin.parameters())


def test_padding_goes_to_the_end() -> None:
    x = torch.randn(1, 1, 5, 7)
    padded = pad_to(x, (4, 1))
    assert padded.shape == (1, 1, 8, 7)
    assert torch.equal(padded[:, :, :5], x)
    assert not padded[:, :, 5:].any()
    assert pad_to(x, (5, 7)) is x


@pytest.mark.parametrize("spread", [1, 3])
@pytest.mark.parametrize("channels", [1, 2])
def test_harmonic_stack_reads_the_rows_of_the_formula(spread: int, channels: int) -> None:
    # Row r lies at 27.5 Hz * 2^(r / 36), so harmonic h of key p is 3 p + 36 log2(h) rows up.
    steps = 36
    axis = tuple(27.5 * 2 ** (row / steps) for row in range(9 * steps))
    spec = FeatureSpec(channels, axis, 43.0, "dB", -80, 0)
    harmonics = (0.5, 1, 2, 3, 5)
    stack = HarmonicStack(spec, ROLL, harmonics, spread)
    x = torch.randn(2, channels, len(axis), 3)
    found = stack(x.contiguous(memory_format=torch.channels_last))
    assert stack.channels == channels * len(harmonics) * spread
    expected = torch.full((2, channels, len(harmonics), spread, 88, 3), -1.0)
    for key in range(88):
        for h, harmonic in enumerate(harmonics):
            for s in range(spread):
                row = 3 * key + round(steps * np.log2(harmonic)) + s - spread // 2
                if 0 <= row < len(axis):
                    expected[:, :, h, s, key] = x[:, :, row]
    torch.testing.assert_close(found, expected.flatten(1, 3))


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        (UNet, {"width": 0}, "width is 0"), (UNet, {"depth": 0}, "depth 0"), (UNet, {"kernel": (4, 3)}, "kernel is"),
        (UNet, {"kernel": (3, -1)}, "kernel is"), (Conv2D, {"max_width": 0}, "max_width 0"),
        (Harmonic, {"width": 0}, "width is 0"), (Harmonic, {"spread": 2}, "spread is 2"),
        (Harmonic, {"spread": -1}, "spread is -1"), (Harmonic, {"harmonics": ()}, "harmonics is"),
        (Harmonic, {"harmonics": (0, 1)}, "harmonics is"), (Harmonic, {"dilations": ((0, 1),)}, "dilations is"),
    ],
)  # fmt: skip
def test_settings_that_can_not_be_are_refused(kind: type[nn.Module], settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        kind(decibels(20), ROLL, **settings)


# --- Learning --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frontend", "model", "task", "share"),
    [
        ("log_frequency", "unet", "reconstruction", 0.06),
        ("log_frequency", "conv2d", "reconstruction", 0.08),
        ("multi_resolution", "harmonic", "piano_roll", 0.12),
    ],
)
def test_one_batch_is_learned_by_heart(frontend: str, model: str, task: str, share: float) -> None:
    built = small_task(frontend, model, task, "model.width=8").train()
    rng = np.random.default_rng(0)
    notes = np.array([[0.2, 0.6, 60, 90], [0.5, 0.9, 67, 60]])
    items = []
    for shift in range(2):
        played = notes + np.array([0, 0, 5 * shift, 0])
        time = np.arange(AUDIO.samples) / AUDIO.sample_rate
        audio = 0.001 * rng.normal(size=AUDIO.samples)
        for onset, offset, pitch, _ in played:
            audio += 0.3 * np.sin(2 * np.pi * midi_to_hz(pitch) * time) * ((time >= onset) & (time < offset))
        items.append(Item(audio.astype(np.float32), "", played))
    batch = collate(items)
    x = built.features(batch.audio)
    optimizer = torch.optim.Adam(built.parameters(), 0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = built.loss(built.apply_model(x), x, batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-5:]) < share * losses[0], (losses[0], losses[-1])
