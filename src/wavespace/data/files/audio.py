"""Reads audio files as mono float32 at one sample rate, whole or in blocks."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from wavespace.data.files.containers import Pieces, Stream, streams
from wavespace.data.files.discovery import audio_suffixes
from wavespace.errors import BadInput
from wavespace.units import FULL_SCALE

Audio = NDArray[np.float32]

UNKNOWN = 2**62
"""Numbers of samples from here on mean that the header states none (libsndfile)."""

RATES = (1_000, 1_000_000)
"""Samples a second: a header that states less or more is damaged, and resampling would take too much memory."""

AT_ONCE = 2**24
"""Samples of all channels that are decoded at once at most."""

SILENT = 1e-3
"""Level of a channel against the loudest one, below which nothing is recorded in it: -60 dB."""

CANCELLED = 0.14
"""Level of the sum of channels against that of channels that differ, below which they cancel each other: -17 dB."""

LOUD = 0.1
"""Level of a stretch against the loudest channel, above which its channels may not cancel each other: -20 dB."""

LOUDEST = 8.0
"""A float file that goes further beyond full scale than this does not hold samples in -1..1."""

INTEGERS = (2**15, 2**23, 2**31)
"""Full scale of integers that a float file may hold as they are."""


class _File(soundfile.SoundFile):
    """Reads without seeking: soundfile seeks after each read, which is audible in an MP3 file."""

    def seekable(self) -> bool:
        return False

    @property
    def mpeg(self) -> bool:
        return self.subtype.startswith("MPEG")


class Part(NamedTuple):
    """A stream of an audio file, and how its channels become one."""

    stream: Stream
    frames: int | None
    """None: its header does not state its length."""
    used: tuple[int, ...]
    """The channels that are averaged."""
    scale: float
    """What full scale is in the numbers that libsndfile gives."""
    remarks: tuple[str, ...] = ()
    """What the user should know of its length, its channels or its scale."""


def read_audio(path: Path, sample_rate: int, *, seconds: float | None = None) -> Audio:
    """Read a file, or its first seconds, as mono float32 `(N,)`; other rates are resampled (soxr HQ).

    Channels are averaged, but for those in which nothing is recorded; of channels that cancel each other, all along or
    for a while, the loudest is taken. Float files with samples in the range of integers are scaled. A file is read to
    its end whatever length its header states; a WAV, Ogg or MP3 file that was cut off gives what it holds.

    Raises:
        BadInput: the file is missing, not audio, damaged, holds no samples, or holds values that are not numbers.
    """
    parts, rate = _parts(path)
    blocks = list(_blocks(path, parts, UNKNOWN if seconds is None else round(seconds * rate), AT_ONCE))
    audio = blocks[0] if len(blocks) == 1 else np.concatenate([np.zeros(0, np.float32), *blocks])
    return soxr.resample(audio, rate, sample_rate) if rate != sample_rate else audio


def read_blocks(path: Path, sample_rate: int, seconds: float = 10.0) -> Iterator[Audio]:
    """Read the same in blocks, at constant memory."""
    parts, rate = _parts(path)
    resample = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
    for block in _blocks(path, parts, UNKNOWN, round(seconds * rate)):
        yield block if rate == sample_rate else resample.resample_chunk(block)
    if rate != sample_rate:
        yield resample.resample_chunk(np.zeros(0, np.float32), last=True)


class Levels:
    """Measures the levels of a recording from blocks of 16-bit samples, for remarks to the user."""

    def __init__(self) -> None:
        self.samples = self.full = self.total = self.peak = 0

    def add(self, block: NDArray[np.int16]) -> None:
        """Count the next samples."""
        if len(block):
            high, low = int(block.max()), int(block.min())
            self.samples += len(block)
            self.total += int(block.sum(dtype=np.int64))
            self.peak = max(self.peak, high, -low)
            if max(high, -low) >= 32767:
                self.full += int(np.count_nonzero((block >= 32767) | (block <= -32767)))

    @property
    def is_silent(self) -> bool:
        """Whether no sample is louder than -60 dB of full scale."""
        return self.peak < 33

    def remarks(self) -> list[str]:
        """Describe silence, clipping and an offset, each in a few words."""
        level = 20 * math.log10(max(1, self.peak) / FULL_SCALE)
        if self.is_silent:
            return [f"is silent (no sample is louder than {level:.0f} dB)"]
        offset, full = abs(self.total / self.samples) / FULL_SCALE, self.full / self.samples
        said = [f"is soft (no sample is louder than {level:.0f} dB)"] * (self.peak < 328)
        said += [f"is clipped ({full:.2%} of its samples are at full scale)"] * (full > 1e-3)
        return said + [f"has an offset of {offset:.1%} of full scale"] * (offset > 0.02)


def seconds_of(path: Path) -> float:
    """Return the length of all streams of a file; a FLAC file that was written to a pipe is decoded for it.

    A file that was cut off may hold less.
    """
    parts, rate = _parts(path)
    return sum(_length(path, part) for part in parts) / rate


def file_remarks(path: Path) -> list[str]:
    """Return what the user should know of the length, the channels and the scale of a file."""
    return list(dict.fromkeys(remark for part in _parts(path)[0] for remark in part.remarks))


def _parts(path: Path) -> tuple[list[Part], int]:
    """Return the streams of a file that hold samples, and their sample rate."""
    if not path.is_file():
        raise BadInput(f"{path}: {'is a folder, no recording' if path.is_dir() else 'there is no such file'}")
    state = path.stat()
    if state.st_size == 0:
        raise BadInput(f"{path}: is empty (0 bytes); get the file anew")
    return _inspect(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1024)
def _inspect(path: Path, size: int, changed: int) -> tuple[list[Part], int]:
    found = [Stream()]
    if size >= 32:
        with path.open("rb") as content:
            found = streams(mmap(content.fileno(), 0, access=ACCESS_READ), path)
    parts, rates = [], []
    for stream in found:
        with _open(path, stream) as file:
            if file.frames:
                part = _part(file, path, stream)
                parts.append(part._replace(remarks=(*_length_remarks(part, file.samplerate), *part.remarks)))
                rates.append(file.samplerate)
    if not parts:
        raise BadInput(f"{path}: holds no samples")
    if len(set(rates)) > 1:
        raise BadInput(f"{path}: changes from {rates[0]} to {next(r for r in rates if r != rates[0])} Hz; split it")
    return parts, rates[0]


def _length_remarks(part: Part, rate: int) -> list[str]:
    """Describe a length that is not that of its header; a tenth of a second, such as a frame of MPEG, is none."""
    if part.stream.stated == math.inf:
        return ["is cut short: its last page is not marked as the end"]
    there = (part.frames or 0) / rate
    stated = there * part.stream.stated
    said = f"its header states {stated:.1f} s, {there:.1f} s are there"
    return [f"is cut short: {said}" if stated > there else said] if abs(stated - there) >= 0.1 else []


@contextmanager
def _open(path: Path, stream: Stream) -> Iterator[_File]:
    try:
        if stream.pieces is None:
            file = _File(os.fsencode(path))  # a name need not be UTF-8
        else:
            with path.open("rb") as content:
                file = _File(Pieces(mmap(content.fileno(), 0, access=ACCESS_READ), stream.pieces))
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: audio without a header, by its suffix
        what = f"{path}: can't be read as audio ({getattr(error, 'error_string', error)}); "
        if path.suffix.lower() in audio_suffixes():
            raise BadInput(f"{what}it is damaged, or no {path.suffix[1:]} file; get the file anew") from None
        convert = f"ffmpeg -i {shlex.quote(path.name)} {shlex.quote(path.stem)}.wav"
        raise BadInput(f"{what}wav, flac, ogg and mp3 can, and {convert} converts what ffmpeg reads") from None
    with file:
        low, high = RATES
        if not low <= file.samplerate <= high:
            raise BadInput(f"{path}: its header states {file.samplerate:,} samples a second, not {low:,} to {high:,}")
        try:
            yield file
        except soundfile.LibsndfileError as error:
            raise BadInput(f"{path}: is damaged or cut off ({error.error_string}); get the file anew") from None


def _length(path: Path, part: Part) -> int:
    return sum(map(len, _blocks(path, [part], UNKNOWN, AT_ONCE))) if part.frames is None else part.frames


def _blocks(path: Path, parts: list[Part], left: int, size: int) -> Iterator[Audio]:
    """Yield mono blocks of at most `size` of the first `left` samples of all parts."""
    for part in parts:
        with _open(path, part.stream) as file:
            if file._info.seekable:  # of some damaged FLAC files a read without it gives nothing
                file.seek(0)
            done, end = 0, left if part.frames is None else min(left, part.frames)
            while done < end:
                raw = _raw(file, max(1, min(size, AT_ONCE // file.channels, end - done)), path, done)
                if len(raw) == 0 and part.frames is not None and (not file.mpeg or done == 0):
                    raise BadInput(
                        f"{path}: is damaged or cut off ({done} of {file.frames} samples are there); get the file anew"
                    )
                if len(raw) == 0:
                    break
                done += len(raw)
                yield _mono(raw, part)
            left -= done


def _raw(file: _File, frames: int, path: Path, first: int) -> NDArray[Any]:
    """Read the next frames `(n, channels)`; 16-bit files stay int16, which takes a sixth of the time."""
    short = file.subtype == "PCM_16"
    raw = file.read(frames, dtype="int16" if short else "float32", always_2d=True)
    if not short and not np.isfinite(raw).all():
        where = first + int(np.flatnonzero(~np.isfinite(raw).all(axis=1))[0])
        raise BadInput(f"{path}: sample {where} is not a number (NaN or infinite); write the file anew")
    return raw


def _mono(raw: NDArray[Any], part: Part) -> Audio:
    audio = raw[:, part.used[0]].astype(np.float32)
    for channel in part.used[1:]:
        audio += raw[:, channel]
    audio *= np.float32(1 / (len(part.used) * part.scale))
    return audio


class _ChannelLevels(NamedTuple):
    """Of what was looked at."""

    each: NDArray[np.float64]
    """Root mean squares `(channels,)`."""
    peak: float
    cancel: bool
    """Whether the channels cancel each other somewhere."""


def _part(file: _File, path: Path, stream: Stream) -> Part:
    """Decide how a stream is averaged and scaled, from a few places; from all of it if these are odd."""
    frames = stream.frames or (None if file.frames >= UNKNOWN else file.frames)
    part = Part(stream, frames, tuple(range(file.channels)), float(FULL_SCALE) if file.subtype == "PCM_16" else 1.0)
    floating = file.subtype in ("FLOAT", "DOUBLE")
    if file.channels == 1 and not floating:
        return part
    if not floating and frames is not None and file._info.seekable:
        count = min(file.samplerate // 2, AT_ONCE // file.channels)
        places = np.unique(np.linspace(0, max(0, frames - count), 24).astype(int))
        if _usual(_measured(file, path, places, count)):
            return part
    with _open(path, stream) as again:
        levels = _measured(again, path, None, max(1, min(again.samplerate // 2, AT_ONCE // again.channels)))
    return _mixed(path, part, levels, floating)


def _usual(levels: _ChannelLevels) -> bool:
    loudest = levels.each.max()
    return bool(levels.each.min() > SILENT * loudest and not levels.cancel)


def _measured(file: _File, path: Path, places: NDArray[np.int64] | None, count: int) -> _ChannelLevels:
    """Measure `count` samples from each place on; all samples without places."""
    peak, total = 0.0, 0
    found: list[list[float]] = []  # of each stretch the squares of its channels and of their sum, and its samples
    for place in iter(int, 1) if places is None else places:
        if file._info.seekable and (places is not None or total == 0):
            file.seek(place if places is not None else 0)
        raw = _raw(file, count, path, total).astype(np.float32)
        if len(raw) == 0 and places is None:
            break
        both = (np.square(part, dtype=np.float64).sum(axis=0) for part in (raw, raw.sum(axis=1, keepdims=True)))
        found.append([*np.concatenate([*both]), len(raw)])
        peak, total = max(peak, float(np.abs(raw).max(initial=0.0))), total + len(raw)
    stretches = np.array(found).reshape(-1, file.channels + 2)
    each = stretches[:, :-2].sum(axis=0) / max(1, total)
    loud = stretches[:, :-2].max(axis=1, initial=0.0) > LOUD**2 * each.max() * stretches[:, -1]
    cancel = stretches[loud, -2] < CANCELLED**2 * stretches[loud, :-2].sum(axis=1)
    return _ChannelLevels(np.sqrt(each), peak, bool(cancel.any()))


def _mixed(path: Path, part: Part, levels: _ChannelLevels, floating: bool) -> Part:
    """Return the part with channels and scale chosen by its levels."""
    said, loudest = [], levels.each.max()
    if floating and levels.peak > LOUDEST:
        scale = next((scale for scale in INTEGERS if scale / 2**8 <= levels.peak <= scale), None)
        if scale is None:
            raise BadInput(
                f"{path}: holds float samples up to {levels.peak:,.6g}, where -1..1 is full scale; write the file anew"
            )
        part = part._replace(scale=float(scale))
        said.append(f"its float samples reach {levels.peak:,.0f}, and are taken for integers of {scale:,}")
    used = tuple(int(c) for c in np.flatnonzero(levels.each > SILENT * loudest)) or part.used
    if len(used) < len(part.used) and len(used) > 0 and loudest > 0:
        said.append(f"nothing is recorded in {len(part.used) - len(used)} of its {len(part.used)} channels")
    if len(used) > 1 and levels.cancel:
        used = (int(np.flatnonzero(levels.each > 0.99 * loudest)[0]),)
        said.append(f"its channels cancel each other, so channel {used[0] + 1} alone is used")
    return part._replace(used=used, remarks=tuple(said))
