"""Do one job of a sweep on a pod: `wandb agent` starts this for each run that W&B gives it.

The worker registers at W&B, checks whether another run has the job, trains as `wavespace train` does, and stores the
metrics, the checkpoint and `outcome` in the run. The launch knows a job's result by these alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavespace.errors import BadInput, ConfigError, Diverged, UserError
from wavespace.launchfile import Job
from wavespace.signals import SIGTERM_EXIT, STOP_EXITS, raise_on_stop, stop_deferred
from wavespace_launcher.ledger import redacted
from wavespace_launcher.plan import OTHER_VERSION, POD_FOLDER, PREPARE, drawn_override
from wavespace_launcher.runpod_client import NoResponse
from wavespace_launcher.wandb_client import DIVERGED, DUPLICATE, REFUSED, Wandb, WandbRun, competing_run

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from wavespace.runfolder import RunFolder

STORE = 600.0
"""Seconds between checkpoints that are stored at W&B during training, unless WAVESPACE_STORE_SECONDS is set."""

TRANSMIT = 2
"""Seconds between uploads to W&B; its default of 15 is a quarter of a short run."""

REBUILD = "build the image anew from the checkout that launches"
"""What mends an image of another version."""


class OtherVersion(UserError):
    """This image would compute something else than the launch has planned."""


def main(arguments: Sequence[str]) -> None:
    """`wavespace worker job=<index>|<signature>|<overrides> launch=<id> [key=value …]`."""
    raise_on_stop()
    given = dict(word.split("=", 1) for word in arguments if "=" in word and not word.startswith("_"))
    if "job" not in given:
        raise BadInput("wavespace worker is started by `wandb agent` of a launch's sweep, with a job=… to do")
    job, launch = Job.parse(given["job"]), given.get("launch", "")
    drawn = [drawn_override(key, value) for key, value in given.items() if key not in ("job", "launch")]
    with _busy():
        sys.exit(work(job, given["job"], launch, drawn))


def work(job: Job, text: str, launch: str, drawn: Sequence[str]) -> int:
    """Do a job in the W&B run of this process; return the exit code, 0 only where the run is finished and stored."""
    import wandb

    begun = time.monotonic()
    pod = {"pod": os.environ.get("RUNPOD_POD_ID"), "pod_name": os.environ.get("WAVESPACE_POD_NAME")}
    price = float(os.environ.get("WAVESPACE_POD_PRICE") or 0)
    settings = wandb.Settings(x_file_stream_transmit_interval=TRANSMIT)
    run = wandb.init(resume="allow", project=os.environ.get("WANDB_PROJECT"), settings=settings)
    given = {"job": text, "launch": launch} | pod | {"pod_price": price}
    run.config.update({k: v for k, v in given.items() if k not in run.config or k in pod}, allow_val_change=True)
    path, code = f"{run.entity}/{run.project}/{run.id}", 1
    try:
        if not drawn and (other := _competing_run(run, launch, text)):
            print(f"job {job.index} is {'done' if other.stored else 'being done'} by {other.url}")
            run.tags = (*(run.tags or ()), DUPLICATE)
            run.finish(exit_code=0)
            return 0
        metrics = _train(run, job, drawn)
        minutes = (time.monotonic() - begun) / 60 + float(run.summary.get("minutes") or 0)
        run.summary.update(metrics | pod | {"minutes": minutes, "dollars": minutes / 60 * price, "outcome": "finished"})
        run.finish(exit_code=0)
    except SystemExit as stopped:
        if stopped.code in STOP_EXITS:
            code = SIGTERM_EXIT
            run.summary["minutes"] = (time.monotonic() - begun) / 60 + float(run.summary.get("minutes") or 0)
            run.mark_preempting()
    except OtherVersion as error:
        run.summary.update({"reason": redacted(str(error)), "outcome": REFUSED})
        run.finish(exit_code=1)  # before the pod's entry ends this process because of the file
        if folder := os.environ.get(POD_FOLDER):  # the next job would be refused as well
            (Path(folder) / OTHER_VERSION).write_text(str(error))
        return 1
    except Diverged as error:
        print(redacted(f"wavespace: {error}"), file=sys.stderr)
        run.summary.update({"reason": redacted(str(error))[:500], "outcome": DIVERGED})
    except Exception as error:
        print(redacted(traceback.format_exc()), file=sys.stderr)
        run.summary["reason"] = redacted(f"{type(error).__name__}: {error}")[:500]
    else:
        return 0 if _is_stored(path) else 1
    run.finish(exit_code=code)
    return code


def _train(run: Any, job: Job, drawn: Sequence[str]) -> dict[str, Any]:
    """Compose and train; return the metrics for the run's summary."""
    from wavespace.config import compose, resolved
    from wavespace.runfolder import RunFolder
    from wavespace.training.run import train

    if job.signature == PREPARE:
        from wavespace.training.preparation import prepare

        prepare(compose(job.overrides))
        return {}
    with stop_deferred():
        cfg = _composed(job, drawn)
    if run.resumed:  # `fresh` discards what earlier runs left, not what this one has done
        cfg.fresh = False
    folder = RunFolder.of(cfg)
    about = {"signature": folder.path.name, "commit": os.environ.get("WAVESPACE_COMMIT"), "gpu": _gpu()}
    run.name = f"{cfg.name}/{folder.path.name}" + (f" {' '.join(drawn)}" if drawn else "")
    run.config.update(resolved(cfg) | about, allow_val_change=True)
    _restore(run, cfg, folder)
    try:
        with _storing(run, folder):
            train(cfg)
    except (SystemExit, Diverged):
        _store(run, _name(folder), folder)
        raise
    _store(run, _name(folder), folder)
    status = folder.status()
    return status.get("metrics", {}) | {key: status.get(key) for key in ("monitor", "mode", "step")}


def _composed(job: Job, drawn: Sequence[str]) -> DictConfig:
    """Compose the job's configuration.

    Raises:
        OtherVersion: it is not the one that the launch has planned.
    """
    from wavespace.config import compose, signature

    chosen = [text for text in job.overrides if not text.startswith("logger=")]
    try:
        cfg = compose([*chosen, *drawn, "logger=wandb"])
    except ConfigError as error:
        if drawn:
            raise
        said = " ".join(str(error).split())
        raise OtherVersion(
            f"this image can't compose the job's overrides, and the launch could: {said}; {REBUILD}"
        ) from None
    if not drawn and not signature(cfg).startswith(job.signature):
        raise OtherVersion(
            f"this image composes the job's overrides to {signature(cfg)}, and the launch to {job.signature}: "
            f"they have different versions of wavespace; {REBUILD}"
        )
    return cfg


def _competing_run(run: Any, launch: str, text: str) -> WandbRun | None:
    """Find another run that has finished this job, or began it earlier and still does it.

    W&B's grid is not exactly-once (wandb #4323, #2611): two agents may be given one job.
    """
    for _ in range(3):
        with contextlib.suppress(NoResponse):
            found = Wandb(run.entity, run.project).runs_with_job(launch, text)
            break
        time.sleep(2)
    else:
        return None  # the launch counts one result a job in any case
    return competing_run(run.id, found, resumed=run.resumed, now=time.time())


def _name(folder: RunFolder) -> str:
    return f"checkpoint-{folder.path.parent.name}-{folder.path.name}"


STORED_FILES = ("metrics.csv", "status.json", "config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt")
"""Files that are stored, in the order of restoring: a run resumes from last.ckpt once all else is there."""


@contextlib.contextmanager
def _storing(run: Any, folder: RunFolder) -> Iterator[None]:
    """Store the newest checkpoint at intervals, in a thread: a host may be lost without a signal."""
    from wavespace.runfolder import RunFolder

    seconds = float(os.environ.get("WAVESPACE_STORE_SECONDS") or STORE)
    over = threading.Event()

    def written() -> int | None:
        return folder.last.stat().st_mtime_ns if folder.last.is_file() else None

    stored = written()

    def store() -> None:
        nonlocal stored
        while not over.wait(seconds):
            if (newest := written()) == stored:
                continue
            try:
                with tempfile.TemporaryDirectory(dir=folder.last.parent, prefix=".storing-") as aside:
                    if _set_aside(folder, Path(aside)):
                        _store(run, _name(folder), RunFolder(Path(aside)))
                        stored = newest
            except Exception as error:  # the client has a dozen of them, and no base class
                print(redacted(f"the checkpoint could not be stored: {error}"), file=sys.stderr)

    thread = threading.Thread(target=store, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _set_aside(folder: RunFolder, aside: Path) -> bool:
    """Link what is to be stored into another folder, as a kill at this moment would leave it.

    Training replaces whole files, so a link to one does not change; only to metrics.csv it appends. It writes
    best.ckpt, last.ckpt, status.json, in this order: what is linked was there at one moment if last.ckpt is still the
    same at the end. False where it is not.
    """
    for name in reversed(STORED_FILES):
        if (folder.path / name).is_file():
            copy = shutil.copyfile if name == "metrics.csv" else os.link
            copy(folder.path / name, _made((aside / name).parent) / Path(name).name)
    return folder.last.samefile(aside / folder.last.relative_to(folder.path))


def _store(run: Any, name: str, folder: RunFolder) -> None:
    """Store a folder's state as an artifact, from which another pod continues; its files must not change meanwhile."""
    import wandb

    files = [file for file in STORED_FILES if (folder.path / file).is_file()]
    if "checkpoints/last.ckpt" not in files:
        return
    status = folder.status()
    artifact = wandb.Artifact(name, type="checkpoint", metadata={key: status.get(key) for key in ("state", "step")})
    for file in files:  # from where they are: W&B's client would copy them twice
        artifact.add_file(str(folder.path / file), name=file, policy="immutable", skip_cache=True)
    run.log_artifact(artifact).wait()
    if artifact.version != "v0":
        _delete_superseded(artifact)


def _delete_superseded(stored: Any) -> None:
    """Delete earlier versions that unfinished runs stored, unless they have an alias: W&B keeps and bills them all."""
    import wandb

    path, _, number = stored.qualified_name.rpartition(":v")
    with contextlib.suppress(Exception):  # it is tried again after the next
        for version in wandb.Api().artifacts("checkpoint", path):
            passing = version.metadata.get("state") in ("running", "preempted")
            if passing and not version.aliases and int(version.version[1:]) < int(number):
                version.delete()


def _restore(run: Any, cfg: DictConfig, folder: RunFolder) -> None:
    """Bring back what an earlier run of this configuration has stored, unless this machine has it."""
    import wandb

    if folder.last.is_file() or cfg.fresh:
        return
    try:
        artifact = wandb.Api().artifact(f"{run.entity}/{run.project}/{_name(folder)}:latest", type="checkpoint")
    except Exception:  # there is none; the client has several ways to say so
        return
    with tempfile.TemporaryDirectory(dir=_made(folder.path)) as aside:
        artifact.download(root=aside, skip_cache=True)
        for name in STORED_FILES:
            if (Path(aside) / name).is_file():
                _made((folder.path / name).parent)
                shutil.move(Path(aside) / name, folder.path / name)
    print(f"restored {artifact.name} into {folder.path}")


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _is_stored(path: str) -> bool:
    """Whether W&B has the finished run: one that was deleted meanwhile loses all that it logs, without an error."""
    import wandb

    for _ in range(5):
        with contextlib.suppress(Exception):
            run = wandb.Api().run(path)
            if run.state == "finished" and run.summary_metrics.get("outcome") == "finished":
                return True
        time.sleep(2)
    print(f"W&B does not have run {path} as finished", file=sys.stderr)
    return False


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """Show the pod's entry that there is work, by a file with this process's id."""
    if not (folder := os.environ.get(POD_FOLDER)):
        yield
        return
    mark = Path(folder) / "busy"
    mark.write_text(str(os.getpid()))
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)
