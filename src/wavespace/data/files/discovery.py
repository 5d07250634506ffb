"""The files of each dataset, and the digests of their content.

Imports no torch: a finished run is found by the digests of its data. Settings have the names and defaults of the
datamodules, which read the files that are found here.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unicodedata import normalize

from wavespace.data.store.manifest import MANIFEST, read_manifest
from wavespace.digests import DigestCache, FileDigest, digest
from wavespace.errors import BadInput
from wavespace.files import named_file, read_regular
from wavespace.provenance import is_ours
from wavespace.text import counted, printable

if TYPE_CHECKING:
    from wavespace.data.base import Notes

FORMATS = {
    "WAV": (".wav", ".wave"), "RF64": (".rf64",), "W64": (".w64",), "FLAC": (".flac",), "CAF": (".caf",),
    "AIFF": (".aif", ".aiff", ".aifc"), "AU": (".au", ".snd"), "NIST": (".nist", ".sph"), "SVX": (".8svx", ".iff"),
    "VOC": (".voc",), "IRCAM": (".sf",), "AVR": (".avr",), "PAF": (".paf",), "PVF": (".pvf",), "XI": (".xi",),
    "OGG": (".ogg", ".oga", ".opus"), "MP3": (".mp3", ".mp2", ".mp1", ".mpga"),
}  # fmt: skip
"""Endings of files by soundfile's names of formats; of two files of one recording that of the first format is read."""
UNREAD = {
    ".m4a", ".m4b", ".mp4", ".aac", ".alac", ".wma", ".ape", ".wv", ".mka", ".webm", ".weba", ".ac3", ".amr", ".dsf",
    ".dff", ".tta", ".mpc", ".ra", ".3gp", ".mov",
}  # fmt: skip
"""Endings of audio files that soundfile does not read."""
NOT_READ = "files are left out, whose format can't be read (ffmpeg -i FILE FILE.flac converts one)"
MIDI = (".mid", ".midi")
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")
INSTRUMENTS = (
    "clarinet", "distorted electric guitar", "female singer", "flute", "piano", "tenor saxophone", "trumpet", "violin",
)  # fmt: skip
"""Classes of Medley-solos-DB."""
CLIP_BYTES = 524_332
METADATA = "Medley-solos-DB_metadata.csv"
TABLE = "maestro-v*.csv"
MOST_BYTES = 2**26
"""Of metadata; that of MAESTRO has 0.3 MB."""
SPLITS = {"train": "train", "training": "train", "validation": "val", "test": "test"}
"""Our name of a split, by those of MAESTRO and Medley-solos-DB."""
TRAIN_VAL_TEST = ("train", "val", "test")


@dataclass(frozen=True)
class Recording:
    """Files that become one recording of a store. It is sent to other processes, so it must pickle.

    Attributes:
        name: unique in its store, without line breaks.
        audio: a file that soundfile reads.
        split: "train", "val" or "test", or "" where the datamodule decides.
        notes: called once, in the process that reads the audio, such as `partial(read_notes, path)`; None: it has none.
        labels: class indices by name; all recordings of a store have the same names.
        piece: the music that is played; recordings of one piece on both sides of a split are a leak. "": unknown.
        score: the file that `notes` reads.
        digests: of its files; a file that has changed by the time it is read is refused.
    """

    name: str
    audio: Path
    split: str
    notes: Callable[[], Notes] | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    piece: str = ""
    score: Path | None = None
    digests: tuple[FileDigest, ...] = ()

    @property
    def content(self) -> list[Any]:
        """Everything that decides what a store holds of it, as plain data; needs `digests`."""
        return [self.name, self.split, self.piece, dict(self.labels), *(file.digest for file in self.digests)]


def with_digests(recordings: Sequence[Recording], digests: DigestCache, most: float = math.inf) -> list[Recording]:
    """Return recordings with the digests of their files."""
    paths = [[r.audio] if r.score is None else [r.audio, r.score] for r in recordings]
    found = iter(digests.of([path for each in paths for path in each], most))
    return [replace(r, digests=tuple(next(found) for _ in each)) for r, each in zip(recordings, paths)]


def recordings_digest(recordings: Sequence[Recording]) -> str:
    """Return the digest of the content of recordings, wherever they lie; the manifest of their store has it."""
    return digest([recording.content for recording in recordings])


def dataset_digest(
    place: Path, find: Callable[[], list[Recording]], digests: DigestCache, most: float = math.inf
) -> str:
    """Return `recordings_digest` of what `find` gives, or of the recordings of the store in this place."""
    if not (place / MANIFEST).is_file():
        return recordings_digest(with_digests(find(), digests, most))
    return store_digest(read_manifest(place))


def store_digest(manifest: Mapping[str, Any]) -> str:
    """Return the digest of the recordings that a store was made of; older stores lack it."""
    return str(manifest["provenance"].get("content") or digest(manifest["files"]))


def sounding_notes(path: Path) -> Notes:
    """Read the notes of a MIDI file as long as they sound: the sustain pedal is resolved."""
    from wavespace.data.files.midi import apply_pedal, read_midi

    performance = read_midi(path)
    return apply_pedal(performance.notes, performance.pedal)


def folder_and_archive(place: str | Path) -> tuple[Path, Path | None]:
    """Return the folder of a dataset, and its archive if that was given, which is unpacked beside itself."""
    given = Path(place).expanduser()
    suffix = next((suffix for suffix in ARCHIVES if given.name.endswith(suffix)), "")
    return given.with_name(given.name.removesuffix(suffix)), given if suffix else None


# --- A folder of recordings ----------------------------------------------------------------------------------


@cache
def audio_suffixes() -> tuple[str, ...]:
    """Endings of the audio files that the installed soundfile reads."""
    import soundfile

    return tuple(end for name, ends in FORMATS.items() if name in soundfile.available_formats() for end in ends)


def list_files(place: Path) -> list[Path]:
    """List files at any depth, through links, each folder once; leave out hidden ones and __MACOSX.

    Print which links lead nowhere, and what is a pipe or a device.
    """
    found, odd = list[Path](), list[Path]()
    folders, links, seen = [place] if place.is_dir() else [], list[Path](), set[tuple[int, int]]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            state, entries = folder.stat(), sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise BadInput(f"{folder}: can't be read ({error.strerror})") from None
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            with suppress(OSError):  # a link to itself, or into a folder that may not be read
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(Path(entry.path))
                    continue
                if entry.is_file():
                    found.append(Path(entry.path))
                    continue
            odd.append(Path(entry.path))
    print_left_out(place, "names are left out, whose file is missing, a pipe or a device", sorted(odd))
    return sorted(found)


def find_audio_folder(place: Path, notes: bool = True) -> list[Recording]:
    """Find audio files at any depth, with the MIDI file of the same stem beside each; print what is left out.

    Files of one stem are one recording. Names are compared as Unicode characters, however they are composed.
    """
    if not place.is_dir():
        said = "is a file" if place.exists() else "there is no such folder"
        raise BadInput(f"{place}: {said}; set data.folder to a folder of recordings")
    audio, midi, left = _by_stem(place)
    found = []
    for stem, paths in audio.items():
        path, *others = sorted(paths, key=lambda path: audio_suffixes().index(path.suffix.lower()))
        left["audio files are left out, as another file of the same stem is read"] += others
        written = midi.pop(stem, [])
        # A transcription of this program that nobody has corrected is no ground truth.
        scores = [file for file in written if not is_ours(file)] if notes else []
        left["MIDI files are left out, as another file of the same stem is read"] += scores[1:]
        score = next(iter(scores), None)
        name = path.relative_to(place).as_posix()
        if "\n" in name or name.encode(errors="ignore").decode() != name:
            left["audio files are left out, whose names are not UTF-8 or have a line break"].append(path)
        elif notes and not score:
            why = "whose MIDI file is a transcription that wavespace wrote and nobody changed"
            why = why if written else "without a MIDI file of the same stem"
            left[f"recordings are left out, {why}"].append(path)
        else:
            read = partial(sounding_notes, score) if score else None
            found.append(Recording(name, path, "", read, score=score))
    if notes:
        left["MIDI files are left out, without an audio file of the same stem"] += [
            m for each in midi.values() for m in each
        ]
    for what, paths in left.items():
        print_left_out(place, what, paths)
    if not found and audio and notes:
        raise BadInput(
            f"{place}: there are no audio files with a MIDI file of the same stem in it, but {len(audio)} without; "
            "data.notes=false takes those, to train task=reconstruction or task=self_salience"
        )
    if not found:
        what = "audio files with a MIDI file of the same stem" if notes else "audio files"
        scored = f", or render its MIDI files: data=rendered data.midi={place}" if midi else ""
        kinds = ", ".join(audio_suffixes())
        raise BadInput(f"{place}: there are no {what} in it ({kinds}); set data.folder to a folder of them{scored}")
    return sorted(found, key=lambda recording: recording.audio)


def print_left_out(place: Path, what: str, paths: Sequence[Path]) -> None:
    """Print how many files of a folder are left out, why, and the first of them."""
    if paths:
        print_once(
            f"{place}: {counted(len(paths), what)}: {listed([path.relative_to(place).as_posix() for path in paths])}"
        )


def listed(names: Sequence[object]) -> str:
    """Join the first three names, and say how many more there are."""
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _by_stem(place: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]], dict[str, list[Path]]]:
    """Audio files and MIDI files by what their names are without their endings; and what can't be read, by reason."""
    audio: dict[str, list[Path]] = defaultdict(list)
    midi: dict[str, list[Path]] = defaultdict(list)
    left: dict[str, list[Path]] = defaultdict(list)
    for path in list_files(place):
        ending, stem = path.suffix.lower(), normalize("NFC", path.relative_to(place).with_suffix("").as_posix())
        if ending in audio_suffixes():
            audio[stem].append(path)
        elif ending in MIDI:
            midi[stem].append(path)
        elif ending in UNREAD and not is_ours(path):
            left[NOT_READ].append(path)
    return audio, midi, left


def find_file(path: Path) -> Path:
    """Return the file that metadata names, also with its ending in other case or its Unicode composed otherwise."""
    if path.is_file():
        return path
    found = _named(path.parent).get(normalize("NFC", path.name).lower(), path)
    return named_file(found.parent, found.name)


@cache
def _named(folder: Path) -> dict[str, Path]:
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return {normalize("NFC", path.name).lower(): path for path in entries if path.is_file()}


@cache
def print_once(what: str) -> None:
    """Print a line once: a folder is searched several times."""
    print(f"wavespace: {printable(what)}", file=sys.stderr)


# --- MAESTRO -------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One performance, as the metadata of MAESTRO names it."""

    audio: str
    midi: str
    split: str
    piece: str
    seconds: float


def find_maestro(place: Path, rows: Sequence[Row]) -> list[Recording]:
    """The performances whose two files are there, of some rows of the metadata."""
    found = [
        Recording(row.audio, audio, SPLITS[row.split], partial(sounding_notes, midi), piece=row.piece, score=midi)
        for row in rows
        if (audio := find_file(place / row.audio)).is_file() and (midi := find_file(place / row.midi)).is_file()
    ]
    if not found:
        raise BadInput(
            f"{place}: none of the {len(rows)} recordings of its metadata has both its files here; "
            "wavespace prepare data=maestro fetches them into an empty folder"
        )
    return found


def maestro_rows(
    place: Path, splits: Sequence[str] = ("train", "validation", "test"), fraction: float = 1.0
) -> list[Row]:
    """The rows of the newest MAESTRO metadata in a folder, of some splits and a fraction of each."""
    tables = sorted(place.glob(TABLE))
    if not tables:
        raise BadInput(
            f"{place}: there is no maestro-v*.csv in it; set data.root to the unzipped MAESTRO folder, "
            "to its zip, or to a store of it, or fetch it with wavespace prepare data=maestro"
        )
    rows = maestro_metadata(tables[-1])
    chosen: set[str] = set()
    for split in splits:
        names = sorted((row.audio for row in rows if row.split == split), key=_rank)
        chosen.update(names[: math.ceil(fraction * len(names))])
    return [row for row in rows if row.audio in chosen]


def maestro_metadata(table: Path) -> list[Row]:
    """Read the rows of a MAESTRO CSV of any version.

    Raises:
        BadInput: it can't be read, or is another table.
    """
    rows = []
    try:
        for row in _table(table):
            if row["split"] not in SPLITS:
                raise KeyError(row["split"])
            piece = f"{row['canonical_composer']}: {row['canonical_title']}"
            audio, midi = row["audio_filename"], row["midi_filename"]
            for name in (audio, midi):
                named_file(table.parent, name)
            rows.append(Row(audio, midi, row["split"], piece, float(row["duration"])))
    except BadInput:
        raise
    except (KeyError, TypeError, ValueError) as fault:
        raise BadInput(f"{table}: is not MAESTRO's metadata ({str(fault)[:200]} is missing or unknown)") from None
    return rows


def _table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by the names in its first line."""
    try:
        text = read_regular(path, MOST_BYTES).decode("utf-8-sig")
        return list(csv.DictReader(io.StringIO(text, newline="")))
    except (FileNotFoundError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: can't be read as CSV ({error})") from None


def _rank(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


# --- Medley-solos-DB -----------------------------------------------------------------------------------------


def find_medley_solos(place: Path) -> tuple[list[Recording], int]:
    """Find clips, in the metadata's order, and count its rows without a file.

    Raises:
        BadInput: there are none, or a clip is damaged.
    """
    there = {path.with_suffix(path.suffix.lower()).name: path for path in list_files(place)}
    found, absent = [], 0
    for name, split, labels in medley_clips(place):
        path = there.get(f"{name}.wav")
        if path is None:
            absent += 1
            continue
        if (size := path.stat().st_size) != CLIP_BYTES:
            raise BadInput(f"{path}: has {size} bytes, and every clip has {CLIP_BYTES}; get the file anew")
        found.append(Recording(name, path, split, labels=labels, piece=f"song {labels['song']}"))
    if not found:
        raise BadInput(
            f"{place}: there is none of the {absent} clips of {METADATA}; set data.root to a folder that "
            "holds them, or fetch them with wavespace prepare data=medley_solos"
        )
    return found, absent


def medley_clips(place: Path) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Yield name, split and labels of each row of the metadata of Medley-solos-DB.

    Raises:
        BadInput: there is no metadata, or it can't be read.
    """
    tables = [path for path in list_files(place) if path.name == METADATA]
    if not tables:
        raise BadInput(
            f"{place}: there is no {METADATA} in it; set data.root to the folder of Medley-solos-DB, or to a "
            "store of it, or fetch it with wavespace prepare data=medley_solos"
        )
    for row in _table(tables[0]):
        try:
            instrument, subset = int(row["instrument_id"]), row["subset"]
            song = int(row.get("song_id") or row["track_id"])
            name = f"Medley-solos-DB_{subset}-{instrument}_{row['uuid4']}"
            split, known = SPLITS[subset], instrument in range(len(INSTRUMENTS)) and abs(song) < 2**31
        except (KeyError, TypeError, ValueError):
            known = False
        if not known:
            raise BadInput(
                f"{tables[0]}: a row is {str(dict(row))[:300]}; expected columns subset, instrument, "
                "instrument_id (0-7), song_id, uuid4"
            )
        yield name, split, {"instrument": instrument, "song": song}


# --- Scores to render ----------------------------------------------------------------------------------------


def find_scores(midi: str, test_midi: str | None = None) -> tuple[dict[str, list[Path]], int]:
    """Find the MIDI files of each split, and how many rows of MAESTRO's metadata have no file.

    With a MAESTRO metadata CSV the official splits hold, otherwise pieces go 80/10/10 by a hash of their names.
    """
    root, absent = Path(midi).expanduser(), 0
    found = midi_files(root)
    if tables := sorted(root.glob(TABLE)):
        try:  # the two columns alone, as of a table that somebody cut to MIDI
            rows = [
                (find_file(named_file(root, row["midi_filename"])), SPLITS[row["split"]]) for row in _table(tables[-1])
            ]
        except (KeyError, TypeError) as fault:
            raise BadInput(f"{tables[-1]}: is not MAESTRO's metadata ({fault} is missing or unknown)") from None
        by_split = {split: [path for path, its in rows if its == split and path.is_file()] for split in TRAIN_VAL_TEST}
        absent = len(rows) - sum(map(len, by_split.values()))
    else:
        by_split = _by_hash(root, found)
    if test_midi is not None:
        by_split["train"] = by_split["train"] + by_split["test"]
        by_split["test"] = midi_files(Path(test_midi).expanduser())
    return by_split, absent


def midi_files(root: Path) -> list[Path]:
    """Find MIDI files at any depth."""
    found = [path for path in list_files(root) if path.suffix.lower() in MIDI]
    if not found:
        raise BadInput(f"{root}: there are no MIDI files in it; set data.midi to a folder of .mid or .midi files")
    return found


def _by_hash(root: Path, found: Sequence[Path]) -> dict[str, list[Path]]:
    """Pieces in an order of their names' hashes, a tenth each to test and validation, at least one."""
    pieces: dict[str, list[Path]] = {}
    for path in found:
        inner = path.relative_to(root)
        pieces.setdefault((inner.parent if len(inner.parts) > 2 else inner).as_posix(), []).append(path)
    order = sorted(pieces, key=_rank)
    held = max(1, round(len(order) / 10))
    by_split = {"train": order[2 * held :], "val": order[held : 2 * held], "test": order[:held]}
    return {split: [path for piece in names for path in pieces[piece]] for split, names in by_split.items()}


# --- What settings read --------------------------------------------------------------------------------------


def _of_audio_folder(node: Mapping[str, Any], digests: DigestCache, most: float) -> dict[str, str]:
    place, _ = folder_and_archive(node["folder"])
    return {"folder": dataset_digest(place, lambda: find_audio_folder(place, node.get("notes", True)), digests, most)}


def _of_maestro(node: Mapping[str, Any], digests: DigestCache, most: float) -> dict[str, str]:
    place, _ = folder_and_archive(node.get("root", "data/maestro-v3.0.0"))
    chosen = {key: node[key] for key in ("splits", "fraction") if key in node}
    return {"root": dataset_digest(place, lambda: find_maestro(place, maestro_rows(place, **chosen)), digests, most)}


def _of_medley_solos(node: Mapping[str, Any], digests: DigestCache, most: float) -> dict[str, str]:
    place, _ = folder_and_archive(node.get("root", "data/medley-solos-db"))
    return {"root": dataset_digest(place, lambda: find_medley_solos(place)[0], digests, most)}


def rendered_digests(node: Mapping[str, Any], digests: DigestCache, most: float = math.inf) -> dict[str, str]:
    """What `Rendered` reads: the scores of each split in order, wherever they lie, and the soundfont."""
    found = {}
    if node.get("midi"):
        by_split, _ = find_scores(node["midi"], node.get("test_midi"))
        seen = digests.of([path for paths in by_split.values() for path in paths], most)
        contents = {one.path: one.digest for one in seen}
        found["midi"] = digest({split: [contents[path] for path in paths] for split, paths in by_split.items()})
    if node.get("soundfont"):
        path = Path(node["soundfont"]).expanduser()
        if not path.is_file():
            raise BadInput(f"there is no soundfont at {path}")
        found["soundfont"] = digests.of([path], most)[0].digest
    return found


READERS: dict[str, Callable[[Mapping[str, Any], DigestCache, float], dict[str, str]]] = {
    "wavespace.data.sources.audio_folder.AudioFolder": _of_audio_folder,
    "wavespace.data.sources.maestro.Maestro": _of_maestro,
    "wavespace.data.sources.medley_solos.MedleySolos": _of_medley_solos,
    "wavespace.data.synthesis.rendered.Rendered": rendered_digests,
}
"""By constructor: a digest of what its files hold, by the setting that names them.

They take the settings, the digests that are known, and the bytes that may be read; files that are missing raise
`BadInput`.
"""

PATHS = ("root", "folder", "midi", "test_midi", "soundfont", "weights")
"""Settings of those constructors that name files."""
