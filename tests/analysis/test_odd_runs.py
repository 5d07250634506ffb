"""Run folders and launches that a stranger has made, or a disk has damaged: a row that says so, no more."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from made_runs import config_of, write_run
from wavespace.analysis.runs import read_run
from wavespace.analysis.sweeps import read_launch
from wavespace.analysis.tables import read_runs, table
from wavespace.commands import report
from wavespace.errors import BadInput, UserError
from wavespace.launchfile import Job, JobList, JobResult, write_results
from wavespace.reports.run_page import is_current, write_report
from wavespace.reports.study_page import write_study
from wavespace.runfolder import RunFolder

HUGE = [1e308, -1e308, 10**400, float("nan"), float("inf"), 2**63, -(2**70), 5e-324]
ODD = [
    *HUGE,
    None,
    True,
    -1,
    0.5,
    "",
    "é",
    "\x1b]0;x\x07",
    "a" * 300,
    [],
    [[]],
    [1, 2],
    {},
    {"a": {"b": []}},
    {"": None},
]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Four good runs."""
    for index, lr in enumerate((1e-3, 1e-2, 1e-1, 1.0)):
        write_run(tmp_path / "runs" / "grid" / f"{index:012x}", config_of("grid", 0, lr, 16), 2.0 + index / 10)
    return tmp_path / "runs" / "grid"


def write_launch(folder: Path, study: str, jobs: list[Job], found: list[JobResult]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(JobList(id=folder.name, study=study, jobs=tuple(jobs)).to_json())
    write_results(folder, found)


def mutated(value: Any, path: list[int], odd: Any) -> Any:
    """Plain data with one of its values, at any depth, replaced."""
    if isinstance(value, dict) and value and path:
        key = sorted(value)[path[0] % len(value)]
        return value | {key: mutated(value[key], path[1:], odd)}
    if isinstance(value, list) and value and path:
        place = path[0] % len(value)
        return [*value[:place], mutated(value[place], path[1:], odd), *value[place + 1 :]]
    return odd


def test_runs_of_odd_values_are_rows_beside_the_others(study: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(2 * len(ODD)):
        folder = write_run(study / f"b{number:011}", config_of("grid", 0, 1e-2, 16), 2.0)
        file = folder / ("status.json", "config.yaml")[number % 2]
        odd = ODD[number // 2]
        content = mutated(yaml.safe_load(file.read_text()), rng.integers(0, 20, rng.integers(1, 4)).tolist(), odd)
        file.write_text(yaml.safe_dump(content) if number % 2 else json.dumps(content))
        write_report(RunFolder(folder))
    runs = read_runs([study])
    assert len(runs) == 4 + 2 * len(ODD)
    page = write_study(runs, study.parent / "page").read_text()
    assert all(f"{index:012x}" in page for index in range(4))
    assert "Best of" in page


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    name=st.sampled_from(["status.json", "config.yaml", "metrics.csv"]),
    cut=st.floats(0, 1),
    odd=st.binary(max_size=4),
)
def test_a_run_of_odd_bytes_is_a_row(study: Path, data: st.DataObject, name: str, cut: float, odd: bytes) -> None:
    folder = study / ("b" * 12)
    shutil.rmtree(folder, ignore_errors=True)
    write_run(folder, config_of("grid", 0, 1e-2, 16), 2.0)
    whole = (folder / name).read_bytes()
    place = int(cut * len(whole))
    (folder / name).write_bytes(whole[:place] + odd + whole[place + data.draw(st.integers(0, 4)) :])
    assert len(table([read_run(folder), read_run(study / ("0" * 12))])) == 2
    write_report(RunFolder(folder))


def test_nothing_is_written_through_a_link_in_a_folder_of_runs(study: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (study / "figures").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="figures is a link"):
        write_study(read_runs([study]), study)
    assert not list((tmp_path / "victim").iterdir())


def test_thousands_of_metrics_and_settings_take_seconds(study: Path, tmp_path: Path) -> None:
    folder, many = study / ("0" * 12), {f"val/x{i}": i for i in range(100_000)}
    (folder / "metrics.csv").write_text(f"step,{','.join(many)}\n1{',1' * len(many)}\n")
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"metrics": many, "table": list(many)}))
    before = time.process_time()
    assert "100,001 columns; 500 are the most" in write_report(RunFolder(folder)).read_text()
    write_study(read_runs([study]), tmp_path / "out")
    launch = tmp_path / "runs" / "launches" / "x"
    jobs = [Job(i, f"a{i}", tuple(f"k{i}_{j}={j}" for j in range(6))) for i in range(12)]
    found = [JobResult(i, (), "finished", metrics={"val/l1_db": i}) for i in range(12)]
    write_launch(launch, "s", jobs, found)
    write_study(read_runs([launch]), tmp_path / "out")
    assert time.process_time() - before < 20
    write_launch(launch, "s", [Job(0, "a", tuple(f"k{i}=1" for i in range(9000)))], [])
    with pytest.raises(UserError, match="settings and metrics in all; 2,000 are the most"):
        table(read_runs([launch]))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij")
)


def silence(path: Path, samples: int) -> None:
    """FLAC that is a hundredth of what it inflates to."""
    with soundfile.SoundFile(path, "w", 44100, 8, format="FLAC") as file:
        for _ in range(samples // 2**20):
            file.write(np.zeros((2**20, 8), np.int16))


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("status.json", lambda path: os.mkfifo(path), "not a regular file"),
        ("config.yaml", lambda path: path.symlink_to("/dev/zero"), "link to a file outside"),
        ("metrics.csv", lambda path: os.mkfifo(path), "not a regular file"),
        ("samples/samples.json", lambda path: path.symlink_to("/dev/zero"), "link to a file outside"),
        ("samples/x.flac", lambda path: os.mkfifo(path), "not a regular file"),
        ("samples/x.flac", lambda path: silence(path, 2**21), "too many for a page"),
        ("samples/x.mid", lambda path: path.symlink_to("/etc/hostname"), "link to a file outside"),
        ("samples/x.png", lambda path: path.touch() or os.truncate(path, 2**40), "MB"),
        ("config.yaml", lambda path: path.write_text(BOMB), "alias"),
        ("status.json", lambda path: path.write_text("[" * 100_000), "damaged"),
    ],
)  # fmt: skip
def test_what_would_hang_or_fill_memory_is_named(
    study: Path, name: str, spoil: Callable[[Path], Any], said: str
) -> None:
    folder = study / ("0" * 12)
    (folder / "samples").mkdir()
    file = Path(name).name if name.startswith("samples/x") else "x.png"
    listed = {"name": "x", "description": "", "kind": "sample", "picture": file, "sounds": [], "midi": []}
    (folder / "samples" / "x.png").write_bytes(b"PNG")
    (folder / "samples" / "samples.json").write_text(json.dumps([listed]))
    (folder / name).unlink(missing_ok=True)
    spoil(folder / name)
    tracemalloc.start()
    page = write_report(RunFolder(folder)).read_text()
    assert len(read_runs([study])) == 4
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    [notice] = [line for line in re.findall("<li>(.*)</li>", page) if Path(name).name in line]
    assert said in notice
    assert len(notice) < 300


def test_a_page_that_was_written_while_a_run_trained_is_written_anew(study: Path) -> None:
    folder = study / ("0" * 12)
    write_report(RunFolder(folder))
    assert is_current(folder)
    RunFolder(folder).update(state="running")
    assert not is_current(folder)


def test_a_folder_that_moves_keeps_its_pages_and_their_links(study: Path, tmp_path: Path) -> None:
    report.main([str(study)])
    moved = tmp_path / "elsewhere" / "its name"
    moved.parent.mkdir()
    shutil.move(study, moved)
    links = re.findall(r'<a href="([^"#]*)"', (moved / "report.html").read_text())
    assert len(links) == 4
    assert all((moved / link).is_file() for link in links)
    assert all(is_current(folder) for folder in moved.glob("0*"))


@pytest.mark.parametrize("job", ["../other/000000000000", "/{}/other/000000000000", "..", "."])
@pytest.mark.parametrize("place", ["signature", "study", "url"])
def test_a_launch_writes_no_page_outside_of_its_runs(study: Path, job: str, place: str) -> None:
    write_run(study.parent / "other" / ("0" * 12), config_of("other", 0, 1e-3, 16), 1.0)
    launch = study.parent / "launches" / "1"
    name = job.replace("{}", str(study.parent)[1:])
    chosen = {"signature": "0" * 12, "study": "grid", "url": "https://w/1"} | {place: name}
    entry = Job(0, chosen["signature"], ("optim.lr=0.1",))
    write_launch(launch, chosen["study"], [entry], [JobResult(0, (), "failed", url=chosen["url"])])
    [run] = read_launch(launch)
    assert run.source in ("", "https://w/1", str(study / ("0" * 12)))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.lists(st.integers(0, 9), max_size=5),
    odd=st.sampled_from(ODD),
    name=st.sampled_from(["plan.json", "results.json"]),
)
def test_a_launch_of_odd_values_is_read_or_refused_in_a_sentence(
    study: Path, path: list[int], odd: Any, name: str
) -> None:
    launch = study.parent / "launches" / "1"
    found = JobResult(0, ("optim.lr=0.1",), "finished", metrics={"val/l1_db": 2.0}, minutes=1.0)
    write_launch(launch, "grid", [Job(0, "0" * 12, ("optim.lr=0.1",))], [found])
    content = json.loads((launch / name).read_text())
    (launch / name).write_text(json.dumps(mutated(content, path, odd)))
    with suppress(UserError):
        assert len(table(read_launch(launch))) >= 1


def test_a_plan_that_is_a_pipe_is_refused(study: Path) -> None:
    launch = study.parent / "launches" / "1"
    launch.mkdir(parents=True)
    os.mkfifo(launch / "plan.json")
    with pytest.raises(BadInput):
        read_launch(launch)


def test_escape_sequences_do_not_reach_the_terminal(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\x9b1m"
    RunFolder(study / ("0" * 12)).update(state="failed", reason=evil, table=[evil], metrics={f"val/{evil}": 1.0})
    (study / ("e" * 11 + "\x1b")).mkdir()
    (study / ("e" * 11 + "\x1b") / "status.json").write_text("{}")
    report.main([str(study)])
    printed = capsys.readouterr().out
    assert "owned" in printed
    assert not set(printed) & set("\x1b\x07\u202e\x9b")
