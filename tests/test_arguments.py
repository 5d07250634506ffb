"""What a person types after `wavespace VERB`: flags in any order, names of any bytes, paths of any characters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hydra._internal.utils import get_args_parser

from parts import save, small_task
from processes import command
from wavespace.commands import check, evaluate, export, pods, prepare, report, video
from wavespace.commands.transcribe import main as transcribe
from wavespace.config import compose
from wavespace.errors import BadCheckpoint, ConfigError, UserError
from wavespace.locate import locate
from wavespace.runfolder import RunFolder
from wavespace.terminal import Arguments, flags_and_words, folder_or_file
from wavespace.text import counted, printable


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = small_task("multi_resolution", "peaks", "piano_roll")
    return save(task, tmp_path_factory.mktemp("model") / "best.ckpt")


def silence(path: Path) -> Path:
    with path.open("wb") as file:  # by its bytes: soundfile takes no such name
        soundfile.write(file, np.zeros(2_000), 8_000, format="WAV")
    return path


MAINS: dict[str, Callable[[list[str]], None]] = {
    "transcribe": transcribe, "evaluate": evaluate.main, "export": export.main, "video": video.main,
    "report": report.main, "pods": pods.main, "check": check.main, "prepare": prepare.main,
}  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "wrong", "right"),
    [
        *[("transcribe", "--overwite", "--overwrite"), ("evaluate", "--jsn", "--json"), ("export", "--onx", "--onnx")],
        *[("video", "--fsp", "--fps"), ("report", "--page", "--pages"), ("pods", "--run", "--runs")],
        *[("check", "--verfy", "--verify"), ("prepare", "--verif=1", "--verify")],
    ],
)
def test_an_unknown_flag_of_any_verb_names_the_nearest(verb: str, wrong: str, right: str) -> None:
    for words in ([wrong, "x"], ["x", wrong]):
        with pytest.raises(UserError, match=f"no flag '{wrong.partition('=')[0]}', did you mean '{right}'"):
            MAINS[verb](words)


def test_unknown_flags_of_train_are_a_sentence(tmp_path: Path) -> None:
    found = command("train", "seed=1", "--multrun", cwd=tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert "no flag '--multrun', did you mean '--multirun'" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_flags_stand_anywhere_and_end_at_two_dashes() -> None:
    parser = Arguments(prog="wavespace x")
    parser.add_argument("first")
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--out", type=folder_or_file)
    parser.add_argument("--number", type=float)
    parser.add_argument("--json", action="store_true")
    for words in (
        ["--json", "a", "--out", "o", "b=1", "--number", "-2"],
        ["a", "b=1", "--number=-2", "--json", "--out=o"],
        ["--out", "o", "a", "--number", "-2", "--json", "--", "b=1"],
    ):
        assert vars(parser.parse_args(words)) == {
            "first": "a", "rest": ["b=1"], "out": Path("o"), "number": -2.0, "json": True
        }  # fmt: skip
    assert parser.parse_args(["--", "-a", "--json"]).rest == ["--json"]
    for words in (["--out"], ["a", "--out", "--json"], ["a", "--out", "--", "b"], ["a", "--out="]):
        with pytest.raises(UserError, match=r"expected one argument|it is empty"):
            parser.parse_args(words)
    flags, words = flags_and_words(get_args_parser(), ["a=1", "--cfg", "job", "b=2", "-cd", "x", "--info", "c=3", "-m"])
    assert (flags, words) == (["--cfg=job", "-cd", "x", "--info", "-m"], ["a=1", "b=2", "c=3"])


def test_home_is_where_a_tilde_says_after_an_equals_sign_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["data.root=~/a,~/b", "data.folder=~", "name=a~b", "~trainer.max_time"]
    assert flags_and_words(get_args_parser(), words)[1] == [
        f"data.root={tmp_path}/a,{tmp_path}/b", f"data.folder={tmp_path}", "name=a~b", "~trainer.max_time"
    ]  # fmt: skip
    (tmp_path / "x.ckpt").touch()
    assert locate("~/x.ckpt") == tmp_path / "x.ckpt"
    assert folder_or_file("~/x.ckpt") == tmp_path / "x.ckpt"


def test_names_of_any_bytes_are_told_safely_and_the_others_are_done(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [b"latin\xe9.wav", b"two\nlines.wav", b"\x1b[31mred.wav", b"-dash.wav", b"x" * 245 + b".wav", b"plain.wav"]
    paths = [silence(tmp_path / os.fsdecode(name)) for name in names]
    (tmp_path / os.fsdecode(b"no\xe9audio\n.wav")).write_bytes(b"nothing")
    found = command("transcribe", str(tmp_path), "--checkpoint", str(checkpoint))
    assert found.returncode == 2
    assert r"no\udce9audio\n.wav" in found.stderr
    assert len(found.stderr.splitlines()) == 1
    for path in paths:
        assert path.with_suffix(".mid").is_file(), path
        assert f"{printable(path)}: 0 notes" in found.stdout
    assert "\x1b" not in found.stdout + found.stderr
    os.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no flag '-dash.wav' \(the file of this name is ./-dash.wav\)"):
        transcribe(["-dash.wav", "--checkpoint", str(checkpoint)])


def test_a_folder_of_runs_is_its_newest_finished_run(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for age, (name, state) in enumerate([("c", "failed"), ("b", "finished"), ("a", "finished")]):
        folder = RunFolder(tmp_path / "runs" / "demo" / name)
        folder.best.parent.mkdir(parents=True)
        folder.best.write_bytes(checkpoint.read_bytes())
        folder.update(state=state, monitor="val/note_f1_onset")
        os.utime(folder.best, (10**9 - age, 10**9 - age))
    for place in (tmp_path / "runs", tmp_path / "runs" / "demo"):
        assert locate(place) == tmp_path / "runs" / "demo" / "b"
        assert f"newest finished run in {place} is {tmp_path / 'runs/demo/b'}" in capsys.readouterr().err
    assert locate(tmp_path / "runs" / "demo" / "c") == tmp_path / "runs" / "demo" / "c"  # it was named
    with pytest.raises(BadCheckpoint, match="holds no finished run; name a run folder"):
        locate(tmp_path)
    silence(tmp_path / "a.wav")
    transcribe([str(tmp_path / "a.wav"), "--checkpoint", str(tmp_path / "runs")])
    assert capsys.readouterr().err.count("newest finished") == 1


@pytest.mark.parametrize("arguments", [["completion", "fish"], ["worker"], ["pod-entry"], ["tran"]])
def test_what_is_not_for_a_person_or_not_there_is_a_sentence(arguments: list[str], tmp_path: Path) -> None:
    found = command(*arguments, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("wavespace: ")
    assert len(found.stderr.splitlines()) == 1


def test_the_form_of_a_path_that_a_sentence_shows_works_in_a_shell() -> None:
    shown: list[str] = []
    paths = [f"/m/a{sign}b" for sign in "=#&('~é日\"*"]
    for path in paths:
        try:
            assert compose(["data=audio_folder", f"data.folder={path}"]).data.folder == path  # as it is typed
        except ConfigError as error:
            shown.append(str(error).partition("; as a text it is ")[2].splitlines()[0])
        else:
            shown.append(f"'data.folder={path}'".replace("a'b", "a'\"'\"'b"))
    code = (
        "import json, sys; from wavespace.config import compose; "
        "print(json.dumps([compose(['data=audio_folder', word]).data.folder for word in sys.argv[1:]]))"
    )
    found = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {" ".join(shown)}', sys.executable, code],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(found.stdout) == paths


def test_a_count_agrees_with_its_noun_and_verb() -> None:
    assert [counted(1, what) for what in ("pages of runs", "audio files are left out")] == [
        "1 page of runs", "1 audio file is left out",
    ]  # fmt: skip
    assert [counted(n, "files") for n in (0, 2, 1024)] == ["0 files", "2 files", "1,024 files"]
