"""A checkpoint alone is enough, runs no code when it is read, and says in a sentence why it can't be used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning import Trainer

import wavespace
from parts import AUDIO, FRONTENDS, save, small_task
from training import make_medley
from wavespace import checkpoint
from wavespace.build import build
from wavespace.config import compose, resolved
from wavespace.config.trust import configuration
from wavespace.errors import BadCheckpoint, ConfigError
from wavespace.tasks.piano_roll import PianoRoll


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A task after two steps of training, and the checkpoint that Lightning wrote of it."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = compose(make_medley(folder / "data"))
    data, task = build(cfg)
    task.config_text = OmegaConf.to_yaml(cfg, resolve=True)
    trainer = Trainer(
        max_steps=2, max_epochs=-1, accelerator="cpu", logger=False, limit_val_batches=0, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    path = folder / "run" / "checkpoints" / "best.ckpt"
    trainer.save_checkpoint(path)
    return task.eval(), path


def test_it_loads_without_running_code_and_holds_what_the_readme_says(trained: tuple[Any, Path]) -> None:
    task, path = trained
    found = torch.load(path, weights_only=True)
    assert {"state_dict", "config", "specs", "versions", "optimizer_states", "global_step"} <= set(found)
    assert found["global_step"] == 2
    assert OmegaConf.create(found["config"]).model.width == 2
    assert found["specs"]["audio"] == {"sample_rate": 22_050, "seconds": 0.5, "labels": ["instrument"]}
    assert found["specs"]["features"]["frequencies"] == list(task.frontend.out_spec.frequencies)
    assert found["versions"]["wavespace"] == wavespace.__version__
    assert all(name.startswith("model.") for name in found["state_dict"])  # the front-end's tables are not kept


def test_a_round_trip_gives_equal_outputs(trained: tuple[Any, Path]) -> None:
    task, path = trained
    audio = torch.randn(2, 1, 11_025)
    for source in (path, str(path), path.parents[1]):
        loaded = wavespace.load(source)
        assert not loaded.training
        assert loaded.config_text == task.config_text
        assert type(loaded) is type(task)
        with torch.no_grad():
            assert torch.equal(loaded(audio), task(audio))
    cfg = configuration(checkpoint.read(path)["config"])
    assert resolved(cfg) == resolved(OmegaConf.create(task.config_text))  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["harmonic", "unet both", "conv2d", "peaks"])
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_every_part_comes_back(frontend: str, model: str, tmp_path: Path) -> None:
    task = small_task(frontend, model, "piano_roll")
    assert isinstance(task, PianoRoll)
    task.onset_threshold.fill_(0.3)
    loaded = wavespace.load(save(task, tmp_path / "model.ckpt"))
    assert isinstance(loaded, PianoRoll)
    assert float(loaded.onset_threshold) == pytest.approx(0.3)
    assert loaded.out_spec == task.out_spec
    assert loaded.frontend.out_spec == task.frontend.out_spec
    assert loaded.frontend.in_spec == AUDIO
    audio = 0.1 * torch.randn(1, 1, 11_025)
    with torch.no_grad():
        torch.testing.assert_close(loaded(audio), task(audio), rtol=1e-4, atol=1e-4)  # weights lie in another order


def refusal(path: Path) -> str:
    with pytest.raises(BadCheckpoint) as told:
        wavespace.load(path)
    text = str(told.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert len(text) < 600
    return text


@pytest.mark.parametrize("missing", ["state_dict", "config", "specs", "versions"])
def test_what_is_missing_is_named(missing: str, trained: tuple[Any, Path], tmp_path: Path) -> None:
    found = torch.load(trained[1], weights_only=True)
    del found[missing]
    torch.save(found, tmp_path / "part.ckpt")
    assert f"has no {missing}; it was not written by wavespace" in refusal(tmp_path / "part.ckpt")


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"weight": torch.zeros(2)}, None])
def test_other_files_of_torch_are_told_from_ours(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    assert "has no config, specs, state_dict, versions" in refusal(tmp_path / "other.pt")


class Malice:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["MALICE"],)


def test_code_in_a_file_is_not_run_and_nobody_is_told_to_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALICE", str(tmp_path / "made"))
    torch.save({"state_dict": Malice()}, tmp_path / "evil.ckpt")
    assert "is not a checkpoint, or is damaged" in refusal(tmp_path / "evil.ckpt")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_a_sentence(keep: float, trained: tuple[Any, Path], tmp_path: Path) -> None:
    whole = trained[1].read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    text = refusal(path)
    assert "is not a checkpoint, or is damaged" in text
    assert "weights_only" not in text


def test_a_missing_file_and_a_folder_without_a_run_say_where_checkpoints_lie(tmp_path: Path) -> None:
    assert "there is no such checkpoint; name a run folder, " in refusal(tmp_path / "nowhere.ckpt")
    assert "holds no finished run; name a run folder runs/" in refusal(tmp_path)


def test_weights_that_do_not_fit_are_a_sentence_with_both_versions(tmp_path: Path) -> None:
    path = save(small_task("mel", "conv2d", "reconstruction"), tmp_path / "model.ckpt")
    found = torch.load(path, weights_only=True)
    found["versions"]["wavespace"] = "0.0.9"
    del found["state_dict"]["model.head.weight"]
    torch.save(found, path)
    text = refusal(path)
    assert f"written by wavespace 0.0.9, doesn't fit {wavespace.__version__}" in text
    assert "model.head.weight" in text


def edited(path: Path, old: str, new: str) -> Path:
    """A checkpoint whose configuration says something else."""
    save(small_task("mel", "conv2d", "reconstruction"), path)
    found = torch.load(path, weights_only=True)
    assert old in found["config"]
    found["config"] = found["config"].replace(old, new)
    torch.save(found, path)
    return path


def test_parts_that_are_not_there_any_more_are_a_sentence(tmp_path: Path) -> None:
    assert "theirs" in refusal(
        edited(tmp_path / "net.ckpt", "wavespace.models.autoencoder.ConvAutoencoder", "theirs.Net")
    )
    assert "widest" in refusal(edited(tmp_path / "key.ckpt", "max_width:", "widest:"))
    with pytest.raises(ConfigError, match=r"model=conv2d refuses its settings: depth = 0"):
        wavespace.load(edited(tmp_path / "value.ckpt", "depth: 2", "depth: 0"))
