"""Spectrograms on a logarithmic frequency axis: STFT power, gathered into triangular bands, in decibels.

A full-scale sine has 0 dB in the FFT bin at its frequency. Frames are centred on multiples of the hop, audio
counts as zero before its start and after its end, and any length from one sample up works.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import Tensor, nn

from wavespace.frontends.base import Bins, Floor, FrontEnd, WindowLength
from wavespace.settings import validate_settings
from wavespace.spec import AudioSpec, FeatureSpec, Normalization, check_table

Array = NDArray[np.float64]

BLOCK = 32
"""Bands to one product."""
CPU_GROUP, GPU_GROUP = 2**21, 2**26
"""Samples of frames to transform at once. On a CPU 8 MB, which malloc hands out again and again, where it maps
large blocks afresh at each call, and pays for that with more time than the transform takes; on a GPU 256 MB."""


LOUDEST = 60.0
"""Level in dB that no band of sound within full scale comes near to."""


class BandSpectrogram(FrontEnd):
    """Levels in the bands of one STFT, `(B, 1, bins, T)` in dB; `LogFrequency` and `Mel` choose the bands.

    Args:
        frequencies: centre of each band in Hz, ascending.
        weights: `(bins, n_fft / 2 + 1)`, what each FFT bin gives to each band.
        hop: samples from frame to frame.
    """

    invertible = True

    def __init__(
        self,
        in_spec: AudioSpec,
        frequencies: Array,
        weights: Array,
        hop: int,
        floor_db: float,
        normalize: Normalization,
    ) -> None:
        super().__init__(in_spec, decibel_spec(in_spec, 1, frequencies, hop, floor_db), normalize)
        self.bands = Bands(weights, hop)

    def compute(self, audio: Tensor) -> Tensor:
        """Levels `(B, 1, F, T)` in dB of audio `(B, N)`."""
        return decibels(self.bands(audio), self.raw_spec.low).unsqueeze(1)  # (B, 1, F, T)

    def waveform(self, features: Tensor, samples: int) -> Tensor:
        """Audio `(B, samples)` of levels `(B, 1, F, T)`: bands to FFT bins, then phases by Griffin-Lim.

        Levels above `LOUDEST` are lowered to it: in the first steps a model may give hundreds of dB.
        """
        levels = features.squeeze(1).clamp(max=LOUDEST)  # (B, F, T)
        levels = 10 ** (levels / 10) - 10 ** (self.raw_spec.low / 10)  # the floor is silence
        power = self.bands.invert(levels.clamp_min(0))  # (B, n_fft / 2 + 1, T)
        return griffin_lim(power.sqrt(), self.bands.hop, samples)  # (B, N)


@validate_settings
class LogFrequency(BandSpectrogram):
    """Levels in triangular bands evenly spaced in log frequency, `(B, 1, bins, T)` in dB.

    The weights of a band sum to one: white noise is level; a full-scale sine reads about 0 dB where bands are
    narrower than the window's main lobe, and less by the bandwidth above that.

    Args:
        bins: bands, at least 2.
        fmin: centre of the lowest band in Hz.
        fmax: centre of the highest band in Hz; None is the Nyquist frequency.
        n_fft: length of the Hann window and the FFT in samples, even.
        hop: samples from frame to frame, at most half of `n_fft`.
    """

    def __init__(
        self,
        in_spec: AudioSpec,
        *,
        bins: Bins = 256,
        fmin: float = 50.0,
        fmax: float | None = None,
        n_fft: WindowLength = 4096,
        hop: PositiveInt = 512,
        floor_db: Floor = -80.0,
        normalize: Normalization = "none",
    ) -> None:
        check_overlap(n_fft, hop)
        frequencies = log_axis(in_spec, bins, fmin, fmax)
        weights = log_bands(frequencies, (frequencies[-1] / fmin) ** (1 / (bins - 1)), n_fft, in_spec.sample_rate)
        super().__init__(in_spec, frequencies, weights, hop, floor_db, normalize)


@validate_settings
class MultiResolution(FrontEnd):
    """Levels from windows of several lengths on one axis, and attacks, `(B, 2, F, T)` in dB.

    Channel 0 has triangular bands one bin wide: low ones from a long window, which resolves close pitches,
    high ones from a short one. Channel 1 has semitone bands of a still shorter window, which resolves onsets,
    repeated onto the same axis. Weights sum to one, as in `LogFrequency`. Bins lie at
    440 * 2^(k / bins_per_octave) Hz, so that with 12, 24 or 36 to the octave each piano key has one at its pitch.

    Args:
        bins_per_octave: bins to an octave.
        fmin: the lowest bin is the first at or above this, in Hz; 25.9 gives MIDI pitch 20.
        fmax: the highest bin is the last at or below this, in Hz; None is the Nyquist frequency.
        n_ffts: lengths of the Hann windows of channel 0 in samples, each even.
        crossovers: frequencies in Hz at which channel 0 goes to the next window; one fewer than `n_ffts`.
        attack_n_fft: length of the Hann window of channel 1 in samples, even.
        hop: samples from frame to frame, at most half of the shortest window.
    """

    semitone_of_bin: Tensor  # (F,)

    def __init__(
        self,
        in_spec: AudioSpec,
        *,
        bins_per_octave: PositiveInt = 36,
        fmin: float = 25.9,
        fmax: float | None = None,
        n_ffts: tuple[WindowLength, ...] = (8192, 4096, 2048),
        crossovers: tuple[float, ...] = (300.0, 1200.0),
        attack_n_fft: WindowLength = 1024,
        hop: PositiveInt = 512,
        floor_db: Floor = -80.0,
        normalize: Normalization = "none",
    ) -> None:
        top = check_range(in_spec, fmin, fmax, above_zero=True)
        for n_fft in (*n_ffts, attack_n_fft):
            check_overlap(n_fft, hop)
        if len(crossovers) != len(n_ffts) - 1 or list(crossovers) != sorted(crossovers):
            raise ValueError(
                f"crossovers is {list(crossovers)}; {len(n_ffts)} windows need {len(n_ffts) - 1}, ascending"
            )
        first = math.ceil(bins_per_octave * math.log2(fmin / 440))
        end = math.floor(bins_per_octave * math.log2(top / 440)) + 1
        check_table((end - first) * max(n_ffts) + 4 * sum(n_ffts), end - first)
        steps = np.arange(first, end)
        if len(steps) < 2:
            raise ValueError(f"there are {len(steps)} bins from {fmin:g} to {top:g} Hz; the axis needs at least 2")
        frequencies = 440 * 2 ** (steps / bins_per_octave)
        super().__init__(in_spec, decibel_spec(in_spec, 2, frequencies, hop, floor_db), normalize)

        window_of_bin = np.searchsorted(crossovers, frequencies, side="right")
        self.tonal = nn.ModuleList(
            Bands(log_bands(part, 2 ** (1 / bins_per_octave), n_fft, in_spec.sample_rate), hop)
            for window, n_fft in enumerate(n_ffts)
            if len(part := frequencies[window_of_bin == window])
        )
        semitones, semitone_of_bin = np.unique(np.round(12 * steps / bins_per_octave), return_inverse=True)
        self.attack = Bands(
            log_bands(440 * 2 ** (semitones / 12), 2 ** (1 / 12), attack_n_fft, in_spec.sample_rate), hop
        )
        self.register_buffer("semitone_of_bin", torch.tensor(semitone_of_bin), persistent=False)

    def compute(self, audio: Tensor) -> Tensor:
        """Levels `(B, 2, F, T)` in dB of audio `(B, N)`."""
        tonal = torch.cat([bands(audio) for bands in self.tonal], dim=1)  # (B, F, T)
        attack = self.attack(audio)[:, self.semitone_of_bin]  # (B, F, T)
        return decibels(torch.stack([tonal, attack], dim=1), self.raw_spec.low)  # (B, 2, F, T)


class Bands(nn.Module):
    """Power in bands: audio `(B, N)` to `(B, bands, T)`, 1.0 at the FFT bin of a full-scale sine.

    Frames are taken a group at a time, which is several times faster on a CPU than one large STFT, and bounds the
    memory on any device. The band matrix is about 1 % dense, but neighbouring bands share their FFT bins: small
    dense products over a few bands each are as fast as a sparse one, and run on any device.

    Args:
        weights: `(bands, n_fft / 2 + 1)`, no row empty.
        hop: samples from frame to frame.
    """

    window: Tensor  # (n_fft,)

    def __init__(self, weights: Array, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop = 2 * (weights.shape[1] - 1), hop
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.n_fft) / self.n_fft)
        self.register_buffer("window", torch.tensor(window * 2 / window.sum(), dtype=torch.float32), persistent=False)
        self.spans: list[tuple[int, int]] = []
        for start in range(0, len(weights), BLOCK):
            block = weights[start : start + BLOCK]
            used = np.flatnonzero(block.any(axis=0))
            table = torch.tensor(block[:, used[0] : used[-1] + 1].T, dtype=torch.float32)  # (FFT bins, bands)
            self.register_buffer(f"block{len(self.spans)}", table, persistent=False)
            self.spans.append((int(used[0]), int(used[-1]) + 1))

    @property
    def blocks(self) -> list[Tensor]:
        """One `(FFT bins, bands)` matrix for each of `spans`."""
        return [getattr(self, f"block{i}") for i in range(len(self.spans))]

    def forward(self, audio: Tensor) -> Tensor:
        """Power `(B, bands, T)` of audio `(B, N)`."""
        frames = F.pad(audio, (self.n_fft // 2, self.n_fft // 2)).unfold(-1, self.n_fft, self.hop)  # (B, T, n_fft)
        if torch.compiler.is_compiling():  # which would unroll a loop over groups
            groups: tuple[Tensor, ...] = (frames,)
        else:
            samples = CPU_GROUP if audio.device.type == "cpu" else GPU_GROUP
            groups = frames.split(max(1, samples // (len(audio) * self.n_fft)), dim=1)
        return torch.cat([self.gather(group) for group in groups], dim=1).transpose(1, 2)  # (B, bands, T)

    def gather(self, frames: Tensor) -> Tensor:
        """Power `(B, T, bands)` of frames `(B, T, n_fft)`."""
        spectrum = torch.fft.rfft(frames * self.window)[..., : self.spans[-1][1]]  # (B, T, FFT bins used)
        power = spectrum.real.square() + spectrum.imag.square()
        products = [power[..., lo:hi] @ block for (lo, hi), block in zip(self.spans, self.blocks)]
        return torch.cat(products, dim=-1)  # (B, T, bands)

    def invert(self, levels: Tensor, steps: int = 50) -> Tensor:
        """Non-negative power `(B, n_fft / 2 + 1, T)` whose bands are about `levels` `(B, bands, T)`.

        Multiplicative steps of expectation maximisation (Richardson 1972, Lucy 1974), which weigh errors as
        ratios and so suit decibels. FFT bins in no band stay zero.
        """
        matrix = levels.new_zeros(self.n_fft // 2 + 1, levels.shape[1])  # (FFT bins, bands)
        for i, ((lo, hi), block) in enumerate(zip(self.spans, self.blocks)):
            matrix[lo:hi, BLOCK * i : BLOCK * i + block.shape[1]] = block
        share = matrix / matrix.sum(dim=1, keepdim=True).clamp_min(1e-12)
        power = share @ levels  # (B, FFT bins, T)
        for _ in range(steps):
            power = power * (share @ (levels / (matrix.T @ power).clamp_min(1e-20)))
        return power


def griffin_lim(magnitude: Tensor, hop: int, samples: int, steps: int = 64, momentum: float = 0.99) -> Tensor:
    """Audio `(B, samples)` whose STFT has about this magnitude `(B, n_fft / 2 + 1, T)`, full-scale sine 1.0.

    The fast Griffin-Lim algorithm (Perraudin, Balazs and Sondergaard, WASPAA 2013). The first phases are random
    but always the same, so that equal magnitudes give equal audio, whatever else is in the batch.
    """
    n_fft = 2 * (magnitude.shape[1] - 1)
    window = torch.hann_window(n_fft, device=magnitude.device)
    magnitude = magnitude * window.sum() / 2

    def synthesis(angle: Tensor) -> Tensor:  # (B, n_fft / 2 + 1, T) -> (B, N)
        # torch.istft refuses audio whose last samples only the zero end of a window covers.
        return torch.istft(magnitude * angle, n_fft, hop, window=window.clamp_min(1e-4), length=samples)

    def analysis(audio: Tensor) -> Tensor:  # (B, N) -> (B, n_fft / 2 + 1, T)
        return torch.stft(audio, n_fft, hop, window=window, pad_mode="constant", return_complex=True)

    phase = torch.rand(magnitude.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 * math.pi
    angle = torch.polar(torch.ones_like(phase), phase).to(magnitude.device)  # (n_fft / 2 + 1, T)
    before = torch.zeros_like(angle)
    for _ in range(steps):
        rebuilt = analysis(synthesis(angle))  # (B, n_fft / 2 + 1, T)
        angle = rebuilt - before * momentum / (1 + momentum)
        angle = angle / angle.abs().clamp_min(1e-16)
        before = rebuilt
    return synthesis(angle)  # (B, N)


def decibels(power: Tensor, floor_db: float) -> Tensor:
    """`10 log10` of power, raised to the floor; 1e-30 keeps logarithm and gradient finite in silence."""
    return (10 * power.clamp_min(1e-30).log10()).clamp_min(floor_db).contiguous()


def decibel_spec(in_spec: AudioSpec, channels: int, frequencies: Array, hop: int, floor_db: float) -> FeatureSpec:
    """What a front-end in decibels of full scale yields."""
    return FeatureSpec(
        channels, tuple(frequencies.tolist()), in_spec.sample_rate / hop, unit="dB", low=floor_db, high=0.0
    )


def log_bands(frequencies: Array, ratio: float, n_fft: int, sample_rate: int) -> Array:
    """Rows of unit sum: triangles from `f / ratio` over `f` to `f * ratio`.

    A side shorter than one FFT bin is widened to it, so that a narrow band interpolates between two bins.
    """
    width = sample_rate / n_fft
    left = np.minimum(frequencies / ratio, frequencies - width)
    right = np.maximum(frequencies * ratio, frequencies + width)
    weights = triangles(left, frequencies, right, n_fft, sample_rate)
    return weights / weights.sum(axis=1, keepdims=True)


def triangles(left: Array, centre: Array, right: Array, n_fft: int, sample_rate: int) -> Array:
    """`(bands, n_fft / 2 + 1)` weights that rise from 0 at `left` to 1 at `centre`, and fall to 0 at `right`."""
    check_table(4 * len(centre) * (n_fft // 2 + 1))
    hz = np.arange(n_fft // 2 + 1) * sample_rate / n_fft
    rise = (hz - left[:, None]) / (centre - left)[:, None]
    fall = (right[:, None] - hz) / (right - centre)[:, None]
    return np.maximum(0, np.minimum(rise, fall))


def check_range(in_spec: AudioSpec, fmin: float, fmax: float | None, above_zero: bool) -> float:
    """The highest frequency of the axis, in Hz; ValueError where the range isn't one."""
    nyquist = in_spec.sample_rate / 2
    top = nyquist if fmax is None else fmax
    if not 0 <= fmin < top <= nyquist or (above_zero and fmin == 0):
        raise ValueError(
            f"fmin is {fmin:g} Hz and fmax {top:g} Hz; {in_spec.sample_rate} Hz audio needs "
            f"0 {'<' if above_zero else '<='} fmin < fmax <= {nyquist:g}"
        )
    return top


def log_axis(in_spec: AudioSpec, bins: int, fmin: float, fmax: float | None) -> Array:
    """Frequencies in Hz evenly spaced in log frequency; ValueError where a setting is out of range."""
    check_table(0, bins)
    return np.geomspace(fmin, check_range(in_spec, fmin, fmax, above_zero=True), bins)


def check_overlap(n_fft: int, hop: int) -> None:
    """ValueError where frames of an STFT would not overlap."""
    if hop > n_fft // 2:
        raise ValueError(f"hop is {hop}; with n_fft {n_fft} it must be 1 to {n_fft // 2}, so that frames overlap")
