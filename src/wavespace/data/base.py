"""The base of datamodules: item, batch, and a training stream that is a function of position.

A training set is a pure function `position -> Item`: item `p` is the same in every process, whatever was read
before. So the order of the data needs no state beyond the number of batches, workers change nothing, ranks take
disjoint slices, and a killed run resumes exactly.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from wavespace.errors import BadInput, Incompatible
from wavespace.settings import validate_settings
from wavespace.signals import exit_with_parent
from wavespace.spec import MOST_SECONDS, AudioSpec

SampleRate = Annotated[int, Field(ge=1, le=10**6)]
Seconds = Annotated[float, Field(gt=0, le=MOST_SECONDS)]
Workers = Annotated[int, Field(ge=0, le=1024)]

Notes = NDArray[np.float64]
"""`(K, 4)` rows of onset and offset in seconds, MIDI pitch, velocity 1-127; sorted by onset, then pitch."""

NO_NOTES: Notes = np.zeros((0, 4))

Pitches = NDArray[np.float64]
"""`(N, 3)` rows of frame number, MIDI pitch, salience; sorted by frame, then pitch."""


class Item(NamedTuple):
    """One window or recording.

    `audio` is `(N,)`, float32 in -1..1 or int16; `notes` count their seconds from the start of `audio`
    (a note that was already sounding has a negative onset); `labels` are class indices by name; `features`, where
    they were made beforehand, are `(T, C * F)` float16 of the same stretch.
    """

    audio: NDArray[Any]
    name: str
    notes: Notes = NO_NOTES
    labels: Mapping[str, int] = MappingProxyType({})
    features: NDArray[np.float16] | None = None


class Batch(NamedTuple):
    """Items side by side, as a task receives them.

    Attributes:
        audio: `(B, 1, N)` float32 or int16 (scaled to float32 on the device), zero-padded at the end.
        lengths: `(B,)` int64, samples of each item before the padding.
        notes: `(K, 5)` float32 rows of item index, onset, offset (seconds), MIDI pitch, velocity.
        labels: class indices `(B,)` int64 by name.
        names: one a row; stable from run to run.
        features: `(B, T, C * F)` float16, where they were made beforehand.
    """

    audio: Tensor
    lengths: Tensor
    notes: Tensor
    labels: dict[str, Tensor]
    names: list[str]
    features: Tensor | None = None

    def notes_of(self, index: int) -> Notes:
        """Return the notes of one item, as float64."""
        return self.notes[self.notes[:, 0] == index, 1:].cpu().numpy().astype(np.float64)


class Stream(Protocol):
    """A training set: endless, and a pure function of position."""

    def __getitem__(self, position: int) -> Item: ...


def collate(items: Sequence[Item]) -> Batch:
    """Join items to a batch; shorter ones are zero-padded at the end."""
    lengths = [len(item.audio) for item in items]
    audio = np.empty((len(items), 1, max(lengths)), dtype=items[0].audio.dtype)
    for row, item in zip(audio[:, 0], items):
        row[: len(item.audio)] = item.audio
        row[len(item.audio) :] = 0
    rows = np.repeat(np.arange(len(items)), [len(item.notes) for item in items])  # (K,)
    return Batch(
        audio=torch.from_numpy(audio),
        lengths=torch.tensor(lengths),
        notes=torch.from_numpy(np.column_stack([rows, np.concatenate([item.notes for item in items])])).float(),
        labels={key: torch.tensor([item.labels[key] for item in items]) for key in items[0].labels},
        names=[item.name for item in items],
        features=_collate_features(items),
    )


def _collate_features(items: Sequence[Item]) -> Tensor | None:
    """Join features to `(B, T, C * F)`; shorter ones repeat their last frame."""
    features = [item.features for item in items if item.features is not None]
    if not features:
        return None
    longest = max(map(len, features))
    return torch.from_numpy(np.stack([np.pad(f, ((0, longest - len(f)), (0, 0)), "edge") for f in features]))


def rng_for(*key: int | str) -> np.random.Generator:
    """Return a generator that depends on the key alone, as in `rng_for(seed, "train", position)`."""
    # A negative seed is a seed, as for torch.
    words = [part % 2**64 if isinstance(part, int) else int.from_bytes(part.encode(), "little") for part in key]
    return np.random.default_rng(words)


@lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    return rng_for(seed, "order", epoch).permutation(n)


def shuffled(seed: int, position: int, n: int) -> int:
    """Return which of `n` items is at a position of an endless shuffle; each epoch of `n` is a new permutation."""
    epoch, place = divmod(position, n)
    return int(_permutation(seed, epoch, n)[place])


class BatchSampler(Sampler[list[int]]):
    """Positions of the batches of one rank, endless, from batch `start` on.

    Batch `b` of all ranks together covers positions `b * world * batch_size` up to the next such multiple;
    `rank` takes its own slice of them.
    """

    def __init__(self, batch_size: int, start: int = 0, rank: int = 0, world: int = 1) -> None:
        self.batch_size, self.start, self.rank, self.world = batch_size, start, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        batch = self.start
        while True:
            first = (batch * self.world + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
            batch += 1


def _start_loader(_: int) -> None:
    """Keep Ctrl-C, which comes to a whole group, from a loader process: it has to finish the step."""
    os.setpgid(0, 0)
    exit_with_parent()  # PyTorch looks for it only every five seconds


@validate_settings
class DataModule(LightningDataModule):
    """A source of audio in three splits, by recording.

    A subclass sets `spec` in its constructor without touching the disk, checks and reads in `prepare_data` and
    `setup`, and gives `train_set` (a `Stream`), `val_set` and `test_set` (finite map-style datasets of `Item`).

    Args:
        spec: what the batches hold.
        batch_size: windows in a training batch, which devices share: a step has the same windows on any number of them.
        workers: loader processes of each device; they never change what is yielded.
        eval_batch_size: items in a validation or test batch.
    """

    def __init__(
        self, spec: AudioSpec, batch_size: PositiveInt, workers: Workers, eval_batch_size: PositiveInt | None = None
    ) -> None:
        super().__init__()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if (needed := batch_size * spec.seconds * spec.sample_rate * 4) > memory:
            raise ValueError(
                f"batch_size is {batch_size} and seconds {spec.seconds:g}: the audio of a batch takes "
                f"{needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:.0f} GB of memory"
            )
        self.spec, self.batch_size, self.workers = spec, batch_size, workers
        self.eval_batch_size = eval_batch_size or batch_size
        self.train_set: Stream
        self.val_set: Dataset[Item]
        self.test_set: Dataset[Item]

    def download(self, verify: bool = False) -> None:
        """Fetch or unpack what `prepare_data` needs and lacks; only `wavespace prepare` does this.

        Args:
            verify: compare archives that are there with their digests, too.
        """

    def terms(self) -> str:
        """Return licence and citation, if the data has any."""
        return ""

    def is_prepared(self) -> bool:
        """Whether `prepare_data` has next to nothing to do; may raise `BadInput` where the data is missing."""
        return True

    def unprepared(self) -> str:
        """Return the sentence to show if `is_prepared` is false."""
        return "The data is not prepared"

    def contents(self) -> dict[str, str]:
        """Return a digest of the content of the files that are read, by setting: part of a run's identity.

        After `setup` it is of what was read, even if the files have changed since.
        """
        return {}

    def setup(self, stage: str | None = None) -> None:
        """Make the splits, after `prepare_data`."""

    def verify(self) -> None:
        """Compare what was prepared with its digests; raise `BadInput` where it differs."""

    def describe(self) -> dict[str, Any]:
        """Return facts to show after `setup`: items, hours and what was left out, by split."""
        return {}

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return endless training batches, from after those that the trainer has done."""
        self.check_split("train")
        start, rank, world = 0, 0, 1
        if self.trainer is not None:
            start = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
            rank, world = self.trainer.global_rank, self.trainer.world_size
        sampler = BatchSampler(self.batch_size // world, start, rank, world)
        return self._loader(self.train_set, batch_sampler=sampler, workers=self.workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return fixed validation items, in order."""
        self.check_split("val")
        return self._loader(self.val_set, batch_size=self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return fixed test items, in order."""
        self.check_split("test")
        return self._loader(self.test_set, batch_size=self.eval_batch_size)

    def check_split(self, split: str) -> None:
        """Raise `BadInput` if a split is empty, before its loader is made."""

    def is_official(self) -> bool:
        """Whether splits are the dataset's own or fixed by the code, and not drawn from the files of a folder."""
        return True

    def whole_dataloader(self) -> DataLoader[Batch]:
        """Return the items of `whole`, after `prepare_data` alone."""
        return self._loader(self.whole(), batch_size=self.eval_batch_size)

    def whole(self) -> Dataset[Item]:
        """Return all recordings of all splits, as test items."""
        raise BadInput("this data has no recordings of its own to score as a whole; name --split val or test")

    def _loader(self, dataset: Any, workers: int = 0, **options: Any) -> DataLoader[Batch]:
        if workers:
            self._check_shared_memory(workers)
        return DataLoader(
            dataset,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_start_loader,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def _check_shared_memory(self, workers: int) -> None:
        """Raise `Incompatible` if batches of loader processes don't fit: PyTorch would hang, or die of a bus error."""
        shared = Path("/dev/shm")
        needed = 2 * workers * self.batch_size * self.spec.samples * 4  # each process keeps two batches ready
        if shared.is_dir() and (free := shutil.disk_usage(shared).free) < needed:
            raise Incompatible(
                f"data.workers={workers} takes {needed / 1e6:.0f} MB of shared memory, and {shared} has "
                f"{free / 1e6:.0f} MB left; set data.workers=0, or start the container with a larger --shm-size"
            )
