"""Configuration: its files, composition, validation and identity.

Nothing here imports torch: `wavespace train --cfg job` and the return of a finished run must stay quick.
"""

from wavespace.config.composition import amend, command_line, compose, compose_rewritten, explain, rewrite
from wavespace.config.identity import RUNTIME, identity, is_own, resolved, signature
from wavespace.config.schema import ROOT, choices, conf_dir
from wavespace.config.validation import check, targets

__all__ = [
    "ROOT", "RUNTIME", "amend", "check", "choices", "command_line", "compose", "compose_rewritten", "conf_dir",
    "explain", "identity", "is_own", "resolved", "rewrite", "signature", "targets",
]  # fmt: skip
