"""Check a composed configuration against the constructors that it names, and report every fault at once."""

from __future__ import annotations

import inspect
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wavespace.config import trainer
from wavespace.config.claims import claims
from wavespace.config.experiments import misplaced_values, unquoted_texts
from wavespace.config.moved import moved, renamed
from wavespace.config.schema import GROUPS, NAME, ROOT, choices, conf_dir
from wavespace.errors import ConfigError, place_of
from wavespace.settings import annotations_of, type_fault
from wavespace.text import nearest


def check(cfg: DictConfig, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> None:
    """Raise one `ConfigError` with every fault of a composed configuration."""
    if found := list(faults(cfg, overrides, config_dir)):
        raise ConfigError(fault_list(found))


def faults(
    cfg: DictConfig, overrides: Sequence[str], config_dir: str | Path | None, section: str = ""
) -> Iterator[str]:
    """Yield a sentence for each fault of a composed configuration, or of a section: root, values, constructors."""
    where = lambda key: _origin(key, overrides, config_dir)  # noqa: E731
    broken: dict[str, str] = {}
    plain = plain_values(cfg, section, broken)
    reasons: dict[str, str] = {}  # one that several keys share is one fault
    for key, reason in sorted(broken.items(), key=lambda item: item[0].count(".")):
        if not any(reason.startswith(f"Interpolation key '{name}' not found") for name in ROOT if name not in plain):
            reasons.setdefault(reason, key)
    yield from (f"{key}{where(key)}: {reason}" for reason, key in reasons.items())
    for key, node in targets(plain, section):
        yield from _faults_of_node(key, node, where)
    if not section:
        yield from _faults_of_root(plain, where)
        yield from misplaced_values(overrides, config_dir)
        yield from unquoted_texts(overrides, config_dir)


def plain_values(node: Any, key: str, broken: dict[str, str]) -> Any:
    """Convert a configuration to plain data; a broken value becomes `...`, and its reason goes to `broken`."""
    if isinstance(node, ListConfig):
        return [_plain_at(node, i, f"{key}.{i}", broken) for i in range(len(node))]
    if isinstance(node, DictConfig):
        names: Any = list(node.keys())
        return {name: _plain_at(node, name, f"{key}.{name}".lstrip("."), broken) for name in names}
    if isinstance(node, float) and not math.isfinite(node):
        broken[key] = f"{node} is not a number to compute with"
        return ...
    return node


def _plain_at(parent: Any, name: Any, key: str, broken: dict[str, str]) -> Any:
    if OmegaConf.is_missing(parent, name):
        choice = f"; there are: {', '.join(choices(key))}" if key in GROUPS else ""
        broken[key] = f"{key} has no value{choice}"
        return ...
    try:
        return plain_values(parent[name], key, broken)
    except (OmegaConfBaseException, RecursionError, ValueError) as error:
        unset = re.search(r"Environment variable '(.*?)' not found", str(error))
        cycle = isinstance(error, RecursionError) or str(error).startswith(("Recur", "maximum recursion"))
        said = "its interpolation leads back to itself" if cycle else first_line(error)
        broken[key] = f"the environment variable {unset[1]} is not set" if unset else said
        return ...


def _faults_of_root(plain: dict[Any, Any], where: Callable[[str], str]) -> Iterator[str]:
    for key in plain:
        if key not in ROOT:
            yield f"{key}{where(str(key))}: there is no such key{nearest(str(key), ROOT)}; keys: {', '.join(ROOT)}"
    for key in (key for key in ROOT if key not in plain):
        yield f"{key}: was taken out, and a run needs it; give it a value"
    name, runs = plain.get("name"), plain.get("runs")
    if isinstance(name, str) and (not NAME.fullmatch(name) or name.lower() == "launches"):
        yield (
            f"name={name!r}{where('name')}: a name becomes a folder, a W&B run and an artifact, so it has 1 to 50 of "
            "a-z A-Z 0-9 . _ -, begins and ends with a letter, a digit or _, and is not 'launches'"
        )
    if isinstance(runs, str):
        yield from (f"runs={runs}{where('runs')}: {reason}" for reason in _unusable(runs))
    expect = plain.get("expect")
    if expect is not None and expect is not ... and not isinstance(expect, dict):
        yield f"expect = {expect}{where('expect')}: it is null, or claims by the name of a metric"
        expect = None
    try:
        claims(None if expect is ... else expect, {})
    except (ValueError, AttributeError) as error:
        yield f"expect{where('expect')}: {error}"
    if plain.get("resume") not in (None, "last", "best", ...):
        yield f"resume = {plain['resume']}: it is last, best or null"
    if isinstance(seed := plain.get("seed"), int) and not -(2**63) <= seed < 2**63:
        yield f"seed = {seed}: it must lie within 64 bits, from {-(2**63)} to {2**63 - 1}"
    for key, what in (("save_every", "steps"), ("patience", "validations")):
        if isinstance(number := plain.get(key), int) and not 1 <= number <= trainer.MOST:
            yield f"{key} = {number}{where(key)}: it is a number of {what}, 1 or more"
    for key in (*GROUPS[:6], "baseline"):
        section = plain.get(key, ...)
        if key == "baseline" and section is None:
            continue
        if section is not ... and not (isinstance(section, dict) and "_target_" in section):
            yield (
                f"{key}{where(key)}: it has no _target_, the constructor that it is built by; there are: "
                + ", ".join(choices("model" if key == "baseline" else key))
            )
    logger = plain.get("logger")
    for key in logger if isinstance(logger, dict) and "_target_" not in logger else ():
        place = f"logger.{key}"
        yield f"{place}{where(place)}: there is no such key; only a logger that is chosen has keys, as logger=wandb"


def _unusable(folder: str) -> Iterator[str]:
    """Yield why a folder can't be made."""
    if not folder.strip() or "\0" in folder:
        yield "it must name a folder"
    elif folder.startswith("~"):
        yield f"~ is not your home folder here; write {Path(folder).expanduser()}"
    else:
        path = Path(folder).absolute()
        there = next(each for each in (path, *path.parents) if os.path.lexists(each))
        if not there.is_dir():
            yield f"{there} is in the way; it is not a folder"


def _faults_of_node(key: str, node: dict[str, Any], where: Callable[[str], str]) -> Iterator[str]:
    target = node["_target_"]
    try:
        signature, hints = constructor(target)
    except Exception as error:  # whatever importing somebody's module may raise
        said = moved(str(target)) or f"can't be imported: {_unimportable(str(target), error)}"
        yield f"{key}._target_ = {target}{where(f'{key}._target_')}: {said}"
        return
    yield from _faults_of_part(key, node, signature, where)
    parameters = {name: p for name, p in signature.items() if name not in BUILT}
    named = [name for name, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in node.items():
        place = f"{key}.{name}"
        if key in (*GROUPS, "baseline") and name in ("_partial_", "_convert_"):
            yield f"{place}{where(place)}: it has no effect here: a run calls this constructor itself"
        if name in ("_target_", "_partial_", "_convert_", "_recursive_") or value is ...:
            continue
        if key == "trainer" and (name in trainer.OURS or name in trainer.RULES):
            continue
        if name not in parameters:
            if not takes_any:
                hint = f"there is no such key{nearest(name, named, key)}; keys of {key}: {', '.join(named)}"
                yield f"{place}{where(place)}: {renamed(str(target), name) or hint}"
        elif not isinstance(value, dict) and name in hints and (fault := type_fault(value, hints[name])):
            yield f"{place} = {value}{where(place)}: {fault}"
    for name, p in parameters.items():
        if name in named and p.default is p.empty and name not in node:
            yield f"{key}.{name}: is missing; {target} needs it"


def _unimportable(target: str, error: Exception) -> str:
    """Say why a target can't be imported: its module lacks the name, or importing it raised an error, and where."""
    cause = _cause(error)
    module, _, name = target.rpartition(".")
    if isinstance(cause, ModuleNotFoundError) and cause.name == target and module in sys.modules:
        return f"{module} defines no '{name}'{nearest(name, vars(sys.modules[module]))}"
    looked = "; it is looked for among installed packages and in the current folder"
    is_absent = isinstance(cause, ModuleNotFoundError) and cause.name == target.partition(".")[0]
    return f"{first_line(cause)}{place_of(error)}{looked if is_absent else ''}"


GIVEN = {"frontend": ("in_spec",), "model": ("in_spec", "out_spec"), "task": ("frontend",)}
"""Arguments that the builder passes to each part, so its constructor must take them."""


def _faults_of_part(
    key: str, node: dict[str, Any], signature: dict[str, inspect.Parameter], where: Callable[[str], str]
) -> Iterator[str]:
    """Yield the faults that follow from a section's role in a run."""
    given = GIVEN.get("model" if key == "baseline" else key, ())
    absent = [name for name in given if name not in signature]
    if absent and not any(p.kind is p.VAR_KEYWORD for p in signature.values()):
        target = str(node["_target_"])
        yield (
            f"{key}._target_ = {target}{where(f'{key}._target_')}: it does not take {' and '.join(absent)}; "
            f"a {key} is built as {target.rpartition('.')[2]}({', '.join(given)}, *, …), as CONTRIBUTING.md says"
        )
    if key == "trainer":
        for name, said in trainer.faults(node):
            value = f" = {node[name]}" if name in node else ""
            yield f"trainer.{name}{value}{where(f'trainer.{name}')}: {said}"


def _cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _cause(error.__cause__)


BUILT = frozenset({"self", "in_spec", "out_spec", "frontend", "callbacks"})
"""Constructor arguments that the builder passes, so they never stand in YAML."""


def targets(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each mapping with a `_target_` in plain data, at any depth, with its dotted key."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    if isinstance(node, dict) and "_target_" in node:
        yield key, node
    for name, child in children:
        yield from targets(child, f"{key}.{name}".lstrip("."))


@cache
def constructor(target: str) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """Import a target; return the parameters of its constructor, and their annotations."""
    from hydra.utils import get_object

    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it logs what it raises
    found = get_object(target)
    function: Any = getattr(found, "__init__") if isinstance(found, type) else found  # noqa: B009
    return dict(inspect.signature(function).parameters), annotations_of(found)


def _origin(key: str, overrides: Sequence[str], config_dir: str | Path | None) -> str:
    """Return where a key was set, as ` (in …)`: the command line, the experiment, or the group's file."""
    typed = {text.split("=")[0].lstrip("+") for text in overrides} - (set(GROUPS) - {key})  # a choice names a file
    if any(f"{key}.".startswith(f"{name}.") for name in typed):
        return " (on the command line)"
    chosen = dict(text.lstrip("+").split("=", 1) for text in overrides if "=" in text)
    group, _, rest = key.partition(".")
    places = [("experiment", chosen.get("experiment"), key), (group, chosen.get(group), rest)]
    for folder in (f for f in (config_dir, conf_dir()) if f):
        for name, choice, path in places:
            if choice and path and _sets(file := Path(folder) / name / f"{choice}.yaml", path):
                return f" (in {file})"
        for file in sorted((Path(folder) / group).glob("*.yaml")) if rest and not chosen.get(group) else ():
            if _sets(file, rest):
                return f" (in {file})"
    return ""


def _sets(file: Path, key: str) -> bool:
    """Return whether a configuration file sets a key."""
    try:
        node: Any = OmegaConf.to_container(OmegaConf.load(file))
    except Exception:  # it is not there, or can't be read, which is told elsewhere
        return False
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
    return True


def first_line(error: BaseException) -> str:
    """Return the informative part of an error of Hydra, OmegaConf or YAML on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("full_key:", "object_type="))]
    if error.__cause__ is not None and (not lines or lines[0].startswith("Error merging override")):
        return first_line(error.__cause__)  # the error around it says less
    return " ".join(lines[:2]) if lines else type(error).__name__


def fault_list(found: Sequence[str]) -> str:
    """Return one message that lists each fault once."""
    unique = list(dict.fromkeys(found))
    head = "The configuration has a fault:" if len(unique) == 1 else f"The configuration has {len(unique)} faults:"
    return "\n".join([head, *(f"  {line}" for line in unique)])
