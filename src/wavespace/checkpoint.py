"""A checkpoint is enough: weights, configuration as text, specs and versions, all of it plain data.

It is Lightning's own dictionary (so training resumes from it) with `config`, `specs` and `versions` beside
`state_dict`. Whoever wrote it, opening it calls Wavespace's own parts alone (`trust.py`), and takes no more memory than
its size accounts for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from wavespace.archive import fault
from wavespace.build import build_task
from wavespace.config.trust import BUILT, configuration, nodes
from wavespace.errors import BadCheckpoint, ConfigError, UserError, place_of
from wavespace.locate import locate
from wavespace.spec import AudioSpec
from wavespace.tasks.base import Task
from wavespace.text import nearest

MOST_NUMBER = 2**20
"""Size of a number in the settings of a part."""

SPARE = 2**20
"""Bytes that a net may have beyond those of its file."""


def read(path: str | Path) -> dict[str, Any]:
    """The dictionary of a checkpoint file, on the CPU; `path` may also be an address, or `wandb:` and an artifact.

    Raises:
        BadCheckpoint: the file is missing, damaged or not ours.
    """
    path = locate(path)
    if path.is_dir():  # a run folder
        path = path / "checkpoints" / "best.ckpt"
    if not path.is_file():
        similar = nearest(path.name, (other.name for other in path.parent.glob("*")))
        raise BadCheckpoint(
            f"{path}: there is no such checkpoint{similar}; name a run folder, a folder of runs, or a .ckpt file"
        )
    if problem := fault(path):
        raise BadCheckpoint(f"{path}: {problem}")
    try:
        # Mapped, so that a storage can't reach beyond the file.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch's own text advises to run what is in the file
        raise BadCheckpoint(f"{path}: is not a checkpoint, or is damaged ({type(error).__name__})") from None
    if problem := _content_fault(found):
        raise BadCheckpoint(f"{path}: {problem}")
    return found


def _content_fault(found: Any) -> str | None:
    """What of a checkpoint's dictionary is missing or of another kind; None if nothing is."""
    missing = {"state_dict", "config", "specs", "versions"} - set(found if isinstance(found, dict) else ())
    if missing:
        return f"has no {', '.join(sorted(missing))}; it was not written by wavespace"
    kinds = {"state_dict": Mapping, "config": str, "specs": Mapping, "versions": Mapping}
    for key, kind in kinds.items():
        if not isinstance(found[key], kind):
            return f"its {key} is {type(found[key]).__name__}; it was not written by wavespace, or is damaged"
    for name, tensor in found["state_dict"].items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            return f"its state_dict has {str(name)[:60]!r}, which is no tensor"
    return None


def load(path: str | Path, trust: Sequence[str] = ()) -> Task:
    """Front-end, model and task of a checkpoint (or of a run folder: its best), in evaluation mode on the CPU.

    Args:
        path: a file, a run folder, `https://…`, or `wandb:ENTITY/PROJECT/NAME:ALIAS`.
        trust: packages whose code the checkpoint may call, as `["mypackage"]`; else only Wavespace's own parts.

    Raises:
        BadCheckpoint: the file is missing, damaged, not ours, doesn't fit the code, or names code that isn't trusted.
    """
    return built(path, read(path), trust)


def built(path: str | Path, checkpoint: Mapping[str, Any], trust: Sequence[str] = ()) -> Task:
    """Build the task of a checkpoint that `read` has read from a path; else as `load`."""
    try:
        cfg = configuration(checkpoint["config"], trust)
        audio = _audio_spec(checkpoint["specs"])
    except ConfigError as error:
        raise BadCheckpoint(f"{path}: {error}") from error.__cause__
    try:
        _check_numbers(cfg, len(checkpoint["state_dict"]))
        with torch.device("meta"), _bounded(len(checkpoint["state_dict"])):  # where shapes take no memory
            _check_shapes(build_task(cfg, audio), checkpoint["state_dict"])
        task = build_task(cfg, audio)
        task.load_state_dict(checkpoint["state_dict"])
    except Exception as error:
        # Of the builder's errors, a TypeError is behind the one about a setting that a constructor has no more.
        if isinstance(error, UserError) and not isinstance(error.__cause__, TypeError):
            raise type(error)(f"{path}: {error}") from error
        written, reason = checkpoint["versions"].get("wavespace"), " ".join(str(error).split())[:300]
        raise BadCheckpoint(
            f"{path}: written by wavespace {written[:40] if isinstance(written, str) else '?'}, doesn't fit "
            f"{version('wavespace')}: {reason}{place_of(error)}"
        ) from error
    task.config_text = checkpoint["config"]
    return task.eval()


def _audio_spec(specs: Mapping[str, Any]) -> AudioSpec:
    """What a checkpoint says of the audio that it was trained on.

    Raises:
        ConfigError: that is not an AudioSpec's.
    """
    match specs.get("audio"):
        case {"sample_rate": int(rate), "seconds": int() | float() as seconds, "labels": [*labels]}:
            if all(isinstance(label, str) for label in labels):
                with suppress(ValueError):
                    return AudioSpec(rate, seconds, tuple(labels))
    raise ConfigError("its specs don't say the rate, length and labels of the audio; it is damaged")


def _check_numbers(cfg: DictConfig, weights: int) -> None:
    """Refuse numbers so large that lists made from them would not fit into memory; parts themselves refuse tables.

    Raises:
        ValueError: a part asks for more than `MOST_NUMBER`, or a net for more layers than the file has weights.
    """
    for section in BUILT:
        for key, value in nodes(OmegaConf.to_container(cfg[section]), section):
            most = weights if key in ("model.depth", "model.layers") else MOST_NUMBER
            if isinstance(value, int | float) and not abs(value) <= most:
                raise ValueError(f"{key} is {value:g}; {most:,} is the most that is built of this file")


@contextmanager
def _bounded(weights: int) -> Iterator[None]:
    """Meanwhile a net may register modules and parameters in proportion to the weights of its file, and no more."""
    left = 1000 + 20 * weights

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"the net has more parts than a file of {weights:,} weights can be of")

    with register_module_parameter_registration_hook(count), register_module_module_registration_hook(count):
        yield


def _check_shapes(task: Task, weights: Mapping[str, torch.Tensor]) -> None:
    """Hold the shapes of a task on the meta device against weights.

    Raises:
        ValueError: they differ, or the net has more numbers than the file.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in task.state_dict().items()}
    for name in sorted(expected.keys() ^ weights.keys()):
        raise ValueError(f"{name} is in the {'net' if name in expected else 'file'} alone")
    for name, shape in expected.items():
        if shape != tuple(weights[name].shape):
            raise ValueError(f"{name} is {tuple(weights[name].shape)} in the file, and {shape} in the net")
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in weights.values()}
    named = [*task.named_parameters(), *task.named_buffers()]  # each once, though several names may share it
    needed = sum(math.prod(tensor.shape) * tensor.element_size() for name, tensor in named if name in expected)
    if needed > sum(storages.values()) + SPARE:
        raise ValueError(f"the net has {needed:,} bytes of weights, and the file {sum(storages.values()):,}")
