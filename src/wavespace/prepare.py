"""`wavespace prepare data=…`: check a dataset and build its store, so that training starts at once."""

from __future__ import annotations

from wavespace import config
from wavespace.terminal import hydra_arguments

USAGE = """\
usage: wavespace prepare data=CHOICE [overrides] [--config-dir DIR]

Read recordings and notes once into a store of a few large files, from which any window is one read. Stop it
anywhere and repeat the command: it goes on. `wavespace train` does the same when it finds no store.

  wavespace prepare data=maestro data.root=/disk/maestro-v3.0.0 data.stores=/disk/stores
  wavespace prepare data=audio_folder data.folder=recordings
"""


def main(arguments: list[str]) -> None:
    """Prepare, and print what is there."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(USAGE, end="")
        return
    cfg = config.compose(*hydra_arguments(arguments))

    from wavespace.build import make

    data = make(cfg.data, "data")
    data.prepare_data()
    data.setup()
    for key, value in data.describe().items():
        print(f"{key}: {value}")
