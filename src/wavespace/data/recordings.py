"""Recordings on disk, through a store: a folder of anybody's audio, and MAESTRO."""

from __future__ import annotations

import csv
import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from wavespace.data.base import Batch, DataModule, Notes
from wavespace.data.notes import apply_pedal, read_midi
from wavespace.data.store import Recording, StoreItems, StoreWindows, build_store, store_name
from wavespace.errors import BadInput
from wavespace.spec import AudioSpec

AUDIO = {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff"}
MIDI = (".mid", ".midi")


def sounding_notes(path: Path) -> Notes:
    """Notes of a MIDI file as long as they are heard: the sustain pedal is resolved."""
    performance = read_midi(path)
    return apply_pedal(performance.notes, performance.pedal)


class Recordings(DataModule):
    """Recordings that are read once into a store, and from there at any place.

    Training windows lie at random places, every second of music as likely as any other; validation and test are whole
    recordings. A subclass gives `found`, `made_by`, and the licence and citation that are kept beside the store.
    """

    licence = "unknown"
    citation = "none"

    def __init__(self, spec: AudioSpec, batch_size: int, workers: int, seed: int, stores: str) -> None:
        super().__init__(spec, batch_size, workers, eval_batch_size=1)
        self.seed, self.stores = seed, Path(stores)

    @abstractmethod
    def found(self) -> list[Recording]:
        """The recordings that are there, each with its split."""

    @abstractmethod
    def made_by(self, recordings: Sequence[Recording]) -> dict[str, Any]:
        """All that decides what the store holds."""

    def prepare_data(self) -> None:
        """Build the store, or find it built."""
        recordings = self.found()
        self.store = build_store(
            self.stores / store_name(self.made_by(recordings)),
            recordings,
            self.spec.sample_rate,
            self.made_by(recordings),
            licence=self.licence,
            citation=self.citation,
        )

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that have recordings."""
        if not hasattr(self, "store"):
            self.prepare_data()
        rows = {split: self.store.split(split) for split in ("train", "val", "test")}
        if len(rows["train"]):
            self.train_set = StoreWindows(self.store, rows["train"], self.spec.samples, self.seed)
        if len(rows["val"]):
            self.val_set = StoreItems.whole(self.store, rows["val"])
        if len(rows["test"]):
            self.test_set = StoreItems.whole(self.store, rows["test"])

    def train_dataloader(self) -> DataLoader[Batch]:
        self._need("train")
        return super().train_dataloader()

    def val_dataloader(self) -> DataLoader[Batch]:
        self._need("val")
        return super().val_dataloader()

    def test_dataloader(self) -> DataLoader[Batch]:
        self._need("test")
        return super().test_dataloader()

    def describe(self) -> dict[str, Any]:
        """Recordings, hours and notes by split; samples that were clipped."""
        manifest = self.store.manifest
        return {**manifest["splits"], "clipped samples": manifest["clipped"], "store": str(self.store.folder)}

    def _need(self, split: str) -> None:
        if not hasattr(self, f"{split}_set"):
            raise BadInput(f"{self.store.folder}: its {split} split has no recordings; it holds {self.describe()}")


class AudioFolder(Recordings):
    """Anybody's recordings, with the notes of a MIDI file of the same stem beside each.

    Args:
        folder: folder of audio files, at any depth.
        notes: take recordings that have a MIDI file alone, with its notes as labels; false: all audio, without labels.
        splits: shares of recordings for training, validation and test; which goes where follows from their names.
        sample_rate: in Hz; other rates are resampled.
        seconds: length of a training window.
        batch_size: windows a batch.
        workers: loader processes; a store is fastest with none.
        seed: of the training windows.
        stores: folder in which stores are kept.

    Raises:
        ValueError: the shares are not shares.
    """

    def __init__(
        self,
        *,
        folder: str,
        notes: bool = True,
        splits: tuple[float, float, float] = (0.8, 0.1, 0.1),
        sample_rate: int = 22_050,
        seconds: float = 3.7,
        batch_size: int = 6,
        workers: int = 0,
        seed: int = 0,
        stores: str = "data/stores",
    ) -> None:
        if min(splits) < 0 or abs(sum(splits) - 1) > 1e-6:
            raise ValueError(
                f"splits is {list(splits)}; it takes three shares, of training, validation and test, that sum to 1"
            )
        spec = AudioSpec(sample_rate, seconds, ("notes",) if notes else ())
        super().__init__(spec, batch_size, workers, seed, stores)
        self.folder, self.notes, self.splits = Path(folder).expanduser(), notes, splits

    def found(self) -> list[Recording]:
        paths = sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in AUDIO and path.is_file())
        scores = {
            path: next((path.with_suffix(s) for s in MIDI if path.with_suffix(s).is_file()), None) for path in paths
        }
        if self.notes:
            paths = [path for path in paths if scores[path]]
        if not paths:
            what = "audio files with a MIDI file of the same stem" if self.notes else "audio files"
            raise BadInput(f"{self.folder}: there are no {what} in it; set data.folder to a folder of them")
        names = [path.relative_to(self.folder).as_posix() for path in paths]
        order = sorted(range(len(paths)), key=lambda i: hashlib.sha256(names[i].encode()).digest())
        train = round(self.splits[0] * len(paths))
        val = round((self.splits[0] + self.splits[1]) * len(paths))
        split = {
            place: "train" if rank < train else "val" if rank < val else "test" for rank, place in enumerate(order)
        }
        return [
            Recording(
                name, path, split[i], partial(sounding_notes, score) if self.notes and (score := scores[path]) else None
            )
            for i, (name, path) in enumerate(zip(names, paths))
        ]

    def made_by(self, recordings: Sequence[Recording]) -> dict[str, Any]:
        files = [[r.name, r.split, r.audio.stat().st_size, r.audio.stat().st_mtime_ns] for r in recordings]
        return {"data": "audio_folder", "sample_rate": self.spec.sample_rate, "notes": self.notes, "files": files}


class Maestro(Recordings):
    """MAESTRO, any version: piano recordings with the notes that a Disklavier wrote (Hawthorne et al., ICLR 2019).

    Official splits. Notes are as long as they are heard (sustain pedal resolved). Known and left in: five
    (composer, title) pairs occur in two splits.

    Args:
        root: folder of `maestro-v*.csv` and the years' folders.
        sample_rate: in Hz; the files have 44,100 or 48,000.
        seconds: length of a training window.
        batch_size: windows a batch.
        workers: loader processes; a store is fastest with none.
        seed: of the training windows.
        stores: folder in which stores are kept.
    """

    licence = "CC BY-NC-SA 4.0, Google LLC"
    citation = (
        "Hawthorne et al., Enabling factorized piano music modeling and generation with the MAESTRO dataset, ICLR 2019"
    )

    def __init__(
        self,
        *,
        root: str = "data/maestro-v3.0.0",
        sample_rate: int = 22_050,
        seconds: float = 3.7,
        batch_size: int = 6,
        workers: int = 0,
        seed: int = 0,
        stores: str = "data/stores",
    ) -> None:
        super().__init__(AudioSpec(sample_rate, seconds, ("notes",)), batch_size, workers, seed, stores)
        self.root = Path(root).expanduser()

    def found(self) -> list[Recording]:
        tables = sorted(self.root.glob("maestro-v*.csv"))
        if not tables:
            raise BadInput(
                f"{self.root}: there is no maestro-v*.csv in it; set data.root to the unzipped MAESTRO folder"
            )
        splits = {"train": "train", "validation": "val", "test": "test"}
        recordings = []
        self.absent = 0
        with tables[-1].open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                try:
                    audio, midi, split = (
                        self.root / row["audio_filename"],
                        self.root / row["midi_filename"],
                        splits[row["split"]],
                    )
                except KeyError as fault:
                    raise BadInput(f"{tables[-1]}: is not MAESTRO's metadata ({fault} is missing or unknown)") from None
                if audio.is_file() and midi.is_file():
                    recordings.append(Recording(row["audio_filename"], audio, split, partial(sounding_notes, midi)))
                else:
                    self.absent += 1
        if not recordings:
            raise BadInput(
                f"{self.root}: none of the {self.absent} recordings of {tables[-1].name} has both its files here"
            )
        return recordings

    def made_by(self, recordings: Sequence[Recording]) -> dict[str, Any]:
        files = [[r.name, r.split, r.audio.stat().st_size] for r in recordings]
        return {"data": "maestro", "sample_rate": self.spec.sample_rate, "files": files}

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"rows of the metadata without their files": self.absent}
