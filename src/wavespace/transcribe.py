"""`wavespace transcribe FILE…`: audio of any length to notes, at constant memory."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wavespace.errors import BadCheckpoint, BadInput, Incompatible, UserError
from wavespace.runfolder import write_atomic

if TYPE_CHECKING:
    from wavespace.data.base import Notes
    from wavespace.tasks.piano_roll import PianoRoll


def main(arguments: list[str]) -> None:
    """Transcribe files, one after another; a bad file is told and the others go on."""
    parser = argparse.ArgumentParser(
        prog="wavespace transcribe",
        description="Audio files (wav, flac, ogg, mp3; any length, rate and channels) to MIDI, "
        "written beside each file or to --out.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="a .ckpt file or a run folder; the newest finished run of task=piano_roll otherwise",
    )
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--csv", action="store_true", help="also write onset, offset, pitch, velocity as CSV")
    parser.add_argument("--png", action="store_true", help="also draw the notes")
    given = parser.parse_args(arguments)

    from wavespace.data.notes import write_midi

    task = _load(given.checkpoint)
    failed: list[UserError] = []
    written: dict[Path, Path] = {}
    for file in given.files:
        target = (given.out or file.parent) / file.stem
        try:
            if target in written:
                raise BadInput(f"{file}: its results would replace those of {written[target]}; give it another --out")
            notes = transcribe(file, task)
            write_midi(f"{target}.mid", notes)
            if given.csv:
                write_atomic(Path(f"{target}.csv"), _csv(notes))
            if given.png:
                write_atomic(Path(f"{target}.png"), _png(notes, file.name))
        except UserError as error:
            failed.append(error)
        except OSError as error:
            failed.append(BadInput(f"{target}.mid: can't be written ({error.strerror})"))
        else:
            written[target] = file
            print(f"{file}: {len(notes)} notes -> {target}.mid")
    if failed:
        raise type(failed[0])("\n".join(str(error) for error in failed))


def transcribe(path: str | Path, checkpoint: str | Path | PianoRoll | None = None) -> Notes:
    """Notes `(K, 4)` of an audio file: onset and offset in seconds, MIDI pitch, velocity.

    Args:
        path: any file that soundfile reads, of any length.
        checkpoint: a checkpoint, a run folder, or a loaded task; None: the newest finished run under `runs/`.

    Raises:
        UserError: the file or the checkpoint can't be used.
    """
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from wavespace.data.audio import read_blocks, seconds_of
    from wavespace.data.base import NO_NOTES
    from wavespace.inference import computes_in_bfloat16, stream

    task: Any = _load(Path(checkpoint)) if isinstance(checkpoint, str | Path) else checkpoint or _load(None)
    decoder = task.decoder()
    found: list[Notes] = []
    rate, console = task.out_spec.frame_rate, Console(stderr=True)
    device = task.device.type
    half = torch.autocast(device, torch.bfloat16, enabled=device in ("cpu", "cuda") and computes_in_bfloat16(device))
    with half, Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(Path(path).name, total=seconds_of(Path(path)))
        for output in stream(task, read_blocks(Path(path), task.frontend.in_spec.sample_rate)):
            found.append(decoder.push(*output.sigmoid().cpu().numpy()))
            progress.advance(bar, output.shape[-1] / rate)
    found.append(decoder.flush())
    notes = np.concatenate(found) if found else NO_NOTES
    return notes[np.lexsort((notes[:, 2], notes[:, 0]))]


def _load(path: Path | None) -> PianoRoll:
    from wavespace import checkpoint
    from wavespace.tasks.piano_roll import PianoRoll

    path = path or _newest()
    task = checkpoint.load(path)
    if not isinstance(task, PianoRoll):
        raise Incompatible(
            f"{path} was trained on {type(task).__name__}; transcribing needs a checkpoint of task=piano_roll"
        )
    return task


def _newest() -> Path:
    """Best checkpoint of the newest finished piano-roll run."""
    import os

    from wavespace.runfolder import RunFolder

    runs = Path(os.environ.get("WAVESPACE_RUNS", "runs"))
    found = sorted(runs.glob("*/*/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        status = RunFolder(path.parents[1]).status()
        if status.get("state") == "finished" and "note" in str(status.get("monitor")):
            return path
    raise BadCheckpoint(
        f"no finished run of task=piano_roll in {runs}; name one with --checkpoint, "
        "or train one: wavespace train experiment=demo"
    )


def _csv(notes: Iterable[Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["onset", "offset", "pitch", "velocity"])
    writer.writerows(
        [f"{onset:.4f}", f"{offset:.4f}", round(pitch), round(velocity)] for onset, offset, pitch, velocity in notes
    )
    return text.getvalue()


def _png(notes: Notes, title: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    end = float(notes[:, 1].max(initial=1.0))
    figure = Figure(figsize=(min(60, max(8, end * 0.4)), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="seconds", ylabel="MIDI pitch", xlim=(0, end), ylim=(20, 109))
    axes.set_title(title, parse_math=False)  # a file's name may hold dollar signs
    lines = [((onset, pitch), (offset, pitch)) for onset, offset, pitch, _ in notes]
    axes.add_collection(LineCollection(lines, linewidths=2.2, array=notes[:, 3], cmap="viridis", clim=(0, 127)))
    axes.grid(alpha=0.2)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()
