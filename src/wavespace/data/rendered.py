"""Scores rendered by sampled instruments on the fly: endless audio with exact labels, and nothing to download.

A window is played with two seconds of lead-in, which are cut off: what rings from before is heard, and labelled by
a note with a negative onset. The pedal is resolved in the notes and those lengths are played, so that sound and
label agree by construction.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.random import Generator
from torch.utils.data import Dataset

from wavespace.data import composer
from wavespace.data.augment import augment
from wavespace.data.base import DataModule, Item, Notes, rng_for
from wavespace.data.notes import Performance, apply_pedal, clean, read_midi, window
from wavespace.data.soundfont import Sampler, Voice
from wavespace.errors import BadInput
from wavespace.spec import PIANO_PITCHES, AudioSpec

LEAD_IN = 2.0
"""Seconds that are played before a window and cut off."""

LOWEST, HIGHEST = PIANO_PITCHES[0], PIANO_PITCHES[-1]

PIANOS = (0, 1, 2, 3, 4, 5, 6, 7)
PIANO_ODDS = (0.34, 0.23, 0.1, 0.07, 0.1, 0.06, 0.05, 0.05)
"""General MIDI programs 0-7, more than half of them the two acoustic grands."""

OTHERS = (
    8, 9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 21, 22, 24, 25, 26, 27, 32, 33, 40, 41, 42, 43, 45, 46, 48, 49, 52, 56,
    57, 58, 60, 64, 65, 66, 67, 68, 70, 71, 72, 73, 74, 75,
)  # fmt: skip
"""Mallets, organs, guitars, basses, strings, voices, brass and winds."""

SPLITS = {"train": "train", "validation": "val", "test": "test"}


class Rendered(DataModule):
    """Pieces that a composer makes up, or a folder of MIDI files, played by a soundfont.

    Training windows are varied in tempo, pitch, loudness, density and tuning; room, noise and microphone are varied in
    every split. Validation and test are fixed pieces.

    Args:
        sample_rate: in Hz.
        seconds: length of a training window.
        midi: folder of MIDI files, at any depth; None: the procedural composer. With a MAESTRO metadata CSV in it the
            official splits hold, otherwise pieces go 80/10/10 by a hash. Files in one folder at least two levels deep
            are performances of one piece, and stay together.
        soundfont: a .sf2 or .sf3 file; None: the small General MIDI one inside pretty_midi.
        programs: "piano": acoustic and electric pianos; "mixed": a quarter of the windows are other instruments, in one
            to four voices.
        augment: vary room, noise, equalisation and level.
        batch_size: windows a batch.
        workers: loader processes; one keeps up with the demo's training on one core.
        seed: of everything.
        val_pieces: pieces in the validation split.
        test_pieces: pieces in the test split.
        piece_seconds: length of each of those.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 22_050,
        seconds: float = 3.7,
        midi: str | None = None,
        soundfont: str | None = None,
        programs: Literal["piano", "mixed"] = "piano",
        augment: bool = True,
        batch_size: int = 6,
        workers: int = 1,
        seed: int = 0,
        val_pieces: int = 8,
        test_pieces: int = 16,
        piece_seconds: float = 20.0,
    ) -> None:
        if min(seconds, piece_seconds) <= 0:
            raise ValueError(f"seconds is {seconds} and piece_seconds is {piece_seconds}; both must be above 0")
        if min(val_pieces, test_pieces) < 1:
            raise ValueError(f"val_pieces is {val_pieces} and test_pieces {test_pieces}; both must be at least 1")
        spec = AudioSpec(sample_rate, seconds, ("notes",))
        super().__init__(spec, batch_size, workers, eval_batch_size=4)
        self.midi, self.soundfont, self.programs = midi, soundfont, programs
        self.augment, self.seed, self.piece_seconds = augment, seed, piece_seconds
        self.pieces = {"val": val_pieces, "test": test_pieces}
        self.files: dict[str, list[Path]] | None = None
        self.absent = 0

    def prepare_data(self) -> None:
        """Check that the soundfont and the scores are there."""
        _sampler(self.soundfont, self.spec.sample_rate)
        self._find_files()

    def setup(self, stage: str | None = None) -> None:
        """Find the scores; nothing is rendered before it is asked for."""
        if hasattr(self, "val_set"):
            return
        self._find_files()
        self.train_set = Windows(self)
        self.val_set, self.test_set = (Pieces(self, split, count) for split, count in self.pieces.items())

    def describe(self) -> dict[str, Any]:
        """For a folder: files, unreadable files, hours and notes by split. Reads all of them."""
        if self.files is None:
            return {"scores": "composed on the fly, endless", **{s: f"{n} pieces" for s, n in self.pieces.items()}}
        facts: dict[str, Any] = {}
        for split, files in self.files.items():
            read = [performance for file in files if (performance := _performance(file))]
            hours = sum(float(performance.notes[:, 1].max()) for performance in read) / 3600
            notes = sum(len(performance.notes) for performance in read)
            facts[split] = {
                "files": len(read),
                "unreadable": len(files) - len(read),
                "hours": round(hours, 2),
                "notes": notes,
            }
        return facts | {"rows of the metadata without their file": self.absent}

    def render(self, rng: Generator, split: str, place: int, seconds: float) -> tuple[np.ndarray, Notes]:
        """Int16 audio `(seconds * rate,)` and its notes, drawn by `rng`; `place` picks the file in a fixed split."""
        rate, training = self.spec.sample_rate, split == "train"
        performance = self._score(rng, split, place, seconds + LEAD_IN)
        piano = self.programs == "piano" or rng.random() < 0.75
        notes = performance.notes
        if piano and rng.random() < 0.8:
            notes = apply_pedal(notes, performance.pedal)
        if training:
            notes = vary(notes, rng, transpose=self.midi is not None)
        voices = [Voice(notes, int(rng.choice(PIANOS, p=PIANO_ODDS)))] if piano else ensemble(notes, rng)
        if training and rng.random() < 0.7:
            cents = float(np.clip(rng.normal(0.0, 12.0), -40, 40))
            voices = [voice._replace(cents=cents) for voice in voices]
        lead, samples = round(LEAD_IN * rate), round(seconds * rate)
        audio = _sampler(self.soundfont, rate).render(voices, lead + samples)
        if self.augment:
            audio = augment(audio, rng, rate)
        played = clean(np.concatenate([voice.notes for voice in voices]))
        sound = np.clip(np.rint(audio[lead:] * 32767), -32768, 32767).astype(np.int16)
        return sound, window(played, LEAD_IN, LEAD_IN + seconds)

    def _score(self, rng: Generator, split: str, place: int, seconds: float) -> Performance:
        """A stretch of music that lasts `seconds`, its times from 0."""
        if self.files is None:
            return composer.compose(rng, seconds)
        files = self.files[split]
        first = int(rng.integers(len(files))) if split == "train" else place % len(files)
        for index in range(first, first + len(files)):  # the next where one can't be read
            if performance := _performance(files[index % len(files)]):
                last = float(performance.notes[-1, 0])
                start = rng.uniform(-LEAD_IN, max(last - seconds / 2, 0.0))
                inside = performance.pedal[
                    (performance.pedal[:, 0] < start + seconds) & (performance.pedal[:, 1] > start)
                ]
                return Performance(window(performance.notes, start, start + seconds), inside - start)
        raise BadInput(f"{self.midi}: none of its {len(files)} MIDI files of the {split} split can be read")

    def _find_files(self) -> None:
        if self.midi is None or self.files is not None:
            return
        root = Path(self.midi).expanduser()
        found = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".mid", ".midi") and path.is_file())
        if not found:
            raise BadInput(f"{root}: there are no MIDI files in it; set data.midi to a folder of .mid or .midi files")
        metadata = sorted(root.glob("maestro-v*.csv"))
        self.files = self._official(root, metadata[-1]) if metadata else self._by_hash(root, found)
        for split, files in self.files.items():
            if not any(_performance(file) for file in files):
                raise BadInput(
                    f"{root}: of {len(found)} MIDI files none is left for {split}; three pieces are the least"
                )

    def _official(self, root: Path, metadata: Path) -> dict[str, list[Path]]:
        files: dict[str, list[Path]] = {split: [] for split in SPLITS.values()}
        with metadata.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                try:
                    path, split = root / row["midi_filename"], SPLITS[row["split"]]
                except KeyError as error:
                    raise BadInput(f"{metadata}: has no column or split {error}; expected MAESTRO's own") from None
                if path.is_file():
                    files[split].append(path)
                else:
                    self.absent += 1
        return files

    def _by_hash(self, root: Path, found: Sequence[Path]) -> dict[str, list[Path]]:
        pieces: dict[str, list[Path]] = {}
        for path in found:
            inner = path.relative_to(root)
            pieces.setdefault(str(inner.parent if len(inner.parts) > 2 else inner), []).append(path)
        order = sorted(pieces, key=lambda piece: hashlib.sha256(f"{self.seed}/{piece}".encode()).digest())
        held = max(1, len(order) // 10)
        by_split = {"test": order[:held], "val": order[held : 2 * held], "train": order[2 * held :]}
        return {split: [path for piece in by_split[split] for path in pieces[piece]] for split in SPLITS.values()}


class Windows:
    """The training stream: a window for each position."""

    def __init__(self, data: Rendered) -> None:
        self.data = data

    def __getitem__(self, position: int) -> Item:
        rng = rng_for(self.data.seed, "train", position)
        audio, notes = self.data.render(rng, "train", position, self.data.spec.seconds)
        return Item(audio, f"train-{position}", notes)


class Pieces(Dataset[Item]):
    """Fixed pieces of a split, rendered when first asked for and kept."""

    def __init__(self, data: Rendered, split: str, count: int) -> None:
        self.data, self.split, self.count = data, split, count
        self.made: dict[int, Item] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self.count:
            raise IndexError(index)
        if index not in self.made:
            rng = rng_for(self.data.seed, self.split, index)
            audio, notes = self.data.render(rng, self.split, index, self.data.piece_seconds)
            self.made[index] = Item(audio, f"{self.split}-{index}", notes)
        return self.made[index]


def vary(notes: Notes, rng: Generator, *, transpose: bool) -> Notes:
    """Notes in another tempo (0.8 to 1.25 times), loudness and density, up to six semitones away."""
    notes = notes.copy()
    notes[:, :2] /= 0.8 * (1.25 / 0.8) ** rng.random()
    if transpose:
        notes[:, 2] += rng.integers(-6, 7)
        notes = notes[(notes[:, 2] >= LOWEST) & (notes[:, 2] <= HIGHEST)]
    middle = 64 + rng.normal(0, 10)
    velocity = middle + rng.uniform(0.6, 1.3) * (notes[:, 3] - 64) + rng.normal(0, 4, len(notes))
    notes[:, 3] = np.clip(np.rint(velocity), 10, 127)
    if rng.random() < 0.3:
        notes = notes[rng.random(len(notes)) < rng.uniform(0.4, 0.95)]
    return clean(notes)


def ensemble(notes: Notes, rng: Generator) -> list[Voice]:
    """One to four instruments that share the notes by register, thinner than a piano plays them."""
    notes = notes[rng.random(len(notes)) < rng.uniform(0.25, 1.0)]
    count = int(rng.integers(1, 5))
    programs = rng.choice(OTHERS, size=count, replace=False)
    edges = np.quantile(notes[:, 2], np.linspace(0, 1, count + 1)[1:-1]) if len(notes) else np.zeros(count - 1)
    voice = np.searchsorted(edges, notes[:, 2], side="right")
    return [Voice(notes[voice == i], int(program)) for i, program in enumerate(programs)]


@lru_cache(maxsize=2)
def _sampler(soundfont: str | None, sample_rate: int) -> Sampler:
    """One a process: soundfonts are large, and forked workers inherit it."""
    return Sampler(soundfont, sample_rate)


@lru_cache(maxsize=256)
def _performance(path: Path) -> Performance | None:
    """A file's notes; None if it can't be read."""
    try:
        return read_midi(path)
    except BadInput:
        return None
