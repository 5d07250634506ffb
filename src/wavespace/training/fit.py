"""Fit one run with Lightning, from its last checkpoint; then score it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import LambdaCallback, Timer
from pytorch_lightning.utilities.exceptions import SIGTERMException

from wavespace.build import Parts, build, check_splits, uses_wandb
from wavespace.config import resolved
from wavespace.config.construction import make
from wavespace.config.trainer import cluster_environment, quiet, rank
from wavespace.errors import BadCheckpoint, BadInput
from wavespace.files import write_atomic
from wavespace.inputs import CHANGED
from wavespace.runfolder import RunFolder
from wavespace.signals import SIGTERM_EXIT
from wavespace.tasks.base import computes_in_bfloat16, versions
from wavespace.training.baseline import WINDOWS, Fittable, baseline, fit_model, training_audio
from wavespace.training.callbacks.checkpoints import Checkpoints, CsvLogger, WholeFiles
from wavespace.training.callbacks.divergence import Divergence
from wavespace.training.callbacks.progress import TrainingProgress, shown
from wavespace.training.callbacks.samples import log_samples, save_samples
from wavespace.training.distributed import check_devices, fix_buckets, run_rank, spawn_ranks
from wavespace.training.scoring import final_metrics


def fit(cfg: DictConfig, parts: Parts, folder: RunFolder) -> None:
    """Train from the last checkpoint, if there is one; then score the best on the test split, and keep samples."""
    data, task = parts
    task.config_text = OmegaConf.to_yaml(cfg, resolve=True)
    task.seed = cfg.seed
    if cfg.compile:
        if rank() == 0:
            print("torch.compile: the first step and the first validation take a minute or more, and say nothing")
        task.model.compile()
    if "OMP_NUM_THREADS" not in os.environ:
        # A core for each loader process: threads that wait for one that shares its core take several times as long.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - data.workers))
    quiet()
    if rank() == 0:
        about = {"parameters": task.parameter_count, "versions": versions()}
        folder.update(monitor=task.monitor, mode=task.mode, table=list(task.table), **about)
    start, step = checkpoint_to_resume(cfg, folder)
    environment = cluster_environment()  # before loggers: Lightning's write nothing on other ranks than 0
    loggers = [CsvLogger(folder.path / "metrics.csv", step), *_extra_logger(cfg, folder)] if rank() == 0 else []
    checkpoints = Checkpoints(folder, every=cfg.save_every, monitor=task.monitor, mode=task.mode, patience=cfg.patience)
    trainer = _trainer(cfg, parts, folder, checkpoints, loggers, environment, is_new=start is None)
    check_devices(cfg, data, trainer)
    fix_buckets(trainer.strategy, trainer.world_size)
    try:
        with spawn_ranks(folder, trainer.world_size):
            trainer.fit(task, datamodule=data, ckpt_path=start and str(start), weights_only=True)
    except SIGTERMException:  # the ranks have agreed to stop
        raise SystemExit(SIGTERM_EXIT) from None
    finally:
        checkpoints.release()
    if trainer.is_global_zero:
        _score(cfg, parts, folder, trainer, checkpoints, loggers)


def checkpoint_to_resume(cfg: DictConfig, folder: RunFolder) -> tuple[Path | None, int | None]:
    """Return the checkpoint to resume from and its step: the last, or the best if that is damaged; None in a new run.

    Raises:
        BadCheckpoint: there are only damaged ones.
    """
    if cfg.fresh:  # which the first rank may not have cleared yet
        return None, None
    paths = [folder.best] if cfg.resume == "best" else [folder.last, folder.best]
    damaged = []
    for path in paths:
        try:
            if ZipFile(path).testzip():  # torch reads over a checksum that is wrong
                raise BadZipFile
            step = int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
        except FileNotFoundError:
            continue
        except Exception as error:  # whatever torch makes of a damaged file
            damaged.append(f"{path} is damaged ({type(error).__name__})")
            continue
        if rank() == 0:
            print("; ".join([*damaged, f"going on from step {step} of {folder.path}"]))
            if path != folder.last:
                write_atomic(folder.last, path.read_bytes())
        return path, step
    if damaged or cfg.resume == "best":
        why = " and ".join(damaged) or f"there is no {folder.best}"
        raise BadCheckpoint(f"{why}; {'resume=last or ' if cfg.resume == 'best' else ''}fresh=true works")
    return None, None


def _trainer(
    cfg: DictConfig,
    parts: Parts,
    folder: RunFolder,
    checkpoints: Checkpoints,
    loggers: list[Any],
    environment: Any,
    is_new: bool,
) -> Trainer:
    """Build Lightning's trainer with a run's callbacks; in a new run, front-end and model are measured first."""
    task = parts.task
    trainer: Trainer = make(
        _val_check_in_batches(_with_precision(cfg.trainer)),
        "trainer",
        callbacks=[
            LambdaCallback(setup=lambda *_, **__: check_contents(parts.data, folder)),
            LambdaCallback(on_fit_start=lambda trainer, _: check_splits(parts.data, trainer.limit_val_batches)),
            Divergence(),
            checkpoints,
        ]
        + [LambdaCallback(on_fit_start=_measure_frontend)]
        * (task.frontend.out_spec.normalization == "dataset" and is_new)
        + [LambdaCallback(on_fit_start=_fit_model)] * (isinstance(task.model, Fittable) and is_new)
        + [TrainingProgress(task.monitor)] * (rank() == 0),
        logger=loggers,
        plugins=[environment, WholeFiles()],
        default_root_dir=str(folder.path),
        max_epochs=-1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    callbacks: list[Any] = vars(trainer)["callbacks"]
    callbacks.sort(key=lambda callback: not isinstance(callback, Timer))  # it says whether a step is the last
    # Lightning's own would speak to the other ranks at once, who are in the midst of something else.
    connector: Any = trainer._signal_connector
    connector._sigterm_notifier_fn = lambda *_: None
    return trainer


def _score(
    cfg: DictConfig, parts: Parts, folder: RunFolder, trainer: Trainer, checkpoints: Checkpoints, loggers: list[Any]
) -> None:
    """Score the best checkpoint, and the baseline, on the test split; draw samples."""
    data, task = parts
    best = folder.best if folder.best.is_file() else folder.last  # without validation there is no best
    task.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])
    task.to(trainer.strategy.root_device)  # Lightning has left it on the CPU
    metrics = checkpoints.best | {"best_step": checkpoints.best_step} | final_metrics(task, data, "test")
    if cfg.baseline is not None:
        metrics |= final_metrics(baseline(cfg, parts), data, "baseline")
    folder.update(metrics=metrics, step=trainer.global_step)
    for logger in loggers[1:]:  # metrics.csv has the metrics of training alone
        logger.log_metrics({name: metrics[name] for name in metrics if not name.startswith("val/")})
    with shown("drawing samples"):
        save_samples(task, data, folder.path / "samples")
    log_samples(folder.path / "samples", loggers, trainer.global_step)


def train_rank(path: str) -> None:
    """Train beside the first process of the run in a folder, as its config.yaml says, until that process ends."""

    def work() -> None:
        folder = RunFolder(Path(path))
        cfg: Any = OmegaConf.load(folder.path / "config.yaml")
        fit(cfg, build(cfg), folder)

    run_rank(work)


def check_contents(data: Any, folder: RunFolder) -> None:
    """Raise `BadInput` where the data's files have changed since the run folder was named for them."""
    digests = folder.read().get("digests") or {}
    if any(digests.get(f"data.{key}", value) != value for key, value in data.contents().items()):
        raise BadInput(CHANGED)


def _measure_frontend(trainer: Any, task: Any) -> None:
    if trainer.is_global_zero:
        print(f"measuring the front-end on {WINDOWS} windows of training audio")
    task.frontend.measure(audio.to(task.device) for audio in training_audio(trainer.datamodule))


def _fit_model(trainer: Any, task: Any) -> None:
    fit_model(task, trainer.datamodule)  # after the front-end is measured
    task.model.load_state_dict(trainer.strategy.broadcast(task.model.state_dict()))  # equal bits on every rank


def _extra_logger(cfg: DictConfig, folder: RunFolder) -> list[Any]:
    """Build the logger that was chosen beside metrics.csv; a W&B run's id is the run's own identity."""
    if not cfg.logger:
        return []
    if not uses_wandb(cfg):
        return [make(cfg.logger, "logger")]
    identity = {"id": f"{cfg.name}-{folder.path.name}", "name": f"{cfg.name}/{folder.path.name}", "resume": "allow"}
    logger = make(cfg.logger, "logger", save_dir=str(folder.path), config=resolved(cfg), **identity)
    run = logger.experiment  # in a sweep, W&B has named it
    folder.update(wandb={"id": run.id, "url": run.url})
    return [logger]


def _with_precision(node: DictConfig) -> DictConfig:
    """Set `precision: null` to bf16-mixed where the device computes in bfloat16, else to 32-true."""
    if node.get("precision") is not None:
        return node
    on_gpu = torch.cuda.is_available() and node.get("accelerator") in ("auto", "gpu", "cuda")
    changed = node.copy()
    changed.precision = "bf16-mixed" if computes_in_bfloat16("cuda" if on_gpu else "cpu") else "32-true"
    return changed


def _val_check_in_batches(node: DictConfig) -> DictConfig:
    """Set `val_check_interval`, which is in steps, to Lightning's batches, of which a step may accumulate several."""
    if not isinstance(node.get("val_check_interval"), int):
        return node
    changed = node.copy()
    changed.val_check_interval *= node.get("accumulate_grad_batches", 1)
    return changed
