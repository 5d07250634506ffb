"""Results of jobs, by their runs at W&B and never by an exit code or a pod; their table and progress line."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

from rich.markup import escape
from rich.table import Table

from wavespace.launchfile import Job, JobResult
from wavespace.terminal import table_console
from wavespace.text import printable_text
from wavespace_launcher.wandb_client import WandbRun


def job_results(
    jobs: Iterable[Job], runs: Iterable[WandbRun], retries: int, now: float, metric: str | None
) -> list[JobResult]:
    """Return each job's result, in the order of the jobs, from every run of the launch."""
    by_job: dict[str, list[WandbRun]] = {}
    for run in sorted(runs, key=lambda run: (run.created, run.id)):
        if run.job is not None and not run.duplicate:
            by_job.setdefault(run.job, []).append(run)
    return [_job_result(job, by_job.get(job.text, []), retries, now, metric) for job in jobs]


def _job_result(job: Job, runs: Sequence[WandbRun], retries: int, now: float, metric: str | None) -> JobResult:
    result = JobResult(job.index, job.overrides)
    if not runs:
        return result
    done = [run for run in runs if run.stored]
    alive = [run for run in runs if run.alive(now)]
    waiting = [run for run in runs if run.state in ("preempted", "preempting", "pending")]
    lost = [run for run in runs if run not in done + alive + waiting and not run.refused]
    if done:
        run, state = min(done, key=lambda run: run.created + run.seconds), "finished"
    elif alive:
        run, state = alive[0], "running"
    elif waiting:
        run = waiting[-1]
        state = "starting" if run.state == "pending" else "preempted"
    else:
        run, state = runs[-1], "failed" if len(lost) > retries else "retry"
    if not (done or alive) and (diverged := [run for run in runs if run.diverged]):
        run, state = diverged[-1], "diverged"
    monitor = metric or run.summary.get("monitor")
    metrics = {key: float(value) for key, value in run.summary.items() if is_number(value)}
    return replace(
        result,
        state=state,
        run=run.id,
        url=run.url,
        pod=run.summary.get("pod_name") or run.pod,
        attempts=len(lost),
        minutes=round(sum(run.seconds for run in runs) / 60, 3),
        dollars=round(sum(_dollars(run) for run in runs), 4),
        monitor=monitor,
        value=metrics.get(str(monitor)),
        mode=_mode(run, metric),
        reason=_reason(run) if state in ("failed", "diverged") else None,
        metrics=metrics,
    )


def _mode(run: WandbRun, metric: str | None) -> str | None:
    """Return the mode of the task's own metric on any split; that of other metrics is not known."""
    monitor = str(run.summary.get("monitor"))
    same = metric is None or metric.partition("/")[2] == monitor.partition("/")[2]
    return run.summary.get("mode") if same else None


def _reason(run: WandbRun) -> str:
    said = run.summary.get("reason")
    return str(said) if said else "ended without a result" if run.state == "finished" else run.state


def _dollars(run: WandbRun) -> float:
    price = run.config.get("pod_price")
    return run.seconds / 3600 * price if is_number(price) else 0.0


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def search_job_results(
    runs: Iterable[WandbRun], parameters: Iterable[str], now: float, metric: str | None
) -> list[JobResult]:
    """Return the results of a W&B search: each run is a job, none is tried again."""
    found, names = [], list(parameters)
    for index, run in enumerate(sorted(runs, key=lambda run: (run.created, run.id))):
        drawn = tuple(f"{name}={run.config[name]}" for name in names if name in run.config)
        found.append(_job_result(Job(index, "", drawn), [run], 0, now, metric))
    return found


# --- What the terminal shows ---------------------------------------------------------------------------------


def table(found: Sequence[JobResult], metric: str | None) -> Table:
    """Return a table with a row for each job; overrides that all jobs share are left out."""
    common = set.intersection(*(set(result.overrides) for result in found)) if len(found) > 1 else set()
    money = any(result.dollars for result in found)
    rows = Table("#", "overrides", "state", metric or "metric", "minutes", *(["$"] if money else []), "run", box=None)
    for result in found:
        overrides = printable_text(" ".join(text for text in result.overrides if text not in common)) or "-"
        value = "-" if result.value is None else f"{result.value:.4g}"
        state = printable_text(f"{result.state}: {result.reason}" if result.reason else result.state)
        cost = [f"{result.dollars:.2f}"] if money else []
        rows.add_row(
            str(result.index),
            overrides,
            state,
            value,
            f"{result.minutes:.1f}",
            *cost,
            printable_text(result.url or result.run or "-"),
        )
    return rows


def best_of(found: Iterable[JobResult]) -> float | None:
    """Return the best value of finished jobs; None where they do not agree on which way is better."""
    done = [(result.value, result.mode) for result in found if result.state == "finished" and result.value is not None]
    better = {"min": min, "max": max}.get(str(done[0][1])) if len({mode for _, mode in done}) == 1 else None
    return better(value for value, _ in done) if better else None


class Board:
    """Shows a sweep's progress: one line that is redrawn on a terminal, elsewhere a line at each change.

    Args:
        title: of the sweep.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.console = table_console()
        self.began = time.monotonic()
        self.done_at_start: int | None = None
        self.last = ""
        self.status: Any = None

    def __call__(self, found: Sequence[JobResult], note: str = "") -> None:
        """Show results as they are now."""
        line = f"{self.title}: {self._line(found)}" + (f" | {note}" if note else "")
        if self.console.is_terminal:
            if self.status is None:
                self.status = self.console.status("")
                self.status.start()
            self.status.update(escape(f"{line}{self._left(found)}"))
        elif line != self.last:
            self.console.print(line)
        self.last = line

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.status is not None:
            self.status.stop()
            self.status = None

    def _line(self, found: Sequence[JobResult]) -> str:
        count = {state: sum(result.state == state for result in found) for state in ("finished", "running")}
        count["failed"] = sum(result.ended for result in found) - count["finished"]
        waits = len(found) - sum(count.values())
        best = f", best {value:.4g}" if (value := best_of(found)) is not None else ""
        return (
            f"{count['finished']}/{len(found)} done, {count['running']} running, {waits} waiting, "
            f"{count['failed']} failed{best}"
        )

    def _left(self, found: Sequence[JobResult]) -> str:
        ended = sum(result.ended for result in found)
        if self.done_at_start is None:
            self.done_at_start = ended
        if ended == self.done_at_start or ended == len(found):
            return ""
        seconds = (time.monotonic() - self.began) / (ended - self.done_at_start) * (len(found) - ended)
        return f", about {seconds / 60:.0f} min left" if seconds >= 60 else ", less than a minute left"
