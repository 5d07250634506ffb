"""`wavespace transcribe`: audio files of any format to notes; files that can not be used are reported and left out."""

from __future__ import annotations

import csv
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
import pytest
import soundfile
from omegaconf import OmegaConf
from rich.progress import Progress

import wavespace
from parts import save, small_task, sound_of
from processes import forked
from wavespace.commands.transcribe import main
from wavespace.config import compose
from wavespace.data.base import Notes
from wavespace.errors import BadCheckpoint, BadInput, Incompatible
from wavespace.inference import transcribe
from wavespace.runfolder import RunFolder
from wavespace.tasks.piano_roll import PianoRoll

MELODY: Notes = np.array([[0.5 * i, 0.5 * i + 0.4, pitch, 90] for i, pitch in enumerate((72, 76, 79, 74), 1)])
SECONDS = 3.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The baseline, which finds notes without having learned: a real checkpoint in a moment."""
    return save(small_task("multi_resolution", "peaks", "piano_roll"), tmp_path_factory.mktemp("model") / "best.ckpt")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "melody.wav"
    soundfile.write(path, sound_of(MELODY, 44_100, SECONDS), 44_100)
    return path


def holds_the_melody(notes: Notes) -> bool:
    near = (np.abs(notes[:, None, 0] - MELODY[:, 0]) < 0.06) & (notes[:, None, 2] == MELODY[:, 2])
    return bool(near.any(0).all())


def of_midi(path: Path) -> Notes:
    """Read by another library than writes it in the end."""
    (instrument,) = pretty_midi.PrettyMIDI(str(path)).instruments
    rows = [(n.start, n.end, n.pitch, n.velocity) for n in instrument.notes]
    return np.array(sorted(rows, key=lambda row: (row[0], row[2]))).reshape(-1, 4)


def of_csv(path: Path) -> Notes:
    header, *rows = csv.reader(path.read_text().splitlines())
    assert header == ["onset", "offset", "pitch", "velocity"]
    return np.array(rows, dtype=float).reshape(-1, 4)


def test_the_notes_of_a_melody_are_found_in_order(checkpoint: Path, recording: Path) -> None:
    notes = transcribe(recording, checkpoint)
    assert holds_the_melody(notes)
    assert notes.dtype == np.float64
    assert (notes[:, 1] > notes[:, 0]).all()
    assert notes[:, 0].min() >= 0
    assert notes[:, 1].max() <= SECONDS + 0.1
    assert [tuple(row) for row in notes[:, [0, 2]]] == sorted(tuple(row) for row in notes[:, [0, 2]])
    assert ((notes[:, 3] >= 1) & (notes[:, 3] <= 127)).all()


def test_a_note_that_is_cut_off_by_the_end_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.wav"
    soundfile.write(path, sound_of(np.array([[0.5, 3.0, 76, 100]]), 22_050, 1.0), 22_050)
    notes = transcribe(path, checkpoint)
    (last,) = notes[(notes[:, 2] == 76) & (notes[:, 0] < 0.6)]
    assert last[1] > 0.95


def test_a_path_a_run_folder_and_a_loaded_task_give_the_same_notes(
    checkpoint: Path, recording: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.ckpt").write_bytes(checkpoint.read_bytes())
    notes = [transcribe(recording, source) for source in (checkpoint, str(checkpoint), folder)]
    task = wavespace.load(checkpoint)
    assert isinstance(task, PianoRoll)
    for other in (*notes[1:], transcribe(str(recording), task)):
        np.testing.assert_array_equal(other, notes[0])


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (22_050, 2), (44_100, 8), (192_000, 1)])
def test_rates_and_channels_do_not_matter(rate: int, channels: int, checkpoint: Path, tmp_path: Path) -> None:
    audio = np.repeat(sound_of(MELODY, rate, SECONDS)[:, None], channels, axis=1)
    soundfile.write(tmp_path / "melody.wav", audio, rate)
    main([str(tmp_path / "melody.wav"), "--checkpoint", str(checkpoint)])
    assert holds_the_melody(of_midi(tmp_path / "melody.mid"))


def test_midi_csv_and_picture_tell_the_same(checkpoint: Path, recording: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    out = tmp_path / "new" / "folder"
    main([str(recording), "--checkpoint", str(checkpoint), "--out", str(out), "--csv", "--png"])
    assert sorted(path.name for path in out.iterdir()) == ["melody.csv", "melody.mid", "melody.png"]
    table, midi, notes = of_csv(out / "melody.csv"), of_midi(out / "melody.mid"), transcribe(recording, checkpoint)
    assert len(notes) > 3
    np.testing.assert_allclose(table, notes, atol=0.51)
    np.testing.assert_allclose(table[:, :2], notes[:, :2], atol=1e-4)
    order = np.lexsort((table[:, 1], table[:, 0], table[:, 2]))
    again = np.lexsort((midi[:, 1], midi[:, 0], midi[:, 2]))
    np.testing.assert_allclose(midi[again][:, :2], table[order][:, :2], atol=6e-4)  # a tick is 0.52 ms
    np.testing.assert_array_equal(midi[again][:, 2:], table[order][:, 2:])
    picture = imread(out / "melody.png")
    assert picture.shape[0] > 300
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 20


def test_results_are_named_for_the_file_whatever_dots_and_signs_are_in_it(checkpoint: Path, tmp_path: Path) -> None:
    names = ["01. Prelude", "take 2.5", r"worth $\x$", "noël"]
    files = [tmp_path / f"{name}.wav" for name in names]
    for file in files:
        soundfile.write(file, np.zeros(4_000), 8_000)
    main([*map(str, files), "--checkpoint", str(checkpoint), "--csv", "--png"])
    for suffix in ("mid", "csv", "png"):
        assert {path.name for path in tmp_path.glob(f"*.{suffix}")} == {f"{name}.{suffix}" for name in names}


def test_silence_has_no_notes(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "silence.flac"
    soundfile.write(path, np.zeros(5 * 22_050), 22_050)
    main([str(path), "--checkpoint", str(checkpoint), "--csv", "--png"])
    assert capsys.readouterr().out == f"{path}: 0 notes -> {path.with_suffix('.mid')}\n"
    assert not len(of_csv(tmp_path / "silence.csv"))
    assert pretty_midi.PrettyMIDI(str(tmp_path / "silence.mid")).get_end_time() == 0


@pytest.mark.parametrize("samples", [1, 100, 511])
def test_a_click_of_audio_is_enough(samples: int, checkpoint: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "click.wav", np.full(samples, 0.5), 22_050)
    assert transcribe(tmp_path / "click.wav", checkpoint).shape[1] == 4


def test_bad_files_are_told_and_the_others_go_on(
    checkpoint: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, text, missing = (tmp_path / name for name in ("empty.wav", "text.wav", "missing.wav"))
    soundfile.write(empty, np.zeros(0), 8_000)
    text.write_text("la la la")
    cut = tmp_path / "cut.flac"
    soundfile.write(cut, np.random.default_rng(0).normal(size=88_200) * 0.1, 44_100)
    cut.write_bytes(cut.read_bytes()[:40_000])
    with pytest.raises(BadInput) as told:
        main([*map(str, (empty, text, missing, cut, recording)), "--checkpoint", str(checkpoint)])
    lines = str(told.value).split("\n")
    for line, path, reason in zip(
        lines,
        (empty, text, missing, cut),
        ("holds no samples", "can't be read", "no such file", "damaged"),
        strict=True,
    ):
        assert line.startswith(f"{path}: ")
        assert reason in line
    assert [path.name for path in tmp_path.glob("*.mid")] == ["melody.mid"]
    assert capsys.readouterr().out.startswith(f"{recording}: ")


def test_what_is_odd_about_a_recording_is_told(
    checkpoint: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio, rate = soundfile.read(recording)
    soundfile.write(recording, np.column_stack([audio, -audio]), rate)
    main([str(recording), "--checkpoint", str(checkpoint)])
    assert "channels cancel each other" in capsys.readouterr().err


def test_results_do_not_replace_each_other(checkpoint: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a" / "take.wav", tmp_path / "b" / "take.wav"]
    for file, seconds in zip(files, (1, 2)):
        file.parent.mkdir()
        soundfile.write(file, np.zeros(seconds * 8_000), 8_000)
    with pytest.raises(BadInput, match=f"{files[1]}: its results would replace those of {files[0]}"):
        main([*map(str, files), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")])
    main([*map(str, files), "--checkpoint", str(checkpoint)])
    assert all(file.with_suffix(".mid").is_file() for file in files)


def test_a_folder_that_can_not_be_written_is_a_sentence(checkpoint: Path, recording: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file: is a file; it takes a folder"):
        main([str(recording), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "file")])
    with pytest.raises(BadInput, match=r"melody.mid: can't be written \("):
        main([str(recording), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "file" / "inner")])


def test_what_is_not_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "score.mid").touch()
    with pytest.raises(BadInput, match=r"score\.mid: is a MIDI file, no recording$"):
        main([str(tmp_path / "score.mid")])
    (tmp_path / "phone.m4a").touch()
    with pytest.raises(BadInput, match="there are no audio files in it"):
        main([str(tmp_path)])
    assert "1 file is left out, whose format can't be read" in capsys.readouterr().err


# --- Checkpoints that can't be used ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no such checkpoint"), (b"", "is not a checkpoint"), (b"hello\nworld", "is not a checkpoint")],
)
def test_what_is_no_checkpoint_is_a_sentence(
    content: bytes | None, reason: str, recording: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadCheckpoint) as told:
        transcribe(recording, path)
    assert str(told.value).startswith(f"{path}: ")
    assert reason in str(told.value)
    assert "\n" not in str(told.value)
    assert "weights_only" not in str(told.value)


def test_a_damaged_checkpoint_is_a_sentence(checkpoint: Path, recording: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    path = tmp_path / "half.ckpt"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadCheckpoint, match="is not a checkpoint, or is damaged"):
        transcribe(recording, path)


def test_a_checkpoint_of_another_task_is_refused(recording: Path, tmp_path: Path) -> None:
    path = save(small_task("mel", "conv2d", "reconstruction"), tmp_path / "mel.ckpt")
    with pytest.raises(Incompatible, match=f"{path} was trained on Reconstruction; .* task=piano_roll"):
        main([str(recording), "--checkpoint", str(path)])
    assert not recording.with_suffix(".mid").exists()


def test_without_a_checkpoint_the_newest_finished_run_is_taken(
    checkpoint: Path, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAVESPACE_RUNS", str(tmp_path / "runs"))
    with pytest.raises(BadCheckpoint, match="no finished run of task=piano_roll"):
        transcribe(recording)
    runs = {name: RunFolder(tmp_path / "runs" / "study" / name) for name in ("old", "new", "failed", "other")}
    for age, (name, folder) in enumerate(runs.items()):
        folder.best.parent.mkdir(parents=True)
        folder.best.write_bytes(checkpoint.read_bytes() if name == "new" else b"")
        os.utime(folder.best, (1e9 + age, 1e9 + age))
        task = "reconstruction" if name == "other" else "piano_roll"
        (folder.path / "config.yaml").write_text(OmegaConf.to_yaml(compose([f"task={task}"]), resolve=True))
        folder.update(state="failed" if name == "failed" else "finished")
    assert holds_the_melody(transcribe(recording))
    runs["new"].update(state="running")
    with pytest.raises(BadCheckpoint, match=f"{runs['old'].best}: is not a checkpoint"):
        transcribe(recording)


# --- Long recordings -------------------------------------------------------------------------------------


def peak_memory(work: Callable[[], object]) -> float:
    """MiB by which the resident memory of this process grows at most."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    except OSError:
        pytest.skip("needs Linux and leave to reset the peak of its resident memory")

    def status(name: str) -> int:
        return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(name))

    before = status("VmRSS")
    work()
    return (status("VmHWM") - before) / 1024


def test_a_recording_of_any_length_takes_the_same_memory(tmp_path: Path) -> None:
    task = small_task("log_frequency", "peaks", "piano_roll")
    assert isinstance(task, PianoRoll)
    minute = np.tile(sound_of(MELODY, 22_050, SECONDS), 20)
    grown = []
    for minutes in (2, 2, 40):  # the first warms up
        path = tmp_path / "long.wav"
        with soundfile.SoundFile(path, "w", 22_050, 1) as file:
            for _ in range(minutes):
                file.write(minute)
        grown.append(peak_memory(lambda path=path: transcribe(path, task)))
        path.unlink()
    assert grown[2] < grown[1] + 50  # MiB; the audio alone has 192 more


def test_progress_counts_the_seconds_of_the_recording(
    checkpoint: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Progress] = []
    stop = Progress.stop
    monkeypatch.setattr(Progress, "stop", lambda self: bars.append(self) or stop(self))
    transcribe(recording, checkpoint)
    (task,) = bars[0].tasks
    assert task.description == recording.name
    assert task.total == pytest.approx(SECONDS)
    assert task.completed == pytest.approx(SECONDS, abs=0.05)


def transcribe_until_told(moment: str, call: int, arguments: list[str]) -> None:
    """`wavespace transcribe`, to which Ctrl-C comes in a function's n-th call."""
    from wavespace import inference
    from wavespace.cli import main
    from wavespace.commands import transcribe as command

    module = command if hasattr(command, moment) else inference
    function, calls = getattr(module, moment), iter(range(1, 100))

    def told(*given: Any) -> Any:
        if next(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return function(*given)

    setattr(module, moment, told)
    sys.argv = ["wavespace", "transcribe", *arguments]
    main()


@pytest.mark.parametrize(
    ("moment", "call", "done"), [("transcribe", 2, 1), ("write_marked", 2, 2), ("load_transcriber", 1, 0)]
)
def test_ctrl_c_leaves_all_files_of_a_recording_or_none(
    moment: str, call: int, done: int, checkpoint: Path, recording: Path
) -> None:
    others = [recording.with_name(f"{name}.wav") for name in "abc"]
    for other in others:
        other.write_bytes(recording.read_bytes())
    words = [*map(str, others), "--csv", "--checkpoint", str(checkpoint)]
    ended = forked(transcribe_until_told, moment, call, words)
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr
    if done:
        assert ended.stderr.endswith(f"wavespace: stopped; {done} of 3 recordings are transcribed\n")
    written = {path.name for path in recording.parent.iterdir()} - {path.name for path in [recording, *others]}
    assert written == {f"{name}.{kind}" for name in "abc"[:done] for kind in ("mid", "csv")}


def test_samples_and_their_rate_give_the_notes_of_their_file(checkpoint: Path, recording: Path) -> None:
    samples, rate = soundfile.read(recording, dtype="int16")
    assert np.array_equal(transcribe((samples, rate), checkpoint), transcribe(recording, checkpoint))


@pytest.mark.parametrize("audio", [np.zeros(9), (np.zeros((2, 9)), 8000), (np.zeros(9), "8000"), None])
def test_what_is_no_audio_is_a_sentence(audio: Any, checkpoint: Path) -> None:
    with pytest.raises(TypeError, match=r"it takes the path of a file, or \(samples, rate\)"):
        transcribe(audio, checkpoint)
    with pytest.raises(TypeError, match="a checkpoint is named by a path or an address"):
        transcribe("a.wav", 3)  # type: ignore[arg-type]
