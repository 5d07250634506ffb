"""MAESTRO, any version: piano recordings with the notes that a Disklavier wrote (Hawthorne et al., ICLR 2019)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from wavespace.data.files.discovery import TABLE, Recording, Row, find_file, find_maestro, maestro_rows
from wavespace.data.files.download import RemoteZip, check_digest, extract
from wavespace.data.sources.recordings import Recordings
from wavespace.data.store.manifest import MANIFEST
from wavespace.settings import validate_settings

DIGESTS = {
    "maestro-v1.0.0.zip": "sha256:97471232457147d5bffa72db8c4897166ba52afd4a64197004b806c2ec85ad27",
    "maestro-v2.0.0.zip": "sha256:572c6054e8d2c7219aa4df9a29357da0f9789524c11fa38cef7d4bd8542c93f0",
    "maestro-v3.0.0.zip": "sha256:6680fea5be2339ea15091a249fbd70e49551246ddbd5ca50f1b2352c08c95291",
}


@validate_settings
@dataclass(kw_only=True, eq=False, repr=False)
class Maestro(Recordings):
    """MAESTRO with its official splits; notes are as long as they sound (the sustain pedal is resolved).

    Five pieces are in two of the official splits (in version 2 and 3): they leave training, or validation where the
    other split is test, unless `leaks` is "keep". Further settings are those of `Recordings`.

    Args:
        root: folder of `maestro-v*.csv` and the years' folders; or their zip archive; or a store made of them.
        splits: which of its splits to use: "train", "validation", "test".
        fraction: of each of these splits, by a hash of the names; a smaller one is a part of a larger one.
        url: of the zip archive, from which `wavespace prepare` fetches what is wanted and nothing else.
    """

    root: str = "data/maestro-v3.0.0"
    splits: Annotated[tuple[Literal["train", "validation", "test"], ...], Field(min_length=1)] = (
        "train",
        "validation",
        "test",
    )
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    url: str = "https://storage.googleapis.com/magentadata/datasets/maestro/v3.0.0/maestro-v3.0.0.zip"
    balance: Literal["time", "recording"] = "time"

    kind = "maestro"
    licence = "CC BY-NC-SA 4.0, Google LLC"
    citation = (
        "Hawthorne et al., Enabling factorized piano music modeling and generation with the MAESTRO dataset, ICLR 2019"
    )

    def __post_init__(self) -> None:
        self.read_from(self.root, ("notes",))

    def download(self, verify: bool = False) -> None:
        """Extract the wanted files that are missing from the zip in the folder, or fetch them from the remote zip."""
        archives = self.archives()
        if (self.place / MANIFEST).is_file() or (any(self.place.glob(TABLE)) and not self.missing()):
            return
        if not archives and not self.may_fetch():
            return
        remote = None if archives else RemoteZip(self.url)
        for archive in archives if verify else ():
            check_digest(archive, DIGESTS.get(archive.name))

        def take(wanted: Callable[[str], bool]) -> None:
            """Extract or fetch members, by their names without the archive's top folder."""

            def target(name: str) -> Path | None:
                inner = name.partition("/")[2] or name
                return Path(inner) if wanted(inner) else None

            for archive in archives:
                extract(archive, self.place, target)
            if remote:
                targets = {name: path for name in remote.members if (path := target(name))}
                remote.fetch(targets, self.place)

        take(lambda name: name in ("LICENSE", "README") or fnmatch(name, TABLE))
        take(self.missing().__contains__)

    def missing(self) -> set[str]:
        """Return the files of the wanted rows that are missing."""
        names = {name for row in self.wanted() for name in (row.midi, row.audio)}
        return {name for name in names if not find_file(self.place / name).is_file()}

    def found(self) -> list[Recording]:
        """Find the wanted performances whose audio and MIDI files are there."""
        rows = self.wanted()
        recordings = find_maestro(self.place, rows)
        self.absent = len(rows) - len(recordings)
        self.stated = {row.audio: row.seconds for row in rows}
        return recordings

    def describe(self) -> dict[str, Any]:
        """Return also how many files are missing, and recordings that are shorter than in the metadata."""
        facts = super().describe()
        if hasattr(self, "absent"):  # the store was made, or found, by the files
            facts["rows of the metadata without their files"] = self.absent
            seconds = self.store.frames / self.store.sample_rate
            stated = np.array([self.stated[name] for name in self.store.names])
            if short := [name for name, cut in zip(self.store.names, seconds < stated - 10) if cut]:
                facts["shorter by more than 10 s than the metadata says"] = f"{len(short)} ({', '.join(short[:3])})"
        return facts

    def wanted(self) -> list[Row]:
        """Return the rows of the metadata that `splits` and `fraction` choose.

        Raises:
            BadInput: there is no metadata, or it can't be read.
        """
        return maestro_rows(self.place, self.splits, self.fraction)
