"""A checkpoint is enough: weights, configuration as text, specs and versions, loadable without running code.

It is Lightning's own dictionary (so training goes on from it) with `config`, `specs` and `versions` beside
`state_dict`; all plain data and tensors, so torch's weights-only loading takes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

import wavespace
from wavespace.build import build_task
from wavespace.errors import BadCheckpoint, UserError
from wavespace.spec import AudioSpec
from wavespace.tasks.base import Task


def read(path: str | Path) -> dict[str, Any]:
    """The dictionary of a checkpoint file, on the CPU; `path` may also be an address, or `wandb:` and an artifact.

    Raises:
        BadCheckpoint: the file is missing, damaged or not ours.
    """
    from wavespace.export import locate

    path = locate(path)
    if path.is_dir():  # a run folder
        path = path / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise BadCheckpoint(
            f"{path}: there is no such checkpoint; a run leaves one in runs/<name>/<signature>/checkpoints/best.ckpt"
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own text advises to run what is in the file
        raise BadCheckpoint(f"{path}: is not a checkpoint, or is damaged ({type(error).__name__})") from None
    missing = {"state_dict", "config", "specs", "versions"} - set(found if isinstance(found, dict) else ())
    if missing:
        raise BadCheckpoint(f"{path}: has no {', '.join(sorted(missing))}; it was not written by wavespace")
    return found


def config_of(checkpoint: dict[str, Any]) -> DictConfig:
    """The configuration that a checkpoint was trained with."""
    cfg = OmegaConf.create(checkpoint["config"])
    assert isinstance(cfg, DictConfig)
    return cfg


def load(path: str | Path) -> Task:
    """Front-end, model and task of a checkpoint (or of a run folder: its best), in evaluation mode on the CPU.

    Raises:
        BadCheckpoint: the file is missing, damaged, not ours, or doesn't fit the code.
    """
    checkpoint = read(path)
    cfg = config_of(checkpoint)
    audio = checkpoint["specs"]["audio"]
    try:
        task = build_task(cfg, AudioSpec(audio["sample_rate"], audio["seconds"], tuple(audio["labels"])))
        task.load_state_dict(checkpoint["state_dict"])
    except UserError:
        raise
    except Exception as error:  # a part that is not installed, a setting or a weight that the code has no more
        written, reason = checkpoint["versions"].get("wavespace"), " ".join(str(error).split())
        raise BadCheckpoint(
            f"{path}: written by wavespace {written}, doesn't fit {wavespace.__version__}: {reason[:300]}"
        ) from None
    task.config_text = checkpoint["config"]
    return task.eval()
