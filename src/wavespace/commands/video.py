"""`wavespace video FILE`: what a front-end hears, with a cursor that moves with the sound; also folded to an octave.

Frames are drawn once and given to `ffmpeg`, which whoever makes videos has.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wavespace.config.trust import add_trust
from wavespace.errors import BadInput, UserError
from wavespace.provenance import refuse_foreign, write_marked
from wavespace.terminal import Arguments, folder_or_file
from wavespace.text import printable

WIDTH, HEIGHT = 1280, 720


class Still(NamedTuple):
    """The picture behind the cursor.

    Attributes:
        pixels: `(HEIGHT, WIDTH, 3)` uint8.
        left: column at which time begins.
        right: column at which it ends.
        top: first row that the cursor crosses.
        bottom: the row after its last.
    """

    pixels: NDArray[np.uint8]
    left: float
    right: float
    top: int
    bottom: int


def main(arguments: list[str]) -> None:
    """Write a video of a recording."""
    parser = Arguments(
        prog="wavespace video",
        description="A recording as a front-end hears it, with its sound and a moving cursor. Needs ffmpeg.",
    )
    parser.add_argument("file", type=folder_or_file, help="audio: wav, flac, ogg, mp3")
    parser.add_argument("--out", type=folder_or_file, metavar="FILE", help="default: beside the recording, as .mp4")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that wavespace did not write, too")
    parser.add_argument("--frontend", default="cqt", help="a choice of the group frontend; default: cqt")
    parser.add_argument("--checkpoint", help="take the front-end of a run or a checkpoint instead")
    parser.add_argument("--fold", action="store_true", help="fold octaves onto one: a row a pitch class")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the recording, from its start; default: 60")
    parser.add_argument("--fps", type=int, default=25, help="frames a second; default: 25")
    add_trust(parser)
    given = parser.parse_args(arguments)
    target = given.out or given.file.with_suffix(".mp4")
    if target.exists() and given.file.exists() and target.samefile(given.file):
        raise BadInput(f"{target}: is the recording itself; name another file with --out")
    refuse_foreign(target, overwrite=given.overwrite)
    settings = (given.frontend, given.checkpoint, given.fold, given.seconds, given.fps, given.trust)
    from wavespace.training.callbacks.progress import shown

    with shown(f"drawing {printable(target.name)}"):
        write_video(given.file, target, *settings)
    print(printable(target))


def write_video(
    file: Path,
    target: Path,
    frontend: str = "cqt",
    checkpoint: str | None = None,
    fold: bool = False,
    seconds: float = 60.0,
    fps: int = 25,
    trust: Sequence[str] = (),
) -> Path:
    """Write a video of the first seconds of a recording; returns its path.

    Raises:
        UserError: ffmpeg is not there or fails, or the recording, the front-end or the checkpoint can't be used.
    """
    if seconds <= 0 or not 1 <= fps <= 120:
        raise BadInput(f"--seconds is {seconds:g} and --fps {fps}; they take more than 0, and 1 to 120")
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise UserError("videos are written by ffmpeg, which is not installed: see ffmpeg.org, or your package manager")
    import soundfile
    import torch

    from wavespace import config
    from wavespace.checkpoint import load
    from wavespace.config.construction import make
    from wavespace.data.files.audio import read_audio
    from wavespace.spec import AudioSpec

    if checkpoint is not None:
        ears = load(checkpoint, trust).frontend
    else:
        ears = make(config.compose([f"frontend={frontend}"]).frontend, "frontend", in_spec=AudioSpec(22050, 1.0, ()))
    rate = ears.in_spec.sample_rate
    audio = read_audio(file, rate, seconds=seconds)
    spec = ears.out_spec
    with torch.inference_mode():
        values = ears(torch.from_numpy(np.array(audio, np.float32)).view(1, 1, -1))[0, ears.shown].numpy()  # (F, T)
    length = len(audio) / rate
    still = draw_still(values, spec.frequencies, spec.frame_rate, length, (spec.low, spec.high), file.name, fold)
    with TemporaryDirectory() as folder:
        sound, film = Path(folder) / "sound.wav", Path(folder) / f"film{target.suffix}"
        soundfile.write(sound, audio, rate)
        command = [
            ffmpeg, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}",
            "-r", str(fps), "-i", "-", "-i", str(sound), "-pix_fmt", "yuv420p", "-shortest", str(film),
        ]  # fmt: skip
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it says why on stderr
                for frame in frames(still, length, fps):
                    process.stdin.write(frame.tobytes())
            _, said = process.communicate()
            if process.returncode != 0 or not film.is_file():
                why = " ".join(said.decode("utf-8", "replace").split())[-300:]
                raise UserError(f"{target}: ffmpeg could not write it ({why or 'it said nothing'})")
            write_marked(target, film.read_bytes())
        finally:
            process.kill()
    return target


def frames(still: Still, seconds: float, fps: int) -> Iterator[NDArray[np.uint8]]:
    """Frames `(HEIGHT, WIDTH, 3)`, the cursor where the sound is at the middle of each."""
    for index in range(max(1, round(seconds * fps))):
        frame = still.pixels.copy()
        share = min(1.0, (index + 0.5) / fps / seconds)
        column = round(still.left + share * (still.right - still.left))
        frame[still.top : still.bottom, max(0, column - 1) : column + 1] = 255
        yield frame


def draw_still(
    values: NDArray[np.float32],
    frequencies: tuple[float, ...],
    frame_rate: float,
    seconds: float,
    span: tuple[float, float],
    title: str,
    fold: bool,
) -> Still:
    """The picture of features `(F, T)`, whole or folded, with its axes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from wavespace.reports.figures import DARKEST, FAINT, PANEL, STYLE, _draw_picture
    from wavespace.tasks.base import Picture

    with rc_context(STYLE | {"text.parse_math": False}):
        figure = Figure(figsize=(WIDTH / 200, HEIGHT / 200), dpi=200, facecolor=PANEL)
        canvas = FigureCanvasAgg(figure)
        axes, bar = figure.add_axes((0.08, 0.12, 0.84, 0.78)), figure.add_axes((0.93, 0.12, 0.012, 0.78))
        axes.set_facecolor(DARKEST)
        if fold:
            shown = folded(values, frequencies)
            image = axes.imshow(
                shown, cmap="magma", vmin=span[0], vmax=span[1], aspect="auto", origin="lower",
                extent=(0, values.shape[1] / frame_rate, -6 / len(shown), 12 - 6 / len(shown)),
            )  # fmt: skip
            axes.set_yticks(range(12), ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"])
            figure.colorbar(image, cax=bar)
        else:
            _draw_picture(Picture(title, values, frequencies, frame_rate, *span, ""), axes, bar)
        axes.set_title(title if len(title) < 60 else f"{title[:58]}…")
        axes.set_xlim(0, seconds)
        axes.set_xlabel("seconds", color=FAINT)
        canvas.draw()
        box = axes.get_window_extent()
    pixels = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
    return Still(pixels, float(box.x0), float(box.x1), HEIGHT - round(box.y1), HEIGHT - round(box.y0))


def folded(values: NDArray[np.float32], frequencies: tuple[float, ...]) -> NDArray[np.float32]:
    """The loudest of each pitch class, `(rows, T)` from C upwards, of features `(F, T)`; NaN where no bin is near.

    There are as many rows as bins an octave, 12 to 48.

    Raises:
        BadInput: bins have no frequencies above 0.
    """
    hertz = np.asarray(frequencies, dtype=float)
    heard = hertz > 0
    if heard.sum() < 2:
        raise BadInput("these features have no axis of pitch to fold; choose --frontend cqt")
    octaves = np.log2(hertz[heard] / 440) + 9 / 12  # above a C
    rows = int(np.clip(round(1 / max(float(np.median(np.diff(octaves))), 1e-3)), 12, 48))
    row = np.rint(octaves % 1 * rows).astype(int) % rows
    shown = np.full((rows, values.shape[1]), -np.inf, dtype=np.float32)
    np.maximum.at(shown, row, values[heard])
    return np.where(np.isfinite(shown), shown, np.nan)
