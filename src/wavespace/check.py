"""`wavespace check [overrides]`: what would run, what it costs, and whether it fits together; nothing is trained."""

from __future__ import annotations

import sys
from typing import Any

from wavespace import config
from wavespace.terminal import hydra_arguments

USAGE = """\
usage: wavespace check [overrides] [--config-dir DIR] [--data]

Hold a configuration against the code, as `wavespace train` does before it starts: every key, every type, and the shapes
from audio to output. Prints the parts, parameters, FLOPs, and the folder of the run. --data also opens the data
and prints what is in each split.

  wavespace check experiment=demo
  wavespace check data=medley_solos model=unet task=reconstruction model.depth=3
"""


def main(arguments: list[str]) -> None:
    """Compose, check, build on the meta device, and print."""
    if "-h" in arguments or "--help" in arguments:
        print(USAGE, end="")
        return
    overrides, folder = hydra_arguments([word for word in arguments if word != "--data"])
    cfg = config.compose(overrides, folder)

    from rich.console import Console
    from rich.table import Table

    from wavespace.build import make, probe
    from wavespace.runfolder import RunFolder

    data = make(cfg.data, "data")
    task = probe(cfg, data.spec)
    frames = task.frontend.out_spec.frames(data.spec.samples, data.spec.sample_rate)
    table = Table(box=None, show_header=False, pad_edge=False)
    rows: list[tuple[str, str]] = [
        (
            "data",
            f"{data.spec.seconds:g} s at {data.spec.sample_rate} Hz, labels: {', '.join(data.spec.labels) or 'none'}",
        ),
        ("frontend", f"{task.frontend.out_spec}, {frames} frames a window"),
        ("model", f"{sum(p.numel() for p in task.model.parameters()):,} parameters, {_flops(task, data.spec.seconds)}"),
        ("task", f"{type(task).__name__}: {task.out_spec}, best by {task.monitor}"),
        ("run", str(RunFolder.of(cfg).path)),
    ]
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=True).print(table)
    if "--data" in arguments:
        data.prepare_data()
        data.setup()
        for key, value in data.describe().items():
            print(f"{key}: {value}")


def _flops(task: Any, seconds: float) -> str:
    """FLOPs of the model's forward pass for a second of audio, counted on the meta device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    in_spec = task.frontend.in_spec
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        task.model(task.frontend(torch.empty(1, 1, in_spec.samples)))
    return f"{counter.get_total_flops() / seconds / 1e9:.2f} GFLOP a second of audio"


if __name__ == "__main__":
    main(sys.argv[1:])
