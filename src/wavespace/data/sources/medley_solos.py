"""Medley-solos-DB: 21,571 clips of 3 s, 8 instruments (Lostanlen & Cella, ISMIR 2016).

Zenodo record 3464194, version 1.2, CC BY 4.0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from wavespace.data.base import SampleRate, rng_for
from wavespace.data.files.discovery import (
    CLIP_BYTES,
    INSTRUMENTS,
    METADATA,
    TRAIN_VAL_TEST,
    Recording,
    find_medley_solos,
    list_files,
    medley_clips,
)
from wavespace.data.files.download import check_digest, extract, fetch
from wavespace.data.sources.recordings import Recordings, Rows
from wavespace.data.store.format import Store
from wavespace.data.store.manifest import MANIFEST
from wavespace.data.store.windows import StoreItems
from wavespace.errors import BadInput
from wavespace.settings import validate_settings

CLIP_SECONDS = 131_072 / 44_100
ARCHIVE = "Medley-solos-DB.tar.gz"
DIGESTS = {METADATA: "md5:fda6a589c56785f2195c9227809c521a", ARCHIVE: "md5:f5facf398793ef5c1f80c013afdf3e5f"}


@validate_settings
@dataclass(kw_only=True, eq=False, repr=False)
class MedleySolos(Recordings):
    """Single instruments, one a clip; a training window lies anywhere in its clip, the others in the middle.

    Further settings are those of `Recordings`.

    Args:
        root: folder that holds, at any depth, the metadata CSV and the clips (`annotation/` and `audio/`, or flat) or
            their tar.gz; or a store made of them.
        url: of the folder from which `wavespace prepare` fetches both.
        sample_rate: in Hz; the files' own is 44,100.
        seconds: length of a window, at most 2.97.
        splits: "official" (training and validation from MedleyDB, test from solosDB: another domain), or "songs":
            the clips at hand by song, 60/20/20, for folders that hold a part of the data, whatever the seed.
        balance: of training windows: "recording" (each clip once an epoch), or "instrument" (each class as often;
            piano and violin are three quarters of the clips).
    """

    root: str = "data/medley-solos-db"
    url: str = "https://zenodo.org/record/3464194/files"
    sample_rate: SampleRate = 44_100
    seconds: Annotated[float, Field(gt=0, le=CLIP_SECONDS)] = 2.0
    splits: Literal["official", "songs"] = "official"
    balance: Literal["recording", "instrument"] = "recording"
    batch_size: PositiveInt = 16
    val_windows: None = field(default=None, init=False)

    kind = "medley_solos"
    instruments: ClassVar[tuple[str, ...]] = INSTRUMENTS
    """Names of the classes that the label "instrument" counts."""
    licence = "CC BY 4.0"
    citation = (
        "Lostanlen and Cella, Deep convolutional networks on the pitch spiral for music instrument recognition, "
        "ISMIR 2016"
    )

    def __post_init__(self) -> None:
        self.read_from(self.root, ("instrument",))
        self.eval_batch_size = self.batch_size

    def download(self, verify: bool = False) -> None:
        """Fetch the metadata and the tar.gz, if they are missing, and extract the clips."""
        archives = self.archives()
        if (self.place / MANIFEST).is_file() or not (archives or self.may_fetch()):
            return
        if not any(path.name == METADATA for path in list_files(self.place)):
            self._fetch(METADATA, "annotation")
        there = {path.with_suffix(path.suffix.lower()).name for path in list_files(self.place)}
        if all(f"{clip}.wav" in there for clip, _, _ in medley_clips(self.place)):
            return
        for archive in archives if verify else ():
            check_digest(archive, DIGESTS.get(archive.name))

        def target(name: str) -> Path | None:
            name = name.rpartition("/")[2]
            return Path("audio", name) if fnmatch(name, "Medley-solos-DB_*.wav") and name not in there else None

        for archive in archives or [self._fetch(ARCHIVE, ".")]:
            extract(archive, self.place, target, limit=21_571 * CLIP_BYTES)
            if archive.parent == self.place and self.may_fetch():
                archive.unlink()

    def _fetch(self, name: str, folder: str) -> Path:
        target = self.place / folder / name
        fetch(f"{self.url}/{name}?download=1", target, digest=DIGESTS[name])
        return target

    def found(self) -> list[Recording]:
        """Find the clips of the metadata that are there."""
        recordings, self.absent = find_medley_solos(self.place)
        return recordings

    def _checked(self, store: Store) -> Store:
        store = super()._checked(store)
        classes = store.labels.get("instrument", np.array([-1]))
        if "song" not in store.labels or classes.min() < 0 or classes.max() >= len(INSTRUMENTS):
            raise BadInput(f"{store.folder}: its clips have no song, or no instrument of the dataset; prepare it anew")
        return store

    def rows(self) -> Rows:
        """Return the clips of each split, official or by song."""
        if self.splits == "official":
            return super().rows()
        # Within each instrument songs go 60/20/20 to the splits; an instrument of one or two songs trains alone.
        instruments, songs = self.store.labels["instrument"], self.store.labels["song"]
        part = np.zeros(len(self.store), np.int64)  # of TRAIN_VAL_TEST
        for instrument in range(len(INSTRUMENTS)):
            own = np.unique(songs[instruments == instrument])
            held = max(1, round(0.2 * len(own))) if len(own) > 2 else 0
            order = rng_for("songs", instrument).permutation(len(own))
            for number, chosen in ((1, order[:held]), (2, order[held : 2 * held])):
                part[np.isin(songs, own[chosen]) & (instruments == instrument)] = number
        return {split: np.flatnonzero(part == number) for number, split in enumerate(TRAIN_VAL_TEST)}

    def is_official(self) -> bool:
        """Whether splits are the dataset's own."""
        return self.splits == "official"

    def test_items(self, rows: NDArray[np.int64]) -> StoreItems:
        """Return the middle of each clip of `(R,)`."""
        return StoreItems.middle(self.store, rows, self.spec.samples)

    def setup(self, stage: str | None = None) -> None:
        """Open the splits.

        Raises:
            BadInput: a split has no clips.
        """
        super().setup(stage)
        for split, rows in self.in_split.items():
            if len(rows) == 0:
                raise BadInput(
                    f"{self.place}: there are no clips for the {split} split, of {len(self.store)} in all; a folder "
                    "that holds a part of the data needs data.splits=songs, which needs three songs of an instrument"
                )

    def describe(self) -> dict[str, Any]:
        """Return also songs and clips of each instrument by split, and how many files are missing."""
        facts = super().describe()
        for split, rows in self.in_split.items():
            instruments, songs = self.store.labels["instrument"][rows], self.store.labels["song"][rows]
            counts = np.bincount(instruments, minlength=len(INSTRUMENTS)).tolist()
            facts[split] |= {"songs": len(np.unique(songs))} | {n: c for n, c in zip(INSTRUMENTS, counts) if c}
        if hasattr(self, "absent"):  # the store was made, or found, by the files
            facts["rows of the metadata without their file"] = self.absent
        return facts
