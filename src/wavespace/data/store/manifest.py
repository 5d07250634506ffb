"""The manifest of a store, checked against its files before memory is allocated: it may come from somebody else.

Imports no torch, and NumPy only where an array is read, as a run's identity is found at every start.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavespace.errors import BadInput, UserError
from wavespace.files import open_regular, read_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = 2
"""Increased when older stores can't be read any more; part of every store's name."""

MANIFEST, INDEX, NOTES = "manifest.json", "index.npz", "notes.npy"
FILE = re.compile(r"index\.npz|notes\.npy|shard-(\d{5})\.rows")
"""Names of files that a manifest may list."""


def shard_file(number: int) -> str:
    """The name of a file of rows."""
    return f"shard-{number:05}.rows"


MOST_BYTES = 2**26
"""Of a manifest: a hundred thousand recordings take 10 MB."""

KINDS: dict[str, Any] = {
    "provenance": dict, "licence": str, "citation": str, "sample_rate": int | float, "dtype": str, "width": int,
    "labels": list, "splits": dict, "notes": int, "longest_note": int | float, "clipped": int, "files": dict,
}  # fmt: skip


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json of a store, and check that its files are there and have their sizes.

    Raises:
        BadInput: there is no store, it is of another version, or a file is missing, cut off or damaged.
    """
    anew = f"delete {folder} and prepare it anew"
    try:
        manifest = json.loads(read_regular(folder / MANIFEST, MOST_BYTES))
        if manifest["format"] != FORMAT:
            raise BadInput(
                f"{folder}: has format {str(manifest['format'])[:40]}, and this version reads {FORMAT}; {anew}"
            )
        if "made_by" in manifest:  # its name in stores of before
            manifest["provenance"] = manifest.pop("made_by")
        _check_kinds(manifest)
        for name, file in manifest["files"].items():
            if not FILE.fullmatch(name):
                raise ValueError(f"it names {name[:80]!r}, which is no file of a store")
            with open_regular(folder / name) as opened:
                size = opened.seek(0, 2)
            if size != file["bytes"]:
                raise BadInput(f"{folder / name}: has {size} bytes and should have {str(file['bytes'])[:40]}; {anew}")
        return manifest
    except FileNotFoundError as error:
        if error.filename == str(folder / MANIFEST):
            raise BadInput(f"{folder}: there is no store here; prepare it first") from None
        raise BadInput(f"{error.filename}: can't be read ({error.strerror}); {anew}") from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise damaged(folder, error) from None


def damaged(folder: Path, error: Exception) -> BadInput:
    """Return the error for a store with a damaged manifest or index."""
    why = f"it has no {str(error)[:200]}" if isinstance(error, KeyError) else str(error)[:200] or type(error).__name__
    return BadInput(f"{folder}: its manifest or index is damaged ({why}); delete {folder} and prepare it anew")


def _check_kinds(manifest: Mapping[str, Any]) -> None:
    import numpy as np

    for key, kind in KINDS.items():
        if not isinstance(manifest[key], kind):
            raise ValueError(f"{key} is {str(manifest[key])[:40]!r}")
    if not 0 < manifest["sample_rate"] <= 1e6 or not 1 <= manifest["width"] <= 2**20:
        raise ValueError(f"{manifest['width']} values at {manifest['sample_rate']} Hz")
    if not 0 <= manifest["longest_note"] < 1e9:
        raise ValueError(f"a note of {manifest['longest_note']} s")
    dtype = np.dtype(manifest["dtype"])
    if dtype.kind not in "if" or dtype != dtype.newbyteorder("<"):
        raise ValueError(f"dtype is {manifest['dtype']!r}")
    for remark in manifest.get("remarks", []):
        if [type(text) for text in remark] != [str] * 3:
            raise ValueError(f"a remark is {str(remark)[:40]!r}")
    made_from = manifest.get("made_from") or {"files": {}}
    if not isinstance(made_from["files"], dict):
        raise ValueError(f"made_from is {str(made_from)[:40]!r}")


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of an `.npz` file, if it is not compressed and no array states more than the file holds.

    Raises:
        ValueError: it is compressed, damaged, or states more.
    """
    import numpy as np

    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                size = file.seek(0, 2)
                members = archive.infolist()
                if sum(info.file_size for info in members) > size or any(info.compress_type for info in members):
                    raise ValueError(f"{path.name} states more than it holds")
                for info in members:
                    with archive.open(info) as member:
                        _check_header(member, info.file_size, info.filename)
            file.seek(0)
            with np.load(file) as arrays:
                return dict(arrays)
        except Exception as error:  # whatever damaged bytes make zipfile and NumPy raise
            raise ValueError(f"{path.name}: {error}") from None


def _check_header(member: Any, size: int, name: str) -> None:
    import numpy as np

    version = np.lib.format.read_magic(member)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in headers:
        raise ValueError(f"{name} has a header of version {version}")
    shape, _, dtype = headers[version](member)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{name} states {shape} of {dtype}")


def check_index(manifest: Mapping[str, Any], index: dict[str, NDArray[Any]], notes: NDArray[Any]) -> None:
    """Check the index of a store against its manifest and the sizes of its files; make its integers int64.

    Raises:
        ValueError: they don't agree.
        KeyError: an array is missing.
    """
    import numpy as np

    row = np.dtype(manifest["dtype"]).itemsize * manifest["width"]
    shards = {int(found[1]): file["bytes"] // row for name, file in manifest["files"].items()
              if (found := FILE.fullmatch(name)) and found[1]}  # fmt: skip
    rows = np.zeros(max(shards, default=0) + 1, np.int64)
    rows[list(shards)] = list(shards.values())
    count = len(index["frames"])
    if not count or bytes(index["names"].tobytes()).count(b"\n") != count - 1:
        raise ValueError(f"it has {count} recordings, and other names")

    def within(name: str, low: Any, high: Any) -> NDArray[np.int64]:
        values = index[name]
        if values.shape != (count,) or values.dtype.kind not in "iu":
            raise ValueError(f"{name} is {values.shape} of {values.dtype}")
        if np.any(values < low) or np.any(values > high):
            raise ValueError(f"{name} is out of range")
        index[name] = values.astype(np.int64)
        return index[name]

    whole = rows[within("shard", 0, len(rows) - 1)]
    within("frames", 1, whole)
    within("offset", 0, whole - index["frames"].astype(np.int64))
    within("clipped", 0, 2**62)
    within("piece", -1, 2**62)
    within("split", 0, len(manifest["splits"]) - 1)
    ends = within("notes_end", 0, len(notes))
    if np.any(np.diff(ends) < 0) or ends[-1] != len(notes):
        raise ValueError("notes_end is out of order")
    for name in manifest["labels"]:
        within(f"label_{name}", -(2**62), 2**62)
    for name, shape, given in (
        ("digest", (count, 16), index["digest"]), ("outside", (manifest["width"],), index["outside"]),
        ("notes", (len(notes), 4), notes),
    ):  # fmt: skip
        if given.shape != shape or given.dtype.kind not in "iuf":
            raise ValueError(f"{name} is {given.shape} of {given.dtype}")
