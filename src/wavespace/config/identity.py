"""What a configuration computes, as a signature: everything but what can't change the result."""

from __future__ import annotations

import hashlib
import json
import typing
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    pass


RUNTIME = {
    "": {"name", "fresh", "resume", "runs", "logger", "compile", "save_every", "expect", "search"},
    "data": {"workers", "root", "stores", "url"},
    "frontend": {"weights"},
    "trainer": {
        "accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar", "enable_model_summary",
        "log_every_n_steps", "detect_anomaly", "barebones",
    },
}  # fmt: skip
"""What can't change the result of a run, by section: left out of its identity."""


PLACES = {"root", "stores", "url", "weights"}
"""Those of them that say where files are, in our own constructors."""


FILES = ("folder", "midi", "test_midi", "soundfont")
"""Settings that say where files are, and null that there are none: that they are set is part of the identity."""


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain data, with every interpolation resolved."""
    return typing.cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))


def signature(cfg: DictConfig) -> str:
    """Twelve hex digits that name what a configuration computes, with whatever files it is given.

    The whole resolved configuration is hashed, without what can't change the result (paths, logger, workers,
    device): single runs, members of a multirun and remote jobs of one configuration share it. The run folder's name
    has the digest of what its files hold, too (`wavespace.runfolder.RunFolder.of`).
    """
    return hashlib.sha256(json.dumps(identity(cfg), sort_keys=True).encode()).hexdigest()[:12]


def identity(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration without what can't change the result of a run.

    Paths are left out, too: what their files hold is `wavespace.inputs`.
    """
    plain = {key: value for key, value in resolved(cfg).items() if key not in RUNTIME[""]}
    for section, keys in RUNTIME.items():
        if section in plain:
            plain[section] = _without(plain[section], keys)
    return plain


def _without(node: Any, keys: set[str]) -> Any:
    """A section without some keys of its constructors, at any depth: its parts may be sections of the same group.

    What settings of other packages' constructors mean is not known, so their paths stay.
    """
    if not isinstance(node, dict):
        return node
    left = keys if is_own(target := str(node.get("_target_", ""))) else keys - PLACES
    kept = {key: _without(value, keys) for key, value in node.items() if key not in left or not target}
    if is_own(target):
        kept |= {key: "a file" for key in FILES if kept.get(key) is not None}
    return kept


def is_own(target: str) -> bool:
    """Whether a `_target_` is one of Wavespace's own."""
    return target.startswith("wavespace.")
