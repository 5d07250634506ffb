"""Runs of folders, launches and W&B sweeps as one typed table, and what differs between its rows.

Nothing here imports pandas before a table is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wavespace.analysis.runs import FACTS, KNOWN, MOST_COLUMNS, PARTS, Run, higher_is_better, read_run, run_folders
from wavespace.analysis.sweeps import is_launch, on_wandb, read_launch, read_sweep
from wavespace.errors import UserError
from wavespace.text import nearest

if TYPE_CHECKING:
    import pandas as pd


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Runs of folders, multiruns, launches and W&B sweeps, each once.

    Args:
        paths: a run folder, a folder of them, a launch `runs/launches/<id>`, or `ENTITY/PROJECT/SWEEP` on W&B.

    Raises:
        UserError: a path holds no runs, or W&B can't be asked.
    """
    found: dict[tuple[str, str], Run] = {}
    for path in paths:
        if name := on_wandb(str(path)):
            runs = read_sweep(name)
        elif is_launch(Path(path)):
            runs = read_launch(Path(path))
        else:
            runs = [read_run(folder) for folder in run_folders(Path(path))]
        for run in runs:
            found.setdefault((run.name, run.signature), run)
    return list(found.values())


# --- The table ----------------------------------------------------------------------------------------------


def table(runs: Iterable[Run | str | Path] | str | Path) -> pd.DataFrame:
    """A row a run: facts, the configuration by its real keys, metrics.

    Columns: those of `FACTS`; each leaf of the configuration by its dotted key, and `data`, `frontend`, `model` and
    `task` as the names of their classes; metrics by name, `val/…` being those of the best checkpoint; and of what
    was logged in training `NAME:last`, and `NAME:best` where it is known which way is better. Types are pandas' own
    that know of missing values; lists are JSON.

    Args:
        runs: from `read_runs`, or the paths that it takes.
    """
    import pandas as pd

    given = [runs] if isinstance(runs, str | Path) else list(runs)
    whole = [run for run in given if isinstance(run, Run)]
    whole += read_runs([run for run in given if not isinstance(run, Run)])
    rows = [_row(run) for run in whole]
    if (columns := len(set().union(*rows))) > MOST_COLUMNS:
        raise UserError(
            f"these runs have {columns:,} settings and metrics in all; {MOST_COLUMNS:,} are the most of a table"
        )
    found = pd.DataFrame(rows)
    for name in (name for name in FACTS if name not in found):
        found[name] = None
    for name in ("step", "best_step", "parameters", "minutes", "cpu_minutes", "dollars"):
        found[name] = pd.to_numeric(found[name], errors="coerce").astype("Float64")
    for name in ("step", "best_step", "parameters"):
        found[name] = found[name].round().where(found[name].abs() < 2**53).astype("Int64")
    metrics = sorted(name for name in found if "/" in name)
    keys = [name for name in found if name not in FACTS and "/" not in name]
    found = found[[*FACTS, *keys, *metrics]].copy()
    found[metrics] = found[metrics].astype("Float64")
    for name in [*keys, "run", "signature", "state", "reason", "monitor", "mode", "source"]:
        found[name] = _typed(found[name])
    return found


def _row(run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {
        "run": f"{run.name}/{run.signature}",
        "signature": run.signature,
        "state": run.state,
        "reason": "; ".join(reason.rstrip(".") for reason in run.reasons) or None,
        "source": run.source,
    }
    row |= {key: run.facts.get(key) for key in (*KNOWN, "dollars")}
    row["best_step"] = run.metrics.get("best_step")
    for part in PARTS:
        if target := run.config.get(f"{part}._target_"):
            row[part] = str(target).rpartition(".")[2]
    row |= {key: value for key, value in run.config.items() if key not in FACTS and "/" not in key}
    row |= {name: value for name, value in run.metrics.items() if "/" in name}
    for name, (_, values) in run.history.items():
        if "/" not in name:  # the learning rate
            continue
        row[f"{name}:last"] = float(values[-1])
        higher, known = higher_is_better(name, run.facts), values[np.isfinite(values)]
        if higher is not None and len(known):
            row[f"{name}:best"] = float(known.max() if higher else known.min())
    return row


def _typed(column: pd.Series) -> pd.Series:
    """Numbers, truths or text, each with missing values; what is mixed becomes text."""
    kinds = {type(value) for value in column if value is not None and value == value}
    if kinds <= {bool}:
        return column.astype("boolean")
    if kinds <= {int}:
        try:
            return column.astype("Int64")
        except OverflowError:
            return column.map(lambda value: str(value) if value == value else None).astype("string")
    if kinds <= {int, float}:
        return column.astype("Float64")
    return column.map(lambda value: None if value is None or value != value else str(value)).astype("string")


# --- What was swept -----------------------------------------------------------------------------------------


def config_keys(runs: pd.DataFrame) -> list[str]:
    """Columns of a table that are keys of the configuration."""
    return [str(name) for name in runs if name not in FACTS and "/" not in str(name)]


def swept(runs: pd.DataFrame) -> dict[str, list[str]]:
    """Keys of the configuration that differ between runs, each with those that go with it one to one.

    A key that only says which part was chosen (`model.width`, of `model=UNet` and `model=Dense`) is not one: it must
    differ between runs of the same part. Seeds are not swept, they are repeated; nor is what can't change a result.
    """
    from wavespace.config import RUNTIME

    runtime = {f"{section}.{key}".lstrip(".") for section, keys in RUNTIME.items() for key in keys}
    codes: dict[str, Any] = {}
    for key in config_keys(runs):
        group, _, name = key.partition(".")
        if key in runtime or f"{group}.{name.partition('.')[0]}" in runtime or "seed" in (key, name):
            continue
        if group in ("logger", "expect") or name == "_target_":
            continue
        code = runs[key].astype("string").fillna("").factorize()[0]
        part = runs.get(f"{group}._target_") if name else None
        if part is not None and part.nunique(dropna=False) > 1:
            within = runs[key].astype("string").fillna("").groupby(part.astype("string").fillna("")).nunique()
            different = bool((within > 1).any())
        else:
            different = len(np.unique(code)) > 1
        if different:
            codes[key] = code
    found: dict[str, list[str]] = {}
    alike: dict[bytes, str] = {}
    for key in sorted(codes, key=lambda key: not key.startswith(("model", "optim"))):
        first = alike.setdefault(codes[key].tobytes(), key)  # codes count values as they come
        found.setdefault(first, []).extend([key] * (first != key))
    return found


def objective(runs: pd.DataFrame, metric: str | None = None) -> tuple[str, bool]:
    """The metric that runs are compared by, and whether more of it is better: the one asked for, or the one most watch.

    Raises:
        UserError: no run has it, or nothing says which way is better.
    """
    if metric is None:
        counts = runs["monitor"].dropna().value_counts()
        metric = next((str(name) for name in counts.index if name in runs), None)
        known = (str(name) for name in runs if higher_is_better(str(name), {}) is not None)
        metric = metric or min(
            (name for name in known if name.startswith(("val/", "test/"))), key=_test_last, default=None
        )
        if metric is None:
            raise UserError("no run has a metric yet: they come with the end of a run")
    if metric not in runs:
        names = sorted(str(name) for name in runs if "/" in str(name) and ":" not in str(name))
        raise UserError(f"no run has the metric '{metric}'; there are: {', '.join(names) or 'none'}")
    watched = runs[["monitor", "mode"]].dropna().drop_duplicates().to_dict("records")
    ways = {higher_is_better(metric, status) for status in [*watched, {}]} - {None}
    if len(ways) != 1:
        raise UserError(f"{metric}: its runs do not say whether more of it is better; choose another metric")
    return metric, bool(ways.pop())


def _test_last(name: str) -> tuple[bool, str]:
    return name.startswith("test/"), name


def files_read(runs: pd.DataFrame) -> pd.Series:
    """The digest of the files that each run read; empty where it read none."""
    return runs["signature"].astype("string").str.partition("-")[2].fillna("")


def check_columns(runs: pd.DataFrame, *names: str) -> None:
    """Raise `UserError` for a column that a table of runs has not."""
    for name in names:
        if name not in runs:
            raise UserError(f"the table of runs has no column '{name}'{nearest(name, map(str, runs))}")


def spread(runs: pd.DataFrame, metric: str, keys: Iterable[str] | None = None) -> pd.DataFrame:
    """A row a point of the sweep: the keys, and `mean`, `sd`, `low`, `high` and `seeds` of a metric over its seeds.

    Runs that read other files are no seeds of one point: `files`, the end of their signatures, tells them apart.
    """
    by = list(swept(runs) if keys is None else keys)
    check_columns(runs, metric, *by)
    known = runs[runs[metric].notna()]
    if not by:
        by, known = ["task"], known.assign(task=known.get("task", "all"))
    files = files_read(known)
    if files.nunique() > 1:
        by, known = [*by, "files"], known.assign(files=files)
    groups = known.groupby(by, dropna=False, observed=True, sort=True)[metric]
    return groups.agg(mean="mean", sd="std", low="min", high="max", seeds="count").reset_index()
