"""From a command to a finished run, and on to what is made of it: each step reads what the step before wrote."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pretty_midi
import soundfile

from processes import command
from training import RENDERED, TRAINER, make_medley

DEMO = [word for word in RENDERED if not word.startswith(("data=", "model=", "task="))]


def succeed(*arguments: str, cwd: Path) -> str:
    """Run a verb; return what it printed."""
    done = command(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def only(folder: Path, pattern: str) -> Path:
    """The one path that matches."""
    (path,) = folder.glob(pattern)
    return path


def test_demo_transcribe_evaluate_export_load(tmp_path: Path) -> None:
    succeed("train", "experiment=demo", *DEMO, *TRAINER, cwd=tmp_path)
    run = only(tmp_path, "runs/demo/*")
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert (run / "report.html").is_file()

    recording = run / "samples" / "0-input.flac"
    succeed("transcribe", str(recording), "--checkpoint", "runs/demo", "--out", "notes", "--png", cwd=tmp_path)
    midi = only(tmp_path, "notes/*.mid")
    assert only(tmp_path, "notes/*.png").stat().st_size > 1000
    notes = [note for part in pretty_midi.PrettyMIDI(str(midi)).instruments for note in part.notes]

    found = json.loads(succeed("evaluate", "runs/demo", "--json", cwd=tmp_path))
    told = json.loads((run / "status.json").read_text())["metrics"]
    assert found["note_f1_onset"] == told["test/note_f1_onset"]

    succeed("export", "runs/demo", "--out", "model.ckpt", cwd=tmp_path)
    code = "import sys, wavespace; print(len(wavespace.transcribe(sys.argv[1], wavespace.load('model.ckpt'))))"
    fresh = subprocess.run([sys.executable, "-c", code, str(recording)], cwd=tmp_path, capture_output=True, text=True)
    assert fresh.returncode == 0, fresh.stderr
    assert int(fresh.stdout) == len(notes)


def test_a_multirun_as_processes_then_report_then_table(tmp_path: Path) -> None:
    words = ["optim.lr=1e-3,3e-3", "name=rates", *RENDERED, *TRAINER, "hydra/launcher=local"]
    succeed("train", "-m", *words, cwd=tmp_path)
    succeed("report", "runs/rates", cwd=tmp_path)
    page = (tmp_path / "runs" / "rates" / "report.html").read_text()

    from wavespace import analysis

    runs = analysis.table(tmp_path / "runs" / "rates")
    assert sorted(runs["optim.lr"]) == [1e-3, 3e-3]
    for folder in (tmp_path / "runs" / "rates").glob("*/status.json"):
        status = json.loads(folder.read_text())
        row = runs[runs["signature"] == folder.parent.name].iloc[0]
        assert row[status["monitor"]] == status["metrics"][status["monitor"]]
        assert f"{folder.parent.name}/report.html" in page
        assert (folder.parent / "report.html").is_file()
    assert "optim.lr" in analysis.swept(runs)

    succeed("train", "optim.lr=1e-3", "name=alone", *RENDERED, *TRAINER, cwd=tmp_path)
    alone = only(tmp_path, "runs/alone/*/metrics.csv")
    assert (tmp_path / "runs" / "rates" / alone.parent.name / "metrics.csv").read_text() == alone.read_text()


def test_prepare_check_train_kill_train(tmp_path: Path) -> None:
    data = make_medley(tmp_path / "medley")
    succeed("prepare", *[word for word in data if word.startswith("data")], cwd=tmp_path)
    assert "every byte is as it was written" in succeed("check", "--verify", *data, cwd=tmp_path)

    words = [*data, *TRAINER, "trainer.max_steps=40", "trainer.val_check_interval=10"]
    line = [sys.executable, "-m", "wavespace", "train", "name=killed", *words]
    process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while process.poll() is None:
        if list(tmp_path.glob("runs/killed/*/checkpoints/last.ckpt")):
            process.kill()
            break
        time.sleep(0.02)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert json.loads(only(tmp_path, "runs/killed/*/status.json").read_text())["state"] != "finished"
    succeed("train", "name=killed", *words, cwd=tmp_path)
    succeed("train", "name=unbroken", *words, cwd=tmp_path)
    states = [json.loads(only(tmp_path, f"runs/{name}/*/status.json").read_text()) for name in ("killed", "unbroken")]
    assert states[0]["state"] == states[1]["state"] == "finished"
    assert states[0]["metrics"] == states[1]["metrics"]


def test_recordings_of_ones_own(tmp_path: Path) -> None:
    """Notes that one run transcribed and a person corrected are the labels of the next."""
    succeed("train", "experiment=demo", *DEMO, *TRAINER, cwd=tmp_path)
    rate, rng = 22_050, np.random.default_rng(0)
    (tmp_path / "mine").mkdir()
    for name in "abcd":
        soundfile.write(tmp_path / "mine" / f"{name}.wav", 0.1 * rng.normal(size=6 * rate), rate)
    succeed("transcribe", "mine", "--checkpoint", "runs/demo", cwd=tmp_path)
    for path in (tmp_path / "mine").glob("*.mid"):
        midi = pretty_midi.PrettyMIDI(str(path))
        part = pretty_midi.Instrument(0)
        part.notes = [pretty_midi.Note(80, 60 + i, 1.0 + i, 1.5 + i) for i in range(4)]
        midi.instruments = [part]
        midi.write(str(path))
    succeed("train", "name=mine", "data=audio_folder", "data.folder=mine", "data.seconds=1.0", "data.batch_size=2",
            "data.workers=0", *RENDERED[7:], *TRAINER, cwd=tmp_path)  # fmt: skip
    found = json.loads(succeed("evaluate", "runs/mine", "data.folder=mine", "--per-file", "--json", cwd=tmp_path))
    assert sorted(Path(row["recording"]).stem for row in found["files"]) == [*"abcd"]
    assert [row["notes"] for row in found["files"]] == [4] * 4
