"""`wavespace transcribe FILE…`: audio of any length to notes, at constant memory."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wavespace.config.trust import add_trust
from wavespace.errors import BadCheckpoint, BadInput, Incompatible, UserError
from wavespace.locate import locate
from wavespace.provenance import is_ours, refuse_foreign, write_marked
from wavespace.runfolder import newest_finished
from wavespace.signals import if_stopped, stop_deferred
from wavespace.terminal import Arguments, folder_or_file
from wavespace.text import counted, printable

if TYPE_CHECKING:
    from wavespace.data.base import Notes
    from wavespace.tasks.piano_roll import PianoRoll


def main(arguments: list[str]) -> None:
    """Transcribe files, one after another; a bad file is told and the others go on."""
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
    task = _load(given.checkpoint, given.trust) if jobs else None
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
    from wavespace.data.files.audio import remarks
    from wavespace.data.files.discovery import print_once

    try:
        notes = transcribe(file, task)
        for remark in remarks(file):
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
    from wavespace.data.files.discovery import NOT_READ, UNREAD, audio_suffixes, files, print_left_out

    there = files(folder)
    found = [path for path in there if path.suffix.lower() in audio_suffixes()]
    print_left_out(folder, NOT_READ, [path for path in there if path.suffix.lower() in UNREAD and not is_ours(path)])
    if not found:
        raise BadInput(f"{printable(folder)}: there are no audio files in it ({', '.join(audio_suffixes())})")
    return found


def transcribe(
    audio: str | Path | tuple[NDArray[Any], int],
    checkpoint: str | Path | PianoRoll | None = None,
    trust: Sequence[str] = (),
) -> Notes:
    """Notes `(K, 4)` of audio: onset and offset in seconds, MIDI pitch, velocity.

    Args:
        audio: any file that soundfile reads, of any length; or mono samples `(N,)`, int16 or floats in -1..1, and
            their rate in Hz.
        checkpoint: a checkpoint, a run folder, or a loaded task; None: the newest finished run under `runs/`.
        trust: packages whose code it may call, as of `wavespace.load`.

    Raises:
        UserError: the file or the checkpoint can't be used.
        TypeError: an argument is of another kind.
    """
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from wavespace.data.base import NO_NOTES
    from wavespace.inference import computes_in_bfloat16, stream
    from wavespace.tasks.base import Task

    task: Any = checkpoint if isinstance(checkpoint, Task) else _load(checkpoint, trust)
    decoder = task.decoder()
    found: list[Notes] = []
    rate, console = task.out_spec.frame_rate, Console(stderr=True)
    device = task.device.type
    half = torch.autocast(device, torch.bfloat16, enabled=device in ("cpu", "cuda") and computes_in_bfloat16(device))
    with half, Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        name, seconds, blocks = _blocks(audio, task.frontend.in_spec.sample_rate)
        bar = progress.add_task(name, total=seconds)
        for output in stream(task, blocks):
            found.append(decoder.push(*output.sigmoid().cpu().numpy()))
            progress.advance(bar, output.shape[-1] / rate)
    found.append(decoder.flush())
    notes = np.concatenate(found) if found else NO_NOTES
    return notes[np.lexsort((notes[:, 2], notes[:, 0]))]


def _blocks(audio: Any, rate: int) -> tuple[str, float, Iterable[NDArray[Any]]]:
    """Name, seconds and blocks at a rate of what `transcribe` takes."""
    import soxr

    from wavespace.data.files.audio import read_blocks, seconds_of
    from wavespace.inference import scaled

    match audio:
        case str() | Path():
            return printable(Path(audio).name), seconds_of(Path(audio)), read_blocks(Path(audio), rate)
        case (np.ndarray(ndim=1) as samples, int(own)) if own > 0:
            samples = scaled(samples).numpy()
            if not np.isfinite(samples).all():
                raise BadInput("the audio has samples that are no finite numbers")
            return "audio", len(samples) / own, [samples if own == rate else soxr.resample(samples, own, rate)]
    raise TypeError(
        f"audio is {type(audio).__name__}; it takes the path of a file, or (samples, rate): a NumPy array (N,) and "
        "its sample rate in Hz as an int"
    )


def _load(path: str | Path | None, trust: Sequence[str] = ()) -> PianoRoll:
    from wavespace import checkpoint
    from wavespace.tasks.piano_roll import PianoRoll

    path = _newest() if path is None else locate(path)
    task = checkpoint.load(path, trust)
    if not isinstance(task, PianoRoll):
        raise Incompatible(
            f"{path} was trained on {type(task).__name__}; transcribing needs a checkpoint of task=piano_roll"
        )
    return task


def _newest() -> Path:
    """Best checkpoint of the newest finished piano-roll run."""
    runs = Path(os.environ.get("WAVESPACE_RUNS", "runs")).expanduser()
    if (run := newest_finished(runs, monitors="note")) is None:
        raise BadCheckpoint(
            f"no finished run of task=piano_roll in {runs}; name one with --checkpoint, "
            "or train one: wavespace train experiment=demo"
        )
    return run / "checkpoints" / "best.ckpt"


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
