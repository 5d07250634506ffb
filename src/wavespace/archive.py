"""Whether the archive of a checkpoint can be opened safely. Imports no torch."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

MOST_PICKLED, MOST_RECORDS = 8_000_000, 100_000
"""Bytes of all but the tensors' content, and files in the archive. A net of 200 tensors has 25,000 bytes in 210."""

_STORAGES = "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble"
_OTHERS = "Size device float64 float32 float16 bfloat16 int64 int32 bool"
_PICKLED = frozenset(
    {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
    | {f"torch {kind}Storage" for kind in _STORAGES.split()}
    | {f"torch {name}" for name in _OTHERS.split()}
)
"""What a checkpoint's pickle may name: what torch's weights-only loading takes, but for what allocates by a number."""

_OTHER_WAYS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "BYTEARRAY8"}
"""Opcodes that name or make objects, and that torch does not write."""


def fault(path: Path) -> str | None:
    """Why a file is no checkpoint that can be opened safely, from its archive and every byte in it; None if it is one.

    Torch itself allocates what the file asks for, and reads beyond the end of a storage that claims to be longer.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            names = {record.filename.casefold() for record in records}
            folders = {record.filename.partition("/")[0] for record in records}
            if len(names) < len(records) or len(folders) != 1 or len(records) > MOST_RECORDS or archive.comment:
                return "is not a checkpoint, or is damaged (its archive is not one that torch writes)"
            stored = all(r.compress_type == zipfile.ZIP_STORED and r.file_size == r.compress_size for r in records)
            if not stored or sum(record.file_size for record in records) > path.stat().st_size:
                return "is not a checkpoint, or is damaged (its archive holds more than the file is long)"
            pickled = archive.getinfo(f"{folders.pop()}/data.pkl")
            if pickled.file_size > MOST_PICKLED:
                return f"has {pickled.file_size:,} bytes beside its weights; {MOST_PICKLED:,} are the most"
            if (damaged := archive.testzip()) is not None:
                return f"is not a checkpoint, or is damaged ({damaged} is not as it was written)"
            for code, argument, _ in pickletools.genops(archive.read(pickled)):
                if code.name in _OTHER_WAYS or (code.name == "GLOBAL" and argument not in _PICKLED):
                    return f"is not a checkpoint, or is damaged (it holds {argument or code.name}, not plain data)"
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError, ValueError, OSError, EOFError) as error:
        return f"is not a checkpoint, or is damaged ({type(error).__name__})"
    return None
