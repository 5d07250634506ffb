"""The one place that turns configuration into objects; specs flow data -> front-end -> model -> task.

Whatever can't work together is refused here, on the meta device, before data, network or GPU is touched.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import get_object
from omegaconf import DictConfig
from pytorch_lightning.loggers import WandbLogger

from wavespace import config
from wavespace.config import trainer
from wavespace.config.construction import choice_of, make
from wavespace.config.own_code import code_of
from wavespace.data.base import DataModule
from wavespace.data.sources.recordings import Recordings
from wavespace.errors import BadInput, ConfigError, Incompatible, UserError, place_of
from wavespace.models.blocks import Bounded
from wavespace.spec import AudioSpec
from wavespace.tasks.base import Task


class Parts(NamedTuple):
    """A datamodule and the task (with its front-end and model) that trains on it."""

    data: DataModule
    task: Task


def build(cfg: DictConfig) -> Parts:
    """Build everything that a configuration names, after a check that it fits together.

    Raises:
        Incompatible: two parts can't work together.
        ConfigError: a constructor refused a value.
    """
    data = make(cfg.data, "data")
    check_shapes(cfg, data.spec)
    torch.manual_seed(cfg.seed)  # initial weights
    task = build_task(cfg, data.spec)
    if cfg.cache:
        _read_features(cfg, data, task)
    return Parts(data, task)


def _read_features(cfg: DictConfig, data: DataModule, task: Task) -> None:
    if not isinstance(data, Recordings):
        raise Incompatible(
            f"cache=true keeps features of recordings, and data={choice_of(cfg.data)} makes its audio as it goes; "
            "set cache=false, or use data=maestro, medley_solos or audio_folder"
        )
    if any(parameter.requires_grad for parameter in task.frontend.parameters()):
        raise Incompatible(
            f"cache=true keeps what a frozen front-end gives, and frontend={choice_of(cfg.frontend)} learns; "
            "set cache=false, or frontend.trainable=false"
        )
    code = {} if config.is_own(cfg.frontend._target_) else code_of(cfg.frontend._target_)
    data.use_features(task.frontend, config.identity(cfg)["frontend"] | code)


def check_shapes(cfg: DictConfig, audio: AudioSpec) -> Task:
    """Check that the parts fit, with a batch of two items that has shapes and no memory; return the task.

    The baseline, which replaces the model once training is over, is checked, too.
    """
    with torch.device("meta"):
        task = build_task(cfg, audio)
        features = task.frontend.out_spec
        frames = features.frames(audio.samples, audio.sample_rate)
        wanted = (2, task.out_spec.channels, task.out_spec.bins, frames)
        try:
            found = _shape(task.eval(), torch.empty(2, 1, audio.samples))
        except UserError:
            raise
        except Exception as error:
            named = f"model={choice_of(cfg.model)} on frontend={choice_of(cfg.frontend)} ({features})"
            raise Incompatible(f"{named} can't process {frames} frames: {error}{place_of(error)}") from error
    if found != wanted:
        named = f"model={choice_of(cfg.model)} on frontend={choice_of(cfg.frontend)} ({features})"
        raise Incompatible(f"{named} gives {found}, but task={choice_of(cfg.task)} needs {wanted} ({task.out_spec})")
    if cfg.baseline is not None:
        check_shapes(with_baseline(cfg), audio)
    return task


def _shape(task: Task, audio: torch.Tensor) -> tuple[int, ...]:
    """Shape of what a task's model gives for audio `(B, 1, N)`, which must be a tensor of real numbers."""

    def check(model: torch.nn.Module, features: Any, output: Any) -> None:
        if not isinstance(output, torch.Tensor):
            raise TypeError(f"it gives a {type(output).__name__}, and must give one tensor")
        if not output.is_floating_point():
            raise TypeError(f"it gives {output.dtype}, and must give torch.float32")

    with task.model.register_forward_hook(check):
        return tuple(task(audio).shape)


def with_baseline(cfg: DictConfig) -> DictConfig:
    """The configuration with its baseline, which may refer to the model that it replaces, for a model."""
    changed = cfg.copy()
    changed.model, changed.baseline = config.resolved(cfg)["baseline"], None
    return changed


def build_task(cfg: DictConfig, audio: AudioSpec) -> Task:
    """Front-end, model and task for audio of a given spec."""
    frontend = make(cfg.frontend, "frontend", in_spec=audio)
    task: Task = make(cfg.task, "task", frontend=frontend)
    if missing := [label for label in task.needs if label not in audio.labels]:
        if cfg.data.get("notes") is False and "notes" in missing:
            works = "data.notes=true reads them, task=reconstruction and task=self_salience need none"
        else:
            works = f"data with them: {', '.join(_data_with(task.needs)) or 'none'}"
        raise Incompatible(
            f"task={choice_of(cfg.task)} needs {' and '.join(missing)} labels, and data={choice_of(cfg.data)} has "
            f"{' and '.join(audio.labels) or 'none'}; {works}"
        )
    model = make(cfg.model, "model", in_spec=frontend.out_spec, out_spec=task.out_spec)
    if isinstance(getattr(model, "context", None), int) and not isinstance(model, Bounded):  # so named before
        raise Incompatible(
            f"model={choice_of(cfg.model)} states how far it sees as context, which nothing reads; name it "
            "receptive_field, or transcribing long audio would cut it short"
        )
    task.model = model.to(memory_format=torch.channels_last)  # as `Task.apply_model` lays out its input
    task.optim = make(cfg.optim, "optim")
    return task


def check_splits(data: DataModule, limit_val_batches: Any) -> None:
    """Raise `UserError` if there is nothing to validate or to test on: both come last, in any run."""
    for split in ("val", "test"):
        if len(getattr(data, f"{split}_dataloader")()) == 0:
            raise BadInput(f"the data has nothing in its {split} split, on which a run is scored")
    batches = len(data.val_dataloader())
    if isinstance(limit_val_batches, float) and 0 < limit_val_batches * batches < 1:
        raise ConfigError(
            f"trainer.limit_val_batches = {limit_val_batches}: the val split has {batches} batches, so that share is "
            f"less than one; say at least {1 / batches:.2g}, or a number of batches such as 1"
        )


def uses_wandb(cfg: DictConfig) -> bool:
    """Whether a run is logged at W&B, beside metrics.csv."""
    logger = get_object(cfg.logger._target_) if cfg.logger else None
    return isinstance(logger, type) and issubclass(logger, WandbLogger)


def check_trainer(cfg: DictConfig) -> None:
    """Let Lightning and W&B say, before data is touched, whether this machine has what the settings need.

    Raises:
        ConfigError: Lightning refuses a key of the trainer, or W&B would ask for a key.
    """
    if uses_wandb(cfg):
        _check_wandb(cfg.logger)
    if said := trainer.refusal(
        {key: value for key, value in config.resolved(cfg)["trainer"].items() if key != "_target_"}
    ):
        raise ConfigError(said)


def _check_wandb(node: DictConfig) -> None:
    try:
        import wandb
    except ImportError:
        raise ConfigError("logger=wandb needs what is not installed: pip install wandb") from None
    if node.get("offline"):  # which Lightning puts into the environment, where W&B no longer looks once it is set up
        return
    settings: Any = wandb.setup().settings  # of its files, where the environment says nothing
    mode = os.environ.get("WANDB_MODE") or getattr(settings, "mode", None)
    if mode in ("offline", "disabled", "dryrun") or wandb.run is not None:
        return
    home = Path.home()
    files = [Path(os.environ.get("NETRC") or home / ".netrc"), home / "_netrc"]
    host = str(settings.base_url).partition("//")[2].partition("/")[0].partition(":")[0]
    named = any(host in file.read_text(errors="replace") for file in files if file.is_file())
    given = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    if not (named or given or getattr(settings, "api_key", None)):
        raise ConfigError(
            "logger=wandb: this machine has no key for W&B; run `wandb login`, or set WANDB_API_KEY, or keep the run "
            "here with logger.offline=true (wandb sync sends it later)"
        )


@lru_cache
def _data_with(labels: tuple[str, ...]) -> list[str]:
    found = []
    for choice in config.choices("data"):
        node = config.compose([f"data={choice}"]).data
        try:
            have = make(node, "data").spec.labels
        except UserError:
            continue
        if set(labels) <= set(have):
            found.append(choice)
    return found
