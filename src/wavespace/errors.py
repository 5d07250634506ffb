"""Errors that a user can mend, each in one sentence: what is wrong, where, and what would work.

The command line prints these without a traceback; everything else is a defect of ours and keeps its own.
"""

from __future__ import annotations

import sys
import traceback


class UserError(ValueError):
    """Base of every error whose message is written for the person at the terminal."""


class ConfigError(UserError):
    """The configuration is wrong; the message lists every fault, one a line."""


class Incompatible(UserError):
    """Two parts can't work together; the message names both sides and the choices that would work."""


class BadInput(UserError):
    """A file or folder can't be used as it is."""


class BadCheckpoint(UserError):
    """A checkpoint is damaged, or was not written by Wavespace."""


class Diverged(UserError):
    """A run's loss or weights have stopped being numbers."""


LIBRARIES = (
    "wavespace", "torch", "torchaudio", "pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "numpy", "scipy",
    "nnAudio", "encodec",
)  # fmt: skip
"""Packages in whose own code the cause of an error is not looked for."""


def place_of(error: BaseException | None) -> str:
    """Where an error was raised, as ` (net.py, line 12)`, if that is in somebody's own code; else nothing."""
    place = ""
    while error is not None:
        for frame, line in traceback.walk_tb(error.__traceback__):
            package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
            if package not in LIBRARIES and package not in sys.stdlib_module_names:
                place = f" ({frame.f_code.co_filename}, line {line})"
        error = error.__cause__ or error.__context__
    return place
