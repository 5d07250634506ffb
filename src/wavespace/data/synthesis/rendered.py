"""Scores rendered by sampled instruments on the fly: endless audio with exact labels, and nothing to download.

The pedal is resolved in the notes and those lengths are played, so that sound and label agree by construction.
Every window is played with two seconds of lead-in, which are cut off: a note that still rings is audible, and is
labelled with a negative onset.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch.utils.data import Dataset

from wavespace.data.base import DataModule, Item, Notes, SampleRate, Seconds, Workers, rng_for
from wavespace.data.files.discovery import TABLE, find_scores, listed, midi_files, rendered_digests
from wavespace.data.files.midi import Performance, apply_pedal, clean, notes_between
from wavespace.data.files.scores import LONGEST_GAP, Scores, read_scores
from wavespace.data.synthesis.augment import LOUDEST, augment, log_uniform, noise, reverb
from wavespace.data.synthesis.composer import HIGHEST, LOWEST, compose
from wavespace.data.synthesis.soundfont import Sampler, Voice
from wavespace.digests import DigestCache, file_digest
from wavespace.errors import BadInput
from wavespace.settings import validate_settings
from wavespace.spec import AudioSpec
from wavespace.text import counted

LEAD_IN = 2.0
"""Seconds that are played before a window and cut off."""

SHORTEST = 0.03
"""Seconds that a note of a melody lasts at least before a higher one replaces it: rolled chords take less."""

PIANOS = {0: 0.38, 1: 0.38, 2: 0.04, 3: 0.04, 4: 0.04, 5: 0.04, 6: 0.04, 7: 0.04}
"""Odds of General MIDI programs: three quarters are the two acoustic grands."""

OTHERS = (
    8, 11, 12, 15, 20, 21, 22, 23, 24, 25, 26, 27, 29, 32, 33, 34, 35, 40, 41, 42, 43, 45, 46, 48, 53, 56, 57, 58, 59,
    60, 61, 64, 65, 66, 67, 68, 69, 70, 71, 73, 75, 105, 110,
)  # fmt: skip
"""Programs that, in the bundled soundfont, sound at the pitch of their key (organs add an octave below, bells have no
fundamental) and reach it within some 60 ms (pads and slow strings do not)."""


@validate_settings
@dataclass(kw_only=True, eq=False, repr=False)
class Rendered(DataModule):
    """Pieces that a composer makes up, or a folder of MIDI files, played by a soundfont.

    Training windows are varied in tempo, pitch, loudness, density and tuning, and recorded in any room, noise and
    frequency response. Validation and test are fixed pieces, as they were played, in mild rooms and little noise.

    Args:
        sample_rate: in Hz.
        seconds: length of a training window.
        midi: folder of MIDI files, at any depth; None: the procedural composer. With a MAESTRO metadata CSV in it the
            official splits hold, otherwise pieces go 80/10/10 by a hash. Files in one folder at least two levels deep
            are performances of one piece, and stay together.
        test_midi: folder of MIDI files for the test split alone, so that all of `midi` is for training and validation.
        soundfont: a .sf2 or .sf3 file; None: the small General MIDI one inside pretty_midi.
        programs: "piano": acoustic and electric pianos; "mixed": a quarter of the windows are other instruments, in one
            to four voices; or General MIDI programs, 0 to 127, one of which plays each window, without pedal unless
            it is a piano: the label "instrument" is its place among them.
        melody: only the highest note sounds, each until the next begins: a single voice.
        pedal: let the sustain pedal lengthen the notes of pianos, in sound and labels; False: the keys' own lengths.
        augment: vary room, noise, frequency response and level of training windows.
        batch_size: windows a batch.
        workers: loader processes; one keeps up with the demo's training on one core.
        seed: of the training windows. Splits and their fixed pieces are the same whatever the seed.
        val_pieces: pieces in the validation split.
        test_pieces: pieces in the test split.
        piece_seconds: length of each of those.
        stores: folder in which the notes of MIDI files are kept, once they were read.
    """

    sample_rate: SampleRate = 22_050
    seconds: Seconds = 3.7
    midi: str | None = None
    test_midi: str | None = None
    soundfont: str | None = None
    programs: (
        Literal["piano", "mixed"] | Annotated[tuple[Annotated[int, Field(ge=0, le=127)], ...], Field(min_length=1)]
    ) = "piano"
    melody: bool = False
    pedal: bool = True
    augment: bool = True
    batch_size: PositiveInt = 6
    workers: Workers = 1
    seed: int = 0
    val_pieces: PositiveInt = 8
    test_pieces: PositiveInt = 16
    piece_seconds: Annotated[float, Field(gt=0)] = 20.0
    stores: str = "data/stores"

    def __post_init__(self) -> None:
        if self.test_midi is not None and self.midi is None:
            raise ValueError("test_midi is set and midi is not; set both, or midi alone")
        labels = ("notes",) if isinstance(self.programs, str) else ("notes", "instrument")
        spec = AudioSpec(self.sample_rate, self.seconds, labels)
        super().__init__(spec, self.batch_size, self.workers, eval_batch_size=4)
        self.stores_folder = Path(self.stores).expanduser()
        self.pieces = {"val": self.val_pieces, "test": self.test_pieces}

    @property
    def instruments(self) -> tuple[str, ...]:
        """Names of the programs that the label "instrument" counts."""
        from pretty_midi import program_to_instrument_name

        return () if isinstance(self.programs, str) else tuple(map(program_to_instrument_name, self.programs))

    def prepare_data(self) -> None:
        """Check that the soundfont and the scores are there.

        Raises:
            BadInput: one is missing, or the soundfont lacks a program.
        """
        available = _sampler(self.soundfont, self.spec.sample_rate, self.contents().get("soundfont", "")).programs
        wanted: dict[str, Collection[int]] = {"pianos (programs 0-7)": PIANOS}
        if self.programs == "mixed":
            wanted["other instruments"] = OTHERS
        elif self.programs != "piano":
            wanted = {f"program {program}": [int(program)] for program in self.programs}
        for name, programs in wanted.items():
            if not set(programs) & set(available):
                raise BadInput(f"{self.soundfont}: the soundfont has no {name} for data.programs={self.programs}")
        if self.midi is not None:
            find_scores(self.midi, self.test_midi)

    def contents(self) -> dict[str, str]:
        """Return the digests of scores and soundfont; after `setup` of those that were read."""
        if hasattr(self, "read"):
            return self.read
        given = {"midi": self.midi, "test_midi": self.test_midi, "soundfont": self.soundfont}
        return rendered_digests(given, DigestCache(self.stores_folder))

    def setup(self, stage: str | None = None) -> None:
        """Find and read the scores; items are rendered when they are first read."""
        if hasattr(self, "val_set"):
            return
        files, self.facts = ({}, {}) if self.midi is None else self._read()
        self.read = self.contents()

        varied = self._renderer(files.get("train", ()), varied=True)
        self.train_set = RenderedWindows(varied, self.seconds, self.seed)
        self.val_set, self.test_set = (
            RenderedPieces(self._renderer(files.get(split, ())), self.piece_seconds, count, split)
            for split, count in self.pieces.items()
        )

    def is_official(self) -> bool:
        if self.midi is None or self.test_midi is not None:
            return True
        return any(Path(self.midi).expanduser().glob(TABLE))

    def whole(self) -> Dataset[Item]:
        """Return at least one piece of each score that can be read."""
        if self.midi is None:
            return super().whole()
        paths = midi_files(Path(self.midi).expanduser())
        usable, _ = self._scores(paths)
        if not usable:
            raise BadInput(f"{self.midi}: none of its MIDI files can be used")
        pieces = max(self.pieces["test"], len(usable))
        return RenderedPieces(self._renderer(usable), self.piece_seconds, pieces, "test", usable.names)

    def _scores(self, paths: Sequence[Path]) -> tuple[Scores, list[dict[str, Any]]]:
        """Return the playable ones of some MIDI files, and facts of each file; warn of the others."""
        folder, each = read_scores(DigestCache(self.stores_folder).of(paths), self.stores_folder)
        numbers = tuple(n for n, fact in enumerate(each) if fact["notes"])
        silent = "has no notes on the keyboard of a piano"
        if left := [fact["fault"] or f"{path} {silent}" for path, fact in zip(paths, each) if not fact["notes"]]:
            warnings.warn(f"{self.midi}: {counted(len(left), 'MIDI files are left out')}: {listed(left)}", stacklevel=1)
        return Scores(folder, numbers, tuple(paths[n].name for n in numbers)), each

    def _renderer(self, files: Scores | tuple[()], *, varied: bool = False) -> Renderer:
        return Renderer(
            self.spec.sample_rate,
            self.soundfont,
            programs=self.programs if isinstance(self.programs, str) else tuple(self.programs),
            melody=self.melody,
            pedal=self.pedal,
            varied=varied,
            recorded=self.augment,
            files=files,
            content=self.contents().get("soundfont", ""),
        )

    def describe(self) -> dict[str, Any]:
        """Return the number of test pieces; of a folder also files, hours and notes by split, and what was left out."""
        rendered = {f"{split} pieces of {self.piece_seconds:g} s": n for split, n in self.pieces.items()}
        return {"scores": "composed on the fly" if self.midi is None else self.midi} | self.facts | rendered

    def _read(self) -> tuple[dict[str, Scores], dict[str, Any]]:
        """Return the readable scores of each split, and facts about them."""
        by_split, absent = find_scores(str(self.midi), self.test_midi)
        paths = [path for own in by_split.values() for path in own]
        whole, each = self._scores(paths)
        facts: dict[str, Any] = {}
        found: dict[str, Scores] = {}
        first = 0
        for split, own in by_split.items():
            found[split] = usable = whole.between(first, first + len(own))
            seconds, notes = (sum(each[n][key] for n in usable.numbers) for key in ("seconds", "notes"))
            facts[split] = {"files": len(usable), "hours": round(seconds / 3600, 2), "notes": notes}
            first += len(own)
        unreadable = sum(fact["fault"] is not None for fact in each)
        silent = sum(not fact["notes"] for fact in each) - unreadable
        for split, usable in found.items():
            if not usable:
                raise BadInput(
                    f"{self.midi}: nothing is left for the {split} split, of {len(each)} MIDI files with {unreadable} "
                    f"unreadable and {silent} without notes among them; it takes a piece for each of {', '.join(found)}"
                )
        if gaps := [paths[n] for n, fact in enumerate(each) if fact["gap"]]:
            facts[f"files with a gap of {LONGEST_GAP:g} s or more, which is shortened"] = (
                f"{len(gaps)} ({gaps[0]}, ...)"
            )
        left = {"unreadable files": unreadable, "files without notes on the keyboard of a piano": silent}
        return found, facts | left | {"rows of the metadata without their file": absent}


@dataclass(frozen=True)
class Renderer:
    """Draws music, instruments and a recording of them; small enough to be sent to workers.

    Attributes:
        sample_rate: in Hz.
        soundfont: as in `Rendered`.
        programs, melody, pedal: as in `Rendered`.
        varied: vary tempo, pitch, loudness, density and tuning.
        recorded: vary room, noise and frequency response, too; pieces that are not varied have a little of them.
        files: scores to draw from; none: the composer.
        content: digest of the soundfont's file; "" for the bundled one.
    """

    sample_rate: int
    soundfont: str | None
    programs: str | tuple[int, ...]
    melody: bool
    pedal: bool
    varied: bool
    recorded: bool
    files: Scores | tuple[Performance, ...]
    content: str = ""

    def item(self, rng: Generator, seconds: float, name: str, file: int | None = None) -> Item:
        """Audio `(seconds * sample_rate,)` int16 with its notes; all of it follows from `rng`.

        Args:
            rng: the source of all choices.
            seconds: length.
            name: of the item.
            file: which of the files to take; None draws one.
        """
        sampler = _sampler(self.soundfont, self.sample_rate, self.content)
        program, piano, labels = None, True, {}
        if not isinstance(self.programs, str):
            place = int(rng.integers(len(self.programs)))
            program, labels = self.programs[place], {"instrument": place}
            piano = program in PIANOS
        elif self.programs == "mixed":
            piano = bool(rng.random() < 0.75)
        speed = log_uniform(rng, 0.8, 1.25) if self.varied else 1.0
        sustained = piano and (not self.varied or rng.random() < 0.8) and self.pedal
        notes = self._excerpt(rng, (LEAD_IN + seconds) * speed, file, sustained)
        notes[:, :2] /= speed
        if self.varied:
            notes = vary(notes, rng)
        if self.melody:
            notes = skyline(notes)

        if program is not None:
            voices = [Voice(notes, program)]
        elif piano:
            odds = np.array([PIANOS.get(program, 0.0) for program in sampler.programs])
            voices = [Voice(notes, int(rng.choice(sampler.programs, p=odds / odds.sum())))]
        else:
            voices = ensemble(notes, rng, [program for program in OTHERS if program in sampler.programs])
        voices = [voice._replace(notes=_sounding(voice, sampler)) for voice in voices]
        if self.varied and rng.random() < 0.7:
            cents = float(np.clip(rng.normal(0.0, 12.0), -40, 40))
            voices = [voice._replace(cents=cents) for voice in voices]

        lead, samples = round(LEAD_IN * self.sample_rate), round(seconds * self.sample_rate)
        audio = sampler.render(voices, lead + samples)
        if not self.varied:
            audio = reverb(audio, rng, self.sample_rate, rt60=(0.2, 0.8), wet=(-24.0, -9.0))
            audio = noise(audio, rng, snr=(35.0, 60.0))
        elif self.recorded:
            audio = augment(audio, rng, self.sample_rate)
        audio = audio[lead:]
        audio = audio * min(1.0, LOUDEST / (np.abs(audio).max() + 1e-9))
        played = clean(np.concatenate([voice.notes for voice in voices]))
        notes = notes_between(played, LEAD_IN, LEAD_IN + seconds)
        return Item(np.rint(audio * 32767).astype(np.int16), name, notes, labels)

    def _excerpt(self, rng: Generator, seconds: float, file: int | None, sustained: bool) -> Notes:
        """Return the notes that sound in an excerpt, their times from its start."""
        if not self.files:
            performance, start = compose(rng, seconds), 0.0
        else:
            performance = self.files[int(rng.integers(len(self.files))) if file is None else file]
            onsets = performance.notes[:, 0]
            start = rng.uniform(onsets[0] - LEAD_IN, max(onsets[-1] - seconds / 2, onsets[0]))
        notes = apply_pedal(performance.notes, performance.pedal) if sustained else performance.notes
        return notes_between(notes, start, start + seconds)


class RenderedWindows:
    """The training stream: a window for each position."""

    def __init__(self, renderer: Renderer, seconds: float, seed: int) -> None:
        self.renderer, self.seconds, self.seed = renderer, seconds, seed

    def __getitem__(self, position: int) -> Item:
        return self.renderer.item(rng_for(self.seed, "train", position), self.seconds, f"train-{position}")


class RenderedPieces(Dataset[Item]):
    """Fixed pieces of a split, rendered when first asked for and kept."""

    def __init__(self, renderer: Renderer, seconds: float, count: int, split: str, names: Sequence[str] = ()) -> None:
        self.renderer, self.seconds, self.count, self.split = renderer, seconds, count, split
        self.names = names  # of the files
        self.made: dict[int, Item] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self.count:
            raise IndexError(index)
        if index not in self.made:
            file = index * len(self.renderer.files) // self.count  # spread over the split
            rng = rng_for(self.split, index)
            name = f"{index}-{self.names[file]}" if self.names else f"{self.split}-{index}"
            self.made[index] = self.renderer.item(rng, self.seconds, name, file)
        return self.made[index]


def vary(notes: Notes, rng: Generator) -> Notes:
    """Notes up to six semitones away, in other loudness, at times thinned out."""
    notes = notes.copy()
    if len(notes):
        room = max(-6, LOWEST - int(notes[:, 2].min())), min(6, HIGHEST - int(notes[:, 2].max()))
        notes[:, 2] += rng.integers(room[0], room[1] + 1)
    velocity = 64 + rng.normal(0, 10) + rng.uniform(0.6, 1.3) * (notes[:, 3] - 64) + rng.normal(0, 3, len(notes))
    notes[:, 3] = np.clip(np.rint(velocity), 10, 127)
    if rng.random() < 0.3:
        notes = notes[rng.random(len(notes)) < rng.uniform(0.4, 0.95)]
    return clean(notes)


def skyline(notes: Notes) -> Notes:
    """Keep the highest of notes that begin together, each cut where the next begins; drop those below a held one."""
    kept: list[NDArray[np.float64]] = []
    for note in notes[np.lexsort((-notes[:, 2], notes[:, 0]))]:
        if kept and note[0] < kept[-1][1]:
            if note[2] < kept[-1][2] or note[0] - kept[-1][0] < SHORTEST:
                continue
            kept[-1][1] = note[0]
        kept.append(note.copy())
    return np.array(kept).reshape(-1, 4)


def ensemble(notes: Notes, rng: Generator, programs: Sequence[int]) -> list[Voice]:
    """One to four instruments that share the notes by register, thinner than a piano plays them."""
    notes = notes[rng.random(len(notes)) < rng.uniform(0.25, 1.0)]
    chosen = rng.choice(programs, size=min(int(rng.integers(1, 5)), len(programs)), replace=False)
    pitch = notes[:, 2]
    edges = np.quantile(pitch, np.linspace(0, 1, len(chosen) + 1)[1:-1]) if len(pitch) else pitch
    voice = np.searchsorted(edges, pitch, side="right")
    return [Voice(notes[voice == i], int(program)) for i, program in enumerate(chosen)]


def _sounding(voice: Voice, sampler: Sampler) -> Notes:
    """Return the notes of a voice for which its instrument has a sound."""
    return voice.notes[np.isin(voice.notes[:, 2], list(sampler.keys(voice.program)))]


@lru_cache(maxsize=2)
def _sampler(soundfont: str | None, sample_rate: int, content: str) -> Sampler:
    """Return the sampler of this process, which forked workers inherit: soundfonts are large.

    Raises:
        BadInput: the soundfont has another content than is wanted.
    """
    sampler = Sampler(soundfont, sample_rate)
    if soundfont and content and file_digest(Path(soundfont).expanduser()) != content:
        raise BadInput(f"{soundfont}: has changed since this command began; repeat the command")
    return sampler
