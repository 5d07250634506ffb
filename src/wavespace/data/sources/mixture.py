"""Training on several datamodules at once, in given shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PositiveInt

from wavespace.data.base import DataModule, Item, Stream, Workers, rng_for
from wavespace.errors import BadInput
from wavespace.settings import validate_settings
from wavespace.units import to_int16


@validate_settings
@dataclass(kw_only=True, eq=False, repr=False)
class Mixture(DataModule):
    """Windows of other datamodules, side by side in one batch; validation and test are those of one of them.

    Labels are notes, where all parts have them: class indices of two datasets do not mean the same.

    Args:
        parts: datamodules by any name; of each, `batch_size`, `workers` and `seed` are not used.
        shares: of the training windows, by the same names.
        scored: the part that is validated and tested on.
        batch_size: windows a batch.
        workers: loader processes.
        seed: decides which part each window comes from.

    Raises:
        ValueError: the shares are not shares of these parts, or the parts give audio of another kind.
    """

    parts: dict[str, DataModule]
    shares: dict[str, Annotated[float, Field(gt=0, le=1)]]
    scored: str
    batch_size: PositiveInt = 6
    workers: Workers = 0
    seed: int = 0

    def __post_init__(self) -> None:
        names = ", ".join(self.parts)
        if set(self.shares) != set(self.parts) or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares = {self.shares}: it takes one for each of {names}, in all 1")
        if self.scored not in self.parts:
            raise ValueError(f"scored = {self.scored}: it must be one of {names}")
        specs = {name: part.spec for name, part in self.parts.items()}
        if len({(spec.sample_rate, spec.seconds) for spec in specs.values()}) > 1:
            each = ", ".join(f"{name} {spec.seconds:g} s at {spec.sample_rate} Hz" for name, spec in specs.items())
            raise ValueError(f"its parts give windows of {each}; set sample_rate and seconds of all alike")
        self.scored_part = self.parts[self.scored]
        labels = ("notes",) if all("notes" in spec.labels for spec in specs.values()) else ()
        spec = replace(specs[self.scored], labels=labels)
        super().__init__(spec, self.batch_size, self.workers, self.scored_part.eval_batch_size)

    def download(self, verify: bool = False) -> None:
        """Fetch what each part lacks."""
        for part in self.parts.values():
            part.download(verify)

    def terms(self) -> str:
        """Return licences and citations of all parts."""
        return "\n".join(filter(None, (part.terms() for part in self.parts.values())))

    def is_prepared(self) -> bool:
        """Whether all parts are."""
        return all(part.is_prepared() for part in self.parts.values())

    def unprepared(self) -> str:
        """Return the sentences of the parts that are not prepared."""
        return "; ".join(dict.fromkeys(part.unprepared() for part in self.parts.values() if not part.is_prepared()))

    def contents(self) -> dict[str, str]:
        """Return the digests of each part."""
        return {
            f"parts.{name}.{key}": value for name, part in self.parts.items() for key, value in part.contents().items()
        }

    def prepare_data(self) -> None:
        """Prepare each part."""
        for part in self.parts.values():
            part.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Set up all parts and join their training sets.

        Raises:
            BadInput: a part has nothing to train on.
        """
        for part in self.parts.values():
            part.setup(stage)
        for name, part in self.parts.items():
            if not hasattr(part, "train_set"):
                raise BadInput(f"data.parts.{name} has nothing to train on; it holds {part.describe()}")
        self.train_set = Mixed([part.train_set for part in self.parts.values()], list(self.shares.values()), self.seed)
        for split in ("val_set", "test_set"):
            if hasattr(self.scored_part, split):
                setattr(self, split, getattr(self.scored_part, split))

    def verify(self) -> None:
        """Compare each part with its digests."""
        for part in self.parts.values():
            part.verify()

    def describe(self) -> dict[str, Any]:
        """Return the shares, and the facts of each part after its name."""
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        facts = {f"{name}: {key}": fact for name, part in self.parts.items() for key, fact in part.describe().items()}
        return {"training": shares, "validation and test": self.scored} | facts

    def check_split(self, split: str) -> None:
        """Raise `BadInput` if a split of the scored part is empty."""
        if split != "train":
            self.scored_part.check_split(split)


class Mixed:
    """A stream whose window at a position is that of one of several streams, drawn by their shares."""

    def __init__(self, streams: Sequence[Stream], shares: Sequence[float], seed: int) -> None:
        self.streams, self.shares, self.seed = streams, shares, seed

    def __getitem__(self, position: int) -> Item:
        drawn = rng_for(self.seed, "mixture", position).random()
        stream = self.streams[min(int(np.searchsorted(np.cumsum(self.shares), drawn, "right")), len(self.streams) - 1)]
        item = stream[position]
        audio = item.audio  # of one type in a batch
        if audio.dtype != np.int16:
            audio = to_int16(audio)[0]
        return Item(audio, item.name, item.notes)
