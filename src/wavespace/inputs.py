"""Digests of what a run reads besides its configuration: data, soundfonts, weights, and the user's own code.

Imports no torch: a finished run is found by them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from wavespace.config import RUNTIME, is_own, resolved, targets
from wavespace.config.construction import make
from wavespace.config.own_code import code_of
from wavespace.data.files.discovery import PATHS, READERS
from wavespace.digests import DigestCache, digest
from wavespace.frontends.weights import encodec_weights

CHANGED = "what this run reads has changed since the command began; repeat it"

_cache: dict[str, dict[str, str]] | None = None


@contextmanager
def inputs_read_once() -> Iterator[None]:
    """Read the inputs of equal settings once within the block, as for the members of a multirun."""
    global _cache
    _cache = {}
    try:
        yield
    finally:
        _cache = None


def input_digests(cfg: DictConfig, most: float = math.inf) -> dict[str, str]:
    """Return a digest of each file, folder or package that a run reads, by the setting that names it.

    Equal files give equal digests wherever they lie. A configuration that reads nothing, as data=synthetic, has none.

    Args:
        cfg: the configuration.
        most: bytes of data to read at most, without those whose digests are cached.

    Raises:
        BadInput: the data is not there, or can't be used.
        Unread: more than `most` would have to be read.
    """
    found: dict[str, str] = {}
    stores = next((node["stores"] for _, node in _nodes(cfg) if isinstance(node.get("stores"), str)), "data/stores")
    for key, node in _nodes(cfg):
        settings = digest([node, key.startswith("data")])
        own = (_cache or {}).get(settings)
        if own is None:
            own = _read(node, DigestCache(Path(stores)), most, of_data=key.startswith("data"))
            if _cache is not None:
                _cache[settings] = own
        found |= {name if name.startswith("code ") else f"{key}.{name}": value for name, value in own.items()}
    return found


def input_paths(cfg: DictConfig) -> dict[str, str]:
    """Return the absolute path of each file or folder that a run reads, by setting."""
    return {
        f"{key}.{name}": os.path.abspath(os.path.expanduser(node[name]))
        for key, node in _nodes(cfg)
        for name in PATHS
        if isinstance(node.get(name), str)
    }


def _nodes(cfg: DictConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each constructor's settings, with its key, of all that can change a result."""
    for section, value in resolved(cfg).items():
        if section not in RUNTIME[""]:
            yield from targets(value, section)


def _read(node: Mapping[str, Any], digests: DigestCache, most: float, *, of_data: bool) -> dict[str, str]:
    target = str(node["_target_"])
    if target == "wavespace.frontends.encodec.EnCodec":
        return {"weights": digests.of([encodec_weights(node.get("weights"))], most)[0].digest}
    if is_own(target):
        return READERS[target](node, digests, most) if target in READERS else {}
    found = {f"code {name}": value for name, value in code_of(target).items()}
    texts = {name: os.path.expanduser(value) for name, value in node.items() if isinstance(value, str)}
    files = {name: Path(text) for name, text in texts.items() if "/" in text or Path(text).suffix}
    files = {name: path for name, path in files.items() if os.path.isfile(path)}  # False for a text that is no path
    found |= {name: seen.digest for name, seen in zip(files, digests.of(list(files.values()), most))}
    return found | (_of_own_data(node) if of_data and code_of(target) else {})


def _of_own_data(node: Mapping[str, Any]) -> dict[str, str]:
    """Ask a datamodule of the user's own what it reads; this imports torch."""
    from hydra.utils import get_object
    from omegaconf import OmegaConf

    from wavespace.data.base import DataModule

    kind = get_object(str(node["_target_"]))
    if not (isinstance(kind, type) and issubclass(kind, DataModule)):
        return {}
    data: DataModule = make(OmegaConf.create(dict(node)), "data")
    return data.contents()
