"""The STFT family: against its definition in float64, and what every member promises."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from omegaconf import OmegaConf
from scipy.signal import get_window
from torch import Tensor

from wavespace.errors import Incompatible
from wavespace.frontends import stft
from wavespace.frontends.base import FrontEnd
from wavespace.frontends.mel import Mel
from wavespace.frontends.stft import LogFrequency, MultiResolution
from wavespace.spec import AudioSpec
from wavespace.units import midi_to_hz

CD = AudioSpec(sample_rate=44100, seconds=2.0)
HALF = AudioSpec(sample_rate=22050, seconds=2.0)
CONF = Path(__file__).parents[2] / "conf" / "frontend"

every_front_end = pytest.mark.parametrize(
    "front_end", [LogFrequency(CD), Mel(CD), MultiResolution(HALF)], ids=lambda f: type(f).__name__
)


def noise(*shape: int, level: float = 0.1) -> Tensor:
    return level * torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def sine(hz: float, sample_rate: int, seconds: float = 1.0) -> Tensor:
    t = torch.arange(round(seconds * sample_rate), dtype=torch.float64) / sample_rate
    return torch.sin(2 * torch.pi * hz * t).float()[None, None]  # (1, 1, N)


def chord(sample_rate: int) -> Tensor:
    """Two seconds of a major chord of ten decaying partials each, and a little noise."""
    t = torch.arange(2 * sample_rate) / sample_rate
    tones = [
        0.2 / h * torch.exp(-t * decay) * torch.sin(2 * torch.pi * h * hz * t)
        for hz, decay in [(220.0, 1.0), (277.18, 1.5), (329.63, 2.0)]
        for h in range(1, 11)
    ]
    return (sum(tones) + noise(len(t), level=1e-3))[None, None]  # (1, 1, N)


def reference_power(audio: Tensor, n_fft: int, hop: int) -> NDArray[np.float64]:
    """`(n_fft / 2 + 1, T)`, frame by frame in float64; 1.0 for a full-scale sine."""
    x = np.pad(audio.double().numpy().ravel(), n_fft // 2)
    window = get_window("hann", n_fft)
    starts = range(0, len(x) - n_fft + 1, hop)
    spectra = [np.fft.rfft(x[start : start + n_fft] * window) for start in starts]
    return np.abs(np.array(spectra).T * 2 / window.sum()) ** 2


def reference_band(power: NDArray[np.float64], hz: float, ratio: float, sample_rate: int) -> NDArray[np.float64]:
    """Power `(T,)` under one triangle of unit sum."""
    width = sample_rate / (2 * (len(power) - 1))
    corners = [min(hz / ratio, hz - width), hz, max(hz * ratio, hz + width)]
    weights = np.interp(width * np.arange(len(power)), corners, [0, 1, 0])
    return weights / weights.sum() @ power


@pytest.mark.parametrize("settings", [{}, {"bins": 80, "fmin": 30.0, "fmax": 8000.0, "n_fft": 1024, "hop": 441}])
def test_log_frequency_equals_its_definition(settings: dict[str, Any]) -> None:
    front_end, audio = LogFrequency(CD, **settings), noise(1, 1, 44_100)
    power = reference_power(audio, settings.get("n_fft", 4096), settings.get("hop", 512))
    hz = front_end.out_spec.frequencies
    expected = np.array([reference_band(power, f, hz[1] / hz[0], 44100) for f in hz])
    linear = front_end.bands(audio[:, 0])[0].numpy()
    assert np.linalg.norm(linear - expected) <= 1e-6 * np.linalg.norm(expected)
    # A float32 FFT errs by about 1e-7 of the frame's largest bin; noise bands lie up to 30 dB below that.
    np.testing.assert_allclose(front_end(audio)[0, 0].numpy(), np.maximum(10 * np.log10(expected), -80), atol=1e-3)


def test_multi_resolution_equals_its_definition() -> None:
    front_end, audio = MultiResolution(HALF, floor_db=-150.0), noise(1, 1, 22_050)
    power = {n_fft: reference_power(audio, n_fft, 512) for n_fft in (8192, 4096, 2048, 1024)}
    tonal, attack = [], []
    for hz in front_end.out_spec.frequencies:
        n_fft = 8192 if hz < 300 else 4096 if hz < 1200 else 2048
        tonal.append(reference_band(power[n_fft], hz, 2 ** (1 / 36), 22050))
        semitone = midi_to_hz(round(69 + 12 * np.log2(hz / 440)))
        attack.append(reference_band(power[1024], semitone, 2 ** (1 / 12), 22050))
    linear = 10 ** (front_end(audio)[0].double().numpy() / 10)
    for ours, expected in zip(linear, np.array([tonal, attack])):
        assert np.linalg.norm(ours - expected) <= 2e-6 * np.linalg.norm(expected)


def test_multi_resolution_has_a_bin_at_every_piano_key() -> None:
    hz = np.array(MultiResolution(HALF).out_spec.frequencies)
    assert hz[0] == pytest.approx(midi_to_hz(20))
    np.testing.assert_allclose(np.diff(np.log2(hz)), 1 / 36, rtol=1e-9)
    for pitch in range(21, 109):
        assert np.abs(hz / midi_to_hz(pitch) - 1).min() < 1e-12


def test_reference_setting_is_256_by_173() -> None:
    front_end = LogFrequency(CD)
    assert front_end(noise(2, 1, CD.samples)).shape == (2, 1, 256, 173)
    assert front_end.out_spec.frames(CD.samples, 44100) == 173
    assert front_end.out_spec.frequencies[0] == pytest.approx(50)
    assert front_end.out_spec.frequencies[-1] == pytest.approx(22050)


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(1, 3_000_000),
    hop=st.integers(40, 512),
    sample_rate=st.sampled_from([8000, 16000, 22050, 44100, 48000]),
)
def test_frames_of_the_spec_are_the_frames_that_come_on_meta(samples: int, hop: int, sample_rate: int) -> None:
    spec = AudioSpec(sample_rate, 1.0)
    log = LogFrequency(spec, bins=8, n_fft=1024, hop=hop).to("meta")
    multi = MultiResolution(spec, n_ffts=(2048, 1024), crossovers=(500.0,), hop=hop).to("meta")
    for front_end in (log, multi):
        out, shape = front_end.out_spec, front_end(torch.empty(2, 1, samples, device="meta")).shape
        assert shape == (2, out.channels, out.bins, out.frames(samples, sample_rate))


@every_front_end
@pytest.mark.parametrize("samples", [1, 2, 511, 512, 513, 4095, 40_000])
def test_any_length_gives_finite_features_of_the_stated_shape(front_end: FrontEnd, samples: int) -> None:
    out = front_end.out_spec
    features = front_end(noise(3, 1, samples))
    assert features.shape == (3, out.channels, out.bins, out.frames(samples, front_end.in_spec.sample_rate))
    assert features.isfinite().all()
    assert features.dtype == torch.float32
    assert features.is_contiguous()


def test_front_ends_can_be_built_on_meta() -> None:
    with torch.device("meta"):
        for front_end in (LogFrequency(CD), Mel(CD), MultiResolution(HALF)):
            assert front_end(torch.empty(2, 1, 44_100)).shape == (
                2,
                front_end.out_spec.channels,
                front_end.out_spec.bins,
                87,
            )


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
def test_ten_decibels_of_gain_add_ten(front_end: FrontEnd) -> None:
    audio = noise(1, 1, 40_000, level=0.05)
    quiet, loud = front_end(audio), front_end(audio * 10**0.5)
    heard = quiet > front_end.out_spec.low
    assert heard.float().mean() > 0.9
    torch.testing.assert_close(loud[heard], quiet[heard] + 10, atol=1e-4, rtol=0)


@every_front_end
def test_loss_has_a_gradient_to_audio(front_end: FrontEnd) -> None:
    audio = noise(1, 1, 5_000).requires_grad_()
    front_end(audio).mean().backward()
    assert audio.grad is not None
    assert (audio.grad != 0).all()
    assert audio.grad.isfinite().all()


@pytest.mark.parametrize("hz", [60.0, 101.3, 220.0, 440.0])
def test_low_sine_reads_zero_db_at_its_frequency(hz: float) -> None:
    front_end = LogFrequency(CD)
    level = front_end(sine(hz, 44100))[0, 0, :, 43]  # (F,), half a second in
    # Between two FFT bins a Hann window loses up to 1.42 dB; bands read straight lines from bin to bin.
    assert -1.5 < level.max() < 0.1
    assert abs(front_end.out_spec.frequencies[level.argmax()] - hz) <= 44100 / 4096 / 2 + 0.024 * hz


@pytest.mark.parametrize("hz", [3000.0, 9000.0])
def test_high_sine_reads_its_power_spread_over_the_band(hz: float) -> None:
    front_end = LogFrequency(CD)
    frequencies = np.array(front_end.out_spec.frequencies)
    centre = np.abs(frequencies - hz).argmin()
    level = front_end(sine(frequencies[centre], 44100))[0, 0, :, 43]
    # A Hann peak holds the power of 1.5 bins; a triangle of unit sum over h bins to each side peaks at 1 / h.
    side = frequencies[centre] * (frequencies[1] / frequencies[0] - 1) * 4096 / 44100
    assert level.argmax() == centre
    assert level.max() == pytest.approx(10 * np.log10(1.5 / side), abs=0.6)


@pytest.mark.parametrize("pitch", [60, 63, 69, 74, 86, 97, 108])
def test_multi_resolution_peaks_at_the_key_that_sounds(pitch: int) -> None:
    front_end = MultiResolution(HALF)
    level = front_end(sine(midi_to_hz(pitch), 22050))[0, 0, :, 21]
    assert front_end.out_spec.frequencies[level.argmax()] == pytest.approx(midi_to_hz(pitch))
    assert -8 < level.max() < 0.1


def test_white_noise_is_level() -> None:
    front_end = LogFrequency(CD)
    mean = front_end.bands(noise(1, 44_100 * 20))[0].mean(dim=1)  # (F,)
    window = get_window("hann", 4096)
    expected = 0.1**2 * (window**2).sum() * (2 / window.sum()) ** 2
    # 20 s hold about 430 independent frames: 0.2 dB of spread in the narrowest bands.
    np.testing.assert_allclose(10 * np.log10(mean.numpy()[:-1] / expected), 0, atol=0.8)


@every_front_end
def test_a_delay_of_one_hop_is_a_delay_of_one_frame(front_end: FrontEnd) -> None:
    audio = noise(1, 1, 20_000)
    late = torch.nn.functional.pad(audio, (512, 0))
    torch.testing.assert_close(front_end(late)[..., 1:], front_end(audio), atol=1e-3, rtol=0)


@every_front_end
def test_frames_away_from_the_edges_do_not_know_the_length(front_end: FrontEnd) -> None:
    """So that a long recording may go through in overlapping windows."""
    audio, first, edge = noise(1, 1, 512 * 80), 20, 8
    whole = front_end(audio)
    part = front_end(audio[..., 512 * first : 512 * (first + 40)])
    torch.testing.assert_close(part[..., edge:-edge], whole[..., first + edge : first + 41 - edge], atol=1e-3, rtol=0)


@every_front_end
def test_group_size_and_company_in_the_batch_do_not_matter(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = noise(3, 1, 30_000)
    together = front_end(audio)
    torch.testing.assert_close(front_end(audio[1:2]), together[1:2], atol=1e-3, rtol=0)
    monkeypatch.setattr(stft, "CPU_GROUP", 1)
    torch.testing.assert_close(front_end(audio), together, atol=1e-3, rtol=0)


@every_front_end
def test_compiles_without_a_break_in_the_graph(front_end: FrontEnd) -> None:
    audio = noise(2, 1, 20_000)
    torch.compiler.reset()  # eight graphs of one function is as many as it keeps
    compiled = torch.compile(front_end, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(audio), front_end(audio), atol=1e-3, rtol=0)


@pytest.mark.parametrize("front_end", [LogFrequency(CD), Mel(CD)], ids=lambda f: type(f).__name__)
def test_inverse_has_the_features_it_was_made_from(front_end: FrontEnd) -> None:
    audio = chord(44100)
    features = front_end(audio)
    heard = front_end.inverse(features, audio.shape[-1])
    assert heard.shape == audio.shape
    # Measured: 0.60 dB (LogFrequency) and 0.45 dB (Mel) over all cells, 1.0 and 0.9 dB over those above the floor.
    error = (front_end(heard) - features).abs()
    assert error.mean() < 0.7
    assert error[features > -80].mean() < 1.2


def test_equal_features_give_equal_audio_whatever_else_is_in_the_batch() -> None:
    front_end = LogFrequency(CD, bins=64, n_fft=1024, hop=256)
    features = front_end(torch.cat([noise(1, 1, 6_000), chord(44100)[..., :6_000]]))
    both, alone = front_end.inverse(features, 6_000)[1:], front_end.inverse(features[1:], 6_000)
    assert torch.equal(front_end.inverse(features[1:], 6_000), alone)
    # Products of another size round differently, and Griffin-Lim carries that on.
    assert (front_end(both) - front_end(alone)).abs().mean() < 0.1


@pytest.mark.parametrize("samples", [1, 2047, 2048, 2049, 10_000])
def test_inverse_works_for_any_length_and_the_widest_hop(samples: int) -> None:
    front_end = Mel(CD, bins=40, n_fft=4096, hop=2048)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        audio = front_end.inverse(front_end(noise(2, 1, samples)), samples)
    assert audio.shape == (2, 1, samples)
    assert audio.dtype == torch.float32
    assert audio.isfinite().all()


def test_inverse_of_silence_is_silent() -> None:
    front_end = LogFrequency(CD)
    assert not front_end.inverse(front_end(torch.zeros(1, 1, 20_000)), 20_000).any()


def test_inverse_of_what_no_sound_has_is_finite() -> None:
    front_end = LogFrequency(CD)
    features = front_end(noise(1, 1, 20_000))
    features[..., 3:6, 5:9] = 700.0  # a net in its first steps: 10 ** 70 is no float32
    assert front_end.inverse(features, 20_000).isfinite().all()


def test_inverse_refuses_what_it_cannot_do() -> None:
    with pytest.raises(Incompatible, match="MultiResolution has no inverse"):
        MultiResolution(HALF).inverse(torch.zeros(1, 2, 315, 44), 22_050)
    with pytest.raises(ValueError, match="20000 samples have 40 frames; the features have 44"):
        LogFrequency(CD).inverse(torch.zeros(1, 1, 256, 44), 20_000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bins": 1}, "bins = 1"),
        ({"fmin": 0.0}, "fmin is 0 Hz .* 0 < fmin < fmax <= 22050"),
        ({"fmin": 500.0, "fmax": 500.0}, "fmin is 500 Hz and fmax 500 Hz"),
        ({"fmax": 23_000.0}, "fmax 23000 Hz"),
        ({"n_fft": 1023}, "n_fft = 1023"),
        ({"n_fft": 0}, "n_fft = 0"),
        ({"hop": 0}, "hop = 0"),
        ({"n_fft": 512}, "hop is 512; with n_fft 512 it must be 1 to 256"),
        ({"floor_db": 0.0}, "floor_db = 0"),
        ({"floor_db": float("nan")}, "floor_db = nan"),
    ],
)
def test_log_frequency_refuses_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogFrequency(CD, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bins_per_octave": 0}, "bins_per_octave = 0"),
        ({"fmin": -1.0}, "fmin is -1 Hz"),
        ({"fmin": 430.0, "fmax": 445.0, "bins_per_octave": 12}, "there are 1 bins from 430 to 445 Hz"),
        ({"crossovers": (300.0,)}, "3 windows need 2, ascending"),
        ({"crossovers": (1200.0, 300.0)}, "3 windows need 2, ascending"),
        ({"attack_n_fft": 512}, "hop is 512; with n_fft 512"),
        ({"n_ffts": (8192, 4096, 2047)}, "n_ffts = .*2047"),
    ],
)
def test_multi_resolution_refuses_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiResolution(HALF, **settings)


def test_multi_resolution_may_leave_a_window_without_bins() -> None:
    front_end = MultiResolution(HALF, fmax=250.0)
    assert front_end(noise(1, 1, 5_000)).shape == (1, 2, front_end.out_spec.bins, 10)


@pytest.mark.parametrize(
    ("name", "front_end"), [("log_frequency", LogFrequency), ("mel", Mel), ("multi_resolution", MultiResolution)]
)
def test_yaml_states_every_keyword_at_its_default(name: str, front_end: type[FrontEnd]) -> None:
    stated: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert stated.pop("_target_") == f"{front_end.__module__}.{front_end.__name__}"
    parameters = inspect.signature(front_end).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in stated.items()} == defaults
