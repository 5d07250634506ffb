"""Audio files to mono float32 at one rate: whole, a window, or a stream of blocks. Whatever soundfile reads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from wavespace.errors import BadInput

Audio = NDArray[np.float32]

UNKNOWN = 2**62
"""From here on a number of samples is libsndfile's way to say that the header states none."""

RATES = (1_000, 1_000_000)
"""Samples a second: a header that states less or more is damaged, and would blow up what is resampled from it."""

AT_ONCE = 2**24
"""Samples of all channels that are decoded at once at most, whatever a header says of length, rate and channels."""

LEAD = 16 * 1152
"""Samples of an MP3 file that are decoded ahead of a window: what they leave in its bit reservoir is heard in it."""


class _File(soundfile.SoundFile):
    """Reads on where it is. soundfile seeks after each read, which is heard where an MP3 file is read in pieces."""

    def seekable(self) -> bool:
        return False


def read_audio(path: Path, sample_rate: int, *, start: float = 0.0, seconds: float | None = None) -> Audio:
    """Mono float32 `(N,)` of a file or of a window of it; channels are averaged, other rates resampled (soxr HQ).

    A window that reaches past the end of the file is shorter than asked for. A WAV or MP3 file that was cut off gives
    what it holds.

    Raises:
        BadInput: the file is missing, not audio, damaged, holds no samples, or holds values that are not numbers.
    """
    with _open(path) as file:
        first = min(round(start * file.samplerate), file.frames)
        last = file.frames if seconds is None else min(first + round(seconds * file.samplerate), file.frames)
        lead = min(first, LEAD) if file.format == "MP3" else 0
        blocks = [block for block, _ in _blocks(file, path, first - lead, last, AT_ONCE)]
        audio = (blocks[0] if len(blocks) == 1 else np.concatenate(blocks))[lead:]
        return soxr.resample(audio, file.samplerate, sample_rate) if file.samplerate != sample_rate else audio


def read_blocks(path: Path, sample_rate: int, seconds: float = 10.0) -> Iterator[Audio]:
    """The same as a stream of blocks, at constant memory whatever the length of the file."""
    with _open(path) as file:
        resample = soxr.ResampleStream(file.samplerate, sample_rate, 1, dtype="float32")
        for block, last in _blocks(file, path, 0, file.frames, round(seconds * file.samplerate)):
            yield block if file.samplerate == sample_rate else resample.resample_chunk(block, last=last)


def seconds_of(path: Path) -> float:
    """Length that the header states. A truncated file holds less."""
    with _open(path) as file:
        return file.frames / file.samplerate


@contextmanager
def _open(path: Path) -> Iterator[_File]:
    if not path.is_file():
        raise BadInput(f"{path}: there is no such file")
    try:
        file = _File(path)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: audio without a header, by its suffix
        reason = getattr(error, "error_string", error)
        raise BadInput(f"{path}: can't be read as audio ({reason}); wav, flac, ogg and mp3 can") from None
    with file:
        if file.frames == 0:
            raise BadInput(f"{path}: holds no samples")
        low, high = RATES
        if not low <= file.samplerate <= high:
            raise BadInput(f"{path}: its header states {file.samplerate:,} samples a second, not {low:,} to {high:,}")
        if file.frames >= UNKNOWN:
            raise BadInput(f"{path}: its header does not state a length, as it was written to a pipe; write it anew")
        try:
            yield file
        except soundfile.LibsndfileError as error:
            raise BadInput(f"{path}: is damaged or cut off ({error.error_string}); get the file anew") from None


def _blocks(file: _File, path: Path, first: int, last: int, size: int) -> Iterator[tuple[Audio, bool]]:
    """Mono blocks of samples `first` to `last`, `size` each at most, and whether a block is the last; at least one."""
    file.seek(first)  # also before the first sample: of some damaged FLAC files, a first read without it gives nothing
    size = max(1, min(size, AT_ONCE // file.channels))
    done = first
    while True:
        wanted = min(size, last - done)
        block = _read(file, wanted, path, done)
        done += len(block)
        if len(block) < wanted and (file.format != "MP3" or done == 0):
            raise BadInput(
                f"{path}: is damaged or cut off ({done} of {file.frames} samples are there); get the file anew"
            )
        yield block, done == last or len(block) < wanted
        if done == last or len(block) < wanted:
            return


def _read(file: _File, frames: int, path: Path, first: int) -> Audio:
    """The next frames as mono; 16-bit files are made float late, which takes a sixth of the time."""
    short = file.subtype == "PCM_16"
    raw = file.read(frames, dtype="int16" if short else "float32", always_2d=True)  # (n, channels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # inf - inf, told below
        audio = raw[:, 0].astype(np.float32)
        for channel in range(1, raw.shape[1]):
            audio += raw[:, channel]
        audio *= np.float32(1 / (raw.shape[1] * (32768 if short else 1)))
    if not short and not np.isfinite(audio).all():
        where = first + int(np.flatnonzero(~np.isfinite(audio))[0])
        raise BadInput(f"{path}: sample {where} is not a number (NaN or infinite); write the file anew")
    return audio
