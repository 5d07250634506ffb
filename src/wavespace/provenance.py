"""Which files this program wrote, so that it replaces no others.

A file that goes where a person says carries a mark: a text with a digest of the file without the mark, and digests of
the files that were written beside it, whose formats have no place for one. A file that was edited has another digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from wavespace.errors import BadInput
from wavespace.files import written_whole
from wavespace.signals import stop_deferred

MARK = re.compile(rb"Written by wavespace: (\{[^{}]*\})")
NEAR = 2**14
"""Bytes at the end of a file, at the start of a MIDI file, in which a mark is looked for."""

OWN = "this file"
"""The mark's name for the file that carries it."""


def marked(path: Path, data: bytes, beside: Mapping[Path, bytes] | None = None) -> bytes:
    """The content of a MIDI, HTML, Markdown or video file with its mark.

    Args:
        path: where it goes; what an earlier mark there says of other files is kept.
        data: the content.
        beside: contents of the files that are written together with it, in its folder or below.
    """
    names = {file.relative_to(path.parent).as_posix(): content for file, content in (beside or {}).items()}
    digests = (_mark(path) or {}) | {name: _digest(content) for name, content in names.items()}
    length = len(_block(path, digests | {OWN: _digest(b"")}))
    if path.suffix == ".mid":  # the first event of the first track
        size = int.from_bytes(data[18:22]) + length
        data = data[:18] + struct.pack(">I", size) + data[22:]
    block = _block(path, digests | {OWN: _digest(data)})
    return data[:22] + block + data[22:] if path.suffix == ".mid" else data + block


def write_marked(path: Path, data: bytes, beside: Mapping[Path, bytes] | None = None) -> None:
    """Write a file with its mark and those beside it, all or none: those that its mark does not name are foreign."""
    with stop_deferred(), ExitStack() as names:  # each has its name when all are on the disk
        for file, content in {**(beside or {}), path: marked(path, data, beside)}.items():
            temporary = names.enter_context(written_whole(file, mark=str(os.getpid())))
            temporary.write(content)
            temporary.flush()
            os.fsync(temporary.fileno())


def is_ours(path: Path) -> bool:
    """Whether a file carries a mark and is as it was written."""
    return _mark(path) is not None


def refuse_foreign(path: Path, beside: Sequence[Path] = (), *, overwrite: bool = False) -> None:
    """Raise `BadInput` unless every file that is about to be written is absent or was written by this program.

    Args:
        path: of the file that carries the mark.
        beside: files that its mark names.
        overwrite: replace other files, too; links become files.
    """
    digests = _mark(path) or {}
    for file in (path, *beside):
        why = None
        if file.is_dir() and not file.is_symlink():
            raise BadInput(f"{file}: is a folder; name a file with --out")
        if overwrite or not os.path.lexists(file):
            continue
        if file.is_symlink() or not file.is_file():
            why = "is a link" if file.is_symlink() else "is no file"
        elif not file.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
            why = "is write-protected"
        elif not (OWN in digests if file == path else _is(file, digests)):
            why = "is there, and was not written by wavespace or was changed since"
        if why:
            raise BadInput(f"{file}: {why}; --overwrite replaces it, --out names another place")


def _is(file: Path, digests: Mapping[str, str]) -> bool:
    known = {digest for name, digest in digests.items() if name.rpartition("/")[2] == file.name}
    return bool(known) and _digest(file.read_bytes()) in known


def _mark(path: Path) -> dict[str, str] | None:
    """What the mark of an unchanged file says; None if it has none, or was changed."""
    if not path.is_file():  # what is no file may have no end
        return None
    try:
        with path.open("rb") as file:
            if path.suffix != ".mid":
                file.seek(max(0, file.seek(0, os.SEEK_END) - NEAR))
            if not (found := MARK.findall(file.read(NEAR))):
                return None
        digests = json.loads(found[-1])
        data = path.read_bytes().replace(_block(path, digests), b"", 1)
        return digests if digests.get(OWN) == _digest(data) else None
    except (OSError, ValueError, AttributeError):
        return None


def _block(path: Path, digests: Mapping[str, str]) -> bytes:
    """The mark as the format of a file takes it."""
    names = json.dumps(dict(sorted(digests.items())))[1:-1]
    for sign in "{}>":  # the mark's own ends
        names = names.replace(sign, f"\\u{ord(sign):04x}")
    text = f"Written by wavespace: {{{names}}}".encode()
    if path.suffix == ".mid":  # a text event at time 0
        return b"\x00\xff\x01" + bytes([0x80 | len(text) >> 7, len(text) & 0x7F]) + text
    if path.suffix in (".html", ".md"):
        return b"<!-- " + text + b" -->\n"
    return struct.pack(">I4s", len(text) + 8, b"free") + text  # a box that players of MP4 pass over


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
