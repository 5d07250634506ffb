"""An error in the user's own model or task is reported with its file and line, and can be shown whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from parts import save, small_task
from wavespace.build import check_shapes
from wavespace.commands import export
from wavespace.config import compose
from wavespace.errors import UserError
from wavespace.spec import AudioSpec
from wavespace.terminal import guarded

NETS = """\
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, in_spec, out_spec, *, fault: str = ""):
        super().__init__()
        self.fault, self.out = fault, out_spec
        if fault == "init":
            raise ValueError("nothing fits")
        self.net = nn.Conv2d(in_spec.channels, out_spec.channels, 1)
    def forward(self, x):
        if self.fault == "forward":
            return x @ torch.zeros(3, 7)
        found = self.net(x)
        found = found.new_zeros(len(x), self.out.channels, self.out.bins, x.shape[-1])
        kinds = {"tuple": (found, found), "none": None, "whole": found.long(), "complex": found * 1j}
        return {"": found, "shape": found[:, :, :5], **kinds}[self.fault]
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    name = "own_nets_" + re.sub(r"\W", "_", tmp_path.name)
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / f"{name}.py"


def refusal(nets: Path, fault: str) -> str:
    cfg = compose(["data=synthetic", "task=reconstruction", f"model._target_={nets.stem}.Net", f"+model.fault={fault}"])
    with pytest.raises(UserError) as told:
        check_shapes(cfg, AudioSpec(22_050, 1.0, ("notes",)))
    return str(told.value)


@pytest.mark.parametrize(("fault", "line"), [("init", 8), ("forward", 12)])
def test_the_file_and_line_are_told(fault: str, line: int, nets: Path) -> None:
    assert f"({nets}, line {line})" in refusal(nets, fault)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("shape", r"gives \(2, 2, 5, \d+\), but .* needs \(2, 2, 315, \d+\)"),
        ("tuple", "it gives a tuple, and must give one tensor"),
        ("none", "it gives a NoneType, and must give one tensor"),
        ("whole", "it gives torch.int64, and must give torch.float32"),
        ("complex", "it gives torch.complex64, and must give torch.float32"),
    ],
)
def test_a_wrong_output_says_what_was_found_and_what_is_wanted(fault: str, said: str, nets: Path) -> None:
    assert re.search(said, refusal(nets, fault))


def test_a_name_that_a_module_does_not_define_is_told_with_the_nearest(nets: Path) -> None:
    with pytest.raises(UserError, match=rf"{nets.stem} defines no 'Nets', did you mean 'Net'\?"):
        compose(["data=synthetic", f"model._target_={nets.stem}.Nets"])
    with pytest.raises(UserError, match=r"No module named 'nowhere'; it is looked for .* current folder"):
        compose(["data=synthetic", "model._target_=nowhere.Net"])


@pytest.mark.parametrize("value", ["", "1"])
def test_the_whole_traceback_is_shown_where_it_is_asked_for(
    value: str, nets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WAVESPACE_TRACEBACK", value)
    cfg = compose(["data=synthetic", "task=reconstruction", f"model._target_={nets.stem}.Net", "+model.fault=init"])
    with pytest.raises(SystemExit) as ended:
        guarded(lambda: check_shapes(cfg, AudioSpec(22_050, 1.0, ("notes",))))
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert ("Traceback" in shown) == bool(value)
    assert ('raise ValueError("nothing fits")' in shown) == bool(value)
    assert "wavespace: " in shown.splitlines()[-1]


def test_parameters_are_counted_alike_everywhere(tmp_path: Path) -> None:
    """Of a net with running statistics, which are no parameters."""
    task = small_task("mel", "unet", "reconstruction")
    expected = sum(parameter.numel() for parameter in task.parameters())
    assert task.parameter_count == expected
    values: dict[str, Any] = task.state_dict()
    assert sum(value.numel() for value in values.values()) > expected
    _, card = export.export(save(task, tmp_path / "model.ckpt"), tmp_path / "out.ckpt")
    assert f"({expected:,} parameters)" in card.read_text()
    assert all(isinstance(value, torch.Tensor) for value in values.values())
