"""The values that an experiment's file sets for a group, which belong to the experiment's own choice of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from wavespace.config.schema import TEXT, conf_dir

PARTS = ("data", "frontend", "model", "task")


def experiment_values(overrides: Sequence[str], config_dir: str | Path | None) -> dict[str, dict[str, Any]]:
    """Return the values that the chosen experiment's own file sets, by group of `PARTS` and `optim`.

    Of several experiments in a sweep, return what the files of all set.
    """
    first, *others = (
        {group: values for group in (*PARTS, "optim") if isinstance(values := found.get(group), dict)}
        for _, found in _read(overrides, config_dir)
    )
    return {
        group: {key: value for key, value in values.items() if all(key in other.get(group, {}) for other in others)}
        for group, values in first.items()
    }


def misplaced_values(overrides: Sequence[str], config_dir: str | Path | None) -> Iterator[str]:
    """Yield a sentence for each group whose values an experiment sets for another choice than the one that is made."""
    file, found = _read(overrides, config_dir)[0]
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
    file, found = _read(overrides, config_dir)[0]
    for key in TEXT:
        if not isinstance(value := found.get(key, ""), str):
            yield f"{key} = {value} (in {file}): it holds text, and YAML reads this as something else; put it in quotes"


def _read(overrides: Sequence[str], config_dir: str | Path | None) -> list[tuple[Path | None, dict[str, Any]]]:
    """Return the file of the chosen experiment, or of each in a sweep, and what it holds."""
    names = [text.partition("=")[2] for text in overrides if text.startswith("experiment=")]
    folders = [Path(folder) for folder in (config_dir, conf_dir()) if folder]
    read: dict[str, tuple[Path | None, dict[str, Any]]] = {}
    for name in (name.strip(" '") for name in "".join(names[-1:]).split(",")):
        for file in (folder / "experiment" / f"{name}.yaml" for folder in folders):
            with suppress(Exception):  # it is not there, or can't be read, which composing says
                found = OmegaConf.to_container(OmegaConf.load(file))
                values = {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}
                read.setdefault(name, (file, values))
    return [*read.values()] or [(None, {})]
