"""Recordings on disk, through a store: what all datasets of audio files share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from wavespace.data.base import Batch, DataModule, Notes
from wavespace.data.features import FeatureCache
from wavespace.data.notes import apply_pedal, read_midi
from wavespace.data.store import MANIFEST, Recording, Samples, Store, StoreItems, StoreWindows, build_store, store_name
from wavespace.errors import BadInput, Incompatible
from wavespace.frontends.base import FrontEnd
from wavespace.spec import AudioSpec

SPLITS = ("train", "val", "test")
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")
FETCHED = ".fetched"
"""Lies in a folder that `wavespace prepare` made: what is missing there is fetched, and elsewhere it is not."""
Rows = dict[str, NDArray[np.int64]]
"""Recordings of a store by split."""


def sounding_notes(path: Path) -> Notes:
    """Notes of a MIDI file as long as they are heard: the sustain pedal is resolved."""
    performance = read_midi(path)
    return apply_pedal(performance.notes, performance.pedal)


class Recordings(DataModule):
    """Recordings that are read once into a store, and from there at any place.

    A subclass gives `found` and `made_by`, `rows` where splits are not the store's own, `download` where there is
    something to download, and the licence and citation that are kept in the store's manifest.

    Args:
        place: folder of the dataset; or its archive; or a store of it, which is then all that is needed.
        seed: of the training windows.
        stores: folder in which stores are kept.
        balance: "time": every second of music is as likely as any other in training; "recording": every recording as
            likely; or the name of a label: every class of it as likely.
        leaks: "drop": a training recording of a piece that is also held out, or with the same audio, is left out, and
            a validation recording of what is in test; "keep": splits stay as they are.
        val_windows: windows at equal distances that are validated on; None: whole recordings, as in test.
    """

    licence = ""
    citation = ""

    def __init__(
        self,
        spec: AudioSpec,
        *,
        place: str,
        batch_size: int,
        workers: int,
        seed: int,
        stores: str,
        balance: str = "time",
        leaks: Literal["drop", "keep"] = "drop",
        val_windows: int | None = None,
    ) -> None:
        super().__init__(spec, batch_size, workers, eval_batch_size=1)
        if val_windows is not None and val_windows < 1:
            raise ValueError(f"val_windows is {val_windows}; it must be at least 1, or null for whole recordings")
        if balance not in ("time", "recording", *spec.labels) or balance == "notes":
            classes = [label for label in spec.labels if label != "notes"]
            raise ValueError(f"balance is {balance}; it can be {', '.join(['time', 'recording', *classes])}")
        given = Path(place).expanduser()
        suffix = next((suffix for suffix in ARCHIVES if given.name.endswith(suffix)), "")
        self.archive = given if suffix else None
        self.place = given.with_name(given.name.removesuffix(suffix))  # an archive is unpacked beside itself
        self.stores, self.seed = Path(stores), seed
        self.balance, self.leaks, self.val_windows = balance, leaks, val_windows
        self.cache: FeatureCache | None = None

    # --- A subclass's own ---------------------------------------------------------------------------------

    @abstractmethod
    def found(self) -> list[Recording]:
        """The recordings that are there, each with its split."""

    @abstractmethod
    def made_by(self, recordings: Sequence[Recording]) -> dict[str, Any]:
        """All that decides what the store holds; `data` names the dataset."""

    def rows(self) -> Rows:
        """Which recordings of the store are in which split."""
        return {split: self.store.split(split) for split in SPLITS}

    def val_items(self, rows: NDArray[np.int64]) -> StoreItems:
        """What is validated on."""
        if self.val_windows is None:
            return self.test_items(rows)
        return StoreItems.spread(self.store, rows, self.spec.samples, self.val_windows)

    def test_items(self, rows: NDArray[np.int64]) -> StoreItems:
        """What is tested on: whole recordings."""
        return StoreItems.whole(self.store, rows)

    # --- Shared -------------------------------------------------------------------------------------------

    def use_features(self, frontend: FrontEnd, settings: dict[str, Any]) -> None:
        """Read features of a frozen front-end from a store of them, which `prepare_data` makes; and audio beside.

        Args:
            frontend: gives the features.
            settings: from which it was built; they name the store.
        """
        self.cache = FeatureCache(frontend, settings)

    def archives(self) -> list[Path]:
        """The archive that was given, or those that lie in the folder."""
        inside = self.place.iterdir() if self.place.is_dir() else ()
        return [self.archive] if self.archive else sorted(path for path in inside if path.name.endswith(ARCHIVES))

    def is_ours(self) -> bool:
        """Whether what is missing in the folder is to be fetched: it is one that `wavespace prepare` made, or makes."""
        if not self.place.is_dir() or not any(self.place.iterdir()):
            self.place.mkdir(parents=True, exist_ok=True)
            (self.place / FETCHED).touch()
        return (self.place / FETCHED).is_file()

    def terms(self) -> str:
        """Licence and citation; a store's manifest keeps them."""
        return f"Licence: {self.licence}\nPlease cite: {self.citation}" if self.licence else ""

    def is_prepared(self) -> bool:
        """Whether there is a store."""
        return (self.place / MANIFEST).is_file() or (self.stores / store_name(self.made_by(self.found()))).exists()

    def verify(self) -> None:
        """Read every byte of the store, and of the store of features."""
        self.store.verify()
        if self.store.features is not None:
            self.store.features.verify()

    def prepare_data(self) -> None:
        """Build the store, or find it built; the same for features."""
        if (self.place / MANIFEST).is_file():
            self.store = self._checked(Store.open(self.place))
        else:
            recordings = self.found()
            made_by = self.made_by(recordings)
            self.store = build_store(
                self.stores / store_name(made_by),
                recordings,
                Samples(self.spec.sample_rate),
                made_by,
                licence=self.licence,
                citation=self.citation,
            )
        if self.cache is not None:
            self.store.with_features(self.cache.store_for(self.store, self.stores))

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that have recordings."""
        if not hasattr(self, "store"):
            self.prepare_data()
        self.in_split = self.rows()
        self.leaking = leaking(self.store, self.in_split)
        if self.leaks == "drop":
            self.in_split = {split: np.setdiff1d(rows, self.leaking[split]) for split, rows in self.in_split.items()}
        train, val, test = (self.in_split[split] for split in SPLITS)
        if len(train):
            balance: Any = self.store.labels[self.balance][train] if self.balance in self.store.labels else self.balance
            self.train_set = StoreWindows(self.store, train, self.spec.samples, self.seed, balance)
        if len(val):
            self.val_set = self.val_items(val)
        if len(test):
            self.test_set = self.test_items(test)

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
        """Recordings, hours and notes by split; what leaks; samples that were clipped; where the store is."""
        facts: dict[str, Any] = {}
        for split, rows in self.in_split.items():
            hours = int(self.store.frames[rows].sum()) / self.store.sample_rate / 3600
            facts[split] = {"recordings": len(rows), "hours": round(hours, 4)}
            if "notes" in self.spec.labels:
                facts[split]["notes"] = self.store.notes_in(rows)
        verb = "left out" if self.leaks == "drop" else "kept"
        for split, rows in self.leaking.items():
            if len(rows):
                names = ", ".join(self.store.names[row] for row in rows[:3]) + (", ..." if len(rows) > 3 else "")
                facts[f"{split} recordings {verb}, whose piece or audio is also held out"] = f"{len(rows)} ({names})"
        return facts | {"clipped samples": self.store.manifest["clipped"], "store": str(self.store.folder)}

    def _need(self, split: str) -> None:
        if not hasattr(self, f"{split}_set"):
            raise BadInput(f"{self.store.folder}: its {split} split has no recordings; it holds {self.describe()}")

    def _checked(self, store: Store) -> Store:
        """A store that somebody made elsewhere, if it is of this dataset and rate."""
        wanted = self.made_by([])
        held = store.manifest["made_by"]
        if held.get("data") != wanted["data"]:
            raise BadInput(f"{store.folder}: is a store of data={held.get('data')}, not of data={wanted['data']}")
        if store.sample_rate != self.spec.sample_rate:
            raise Incompatible(
                f"{store.folder}: is a store at {store.sample_rate} Hz, and data.sample_rate is "
                f"{self.spec.sample_rate}; set data.sample_rate={store.sample_rate}"
            )
        return store


def leaking(store: Store, rows: Rows) -> Rows:
    """Recordings of each split that are also, as a piece or as identical audio, in a split that is held out from it.

    Validation is held out from training, and test from both.
    """
    audio = store.digests.view("V16")[:, 0]  # (R,)
    found = {"test": rows["test"][:0]}
    for split, held_out in (("val", ["test"]), ("train", ["val", "test"])):
        held = np.concatenate([rows[other] for other in held_out])
        own = rows[split]
        same_piece = (store.pieces[own] >= 0) & np.isin(store.pieces[own], store.pieces[held])
        found[split] = own[same_piece | np.isin(audio[own], audio[held])]
    return found
