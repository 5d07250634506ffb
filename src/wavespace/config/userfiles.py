"""A user's own files of configuration (`--config-dir`): which can't be read and why, with file and line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

MOST_BYTES, MOST_NODES, MOST_LEVELS = 1_000_000, 100_000, 50
"""What a file may have: beyond it, OmegaConf takes minutes, gigabytes, or Python's whole stack."""


def files(folder: Path) -> Iterator[Path]:
    """The files of groups (`model/mine.yaml`, `hydra/launcher/mine.yaml`), and of the root."""
    for pattern in ("*.yaml", "*/*.yaml", "*/*/*.yaml"):
        yield from sorted(folder.glob(pattern))


def excessive(file: Path) -> str | None:
    """Why a file must not be loaded at all; None if it may be, also where it can't be read."""
    if not file.is_file():
        return f"{file}: it is not a file" if file.exists() and not file.is_dir() else None
    if (size := file.stat().st_size) > MOST_BYTES:
        return f"{file}: it has {size:,} bytes; a file of configuration has at most {MOST_BYTES:,}"
    try:
        root = yaml.compose(file.read_bytes(), yaml.SafeLoader)
    except RecursionError:
        return f"{file}: it is nested deeper than {MOST_LEVELS} levels"
    except (yaml.YAMLError, UnicodeError, ValueError, OSError):
        return None
    try:
        nodes, levels = _size(root, {}, ())
    except RecursionError:
        return f"{file}: an anchor of it contains itself"
    if levels > MOST_LEVELS:
        return f"{file}: it is nested deeper than {MOST_LEVELS} levels"
    return f"{file}: its aliases make {nodes:,} values of it; at most {MOST_NODES:,}" if nodes > MOST_NODES else None


def _size(node: Any, known: dict[int, tuple[int, int]], above: tuple[int, ...]) -> tuple[int, int]:
    """Nodes and levels below a YAML node, each alias counted as what it stands for."""
    if id(node) in above:
        raise RecursionError
    if not isinstance(node, yaml.CollectionNode):
        return 1, 1
    if id(node) not in known:
        pairs = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in node.value for each in pair]
        below = [_size(each, known, (*above, id(node))) for each in pairs]
        known[id(node)] = 1 + sum(n for n, _ in below), 1 + max((levels for _, levels in below), default=0)
    return known[id(node)]


def unreadable(file: Path) -> str | None:
    """Why a file can't be read as configuration, with the line where that is known."""
    try:
        text = file.read_bytes().decode()
        config = OmegaConf.load(file)
    except UnicodeDecodeError as error:
        return f"{file}: it is not UTF-8 text (byte {error.start})"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        return f"{file}{where}: {' '.join(str(error.problem or error.context).split())}"
    except Exception as error:  # of YAML's own readers and constructors
        return f"{file}: {type(error).__name__}: {' '.join(str(error).split())}"
    if text.strip() and not OmegaConf.is_dict(config):
        return f"{file}: it holds {type(OmegaConf.to_container(config)).__name__}s; it must hold keys and values"
    return None
