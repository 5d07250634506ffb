"""The base of all datasets of audio files, which are read through a store."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from wavespace.data.base import DataModule, SampleRate, Seconds, Workers
from wavespace.data.files.discovery import (
    ARCHIVES,
    TRAIN_VAL_TEST,
    Recording,
    dataset_digest,
    folder_and_archive,
    listed,
    print_once,
    recordings_digest,
    store_digest,
    with_digests,
)
from wavespace.data.store.build import Samples, build_store, store_name
from wavespace.data.store.features import FeatureCache, FrontEnd
from wavespace.data.store.format import PCM, Store
from wavespace.data.store.manifest import MANIFEST
from wavespace.data.store.windows import StoreItems, StoreWindows
from wavespace.digests import DigestCache, Unread
from wavespace.errors import BadInput, Incompatible, UserError
from wavespace.spec import AudioSpec

FETCHED = ".fetched"
"""Marks a folder that `wavespace prepare` made: missing files are fetched into such a folder only."""
READER_VERSION = 4
"""Increased when other samples or notes are read from the same files; part of the name of every store."""
MOST_TO_CHECK = 2**30
"""Bytes that `is_prepared` reads at most."""
Rows = dict[str, NDArray[np.int64]]
"""Recordings of a store by split."""


@dataclass(kw_only=True, eq=False, repr=False)
class Recordings(DataModule):
    """A dataset of audio files, which are read once into a store, from which any window can be read.

    A subclass is such a dataclass, too, whose fields are its settings beside those below. It gives `kind` and `found`,
    `rows` where splits are not the store's own, `download` where there is something to download, and the licence and
    citation that are kept in the store's manifest; its `__post_init__` calls `read_from`.

    Args:
        sample_rate: in Hz; other rates are resampled.
        seconds: length of a training window.
        balance: what is equally likely in training: "time" (every second of music), "recording" (every recording), or
            the name of a label (every class of it).
        val_windows: windows at equal distances that are validated on; None: whole recordings, as in test.
        leaks: "drop" leaves out training recordings of a piece that is also held out, or with the same audio, and
            validation recordings of what is in test; "keep" leaves the splits as they are.
        batch_size: windows a batch.
        workers: loader processes; a store is fastest with none.
        seed: of the training windows.
        stores: folder in which stores are kept.
    """

    sample_rate: SampleRate = 22_050
    seconds: Seconds = 3.7
    balance: str = "time"
    val_windows: PositiveInt | None = None
    leaks: Literal["drop", "keep"] = "drop"
    batch_size: PositiveInt = 6
    workers: Workers = 0
    seed: int = 0
    stores: str = "data/stores"

    kind: ClassVar[str]
    """Names the dataset in manifests."""
    setting: ClassVar[str] = "root"
    """What `place` is called among the settings."""
    licence: ClassVar[str] = ""
    citation: ClassVar[str] = ""

    def read_from(self, place: str, labels: tuple[str, ...]) -> None:
        """Set where the dataset is, and which labels it has.

        Args:
            place: folder of the dataset; or its archive; or a store of it, which is then all that is needed.
            labels: "notes", or names of classes.
        """
        spec = AudioSpec(self.sample_rate, self.seconds, labels)
        super().__init__(spec, self.batch_size, self.workers, eval_batch_size=1)
        kinds = ("time", "recording", *(label for label in labels if label != "notes"))
        if self.balance not in kinds:
            raise ValueError(f"balance is {self.balance!r}; it is one of {', '.join(kinds)}")
        self.place, self.archive = folder_and_archive(place)
        self.stores_folder = Path(self.stores).expanduser()
        self.digest_cache = DigestCache(self.stores_folder)
        self.cache: FeatureCache | None = None

    # --- A subclass's own ---------------------------------------------------------------------------------

    @abstractmethod
    def found(self) -> list[Recording]:
        """Find the recordings on the disk, each with its split.

        Raises:
            BadInput: there are none, or a file can't be used.
        """

    def rows(self) -> Rows:
        """Return the recordings of each split, as rows of the store."""
        return {split: self.store.split(split) for split in TRAIN_VAL_TEST}

    def val_items(self, rows: NDArray[np.int64]) -> StoreItems:
        """Return the validation items of recordings `(R,)`: windows, or as in test."""
        if self.val_windows is None:
            return self.test_items(rows)
        return StoreItems.spread(self.store, rows, self.spec.samples, self.val_windows)

    def test_items(self, rows: NDArray[np.int64]) -> StoreItems:
        """Return the test items of recordings `(R,)`: all of each."""
        return StoreItems.whole(self.store, rows)

    def whole(self) -> StoreItems:
        """Return all recordings, as test items."""
        return self.test_items(np.arange(len(self.store)))

    # --- Shared -------------------------------------------------------------------------------------------

    def use_features(self, frontend: FrontEnd, settings: dict[str, Any]) -> None:
        """Give items features of a frozen front-end, from a store of them that `prepare_data` makes.

        Args:
            frontend: gives the features.
            settings: of the front-end; they name the store.
        """
        self.cache = FeatureCache(frontend, settings)

    def archives(self) -> list[Path]:
        """Return the archive that was given, or those in the folder."""
        inside = self.place.iterdir() if self.place.is_dir() else ()
        return [self.archive] if self.archive else sorted(path for path in inside if path.name.endswith(ARCHIVES))

    def may_fetch(self) -> bool:
        """Whether missing files may be fetched into the folder: `wavespace prepare` made it, or makes it here."""
        if not self.place.is_dir() or not any(self.place.iterdir()):
            self.place.mkdir(parents=True, exist_ok=True)
            (self.place / FETCHED).touch()
        return (self.place / FETCHED).is_file()

    def terms(self) -> str:
        """Return licence and citation, which a store's manifest has, too."""
        return f"Licence: {self.licence}\nPlease cite: {self.citation}" if self.licence else ""

    def provenance(self, recordings: Sequence[Recording]) -> dict[str, Any]:
        """Return everything that decides what a store of recordings holds; needs their digests."""
        content = recordings_digest(recordings)
        return {"data": self.kind, "sample_rate": self.sample_rate, "reader": READER_VERSION, "content": content}

    def contents(self) -> dict[str, str]:
        """Return the digest of the recordings in the open store, else of those on the disk."""
        if hasattr(self, "store"):
            return {self.setting: store_digest(self.store.manifest)}
        return {self.setting: dataset_digest(self.place, self.found, self.digest_cache)}

    def is_prepared(self) -> bool:
        """Whether there is a store; more than `MOST_TO_CHECK` bytes of new files are taken to have none."""
        if (self.place / MANIFEST).is_file():
            return True
        try:
            recordings = with_digests(self.found(), self.digest_cache, MOST_TO_CHECK)
        except Unread:
            return False
        return (self.stores_folder / store_name(self.provenance(recordings))).exists()

    def unprepared(self, found: Sequence[Recording] | None = None) -> str:
        """Return why `is_prepared` is false: what has changed in the recordings `found` since a store was made."""
        recordings = self.found() if found is None else found
        for store in self._earlier(recordings):
            what = _difference(store, with_digests(recordings, self.digest_cache))
            return f"{store.folder} was made of other files than there are in {self.place} now ({what})"
        return super().unprepared()

    def verify(self) -> None:
        """Compare the stores, and the files that they were made of, with their digests.

        Raises:
            BadInput: some differ.
        """
        self.store.verify()
        if self.store.features is not None:
            self.store.features.verify()
        if self.recordings:
            before = [file for recording in self.recordings for file in recording.digests]
            now = self.digest_cache.of([file.path for file in before], reread=True)
            if changed := [old.path for old, new in zip(before, now) if old.digest != new.digest]:
                raise BadInput(
                    f"{self.store.folder}: {listed(changed)} changed since it was made, with the same size and times; "
                    "touch what has changed and repeat the command"
                )

    def prepare_data(self) -> None:
        """Open the store and the store of features; build what is missing.

        Raises:
            BadInput: files are missing or can't be used.
            Incompatible: a store that was named has another sample rate.
        """
        if hasattr(self, "store"):
            return
        self.recordings: list[Recording] = []
        if (self.place / MANIFEST).is_file():
            store = self._checked(Store.open(self.place))
        else:
            self.recordings = with_digests(self.found(), self.digest_cache)
            provenance = self.provenance(self.recordings)
            store = build_store(
                self.stores_folder / store_name(provenance),
                self.recordings,
                Samples(self.spec.sample_rate),
                provenance,
                licence=self.licence,
                citation=self.citation,
                made_from={"place": os.path.abspath(self.place), "files": _files(self.recordings)},
            )
        if self.cache is not None:
            store.with_features(self.cache.store_for(store, self.stores_folder))
        self.store = store
        for line in self.remarks():
            print_once(line)

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that have recordings."""
        if not hasattr(self, "store"):
            self.prepare_data()
        self.in_split = self.rows()
        self.leaking = leaking(self.store, self.in_split)
        if self.leaks == "drop":
            self.in_split = {split: np.setdiff1d(rows, self.leaking[split]) for split, rows in self.in_split.items()}
        train, val, test = (self.in_split[split] for split in TRAIN_VAL_TEST)
        if len(train):
            balance: Any = self.store.labels[self.balance][train] if self.balance in self.store.labels else self.balance
            self.train_set = StoreWindows(self.store, train, self.spec.samples, self.seed, balance)
        if len(val):
            self.val_set = self.val_items(val)
        if len(test):
            self.test_set = self.test_items(test)

    def describe(self) -> dict[str, Any]:
        """Return recordings, hours and notes by split, leaks, clipped samples, and the place of the store."""
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
        facts |= {"clipped samples": self.store.manifest["clipped"], "store": str(self.store.folder)}
        if earlier := [str(store.folder) for store in self._earlier(self.recordings)]:
            facts["stores of what these files held before"] = ", ".join(earlier)
        return facts

    def remarks(self) -> list[str]:
        """Return a line on recordings with odd audio, and one on those with odd labels."""
        found: dict[str, dict[str, str]] = {}
        for kind, name, what in self.store.manifest.get("remarks", []):
            of_kind = found.setdefault(kind, {})
            of_kind[name] = f"{of_kind[name]}; {what}" if name in of_kind else f"{name} {what}"
        return [
            f"{self.store.folder}: look at the {kind} of {len(said)} of {len(self.store)} recordings: "
            f"{listed([*said.values()])}" + (f"; all are in {self.store.folder / MANIFEST}" if len(said) > 3 else "")
            for kind, said in found.items()
        ]

    def _earlier(self, recordings: Sequence[Recording]) -> list[Store]:
        """Find stores of the same folder and rate whose files have changed since, newest first."""
        found = []
        current = getattr(getattr(self, "store", None), "folder", Path()).name
        for manifest in self.stores_folder.glob(f"*/{MANIFEST}") if recordings else ():
            with suppress(UserError):
                store = Store.open(manifest.parent)
                held, made_from = store.manifest["provenance"], store.manifest.get("made_from") or {}
                same = [held.get("data"), held.get("sample_rate")] == [self.kind, self.spec.sample_rate]
                if same and made_from.get("place") == os.path.abspath(self.place) and store.folder.name != current:
                    found.append((manifest.stat().st_mtime, store))
        return [store for _, store in sorted(found, key=lambda pair: -pair[0])]

    def check_split(self, split: str) -> None:
        """Raise `BadInput` if a split has no recordings."""
        if not hasattr(self, f"{split}_set"):
            raise BadInput(f"{self.store.folder}: its {split} split has no recordings; it holds {self.describe()}")

    def _checked(self, store: Store) -> Store:
        """Return a store that was named in place of a folder, if it is of this dataset and sample rate."""
        held = store.manifest["provenance"]
        if held.get("data") != self.kind:
            raise BadInput(f"{store.folder}: is a store of data={str(held.get('data'))[:40]}, not of data={self.kind}")
        if [store.manifest[key] for key in ("dtype", "width")] != [PCM.str, 1]:
            raise BadInput(f"{store.folder}: is a store of features; name the one of the audio that they were made of")
        if store.sample_rate != self.spec.sample_rate:
            raise Incompatible(
                f"{store.folder}: is a store at {store.sample_rate} Hz, and data.sample_rate is "
                f"{self.spec.sample_rate}; set data.sample_rate={store.sample_rate}"
            )
        return store


def _files(recordings: Sequence[Recording]) -> dict[str, list[Any]]:
    """Return split, piece, labels and digests of each recording, by name."""
    return {recording.name: recording.content[1:] for recording in recordings}


def _difference(store: Store, recordings: Sequence[Recording]) -> str:
    """List the recordings that differ from those that a store was made of."""
    then, now = store.manifest["made_from"]["files"], _files(recordings)
    kinds = {
        "changed": [name for name in now if name in then and json.loads(json.dumps(now[name])) != then[name]],
        "new": [name for name in now if name not in then],
        "gone": [name for name in then if name not in now],
    }
    return "; ".join(f"{kind}: {listed(names)}" for kind, names in kinds.items() if names)


def leaking(store: Store, rows: Rows) -> Rows:
    """Find recordings of each split whose piece or identical audio is also in a split that is held out from it.

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
