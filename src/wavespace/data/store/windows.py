"""Windows of the recordings of a store: random ones to train on, fixed ones to validate and test on."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from wavespace.data.base import Item, rng_for, shuffled
from wavespace.data.store.format import Store
from wavespace.data.store.manifest import MANIFEST


class StoreWindows:
    """A training stream of random windows; a shorter recording is followed by zeros.

    Args:
        store: of the recordings.
        recordings: rows of the store.
        samples: length of a window.
        seed: of the order and the places.
        balance: "time": every place of every recording is equally likely; "recording": each recording comes once in
            every `len(recordings)` windows, in a new order each time; or classes `(len(recordings),)`: each class
            comes once in as many windows as there are classes, and its recordings take turns.
    """

    def __init__(
        self,
        store: Store,
        recordings: NDArray[np.int64],
        samples: int,
        seed: int,
        balance: Literal["time", "recording"] | NDArray[np.int64] = "time",
    ) -> None:
        self.store, self.recordings, self.samples = store, recordings, samples
        self.seed = seed
        self._ends = _window_ends(store, recordings, samples)
        self._by_time = isinstance(balance, str) and balance == "time"
        classes = np.zeros(len(recordings)) if isinstance(balance, str) else balance
        self._classes = [np.flatnonzero(classes == one) for one in np.unique(classes)]

    def __getitem__(self, position: int) -> Item:
        share = _share(self.seed, position)
        if self._by_time:
            place = int(share * self._ends[-1])
            row = int(np.searchsorted(self._ends, place, side="right"))
            start = place - int(self._ends[row - 1] if row else 0)
        else:
            rows = self._classes[shuffled(self.seed, position, len(self._classes))]
            row = int(rows[shuffled(self.seed, position // len(self._classes), len(rows))])
            start = int(share * (self._ends[row] - (self._ends[row - 1] if row else 0)))
        return self.store.item(int(self.recordings[row]), start - start % self.store.hop, self.samples)


class StoreItems(Dataset[Item]):
    """A fixed list of excerpts, for validation and test.

    Args:
        store: of the recordings.
        excerpts: `(P, 3)` rows of recording, first sample, and number of samples.
    """

    def __init__(self, store: Store, excerpts: NDArray[np.int64]) -> None:
        self.store, self.excerpts = store, excerpts

    @classmethod
    def spread(cls, store: Store, recordings: NDArray[np.int64], samples: int, count: int) -> StoreItems:
        """`count` windows of `samples` at equal distances over all the time of the recordings `(R,)`."""
        ends = _window_ends(store, recordings, samples)
        places = (2 * np.arange(count) + 1) * int(ends[-1]) // (2 * count)
        rows = np.searchsorted(ends, places, side="right")
        starts = places - np.append(0, ends)[rows]
        starts -= starts % store.hop
        return cls(store, np.column_stack([recordings[rows], starts, np.full(count, samples)]))

    @classmethod
    def middle(cls, store: Store, recordings: NDArray[np.int64], samples: int) -> StoreItems:
        """The `samples` in the middle of each of the recordings `(R,)`."""
        starts = np.maximum(store.frames[recordings] - samples, 0) // 2
        starts -= starts % store.hop
        return cls(store, np.column_stack([recordings, starts, np.full(len(recordings), samples)]))

    @classmethod
    def whole(cls, store: Store, recordings: NDArray[np.int64]) -> StoreItems:
        """Each of the recordings `(R,)` from its first sample to its last."""
        return cls(store, np.column_stack([recordings, np.zeros_like(recordings), store.frames[recordings]]))

    def __len__(self) -> int:
        return len(self.excerpts)

    def __getitem__(self, position: int) -> Item:
        recording, start, samples = self.excerpts[position].tolist()
        return self.store.item(recording, start, samples)


DRAWS = 4096
"""Positions whose shares are drawn at once: a generator takes as long to make as a window to read."""


@lru_cache(maxsize=8)
def _shares(seed: int, block: int) -> list[float]:
    return rng_for(seed, "window", block).random(DRAWS).tolist()


def _share(seed: int, position: int) -> float:
    """Return a random number in [0, 1) for a position."""
    block, place = divmod(position, DRAWS)
    return _shares(seed, block)[place]


def _window_ends(store: Store, recordings: NDArray[np.int64], samples: int) -> NDArray[np.int64]:
    """Return the cumulative number of places for a window over the recordings, `(R,)`."""
    if len(recordings) == 0:
        raise ValueError(f"{store.folder}: no recordings to take windows of; see its splits in {MANIFEST}")
    return np.cumsum(np.maximum(store.frames[recordings] - samples, 0) + 1)
