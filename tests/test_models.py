"""Models: output shapes, independence of batch and padding, codes that alone determine the output, and learning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from parts import AUDIO, small_task
from wavespace.data.base import Item, collate
from wavespace.errors import Incompatible
from wavespace.models.autoencoder import ConvAutoencoder
from wavespace.models.blocks import Rebin, Scale, autoencoder, pad_to
from wavespace.models.crnn import CRNN
from wavespace.models.dense import Dense
from wavespace.models.harmonic import Harmonic, HarmonicStack
from wavespace.models.harmonic_sum import HarmonicSum
from wavespace.models.local_mlp import LocalMLP
from wavespace.models.peaks import Peaks
from wavespace.models.tcn import TCN
from wavespace.models.transformer import Attention, Transformer
from wavespace.models.unet import UNet
from wavespace.spec import PIANO_PITCHES, FeatureSpec
from wavespace.units import midi_to_hz

KEYS = tuple(midi_to_hz(pitch) for pitch in PIANO_PITCHES)
ROLL = FeatureSpec(4, KEYS, 43.0, "logit", -10, 10)
LATENTS = FeatureSpec(128, (6000.0,), 75.0, "latent", -10, 10)


def decibels(bins: int, channels: int = 2) -> FeatureSpec:
    return FeatureSpec(channels, tuple(np.geomspace(30, 9000, bins).tolist()), 43.0, "dB", -80, 0)


MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "unet": (UNet, {"width": 3, "depth": 2}),
    "unet gated": (UNet, {"width": 3, "depth": 2, "skips": "gated", "pool": "both", "norm": "group"}),
    "unet none": (UNet, {"width": 3, "depth": 2, "skips": "none", "kernel": (5, 1)}),
    "unet latent": (UNet, {"width": 3, "depth": 2, "skips": "none", "latent": 2}),
    "unet1d": (UNet, {"width": 3, "depth": 2, "stride": 4, "kernel": (5, 1)}),
    "conv1d": (ConvAutoencoder, {"width": 3, "depth": 2, "kernel": 5}),
    "conv1d latent": (
        ConvAutoencoder,
        {"width": 3, "depth": 2, "latent": 2, "stride": 4, "kernel": 7},
    ),
    "conv2d": (ConvAutoencoder, {"width": 3, "depth": 3}),
    "conv2d both": (ConvAutoencoder, {"width": 3, "depth": 2, "pool_time": True, "norm": "group"}),
    "conv2d latent": (ConvAutoencoder, {"width": 3, "depth": 2, "pool_time": True, "latent": 2}),
    "harmonic": (Harmonic, {"width": 4, "dilations": ((1, 1), (12, 1), (1, 2))}),
    "peaks": (Peaks, {}),
    "tcn": (TCN, {"width": 12, "layers": 3, "kernel": 3}),
    "tcn group": (TCN, {"width": 12, "layers": 2, "norm": "group"}),
    "local_mlp": (LocalMLP, {"width": 12, "context": 3}),
    "transformer": (Transformer, {"width": 16, "layers": 2, "heads": 2, "hidden": 16, "window": 6}),
    "transformer learned": (
        Transformer,
        {"width": 16, "layers": 2, "heads": 2, "hidden": 16, "window": 5, "positions": "learned", "stem": False},
    ),
    "transformer all": (Transformer, {"width": 16, "layers": 1, "heads": 2, "hidden": 16, "window": None}),
    "dense": (Dense, {"latent": 3, "hidden": 12}),
    "dense latent": (Dense, {"latent": 2, "hidden": 12, "frames": 4, "reach": 2}),
    "crnn": (CRNN, {"width": 2, "depth": 2, "hidden": 6}),
}
NEED_DECIBELS = ("harmonic", "peaks")
CASES = [(name, unit) for name in MODELS for unit in ("dB", "latent") if unit == "dB" or name not in NEED_DECIBELS]
"""Every model on bins in dB, and on the one bin of a codec's latents where it takes them."""


def model_of(name: str, in_spec: FeatureSpec, out_spec: FeatureSpec, **more: Any) -> nn.Module:
    """A model in evaluation mode, with the running statistics of a batch, so that its output follows its input."""
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    model = kind(in_spec, out_spec, **settings | more)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    for parameter in model.parameters():  # what starts at zero lets nothing through before its first step
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        model.train()(features(in_spec, 2, 40, seed=3))
    return model.eval()


def features(spec: FeatureSpec, batch: int, frames: int, seed: int = 0) -> Tensor:
    noise = torch.randn(batch, spec.channels, spec.bins, frames, generator=torch.Generator().manual_seed(seed))
    middle, spread = (spec.high + spec.low) / 2, (spec.high - spec.low) * 3 / 16
    return (noise * spread + middle).clamp(spec.low, spec.high)


def batch_norm(name: str) -> dict[str, str]:
    """Batch norm for a model that normalises by group: group norm sees all frames."""
    return {"norm": "batch"} if "norm" in MODELS[name][1] else {}


def spec_of(unit: str) -> FeatureSpec:
    return LATENTS if unit == "latent" else decibels(50)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=6, deadline=None)
@given(bins=st.integers(5, 70), frames=st.integers(1, 37), batch=st.integers(1, 3), channels=st.integers(1, 3))
def test_every_size_comes_out_as_the_task_asks(name: str, bins: int, frames: int, batch: int, channels: int) -> None:
    kind, settings = MODELS[name]
    for in_spec in (decibels(bins, channels),) if name in NEED_DECIBELS else (decibels(bins, channels), LATENTS):
        for out_spec in (ROLL,) if name == "peaks" else (ROLL, in_spec):
            model = kind(in_spec, out_spec, **settings).eval()
            output = model(features(in_spec, batch, frames))
            assert output.shape == (batch, out_spec.channels, out_spec.bins, frames)
            assert output.isfinite().all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("name", "unit"), CASES)
@torch.no_grad()
def test_an_item_does_not_see_its_batch(name: str, unit: str, layout: torch.memory_format) -> None:
    spec = spec_of(unit)
    model = model_of(name, spec, ROLL)
    batch = features(spec, 3, 21)
    together = model(batch.contiguous(memory_format=layout))
    for i, item in enumerate(batch):
        torch.testing.assert_close(model(item[None])[0], together[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "unit"), [case for case in CASES if case[0] != "peaks"])
def test_the_gradient_reaches_every_parameter(name: str, unit: str) -> None:
    spec = spec_of(unit)
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
        ("unet latent", 1),
        ("unet1d", 1),
        ("conv1d", 1),
        ("conv1d latent", 1),
        ("conv2d", 1),
        ("harmonic", 1),
        ("peaks", 1),
        ("tcn", 1),
        ("local_mlp", 1),
        ("transformer", 1),
        ("transformer learned", 1),
        ("crnn", 1),
        ("conv2d both", 4),
        ("conv2d latent", 4),
        ("unet gated", 4),
    ],
)
@torch.no_grad()
def test_a_shift_by_the_pooling_shifts_the_output(name: str, shift: int) -> None:
    spec = decibels(50)
    model = model_of(name, spec, ROLL, **batch_norm(name))
    reach = 1 + int(model.receptive_field)
    x = features(spec, 1, 2 * reach + 30)
    output, shifted = model(x), model(x.roll(shift, -1))
    middle = slice(reach + shift, -reach - shift)
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


EXACT = [name for name in MODELS if name not in ("tcn group", "transformer all", "crnn")]
"""Models whose receptive field has a bound, once they normalise by batch."""


@pytest.mark.parametrize("name", [*EXACT, "crnn"])
@torch.no_grad()
def test_windows_with_context_on_each_side_are_one_pass(name: str) -> None:
    spec = decibels(50)
    model = model_of(name, spec, ROLL, **batch_norm(name))
    context = 8 * -(-int(model.receptive_field) // 8)  # windows start at multiples of every pooling here
    x = features(spec, 1, 6 * 40 + 3)
    whole = model(x)
    for start in range(0, x.shape[-1], 40):
        first, last = max(0, start - context), min(x.shape[-1], start + 40 + context)
        kept = model(x[..., first:last])[..., start - first : start - first + 40]
        torch.testing.assert_close(kept, whole[..., start : start + 40], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in EXACT if name != "peaks"])
def test_the_receptive_field_is_how_far_a_frame_depends_on_others(name: str) -> None:
    spec = decibels(50)
    model = model_of(name, spec, ROLL, **batch_norm(name)).double()
    context = int(model.receptive_field)
    x = features(spec, 1, 2 * context + 16).double().requires_grad_()
    output = model(x)
    reach = 0
    for frame in range(context + 4, context + 12):  # more frames than are ever pooled here
        (slope,) = torch.autograd.grad(output[..., frame].sum(), x, retain_graph=True)
        heard = slope.abs().amax((0, 1, 2)).nonzero()[:, 0]
        reach = max(reach, frame - int(heard[0]), int(heard[-1]) - frame)
    assert reach == context


@pytest.mark.parametrize(("semitones", "octaves"), [(1, 0), (0, 1)])
@torch.no_grad()
def test_harmonic_follows_a_transposition(semitones: int, octaves: int) -> None:
    axis = tuple(27.5 * 2 ** (row / 36) for row in range(9 * 36))
    spec = FeatureSpec(1, axis, 43.0, "dB", -80, 0)
    model = model_of("harmonic", spec, ROLL)
    x = torch.full((1, 1, len(axis), 12), -80.0)
    x[:, :, 100:200] = features(spec, 1, 12)[:, :, 100:200]
    keys = semitones + 12 * octaves
    output, moved = model(x), model(x.roll(3 * keys, 2))
    inside = slice(20, 56)  # further from the ends than the trunk sees
    torch.testing.assert_close(moved[:, :, 20 + keys : 56 + keys], output[:, :, inside], rtol=1e-4, atol=1e-4)
    assert output[:, :, inside].std(2).max() > 0.02


@torch.no_grad()
def test_harmonic_stacks_the_harmonic_sum_of_its_input() -> None:
    spec = decibels(60)
    told, untold = Harmonic(spec, ROLL, width=2, sums=3), Harmonic(spec, ROLL, width=2)
    assert told.state_dict().keys() == untold.state_dict().keys()
    assert told.sums is not None
    level = features(spec, 2, 5)
    level[..., 4] = spec.low
    rest = FeatureSpec(1, ROLL.frequencies, ROLL.frame_rate, "logit", -10, 10)
    expected = HarmonicSum(spec, rest, harmonics=3)(level).sigmoid()
    found = told.sums(Scale(spec).normalize(level))
    torch.testing.assert_close(found[..., :4], expected[..., :4], rtol=0, atol=2e-4)  # which has a logit
    assert not found[..., 4].any()


def test_harmonic_needs_rows_of_levels() -> None:
    with pytest.raises(Incompatible, match=r"model=harmonic stacks the rows .* such as model=unet"):
        Harmonic(LATENTS, ROLL)
    with pytest.raises(Incompatible, match="model=harmonic"):
        Harmonic(replace(LATENTS, unit="standardized"), ROLL)
    normalised = replace(decibels(50), unit="standardized", low=-3.0, high=3.0)
    assert Harmonic(normalised, ROLL, width=2).eval()(features(normalised, 1, 5)).shape == (1, 4, 88, 5)


@pytest.mark.parametrize("unit", ["dB", "latent"])
@pytest.mark.parametrize("kind", [UNet, ConvAutoencoder])
def test_nets_of_1024_channels_can_be_built(kind: type[nn.Module], unit: str) -> None:
    spec = LATENTS if unit == "latent" else decibels(256, 1)
    for width, depth in ((1024, 2), (64, 6)):
        with torch.device("meta"):
            model = kind(spec, spec, width=width, max_width=1024, depth=depth)
            assert model(torch.empty(1, spec.channels, spec.bins, 50)).shape == (1, spec.channels, spec.bins, 50)
        assert max(module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)) == 1024


# --- Codes -----------------------------------------------------------------------------------------------

AUTOENCODERS = ["unet none", "unet latent", "conv1d", "conv1d latent", "conv2d", "conv2d both", "conv2d latent"]
AUTOENCODERS += ["dense", "dense latent"]


@pytest.mark.parametrize("frames", [1, 11])
@pytest.mark.parametrize("unit", ["dB", "latent"])
@pytest.mark.parametrize("name", AUTOENCODERS)
@torch.no_grad()
def test_what_comes_out_is_what_the_code_holds(name: str, unit: str, frames: int) -> None:
    spec = spec_of(unit)
    model: Any = model_of(name, spec, spec)
    x = features(spec, 2, frames)
    assert autoencoder(model) is model
    code = model.encode(x)
    steps = -(-frames // model.step)
    assert code.shape == (2, model.dims, 1, steps)
    if "latent" in name:
        assert model.dims == 2 * model.step
    decoded = model.decode(code)
    assert decoded.shape == (2, spec.channels, spec.bins, steps * model.step)
    assert torch.equal(decoded[..., :frames], model(x))


@pytest.mark.parametrize(("name", "frames"), [("conv1d", 1), ("conv1d", 3), ("conv2d", 3), ("conv2d pooled", 4)])
def test_latent_is_the_rank_of_the_map(name: str, frames: int) -> None:
    spec = decibels(24, 1)
    more: dict[str, Any] = {"conv1d": {"kernel": 5}, "conv2d pooled": {"pool_time": True}}.get(name, {})

    def rank(latent: int | None) -> int:
        torch.manual_seed(0)
        model = ConvAutoencoder(spec, spec, width=8, depth=2, latent=latent, **more).double().eval()
        x = features(spec, 1, frames).double()
        jacobian: Any = torch.autograd.functional.jacobian(model, x)
        return int(torch.linalg.matrix_rank(jacobian.view(24 * frames, 24 * frames), rtol=1e-10))

    assert rank(latent=2) == 2 * frames
    assert rank(latent=5) == 5 * frames
    assert rank(latent=None) > 5 * frames


def test_a_unet_with_skips_has_no_code() -> None:
    model = UNet(decibels(20), decibels(20), width=2, depth=2)
    assert autoencoder(model) is None
    x = features(decibels(20), 1, 3)
    with pytest.raises(Incompatible, match=r"skips=concat has no code .* use model.skips=none"):
        model.encode(x)
    with pytest.raises(Incompatible, match="skips=concat has no code"):
        model.decode(x)


# --- Attention -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("window", [1, 3, 40, None])
@torch.no_grad()
def test_attention_is_that_of_the_formula(positions: Any, window: int | None) -> None:
    heads, size, frames = 2, 4, 11
    torch.manual_seed(0)
    attention = Attention(heads * size, heads, window, positions, 0.0).double()
    if attention.bias is not None:
        attention.bias.normal_()
    x = torch.randn(2, frames, heads * size, dtype=torch.float64)
    q, k, v = attention.qkv(x).chunk(3, -1)
    expected = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        pairs = [torch.complex(*y[..., part].chunk(2, -1)) for y in (q, k)]  # (B, T, D / 2)
        rates = torch.tensor([10_000 ** (-2 * i / size) for i in range(size // 2)], dtype=torch.float64)
        for t in range(frames):
            near = [s for s in range(frames) if window is None or abs(s - t) <= window]
            scores = []
            for s in near:
                if attention.bias is None:
                    turn = torch.exp(1j * (t - s) * rates)
                    score = (pairs[0][:, t] * pairs[1][:, s].conj() * turn).real.sum(-1) / size**0.5
                else:
                    score = (q[:, t, part] * k[:, s, part]).sum(-1) / size**0.5
                    score = score + attention.bias[head, s - t + attention.bias.shape[1] // 2]
                scores.append(score)
            weights = torch.stack(scores, -1).softmax(-1)  # (B, near)
            expected[:, t, part] = torch.einsum("bs,bsd->bd", weights, v[:, near, part])
    # Angles are float32 here, which is what they are in training.
    torch.testing.assert_close(attention(x), attention.out(expected), rtol=0, atol=1e-6)


def test_attention_in_a_window_costs_as_much_as_there_is_audio() -> None:
    def flops(window: int | None, frames: int) -> int:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            Transformer(decibels(50), ROLL, width=16, heads=2, window=window)(torch.empty(1, 2, 50, frames))
        return counter.get_total_flops()

    assert flops(8, 1600) == 4 * flops(8, 400)
    assert flops(None, 1600) > 8 * flops(None, 400)


@torch.no_grad()
def test_the_stem_makes_frames_less_alike() -> None:
    # Frames that share nearly everything, as a codec's do.
    noise = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(1, 128, 1, 1, generator=noise) + 0.3 * torch.randn(4, 128, 1, 60, generator=noise)

    def alike(stem: bool) -> float:
        torch.manual_seed(0)
        model: Any = Transformer(LATENTS, ROLL, stem=stem)
        tokens = model.stem(x.flatten(1, 2).unsqueeze(2))  # (B, width, 1, T), of a batch in training
        return float(F.cosine_similarity(tokens[..., 1:], tokens[..., :-1], dim=1).mean())

    plain = float(F.cosine_similarity(x[..., 1:], x[..., :-1], dim=1).mean())
    assert plain > 0.98
    assert alike(stem=False) > 0.95
    assert alike(stem=True) < 0.7


def test_recurrence_counts_as_much_on_the_meta_device() -> None:
    def flops(device: str) -> int:
        with torch.device(device), FlopCounterMode(display=False) as counter:
            output = CRNN(decibels(50), ROLL, width=2, depth=2, hidden=6)(torch.empty(2, 2, 50, 30))
        assert output.shape == (2, 4, 88, 30)
        return counter.get_total_flops()

    assert flops("meta") == flops("cpu") > 0


# --- Blocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "low", "high"), [(decibels(5), -1.0, 1.0), (ROLL, -10.0, 10.0)])
def test_scale_maps_a_range_in_decibels_and_leaves_logits(spec: FeatureSpec, low: float, high: float) -> None:
    scale = Scale(spec)
    ends = torch.tensor([spec.low, spec.high])
    torch.testing.assert_close(scale.normalize(ends), torch.tensor([low, high]))
    x = torch.linspace(2 * spec.low, spec.high + 20, 100)  # nothing is cut off
    torch.testing.assert_close(scale.denormalize(scale.normalize(x)), x)
    assert scale.normalize(x).diff().min() > 0


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
        (UNet, {"width": 0}, "width = 0"), (UNet, {"depth": 0}, "depth = 0"), (UNet, {"kernel": (4, 3)}, "kernel is"),
        (UNet, {"kernel": (3, -1)}, "kernel is"), (ConvAutoencoder, {"max_width": 0}, "max_width = 0"),
        (Harmonic, {"width": 0}, "width = 0"), (Harmonic, {"spread": 2}, "spread is 2"),
        (Harmonic, {"spread": -1}, "spread = -1"), (Harmonic, {"harmonics": ()}, "harmonics = "),
        (Harmonic, {"harmonics": (0, 1)}, "harmonics = "), (Harmonic, {"dilations": ((0, 1),)}, "dilations = "),
        (Harmonic, {"sums": -1}, "sums = -1"),
        (UNet, {"stride": 1}, "stride = 1"), (UNet, {"latent": 4}, "skips=concat carries features around"),
        (UNet, {"latent": 0, "skips": "none"}, "latent is 0"), (ConvAutoencoder, {"stride": 1}, "stride = 1"),
        (ConvAutoencoder, {"kernel": 4}, "kernel is 4"), (ConvAutoencoder, {"kernel": (3, 2)}, "kernel is"),
        (ConvAutoencoder, {"latent": 0}, "latent is 0; it takes 1 to"),
        (ConvAutoencoder, {"latent": 41}, "it takes 1 to 40 dims"),
        (ConvAutoencoder, {"width": 1, "max_width": 1, "depth": 3, "latent": 4}, "it takes 1 to 3 dims a frame"),
        (ConvAutoencoder, {"width": 1, "depth": 2, "pool_time": True, "latent": 6}, "it takes 1 to 5 dims a frame"),
        (TCN, {"width": 0}, "width = 0"), (TCN, {"layers": 0}, "layers = 0"), (TCN, {"kernel": 2}, "kernel is 2"),
        (TCN, {"dropout": 1.0}, "dropout = 1.0"), (LocalMLP, {"context": -1}, "context = -1"),
        (LocalMLP, {"layers": 0}, "layers = 0"), (LocalMLP, {"dropout": -0.1}, "dropout = -0.1"),
        (Transformer, {"layers": 0}, "layers = 0"),
        (Transformer, {"heads": 3}, "width is 128; it must be an even number"),
        (Transformer, {"window": 0}, "window = 0"), (Transformer, {"dropout": 1.0}, "dropout = 1.0"),
        (Dense, {"latent": 41}, "latent is 41"), (Dense, {"frames": 3}, "frames = 3: input should be 1, 2, 4, 8"),
        (Dense, {"reach": -1}, "reach = -1"), (CRNN, {"hidden": 0}, "hidden = 0"),
        (CRNN, {"dropout": 2.0}, "dropout = 2.0"),
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
    example = built.training_example(batch)
    optimizer = torch.optim.Adam(built.parameters(), 0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = built.loss(built.apply_model(example.features), example)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-5:]) < share * losses[0], (losses[0], losses[-1])


LEARNERS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "unet": (UNet, {"width": 8, "depth": 2}),
    "unet gated": (UNet, {"width": 8, "depth": 2, "skips": "gated", "pool": "both"}),
    "unet latent": (UNet, {"width": 8, "depth": 2, "skips": "none", "latent": 4}),
    "unet1d": (UNet, {"width": 8, "depth": 2, "stride": 4, "kernel": (5, 1)}),
    "conv1d": (ConvAutoencoder, {"width": 8, "depth": 2, "latent": 4, "kernel": 5}),
    "conv2d": (ConvAutoencoder, {"width": 8, "depth": 2, "latent": 4}),
    "harmonic": (Harmonic, {"width": 8, "dilations": ((1, 1), (12, 1))}),
    "tcn": (TCN, {"width": 32, "layers": 2, "dropout": 0.1}),
    "local_mlp": (LocalMLP, {"width": 32, "context": 2, "dropout": 0.1}),
    "transformer": (Transformer, {"width": 32, "layers": 2, "heads": 2, "hidden": 32, "window": 8, "dropout": 0.1}),
    "transformer learned": (
        Transformer,
        {"width": 32, "layers": 2, "heads": 2, "hidden": 32, "positions": "learned", "window": 8, "stem": False},
    ),
    "crnn": (CRNN, {"width": 4, "depth": 2, "hidden": 16, "dropout": 0.1}),
}
LESSONS = [(name, unit) for name in LEARNERS for unit in ("dB", "latent") if unit == "dB" or name not in NEED_DECIBELS]


def lesson(name: str, unit: str) -> tuple[nn.Module, Tensor]:
    """A model that is to give back its input, and a batch whose frames are mixtures of two spectra."""
    spec = LATENTS if unit == "latent" else decibels(32, 1)
    place = torch.arange(spec.channels * spec.bins).view(1, spec.channels, spec.bins)
    spectra = (place * torch.tensor([0.3, 0.5])[:, None, None]).cos()  # (2, C, F)
    course = (torch.arange(16) * torch.tensor([[0.2, 0.7], [0.5, 0.3]])[..., None]).sin()  # (B, 2, T)
    x = (spec.high + spec.low) / 2 + torch.einsum("kcf,bkt->bcft", spectra, course) * (spec.high - spec.low) / 5
    kind, settings = LEARNERS[name]
    torch.manual_seed(0)
    return kind(spec, spec, **settings), x


def learn(model: nn.Module, x: Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), 0.01, fused=True)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x).float() - x).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(("name", "unit"), LESSONS)
def test_every_model_learns_a_batch_by_heart(name: str, unit: str) -> None:
    model, x = lesson(name, unit)
    with torch.no_grad():
        middle = (x - x.median()).abs().mean()  # the error of an output that does not follow its input
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    losses = learn(model, x, 60)
    assert min(losses[-5:]) < 0.4 * min(losses[0], float(middle)), (losses[0], float(middle), losses[-1])


@pytest.mark.parametrize("name", LEARNERS)
def test_equal_seeds_give_equal_bits(name: str) -> None:
    first, second = (learn(*lesson(name, "dB"), 3) for _ in range(2))
    assert first == second
    assert len(set(first)) == 3


@pytest.mark.parametrize("name", LEARNERS)
def test_half_precision_trains_and_agrees(name: str) -> None:
    model, x = lesson(name, "dB")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
        assert output.dtype == torch.float32  # in dB, 8 bits would be steps of a quarter
        loss = (output - x).abs().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x)
    assert (output - exact).square().mean() < 0.01 * exact.var()


@pytest.mark.parametrize("name", LEARNERS)
def test_a_compiled_model_is_the_same_model(name: str) -> None:
    model, x = lesson(name, "dB")
    model.eval()
    # torch.compile goes around recurrent layers, so the graph of a net that has them is in parts.
    compiled: Any = torch.compile(model, backend="eager", fullgraph=name != "crnn")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    torch.compiler.reset()
