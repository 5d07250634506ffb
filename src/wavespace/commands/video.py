"""`wavespace video FILE`: the features of a recording with a moving cursor and its sound; also folded to an octave.

Each frame is drawn once and given to `ffmpeg`, which has to be installed.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from wavespace.config.trust import add_trust
from wavespace.errors import BadInput, UserError
from wavespace.provenance import refuse_foreign, write_marked
from wavespace.terminal import Arguments, folder_or_file
from wavespace.text import printable


def main(arguments: list[str]) -> None:
    """Write a video of a recording."""
    parser = Arguments(
        prog="wavespace video",
        description="A recording's features with its sound and a moving cursor. Needs ffmpeg.",
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
    from wavespace.reports.figures import draw_still, frames
    from wavespace.spec import AudioSpec
    from wavespace.tasks.base import feature_picture

    if checkpoint is not None:
        ears = load(checkpoint, trust).frontend
    else:
        ears = make(config.compose([f"frontend={frontend}"]).frontend, "frontend", in_spec=AudioSpec(22050, 1.0, ()))
    rate = ears.in_spec.sample_rate
    audio = read_audio(file, rate, seconds=seconds)
    with torch.inference_mode():
        values = ears(torch.from_numpy(np.array(audio, np.float32)).view(1, 1, -1))[0, ears.shown]  # (F, T)
    length = len(audio) / rate
    still = draw_still(feature_picture(file.name, values, ears.out_spec), length, fold=fold)
    with TemporaryDirectory() as folder:
        sound, film = Path(folder) / "sound.wav", Path(folder) / f"film{target.suffix}"
        soundfile.write(sound, audio, rate)
        if (why := _encode(frames(still, length, fps), fps, ffmpeg, sound, film)) is not None:
            raise UserError(f"{target}: ffmpeg could not write it ({why or 'it said nothing'})")
        write_marked(target, film.read_bytes())
    return target


def _encode(pictures: Iterator[NDArray[np.uint8]], fps: int, ffmpeg: str, sound: Path, film: Path) -> str | None:
    """Make a film of frames and a sound with ffmpeg; return what it prints if it fails."""
    from wavespace.reports.figures import HEIGHT, WIDTH

    raw = ["-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}"]
    command = [ffmpeg, *raw, "-r", str(fps), "-i", "-", "-i", str(sound), "-pix_fmt", "yuv420p", "-shortest", str(film)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it says why on stderr
            for picture in pictures:
                process.stdin.write(picture.tobytes())
        _, said = process.communicate()
    finally:
        process.kill()
    if process.returncode == 0 and film.is_file():
        return None
    return " ".join(said.decode("utf-8", "replace").split())[-300:]
