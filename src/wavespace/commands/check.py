"""`wavespace check [overrides]`: what would run, what it costs, and whether it fits together; nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavespace import config
from wavespace.digests import Unread
from wavespace.errors import BadInput
from wavespace.terminal import composing, table_console

if TYPE_CHECKING:
    from omegaconf import DictConfig


ABOUT = """\
Check a configuration as `wavespace train` does before it starts: every key, every type, and the shapes from audio to
output. Prints the parts, parameters, FLOPs, and the folder of the run; and what is in each split, where
the data is prepared.

  wavespace check experiment=demo
  wavespace check data=medley_solos model=unet task=reconstruction model.depth=3
"""


def main(arguments: list[str]) -> None:
    """Compose, check, build on the meta device, and print."""
    parser = composing("wavespace check", ABOUT)
    parser.add_argument("--data", action="store_true", help="prepare the data first, whatever it takes")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read every byte of its store, and compare it with the hashes of when it was made",
    )
    given = parser.parse_args(arguments)
    cfg = config.compose(given.overrides, given.config_dir)

    from rich.table import Table

    from wavespace.build import check_shapes, check_splits, check_trainer
    from wavespace.config.construction import make
    from wavespace.inputs import input_paths
    from wavespace.training.preparation import print_contents

    check_trainer(cfg)
    data = make(cfg.data, "data")
    task = check_shapes(cfg, data.spec)
    frames = task.frontend.out_spec.frames(data.spec.samples, data.spec.sample_rate)
    table = Table(box=None, show_header=False, pad_edge=False)
    rows: list[tuple[str, str]] = [
        (
            "data",
            f"{data.spec.seconds:g} s at {data.spec.sample_rate} Hz, labels: {', '.join(data.spec.labels) or 'none'}",
        ),
        ("frontend", f"{task.frontend.out_spec}, {frames} frames a window"),
        ("model", f"{task.parameter_count:,} parameters, {_flops(task, data.spec.seconds)}"),
        ("task", f"{type(task).__name__}: {task.out_spec}, best by {task.monitor}"),
        ("run", _run(cfg)),
    ]
    for row in rows:
        table.add_row(*row)
    table_console().print(table)
    ready = False
    try:
        if ready := given.data or data.is_prepared():
            data.prepare_data()
            data.setup()
            print()
            print_contents(data)
        elif given.verify:
            raise BadInput(f"{data.unprepared()}: wavespace prepare makes a store, and so does training")
        else:
            print(f"\n{data.unprepared()}: wavespace prepare makes a store, and so does training.")
    except BadInput as reason:
        if given.data or given.verify or any(_holds_files(Path(place)) for place in input_paths(cfg).values()):
            raise  # as training would
        print(f"\nThe data is not there: {reason}.")
        return
    if ready:
        check_splits(data, cfg.trainer.get("limit_val_batches"))
    if given.verify:
        data.verify()
        print("every byte is as it was written")


def _holds_files(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def _run(cfg: DictConfig) -> str:
    """The run folder, where what the data holds is known or soon read."""
    from wavespace.data.sources.recordings import MOST_TO_CHECK
    from wavespace.runfolder import RunFolder

    try:
        folder = RunFolder.of(cfg, MOST_TO_CHECK)
    except Unread as reason:
        return f"{Path(cfg.runs) / cfg.name / config.signature(cfg)}-… ({reason})"
    if folder.missing and not folder.status():
        return f"{folder.path.parent / config.signature(cfg)}-…, once the data is there"
    return str(folder.path)


def _flops(task: Any, seconds: float) -> str:
    """FLOPs of the model's forward pass for a second of audio, counted on the meta device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    in_spec = task.frontend.in_spec
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        task.apply_model(task.frontend(torch.empty(1, 1, in_spec.samples)))
    return f"{counter.get_total_flops() / seconds / 1e9:.2f} GFLOP a second of audio"
