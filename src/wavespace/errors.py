"""What a person did that can't work, told in one sentence: what is wrong, where, and what would work.

The command line prints these without a traceback; everything else is a defect of ours and keeps its own.
"""


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
