"""`wavespace train`: compose, check, build, fit, test, report. `python -m wavespace.training.fit` does the same."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from zipfile import BadZipFile, ZipFile

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, open_dict, read_write

from wavespace.config import check, command_line, compose_read, conf_dir, explain, read, resolved
from wavespace.config.claims import claims
from wavespace.config.trainer import cluster_environment, quiet, rank
from wavespace.errors import BadCheckpoint, BadInput, Diverged, UserError
from wavespace.files import write_atomic
from wavespace.inputs import input_digests, inputs_read_once
from wavespace.runfolder import RunFolder
from wavespace.signals import (
    SIGTERM_EXIT,
    STOP_EXITS,
    defer_stop,
    handle_deferred_stop,
    if_stopped,
    raise_on_stop,
    raising_on_stop,
    set_stop_handler,
)
from wavespace.terminal import flags_and_words, guarded, hydra_arguments
from wavespace.text import counted, printable_text
from wavespace.training.distributed import check_devices, fix_buckets, follow, others

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

    from wavespace.build import Parts

CHANGED = "what this run reads has changed since the command began; repeat it"

SHAPED = ("frontend", "model", "task", "baseline")
"""What of a configuration, beside what its data gives, decides whether its parts fit together."""

MEASURED = 256
"""Windows of training audio on which a front-end with normalize=dataset is measured, and a baseline is fitted."""


def main() -> None:
    """Run Hydra on `sys.argv`; faults of the configuration come all at once, as `guarded` prints them."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands its errors to us, who explain them
    if guarded(rank):
        set_stop_handler(signal.SIG_IGN)  # the first of several decides
    raise_on_stop()
    defer_stop()
    guarded(_arrange, _explained)
    entry = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)
    guarded(entry, _explained)
    guarded(handle_deferred_stop)  # where there was no job, as --cfg has none


def _explained(_: Exception) -> str | None:
    """What is wrong with the overrides, if something is."""
    return explain(*hydra_arguments(sys.argv[1:]), many=bool({"-m", "--multirun"} & set(sys.argv)))


def _arrange() -> None:
    """Put flags first, as Hydra wants them, whose --config-dir knows no `~`, and rewrite overrides for it."""
    if {"-sc", "--shell-completion"} & set(sys.argv):  # a line that is being typed
        return
    flags, overrides = flags_and_words(get_args_parser(), sys.argv[1:])
    parts = [word.partition("=") if word.startswith("-") else ("", "", word) for word in flags]
    given = [name + equals + os.path.expanduser(value) for name, equals, value in parts]
    sys.argv[1:] = [*given, *read(overrides, hydra_arguments([*given, *overrides])[1])]
    names = {name for name, _, _ in parts}
    if names & {"-m", "--multirun"} and (shown := names & {"-c", "--cfg", "-i", "--info"}):
        raise UserError(f"{shown.pop()} shows the configuration of one run; leave out -m, and give each key one value")


def job(cfg: DictConfig) -> float | None:
    """One job of Hydra's. A single run ends here with its own sentence; in a multirun the others go on."""
    handle_deferred_stop()
    if cfg.search is not None:
        guarded(_without_pods)
    if HydraConfig.get().mode is not RunMode.MULTIRUN:
        guarded(lambda: _stays_here(HydraConfig.get()))
        return guarded(lambda: run(cfg))
    value = run(cfg)
    defer_stop()  # Hydra composes the next
    return value


def _stays_here(hydra: Any) -> None:
    """Raise `UserError` at settings of Hydra's that would move runs elsewhere, and can't."""
    moved = {
        "job.chdir": bool(hydra.job.chdir),
        "run.dir": hydra.run.dir != ".",
        "sweep.subdir": hydra.sweep.subdir != ".",
    }
    if told := [f"hydra.{key}" for key in moved if moved[key]]:
        raise UserError(f"{told[0]} moves no run: leave it out; runs=… says where runs/<name>/<signature> lie")


def _without_pods() -> NoReturn:
    raise UserError("this sweep is drawn by W&B: wavespace train -m sweep=… hydra/launcher=runpod (docs/runpod.md)")


def run(cfg: DictConfig) -> float | None:
    """`train`, with a W&B run of its own where one was asked for: its end says how training ended."""
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
        return _close(cfg, folder)
    if status.get("state") == "diverged" and not (cfg.fresh or cfg.resume):
        raise _diverged(folder)

    check(cfg, *command_line())
    with raising_on_stop(), if_stopped(lambda: _where_it_goes_on(cfg, folder)):
        from wavespace.build import build, check_trainer

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
                _renew_page(folder)
        return _close(cfg, folder)


def _where_it_goes_on(cfg: DictConfig, folder: RunFolder) -> str:
    status, again = folder.status(), "the same command" + " without fresh=true" * cfg.fresh
    if status.get("state") == "finished":
        return f"stopped after {folder.path} was finished; {again} returns its result"
    if folder.last.is_file():
        return f"stopped; {again} goes on from step {status.get('step')} of {folder.path}"
    return f"stopped before the first step of {folder.path} was saved; {again} begins it again"


def _renew_page(folder: RunFolder) -> None:
    """Write the page of a run again, if it was written while the run went on."""
    from wavespace.reports.run_page import is_current, write_report

    if (folder.path / "report.html").is_file() and not is_current(folder.path):
        write_report(folder)


def _diverged(folder: RunFolder) -> Diverged:
    status = folder.status()
    kept, resume = "it has no checkpoint yet", ""
    if "step" in status:
        kept = f"its last checkpoint, of step {status['step']}, is good"
        resume = "resume=last goes on with this one from there, resume=best from its best, and "
    return Diverged(
        f"{folder.path} diverged: {status.get('reason')}; {kept}. Other settings, such as a lower optim.lr, are "
        f"another run; {resume}fresh=true starts over"
    )


def _to_go_on_from(cfg: DictConfig, folder: RunFolder) -> tuple[Path | None, int | None]:
    """The newest whole checkpoint and its step; of equal bits at the end, whichever it is. None in a new run.

    Raises:
        BadCheckpoint: there are only damaged ones.
    """
    import torch

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


def fit(cfg: DictConfig, parts: Parts, folder: RunFolder) -> None:
    """Train from the last checkpoint, if there is one; then score the best on the test split, and keep samples."""
    import torch
    from omegaconf import OmegaConf
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    from wavespace.tasks.base import versions
    from wavespace.training.callbacks.checkpoints import Checkpoints, CsvLogger

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
    start, step = _to_go_on_from(cfg, folder)
    environment = cluster_environment()  # before loggers: Lightning's write nothing on other ranks than 0
    loggers = [CsvLogger(folder.path / "metrics.csv", step), *_extra_logger(cfg, folder)] if rank() == 0 else []
    checkpoints = Checkpoints(folder, every=cfg.save_every, monitor=task.monitor, mode=task.mode, patience=cfg.patience)
    trainer = _trainer(cfg, parts, folder, checkpoints, loggers, environment, is_new=start is None)
    check_devices(cfg, data, trainer)
    try:
        with others(folder, trainer.world_size):
            trainer.fit(task, datamodule=data, ckpt_path=start and str(start), weights_only=True)
    except SIGTERMException:  # the ranks have agreed; the first one was told
        raise SystemExit(SIGTERM_EXIT) from None
    finally:
        checkpoints.release()
    if trainer.is_global_zero:
        _score(cfg, parts, folder, trainer, checkpoints, loggers)


def _trainer(
    cfg: DictConfig,
    parts: Parts,
    folder: RunFolder,
    checkpoints: Any,
    loggers: list[Any],
    environment: Any,
    is_new: bool,
) -> Trainer:
    """Lightning's trainer with what a run adds to it; in a new run, what is measured before the first step, too."""
    from pytorch_lightning.callbacks import LambdaCallback, Timer

    from wavespace.config.construction import make
    from wavespace.training.callbacks.checkpoints import WholeFiles
    from wavespace.training.callbacks.divergence import Divergence
    from wavespace.training.callbacks.progress import TrainingProgress

    data, task = parts
    trainer: Trainer = make(
        _in_batches(_with_precision(cfg.trainer)),
        "trainer",
        callbacks=[
            LambdaCallback(setup=lambda *_, **__: _check_read(data, folder)),
            LambdaCallback(on_fit_start=_check_splits),
            Divergence(),
            checkpoints,
        ]
        + [LambdaCallback(on_fit_start=_measure)] * (task.frontend.normalize == "dataset" and is_new)
        + [LambdaCallback(on_fit_start=_fit_model)] * (hasattr(task.model, "fit") and is_new)
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
    fix_buckets(trainer.strategy, trainer.world_size)
    return trainer


def _score(
    cfg: DictConfig, parts: Parts, folder: RunFolder, trainer: Trainer, checkpoints: Any, loggers: list[Any]
) -> None:
    """Score the best checkpoint, and the baseline, on the test split; draw samples."""
    import torch

    from wavespace.training.callbacks.progress import shown
    from wavespace.training.callbacks.samples import log_samples, save_samples

    data, task = parts
    best = folder.best if folder.best.is_file() else folder.last  # without validation there is no best
    task.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])
    task.to(trainer.strategy.root_device)  # Lightning has left it on the CPU
    figures = checkpoints.best | {"best_step": checkpoints.best_step} | _metrics("test", task, data)
    if cfg.baseline is not None:
        figures |= _metrics("baseline", _baseline(cfg, parts), data)
    folder.update(metrics=figures, step=trainer.global_step)
    for logger in loggers[1:]:  # metrics.csv is the course of training
        logger.log_metrics({name: figures[name] for name in figures if not name.startswith("val/")})
    with shown("drawing samples"):
        save_samples(task, data, folder.path / "samples")
    log_samples(folder.path / "samples", loggers, trainer.global_step)


def train_rank(path: str) -> None:
    """Train beside the first process of the run in a folder, as its config.yaml says, until that process ends."""

    def work() -> None:
        from omegaconf import OmegaConf

        from wavespace.build import build

        folder = RunFolder(Path(path))
        cfg: Any = OmegaConf.load(folder.path / "config.yaml")
        fit(cfg, build(cfg), folder)

    follow(work)


def _check_splits(trainer: Any, task: Any) -> None:
    from wavespace.build import check_splits

    check_splits(trainer.datamodule, trainer.limit_val_batches)


def _check_read(data: Any, folder: RunFolder) -> None:
    """Refuse data that is not what the run folder is named for: its files have changed meanwhile."""
    digests = folder.read().get("digests") or {}
    if any(digests.get(f"data.{key}", value) != value for key, value in data.contents().items()):
        raise BadInput(CHANGED)


def _measure(trainer: Any, task: Any) -> None:
    """Measure the front-end on the training device; each rank takes the same windows, whatever workers and batches."""
    if trainer.is_global_zero:
        print(f"measuring the front-end on {MEASURED} windows of training audio")
    task.frontend.measure(audio.to(task.device) for audio in _training_audio(trainer.datamodule))


def _fit_model(trainer: Any, task: Any) -> None:
    """Let a model begin at what the training audio tells it, where it has a way to; after the front-end is measured."""
    task.model.fit(task.frontend(audio.to(task.device)) for audio in _training_audio(trainer.datamodule))
    task.model.load_state_dict(trainer.strategy.broadcast(task.model.state_dict()))  # to the bit on every rank


def _training_audio(data: Any) -> Iterator[Any]:
    """Audio `(8, 1, N)` of the first `MEASURED` training windows."""
    from wavespace.data.base import collate

    for start in range(0, MEASURED, 8):
        yield collate([data.train_set[position] for position in range(start, start + 8)]).audio


def _metrics(name: str, task: Any, data: Any) -> dict[str, float]:
    """Metrics of the test split and of what codes and maps distinguish, as `name/metric`."""
    from wavespace.analysis.probes import control, instrument_probe
    from wavespace.commands.evaluate import score
    from wavespace.training.callbacks.progress import shown

    metrics = score(task, data, "test")
    with shown(f"measuring what the {'model' if name == 'test' else name} has learned"):
        metrics |= instrument_probe(task, data) | control(task)
    return {f"{name}/{key}": value for key, value in metrics.items()}


def _baseline(cfg: DictConfig, parts: Parts) -> Any:
    """The task with a model that no gradient teaches; its threshold, too, is chosen on validation."""
    from wavespace.build import build_task, with_baseline
    from wavespace.commands.evaluate import score

    task = build_task(with_baseline(cfg), parts.data.spec)
    measured = {key: value for key, value in parts.task.frontend.state_dict().items() if key in ("mean", "std")}
    task.frontend.load_state_dict(measured, strict=False)  # kernels that have learned stay out of it
    model: Any = task.model
    if hasattr(model, "fit"):
        model.fit(task.frontend(audio) for audio in _training_audio(parts.data))
    score(task, parts.data, "val", tune=True)
    return task


def _extra_logger(cfg: DictConfig, folder: RunFolder) -> list[Any]:
    """The logger that was chosen beside metrics.csv; a W&B run's id is the run's own identity."""
    if not cfg.logger:
        return []
    from wavespace.config.construction import make

    if cfg.logger.get("_target_", "").endswith("WandbLogger"):
        identity = {"id": f"{cfg.name}-{folder.path.name}", "name": f"{cfg.name}/{folder.path.name}", "resume": "allow"}
        logger = make(cfg.logger, "logger", save_dir=str(folder.path), config=resolved(cfg), **identity)
        run = logger.experiment  # in a sweep, W&B has named it
        folder.update(wandb={"id": run.id, "url": run.url})
        return [logger]
    return [make(cfg.logger, "logger")]


def _with_precision(node: DictConfig) -> DictConfig:
    """`precision: null` becomes bf16-mixed where the device computes in bfloat16, else 32-true."""
    import torch

    from wavespace.inference import computes_in_bfloat16

    if node.get("precision") is not None:
        return node
    on_gpu = torch.cuda.is_available() and node.get("accelerator") in ("auto", "gpu", "cuda")
    changed = node.copy()
    changed.precision = "bf16-mixed" if computes_in_bfloat16("cuda" if on_gpu else "cpu") else "32-true"
    return changed


def _in_batches(node: DictConfig) -> DictConfig:
    """`val_check_interval` is in steps, and Lightning counts batches, of which a step may accumulate several."""
    if not isinstance(node.get("val_check_interval"), int):
        return node
    changed = node.copy()
    changed.val_check_interval *= node.get("accumulate_grad_batches", 1)
    return changed


class Sweep(Callback):
    """A multirun: every member is checked before the first starts, and one table ends it."""

    members: list[tuple[str, DictConfig]]

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self.members = []
        handle_deferred_stop()  # Hydra has composed; from here each member's composition is held by itself
        # `guarded`, as Hydra would turn an error here into a warning.
        guarded(lambda: _stays_here(config.hydra))
        if config.search is not None and not getattr(
            get_class(config.hydra.launcher._target_), "takes_searches", False
        ):
            guarded(_without_pods)
        if not issubclass(get_class(config.hydra.sweeper._target_), BasicSweeper):  # it decides as it goes
            guarded(lambda: self._set_direction(config))
        else:
            guarded(lambda: self._check_members(*command_line(config.hydra), config.hydra.sweeper.params or {}))
        if str(config.hydra.launcher._target_).startswith("hydra._internal"):
            defer_stop()  # Hydra composes the first job

    def _set_direction(self, config: DictConfig) -> None:
        """A sweeper that optimises goes the way of the task's metric, unless the command line says which."""
        told = any(text.startswith("hydra.sweeper.direction=") for text in config.hydra.overrides.hydra)
        if "direction" in config.hydra.sweeper and not told:
            task: Any = get_class(config.task._target_)
            with read_write(config), open_dict(config):
                config.hydra.sweeper.direction = {"min": "minimize", "max": "maximize"}[task.mode]

    def _check_members(self, overrides: list[str], folder: str | None, params: dict[str, str]) -> None:
        from wavespace.build import check_shapes
        from wavespace.config.construction import make

        given = [f"{key}={values}" for key, values in params.items()]  # of the chosen sweep; the command line wins
        choices = list(
            {
                (key := o.get_key_element()): [f"{key}={value}" for value in o.sweep_string_iterator()]
                if o.is_sweep_override()
                else [f"{key}={o.get_value_element_as_str()}"]  # as Hydra's sweeper writes it
                for o in OverridesParser.create().parse_overrides(given + overrides)
            }.values()
        )
        swept = [i for i, values in enumerate(choices) if len(values) > 1]
        specs: dict[str, Any] = {}
        fit: set[str] = set()
        for member in itertools.product(*choices):
            cfg = compose_read(member, folder)
            # Each part is built once, and parts that members share are held against each other once.
            parts = {part: json.dumps(section, sort_keys=True) for part, section in resolved(cfg).items()}
            if parts["data"] not in specs:
                specs[parts["data"]] = make(cfg.data, "data").spec
            if parts["optim"] not in specs:
                specs[parts["optim"]] = make(cfg.optim, "optim")
            shapes = repr(specs[parts["data"]]) + "".join(parts[part] for part in SHAPED)
            if shapes not in fit:
                check_shapes(cfg, specs[parts["data"]])
                fit.add(shapes)
            self.members.append((" ".join(member[i] for i in swept), cfg))

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        """After the last job, as Hydra ends at once where one has failed. Other launchers have told of their jobs."""
        of = config.hydra
        if of.mode is not RunMode.MULTIRUN or not str(of.launcher._target_).startswith("hydra._internal"):
            return
        if of.job.num != len(self.members) - 1:
            return
        from rich.table import Table

        from wavespace.terminal import table_console

        table = Table("run", "state", "metric", "folder", box=None)
        with inputs_read_once():
            folders = [RunFolder.of(cfg) for _, cfg in self.members]
        for place, run in enumerate(folders):
            status = run.status()
            value = status.get("metrics", {}).get(status.get("monitor"))
            metric = f"{status['monitor']} {value:.3f}" if value is not None else str(status.get("reason") or "-")
            label, state = self.members[place][0], str(status.get("state", "not started"))
            table.add_row(
                printable_text(label), printable_text(state), printable_text(metric), printable_text(str(run.path))
            )
        table_console().print(table)


def _close(cfg: DictConfig, folder: RunFolder) -> float | None:
    """The closing table and the page to open, which is written now that the run's state is settled."""
    from wavespace.reports.run_page import figures_table, is_current, write_report

    if not is_current(folder.path):
        write_report(folder)
    status = folder.status()
    print()
    for name, *cells in (rows := figures_table(status)):
        print(f"{name:{max(len(row[0]) for row in rows)}}" + "".join(f"{cell:>10}" for cell in cells))
    for claim in claims(cfg.expect, status.get("metrics", {})):
        print(f"{claim.text}: {'met' if claim.met else 'not measured' if claim.met is None else 'NOT MET'}")
    steps = counted(status.get("step", 0), "steps")
    print(f"\n{steps}, {status.get('minutes', 0):.1f} minutes\nopen {folder.path / 'report.html'}")
    return status.get("metrics", {}).get(status.get("monitor"))


if __name__ == "__main__":
    sys.argv[0] = "wavespace train"
    main()
