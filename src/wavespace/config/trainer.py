"""Settings of Lightning's trainer that a run accepts, their ranges, and the rank of this process."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wavespace.errors import UserError

OURS = {
    "max_epochs": "a run is bounded by trainer.max_steps and trainer.max_time",
    "min_epochs": "a run is bounded by trainer.max_steps and trainer.max_time",
    "min_steps": "a run is bounded by trainer.max_steps and trainer.max_time",
    "limit_train_batches": "a run is bounded by trainer.max_steps, and resumes exactly where it was stopped",
    "overfit_batches": "data with few recordings does that, and resumes exactly where it was stopped",
    "check_val_every_n_epoch": "validation comes every trainer.val_check_interval steps",
    "num_sanity_val_steps": "wavespace check tests whether the parts fit",
    "use_distributed_sampler": "batches are shared out in any case",
    "enable_checkpointing": "checkpoints are written every save_every steps",
    "enable_progress_bar": "the bar is drawn on a terminal",
    "enable_model_summary": "wavespace check shows the parameters",
    "default_root_dir": "a run lies in runs=… name=…",
    "callbacks": "save_every and patience set those of a run",
    "logger": "loggers are a group, as in logger=wandb",
    "plugins": "a run sets them itself",
    "reload_dataloaders_every_n_epochs": "training audio is an endless stream",
    "limit_test_batches": "the test split is scored whole",
    "limit_predict_batches": "wavespace transcribe takes files",
    "fast_dev_run": "trainer.max_steps=1 trainer.val_check_interval=1 tries everything once",
    "barebones": "it would leave out checkpoints and metrics",
    "profiler": "what it reports goes to Lightning's log, which a run keeps quiet",
    "model_registry": "wavespace export makes a file to hand on",
    "enable_autolog_hparams": "config.yaml in the run's folder has every setting",
}
"""Keys of Lightning that would have no effect, and what to use instead."""

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "32", "16", "bf16")
"""Precisions of training; front-ends and losses compute in float32 in all of them."""

CLOCK = re.compile(r"\d\d:[0-2]\d:[0-5]\d:[0-5]\d")
MOST = 2**53

SPAN = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds")

Rule = tuple[Callable[[Any], bool], str]


def _count(least: int, most: int = MOST) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _clock(value: Any) -> bool:
    """Whether a value is a time above 0: DD:HH:MM:SS, or a mapping such as `{minutes: 10}`."""
    if isinstance(value, dict):
        numbers = all(type(number) in (int, float) and 0 <= number < MOST for number in value.values())
        return set(value) <= set(SPAN) and numbers and sum(value.values()) > 0
    return isinstance(value, str) and CLOCK.fullmatch(value) is not None and value != "00:00:00:00"


RULES: dict[str, Rule] = {
    "max_steps": (_count(1), "it is a number of steps, 1 or more"),
    "max_time": (
        lambda value: value is None or _clock(value),
        'it is null, or DD:HH:MM:SS (days, hours, minutes, seconds) in quotes in a file, as in "00:00:10:00"',
    ),
    "val_check_interval": (
        lambda value: _count(1)(value) or _clock(value),
        "it is a number of steps, 1 or more: training audio is endless, so there is no share of it",
    ),
    "limit_val_batches": (
        lambda value: value is None or _count(0)(value) or (type(value) is float and 0 <= value <= 1),
        "it is a number of batches, or a share from 0.0 to 1.0",
    ),
    "accumulate_grad_batches": (_count(1), "it is a number of batches, 1 or more"),
    "log_every_n_steps": (_count(1), "it is a number of steps, 1 or more"),
    "gradient_clip_val": (
        lambda value: value is None or (type(value) in (int, float) and 0 <= value < 1e30),
        "it is null, or a number of 0 or more",
    ),
    "devices": (
        lambda value: (
            value == "auto"
            or _count(1, 1024)(value)
            or (isinstance(value, list) and bool(value) and all(map(_count(0, 1024), value)))
        ),
        "it is a number of devices, 1 or more, a list of their numbers, or auto",
    ),
    "precision": (
        lambda value: value is None or str(value) in PRECISIONS,
        f"it is null, {', '.join(PRECISIONS[:3])}",
    ),
    "num_nodes": (_count(1, 4096), "it is a number of machines, 1 or more"),
    "deterministic": (lambda value: value in (None, True, False, "warn"), "it is true, false or warn"),
}
"""A test for each key, and its sentence. Lightning accepts more values, with which it trains nothing."""


def faults(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each faulty key of a `trainer` section, and a sentence about it."""
    for key in settings:
        if key in OURS:
            yield key, f"it has no effect here: {OURS[key]}"
    for key in ("max_steps", "val_check_interval"):
        if key not in settings:
            yield key, "it is missing, and a run needs it"
    for key, (fits, said) in RULES.items():
        if key in settings and settings[key] is not ... and not fits(settings[key]):
            yield key, said

    interval, batches = settings.get("val_check_interval"), settings.get("accumulate_grad_batches", 1)
    if batches != 1 and not isinstance(interval, int):
        yield "val_check_interval", f"it goes by the clock, within a step of accumulate_grad_batches={batches} batches"


def quiet() -> None:
    """Silence Lightning's advice on settings that a run sets itself."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning\.|lightning_fabric\.")


def refusal(settings: Mapping[str, Any]) -> str | None:
    """Say which setting Lightning refuses on this machine, and why; None if it accepts all."""
    from pytorch_lightning import Trainer

    quiet()

    def refused(**some: Any) -> str | None:
        off: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        try:
            Trainer(**off, enable_model_summary=False, max_epochs=-1, plugins=[cluster_environment()], **some)
        except Exception as error:  # Lightning has a dozen of them
            return " ".join(str(error).split()) or type(error).__name__
        return None

    if (whole := refused(**settings)) is None:
        return None
    for key, value in settings.items():
        if said := refused(**{key: value}):
            works = "; trainer.accelerator=auto takes what this machine has" if key == "accelerator" else ""
            return f"trainer.{key} = {value}: {said}{works}"
    return f"trainer refuses its settings: {whole}"


def rank() -> int:
    """Return the rank of this process: 0, unless torchrun or `wavespace.training.distributed` has started it.

    Raises:
        UserError: RANK is set, but not as torchrun sets it. As rank 1 of nothing, a run would train and keep nothing.
    """
    if "RANK" not in os.environ:
        return 0
    found = {name: os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    if all(value.isdecimal() for value in found.values()) and int(found["RANK"]) < int(found["WORLD_SIZE"]):
        return int(found["RANK"])
    given = ", ".join(f"{name}={value}" if value else f"no {name}" for name, value in found.items())
    raise UserError(
        f"the environment has {given}, which is not what torchrun sets; "
        "unset RANK to train in one process, or start several with torchrun"
    )


def cluster_environment() -> Any:
    """Return Lightning's environment for torchrun's processes, or for our own; never a scheduler's.

    Lightning takes a Slurm, LSF or Kubeflow job for its launcher wherever their variables are set. In an allocation
    whose tasks are separate runs it would refuse to start, or take task 3 for rank 3 and log nothing.
    """
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    rank_zero_only.rank = rank()  # type: ignore[attr-defined]
    return TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()
