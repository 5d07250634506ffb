"""Runs as rows: from run folders, multiruns and launches on disk to one typed table.

A run that is damaged, unfinished or of an older version is a row with its reason. Nothing here imports pandas before a
table is asked for.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wavespace.config.trust import is_shipped, safe_yaml
from wavespace.errors import BadInput, UserError
from wavespace.files import named_file, read_regular
from wavespace.metrics import HIGHER_IS_BETTER

Series = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and values of one metric, `(K,)` each."""

FACTS = (
    "run", "signature", "state", "reason", "step", "best_step", "parameters", "minutes", "cpu_minutes", "dollars",
    "monitor", "mode", "source",
)  # fmt: skip
"""Columns of a table that are neither keys of the configuration nor metrics."""

KNOWN = ("step", "parameters", "minutes", "cpu_minutes", "monitor", "mode")
"""Facts that status.json may hold."""

LARGEST = 1e100
"""What is larger counts as infinite."""

MOST_BYTES, MOST_CSV_BYTES = 2**24, 2**29
"""Bytes of a run's file that are read at most, and those of metrics.csv."""

MOST_METRICS, MOST_COLUMNS = 500, 2000
"""Metrics of a run, and columns of a table."""

PARTS = ("data", "frontend", "model", "task")


@dataclass
class Run:
    """One run as its files, or W&B, tell of it.

    Attributes:
        name: of the study, `runs/<name>/`.
        signature: of the configuration.
        source: the folder, or the address of the page on W&B.
        state: as in status.json; "unknown" where nothing says.
        reasons: what is wrong with it, a sentence each.
        config: leaves of the resolved configuration by dotted key.
        metrics: of the best checkpoint on validation, and of the test split and the baseline, by name.
        facts: step, parameters, minutes, cpu_minutes, dollars, monitor, mode: those that are known.
        history: what was logged in training, by name.
    """

    name: str
    signature: str
    source: str
    state: str = "unknown"
    reasons: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    history: dict[str, Series] = field(default_factory=dict)


def higher_is_better(metric: str, status: Mapping[str, Any]) -> bool | None:
    """Whether more of a metric is better; None if nothing says.

    Args:
        metric: with its split, as `val/l1_db`; losses of training are better the less they are.
        status: what status.json, or a run's facts, say of `monitor` and `mode`.
    """
    split, _, name = re.sub(r"_\d+$", "", metric).partition("/")  # rpa_3 is rpa of one instrument
    if name and name == str(status.get("monitor")).partition("/")[2] and status.get("mode") in ("min", "max"):
        return status["mode"] == "max"
    return HIGHER_IS_BETTER.get(name, False if split == "train" else None)


# --- The files of a run -------------------------------------------------------------------------------------


def read_part(
    folder: Path, name: str, parse: Callable[[str], Any], notices: list[str], otherwise: Any, most: int = MOST_BYTES
) -> Any:
    """What a file of a run holds, or `otherwise` and a notice that names the file.

    A link that leads out of the folder is not followed: a page of runs is for showing to others.
    """
    try:
        return parse(read_regular(named_file(folder, name), most).decode())
    except FileNotFoundError:
        notices.append(f"{name} is missing.")
    except BadInput as error:
        notices.append(f"{name} is not read ({str(error).removeprefix(f'{folder / name}: ')}).")
    except Exception as error:  # whatever a damaged file makes a parser raise
        notices.append(f"{name} is damaged ({' '.join(str(error).split())[:120] or type(error).__name__}).")
    return otherwise


def parse_status(text: str) -> dict[str, Any]:
    """status.json, without values that are not of their kind."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    kinds: dict[str, Any] = {
        "state": str, "signature": str, "step": int, "minutes": int | float, "cpu_minutes": int | float,
        "parameters": int, "metrics": dict, "table": list, "wandb": dict, "monitor": str, "mode": str, "versions": dict,
    }  # fmt: skip
    status = {key: value for key, value in found.items() if isinstance(value, kinds.get(key, object))}
    for key in ("minutes", "cpu_minutes"):
        if 0 <= (minutes := as_float(status.pop(key, -1))) < math.inf:
            status[key] = minutes
    for key in ("step", "parameters"):
        if abs(status.get(key, 0)) > 2**53:
            del status[key]
    metrics = dict(islice(status.get("metrics", {}).items(), MOST_METRICS))
    status["metrics"] = {key: as_float(value) for key, value in metrics.items() if isinstance(value, int | float)}
    status["table"] = [str(name) for name in status.get("table", [])[:MOST_METRICS]]
    return status


def as_float(value: float) -> float:
    """A number as a float; infinite where it is so large that its square may be."""
    if value != value or abs(value) < LARGEST:
        return float(value)
    return math.inf if value > 0 else -math.inf


def parse_config(text: str) -> tuple[str, dict[str, Any]]:
    """The text of config.yaml, and what it says."""
    return text, {str(key): value for key, value in safe_yaml(text).items()}


def parse_metrics(text: str, notices: list[str]) -> dict[str, Series]:
    """Each column of metrics.csv, where it has values."""
    head, _, _ = text.partition("\n")
    names = next(csv.reader([head]), [])
    if "step" not in names:
        raise ValueError("it has no column step")
    if len(names) > MOST_METRICS:
        raise ValueError(f"it has {len(names):,} columns; {MOST_METRICS} are the most")
    parts: list[list[Series]] = [[] for _ in names]
    start, damaged = len(head) + 1, 0
    while start < len(text):
        end = text.find("\n", start + 2**20) + 1 or len(text)
        block, start = text[start:end], end
        try:
            found = [_columns(_cut(block, len(names)), names)]
        except ValueError:  # of some rows, which are left out
            found = []
            for row in filter(None, csv.reader(io.StringIO(block, newline=""))):
                try:
                    found.append(_columns([[cell] for cell in row] + [[""]] * (len(names) - len(row)), names))
                except ValueError:
                    damaged += 1
        for columns in found:
            for part, series in zip(parts, columns):
                part += [series] * bool(len(series[0]))
    if damaged:
        notices.append(f"metrics.csv has {damaged} damaged row{'s' if damaged > 1 else ''}, left out here.")
    whole: dict[str, Series] = {}
    for name in names:
        if part := parts.pop(0):
            steps, values = zip(*part)
            whole[name] = np.concatenate(steps), _tamed(np.concatenate(values))
    return whole


def _cut(block: str, columns: int) -> list[list[str]]:
    """Columns of rows without quotes, faster than csv has them; raises ValueError where a row is of other length."""
    rows = block.replace("\r\n", "\n").removesuffix("\n")
    if '"' in rows or {row.count(",") for row in rows.split("\n")} != {columns - 1}:
        raise ValueError("rows of another length")
    cells = rows.replace("\n", ",").split(",")
    return [cells[column::columns] for column in range(columns)]


def _columns(columns: list[list[str]], names: list[str]) -> list[Series]:
    """Steps and values of each column of some rows; raises ValueError where one is damaged."""
    if len(columns) != len(names):
        raise ValueError("a row of another length")
    steps = np.array(list(map(float, columns[names.index("step")])))
    if not (np.abs(steps) <= 2**53).all():
        raise ValueError("no step")
    found = []
    for name, cells in zip(names, columns):
        if name == "step":
            found.append((steps[:0], steps[:0]))
            continue
        there = np.array([bool(cell) for cell in cells]) if "" in cells else slice(None)
        found.append((steps[there], np.array(list(map(float, filter(None, cells))))))
    return found


def _tamed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`as_float` of each."""
    return np.where(np.abs(values) >= LARGEST, np.copysign(np.inf, values), values)


def flat(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key; lists, and mappings with nothing in them, are leaves as JSON; huge numbers are left out."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{name}.")
        elif isinstance(value, int | float) and abs(value) >= LARGEST:
            leaves[name] = None
        else:
            leaves[name] = json.dumps(value, default=str) if isinstance(value, list | tuple | Mapping) else value
    return leaves


# --- Reading runs -------------------------------------------------------------------------------------------


def read_run(folder: Path) -> Run:
    """A run folder as far as its files can be read; what is wrong with it is among its reasons."""
    absolute = folder.absolute()
    run = Run(absolute.parent.name, absolute.name, str(folder))
    try:
        _read_into(run, folder)
    except Exception as error:  # one folder must not cost the table of all
        run.reasons.append(f"can't be read ({type(error).__name__}: {' '.join(str(error).split())[:120]})")
    return run


def _read_into(run: Run, folder: Path) -> None:
    status = read_part(folder, "status.json", parse_status, run.reasons, {})
    _, config = read_part(folder, "config.yaml", parse_config, run.reasons, ("", {}))
    run.config = flat(config)
    if (folder / "metrics.csv").exists() or status.get("state") == "finished":
        run.history = read_metrics(folder, run.reasons)
    run.name, run.signature = str(config.get("name") or run.name), str(status.get("signature") or run.signature)
    run.metrics = dict(status.get("metrics", {}))
    run.facts = {key: status[key] for key in KNOWN if status.get(key) is not None}
    run.facts["table"] = status.get("table", [])
    run.state = status.get("state", "unknown")
    if status.get("reason"):
        run.reasons.insert(0, str(status["reason"]))
    if run.state in ("running", "preempted"):
        run.reasons.append(f"unfinished, at step {status.get('step', 0)} of {run.config.get('trainer.max_steps', '?')}")
    run.reasons += _older(config)


def read_metrics(folder: Path, notices: list[str]) -> dict[str, Series]:
    """What metrics.csv of a run folder holds."""
    return read_part(folder, "metrics.csv", lambda text: parse_metrics(text, notices), notices, {}, MOST_CSV_BYTES)


def _older(config: Mapping[str, Any]) -> list[str]:
    """Why a configuration is not one of this version's."""
    if not config:
        return []
    nodes = {part: config.get(part) for part in PARTS}
    targets = {
        part: node["_target_"] for part, node in nodes.items() if isinstance(node, Mapping) and "_target_" in node
    }
    if missing := [part for part in PARTS if part not in targets]:
        return [f"config.yaml is of another version: it has no {', '.join(missing)}"]
    gone = [
        f"{part} {target}"
        for part, target in targets.items()
        if str(target).startswith("wavespace.") and not is_shipped(part, target)
    ]
    return [f"config.yaml is of another version: {name} is no more" for name in gone]


def run_folders(path: Path) -> list[Path]:
    """The run folder that a path is, or those that lie one or two levels below it."""
    if not path.exists():
        raise UserError(f"{path}: there is no such folder; runs lie in runs/<name>/<signature>")
    for found in ([path], sorted(path.glob("*")), sorted(path.glob("*/*"))):
        names = ("status.json", "config.yaml", "metrics.csv", "checkpoints")
        if runs := [folder for folder in found if any((folder / name).exists() for name in names)]:
            return runs
    raise UserError(f"{path}: holds no runs; a run folder has a config.yaml and a status.json")
