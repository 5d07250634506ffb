"""The root of a configuration, and the folder of its files."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from wavespace.errors import ConfigError

GROUPS = ("data", "frontend", "model", "task", "optim", "trainer", "logger", "experiment", "sweep")


@dataclass
class TrainConfig:
    """The root of every configuration; each group holds a `_target_` and that constructor's own keywords."""

    data: Any = MISSING
    frontend: Any = MISSING
    model: Any = MISSING
    task: Any = MISSING
    optim: Any = MISSING
    trainer: Any = MISSING
    logger: Any = None

    name: str = "run"
    """The folder that runs of one study share: runs/<name>/<signature>/."""
    seed: int = 0
    """Seed of weights, data order, augmentation and dropout. 0 is a seed."""
    fresh: bool = False
    """Start over although a run of this configuration exists."""
    resume: str | None = None
    """Checkpoint that an unfinished run resumes from, last or best; one that has diverged goes on only with it."""
    runs: str = "runs"
    """Where run folders live (WAVESPACE_RUNS sets it)."""
    save_every: int = 200
    """Steps between checkpoints; one is also written after each validation."""
    patience: int | None = None
    """Stop after this many validations without a better one."""
    cache: bool = False
    """Compute the features of a frozen front-end once for the whole store of recordings, and read them from then on."""
    compile: bool = False
    """Compile the model with torch.compile."""
    baseline: Any = None
    """A model without parameters that is scored on the same test data."""
    search: Any = None
    """A search that W&B draws, for `train -m hydra/launcher=runpod`: method, metric, parameters, run_cap."""
    expect: Any = None
    """Claims on metrics, such as `{test/l1_db: "< 0.5 * baseline/l1_db"}`; printed at the end of a run."""


ConfigStore.instance().store(name="schema", node=TrainConfig)


ROOT = tuple(field.name for field in dataclasses.fields(TrainConfig))
"""Keys of the root."""


TEXT = tuple(field.name for field in dataclasses.fields(TrainConfig) if field.type == "str")
"""Root keys whose value is text whatever it looks like."""


NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,48}[A-Za-z0-9_])?")
"""What `name` may be: a folder, part of a W&B run's id (64 characters with the signature) and of an artifact's name."""


def conf_dir() -> Path:
    """The folder of configuration files: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(
        f"no configuration found in {package / 'conf'} or {package.parents[1] / 'conf'}; reinstall wavespace"
    )


def choices(group: str, config_dir: str | Path | None = None) -> list[str]:
    """Names that a group can take."""
    folders = [Path(folder) / group for folder in (config_dir, conf_dir()) if folder]
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
