"""`wavespace transcribe FILE…`: audio of any length to notes, at constant memory."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from wavespace.config.trust import add_trust
from wavespace.errors import BadInput, UserError
from wavespace.provenance import is_ours, refuse_foreign, write_marked
from wavespace.signals import if_stopped, stop_deferred
from wavespace.terminal import Arguments, folder_or_file
from wavespace.text import counted, printable

if TYPE_CHECKING:
    from wavespace.data.base import Notes


def main(arguments: list[str]) -> None:
    """Transcribe files, one after another; a bad file is reported, and the others are still transcribed."""
    parser = Arguments(
        prog="wavespace transcribe",
        description="Audio files (wav, flac, ogg, mp3; any length, rate and channels) to MIDI, "
        "written beside each file or to --out.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=folder_or_file,
        metavar="FILE",
        help="audio, or a folder: all that is in it, at any depth",
    )
    parser.add_argument(
        "--checkpoint",
        help="a .ckpt file, a run folder or a folder of runs; the newest finished run of task=piano_roll otherwise",
    )
    parser.add_argument(
        "--out", type=folder_or_file, metavar="FOLDER", help="for the results, laid out as what was named"
    )
    parser.add_argument("--csv", action="store_true", help="also write onset, offset, pitch, velocity as CSV")
    parser.add_argument("--png", action="store_true", help="also draw the notes")
    parser.add_argument("--overwrite", action="store_true", help="replace files that wavespace did not write, too")
    add_trust(parser)
    given = parser.parse_args(arguments)

    if given.out and given.out.exists() and not given.out.is_dir():
        raise BadInput(f"--out {printable(given.out)}: is a file; it takes a folder")
    kinds = [kind for kind in ("csv", "png") if getattr(given, kind)]
    failed: list[UserError] = []
    jobs = list(_jobs(given.files, given.out, kinds, given.overwrite, failed))
    from wavespace.inference import load_transcriber

    task = load_transcriber(given.checkpoint, given.trust) if jobs else None
    done: list[Path] = []
    with if_stopped(
        lambda: "\n".join([f"stopped; {len(done)} of {len(jobs)} recordings are transcribed", *map(str, failed)])
    ):
        for file, target in jobs:
            _transcribe_to(target, file, task, kinds, done, failed)
    if failed:
        raise type(failed[0])("\n".join(str(error) for error in failed))


def _transcribe_to(
    target: Path, file: Path, task: Any, kinds: Sequence[str], done: list[Path], failed: list[UserError]
) -> None:
    """Transcribe a file and write its results, all or none of them; it goes to `done`, or the reason to `failed`."""
    from wavespace.data.files.audio import file_remarks
    from wavespace.data.files.discovery import print_once
    from wavespace.inference import transcribe

    try:
        notes = transcribe(file, task)
        for remark in file_remarks(file):
            print_once(f"{file}: {remark}")
        beside = {Path(f"{target}.{kind}"): {"csv": _csv, "png": _png}[kind](notes, file.name) for kind in kinds}
        midi = _midi(notes)
        with stop_deferred():  # a signal waits until the files of a recording are all there, and counted
            write_marked(Path(f"{target}.mid"), midi, beside)
            print(f"{printable(file)}: {counted(len(notes), 'notes')} -> {printable(target)}.mid", flush=True)
            done.append(file)
    except UserError as error:
        failed.append(type(error)(printable(error)))
    except OSError as error:
        failed.append(BadInput(f"{printable(target)}.mid: can't be written ({error.strerror})"))


def _jobs(
    given: Sequence[Path], out: Path | None, kinds: Sequence[str], overwrite: bool, failed: list[UserError]
) -> Iterator[tuple[Path, Path]]:
    """Each recording with the path of its results, less its suffix; those that can't be written go to `failed`."""
    taken: dict[str, Path] = {}
    for named in given:
        try:
            files = _recordings(named) if named.is_dir() else [named]
        except UserError as error:
            failed.append(error)
            continue
        for file in files:
            inner = file.relative_to(named).parent if named.is_dir() else Path()
            target = (out / inner if out else file.parent) / file.stem
            # Some disks take names that differ in case or in the form of their accents for one.
            key = unicodedata.normalize("NFC", str(target.absolute())).casefold()
            try:
                if key in taken:
                    first = printable(taken[key])
                    raise BadInput(f"its results would replace those of {first}; give it another --out")
                if file.suffix.lower() in (".mid", ".midi"):
                    raise BadInput("is a MIDI file, no recording")
                refuse_foreign(Path(f"{target}.mid"), [Path(f"{target}.{kind}") for kind in kinds], overwrite=overwrite)
            except (UserError, OSError) as error:
                why = printable(error.strerror if isinstance(error, OSError) else error)
                failed.append(BadInput(f"{printable(file)}: {why}"))
            else:
                taken[key] = file
                yield file, target


def _recordings(folder: Path) -> list[Path]:
    """Audio files in a folder, at any depth; what is hidden is no recording."""
    from wavespace.data.files.discovery import NOT_READ, UNREAD, audio_suffixes, list_files, print_left_out

    there = list_files(folder)
    found = [path for path in there if path.suffix.lower() in audio_suffixes()]
    print_left_out(folder, NOT_READ, [path for path in there if path.suffix.lower() in UNREAD and not is_ours(path)])
    if not found:
        raise BadInput(f"{printable(folder)}: there are no audio files in it ({', '.join(audio_suffixes())})")
    return found


def _midi(notes: Notes) -> bytes:
    from wavespace.data.files.midi import write_midi

    with TemporaryDirectory() as folder:
        write_midi(Path(folder) / "notes.mid", notes)
        return (Path(folder) / "notes.mid").read_bytes()


def _csv(notes: Iterable[Any], title: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["onset", "offset", "pitch", "velocity"])
    writer.writerows(
        [f"{onset:.4f}", f"{offset:.4f}", round(pitch), round(velocity)] for onset, offset, pitch, velocity in notes
    )
    return text.getvalue().encode()


def _png(notes: Notes, title: str) -> bytes:
    from wavespace.reports.figures import draw_notes, png

    return png(draw_notes(notes, printable(title)))
