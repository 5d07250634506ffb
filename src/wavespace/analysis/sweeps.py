"""Runs of a sweep on W&B, through its public API alone, and of a launch's folder; what was downloaded is kept.

A run that has ended has a heartbeat that moves no more: its history is downloaded once, and a second report of the same
sweep asks W&B for nothing but the list of runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from wavespace.analysis.runs import MOST_CSV_BYTES, Run, Series, as_float, flat, read_run
from wavespace.config.schema import NAME
from wavespace.errors import BadInput, UserError
from wavespace.files import cache_folder, read_regular, write_atomic
from wavespace.launchfile import Job, JobList, JobResult, read_results

PAGE, AT_ONCE = 100, 8
"""Runs a page of the list, and histories that are downloaded side by side."""

MOST_ROWS = 20_000
"""Rows of a history that are asked for; of a longer one W&B gives a sample."""

LAUNCHED = ("launch", "job", "pod", "pod_name", "pod_price", "signature", "commit", "gpu")
"""What a launch writes beside the configuration."""

STATES = {"crashed": "failed", "killed": "failed", "preempting": "preempted"}


def on_wandb(path: str) -> str | None:
    """`ENTITY/PROJECT/SWEEP` of a name or an address on W&B; None if it is a path on this disk."""
    if match := re.match(r"https?://[^/]+/([\w.-]+/[\w.-]+)/sweeps/([\w-]+)", path):
        return f"{match[1]}/{match[2]}"
    parts = path.removesuffix("/").split("/")
    if len(parts) != 3 or not all(re.fullmatch(r"[\w.-]+", part) for part in parts):
        return None
    return None if Path(path).exists() or Path(parts[0]).exists() else "/".join(parts)


def read_sweep(name: str) -> list[Run]:
    """The runs of `ENTITY/PROJECT/SWEEP`, but for those tagged `duplicate`, in the order in which they were made.

    Raises:
        UserError: W&B knows of no such sweep, can't be reached, or doesn't let us in.
    """
    entity, project, sweep = name.split("/")
    runs = _asked(f"{entity}/{project}", {"sweep": sweep})
    if not runs:
        raise UserError(f"{name}: W&B shows no runs of this sweep; its name is ENTITY/PROJECT/SWEEP, as in its address")
    return runs


def _asked(project: str, filters: Mapping[str, Any]) -> list[Run]:
    """Runs of `ENTITY/PROJECT` that pass a filter."""
    try:
        import wandb

        api = wandb.Api()
        listed = api.runs(project, filters=dict(filters), order="+created_at", per_page=PAGE, lazy=False)
        found = [run for run in listed if "duplicate" not in (run.tags or [])]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            histories = list(pool.map(_history, found))
    except Exception as error:  # of many kinds: no network, no login, no such project
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"{project}: W&B can't be asked ({type(error).__name__}: {why}); `wandb login` logs in"
        ) from None
    return [_run(run, history) for run, history in zip(found, histories)]


def _history(run: Any) -> list[dict[str, Any]]:
    """Rows of what was logged, from the cache if the run is as it was."""
    # By a digest, as W&B's names are of its users' making.
    kept = cache_folder() / "wandb" / f"{hashlib.sha256('/'.join(run.path).encode()).hexdigest()[:24]}.json"
    stamp = [run.state, getattr(run, "heartbeat_at", None), run._attrs.get("historyLineCount")]
    try:
        found = json.loads(read_regular(kept, MOST_CSV_BYTES))
        if found["stamp"] == stamp and all(isinstance(row, dict) for row in found["rows"]):
            return found["rows"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    lines = run._attrs.get("historyLineCount") or 0
    rows = run.history(samples=min(MOST_ROWS, max(500, int(lines))), pandas=False)
    numbers = [
        {k: v for k, v in row.items() if isinstance(v, int | float | str) and _number(v) is not None} for row in rows
    ]
    if run.state not in ("running", "pending"):
        write_atomic(kept, json.dumps({"stamp": stamp, "rows": numbers}))
    return numbers


def _number(value: Any) -> float | None:
    """A number as W&B writes it, where "NaN" and "Infinity" are text; None of anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return as_float(value)
    return (
        {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.get(value) if isinstance(value, str) else None
    )


def _run(run: Any, rows: Iterable[Mapping[str, Any]]) -> Run:
    """A run of the public API as ours: its summary holds the metrics, and what became of it."""
    config = {key: value for key, value in dict(run.config).items() if not key.startswith("_")}
    launched = {key: config.pop(key) for key in list(config) if key in LAUNCHED}
    summary = {key: run.summary.get(key) for key in run.summary.keys()}  # noqa: SIM118
    numbers = {key: number for key, value in summary.items() if (number := _number(value)) is not None}
    name, _, signature = str(run.name or run.id).rpartition("/")
    found = Run(str(config.get("name") or name or run.project), str(launched.get("signature") or signature), run.url)
    found.config = flat(config)
    found.metrics = {key: value for key, value in numbers.items() if key.startswith(("val/", "test/", "baseline/"))}
    found.metrics |= {"best_step": numbers["best_step"]} if "best_step" in numbers else {}
    found.facts = {key: numbers[key] for key in ("minutes", "cpu_minutes", "dollars") if key in numbers}
    if step := numbers.get("trainer/global_step", numbers.get("step")):
        found.facts["step"] = int(step) if math.isfinite(step) else None
    if "minutes" not in found.facts and "_runtime" in numbers:
        found.facts["minutes"] = numbers["_runtime"] / 60
    outcome = summary.get("outcome")
    found.state = str(outcome) if isinstance(outcome, str) and outcome else STATES.get(run.state, str(run.state))
    if found.state != "finished":
        reason = summary.get("reason")
        found.reasons.append(reason if isinstance(reason, str) and reason else f"on W&B it is {run.state}")
    if not config:
        found.reasons.append("it has no configuration")
    found.history = _series(rows)
    found.facts |= {key: summary[key] for key in ("monitor", "mode") if isinstance(summary.get(key), str)}
    return found


def _series(rows: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """Each metric with its steps, Lightning's own where they were logged."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        step = _number(row.get("trainer/global_step", row.get("_step")))
        if step is None:
            continue
        for name, value in row.items():
            if not name.startswith("_") and name != "trainer/global_step" and (number := _number(value)) is not None:
                points.setdefault(name, []).append((step, number))
    return {name: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for name, pairs in points.items()}


# --- The folder of a launch ---------------------------------------------------------------------------------


def is_launch(path: Path) -> bool:
    """Whether a folder is a launch's, `runs/launches/<id>/`."""
    return (path / "plan.json").is_file() and not (path / "status.json").exists()


def read_launch(folder: Path) -> list[Run]:
    """The jobs of a launch: from the run folders beside it where they are, else from results.json.

    Raises:
        BadInput: plan.json or results.json can't be read.
    """
    plan = JobList.read(folder)
    known = {result.index: result for result in read_results(folder)}
    jobs = {job.index: job for job in plan.jobs}
    if plan.search:  # its one job is what each run drew from
        base = plan.jobs[0].overrides if plan.jobs else ()
        jobs = {i: Job(i, job.run or str(i), (*base, *job.overrides)) for i, job in known.items()}
    found = [_job(folder, plan.study, job, known.get(index)) for index, job in sorted(jobs.items())]
    if not found:
        raise BadInput(f"{folder}: this launch has no jobs yet")
    return found


def _job(folder: Path, study: str, job: Job, result: JobResult | None) -> Run:
    """A job with what results.json says of it on top of its run folder."""
    beside = folder.absolute().parents[1] / study
    # A stranger's plan may name folders outside of its runs, or none that can be.
    named = NAME.fullmatch(study) and NAME.fullmatch(job.signature)
    there = beside.iterdir() if named and beside.is_dir() else ()
    runs = [path for path in there if path.name.partition("-")[0] == job.signature]
    own = max(runs, key=os.path.getmtime, default=None)  # there is one for each state of the data
    run = read_run(own) if own else Run(study or folder.name, job.signature, "")
    drawn = dict(override.lstrip("+").partition("=")[::2] for override in job.overrides)
    run.config = {key: _value(value) for key, value in drawn.items()} | run.config
    if result is not None:
        run.state = result.state
        run.metrics = {name: as_float(value) for name, value in (result.metrics or {}).items()} or run.metrics
        spent = {"minutes": result.minutes, "dollars": result.dollars}
        run.facts |= {key: value for key, value in spent.items() if 0 <= value < math.inf}
        run.facts |= {"monitor": result.monitor, "mode": result.mode} if result.monitor and result.mode else {}
        if not run.source and (result.url or "").startswith("https://"):
            run.source = str(result.url)
    if run.state != "finished":
        run.reasons.append((result and result.reason) or "the launch has no result of it yet")
    return run


def _value(text: str) -> Any:
    """An override's value as a number where it is one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return flat({"": value})[""] if value != {} else text
