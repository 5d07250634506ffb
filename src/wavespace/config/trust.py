"""Configurations that somebody else may have written: read as plain data, and held to Wavespace's own parts.

Hydra calls whatever a `_target_` names. So of a checkpoint, an artifact or a run folder only what `conf/` names may be
built, each where its group belongs, and nothing is imported before that is known.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from wavespace.config.moved import moved
from wavespace.config.schema import conf_dir
from wavespace.errors import ConfigError
from wavespace.signals import stop_deferred

MOST_TEXT, MOST_NODES, MOST_DEPTH, MOST_SCALAR = 1_000_000, 20_000, 32, 10_000
"""Characters, values, levels of nesting, and characters of a value that a configuration may have; the longest of ours
has some 200 values on 6 levels."""

PLACES = {key: key for key in ("data", "frontend", "model", "task", "optim", "trainer", "logger")} | {
    "baseline": "model"
}
"""The group whose parts each section may name."""


def add_trust(parser: ArgumentParser) -> None:
    """Add `--trust PACKAGE` to a verb that loads a checkpoint."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a Python package whose code the checkpoint may call, beside Wavespace's own; may be given several times",
    )


BUILT = ("frontend", "model", "task", "optim")
"""Sections of which loading a checkpoint builds something."""


def configuration(text: Any, trust: Sequence[str] = (), sections: Sequence[str] = BUILT) -> DictConfig:
    """Parse a configuration that somebody else may have written; refuse it where it names what may not be called.

    Args:
        text: resolved YAML, as a checkpoint or config.yaml holds it.
        trust: packages whose constructors may be named beside Wavespace's own.
        sections: those of which something will be built; trusted packages that they name are imported.

    Raises:
        ConfigError: the text is no configuration, or names what is neither Wavespace's nor trusted.
    """
    found = safe_yaml(text)
    packages = _packages(trust)
    for key, node in nodes(found):
        if problem := _fault(key, node, packages):
            raise ConfigError(problem)
    built = {key: found.get(key) for key in ("data", *BUILT)}
    if absent := [key for key, node in built.items() if not isinstance(node, dict) or "_target_" not in node]:
        raise ConfigError(f"its configuration has no {absent[0]}._target_")
    if type(found.setdefault("seed", 0)) is not int:
        raise ConfigError(f"the configuration's seed is {str(found['seed'])[:40]!r}, which is no whole number")
    for key, node in nodes({section: found[section] for section in sections}):
        if isinstance(node, dict) and "_target_" in node and node["_target_"] not in _shipped(PLACES[_section(key)]):
            _import(key, node["_target_"], packages)  # by now nothing is named but what may be
    with stop_deferred():
        return OmegaConf.create(found)


def safe_yaml(text: Any) -> dict[str, Any]:
    """Parse YAML to plain data; refuse, before anything is built, what would not stay small.

    Raises:
        ConfigError: it is no mapping, is damaged or too large, or has aliases or tags.
    """
    if not isinstance(text, str):
        raise ConfigError(f"its configuration is {type(text).__name__}, not text")
    if len(text) > MOST_TEXT:
        raise ConfigError(f"its configuration has {len(text):,} characters; {MOST_TEXT:,} are the most")
    try:
        _check_events(text)
        found = yaml.load(text, _LOADER)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"its configuration is no YAML ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"its configuration is {type(found).__name__}, not a mapping")
    return found


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _check_events(text: str) -> None:
    """Go through a text without building anything."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, _LOADER)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MOST_DEPTH or count > MOST_NODES:
            raise ConfigError(f"its configuration has more than {MOST_NODES:,} values, or {MOST_DEPTH} levels")
        if getattr(event, "anchor", None) is not None:  # of an alias, or what it may stand for
            raise ConfigError("its configuration has YAML aliases, which Wavespace doesn't write")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag not in (None, "!"):
            raise ConfigError(f"its configuration has the YAML tag {event.tag[:60]!r}, which Wavespace doesn't write")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MOST_SCALAR:
            raise ConfigError(f"a value in its configuration has more than {MOST_SCALAR:,} characters")


def nodes(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every mapping, list and value by its dotted key, outer ones first."""
    yield key, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield from nodes(child, f"{key}.{name}".lstrip("."))


def _section(key: str) -> str:
    return key.partition(".")[0]


def _fault(key: str, node: Any, packages: Sequence[str]) -> str | None:
    """What is wrong with one value of a configuration; None if nothing is."""
    if isinstance(node, str):
        return f"{key} is {node[:60]!r}: a resolved configuration has no interpolations" if "${" in node else None
    if isinstance(node, int) and abs(node) >= 2**63:
        return f"{key} has more than 64 bits"
    if not isinstance(node, dict):
        return None if node is None or isinstance(node, list | int | float) else f"{key} is a {type(node).__name__}"
    for name in node:
        if not isinstance(name, str | int):
            return f"{key} has a key that is neither text nor a number"
        if isinstance(name, str) and ((re.fullmatch(r"_\w*_", name) and name != "_target_") or "${" in name):
            return f"{key}.{name[:60]}: this key is Hydra's, and Wavespace doesn't write it"
    return _refusal(key, node["_target_"], packages) if "_target_" in node else None


def _refusal(key: str, target: Any, packages: Sequence[str]) -> str | None:
    """Why a `_target_` at a key may not be called; None if it may."""
    group, name = PLACES.get(_section(key)), str(target)[:100]
    where = f"{key}._target_".lstrip(".")
    if group is None:
        return f"{where} is {name!r}, and nothing there is ever called"
    if not isinstance(target, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", target, re.ASCII):
        return f"{where} is {name!r}, which names no constructor"
    if target in _shipped(group) or _trusting(target, packages):
        return None
    if group in ("trainer", "logger") and target.startswith("pytorch_lightning."):
        return None  # it stays text: who loads a checkpoint builds neither
    if said := moved(target):
        return f"{where} {said}: train again, or change it there"
    package = target.partition(".")[0]
    if package in ("wavespace", "hydra_plugins") or package in sys.stdlib_module_names:
        return f"{where} is {name!r}, which is no {group} of Wavespace's, so it isn't called"
    return (
        f"{where} is {name!r}, which is not Wavespace's, so it isn't called; if you trust the code of {package}, say "
        f"so: --trust {package}, or trust=['{package}'] in Python"
    )


@cache
def _shipped(group: str) -> frozenset[str]:
    """What the files of a group name."""
    files = (conf_dir() / group).glob("*.yaml")
    found = (yaml.load(file.read_text("utf-8"), _LOADER) for file in files)
    return frozenset(section["_target_"] for section in found if isinstance(section, dict) and "_target_" in section)


def is_shipped(group: str, target: Any) -> bool:
    """Whether a target is one of Wavespace's own parts of a group; nothing is imported."""
    return target in _shipped(PLACES[group])


def _packages(trust: Sequence[str]) -> list[str]:
    packages = [trust] if isinstance(trust, str) else list(trust)
    for package in packages:
        if not isinstance(package, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", package, re.ASCII):
            raise ConfigError(f"trust is {package!r}; it takes names of packages, such as mypackage")
        if package.partition(".")[0] in sys.stdlib_module_names:
            raise ConfigError(f"trust is {package!r}, which is Python's own; no part of a checkpoint lies there")
    return packages


def _trusting(target: str, packages: Sequence[str]) -> bool:
    return any(target.startswith(f"{package}.") for package in packages)


def _import(key: str, target: str, packages: Sequence[str]) -> None:
    """Import what a trusted target names, which must be that package's own and not what it has imported.

    Raises:
        ConfigError: it can't be imported, or is somebody else's.
    """
    parts = target.split(".")
    module, rest = _module(key, target, parts)
    found: Any = module
    for part in rest:
        found = getattr(found, part, None)
        if isinstance(found, ModuleType):
            break
    home = getattr(found, "__module__", None)
    if not isinstance(found, Callable) or not isinstance(home, str) or not _trusting(f"{home}.", packages):  # type: ignore[arg-type]
        raise ConfigError(f"{key}._target_ is {target!r}: {module.__name__} defines no such constructor")


def _module(key: str, target: str, parts: list[str]) -> tuple[ModuleType, list[str]]:
    """The innermost module that a target names, and the names within it."""
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        try:
            return import_module(name), parts[length:]
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise ConfigError(f"{key}._target_ is {target!r}, and {name} can't be imported: {error}") from error
        except Exception as error:  # whatever somebody's module raises
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ConfigError(f"{key}._target_ is {target!r}, and {name} can't be imported ({said})") from error
    raise ConfigError(
        f"{key}._target_ is {target!r}, and the package {parts[0]} can't be imported here: install it, or run this "
        "where it lies"
    )
