"""`hydra/launcher=local`: several processes, one table; killed runs resume, finished ones are not repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from rich.console import Console

from launcher.pretend import HOLD, MARK, in_place_of_python
from processes import command, forked
from training import RENDERED, TRAINER
from wavespace.config import compose
from wavespace.launchfile import Job, JobResult
from wavespace.terminal import table_console
from wavespace_launcher import status
from wavespace_launcher.launch import Member, interruptible
from wavespace_launcher.local import LocalJob, _end
from wavespace_launcher.status import Board, table

LOCAL = ["hydra/launcher=local", "hydra.launcher.processes=2"]


def launch(program: str, arguments: list[str]) -> None:
    """`wavespace train -m …` in the working folder, whose processes pretend."""
    from wavespace.cli import main

    Path("launcher").write_text(str(os.getpid()))
    sys.executable = program
    sys.argv = ["wavespace", "train", "-m", *RENDERED, *TRAINER, *LOCAL, *arguments]
    main()


Start = Callable[..., "Future[CompletedProcess[str]]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A command that goes on while the test looks on."""
    program = in_place_of_python(tmp_path)
    with ThreadPoolExecutor() as pool:
        yield lambda *arguments: pool.submit(forked, launch, program, list(arguments), cwd=tmp_path)
        (tmp_path / HOLD).unlink(missing_ok=True)


def until(happens: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)


def states(folder: Path) -> list[str]:
    found = [json.loads(path.read_text()) for path in folder.glob("runs/run/*/status.json")]
    return sorted(status["state"] for status in found)


def trainings(folder: Path) -> list[int]:
    """How often each run began, and whether it ended as often."""
    return sorted(path.read_text().count("began") for path in folder.glob(f"runs/run/*/{MARK}"))


def launcher(folder: Path, but: int | None = None) -> int:
    """The process that launches, or the next one."""
    told = folder / "launcher"
    until(lambda: told.read_text() not in ("", str(but)))
    return int(told.read_text())


def test_a_run_that_fails_is_named_and_the_others_finish(start: Start, tmp_path: Path) -> None:
    ended = start("seed=9,1").result()
    assert ended.returncode == 2
    assert "wavespace: job 0 (" in ended.stderr
    assert "no luck" in ended.stderr
    assert "Traceback" not in ended.stderr
    rows = [line.split()[:3] for line in ended.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert rows[-2:] == [["0", "seed=9", "failed:"], ["1", "seed=1", "finished"]]
    assert "1/2 done, 0 running, 0 waiting, 1 failed, best " in ended.stdout


def test_a_killed_launcher_s_runs_are_each_done_once(start: Start, tmp_path: Path) -> None:
    sweep = ["seed=0,9,1,2", "save_every=3,4", "hydra.launcher.raise_on_failure=false"]  # two of each configuration
    hold = tmp_path / HOLD
    hold.touch()
    first = start(*sweep)
    until(lambda: states(tmp_path) == ["failed", "running", "running"])
    killed = launcher(tmp_path)
    os.kill(killed, signal.SIGKILL)
    first.result()
    assert states(tmp_path) == ["failed", "running", "running"], "they live on"

    second = start(*sweep)
    launcher(tmp_path, but=killed)
    hold.unlink()
    ended = second.result()
    assert ended.returncode == 0, ended.stderr
    assert states(tmp_path) == ["failed", "finished", "finished", "finished"]
    assert trainings(tmp_path) == [1, 1, 1, 3], "a run was done twice, or what failed was not tried again"
    assert "best 0.001" in ended.stdout  # the least, as runs said it
    assert ended.stdout.count("failed: RuntimeError: no luck") == 2


def test_ctrl_c_lets_runs_save_and_says_so(start: Start, tmp_path: Path) -> None:
    (tmp_path / HOLD).touch()
    started = start("seed=0,1,2")
    until(lambda: trainings(tmp_path) == [1, 1])
    os.kill(launcher(tmp_path), signal.SIGINT)
    ended = started.result()
    assert ended.returncode == 130, ended.stderr
    assert "interrupted: runs save what they have; the same command resumes" in ended.stdout
    assert states(tmp_path) == ["preempted"] * 2
    assert ended.stdout.count("preempted") == 2
    assert ended.stdout.count("queued") == 1
    assert len(list(tmp_path.rglob("last.ckpt"))) == 2
    assert "Traceback" not in ended.stderr


def test_an_interrupted_start_or_stop_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\ntrap '' TERM\necho began\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    cfg = compose([*RENDERED, *TRAINER, f"runs={tmp_path / 'runs'}"])
    job = LocalJob(Member(Job(0, "", ()), cfg, cfg), None)

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, interruptible():
        patch.setattr(subprocess, "Popen", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            job.start(0, {})
    assert job.running
    until((job.folder.path / "output.log").read_text)
    board = Board("study")
    monkeypatch.setattr(board, "say", lambda text: signal.raise_signal(signal.SIGINT))
    with interruptible():
        _end([job], board)
    assert job.code == -signal.SIGKILL


def test_a_search_of_wandb_s_is_refused_without_pods(tmp_path: Path) -> None:
    for words in ([], ["-m"], ["-m", "hydra/launcher=local"]):
        found = command("train", *words, "sweep=salience_lr", cwd=tmp_path)
        assert found.returncode == 2
        assert found.stderr.count("this sweep is drawn by W&B") == 1
        assert "Traceback" not in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_launcher_imports_no_service_s_client() -> None:
    code = (
        "import sys, hydra_plugins.wavespace_launchers, wavespace_launcher.local; "
        "print(*({'wandb', 'runpod', 'torch'} & {*sys.modules}))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert said.stdout.strip() == ""


def result(index: int, state: str, value: float | None = None, mode: str | None = None) -> JobResult:
    return JobResult(index, (f"seed={index}",), state, value=value, mode=mode)


@pytest.mark.parametrize(("mode", "best"), [("min", ", best 0.25"), ("max", ", best 0.5"), (None, "")])
def test_the_progress_line_tells_where_a_sweep_stands(
    mode: str | None, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, shown = [100.0], list[str]()
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    board = Board("study")
    board.console = Console(force_terminal=True)
    monkeypatch.setattr(Console, "status", lambda self, line: Shown(shown))
    done = [result(0, "finished", 0.5, mode)]  # before this command
    board([*done, result(1, "running"), *(result(i, "queued") for i in range(2, 6))])
    assert shown[-1] == f"study: 1/6 done, 1 running, 4 waiting, 0 failed{', best 0.5' if mode else ''}"
    now[0] += 90.0  # in which one was done and one failed, so that the three others take as long and a half
    done += [result(1, "finished", 0.25, mode), result(2, "failed", 0.1)]
    board([*done, result(3, "running"), result(4, "preempted"), result(5, "queued")])
    assert shown[-1] == f"study: 2/6 done, 1 running, 2 waiting, 1 failed{best}, about 2 min left"


def test_brackets_in_overrides_and_in_answers_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    odd = JobResult(0, ("data.splits=[test]",), "failed", reason="bad [/x]")
    table_console().print(table([odd], None))
    board = Board("study")
    board.console = Console(force_terminal=True, width=200)
    board([odd], "no [/y]")
    board.close()
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("data.splits=[test]", "failed: bad [/x]", "1 failed | no [/y]"))


class Shown:
    """A terminal's line."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def start(self) -> None:
        pass

    def update(self, line: str) -> None:
        self.lines.append(line)
