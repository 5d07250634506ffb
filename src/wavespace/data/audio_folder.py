"""Anybody's recordings, with the notes of a MIDI file of the same stem beside each."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

from wavespace.data.recordings import SPLITS, Recordings, Rows
from wavespace.data.sources import Recording, audio_folder
from wavespace.spec import AudioSpec


class AudioFolder(Recordings):
    """A folder of audio files, at any depth.

    Args:
        folder: of the files; or a store that was made of them.
        notes: take recordings that have a MIDI file alone, with its notes as labels; false: all audio, without labels.
        splits: shares of recordings for training, validation and test.
        split_seed: which goes where, with the recordings' names.
        sample_rate: in Hz; other rates are resampled.
        seconds: length of a training window.
        balance: of training windows: "time" or "recording".
        val_windows: windows to validate on; None: whole recordings.
        leaks: "drop" or "keep" training recordings whose audio is also held out.
        batch_size: windows a batch.
        workers: loader processes; a store is fastest with none.
        seed: of the training windows.
        stores: folder in which stores are kept.

    Raises:
        ValueError: the shares are not shares, or a setting is out of range.
    """

    kind = "audio_folder"

    def __init__(
        self,
        *,
        folder: str,
        notes: bool = True,
        splits: tuple[float, float, float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        sample_rate: int = 22_050,
        seconds: float = 3.7,
        balance: Literal["time", "recording"] = "time",
        val_windows: int | None = None,
        leaks: Literal["drop", "keep"] = "drop",
        batch_size: int = 6,
        workers: int = 0,
        seed: int = 0,
        stores: str = "data/stores",
    ) -> None:
        if min(splits) < 0 or abs(sum(splits) - 1) > 1e-6:
            raise ValueError(
                f"splits is {list(splits)}; it takes three shares, of training, validation and test, that sum to 1"
            )
        super().__init__(
            AudioSpec(sample_rate, seconds, ("notes",) if notes else ()),
            place=folder,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
            stores=stores,
            balance=balance,
            leaks=leaks,
            val_windows=val_windows,
        )
        self.notes, self.splits, self.split_seed = notes, splits, split_seed

    def found(self) -> list[Recording]:
        return audio_folder(self.place, self.notes)

    def is_official(self) -> bool:
        return False

    def rows(self) -> Rows:
        """Shares of the recordings in an order of their names' hashes, so that a new one moves few others."""
        names = self.store.names
        keys = [hashlib.sha256(f"{self.split_seed} {name}".encode()).digest() for name in names]
        order = np.array(sorted(range(len(names)), key=keys.__getitem__))
        bounds = np.rint(np.cumsum(self.splits[:2]) * len(names)).astype(int)
        return {split: np.sort(rows) for split, rows in zip(SPLITS, np.split(order, bounds))}
