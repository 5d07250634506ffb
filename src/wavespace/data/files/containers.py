"""Audio files as streams that libsndfile decodes to their end, whatever their headers state.

libsndfile takes the length of a file from its header, or guesses it, and stops there. This module looks at the frames,
pages and chunks of the file instead. Where they differ from the header it gives the bytes of each stream with a
header that is right.
"""

from __future__ import annotations

import io
import re
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import inf
from mmap import mmap
from pathlib import Path
from typing import NamedTuple, cast

from wavespace.errors import BadInput

Piece = bytes | tuple[int, int]
"""Bytes, or the first and the end byte of a stretch of a file."""


class Stream(NamedTuple):
    """What a decoder is given, and its length in samples where libsndfile would have to guess it."""

    pieces: tuple[Piece, ...] | None = None
    """None: the file as it is."""
    frames: int | None = None
    stated: float = 1.0
    """The length that its header states, by the one that is there; infinity where its end is not marked."""


MPEG = {".mp3", ".mp2", ".mp1", ".mpga"}
LONGEST = 1441
"""Bytes of the longest MPEG frame. What lies between two frames and is no longer is what is left of a cut one."""

BITRATES = {  # kbit/s by version 1 or 2, and layer
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


class Pieces(io.RawIOBase):
    """A read-only file that is made of pieces of another, and of other bytes."""

    def __init__(self, data: mmap, pieces: Sequence[Piece]) -> None:
        self.data, self.pieces = data, pieces
        sizes = (len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces)
        self.starts = list(accumulate(sizes, initial=0))
        self.place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = max(0, offset + (0, self.place, self.starts[-1])[whence])
        return self.place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        done = 0
        while done < len(buffer) and self.place < self.starts[-1]:
            number = bisect_right(self.starts, self.place) - 1
            piece, inner = self.pieces[number], self.place - self.starts[number]
            wanted = min(self.starts[number + 1] - self.place, len(buffer) - done)
            source, begin = (piece, inner) if isinstance(piece, bytes) else (self.data, piece[0] + inner)
            got = source[begin : begin + wanted]
            if not got:
                break
            buffer[done : done + len(got)] = got
            done, self.place = done + len(got), self.place + len(got)
        return done


def streams(data: mmap, path: Path) -> list[Stream]:
    """The streams of an audio file one after another; `[Stream()]` where libsndfile reads all of it as it is.

    Args:
        data: what the file holds.
        path: its name.

    Raises:
        BadInput: an MPEG file is damaged in its midst.
    """
    start = _after_tags(data, 0)
    magic = data[start : start + 4]
    if reader := READERS.get(magic):
        return reader(data)
    if path.suffix.lower() in MPEG or start or _frame(data, 0):
        return _mpeg(data, start, path)
    return [Stream()]


def _after_tags(data: mmap, place: int) -> int:
    """The place after the tags (ID3, APE) that begin at a place of a file."""
    while True:
        head = data[place : place + 32]
        if head[:3] == b"ID3" and len(head) >= 10:
            size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
            place += 10 + size + (10 if head[5] & 0x10 else 0)
        elif head[:3] == b"TAG":
            place += 128
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            place += 32 + (int.from_bytes(head[12:16], "little") if head[23] & 0x20 else 0)
        else:
            return place


def _wav(data: mmap) -> list[Stream]:
    """Files that were put one after another; a file of more than 4 GB has its size in a chunk before."""
    if data[:4] == b"RF64":
        place = data.find(b"data", 36) + 8
        if data[12:16] != b"ds64" or place < 8 or data[place - 4 : place] not in (bytes(4), b"\xff" * 4):
            return [Stream()]
        return [_sound(data, place, int.from_bytes(data[28:36], "little"), 28, "<Q")]
    found: list[Stream] = []
    start = 0
    while True:
        place = start + 12
        while place + 8 <= len(data) and data[place : place + 4] != b"data":
            place += 8 + (size := int.from_bytes(data[place + 4 : place + 8], "little")) + size % 2
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        stream = _sound(data, place + 8, size, place + 4, "<I", start)
        if stream.pieces:
            return [*found, stream]
        following = min(len(data), place + 8 + size + size % 2)
        while following + 12 <= len(data) and data[following : following + 4] != b"RIFF":
            following += 8 + (size := int.from_bytes(data[following + 4 : following + 8], "little")) + size % 2
        if following + 12 > len(data) or data[following + 8 : following + 12] != b"WAVE":
            return [*found, stream._replace(pieces=((start, len(data)),) if found else None)]
        found.append(Stream(((start, following),)))
        start = following


def _sound(data: mmap, place: int, size: int, field: int, form: str, start: int = 0, extra: int = 0) -> Stream:
    """The stream of a file whose data begin at a place, and have so many bytes by its header.

    They go to the end of the file where the size was never filled in, or not after the first samples: where what
    follows is neither chunks nor padding.

    Args:
        data: what the file holds.
        place: of the first byte of the data.
        size: what its header states.
        field: the place of the size in the header.
        form: of the size there, for `struct`.
        start: of the file, if it follows another.
        extra: bytes that the size counts before the data.
    """
    there, width = len(data) - place, struct.calcsize(form)
    if size > there and _is_unknown(size):
        size = 0
    end = place + size
    rest = len(data) - end - size % 2
    chunk = ">4sq" if form == ">Q" else form[0] + "4sI"
    if rest <= 0 or rest < min(size // 100, 2**16) or any(_chunks(data, at, chunk) for at in (end, end + size % 2)):
        return Stream(stated=_times(size, there))
    if size and not NOT_ZERO.search(data, end):
        return Stream()
    filled = struct.pack(form, min(there + extra, 2 ** (8 * width) - 1))
    head = data[start:field] + filled + data[field + width : place]
    return Stream((head, (place, len(data))), stated=size / there or 1.0)


def _times(stated: int, there: int) -> float:
    """`Stream.stated` of a file that is cut short if its header states more bytes or frames than are there."""
    return stated / there if 0 < there < stated and not _is_unknown(stated) else 1.0


def _is_unknown(size: int) -> bool:
    """Whether a program that writes to a pipe states this: -1, or the largest number or so."""
    return any(abs(size - 2**bits) <= 2**16 for bits in (31, 32, 63, 64))


NOT_ZERO = re.compile(b"[^\0]")
BEHIND = {b"LIST", b"JUNK", b"junk", b"PAD ", b"FLLR", b"id3 ", b"ID3 ", b"bext", b"iXML", b"_PMX", b"cue ", b"RIFF"}
"""Names of chunks that lie behind the samples; of these, one may be cut short."""


def _chunks(data: mmap, place: int, form: str) -> bool:
    """Whether chunks, or tags, lie from a place to the end of the file."""
    place, head = _after_tags(data, place), struct.calcsize(form)
    while place + head <= len(data):
        name, size = struct.unpack(form, data[place : place + head])
        if name in BEHIND and place + head + size > len(data):
            return True
        printed = name.isascii() and name.decode("latin-1").isprintable()
        if not printed or not 0 <= size <= len(data) - place - head:
            return False
        place += head + size
        place = _after_tags(data, place + (size % 2 if data[place : place + 1] == b"\0" else 0))
    return True


def _au(data: mmap) -> list[Stream]:
    offset = int.from_bytes(data[4:8])
    if not 24 <= offset < len(data):
        return [Stream()]
    return [_sound(data, offset, int.from_bytes(data[8:12]), 8, ">I")]


def _aiff(data: mmap) -> list[Stream]:
    place = 12
    while place + 16 <= len(data):
        name, size = struct.unpack(">4sI", data[place : place + 8])
        if name == b"SSND":
            return [_sound(data, place + 16, max(0, size - 8), place + 4, ">I", extra=8)]
        place += 8 + size + size % 2
    return [Stream()]


def _caf(data: mmap) -> list[Stream]:
    place = 8
    while place + 12 <= len(data):
        name, size = struct.unpack(">4sQ", data[place : place + 12])
        if name == b"data":
            return [_sound(data, place + 12, size, place + 4, ">Q")]
        place += 12 + size
    return [Stream()]


def _w64(data: mmap) -> list[Stream]:
    """Libsndfile reads on by itself where its header states too little."""
    place = 40
    while place + 24 <= len(data):
        size = int.from_bytes(data[place + 16 : place + 24], "little")
        if data[place : place + 4] == b"data":
            return [Stream(stated=_times(size - 24, len(data) - place - 24))]
        place += max(24, size + -size % 8)
    return [Stream()]


def _flac(data: mmap) -> list[Stream]:
    """Files that were put one after another: each begins with its mark and the header of its first block.

    A header that states fewer samples than the file has is made to state none.
    """
    starts = [match.start() for match in re.finditer(b"fLaC[\x00\x80]\x00\x00\x22", data)]
    if len(starts) == 1:
        (start,) = starts
        if 0 < int.from_bytes(data[start + 18 : start + 26]) % 2**36 <= _last_flac_frame(data, start):
            head = data[start : start + 21] + bytes([data[start + 21] & 0xF0]) + bytes(4)
            return [Stream((head, (start + 26, len(data))))]
    if len(starts) < 2:
        return [Stream()]
    return [Stream(((first, end),)) for first, end in zip(starts, [*starts[1:], len(data)])]


def _last_flac_frame(data: mmap, start: int) -> int:
    """The first sample of the last frame of a FLAC file, by the frame's own header; -1 where none is found."""
    place, low = len(data), max(start + 42, len(data) - 2**20)
    while (place := data.rfind(b"\xff", low, place)) >= 0:
        head = data[place : place + 16]
        if len(head) < 16 or head[1] & 0xFE != 0xF8 or head[2] < 16 or head[2] & 15 == 15:
            continue
        ones = 8 - (head[4] ^ 0xFF).bit_length()
        tail = head[5 : 4 + max(1, ones)]  # the number is coded as a character in UTF-8
        number = head[4] & (0x7F >> ones)
        for byte in tail:
            number = number << 6 | byte & 0x3F
        size, rate = head[2] >> 4, head[2] & 15
        end = 5 + len(tail) + (size - 5 if size in (6, 7) else 0) + (1 if rate == 12 else 2 if rate > 12 else 0)
        crc = 0
        for byte in head[:end]:
            crc ^= byte
            for _ in range(8):
                crc = (crc << 1 ^ (0x107 if crc & 0x80 else 0)) & 0xFF
        if crc == head[end]:
            return number if head[1] & 1 else number * int.from_bytes(data[start + 10 : start + 12])
    return -1


def _ogg(data: mmap) -> list[Stream]:
    """Streams that were chained, each with pages of its own; FLAC without the pages, which libsndfile can't read."""
    found: list[list[tuple[int, int, int]]] = []  # of each stream its pages: where they begin, their data, their end
    stated: list[float] = []
    place, began = 0, False
    while (place := data.find(b"OggS", place)) >= 0 and place + 27 <= len(data):
        first, content = data[place + 5] & 2, place + 27 + data[place + 26]
        end = content + sum(data[place + 27 : content])
        if data[end : end + 4] != b"OggS" and (following := data.find(b"OggS", content, end)) >= 0:
            end = following  # the page was cut off
        if not found or (first and not began):
            found.append([])
            stated.append(inf)
        found[-1].append((place, content, min(end, len(data))))
        stated[-1] = 1.0 if data[place + 5] & 4 and end <= len(data) else inf
        place, began = end, bool(first)
    flac = [pages for pages in found if data[pages[0][1] : pages[0][1] + 5] == b"\x7fFLAC"]
    if len(found) < 2 and not flac:
        return [Stream(stated=stated[0])]
    return [
        Stream(
            tuple((content + (9 if k == 0 else 0), end) for k, (_, content, end) in enumerate(pages))
            if pages in flac
            else ((pages[0][0], pages[-1][2]),),
            stated=its,
        )
        for pages, its in zip(found, stated)
    ]


READERS = {
    b"OggS": _ogg, b"fLaC": _flac, b"RIFF": _wav, b"RF64": _wav, b"caff": _caf, b".snd": _au, b"FORM": _aiff,
    b"riff": _w64,
}  # fmt: skip
"""By the first bytes of a file."""
SYNC, TAGS = re.compile(b"\xff[\xe2-\xff]"), re.compile(b"Xing|Info|VBRI")
TAG = re.compile(b"ID3[\x02-\x04]|APETAGEX")

Frame = tuple[int, tuple[int, int, int, bool]]
"""Bytes of an MPEG frame; version bits, layer, sample rate, and whether it has one channel."""


def _frame(data: mmap, place: int) -> Frame | None:
    """The MPEG frame that begins at a place, if one does; not one of free format."""
    head = data[place : place + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer, bits, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return None
    return _size(head), (version, layer, RATES[version][rate], head[3] >> 6 == 3)


def _size(head: bytes) -> int:
    """Bytes of the frame that begins with these four."""
    version, layer, padding = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 1 & 1
    low, hertz = int(version != 3), RATES[version][head[2] >> 2 & 3]
    bitrate = 1000 * BITRATES[1 + low, layer][(head[2] >> 4) - 1]
    if layer == 1:
        return 4 * (12 * bitrate // hertz + padding)
    return (72 if layer == 3 and low else 144) * bitrate // hertz + padding


def _frames(data: mmap, place: int, path: Path) -> Iterator[tuple[int, Frame]]:
    """Place and size of each whole MPEG frame; tags, and the rest of a frame that was cut off, are passed over."""
    expected: tuple[int, int, int, bool] | None = None
    start = place
    while place < len(data):
        frame = _frame(data, place)
        if frame and frame[1] == expected:
            if place + frame[0] <= len(data):
                yield place, frame
            place += frame[0]
        elif (after := _after_tags(data, place)) > place:
            place = after
        else:
            found = _next_frame(data, place)
            if found is None:
                return
            cut = expected and TAG.search(data, max(place - LONGEST, start), place + LONGEST)
            if cut and _after_tags(data, cut.start()) > place:  # a tag within a frame
                place = _after_tags(data, cut.start())
                continue
            if expected and found - place > LONGEST:
                raise BadInput(f"{path}: is damaged or cut off at byte {place} of {len(data)}; get the file anew")
            place, frame = found, _frame(data, found)
            expected = frame[1] if frame else None


def _next_frame(data: mmap, place: int) -> int | None:
    """Where the next three frames of one kind follow one another, or fewer up to the end of the file."""
    for match in SYNC.finditer(data, place):
        here, kind = match.start(), None
        for _ in range(3):
            frame = _frame(data, here)
            if frame is None or kind not in (None, frame[1]):
                break
            here, kind = here + frame[0], frame[1]
            if here >= len(data) or _after_tags(data, here) > here:
                return match.start()
        else:
            return match.start()
    return None


def _mpeg(data: mmap, start: int, path: Path) -> list[Stream]:
    """Streams of frames of one kind; a header (Xing) begins a new one, and counts the frames after it."""
    found: list[tuple[bytes, list[tuple[int, int]]]] = []
    kind = None
    for place, (size, its_kind) in _frames(data, start, path):
        tag = its_kind[1] == 3 and TAGS.search(data, place, place + 48)
        if tag or its_kind != kind:
            kind = its_kind
            found.append((data[place : place + size] if tag else b"", []))
        if not tag:
            found[-1][1].append((place, place + size))
    made: list[Stream] = []
    for head, frames in found:
        stated = _stated(head)
        times = _times(stated or 0, len(frames))
        if frames and stated is not None and b"VBRI" not in head[:48]:
            size = len(head) + sum(end - begin for begin, end in frames)
            made.append(Stream((_counted(head, stated, len(frames), size), *_joined(frames)), stated=times))
        elif frames:  # libsndfile guesses the length from the size of the file and of the first frame: make it large;
            # it looks for a tag in the last 128 bytes
            kind = cast(Frame, _frame(data, frames[0][0]))[1]
            samples = 384 if kind[1] == 1 else 576 if kind[1] == 3 and kind[0] != 3 else 1152
            made.append(
                Stream((*_joined(frames), (len(data), len(data) + 2**40), bytes(128)), samples * len(frames), times)
            )
    return made


def _stated(head: bytes) -> int | None:
    """The number of frames that a Xing or VBRI header states."""
    if not (tag := TAGS.search(head, 0, 48)):
        return None
    if tag.group() == b"VBRI":
        return int.from_bytes(head[tag.end() + 10 : tag.end() + 14])
    return int.from_bytes(head[tag.end() + 4 : tag.end() + 8]) if head[tag.end() + 3] & 1 else None


def _counted(head: bytes, stated: int, count: int, size: int) -> bytes:
    """A Xing header that counts the frames, and the bytes with its own, that are there."""
    frame, tag = bytearray(head), TAGS.search(head, 0, 48)
    if tag and count != stated:
        flags, place = head[tag.end() + 3], tag.end() + 4
        frame[place : place + 4] = count.to_bytes(4)
        if flags & 2:
            frame[place + 4 : place + 8] = size.to_bytes(4)
        lame = place + 4 * (flags & 1) + 2 * (flags & 2) + 25 * (flags & 4) + (flags & 8) // 2
        frame[lame + 22] &= 0xF0  # samples to leave out at the end: they are not there, or are music
        frame[lame + 23] = 0
    return bytes(frame)


def _joined(frames: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches that touch made one."""
    first = [begin for k, (begin, _) in enumerate(frames) if k == 0 or begin != frames[k - 1][1]]
    last = [end for k, (_, end) in enumerate(frames) if k + 1 == len(frames) or end != frames[k + 1][0]]
    return list(zip(first, last))
