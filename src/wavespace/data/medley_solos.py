"""Medley-solos-DB: 21,571 clips of 3 s, 8 instruments (Lostanlen & Cella, ISMIR 2016).

Zenodo record 3464194, version 1.2, CC BY 4.0.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch.utils.data import Dataset

from wavespace.data.audio import read_audio
from wavespace.data.base import DataModule, Item, rng_for, shuffled
from wavespace.errors import BadInput
from wavespace.spec import AudioSpec

INSTRUMENTS = (
    "clarinet", "distorted electric guitar", "female singer", "flute", "piano", "tenor saxophone", "trumpet", "violin",
)  # fmt: skip
SPLITS = {"training": "train", "validation": "val", "test": "test"}
CLIP_SECONDS = 131_072 / 44_100
METADATA = "Medley-solos-DB_metadata.csv"


class Clip(NamedTuple):
    """A row of the metadata whose file is there."""

    path: Path
    instrument: int
    song: str
    split: str


class Clips(Dataset[Item]):
    """Windows of clips: the middle of each, or random ones as a function of position (`seed` given)."""

    def __init__(self, clips: list[Clip], spec: AudioSpec, seed: int | None = None) -> None:
        self.clips, self.spec, self.seed = clips, spec, seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> Item:
        if self.seed is None:
            clip, share = self.clips[position], 0.5
        else:
            clip = self.clips[shuffled(self.seed, position, len(self.clips))]
            share = float(rng_for(self.seed, "window", position).random())
        start = share * max(0.0, CLIP_SECONDS - self.spec.seconds)
        audio = read_audio(clip.path, self.spec.sample_rate, start=start, seconds=self.spec.seconds)
        return Item(audio[: self.spec.samples], clip.path.stem, labels={"instrument": clip.instrument})


class MedleySolos(DataModule):
    """Single instruments, one a clip.

    Args:
        root: folder that holds, at any depth, the metadata CSV and the clips (`annotation/` and `audio/`, or flat).
        sample_rate: in Hz; the files' own is 44,100.
        seconds: length of a window, at most 2.97.
        splits: "official" (training and validation from MedleyDB, test from solosDB: another domain), or "songs":
            the clips at hand by song, 60/20/20, for folders that hold a part of the data.
        batch_size: windows a batch.
        workers: loader processes.
        seed: of the order and the windows; the split by songs is the same whatever the seed.
    """

    def __init__(
        self,
        *,
        root: str = "data/medley-solos-db",
        sample_rate: int = 44_100,
        seconds: float = 2.0,
        splits: Literal["official", "songs"] = "official",
        batch_size: int = 16,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        if not 0 < seconds <= CLIP_SECONDS:
            raise ValueError(f"seconds is {seconds}; the clips are {CLIP_SECONDS:.2f} s long")
        super().__init__(AudioSpec(sample_rate, seconds, ("instrument",)), batch_size, workers)
        self.root, self.splits, self.seed = Path(root), splits, seed

    def prepare_data(self) -> None:
        """Check that the data is there, before anything is built on it."""
        self._find_metadata()

    def setup(self, stage: str | None = None) -> None:
        """Join the metadata with the files that are there."""
        clips, self.absent = self._clips()
        by_split = {split: [clip for clip in clips if clip.split == split] for split in SPLITS.values()}
        for split, found in by_split.items():
            if not found:
                way_out = (
                    "an instrument needs three songs to be in every split"
                    if self.splits == "songs"
                    else "with a part of the data, data.splits=songs splits what is there by song"
                )
                raise BadInput(
                    f"{self.root}: no clips for the {split} split ({len(clips)} clips, {self.absent} rows of the "
                    f"metadata without their file); {way_out}"
                )
        self.by_split = by_split
        self.train_set = Clips(by_split["train"], self.spec, self.seed)
        self.val_set, self.test_set = Clips(by_split["val"], self.spec), Clips(by_split["test"], self.spec)

    def describe(self) -> dict[str, Any]:
        """Clips, songs and minutes by split; metadata rows whose file is absent."""
        facts: dict[str, Any] = {
            split: {
                "clips": len(clips),
                "songs": len({c.song for c in clips}),
                "minutes": round(len(clips) * CLIP_SECONDS / 60, 1),
            }
            | {INSTRUMENTS[i]: n for i, n in sorted(Counter(c.instrument for c in clips).items())}
            for split, clips in self.by_split.items()
        }
        return facts | {"rows of the metadata without their file": self.absent}

    def _find_metadata(self) -> Path:
        found = sorted(self.root.rglob(METADATA)) if self.root.is_dir() else []
        if not found:
            raise BadInput(
                f"{self.root}: there is no {METADATA} in it; set data.root to the folder of Medley-solos-DB "
                "(zenodo record 3464194: its CSV, and the clips of its tar.gz)"
            )
        return found[0]

    def _clips(self) -> tuple[list[Clip], int]:
        files = {
            name: Path(folder) / name
            for folder, _, names in os.walk(self.root)
            for name in names
            if name.endswith(".wav")
        }
        metadata = self._find_metadata()
        clips, absent = [], 0
        for row in _rows(metadata):
            try:
                instrument, subset = int(row["instrument_id"]), row["subset"]
                song = row.get("song_id") or row["track_id"]
                path = files.get(f"Medley-solos-DB_{subset}-{instrument}_{row['uuid4']}.wav")
                split, known = SPLITS[subset], instrument in range(len(INSTRUMENTS))
            except (KeyError, TypeError, ValueError):
                known = False
            if not known:
                raise BadInput(
                    f"{metadata}: a row is {dict(row)}; expected columns subset, instrument, instrument_id (0-7), "
                    "song_id, uuid4"
                )
            if path is None:
                absent += 1
            else:
                clips.append(Clip(path, instrument, song, split))
        if self.splits == "songs":
            clips = self._by_song(clips)
        return clips, absent

    def _by_song(self, clips: list[Clip]) -> list[Clip]:
        """Within each instrument songs go 60/20/20 to the splits; an instrument of one or two songs trains alone."""
        split_of: dict[str, str] = {}
        for instrument in range(len(INSTRUMENTS)):
            songs = sorted({clip.song for clip in clips if clip.instrument == instrument})
            order = rng_for("songs", instrument).permutation(len(songs))
            held = max(1, round(0.2 * len(songs))) if len(songs) > 2 else 0
            for place, index in enumerate(order):
                split_of[songs[index]] = "val" if place < held else "test" if place < 2 * held else "train"
        return [clip._replace(split=split_of[clip.song]) for clip in clips]


def _rows(metadata: Path) -> list[dict[str, str]]:
    try:
        with metadata.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{metadata}: can't be read as CSV ({error})") from None
