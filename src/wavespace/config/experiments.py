"""What an experiment's file says of each group, which belongs to the choice that the experiment makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from wavespace.config.schema import TEXT, conf_dir

PARTS = ("data", "frontend", "model", "task")


def experiment_values(overrides: Sequence[str], config_dir: str | Path | None) -> dict[str, dict[str, Any]]:
    """Return the values that the chosen experiment's own file sets, by group of `PARTS` and `optim`."""
    _, found = _read(overrides, config_dir)
    return {group: found[group] for group in (*PARTS, "optim") if isinstance(found.get(group), dict)}


def misplaced_values(overrides: Sequence[str], config_dir: str | Path | None) -> Iterator[str]:
    """Yield a sentence for each group whose values an experiment sets for another choice than the one that is made."""
    file, found = _read(overrides, config_dir)
    defaults = found.get("defaults")
    lines = [*OmegaConf.load(conf_dir() / "train.yaml").defaults, *(defaults if isinstance(defaults, list) else [])]
    own = {
        str(key).removeprefix("override /"): value
        for line in lines
        if hasattr(line, "items")
        for key, value in line.items()
    }
    made = dict(text.split("=", 1) for text in overrides if "=" in text)
    for group, values in experiment_values(overrides, config_dir).items():
        if group in PARTS and group in made and made[group] != own[group]:
            yield (
                f"{group}={made[group]}: {file} sets {group}.{next(iter(values), '')} for another choice; move its "
                f"values of {group} to a file {group}/NAME.yaml beside it, with `defaults: [{own[group]}]"
                f"`, and choose that in the experiment with `override /{group}: NAME`"
            )


def unquoted_texts(overrides: Sequence[str], config_dir: str | Path | None) -> Iterator[str]:
    """Yield a sentence for each text of the chosen experiment that YAML reads as something else, such as a number."""
    file, found = _read(overrides, config_dir)
    for key in TEXT:
        if not isinstance(value := found.get(key, ""), str):
            yield f"{key} = {value} (in {file}): it holds text, and YAML reads this as something else; put it in quotes"


def _read(overrides: Sequence[str], config_dir: str | Path | None) -> tuple[Path | None, dict[str, Any]]:
    names = [text.partition("=")[2].strip("'") for text in overrides if text.startswith("experiment=")]
    folders = [Path(folder) for folder in (config_dir, conf_dir()) if folder]
    for file in (folder / "experiment" / f"{name}.yaml" for name in names[-1:] for folder in folders):
        try:
            found = OmegaConf.to_container(OmegaConf.load(file))
        except Exception:  # it is not there, or can't be read, which composing says
            continue
        return file, {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}
    return None, {}
