"""`wavespace prepare data=…`: get a dataset, check it and build its store, so that training starts at once."""

from __future__ import annotations

from wavespace import config
from wavespace.errors import UserError
from wavespace.terminal import composing

ABOUT = """\
Read recordings and notes once into a store of a few large files, from which any window is one read. A dataset that is
not there is downloaded; an archive in its folder is unpacked; a folder that has it is read as it is. Stop it anywhere
and repeat the command: it resumes. `wavespace train` builds the store, too, but downloads nothing.

  wavespace prepare data=maestro data.root=/disk/maestro-v3.0.0 data.stores=/disk/stores
  wavespace prepare data=maestro data.splits=[test]              # a part of it: 13 GB instead of 108
  wavespace prepare data=medley_solos
  wavespace prepare data=audio_folder data.folder=recordings
  wavespace prepare data=medley_solos hydra/launcher=runpod hydra.launcher.volume=ID hydra.launcher.max_cost=1
  wavespace prepare data=maestro data.sample_rate=24000 frontend=encodec cache=true    # features, too
"""


def main(arguments: list[str]) -> None:
    """Prepare, and print what is there."""
    parser = composing("wavespace prepare", ABOUT)
    parser.add_argument(
        "--verify", action="store_true", help="hash archives before they are unpacked, and read back the store"
    )
    given = parser.parse_args(arguments or ["--help"])
    if "hydra/launcher=runpod" in given.overrides:
        if given.verify or given.config_dir:
            raise UserError("--verify and --config-dir don't reach a pod; leave them out")
        from wavespace_launcher.volume import prepare_on_pod

        prepare_on_pod(given.overrides)
        return
    from wavespace.training.preparation import prepare

    prepare(config.compose(given.overrides, given.config_dir), verify=given.verify)
