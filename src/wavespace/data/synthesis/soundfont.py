"""Sampled instruments: notes to audio, through a soundfont."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from importlib import import_module, invalidate_caches
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wavespace.data.base import Notes
from wavespace.errors import BadInput, UserError
from wavespace.files import cache_folder, lock

LOUDNESS = 0.06
"""RMS of a middle C of velocity 90 in its first half second: every program is brought to this level."""

PATIENCE = 300
"""Seconds that fetching tinysoundfont may take."""

PINNED = Path(__file__).with_name("tinysoundfont.txt")
"""The release of tinysoundfont that is fetched, and hashes of its wheels: `make lock` copies them."""

MOST_VOICES = 16
"""The channels of MIDI: how many voices can sound in one render."""


class Voice(NamedTuple):
    """What one instrument plays.

    Attributes:
        notes: `(K, 4)`, in seconds from the start of the render. Notes of one pitch must not overlap.
        program: General MIDI program number, 0-127.
        cents: tuning, in hundredths of a semitone from the soundfont's own.
    """

    notes: Notes
    program: int = 0
    cents: float = 0.0


def bundled_soundfont() -> Path:
    """TimGM6mb, a small General MIDI soundfont that comes inside the pretty_midi package."""
    package = find_spec("pretty_midi")  # finds it without importing it
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).with_name("TimGM6mb.sf2")


@cache
def _tinysoundfont() -> Any:
    """TinySoundFont's extension module: what is installed, or what was fetched to the user's cache.

    The package asks for pyaudio, which plays aloud and needs audio headers to be built, so Wavespace can't ask for it.

    Raises:
        UserError: it is neither, and can't be fetched.
    """
    try:
        return import_module("tinysoundfont._tinysoundfont")
    except ModuleNotFoundError:
        release = PINNED.read_text().split()[0]
    except ImportError as error:
        raise UserError(f"the installed tinysoundfont, which renders notes, can't be imported: {error}") from None
    folder = cache_folder() / release
    if (spec := _fetched(folder)) is None:
        fault = _fetch(release, folder)
        if fault or (spec := _fetched(folder)) is None:
            python = shlex.quote(sys.executable)
            needed = "" if find_spec("pip") else f"{python} -m ensurepip && "
            raise UserError(
                f"rendering needs tinysoundfont, which is not installed and can't be fetched ({fault or 'no module'}): "
                f"{needed}{python} -m pip install --no-deps tinysoundfont"
            )
    assert spec.loader is not None
    try:
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:  # cut short, or of another machine that shares this home
        raise UserError(f"{spec.origin}: can't be imported ({error}); delete it, and it is fetched anew") from None
    return module


def _fetched(folder: Path) -> ModuleSpec | None:
    """Find the extension module of this Python in a folder."""
    invalidate_caches()
    return PathFinder.find_spec("_tinysoundfont", [str(folder)])


@cache  # what failed once in a process is not tried again
def _fetch(release: str, folder: Path) -> str | None:
    """Put the extension module of a release in a folder, by the user's own installer and index; returns why it can't.

    Wheels alone, held against `PINNED`. Of several processes one fetches it, and the environment stays as it is.
    """
    if find_spec("pip"):
        installer = [sys.executable, "-P", "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    elif uv := shutil.which("uv"):
        installer = [uv, "pip", "install", "--python", sys.executable]
    else:
        return "this Python has no pip, and there is no uv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as file:
            while not lock(file, unguarded="several processes may fetch it at once"):
                time.sleep(0.2)
            if _fetched(folder):  # by the process that had the lock
                return None
            print(f"wavespace: fetching {release}, which renders notes, into {folder}", file=sys.stderr)
            shutil.rmtree(new := folder / ".new", ignore_errors=True)  # what a kill left
            if not (fault := _install(installer, new)):
                _keep(new, folder)
            shutil.rmtree(new, ignore_errors=True)
            return fault
    except OSError as error:
        return f"{folder}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"its installer took more than {PATIENCE} s"


def _install(installer: list[str], target: Path) -> str | None:
    """Install the pinned wheel into a folder; returns why it can't be."""
    rules = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    done = subprocess.run(
        [*installer, *rules, "--target", str(target), "-r", str(PINNED)],
        env=os.environ | {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"},  # a --target goes with neither
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=PATIENCE,
    )  # fmt: skip
    if not done.returncode:
        return None
    lines = done.stderr.split("\n")
    errors = [line for line in lines if line.lower().startswith("error")] or lines
    return " ".join(errors[0].split())[:200] or f"its installer ended with {done.returncode}"


def _keep(installed: Path, folder: Path) -> None:
    """Move the extension module to where it is imported from, once it is whole on the disk."""
    for module in installed.glob("tinysoundfont/_tinysoundfont.*"):
        with module.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(module, folder / module.name)


class Sampler:
    """Renders notes with the sampled instruments of a soundfont (TinySoundFont).

    Equal calls give equal samples, whatever was rendered before. Not for sharing between threads or by pickling:
    each process makes its own, in about 12 ms for 6 MB.

    Args:
        soundfont: a `.sf2` or `.sf3` file; None is the bundled one.
        sample_rate: of the audio, in Hz.

    Raises:
        BadInput: the file is missing or is no soundfont.
        UserError: tinysoundfont is not installed and can't be fetched.
    """

    def __init__(self, soundfont: str | Path | None, sample_rate: int) -> None:
        self._tsf = _tinysoundfont()
        path = Path(soundfont).expanduser() if soundfont else bundled_soundfont()
        if not path.is_file():
            raise BadInput(f"there is no soundfont at {path}")
        try:
            self._font = self._tsf.SoundFont(str(path))
        except RuntimeError:
            raise BadInput(f"{path} is not a soundfont that can be read (.sf2 or .sf3)") from None
        self.sample_rate = sample_rate
        self.programs = tuple(p for p in range(128) if self._font.get_preset_index(0, p) >= 0)
        """The melodic programs that the soundfont has."""
        self._volume = cache(self._measure_volume)
        self.keys = cache(self._find_keys)
        """`keys(program)` is the set of pitches that a program has a sound for."""

    def render(self, voices: Sequence[Voice], samples: int) -> NDArray[np.float32]:
        """The voices together, from time 0 on: `(samples,)`, mono.

        Notes start and are released at the sample nearest to their times. Those before time 0 start at 0.
        Loud mixtures may exceed 1.

        Raises:
            ValueError: there are too many voices, or one asks for a program that the soundfont has not got.
        """
        if len(voices) > MOST_VOICES:
            raise ValueError(f"{len(voices)} voices; at most {MOST_VOICES} can sound at once")
        volumes = [self._volume(voice.program) for voice in voices]
        return self._play(voices, volumes, samples)

    def _play(self, voices: Sequence[Voice], volumes: Sequence[float], samples: int) -> NDArray[np.float32]:
        font = self._tsf.SoundFont(self._font)  # shares the samples; its own silence, so nothing bleeds in
        font.set_output(self._tsf.OutputMode.Mono, self.sample_rate, 0.0)
        for channel, (voice, volume) in enumerate(zip(voices, volumes)):
            font.channel_set_preset_number(channel, voice.program, False)
            font.channel_set_tuning(channel, voice.cents / 100)
            font.channel_set_volume(channel, volume)

        audio = np.zeros(samples, dtype=np.float32)
        buffer, place = audio.data.cast("B"), 0
        for at, struck, channel, pitch, velocity in self._events(voices, samples):
            if at > place:
                font.render(buffer[4 * place : 4 * at])
                place = at
            if struck:
                font.channel_note_on(channel, pitch, velocity / 127)
            else:
                font.channel_note_off(channel, pitch)
        if place < samples:
            font.render(buffer[4 * place :])
        return audio

    def _events(self, voices: Sequence[Voice], samples: int) -> list[tuple[int, bool, int, int, float]]:
        """(sample, struck or released, channel, pitch, velocity) in order; releases before strikes."""
        events = []
        for channel, voice in enumerate(voices):
            onset, offset, pitch, velocity = voice.notes.T
            start = np.maximum(np.rint(onset * self.sample_rate), 0).astype(int)
            end = np.maximum(np.rint(offset * self.sample_rate).astype(int), start + 1)
            for k in np.flatnonzero((start < samples) & (offset > 0)):
                key = int(pitch[k])
                events.append((int(start[k]), True, channel, key, float(velocity[k])))
                events.append((int(end[k]), False, channel, key, 0.0))
        return sorted((event for event in events if event[0] < samples), key=lambda event: event[:2])

    def _measure_volume(self, program: int) -> float:
        """The factor that brings a program to `LOUDNESS`."""
        if program not in self.programs:
            raise ValueError(f"the soundfont has no program {program}; it has {_ranges(self.programs)}")
        middle_c = Voice(np.array([[0.0, 1.0, 60.0, 90.0]]), program)
        audio = self._play([middle_c], [1.0], self.sample_rate // 2)
        level = float(np.sqrt(np.mean(np.square(audio))))
        return LOUDNESS / level if level > 0 else 1.0

    def _find_keys(self, program: int) -> frozenset[int]:
        # Soundfonts give some instruments only their own range.
        volume, samples = self._volume(program), self.sample_rate // 10
        notes = (np.array([[0.0, 1.0, pitch, 90.0]]) for pitch in range(128))
        levels = (np.abs(self._play([Voice(note, program)], [volume], samples)).max() for note in notes)
        return frozenset(pitch for pitch, level in enumerate(levels) if level > 1e-2 * LOUDNESS)


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in words: "0-7, 11"."""
    if not numbers:
        return "none"
    runs = np.split(np.array(numbers), np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
