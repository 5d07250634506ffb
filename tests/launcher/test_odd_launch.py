"""A launch's folder that a stranger has made, or a disk has damaged, is read or refused in a sentence."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wavespace.commands.pods import main
from wavespace.errors import BadInput, UserError
from wavespace.launchfile import Job, JobResult, read_results, write_results
from wavespace_launcher.ledger import Launch
from wavespace_launcher.plan import Plan, RunpodSettings
from wavespace_launcher.state import State
from wavespace_launcher.status import table

ODD = st.sampled_from(
    [None, True, -1, 2**70, 10**400, 0.5, float("nan"), 1e308, "", "x", "../x", "\x1b[2J", [], [[1]], {}, {"a": [None]}]
)
NAMES = st.sampled_from(["plan.json", "ledger.jsonl", "results.json"])


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    plan = Plan(
        id="a",
        study="s",
        jobs=(Job(0, "f" * 12, ("x=1",)),),
        settings=RunpodSettings(max_cost=1, image="i", gpus=("g",)),
    )
    made = Launch.create(tmp_path, plan)
    made.write("sweep.intent", name="a-0", jobs=[0])
    until = time.time() + 60
    made.write(
        "pod.intent", name="ws-a-0-0", slot=0, attempt=0, candidate=["g", "secure", None], price=0.1, until=until
    )
    made.write("pod", name="ws-a-0-0", id="p")
    made.write("pod.gone", name="ws-a-0-0")
    write_results(made.folder, [JobResult(0, ("x=1",), "finished", value=1.0)])
    return made


def replaced(value: Any, path: list[int], odd: Any) -> Any:
    """Plain data with one of its values, at any depth, replaced."""
    if path and isinstance(value, dict) and value:
        key = sorted(value)[path[0] % len(value)]
        return value | {key: replaced(value[key], path[1:], odd)}
    if path and isinstance(value, list) and value:
        place = path[0] % len(value)
        return [*value[:place], replaced(value[place], path[1:], odd), *value[place + 1 :]]
    return odd


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES, path=st.lists(st.integers(0, 20), max_size=4), odd=ODD)
def test_odd_values_are_read_or_refused_in_a_sentence(launch: Launch, name: str, path: list[int], odd: Any) -> None:
    file = launch.folder / name
    before = file.read_text()
    lines = [json.loads(line) for line in before.splitlines()] if name == "ledger.jsonl" else [json.loads(before)]
    lines = replaced(lines, [len(before) % 7, *path], odd)
    try:
        file.write_text("\n".join(map(json.dumps, lines)))
        with suppress(UserError):
            assert launch.plan.jobs[0].text
        with suppress(UserError):
            state = State.of(launch.events())
            assert state.spent(time.time()) + state.committed(time.time()) >= -1e18
        with suppress(UserError):
            table(read_results(launch.folder) or [JobResult(0, ())], None)
    finally:
        file.write_text(before)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["plan.json", "ledger.jsonl", "results.json"]),
    place=st.floats(0, 1),
    odd=st.binary(max_size=3),
)
def test_odd_bytes_are_read_or_refused_in_a_sentence(launch: Launch, name: str, place: float, odd: bytes) -> None:
    file = launch.folder / name
    before = file.read_bytes()
    start = int(place * len(before))
    try:
        file.write_bytes(before[:start] + odd + before[start + 1 :])
        with suppress(UserError):
            assert launch.plan.jobs
        with suppress(UserError):
            State.of(launch.events())
        with suppress(UserError):
            table(read_results(launch.folder) or [JobResult(0, ())], None)
    finally:
        file.write_bytes(before)


def test_one_bad_launch_is_a_row_beside_the_others(
    launch: Launch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    runs = launch.folder.parents[1]
    for name, content in (("b", "{}"), ("c", "[" * 10_000), ("d\x1b[2J", "null")):
        (launch.folder.parent / name).mkdir()
        (launch.folder.parent / name / "plan.json").write_text(content)
    main(["status", "--runs", str(runs)])
    printed = capsys.readouterr().out
    assert printed.count("is not a launch's plan") == 3
    assert "\x1b" not in printed
    os.mkfifo(launch.folder.parent / "c" / "ledger.jsonl")
    with pytest.raises(BadInput, match="not a regular file"):
        list(Launch(launch.folder.parent / "c").events())
