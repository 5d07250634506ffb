"""Configuration: its files, composition, validation and identity.

Nothing here imports torch: `wavespace train --cfg job` and the return of a finished run must stay quick.
"""

from wavespace.config.composition import amend, command_line, compose, compose_read, explain, read
from wavespace.config.identity import RUNTIME, identity, is_own, resolved, signature
from wavespace.config.schema import GROUPS, ROOT, TrainConfig, choices, conf_dir
from wavespace.config.validation import check, targets

__all__ = [
    "GROUPS", "ROOT", "RUNTIME", "TrainConfig", "amend", "check", "choices", "command_line", "compose", "compose_read",
    "conf_dir", "explain", "identity", "is_own", "read", "resolved", "signature", "targets",
]  # fmt: skip
