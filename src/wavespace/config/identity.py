"""The signature of a configuration: a hash of every setting that can change its result."""

from __future__ import annotations

import hashlib
import json
import typing
from typing import Any

from omegaconf import DictConfig, OmegaConf

RUNTIME = {
    "": {"name", "fresh", "resume", "runs", "logger", "compile", "save_every", "expect", "search"},
    "data": {"workers", "root", "stores", "url"},
    "frontend": {"weights"},
    "trainer": {
        "accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", "detect_anomaly",
    },
}  # fmt: skip
"""Settings that can't change the result of a run, by section."""


PATHS = {"root", "stores", "url", "weights"}
"""Those of `RUNTIME` that are paths, in our own constructors."""


FILES = ("folder", "midi", "test_midi", "soundfont")
"""Paths of files, or null for none: that they are set is part of the identity, their text is not."""


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain data, with every interpolation resolved."""
    return typing.cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))


def signature(cfg: DictConfig) -> str:
    """Hash a configuration to twelve hex digits.

    What can't change the result (paths, logger, workers, device) is left out, so single runs, members of a multirun
    and remote jobs of one configuration share it. The name of the run folder also has a digest of the files' content
    (`wavespace.runfolder.RunFolder.of`).
    """
    return hashlib.sha256(json.dumps(identity(cfg), sort_keys=True).encode()).hexdigest()[:12]


def identity(cfg: DictConfig) -> dict[str, Any]:
    """Return the resolved configuration without what can't change the result of a run, and without paths.

    The content of the files is `wavespace.inputs`.
    """
    plain = {key: value for key, value in resolved(cfg).items() if key not in RUNTIME[""]}
    for section, keys in RUNTIME.items():
        if section in plain:
            plain[section] = _without(plain[section], keys)
    return plain


def _without(node: Any, keys: set[str]) -> Any:
    """Drop keys from the constructors of a section, at any depth.

    Paths of other packages' constructors stay: what such a setting means there is not known.
    """
    if not isinstance(node, dict):
        return node
    left = keys if is_own(target := str(node.get("_target_", ""))) else keys - PATHS
    kept = {key: _without(value, keys) for key, value in node.items() if key not in left or not target}
    if is_own(target):
        kept |= {key: "a file" for key in FILES if kept.get(key) is not None}
    return kept


def is_own(target: str) -> bool:
    """Return whether a `_target_` is one of Wavespace's own."""
    return target.startswith("wavespace.")
