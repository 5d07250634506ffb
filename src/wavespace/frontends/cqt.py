"""Constant-Q spectrograms in decibels: plain (CQT), with variable Q (VQT), and with harmonics as channels (HCQT).

A bin of frequency f and bandwidth w has a periodic Hann window of l = ceil(sample_rate / w) samples, with sample
ceil(l / 2) on the frame's time, and reads |4 / l * sum(window * audio * exp(-2i pi f t))|^2: the filters of Brown and
Puckette (1992), 0 dB for a full-scale sine at f. Audio counts as zero before its start and after its end.

The filters are not run at the full rate. Bins of about an octave share a signal with a whole number of samples to a
frame, which holds all frequencies that they pass: an inverse FFT of the first bins of one FFT of the audio is exact
decimation for any hop. At that rate the filters are short, and their levels are one matrix product.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from wavespace.frontends.base import Bins, Floor, FrontEnd
from wavespace.frontends.stft import CPU_GROUP, GPU_GROUP, Array, decibel_spec, decibels
from wavespace.settings import validate_settings
from wavespace.spec import AudioSpec, Normalization, check_table

LOBES = 16
"""Bandwidths above its frequency that a bin takes in; further out a Hann window lets through less than -82 dB."""
TAIL = 2
"""Samples by which a decimated filter is longer than its window, as no band ends at once."""


@validate_settings
class CQT(FrontEnd):
    """Levels at a constant number of bins to an octave, `(B, 1, bins, T)` in dB.

    Bandwidths are `(2^(1 / bins_per_octave) - 1) * f + gamma`. With gamma 0 every bin has one quality factor; above
    it low bins have shorter windows (the VQT of Schoerkhuber, Klapuri, Holighaus and Doerfler, AES 2014).

    Args:
        bins_per_octave: bins to an octave.
        bins: bins in all, at least 2.
        fmin: the lowest bin in Hz.
        hop: samples from frame to frame.
        gamma: added to every bandwidth, in Hz; `228.7 * (2^(1 / bins_per_octave) - 1)` makes bandwidths proportional
            to those of hearing (ERB).
    """

    def __init__(
        self,
        in_spec: AudioSpec,
        *,
        bins_per_octave: PositiveInt = 24,
        bins: Bins = 176,
        fmin: float = 27.5,
        hop: PositiveInt = 512,
        gamma: float = 0.0,
        floor_db: Floor = -80.0,
        normalize: Normalization = "none",
    ) -> None:
        frequencies = cqt_axis(in_spec, bins_per_octave, bins, fmin)
        bandwidths = (2 ** (1 / bins_per_octave) - 1) * frequencies + gamma
        if not 0 <= gamma <= bandwidths[-1] <= in_spec.sample_rate / 2:
            raise ValueError(
                f"gamma is {gamma:g} Hz, and the widest band {bandwidths[-1]:g} Hz; "
                f"gamma must be at least 0 and no band wider than {in_spec.sample_rate / 2:g} Hz"
            )
        super().__init__(in_spec, decibel_spec(in_spec, 1, frequencies, hop, floor_db), normalize)
        self.filters = Filters(frequencies, bandwidths, in_spec.sample_rate, hop)
        self.context = self.filters.context

    def compute(self, audio: Tensor) -> Tensor:
        """Levels `(B, 1, F, T)` in dB of audio `(B, N)`."""
        return decibels(self.filters(audio), self.raw_spec.low).unsqueeze(1)  # (B, 1, F, T)


@validate_settings
class HarmonicCQT(FrontEnd):
    """Constant-Q levels at harmonics of each bin as channels, `(B, harmonics, bins, T)` in dB.

    The input of Deep Salience (Bittner, McFee, Salamon, Li and Bello, ISMIR 2017). All channels are read from one
    transform: where a harmonic is a whole number of bins away, as octaves are, it shares its rows with others.

    Args:
        harmonics: multiples of each bin's frequency, above 0; those above the Nyquist frequency read as the floor.
        bins_per_octave: bins to an octave.
        bins: bins of a channel, at least 2.
        fmin: the lowest bin of harmonic 1 in Hz.
        hop: samples from frame to frame.
    """

    rows: Tensor  # (H, F)

    def __init__(
        self,
        in_spec: AudioSpec,
        *,
        harmonics: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.5, 1, 2, 3, 4, 5),
        bins_per_octave: PositiveInt = 60,
        bins: Bins = 360,
        fmin: float = 32.7,
        hop: PositiveInt = 256,
        floor_db: Floor = -80.0,
        normalize: Normalization = "none",
    ) -> None:
        frequencies = cqt_axis(in_spec, bins_per_octave, bins, fmin)
        super().__init__(in_spec, decibel_spec(in_spec, len(harmonics), frequencies, hop, floor_db), normalize)

        check_table(4 * len(harmonics) * bins)
        # Rounded, so that steps which are equal but for the error of log2 are one row.
        steps = np.round(bins_per_octave * np.log2(harmonics)[:, None] + np.arange(bins), 6)  # (H, F)
        below = fmin * 2 ** (steps / bins_per_octave) <= in_spec.sample_rate / 2
        unique = np.unique(steps[below])
        # Row len(unique) is the floor.
        rows = np.where(below, np.searchsorted(unique, steps), len(unique))
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        all_frequencies = fmin * 2 ** (unique / bins_per_octave)
        bandwidths = (2 ** (1 / bins_per_octave) - 1) * all_frequencies
        self.filters = Filters(all_frequencies, bandwidths, in_spec.sample_rate, hop)
        self.shown = int(np.abs(np.log(harmonics)).argmin())
        self.context = self.filters.context

    def compute(self, audio: Tensor) -> Tensor:
        """Levels `(B, H, F, T)` in dB of audio `(B, N)`."""
        levels = decibels(self.filters(audio), self.raw_spec.low)  # (B, rows, T)
        return F.pad(levels, (0, 0, 0, 1), value=self.raw_spec.low)[:, self.rows]  # (B, H, F, T)


class Filters(nn.Module):
    """Power `(B, rows, T)` of audio `(B, N)` in Hann-windowed bands, 1.0 for a full-scale sine at the centre.

    Args:
        frequencies: centre of each row in Hz, ascending.
        bandwidths: sample_rate over the window's length, of each row in Hz, ascending.
        sample_rate: of the audio.
        hop: samples from frame to frame.
    """

    def __init__(self, frequencies: Array, bandwidths: Array, sample_rate: int, hop: int) -> None:
        super().__init__()
        self.hop = hop
        check_table(16 * sample_rate / bandwidths.min(), len(frequencies))
        lengths = np.ceil(sample_rate / bandwidths).astype(int)
        needed = 2 * (frequencies / sample_rate + LOBES / lengths) * hop  # samples to a frame
        rates: list[int] = []
        tables: list[Array] = []
        end = len(frequencies)
        while end:
            rate = math.ceil(needed[end - 1])
            rate += -rate % step(rate)
            if rate > hop // 2:  # a product with the audio itself costs less than another FFT
                rate = hop
            start = int(np.searchsorted(needed, needed[end - 1] / 2, side="right")) if rate > 1 else 0
            rows = slice(start, end)
            rates.insert(0, rate)
            tables.insert(0, decimated(frequencies[rows] / sample_rate, lengths[rows], hop, rate))
            end = start
        self.rates = rates
        self.sides = [len(table) // 2 for table in tables]  # samples before and after a frame's own
        # Frames of audio on either side that change a frame.
        self.context = max(side // rate + 1 for side, rate in zip(self.sides, rates))
        taps = max(len(table) for table in tables)
        self.block = max(256, min(8 * self.context, CPU_GROUP // taps))  # most frames at once
        self.step = step(self.block + 2 * self.context)
        self.size = max(hop, taps)  # what a frame takes of memory, as audio or as what its filters take in
        for i, table in enumerate(tables):
            self.register_buffer(f"table{i}", torch.tensor(table, dtype=torch.float32), persistent=False)

    @property
    def tables(self) -> list[Tensor]:
        """One `(samples, 2 * rows)` matrix for each of `rates`."""
        return [getattr(self, f"table{i}") for i in range(len(self.rates))]

    def forward(self, audio: Tensor) -> Tensor:
        """Power `(B, rows, T)` of audio `(B, N)`."""
        frames = 1 + audio.shape[1] // self.hop
        compiling = torch.compiler.is_compiling()  # lengths are symbols then, and loops would be unrolled
        # Overlapping blocks bound the memory, and MKL takes several FFTs at once in less time than a long one.
        blocks = 1 if compiling else -(-frames // self.block)
        length = -(-frames // blocks)  # frames to a block
        span = length + 2 * self.context
        span += -span % self.step
        before, whole = self.context * self.hop, ((blocks - 1) * length + span) * self.hop
        audio = F.pad(audio, (before, whole - before - audio.shape[1]))
        starts = [i * length * self.hop for i in range(blocks)]
        pieces = torch.cat([audio[:, start : start + span * self.hop] for start in starts])  # (blocks * B, span * hop)
        samples = CPU_GROUP if audio.device.type == "cpu" else GPU_GROUP
        groups = (pieces,) if compiling else pieces.split(max(1, samples // (span * self.size)))
        power = torch.cat([self.power(group, length) for group in groups])  # (blocks * B, length, rows)
        return torch.cat(power.chunk(blocks), dim=1)[:, :frames].transpose(1, 2)  # (B, rows, T)

    def power(self, audio: Tensor, frames: int) -> Tensor:
        """Power `(B, frames, rows)` of audio `(B, span * hop)` that starts `context` frames before the first."""
        spectrum = torch.fft.rfft(audio)  # (B, span * hop / 2 + 1)
        span = audio.shape[1] // self.hop
        parts = []
        for rate, side, table in zip(self.rates, self.sides, self.tables):
            signal = audio if rate == self.hop else torch.fft.irfft(spectrum, n=span * rate)  # (B, span * rate)
            spans = signal[:, self.context * rate - side :].unfold(1, len(table), rate)  # (B, >= frames, samples)
            real, imaginary = (spans[:, :frames] @ table).chunk(2, dim=-1)  # (B, frames, rows of this rate)
            parts.append(real.square() + imaginary.square())
        return torch.cat(parts, dim=-1)  # (B, frames, rows)


def decimated(frequencies: Array, lengths: NDArray[np.int_], hop: int, rate: int) -> Array:
    """Filters for a signal of `rate` instead of `hop` samples a frame: `(samples, 2 * rows)`, real then imaginary.

    The filters' spectra come in closed form, as the Hann window is three Dirichlet kernels, and are cut off where
    the signal's band ends. The middle sample is the frame's own.

    Args:
        frequencies: centre of each row in cycles a sample, before decimation.
        lengths: of each row's window in samples, before decimation.
        hop: samples a frame before decimation.
        rate: samples a frame after it.
    """
    side = math.ceil(math.ceil(lengths.max() / 2) * rate / hop) + TAIL
    span = -(-(2 * side + 1) // rate)  # frames
    check_table(16 * len(frequencies) * span * rate)
    f, l = frequencies[:, None], lengths[:, None]  # (rows, 1)
    omega = 2 * np.pi * (np.fft.fftfreq(span * rate) * rate / hop - f)  # (rows, span * rate), from the centre
    kernels = [dirichlet(omega + shift * 2 * np.pi / l, l - 1) for shift in (-1, 0, 1)]
    window = (kernels[0] + 2 * kernels[1] + kernels[2]) / 4 * np.exp(-1j * omega * (l % 2) / 2)
    filters = np.fft.fft(4 / l * window) / (span * hop)  # (rows, span * rate)
    filters = filters[:, np.arange(-side, side + 1)]
    return np.concatenate([filters.real, filters.imag]).T


def dirichlet(omega: Array, n: NDArray[np.int_]) -> Array:
    """Spectrum of n ones about zero, `sin(n omega / 2) / sin(omega / 2)`."""
    bottom = np.sin(omega / 2)
    pole = np.abs(bottom) < 1e-9
    return np.where(pole, n * np.cos(n * omega / 2) * np.cos(omega / 2), np.sin(n * omega / 2) / (bottom + pole))


def step(most: int) -> int:
    """The power of two by whose multiples to count up to `most` in 8 to 16 steps: lengths that an FFT is fast at."""
    return 1 << max(0, most.bit_length() - 4)


def cqt_axis(in_spec: AudioSpec, bins_per_octave: int, bins: int, fmin: float) -> Array:
    """The bins' frequencies in Hz; ValueError where they don't fit the audio."""
    check_table(0, bins)
    frequencies = fmin * 2 ** (np.arange(bins) / bins_per_octave)
    nyquist = in_spec.sample_rate / 2
    if not 0 < fmin < frequencies[-1] <= nyquist:
        raise ValueError(
            f"{bins} bins, {bins_per_octave} to an octave, go from fmin {fmin:g} Hz to {frequencies[-1]:g} Hz; "
            f"{in_spec.sample_rate} Hz audio has frequencies above 0 and up to {nyquist:g} Hz"
        )
    return frequencies
