"""Apply a task to audio of any length, in overlapping windows at constant memory; transcribe recordings to notes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from hydra.utils import get_class
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from torch import Tensor

from wavespace.checkpoint import load
from wavespace.config.trust import MOST_TEXT, configuration
from wavespace.data.base import NO_NOTES, Notes
from wavespace.data.files.audio import read_blocks, seconds_of
from wavespace.errors import BadCheckpoint, BadInput, ConfigError, Incompatible
from wavespace.files import read_regular
from wavespace.frontends.base import scaled
from wavespace.locate import locate, newest_finished
from wavespace.models.blocks import Bounded
from wavespace.tasks.base import Task, computes_in_bfloat16
from wavespace.tasks.piano_roll import PianoRoll
from wavespace.text import printable

WINDOW, CONTEXT = 896, 64
"""Frames kept of each window, and least frames of context on each side: multiples of every pooling factor up to 64."""
RECEPTIVE_FIELD = 32
"""Of a model that states none, in frames on each side."""


@torch.inference_mode()
def stream(task: Task, blocks: Iterable[NDArray[Any]]) -> Iterator[Tensor]:
    """Yield outputs `(C', F', t)` of consecutive frames for consecutive blocks of mono audio at the task's rate.

    Before the start and after the end there is silence. Together the pieces have `out_spec.frames(N)` frames.

    Args:
        task: in evaluation mode.
        blocks: `(n,)` each, floating point in -1..1, or int16.

    Raises:
        TypeError: a block has other numbers.
        ValueError: a block has another shape.
    """
    spec, rate = task.frontend.out_spec, task.frontend.in_spec.sample_rate
    hop = round(rate / spec.frame_rate)
    field = task.model.receptive_field if isinstance(task.model, Bounded) else RECEPTIVE_FIELD
    context = CONTEXT * -(-(task.frontend.context + field + task.context) // CONTEXT)
    buffer = np.zeros(context * hop, dtype=np.float32)  # starts `context` frames before the next frame to give
    total = given = 0

    def frames(count: int) -> Tensor:
        wanted = (count + 2 * context) * hop
        audio = np.pad(buffer[:wanted], (0, max(0, wanted - len(buffer))))
        output = task(torch.from_numpy(audio).view(1, 1, -1).to(task.device))  # (1, C', F', count + 2 context + 1)
        return output[0, :, :, context : context + count]

    for block in blocks:
        block = scaled(block).numpy()
        if block.ndim != 1:
            raise ValueError(f"a block of audio has the shape {block.shape}; it must be mono, (samples,)")
        buffer, total = np.concatenate([buffer, block]), total + len(block)
        while len(buffer) >= (WINDOW + 2 * context) * hop:
            yield frames(WINDOW)
            buffer, given = buffer[WINDOW * hop :], given + WINDOW
    left = spec.frames(total, rate) - given if total else 0
    while left > 0:
        count = min(WINDOW, left)
        yield frames(count)
        buffer, left = buffer[count * hop :], left - count


def transcribe(
    audio: str | Path | tuple[NDArray[Any], int],
    checkpoint: str | Path | PianoRoll | None = None,
    trust: Sequence[str] = (),
) -> Notes:
    """Transcribe audio to notes `(K, 4)`: onset and offset in seconds, MIDI pitch, velocity.

    Args:
        audio: any file that soundfile reads, of any length; or mono samples `(N,)`, int16 or floats in -1..1, and
            their rate in Hz.
        checkpoint: a file, a run folder, or a loaded task; None: the newest finished run under `runs/`.
        trust: packages whose code it may call, as of `wavespace.load`.

    Raises:
        UserError: the file or the checkpoint can't be used.
        TypeError: an argument is of another kind.
    """
    task: Any = checkpoint if isinstance(checkpoint, Task) else load_transcriber(checkpoint, trust)
    decoder = task.decoder()
    found: list[Notes] = []
    rate, console = task.out_spec.frame_rate, Console(stderr=True)
    device = task.device.type
    half = torch.autocast(device, torch.bfloat16, enabled=device in ("cpu", "cuda") and computes_in_bfloat16(device))
    with half, Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        name, seconds, blocks = _blocks(audio, task.frontend.in_spec.sample_rate)
        bar = progress.add_task(escape(name), total=seconds)
        for output in stream(task, blocks):
            found.append(decoder.push(*output.sigmoid().cpu().numpy()))
            progress.advance(bar, output.shape[-1] / rate)
    found.append(decoder.flush())
    notes = np.concatenate(found) if found else NO_NOTES
    return notes[np.lexsort((notes[:, 2], notes[:, 0]))]


def _blocks(audio: Any, rate: int) -> tuple[str, float, Iterable[NDArray[Any]]]:
    """Return the name, the seconds and blocks at a rate of what `transcribe` takes."""
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


def load_transcriber(source: str | Path | None, trust: Sequence[str] = ()) -> PianoRoll:
    """Load a checkpoint of task=piano_roll; None: that of the newest finished run under `$WAVESPACE_RUNS`, or `runs/`.

    Raises:
        UserError: there is none, it can't be loaded, or it is of another task.
    """
    path = _newest(trust) if source is None else locate(source)
    task = load(path, trust)
    if not isinstance(task, PianoRoll):
        raise Incompatible(
            f"{path} was trained on {type(task).__name__}; transcribing needs a checkpoint of task=piano_roll"
        )
    return task


def _newest(trust: Sequence[str]) -> Path:
    """Return the best checkpoint of the newest finished piano-roll run."""

    def accepts(run: Path) -> bool:
        try:
            text = read_regular(run / "config.yaml", MOST_TEXT).decode()
            target = configuration(text, trust, ("task",)).task._target_
        except (FileNotFoundError, UnicodeDecodeError, BadInput, ConfigError):
            return True  # loading its checkpoint gives the reason
        return issubclass(get_class(target), PianoRoll)

    runs = Path(os.environ.get("WAVESPACE_RUNS", "runs")).expanduser()
    if (run := newest_finished(runs, accepts)) is None:
        raise BadCheckpoint(
            f"no finished run of task=piano_roll in {runs}; name one with --checkpoint, "
            "or train one: wavespace train experiment=demo"
        )
    return run / "checkpoints" / "best.ckpt"
