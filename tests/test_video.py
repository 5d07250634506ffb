"""A video shows the features of the front-end, with the cursor at the time of the sound."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from wavespace.commands.video import main, write_video
from wavespace.errors import BadInput, UserError
from wavespace.reports.figures import HEIGHT, WIDTH, Still, folded, frames
from wavespace.tasks.base import Picture

RATE = 22050


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A second of A4."""
    path = tmp_path / "a$\\frac{.wav"  # a title that is no formula
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE), RATE)
    return path


def test_the_cursor_is_where_the_sound_is() -> None:
    still = Still(np.zeros((HEIGHT, WIDTH, 3), np.uint8), 100.0, 1100.0, 50, 650)
    drawn = list(frames(still, 2.0, 10))
    assert len(drawn) == 20
    for index, frame in enumerate(drawn):
        rows, columns = np.nonzero(frame[:, :, 0])
        assert (rows.min(), rows.max()) == (50, 649)
        assert columns.mean() + 0.5 == pytest.approx(100 + 1000 * (index + 0.5) / 20, abs=1)
    assert not still.pixels.any()


def test_octaves_are_folded_onto_their_pitch_class() -> None:
    pitches = np.arange(24, 96)
    values = np.full((72, 3), -80, np.float32)
    values[[int(p) - 24 for p in (45, 57, 69)], 1] = -10, -20, -5  # A in three octaves
    values[60 - 24, 2] = -3  # C
    picture = Picture("", values, tuple(440 * 2 ** ((pitches - 69) / 12)), 100.0, -80, 0, "dB")
    shown = folded(picture).values
    assert shown.shape == (12, 3)
    assert (shown[9, 1], shown[0, 2]) == (-5, -3)
    assert shown[9, 0] == -80
    rising, quarters = np.arange(96, dtype=np.float32)[:, None], tuple(440 * 2 ** (np.arange(96) / 24 - 2))
    fine = folded(picture._replace(values=rising, frequencies=quarters)).values
    np.testing.assert_array_equal(fine[:, 0], 72 + (np.arange(24) + 6) % 24)  # the highest octave, from its C
    with pytest.raises(BadInput, match="no axis of pitch"):
        folded(picture._replace(values=values[:1], frequencies=(0.0,)))


def test_ffmpeg_is_given_every_frame_and_the_sound(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = tmp_path / "bin" / "ffmpeg"
    stand_in.parent.mkdir()
    stand_in.write_text(
        '#!/bin/sh\nfor last; do :; done\nwc -c > "$last"\nprintf "%s\\n" "$@" > ' + str(tmp_path / "arguments") + "\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:/usr/bin:/bin")
    main([str(recording), "--out", str(tmp_path / "out.mp4"), "--fps", "5", "--fold"])
    assert int((tmp_path / "out.mp4").read_bytes().splitlines()[0]) == 5 * WIDTH * HEIGHT * 3
    assert f"{WIDTH}x{HEIGHT}" in (tmp_path / "arguments").read_text().split()
    assert str(tmp_path / "out.mp4") in capsys.readouterr().out
    stand_in.write_text("#!/bin/sh\necho no such codec >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"could not write it .no such codec"):
        write_video(recording, tmp_path / "bad.mp4", fps=2)
    assert not (tmp_path / "bad.mp4").exists()
    assert not list(tmp_path.glob(".*"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="ffmpeg, which is not installed"):
        write_video(recording, tmp_path / "x.mp4")


def test_a_real_video_has_both_streams_and_the_length_of_the_sound(recording: Path, tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        pytest.skip("ffmpeg is not installed")
    path = write_video(recording, tmp_path / "real.mp4", fps=10)
    command = ["ffprobe", "-v", "error", "-show_streams", "-of", "json", str(path)]
    streams = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
    assert sorted(stream["codec_type"] for stream in streams) == ["audio", "video"]
    assert all(float(stream["duration"]) == pytest.approx(1.0, abs=0.11) for stream in streams)
