"""Wavespace: compose data, front-ends, models and tasks for audio machine learning.

`load` opens a checkpoint, `compose` a configuration, `transcribe` turns audio into notes. All three are imported
when first asked for, so that `import wavespace` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wavespace.checkpoint import load
    from wavespace.config import compose
    from wavespace.inference import transcribe

__version__ = "0.1.0"
__all__ = ["compose", "load", "transcribe"]

_HOMES = {"load": "wavespace.checkpoint", "compose": "wavespace.config", "transcribe": "wavespace.inference"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wavespace' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
