"""Train a configuration in its run folder; return what a finished run found without importing torch."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig

from wavespace.config import check, command_line
from wavespace.config.claims import claims
from wavespace.config.trainer import rank
from wavespace.errors import BadInput, Diverged
from wavespace.inputs import CHANGED, input_digests
from wavespace.runfolder import RunFolder
from wavespace.signals import STOP_EXITS, if_stopped, raising_on_stop
from wavespace.text import counted


def run(cfg: DictConfig) -> float | None:
    """Train as `train` does, then finish the W&B run if there is one, with an exit code that says how it ended."""
    code: Any = 1
    try:
        value = train(cfg)
        code = 0
        return value
    except SystemExit as stop:
        code = stop.code
        raise
    finally:
        if (wandb := sys.modules.get("wandb")) and wandb.run:
            if code in STOP_EXITS:
                wandb.run.mark_preempting()
            wandb.finish(exit_code=code if isinstance(code, int) else 1)


def train(cfg: DictConfig) -> float | None:
    """Train one configuration, or return what its finished run found. The value is the best of the task's metric.

    Raises:
        Stopped: on Ctrl-C, SIGTERM or SIGHUP; `last.ckpt` then has the step at which it came.
    """
    folder = RunFolder.of(cfg)
    status = folder.status()
    if status.get("state") == "finished" and not cfg.fresh:
        if rank() > 0:
            return None
        if folder.missing:
            print(f"{folder.missing}; {folder.path} has read there what is there no more")
        print(f"{folder.path} is finished; its result is returned (fresh=true starts over)")
        return _conclude(cfg, folder)
    if status.get("state") == "diverged" and not (cfg.fresh or cfg.resume):
        raise _diverged(folder)

    check(cfg, *command_line())
    with raising_on_stop(), if_stopped(lambda: _how_to_resume(cfg, folder)):
        from wavespace.build import build, check_trainer
        from wavespace.training.fit import fit

        check_trainer(cfg)
        parts = build(cfg)
        if folder.missing:
            raise folder.missing
        if input_digests(cfg) != folder.read()["digests"]:  # while the code was imported, and the weights read
            raise BadInput(CHANGED)
        if not status and rank() == 0 and (other := folder.other_inputs()):
            print(f"{other}; this run begins anew, in {folder.path}")
        if rank() > 0:  # torchrun started it; the first one keeps the folder
            fit(cfg, parts, folder)
            return None
        try:
            with folder.writing(cfg):
                fit(cfg, parts, folder)
        except Diverged:
            raise _diverged(folder) from None
        finally:
            with suppress(Exception):  # the run is worth more than its page
                _update_page(folder)
        return _conclude(cfg, folder)


def _how_to_resume(cfg: DictConfig, folder: RunFolder) -> str:
    status, again = folder.status(), "the same command" + " without fresh=true" * cfg.fresh
    if status.get("state") == "finished":
        return f"stopped after {folder.path} was finished; {again} returns its result"
    if folder.last.is_file():
        return f"stopped; {again} resumes from step {status.get('step')} of {folder.path}"
    return f"stopped before the first step of {folder.path} was saved; {again} begins it again"


def _update_page(folder: RunFolder) -> None:
    """Write the page of a run again, if it was written while the run went on."""
    from wavespace.reports.run_page import is_current, write_report

    if (folder.path / "report.html").is_file() and not is_current(folder.path):
        write_report(folder)


def _diverged(folder: RunFolder) -> Diverged:
    status = folder.status()
    kept, resume = "it has no checkpoint yet", ""
    if "step" in status:
        kept = f"its last checkpoint, of step {status['step']}, is good"
        resume = "resume=last continues this one from there, resume=best from its best, and "
    return Diverged(
        f"{folder.path} diverged: {status.get('reason')}; {kept}. Other settings, such as a lower optim.lr, are "
        f"another run; {resume}fresh=true starts over"
    )


def _conclude(cfg: DictConfig, folder: RunFolder) -> float | None:
    """Write the run's page, print the table of its metrics, and return the best of the monitored one."""
    from wavespace.reports.run_page import figures_table, is_current, write_report

    if not is_current(folder.path):
        write_report(folder)
    status = folder.status()
    metrics: dict[str, float] = status.get("metrics", {})
    print()
    for name, *cells in (rows := figures_table(status)):
        print(f"{name:{max(len(row[0]) for row in rows)}}" + "".join(f"{cell:>10}" for cell in cells))
    for claim in claims(cfg.expect, metrics):
        print(f"{claim.text}: {'met' if claim.met else 'not measured' if claim.met is None else 'NOT MET'}")
    steps = counted(status.get("step", 0), "steps")
    print(f"\n{steps}, {status.get('minutes', 0):.1f} minutes\nopen {folder.path / 'report.html'}")
    return metrics.get(status["monitor"]) if "monitor" in status else None
