"""The table has the runs' own numbers and types; what is damaged, unfinished or old is a row with its reason."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wavespace
from made_runs import config_of, write_run, write_sweep
from wavespace import analysis, reports
from wavespace.analysis.runs import (
    higher_is_better,
    parse_config,
    parse_metrics,
    read_run,
)
from wavespace.analysis.tables import objective, read_runs, spread, swept, table
from wavespace.errors import BadInput, UserError
from wavespace.launchfile import Job, JobResult, write_results
from wavespace.tasks.piano_roll import PianoRoll
from wavespace.tasks.reconstruction import Reconstruction
from wavespace.tasks.salience import Salience
from wavespace.tasks.self_salience import SelfSalience
from wavespace_launcher.ledger import Launch
from wavespace_launcher.plan import Plan, RunpodSettings


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("runs") / "grid")


def test_numbers_equal_those_in_the_runs_own_files(sweep: Path) -> None:
    rows = analysis.table(sweep).set_index("signature")
    assert len(rows) == 24
    for folder in sorted(sweep.iterdir())[::7]:
        status = json.loads((folder / "status.json").read_text())
        with (folder / "metrics.csv").open() as file:
            values = [float(row["val/l1_db"]) for row in csv.DictReader(file) if row["val/l1_db"]]
        row = rows.loc[folder.name]
        assert row["val/l1_db"] == status["metrics"]["val/l1_db"]
        assert row["test/l1_db"] == status["metrics"]["test/l1_db"]
        assert (row["val/l1_db:best"], row["val/l1_db:last"]) == (sorted(values)[0], values[-1])
        assert (row["step"], row["best_step"], row["minutes"]) == (100, 60, 1.5)


def test_columns_have_types_and_survive_a_file(sweep: Path, tmp_path: Path) -> None:
    rows = table(sweep)
    types = {name: str(kind) for name, kind in rows.dtypes.items()}
    assert types["optim.lr"] == types["val/l1_db"] == "Float64"
    assert types["seed"] == types["model.latent"] == types["step"] == "Int64"
    assert types["model"] == types["state"] == "string"
    assert rows["model.hidden"].isna().sum() == 12
    assert set(rows["model.dilations"]) == {"[[1, 1], [2, 1]]"}
    rows.to_parquet(tmp_path / "runs.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "runs.parquet"), rows)


def test_what_was_swept_leaves_out_seeds_what_cannot_matter_and_what_a_part_brings_with_it(sweep: Path) -> None:
    assert swept(table(sweep)) == {"model": [], "optim.lr": []}


def test_keys_that_go_together_are_one(tmp_path: Path) -> None:
    for index, steps in enumerate((100, 200, 400)):
        config = config_of("one", 0, 1e-3 * steps, 2**index)
        write_run(tmp_path / "one" / f"{index}", config | {"trainer": {"max_steps": steps}}, 1.0)
    assert swept(table(tmp_path / "one")) == {"model.latent": ["optim.lr", "trainer.max_steps"]}


def test_seeds_are_shown_as_spread(sweep: Path) -> None:
    rows = table(sweep)
    points = spread(rows, "val/l1_db")
    assert len(points) == 12
    assert set(points["seeds"]) == {2}
    one = rows[(rows["model"] == "UNet") & (rows["optim.lr"] == rows["optim.lr"].max())]["val/l1_db"].to_numpy(float)
    row = points[(points["model"] == "UNet") & (points["optim.lr"] == points["optim.lr"].max())].iloc[0]
    assert row["mean"] == pytest.approx(one.mean())
    assert row["sd"] == pytest.approx(abs(one[0] - one[1]) / np.sqrt(2))
    assert (row["low"], row["high"]) == (one.min(), one.max())
    read = rows["seed"].map({seed: f"-{seed:08x}" for seed in rows["seed"].unique()})
    corrected = spread(rows.assign(signature=rows["signature"] + read), "val/l1_db")
    assert set(corrected["seeds"]) == {1}
    assert corrected["files"].nunique() == 2


def test_a_run_that_is_damaged_unfinished_or_old_is_a_row_with_its_reason(tmp_path: Path) -> None:
    study = tmp_path / "odd"
    write_run(study / "good", config_of("odd", 0, 1e-3, 4), 1.0)
    config = config_of("odd", 0, 1e-3, 8)
    write_run(study / "running", config, 1.0, state="running", step=40, metrics={"val/l1_db": 2.0})
    write_run(study / "failed", config, 1.0, state="failed", reason="ValueError: loss is nan")
    (write_run(study / "damaged", config, 1.0) / "status.json").write_text('{"state": "fin')
    (write_run(study / "garbled", config, 1.0) / "config.yaml").write_bytes(b"\xff\xfe: [")
    (write_run(study / "nothing", config, 1.0) / "metrics.csv").unlink()
    write_run(study / "old", config | {"model": {"_target_": "wavespace.nets.Old"}}, 1.0)
    (study / "older").mkdir()
    (study / "older" / "config.yaml").write_text("lr: 0.1\nnet: unet\n")
    rows = table(study).set_index("signature")
    assert len(rows) == 8
    assert pd.isna(rows.loc["good", "reason"])
    for name, state, reason in (
        ("running", "running", "unfinished, at step 40 of 100"),
        ("failed", "failed", "ValueError: loss is nan"),
        ("damaged", "unknown", "status.json is damaged"),
        ("garbled", "finished", "config.yaml is damaged"),
        ("nothing", "finished", "metrics.csv is missing"),
        ("old", "finished", "another version: model wavespace.nets.Old is no more"),
        ("older", "unknown", "another version: it has no data, frontend, model, task"),
    ):
        assert rows.loc[name, "state"] == state
        assert reason in rows.loc[name, "reason"]
    assert rows.loc["running", "val/l1_db"] == 2.0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["status.json", "config.yaml", "metrics.csv"]),
    content=st.binary(max_size=60)
    | st.sampled_from([b'{"metrics": {"a/b": 1e999}, "step": 1e400}', b'{"step": 123456789012345678901234567890}'])
    | st.text("{}[]:-,'\"\n x1.", max_size=60).map(str.encode),
)
def test_no_content_of_a_file_stops_the_table(tmp_path: Path, name: str, content: bytes) -> None:
    folder = tmp_path / "s" / "r"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    assert len(table(tmp_path / "s")) == 1


def test_yaml_that_nests_by_thousands_is_damaged_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for text in ("[" * 100_000, "{a: " * 20_000, "- " * 30_000):
        (tmp_path / "run" / "config.yaml").write_text(text)
        assert "config.yaml is damaged" in read_run(tmp_path / "run").reasons[1]
    assert parse_config("a: {b: 1.0e-05}")[1] == {"a": {"b": 1e-5}}


OWN = {"monitor": "val/own_score", "mode": "max"}


@pytest.mark.parametrize(
    ("metric", "status", "higher"),
    [
        ("test/note_f1_onset_offset_velocity", {}, True), ("val/l1_db_above_floor", {}, False),
        ("train/onset", {}, False), ("val/onset_threshold", OWN, None), ("test/own_score", OWN, True),
        ("test/own_score", {}, None), ("val/loss", {"monitor": "val/loss", "mode": "max"}, True), ("lr", OWN, None),
    ],
)  # fmt: skip
def test_which_way_is_better_is_said_by_the_run_or_known_of_the_metric(
    metric: str, status: dict[str, str], higher: bool | None
) -> None:
    assert higher_is_better(metric, status) is higher


def test_runs_of_a_task_of_ones_own_are_compared_by_its_monitor(tmp_path: Path) -> None:
    for index in range(3):
        metrics = {"val/own_score": index / 2, "val/other": 1.0}
        write_run(tmp_path / "own" / f"{index}", config_of("own", 0, 1e-3, 4), 1.0, **OWN, metrics=metrics)
    assert objective(table(tmp_path / "own")) == ("val/own_score", True)
    with pytest.raises(UserError, match="val/other: its runs do not say whether more of it is better"):
        objective(table(tmp_path / "own"), "val/other")


def test_every_task_says_of_the_metrics_that_it_shows_which_way_is_better() -> None:
    for task in (PianoRoll, Reconstruction, Salience, SelfSalience):
        status = {"monitor": task.monitor, "mode": task.mode}
        assert None not in {higher_is_better(f"test/{name}", status) for name in task.table}
        assert higher_is_better(task.monitor, {}) is (task.mode == "max")


def test_a_launch_is_its_jobs_with_what_became_of_them(tmp_path: Path) -> None:
    jobs = tuple(Job(i, f"{i:012x}", ("model=unet", f"optim.lr={lr}")) for i, lr in enumerate((0.1, 0.01, 0.001)))
    settings = RunpodSettings(max_cost=1, image="a", gpus=("x",))
    launch = Launch.create(tmp_path, Plan(id="250101-000000-abcd", study="grid", jobs=jobs, settings=settings)).folder
    assert table(launch)["reason"].tolist() == ["the launch has no result of it yet"] * 3
    failed = JobResult(1, jobs[1].overrides, "failed", "r1", reason="crashed: out of memory")
    kept: Any = {"minutes": 3.0, "dollars": 0.25, "monitor": "val/l1_db", "mode": "min", "metrics": {"val/l1_db": 2.5}}
    write_results(launch, [JobResult(0, jobs[0].overrides, "finished", "r", "https://w/r", **kept), failed], spent=0.3)
    write_run(tmp_path / "grid" / f"{2:012x}", config_of("grid", 0, 1e-3, 4), 1.0)
    rows = table(launch)
    assert rows["optim.lr"].tolist() == [0.1, 0.01, 0.001]
    assert rows["state"].tolist() == ["finished", "failed", "finished"]
    assert rows["dollars"].tolist()[0] == 0.25
    assert rows["val/l1_db"].tolist()[::2] == [2.5, 1.0]
    assert rows["reason"][1] == "crashed: out of memory"
    assert rows["source"].tolist() == ["https://w/r", "", str(tmp_path / "grid" / f"{2:012x}")]
    (launch / "results.json").write_text("{")
    with pytest.raises(BadInput, match="damaged"):
        read_runs([launch])


def test_a_search_is_a_row_for_each_draw(tmp_path: Path) -> None:
    search = {"method": "random", "parameters": {"optim.lr": {"min": 0, "max": 1}}}
    plan: Any = {"id": "1", "study": "grid", "jobs": (Job(0, "0" * 12, ("model=unet",)),), "search": search}
    launch = Launch.create(tmp_path, Plan(**plan, settings=RunpodSettings(max_cost=1, image="a", gpus=("x",)))).folder
    write_results(launch, [JobResult(i, (f"optim.lr={i}",), "finished", f"r{i}") for i in (0, 1)])
    rows = table(launch)
    assert rows["optim.lr"].tolist() == [0, 1]
    assert rows["signature"].tolist() == ["r0", "r1"]
    assert set(rows["model"]) == {"unet"}


def test_a_path_that_is_nothing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        read_runs([tmp_path / "nowhere"])


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, wavespace.commands.report, wavespace.analysis\n"
        "try: wavespace.commands.report.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('torch', 'pandas', 'sklearn', 'scipy', 'matplotlib', 'wandb') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "damage", ["", "7,1\r\n8,1,2,3,4,5\r\n", "\0\r\n", "9,x,1,1\r\n", '"9",1,1,1\r\n', "\r\n", "9,1\r\n"]
)
def test_a_long_file_is_read_in_blocks_as_row_by_row(damage: str) -> None:
    rows = [f"{step},{step / 7!r},{'nan' if step % 1000 == 0 else ''},-inf\r\n" for step in range(10, 50_000)]
    text = "".join(["step,a/b,c/d,e/f\r\n", *rows[:30_000], damage, *rows[30_000:]])
    expected: dict[str, list[tuple[float, float]]] = {}
    left_out = 0
    for row in csv.DictReader(io.StringIO(text, newline="")):
        try:
            step = float(row.pop("step"))
            for name, value in [(name, float(value)) for name, value in row.items() if value]:
                expected.setdefault(name, []).append((step, value))
        except (TypeError, ValueError):
            left_out += 1
    notices: list[str] = []
    found = parse_metrics(text, notices)
    assert set(found) == set(expected)
    for name, pairs in expected.items():
        np.testing.assert_array_equal(np.stack(found[name], axis=1), pairs)
    assert notices == [f"metrics.csv has {left_out} damaged row{'s' if left_out > 1 else ''}, left out here."] * bool(
        left_out
    )


def test_a_column_that_a_table_has_not_is_a_sentence() -> None:
    runs = pd.DataFrame({"optim.lr": [1e-3, 3e-3], "val/loss": [1.0, 2.0]})
    with pytest.raises(UserError, match="no column 'val/lss', did you mean 'val/loss'"):
        spread(runs, "val/lss")
    with pytest.raises(UserError, match=r"no column 'optim\.rate'"):
        reports.against(runs, "optim.rate", "val/loss")


@pytest.mark.parametrize("module", [wavespace, analysis, reports])
def test_what_a_module_offers_is_listed(module: ModuleType) -> None:
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
