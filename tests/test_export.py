"""What is exported loads like any checkpoint, gives the same, and says what was measured and nothing else."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import wavespace
from parts import save, small_task
from standins.files import serving
from wavespace.commands.export import export, export_onnx, locate, main
from wavespace.errors import BadInput, UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose checkpoint has an optimizer in it."""
    folder = tmp_path_factory.mktemp("runs") / "demo" / "0123456789ab"
    path = folder / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    save(small_task("log_frequency", "unet", "reconstruction"), path)
    whole = torch.load(path, weights_only=True)
    torch.save(whole | {"optimizer_states": [torch.zeros(100_000)]}, path)
    metrics = {"val/l1_db": 1.25, "test/l1_db": 1.5, "test/multi_scale": 8.0, "baseline/l1_db": 4.0, "best_step": 3}
    status = {"state": "finished", "step": 400, "minutes": 2.5, "table": ["l1_db"], "metrics": metrics}
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def test_the_slim_file_gives_what_the_checkpoint_gives_and_holds_no_code(run: Path, tmp_path: Path) -> None:
    path, _ = export(run, tmp_path / "slim.ckpt")
    assert path.stat().st_size < (run / "checkpoints" / "best.ckpt").stat().st_size - 300_000
    found: dict[str, Any] = torch.load(path, weights_only=True)
    assert set(found) == {"state_dict", "config", "specs", "versions", "metrics", "licence"}
    assert found["metrics"]["test/l1_db"] == 1.5
    assert found["licence"] == "CC BY 4.0"
    task, original = wavespace.load(path), wavespace.load(run)
    audio = torch.randn(1, 1, 8000)
    with torch.no_grad():
        assert torch.equal(task(audio), original(audio))
    again, _ = export(path, tmp_path / "again.ckpt")  # what was exported can be exported
    assert torch.load(again, weights_only=True)["metrics"] == found["metrics"]


def test_the_card_says_what_was_measured(run: Path, tmp_path: Path) -> None:
    _, card = export(run, tmp_path / "slim.ckpt")
    text = card.read_text()
    assert "| l1_db | 1.25 | 1.5 | 4 |" in text
    assert "| multi_scale | – | 8 | – |" in text
    assert text.index("| l1_db") < text.index("| multi_scale")
    assert "400 steps, 2.5 minutes" in text
    assert "licence: CC BY 4.0" in text
    assert 'wavespace.load("slim.ckpt")' in text
    assert "_target_: wavespace.models.unet.UNet" in text


def test_the_source_is_never_overwritten(run: Path) -> None:
    own = run / "checkpoints" / "best.ckpt"
    with pytest.raises(BadInput, match="the checkpoint itself"):
        export(run, own)
    wavespace.load(own)


def test_the_file_of_another_run_is_kept(run: Path, tmp_path: Path) -> None:
    path, _ = export(run, tmp_path / "slim.ckpt")
    export(run, path)
    other = save(small_task("mel", "unet", "reconstruction"), tmp_path / "other.ckpt")
    before = path.read_bytes()
    with pytest.raises(BadInput, match=r"slim\.ckpt: is of another run; --overwrite replaces it"):
        export(other, path)
    assert path.read_bytes() == before
    export(other, path, overwrite=True)
    assert path.read_bytes() != before


def test_the_checkpoint_is_read_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **given: calls.append(path) or load(path, **given))
    export(run, tmp_path / "slim.ckpt")
    assert len(calls) == 1


def test_the_command_names_what_it_wrote(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), "--out", str(tmp_path / "x.ckpt")])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        str(tmp_path / "x.ckpt"), str(tmp_path / "x.md"),
    ]  # fmt: skip


def test_a_checkpoint_on_the_web_is_downloaded_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAVESPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WAVESPACE_ALLOW_HTTP", "1")  # of the loopback interface
    data = (run / "checkpoints" / "best.ckpt").read_bytes()
    with serving({"model.ckpt": data}) as server:
        address = server.url("model.ckpt")
        first = locate(address)
    assert first.read_bytes() == data
    assert locate(address) == first  # the server is gone
    wavespace.load(first)


def test_onnx_is_what_torch_gives_or_is_asked_for(run: Path, tmp_path: Path) -> None:
    if all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        assert export_onnx(wavespace.load(run), tmp_path / "net.onnx").stat().st_size > 1000
    else:
        with pytest.raises(UserError, match=r"--onnx needs .*pip install"):
            export_onnx(wavespace.load(run), tmp_path / "net.onnx")
    assert not list(tmp_path.glob(".*"))
