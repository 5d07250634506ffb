"""The constant-Q family: against its definition in float64, nnAudio, and what every member promises."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnAudio.features.cqt import CQT1992v2
from numpy.typing import NDArray
from omegaconf import OmegaConf
from scipy.signal import get_window
from torch import Tensor

from wavespace.frontends import cqt
from wavespace.frontends.base import FrontEnd
from wavespace.frontends.cqt import CQT, HarmonicCQT
from wavespace.spec import AudioSpec

HALF = AudioSpec(sample_rate=22050, seconds=2.0)
CONF = Path(__file__).parents[2] / "conf" / "frontend"
ERB = 228.7 * (2 ** (1 / 24) - 1)

every_front_end = pytest.mark.parametrize(
    "front_end",
    [CQT(HALF), CQT(HALF, gamma=ERB), HarmonicCQT(HALF, bins_per_octave=36, bins=216)],
    ids=["CQT", "VQT", "HarmonicCQT"],
)


def noise(*shape: int, level: float = 0.1) -> Tensor:
    return level * torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def sine(hz: float, sample_rate: int, seconds: float) -> Tensor:
    t = torch.arange(round(seconds * sample_rate), dtype=torch.float64) / sample_rate
    return torch.sin(2 * torch.pi * hz * t).float()[None, None]  # (1, 1, N)


def chord(sample_rate: int) -> Tensor:
    """Two seconds of a major chord of ten decaying partials each."""
    t = torch.arange(2 * sample_rate) / sample_rate
    tones = [
        0.2 / h * torch.exp(-t * decay) * torch.sin(2 * torch.pi * h * hz * t)
        for hz, decay in [(220.0, 1.0), (277.18, 1.5), (329.63, 2.0)]
        for h in range(1, 11)
    ]
    return sum(tones, torch.zeros(())).view(1, 1, -1)  # (1, 1, N)


def reference(audio: Tensor, hz: float, bandwidth: float, sample_rate: int, hop: int) -> NDArray[np.float64]:
    """Magnitude `(T,)` of one bin: a sum over samples in float64 for each frame; 1.0 for a full-scale sine."""
    samples = math.ceil(sample_rate / bandwidth)
    n = np.arange(samples) - math.ceil(samples / 2)
    window = get_window("hann", samples)
    kernel = window * np.exp(-2j * np.pi * hz / sample_rate * n) * 2 / window.sum()
    x = np.pad(audio.double().numpy().ravel(), (math.ceil(samples / 2), samples))
    frames = np.lib.stride_tricks.sliding_window_view(x, samples)[: audio.numel() + 1 : hop]  # (T, samples)
    return np.abs(frames @ kernel)


def references(front_end: CQT | HarmonicCQT, audio: Tensor, octave: int, gamma: float = 0.0) -> NDArray[np.float64]:
    """Magnitudes `(F, T)` at a front-end's own frequencies."""
    spec, rate = front_end.out_spec, front_end.in_spec.sample_rate
    alpha = 2 ** (1 / octave) - 1
    return np.array([reference(audio, f, alpha * f + gamma, rate, front_end.filters.hop) for f in spec.frequencies])


def magnitude(front_end: CQT | HarmonicCQT, audio: Tensor) -> NDArray[np.float64]:
    """What the front-end has before the logarithm, `(rows, T)`."""
    return front_end.filters(audio[:, 0])[0].double().sqrt().numpy()


def error(ours: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    assert ours.shape == expected.shape
    return float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("sample_rate", "seconds", "chosen"),
    [
        (22050, 2.0, {}),
        (22050, 2.0, {"gamma": 20.0}),
        (22050, 14.0, {"bins": 40, "fmin": 300.0, "hop": 500}),  # three blocks
        (16000, 2.0, {"bins_per_octave": 3, "bins": 26, "fmin": 20.0, "hop": 441}),  # low bins hear below 0 Hz
        (16000, 2.0, {"bins": 73, "fmin": 1000.0, "hop": 509}),  # up to the Nyquist frequency
        (48000, 0.7, {"bins": 40, "fmin": 30.0, "hop": 640}),  # windows longer than the audio
        (8000, 0.5, {"bins": 20, "fmin": 300.0, "hop": 1}),
        (8000, 2.0, {"bins": 20, "fmin": 50.0, "hop": 5000}),  # hop longer than all windows
        (8000, 0.7, {"bins": 20, "fmin": 50.0, "gamma": 2000.0, "hop": 100}),  # windows of 4 samples
        (8000, 0.5, {"bins_per_octave": 1, "bins": 8, "fmin": 31.25, "hop": 77}),
    ],
)
def test_cqt_equals_its_definition(sample_rate: int, seconds: float, chosen: dict[str, Any]) -> None:
    front_end = CQT(AudioSpec(sample_rate, 2.0), floor_db=-150.0, **chosen)
    audio = noise(1, 1, round(seconds * sample_rate))
    expected = references(front_end, audio, chosen.get("bins_per_octave", 24), chosen.get("gamma", 0.0))
    ours = magnitude(front_end, audio)
    assert error(ours, expected) <= 5e-5  # measured: 2.5e-5 at most
    for row, wanted in zip(ours, expected):
        assert error(row, wanted) <= 2e-4
    np.testing.assert_allclose(10 ** (front_end(audio)[0, 0].numpy() / 20), ours, rtol=1e-4)


def test_quiet_bins_beside_loud_ones_equal_the_definition_down_to_the_floor() -> None:
    audio = chord(22050)
    front_end = CQT(HALF)
    expected = np.maximum(20 * np.log10(references(front_end, audio, 24) + 1e-30), -80)
    ours = front_end(audio)[0, 0].numpy()
    # What a filter lets through beyond 16 bandwidths is left out: -82 dB of a partial, and here they add up.
    assert np.abs(ours - expected)[expected > -60].max() < 0.3
    assert np.abs(ours - expected).mean() < 0.02


def test_cqt_equals_nnaudio() -> None:
    theirs = CQT1992v2(
        sr=22050, hop_length=512, fmin=27.5, n_bins=176, bins_per_octave=24, pad_mode="constant", verbose=False
    )
    for audio in (noise(1, 1, 50_000), chord(22050)):
        expected = theirs(audio, normalization_type="wrap")[0].double().numpy()
        assert error(magnitude(CQT(HALF), audio), expected) <= 5e-5


def test_harmonic_cqt_is_the_cqt_at_each_harmonic() -> None:
    harmonics = (0.5, 1, 1.5, 2, 3, 4)
    audio = noise(1, 1, 20_000)
    features = HarmonicCQT(HALF, harmonics=harmonics, bins_per_octave=36, bins=100, fmin=60.0)(audio)
    for channel, harmonic in zip(features[0], harmonics):
        alone = CQT(HALF, bins_per_octave=36, bins=100, fmin=60.0 * harmonic, hop=256)(audio)[0, 0]
        linear, expected = (10 ** (level.double().numpy() / 20) for level in (channel, alone))
        assert error(linear, expected) <= 5e-5


def test_the_channel_that_is_drawn_is_the_one_at_its_own_frequencies() -> None:
    assert HarmonicCQT(HALF, harmonics=(0.5, 1, 2), bins_per_octave=12, bins=36, fmin=100.0).shown == 1
    assert HarmonicCQT(HALF, harmonics=(2, 3), bins_per_octave=12, bins=36, fmin=100.0).shown == 0


def test_harmonics_share_rows_and_tables_are_small() -> None:
    front_end = HarmonicCQT(HALF)
    # Channels 1, 2 and 4 lie whole octaves above 0.5; 3 and 5 are no whole number of sixtieths away.
    assert len(front_end.rows.unique()) == (360 + 3 * 60) + 360 + 360
    assert sum(len(table.T) // 2 for table in front_end.filters.tables) == 1260
    assert sum(buffer.nbytes for buffer in front_end.buffers()) < 10e6


def test_harmonics_above_the_nyquist_frequency_are_the_floor() -> None:
    front_end = HarmonicCQT(AudioSpec(8000, 1.0), harmonics=(1, 3), bins_per_octave=12, bins=72, floor_db=-150.0)
    features = front_end(noise(2, 1, 16_000))
    above = 3 * np.array(front_end.out_spec.frequencies) > 4000
    assert 0 < above.sum() < 72
    assert (features[:, 1, above] == -150).all()
    assert (features[:, 1, ~above] > -150).all()
    assert (features[:, 0] > -150).all()


@pytest.mark.parametrize("bin_", [0, 40, 100, 175])
def test_full_scale_sine_reads_zero_db_at_its_bin(bin_: int) -> None:
    front_end = CQT(HALF)
    level = front_end(sine(front_end.out_spec.frequencies[bin_], 22050, 3.0))[0, 0, :, 64]  # (F,), 1.5 seconds in
    assert level.argmax() == bin_
    assert abs(level[bin_]) < 0.01
    far = np.abs(np.arange(176) - bin_) >= 24
    assert level[far].max() < -79


@pytest.mark.parametrize("channel", range(6))
def test_harmonic_cqt_peaks_at_the_pitch_in_each_channel(channel: int) -> None:
    front_end = HarmonicCQT(HALF)
    pitch, harmonic = front_end.out_spec.frequencies[150], (0.5, 1, 2, 3, 4, 5)[channel]
    level = front_end(sine(pitch * harmonic, 22050, 4.0))[0, channel, :, 170]  # (F,)
    assert level.argmax() == 150
    assert abs(level[150]) < 0.01


def test_a_click_is_heard_at_its_frame() -> None:
    """High bins ring for less than a frame, low ones as long as their windows, centred on the click."""
    front_end = CQT(HALF, floor_db=-150.0)
    audio = torch.zeros(1, 1, 512 * 120)
    audio[..., 512 * 60] = 1
    level = front_end(audio)[0, 0]  # (F, T)
    assert (level.argmax(dim=1) == 60).all()
    before, after = level[:, 45:60].flip(1), level[:, 61:76]
    rings = before > -80
    assert rings.sum() > 400
    torch.testing.assert_close(after[rings], before[rings], atol=0.3, rtol=0)


@settings(max_examples=20, deadline=None)
@given(
    samples=st.integers(1, 3_000_000),
    hop=st.integers(40, 1200),
    sample_rate=st.sampled_from([8000, 16000, 22050, 44100, 48000]),
)
def test_frames_of_the_spec_are_the_frames_that_come_on_meta(samples: int, hop: int, sample_rate: int) -> None:
    front_end = CQT(AudioSpec(sample_rate, 1.0), bins_per_octave=3, bins=6, fmin=100.0, hop=hop).to("meta")
    frames = front_end.out_spec.frames(samples, sample_rate)
    assert front_end(torch.empty(2, 1, samples, device="meta")).shape == (2, 1, 6, frames)


@every_front_end
@pytest.mark.parametrize("samples", [1, 2, 511, 512, 513, 40_001])
def test_any_length_gives_finite_features_of_the_stated_shape(front_end: FrontEnd, samples: int) -> None:
    out = front_end.out_spec
    features = front_end(noise(3, 1, samples))
    assert features.shape == (3, out.channels, out.bins, out.frames(samples, 22050))
    assert features.isfinite().all()
    assert features.dtype == torch.float32
    assert features.is_contiguous()


def test_front_ends_can_be_built_on_meta() -> None:
    with torch.device("meta"):
        assert CQT(HALF)(torch.empty(2, 1, 44_100)).shape == (2, 1, 176, 87)
        assert HarmonicCQT(HALF)(torch.empty(2, 1, 44_100)).shape == (2, 6, 360, 173)


@every_front_end
def test_autocast_changes_no_bit(front_end: FrontEnd) -> None:
    audio = noise(2, 1, 20_000)
    plain = front_end(audio)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = front_end(audio)
        assert torch.equal(cast, plain)
        assert cast.dtype == torch.float32


@every_front_end
def test_a_checkpoint_holds_none_of_the_tables(front_end: FrontEnd) -> None:
    assert not front_end.state_dict()
    assert not list(front_end.parameters())
    assert list(front_end.buffers())


@every_front_end
def test_silence_is_exactly_the_floor_and_has_a_gradient(front_end: FrontEnd) -> None:
    audio = torch.zeros(1, 1, 10_000, requires_grad=True)
    features = front_end(audio)
    assert (features == front_end.out_spec.low).all()
    features.sum().backward()
    assert audio.grad is not None
    assert audio.grad.isfinite().all()


@every_front_end
def test_loss_has_a_gradient_to_audio(front_end: FrontEnd) -> None:
    audio = noise(1, 1, 5_000).requires_grad_()
    front_end(audio).mean().backward()
    assert audio.grad is not None
    assert (audio.grad != 0).all()
    assert audio.grad.isfinite().all()


@every_front_end
def test_a_delay_of_one_hop_is_a_delay_of_one_frame(front_end: FrontEnd) -> None:
    audio = noise(1, 1, 20_000)
    late = torch.nn.functional.pad(audio, (512, 0))
    frames = round(512 / 22050 * front_end.out_spec.frame_rate)
    torch.testing.assert_close(front_end(late)[..., frames:], front_end(audio), atol=0.1, rtol=0)


def test_blocks_of_a_long_recording_join_without_a_seam() -> None:
    front_end, audio = CQT(HALF), noise(1, 1, 22050 * 30)  # 1292 frames
    assert front_end.filters.block < 300
    whole = front_end(audio)
    part = front_end(audio[..., 512 * 150 : 512 * 1150])  # 1001 frames, cut elsewhere
    edge = front_end.filters.context
    difference = (part[..., edge:-edge] - whole[..., 150 + edge : 1151 - edge]).abs()
    assert difference.mean() < 1e-3
    assert difference.max() < 0.5  # in a cell that lies far below its neighbours


@every_front_end
def test_group_size_and_company_in_the_batch_do_not_matter(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = noise(3, 1, 30_000)
    together = front_end(audio)
    torch.testing.assert_close(front_end(audio[1:2]), together[1:2], atol=1e-2, rtol=0)
    monkeypatch.setattr(cqt, "CPU_GROUP", 1)
    torch.testing.assert_close(front_end(audio), together, atol=1e-2, rtol=0)


def test_compiles_without_a_break_in_the_graph_and_once_for_all_lengths() -> None:
    torch.compiler.reset()
    front_end = HarmonicCQT(HALF, harmonics=(1, 2), bins_per_octave=12, bins=36, fmin=100.0)
    compiled = torch.compile(front_end, fullgraph=True, backend="eager")
    for samples in (20_000, 30_000):  # the second makes the length a symbol
        compiled(noise(2, 1, samples))
    with torch.compiler.set_stance("fail_on_recompile"):
        audio = noise(2, 1, 41_000)
        torch.testing.assert_close(compiled(audio), front_end(audio), atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"bins": 1}, "bins = 1"),
        ({"bins_per_octave": 0}, "bins_per_octave = 0"),
        ({"fmin": 0.0}, "go from fmin 0 Hz"),
        ({"bins": 240}, "to 27358.3 Hz; 22050 Hz audio has frequencies above 0 and up to 11025 Hz"),
        ({"hop": 0}, "hop = 0"),
        ({"gamma": -1.0}, "gamma is -1 Hz"),
        ({"gamma": float("nan")}, "gamma is nan Hz"),
        ({"gamma": 11_000.0}, "the widest band 11126.3 Hz; .* no band wider than 11025 Hz"),
        ({"floor_db": 0.0}, "floor_db = 0"),
        ({"floor_db": float("nan")}, "floor_db = nan"),
    ],
)
def test_cqt_refuses_settings_out_of_range(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CQT(HALF, **chosen)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"harmonics": ()}, r"harmonics = \(\)"),
        ({"harmonics": (0.0, 1)}, r"harmonics = \(0.0, 1\)"),
        ({"bins": 600}, "22050 Hz audio has frequencies above 0 and up to 11025 Hz"),
        ({"hop": -1}, "hop = -1"),
        ({"floor_db": 3.0}, "floor_db = 3"),
    ],
)
def test_harmonic_cqt_refuses_settings_out_of_range(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HarmonicCQT(HALF, **chosen)


@pytest.mark.parametrize(
    ("name", "front_end", "other"),
    [("cqt", CQT, {}), ("vqt", CQT, {"gamma": pytest.approx(ERB, abs=0.05)}), ("hcqt", HarmonicCQT, {})],
)
def test_yaml_states_every_keyword_at_its_default(name: str, front_end: type[FrontEnd], other: dict[str, Any]) -> None:
    stated: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert stated.pop("_target_") == f"{front_end.__module__}.{front_end.__name__}"
    parameters = inspect.signature(front_end).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in stated.items()} == defaults | other
