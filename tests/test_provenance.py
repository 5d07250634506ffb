"""Files that Wavespace did not write, or that were edited since, are replaced only with --overwrite."""

from __future__ import annotations

import csv
import errno
import io
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import mido
import numpy as np
import pandas as pd
import pretty_midi
import pytest
import soundfile
import torch

import wavespace
from made_runs import write_sweep
from parts import save, small_task, sound_of
from wavespace.commands import export, report, video
from wavespace.commands.transcribe import main as transcribe
from wavespace.data.files.discovery import find_audio_folder
from wavespace.errors import BadInput, UserError
from wavespace.provenance import is_ours, marked, refuse_foreign, write_marked

NOTES = np.array([[0.5, 0.9, 72.0, 90.0], [1.0, 1.4, 76.0, 90.0]])
FFMPEG = shutil.which("ffmpeg") is not None

Command = Callable[..., None]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = small_task("multi_resolution", "peaks", "piano_roll")
    return save(task, tmp_path_factory.mktemp("model") / "best.ckpt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("runs") / "sweep", seeds=1)


def record(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound_of(NOTES, 22_050, 1.6), 22_050)
    return path


def outputs(verb: str, folder: Path) -> list[Path]:
    names = {
        "transcribe": ["song.mid", "song.csv", "song.png"],
        "export": ["model.ckpt", "model.md"],
        "video": ["song.mp4"],
        "report": ["report.html", "runs.csv", "runs.parquet", "figures/curves.png"],
    }
    return [folder / name for name in names[verb]]


def call(verb: str, folder: Path, checkpoint: Path, runs: Path, *more: str) -> None:
    song = folder / "song.wav"
    {
        "transcribe": lambda: transcribe([str(song), "--checkpoint", str(checkpoint), "--csv", "--png", *more]),
        "export": lambda: export.main([str(checkpoint), "--out", str(folder / "model.ckpt"), *more]),
        "video": lambda: video.main([str(song), "--frontend", "mel", "--fps", "2", *more]),
        "report": lambda: report.main([str(runs), "--out", str(folder), *more]),
    }[verb]()


VERBS = ["transcribe", "export", pytest.param("video", marks=pytest.mark.skipif(not FFMPEG, reason="ffmpeg"))]


@pytest.mark.parametrize("verb", [*VERBS, "report"])
def test_a_verb_replaces_its_own_files_and_no_others(verb: str, tmp_path: Path, checkpoint: Path, runs: Path) -> None:
    record(tmp_path / "song.wav")
    call(verb, tmp_path, checkpoint, runs)
    call(verb, tmp_path, checkpoint, runs)  # over what it wrote itself
    expected = [path for path in outputs(verb, tmp_path) if path.parent.name != "figures" or path.exists()]
    for path in expected:
        before = {other: other.read_bytes() for other in expected}
        path.write_bytes(before[path] + b" edited")
        with pytest.raises(UserError, match=r"--overwrite replaces it, --out names another") as told:
            call(verb, tmp_path, checkpoint, runs)
        assert str(path) in str(told.value)
        assert path.read_bytes() == before[path] + b" edited"
        assert all(other.read_bytes() == data for other, data in before.items() if other != path)  # nothing else
        path.write_bytes(before[path])
    expected[-1].write_text("mine")
    call(verb, tmp_path, checkpoint, runs, "--overwrite")
    assert expected[-1].read_bytes() != b"mine"


def test_true_scores_beside_recordings_stay_and_the_other_files_are_done(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        record(tmp_path / f"{name}.wav")
    truth = pretty_midi.PrettyMIDI()
    truth.instruments.append(pretty_midi.Instrument(0))
    truth.instruments[0].notes.append(pretty_midi.Note(80, 60, 0.1, 0.5))
    truth.write(str(tmp_path / "b.mid"))
    before = (tmp_path / "b.mid").read_bytes()
    with pytest.raises(BadInput, match=r"b.mid: is there, and was not written by wavespace"):
        transcribe([str(tmp_path), "--checkpoint", str(checkpoint)])
    assert (tmp_path / "b.mid").read_bytes() == before
    assert is_ours(tmp_path / "a.mid")
    assert is_ours(tmp_path / "c.mid")
    assert "b.wav" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["link", "dangling", "protected", "folder", "fifo"])
def test_what_is_no_plain_file_of_ours_is_not_replaced(kind: str, tmp_path: Path, checkpoint: Path) -> None:
    song = record(tmp_path / "song.wav")
    call("transcribe", tmp_path, checkpoint, tmp_path)
    target = tmp_path / "song.mid"
    kept = tmp_path / "elsewhere.mid"
    target.rename(kept)
    if kind == "link":
        target.symlink_to(kept)
    elif kind == "dangling":
        target.symlink_to(tmp_path / "gone.mid")
    elif kind == "protected":
        shutil.copy(kept, target)
        target.chmod(0o444)
    elif kind == "folder":
        target.mkdir()
    else:
        os.mkfifo(target)
    with pytest.raises(BadInput, match=r"song.mid: is (a link|write-protected|a folder|no file)"):
        transcribe([str(song), "--checkpoint", str(checkpoint)])
    assert is_ours(kept)


def test_a_transcription_is_no_truth_until_somebody_has_changed_it(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        record(tmp_path / f"{name}.wav")
    transcribe([str(tmp_path), "--checkpoint", str(checkpoint)])
    with pytest.raises(BadInput, match="there are no audio files with a MIDI file"):
        find_audio_folder(tmp_path)
    assert "2 recordings are left out, whose MIDI file is a transcription" in capsys.readouterr().err
    assert len(find_audio_folder(tmp_path, notes=False)) == 2
    corrected = pretty_midi.PrettyMIDI(str(tmp_path / "b.mid"))
    corrected.instruments[0].notes.append(pretty_midi.Note(80, 60, 0.1, 0.5))
    corrected.write(str(tmp_path / "b.mid"))
    assert [recording.name for recording in find_audio_folder(tmp_path)] == ["b.wav"]


def test_marked_files_open_elsewhere(tmp_path: Path, checkpoint: Path) -> None:
    song = record(tmp_path / "song {1} > é.wav")
    transcribe([str(song), "--checkpoint", str(checkpoint), "--csv", "--png"])
    midi = song.with_suffix(".mid")
    notes = sorted((n.start, n.pitch) for n in pretty_midi.PrettyMIDI(str(midi)).instruments[0].notes)
    assert {pitch for _, pitch in notes} >= {72, 76}
    texts = [event.text for event in mido.MidiFile(midi).tracks[0] if event.type == "text"]
    assert len(texts) == 1
    assert texts[0].startswith("Written by wavespace")
    assert list(pd.read_csv(song.with_suffix(".csv")).columns) == ["onset", "offset", "pitch", "velocity"]
    assert len(list(csv.reader(io.StringIO(song.with_suffix(".csv").read_text())))) == len(notes) + 1
    out = tmp_path / "model.ckpt"
    export.main([str(checkpoint), "--out", str(out)])
    assert set(torch.load(out, weights_only=True)) >= {"state_dict", "config"}
    wavespace.load(out)
    edited = mido.MidiFile(midi)
    edited.tracks[-1].insert(0, mido.MetaMessage("text", text="checked by ear"))
    edited.save(tmp_path / "edited.mid")
    assert not is_ours(tmp_path / "edited.mid")


@pytest.mark.skipif(not FFMPEG, reason="ffmpeg is not installed")
@pytest.mark.parametrize("suffix", ["mp4", "mov", "m4v", "mkv", "avi"])
def test_a_marked_video_plays_without_a_complaint(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{suffix}"
    make = ["-f", "lavfi", "-i", "testsrc=d=0.4:s=64x64", "-f", "lavfi", "-i", "sine=d=0.4", str(path)]
    subprocess.run(["ffmpeg", "-loglevel", "error", *make], check=True)
    path.write_bytes(marked(path, path.read_bytes()))
    assert is_ours(path)
    level = "error" if suffix == "mkv" else "warning"  # its segment ends before the mark, which is told
    played = ["ffmpeg", "-v", level, "-i", str(path), "-f", "null", "-"]
    assert subprocess.run(played, check=True, capture_output=True, text=True).stderr == ""


def test_outputs_that_meet_on_some_disks_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    first = record(tmp_path / "x" / "Song.wav")
    second = record(tmp_path / "y" / "song.flac")
    with pytest.raises(BadInput, match=r"y/song.flac: its results would replace those of .*x/Song.wav"):
        transcribe([str(first), str(second), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["Song.mid"]


def test_an_output_is_never_the_input(tmp_path: Path, checkpoint: Path) -> None:
    song = record(tmp_path / "song.wav")
    before = song.read_bytes()
    with pytest.raises(BadInput, match="is the recording itself"):
        video.main([str(song), "--out", str(song), "--overwrite"])
    with pytest.raises(BadInput, match="is the checkpoint itself"):
        export.main([str(checkpoint), "--out", str(checkpoint), "--overwrite"])
    assert song.read_bytes() == before


@pytest.mark.parametrize("where", ["/etc", ""])
@pytest.mark.parametrize("verb", VERBS)
def test_an_out_that_is_a_folder_or_nothing_is_a_sentence(
    verb: str, where: str, tmp_path: Path, checkpoint: Path, runs: Path
) -> None:
    record(tmp_path / "song.wav")
    if verb == "transcribe" and where:
        where = str(tmp_path / "song.wav")  # it takes a folder
    with pytest.raises(UserError, match=r"is a folder; name a file|it is empty|it takes a folder"):
        call(verb, tmp_path, checkpoint, runs, "--out", where)


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_disk_that_fills_up_leaves_all_files_of_before_and_a_repeat_replaces_them(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, table, picture = tmp_path / "report.html", tmp_path / "runs.csv", tmp_path / "figures" / "a.png"
    write_marked(page, b"page", {table: b"1", picture: b"1"})
    before = {path: path.read_bytes() for path in (page, table, picture)}
    calls, sync = 0, os.fsync

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == moment:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_marked(page, b"other", {table: b"2", picture: b"2"})
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    refuse_foreign(page, [table, picture])
    write_marked(page, b"other", {table: b"2", picture: b"2"})
    refuse_foreign(page, [table, picture])
    assert table.read_bytes() == b"2"
