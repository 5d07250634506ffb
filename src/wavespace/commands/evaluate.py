"""`wavespace evaluate CHECKPOINT [overrides]`: metrics of a checkpoint, on its own data or on other data."""

from __future__ import annotations

import csv
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from wavespace import config
from wavespace.config.trust import add_trust, configuration
from wavespace.terminal import Arguments
from wavespace.text import printable

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from wavespace.data.base import DataModule
    from wavespace.tasks.base import Task
    from wavespace.training.scoring import Row


PLACES = ("data", "data.folder", "data.root", "data.midi")
"""Overrides that name other recordings than those that a checkpoint's configuration names."""


def main(arguments: list[str]) -> None:
    """Load, build the data, score, print."""
    given = _parser().parse_args(arguments)

    from wavespace import checkpoint
    from wavespace.locate import locate
    from wavespace.training.scoring import eval_split

    task = checkpoint.load(locate(given.checkpoint), given.trust)
    own = configuration(task.config_text, given.trust, ("data",))
    cfg = config.amend(own, given.overrides, task.frontend.in_spec.sample_rate)
    data = _data_for(task, cfg)
    named = any(override.partition("=")[0].lstrip("+") in PLACES for override in given.overrides)
    split = given.split or ("all" if named and not data.is_official() else "test")
    if split == "all" and (folder := _trained_on(own, cfg)):
        print(
            f"wavespace: the checkpoint was trained on recordings of {folder}; --split test leaves them out",
            file=sys.stderr,
        )
    if given.per_file:
        data.eval_batch_size = 1  # a loss for each
    outputs, rows = eval_split(task, data, split)
    metrics = task.compute_metrics(outputs, tune=False)
    if given.per_file:
        rows = [row | task.compute_metrics([one], tune=False) for row, one in zip(rows, outputs)]
    if empty := sum(row.get("notes") == 0 for row in rows):
        print(
            f"wavespace: {empty} of {len(rows)} recordings have no notes; where none are found either, a metric is "
            "undefined: it counts in no mean, and shows as 0",
            file=sys.stderr,
        )
    counted: Row = {key: sum(row[key] for row in rows) for key in ("notes", "seconds") if key in rows[0]}
    facts: Row = {"split": split, "recordings": len(rows)} | counted
    if given.json:
        print(json.dumps(facts | metrics | ({"files": rows} if given.per_file else {})))
    elif given.csv:
        _print_csv(rows if given.per_file else [], counted, metrics)
    else:
        _print_text(rows if given.per_file else [], facts | metrics)


def _parser() -> Arguments:
    parser = Arguments(
        prog="wavespace evaluate",
        description="Score a checkpoint. Its front-end, model, settings and thresholds come from the checkpoint; "
        "overrides change the data: data=rendered data.midi=scores/",
    )
    parser.add_argument("checkpoint", type=os.path.expanduser, help="a .ckpt file, a run folder, or a folder of runs")
    parser.add_argument("overrides", nargs="*", default=[], help="Hydra overrides of its data")
    parser.add_argument(
        "--split",
        choices=["val", "test", "all"],
        help="default: test; all of a folder that the overrides name, unless the dataset has official splits",
    )
    parser.add_argument("--per-file", action="store_true", help="the metrics of each recording, too")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print the metrics as JSON")
    shape.add_argument("--csv", action="store_true", help="print a table as CSV: its last row is the mean")
    add_trust(parser)
    return parser


def _data_for(task: Task, cfg: DictConfig) -> DataModule:
    """The data of a configuration, if a task can be scored on it.

    Raises:
        Incompatible: it has another rate, or lacks labels.
    """
    from wavespace.config.construction import make
    from wavespace.errors import Incompatible

    audio = task.frontend.in_spec
    data: DataModule = make(cfg.data, "data")
    if data.spec.sample_rate != audio.sample_rate:
        raise Incompatible(
            f"the checkpoint expects {audio.sample_rate} Hz and the data gives {data.spec.sample_rate}; "
            f"set data.sample_rate={audio.sample_rate}"
        )
    if missing := [label for label in task.needs if label not in data.spec.labels]:
        raise Incompatible(
            f"the checkpoint's task needs {' and '.join(missing)} labels, "
            f"and this data has {' and '.join(data.spec.labels) or 'none'}"
        )
    return data


def _trained_on(own: Any, cfg: Any) -> str | None:
    """The folder, if a configuration's data lies where that of a checkpoint's does."""
    for key in ("folder", "midi", "root"):
        before, now = (
            data.get(key) if data.get("_target_") == own.data._target_ else None for data in (own.data, cfg.data)
        )
        if before and now and os.path.realpath(os.path.expanduser(before)) == os.path.realpath(os.path.expanduser(now)):
            return str(now)
    return None


def _print_csv(rows: list[Row], counted: Row, metrics: dict[str, float]) -> None:
    """A row a recording and one of the mean, with the sums of notes and seconds."""
    names = ["recording", *counted, *metrics]
    writer = csv.DictWriter(sys.stdout, names, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows, {"recording": "mean"} | counted | metrics])


def _print_text(rows: list[Row], facts: Row) -> None:
    """Metrics one a line; before them a table of recordings, without the thresholds, which are the same for all."""
    names = [name for name in (rows[0] if rows else ()) if name != "recording" and not name.endswith("threshold")]
    width = max((len(printable(row["recording"])) for row in rows), default=0)
    if rows:
        print("  ".join([" " * width, *(f"{name:>8}" for name in names)]))
    for row in rows:
        cells = (_shown(row.get(name, "")).rjust(max(8, len(name))) for name in names)
        print("  ".join([f"{printable(row['recording']):<{width}}", *cells]))
    if rows:
        print()
    for name, value in facts.items():
        print(f"{name:<36}{_shown(value):>8}")


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
