"""`wavespace export RUN`: a checkpoint to hand on: weights alone, a model card, and ONNX where it can be.

The slim file is a checkpoint like any other: `wavespace.load` opens it, and calls Wavespace's own parts alone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from wavespace.config import signature
from wavespace.config.trust import add_trust, configuration, safe_yaml
from wavespace.errors import BadInput, Incompatible, UserError
from wavespace.files import read_regular
from wavespace.locate import locate
from wavespace.provenance import refuse_foreign, write_marked
from wavespace.terminal import Arguments, folder_or_file
from wavespace.text import counted

if TYPE_CHECKING:
    from wavespace.tasks.base import Task

TOLERANCE = 1e-4
"""Share of the output's range by which ONNX may differ from torch."""


def main(arguments: list[str]) -> None:
    """Write the slim file and its card, and with --onnx the net."""
    parser = Arguments(
        prog="wavespace export",
        description="A run's best checkpoint as a file to hand on (weights, configuration, shapes, metrics, licence of "
        "the data; no optimizer), with a model card in Markdown beside it.",
    )
    parser.add_argument("checkpoint", help="a run folder, a .ckpt file, an address, or wandb:ENTITY/PROJECT/NAME:ALIAS")
    parser.add_argument(
        "--out", type=folder_or_file, default=Path("model.ckpt"), metavar="FILE", help="default: model.ckpt"
    )
    parser.add_argument(
        "--onnx", action="store_true", help="also the net, features to output, as FILE.onnx; needs onnx"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files of other runs, and those that wavespace did not write, too",
    )
    add_trust(parser)
    given = parser.parse_args(arguments)
    for path in export(given.checkpoint, given.out, onnx=given.onnx, overwrite=given.overwrite, trust=given.trust):
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")


def export(
    source: str | Path, target: Path, *, onnx: bool = False, overwrite: bool = False, trust: Sequence[str] = ()
) -> tuple[Path, ...]:
    """Write a slim checkpoint and, beside it, its card; returns their paths. What doesn't load is not exported.

    Args:
        source: as `locate` takes it.
        target: a file.
        onnx: write the net as ONNX, too.
        overwrite: replace files of other runs, and those that this program did not write, too.
        trust: as of `wavespace.load`.

    Raises:
        UserError: the source can't be used, the target is the source, or a file that is there may not be replaced.
    """
    import torch

    from wavespace import checkpoint

    card, net = target.with_suffix(".md"), target.with_suffix(".onnx")
    if target in (card, net):
        raise BadInput(f"{target}: the card and the net take .md and .onnx; name the checkpoint with .ckpt")
    path = locate(source)
    file = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
    if target.exists() and target.resolve() == file.resolve():
        raise BadInput(f"{target}: is the checkpoint itself; name another file with --out")
    refuse_foreign(card, [target, net] if onnx else [target], overwrite=overwrite)
    whole = checkpoint.read(path)
    task = checkpoint.built(path, whole, trust)
    if not overwrite:
        _refuse_another(target, task.config_text)
    status = _status(path)
    slim: dict[str, Any] = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(slim)
    slim["versions"] = {key: value for key, value in whole["versions"].items() if isinstance(value, str)}
    exported = whole.get("metrics")  # where it is itself one that was exported
    figures = exported if isinstance(exported, dict) and exported else status.get("metrics", {})
    slim["metrics"] = {k: value for k, value in figures.items() if isinstance(k, str) and isinstance(value, float)}
    licence = whole.get("licence")
    known = isinstance(licence, str) and licence != ""
    slim["licence"] = licence if known else _licence(task.config_text, trust)
    data = io.BytesIO()
    torch.save(slim, data)
    written = {target: data.getvalue()}
    if onnx:
        with TemporaryDirectory() as folder:
            written[net] = export_onnx(task, Path(folder) / net.name).read_bytes()
    try:
        write_marked(card, model_card(slim, task, target.name, status, trust).encode(), written)
    except OSError as error:
        raise BadInput(f"{target}: can't be written ({error.strerror}); name another file with --out") from None
    return target, card, *([net] if onnx else [])


def _refuse_another(target: Path, config: str) -> None:
    """Raise `BadInput` if a file that was exported before is of a run of another configuration, or can't be read."""
    from wavespace import checkpoint

    if target.exists() and _identity(checkpoint.read(target)["config"]) != _identity(config):
        raise BadInput(f"{target}: is of another run; --overwrite replaces it, --out names another place")


def _identity(text: str) -> str:
    from omegaconf import OmegaConf

    return signature(OmegaConf.create(safe_yaml(text)))


def _status(path: Path) -> dict[str, Any]:
    """status.json of the run that a checkpoint is of; empty where there is none."""
    from wavespace.analysis.runs import MOST_BYTES, parse_status

    for folder in (path, path.parent, path.parent.parent):
        with suppress(OSError, ValueError, OverflowError, RecursionError):
            return parse_status(read_regular(folder / "status.json", MOST_BYTES).decode())
    return {}


def _licence(text: str, trust: Sequence[str]) -> str:
    """Return the licence that the class of the data states."""
    from hydra.utils import get_object

    try:
        return str(getattr(get_object(configuration(text, trust, ("data",)).data["_target_"]), "licence", ""))
    except UserError:  # somebody's own data, which is not here
        return ""


def model_card(slim: dict[str, Any], task: Task, name: str, status: dict[str, Any], trust: Sequence[str]) -> str:
    """Write a model card in Markdown from what the run measured; what it did not measure is left out.

    Args:
        slim: as `export` writes it.
        task: that it loads.
        name: of the file.
        status: of the run; its `table` says which metrics come first.
        trust: what loading the file takes, as of `wavespace.load`.
    """
    cfg = safe_yaml(slim["config"])
    parts = {group: str(cfg[group]["_target_"]).rpartition(".")[2] for group in ("data", "frontend", "model", "task")}
    features, audio = task.frontend.out_spec, task.frontend.in_spec
    spent = [counted(status["step"], "steps")] if "step" in status else []
    spent += [f"{status['minutes']:.1f} minutes"] if isinstance(status.get("minutes"), int | float) else []
    lines = [
        f"# {cfg.get('name', 'model')}",
        "",
        f"{parts['task']} with {parts['model']} ({task.parameter_count:,} parameters) on {parts['frontend']} features, "
        f"trained on {parts['data']}.",
        "",
        "```python",
        "import wavespace",
        f'task = wavespace.load("{name}"{f", trust={trust!r}" if trust else ""})',
        "```",
        "",
        "## Measured",
        "",
        *_metrics_table(slim["metrics"], list(status.get("table") or [])),
        "",
        "## Input and output",
        "",
        f"- Audio at {audio.sample_rate} Hz, one channel, trained on {audio.seconds:g} s at a time.",
        f"- Features: {features.channels} × {features.bins} bins, {features.frame_rate:.5g} frames a second.",
        *([f"- Training: {', '.join(spent)}, seed {cfg.get('seed', 0)}."] if spent else []),
        f"- Written by wavespace {slim['versions'].get('wavespace')}, torch {slim['versions'].get('torch')}.",
        "",
        "## Data",
        "",
        f"{parts['data']}; licence: {slim['licence'] or 'not stated by its class'}.",
        "",
        "## Configuration",
        "",
        "```yaml",
        slim["config"].strip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _metrics_table(metrics: dict[str, float], first: list[str]) -> list[str]:
    """Return the lines of a table of metrics by split; those named in `first` lead."""
    splits = [split for split in ("val", "test", "baseline") if any(key.startswith(f"{split}/") for key in metrics)]
    if not splits:
        return ["Nothing: the run has no metrics."]
    names = sorted(
        {key.partition("/")[2] for key in metrics if "/" in key},
        key=lambda name: (first.index(name) if name in first else len(first), name),
    )
    lines = [f"| | {' | '.join(splits)} |", "|---|" + "--:|" * len(splits)]
    for name in names:
        cells = [f"{metrics[f'{s}/{name}']:.4g}" if f"{s}/{name}" in metrics else "–" for s in splits]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "`val` chose the checkpoint and its thresholds; `baseline` is a reference without gradient training.",
    ]


# --- ONNX ---------------------------------------------------------------------------------------------------


def export_onnx(task: Task, target: Path) -> Path:
    """The net of a task as ONNX, features `(1, C, F, T)` to what the task makes of it, held to torch's output.

    Of any length T where the net can be traced so, else of the length that is written in the file. Front-ends stay
    outside: their transforms are not ONNX's.

    Raises:
        UserError: onnx, onnxscript and onnxruntime are not installed.
        Incompatible: the net can't be traced, or ONNX gives something else.
    """
    import importlib.util

    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise UserError(f"--onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")
    rate = task.frontend.in_spec.sample_rate
    frames = 2 * task.frontend.out_spec.frames(round(task.frontend.in_spec.seconds * rate), rate)
    temporary = target.with_name(f".{target.name}.new")
    why = ""
    try:
        for lengths in ([frames, 2 * frames + 3], [frames]):
            try:
                worst = _traced(task, temporary, lengths)
            except Exception as error:  # of a tracer's many kinds
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                continue
            if worst <= TOLERANCE:
                temporary.replace(target)
                return target
            why = f"it differs from torch by {worst:.2g} of the output's range"
        raise Incompatible(f"{type(task.model).__name__} can't be written as ONNX ({why})")
    finally:
        temporary.unlink(missing_ok=True)


def _traced(task: Task, path: Path, lengths: list[int]) -> float:
    """Write the net for features of any length if there are several to try, else of the one; the worst difference."""
    import numpy as np
    import onnxruntime
    import torch

    net, spec, rng = _net(task).eval(), task.frontend.out_spec, np.random.default_rng(0)
    drawn = [
        torch.from_numpy(rng.uniform(spec.low, spec.high, (1, spec.channels, spec.bins, frames)).astype(np.float32))
        for frames in lengths
    ]
    with torch.no_grad():
        expected = [net(features).numpy() for features in drawn]
        torch.onnx.export(
            net, (drawn[0],), str(path), input_names=["features"], output_names=["output"], dynamo=True,
            external_data=False, verbose=False,
            dynamic_shapes=({3: torch.export.Dim.AUTO},) if len(lengths) > 1 else None,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = [session.run(None, {"features": features.numpy()})[0] for features in drawn]
    return max(float(np.abs(f - e).max() / max(np.ptp(e), 1e-9)) for f, e in zip(found, expected))


def _net(task: Task) -> Any:
    """The task's way from features to output, as a module of its own."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.task = task

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.task.apply_model(features)

    return Net()
