"""Recordings in a folder, with the notes of a MIDI file of the same stem beside each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from wavespace.data.files.discovery import TRAIN_VAL_TEST, Recording, find_audio_folder
from wavespace.data.sources.recordings import Recordings, Rows
from wavespace.errors import BadInput
from wavespace.settings import validate_settings

Share = Annotated[float, Field(ge=0, le=1)]


@validate_settings
@dataclass(kw_only=True, eq=False, repr=False)
class AudioFolder(Recordings):
    """A folder of audio files, at any depth. Further settings are those of `Recordings`.

    Args:
        folder: of the files; or a store that was made of them.
        notes: take recordings that have a MIDI file alone, with its notes as labels; false: all audio, without labels.
        splits: shares of recordings for training, validation and test.
        split_seed: which goes where, with the recordings' names.

    Raises:
        ValueError: the shares don't sum to 1, or a setting is out of range.
    """

    folder: str
    notes: bool = True
    splits: tuple[Share, Share, Share] = (0.8, 0.1, 0.1)
    split_seed: int = 0
    balance: Literal["time", "recording"] = "time"

    kind = "audio_folder"
    setting = "folder"

    def __post_init__(self) -> None:
        if abs(sum(self.splits) - 1) > 1e-6:
            raise ValueError(f"splits = {list(self.splits)}: shares of training, validation and test have to sum to 1")
        self.read_from(self.folder, ("notes",) if self.notes else ())

    def found(self) -> list[Recording]:
        """Find the audio files, named by their paths in the folder."""
        return find_audio_folder(self.place, self.notes)

    def is_official(self) -> bool:
        """False: splits are drawn from the files of the folder."""
        return False

    def rows(self) -> Rows:
        """Split recordings in the order of their names' hashes, so that a new one moves few others.

        If there are enough recordings, each split with a share above 0 has one.
        """
        names = self.store.names
        keys = [
            hashlib.sha256(f"{self.split_seed} {name}".encode("utf-8", "surrogateescape")).digest() for name in names
        ]
        order = np.array(sorted(range(len(names)), key=keys.__getitem__))
        sizes = np.diff(np.rint(np.cumsum([0, *self.splits]) * len(names)).astype(int))
        for split in np.flatnonzero((sizes == 0) & (np.array(self.splits) > 0)):
            if sizes.max() > 1:
                sizes[sizes.argmax()] -= 1
                sizes[split] = 1
        return {split: np.sort(rows) for split, rows in zip(TRAIN_VAL_TEST, np.split(order, np.cumsum(sizes)[:2]))}

    def unprepared(self, found: Sequence[Recording] | None = None) -> str:
        """As of every dataset; but raise `BadInput` where recordings are too few to train on, before they are read."""
        found = self.found() if found is None else found
        shares = [split for split, share in zip(TRAIN_VAL_TEST, self.splits) if share > 0]
        if len(found) < len(shares):
            raise self._too_few(shares[len(found)], self.place, len(found))
        return super().unprepared(found)

    def check_split(self, split: str) -> None:
        if len(self.store) < 3 and not hasattr(self, f"{split}_set") and self.splits[TRAIN_VAL_TEST.index(split)] > 0:
            raise self._too_few(split, self.store.folder, len(self.store))
        super().check_split(split)

    @staticmethod
    def _too_few(split: str, place: Path, count: int) -> BadInput:
        return BadInput(
            f"{place}: its {split} split has no recordings, of {count} in all; it takes "
            "three for training, validation and test: add some, or cut a long one, and its MIDI file, into pieces"
        )
