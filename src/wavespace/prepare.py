"""`wavespace prepare data=…`: get a dataset, check it and build its store, so that training starts at once."""

from __future__ import annotations

from wavespace import config
from wavespace.errors import BadInput
from wavespace.terminal import hydra_arguments

USAGE = """\
usage: wavespace prepare data=CHOICE [overrides] [--verify] [--config-dir DIR]

Read recordings and notes once into a store of a few large files, from which any window is one read. A dataset that is
not there is downloaded; an archive in its folder is unpacked; a folder that has it is read as it is. Stop it anywhere
and repeat the command: it goes on. `wavespace train` builds the store, too, but downloads nothing.

  --verify   hash archives before they are unpacked, and read back the store

  wavespace prepare data=maestro data.root=/disk/maestro-v3.0.0 data.stores=/disk/stores
  wavespace prepare data=maestro data.only=[test]                # a part of it: 13 GB instead of 108
  wavespace prepare data=medley_solos
  wavespace prepare data=audio_folder data.folder=recordings
  wavespace prepare data=medley_solos hydra/launcher=runpod hydra.launcher.volume=ID hydra.launcher.max_cost=1
  wavespace prepare data=maestro data.sample_rate=24000 frontend=encodec cache=true    # features, too
"""


def main(arguments: list[str]) -> None:
    """Prepare, and print what is there."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(USAGE, end="")
        return
    if "hydra/launcher=runpod" in arguments:
        from wavespace.remote.volume import prepare_on_pod

        prepare_on_pod(arguments)
        return
    verify = "--verify" in arguments
    cfg = config.compose(*hydra_arguments([word for word in arguments if word != "--verify"]))

    from wavespace.build import build, make
    from wavespace.check import show

    data = build(cfg).data if cfg.cache else make(cfg.data, "data")
    try:
        fresh = not data.is_prepared()
    except BadInput:  # it is not there
        fresh = True
    if fresh and (terms := data.terms()):
        print(terms)
    data.download(verify)
    data.prepare_data()
    data.setup()
    if verify:
        data.verify()
    show(data)
