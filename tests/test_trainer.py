"""Each trainer key with each odd value: a run that works, or one sentence that names the key."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import wandb
from omegaconf import OmegaConf

from wavespace import config
from wavespace.build import check_trainer
from wavespace.config import trainer
from wavespace.config.construction import make
from wavespace.errors import ConfigError

KEYS = [key for key in OmegaConf.load(config.conf_dir() / "trainer" / "default.yaml") if key != "_target_"]
ODD: tuple[Any, ...] = (
    0,
    -1,
    0.5,
    -0.5,
    10**30,
    "text",
    "'0'",
    "null",
    "nan",
    "inf",
    "true",
    "[]",
    "[0]",
    "[text]",
    "{a: 1}",
)


@pytest.fixture(scope="module")
def composed() -> Any:
    return config.compose()


def refused(cfg: Any, key: str, value: Any) -> str | None:
    """The one fault of a trainer key's value, as `check` and `train` find it."""
    changed = cfg.copy()
    OmegaConf.update(changed, f"trainer.{key}", OmegaConf.create(f"x: {value}").x, force_add=True)
    try:
        config.check(changed)
        check_trainer(changed)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("key", KEYS)
def test_a_trainer_key_takes_a_value_or_says_why_not(key: str, composed: Any) -> None:
    for value in ODD:
        if said := refused(composed, key, value):
            assert f"trainer.{key}" in said, value
            assert said.count("trainer.") < 4, said


@pytest.mark.parametrize(
    "override",
    [
        "val_check_interval=1.0", "val_check_interval=0", "log_every_n_steps=0", "max_steps=0", "max_steps=-1",
        "accumulate_grad_batches=0", "devices=0", "max_time=00:10:00", "max_time=600", "gradient_clip_val=-1",
        "limit_val_batches=-1", "num_nodes=0", "accelerator=fast", "strategy=none",
        "max_time={}", "max_time={seconds: 0}", "max_time={x: 1}", "val_check_interval={}",
    ],
)  # fmt: skip
def test_what_would_train_nothing_is_refused(override: str, composed: Any) -> None:
    key, value = override.split("=")
    assert f"trainer.{key}" in str(refused(composed, key, f'"{value}"' if value[0] == "0" and ":" in value else value))


def test_a_clock_says_its_form_and_a_gpu_that_is_not_there_what_works(composed: Any) -> None:
    import torch

    assert "DD:HH:MM:SS" in str(refused(composed, "max_time", '"00:10:00"'))
    assert refused(composed, "max_time", '"00:00:10:00"') is None
    if not torch.cuda.is_available():
        assert "trainer.accelerator=auto" in str(refused(composed, "accelerator", "cuda"))


@pytest.mark.parametrize("key", sorted(trainer.OURS))
def test_a_key_that_a_run_sets_itself_says_what_does_the_same(key: str) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{key}.*has no effect here"):
        config.compose([f"+trainer.{key}=3"])


@pytest.mark.parametrize("key", ["max_steps", "val_check_interval"])
def test_a_bound_that_is_taken_out_is_a_fault(key: str) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{key}"):
        config.compose([f"~trainer.{key}"])


@pytest.mark.parametrize("key", ["seed", "save_every", "patience", "fresh", "cache", "compile", "expect"])
def test_a_root_key_takes_a_value_or_says_why_not(key: str) -> None:
    fits: dict[str, tuple[Any, ...]] = {"seed": (0, -1), "patience": ("null",), "expect": ("null",)}
    switch = (0, -1, 10**30)  # for OmegaConf, a number is a truth value
    for value in (0, -1, 10**30, "text", "null", "nan", "[1]"):
        if value in fits.get(key, switch if key in ("fresh", "cache", "compile") else ()):
            config.compose([f"{key}={value}"])
        else:
            with pytest.raises(ConfigError, match=key):
                config.compose([f"{key}={value}"])


def test_a_model_that_takes_no_specs_says_what_a_model_takes() -> None:
    with pytest.raises(ConfigError, match=r"does not take in_spec and out_spec; a model is built as Linear\(in_spec"):
        config.compose(["model._target_=torch.nn.Linear", "model.in_features=1", "model.out_features=1"])


def test_wandb_without_a_key_is_refused_before_data_is_touched_unless_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()  # which forgets what it has read before
    with pytest.raises(ConfigError, match=r"wandb login.*logger\.offline=true"):
        check_trainer(config.compose(["logger=wandb"]))
    check_trainer(config.compose(["logger=wandb", "logger.offline=true"]))
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trainer(config.compose(["logger=wandb"]))


def test_a_logger_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: Any) -> None:
        raise ModuleNotFoundError("No module named 'comet_ml'", name="comet_ml")

    monkeypatch.setattr("pytorch_lightning.loggers.CometLogger", missing)
    with pytest.raises(ConfigError, match="pip install comet_ml"):
        make(OmegaConf.create({"_target_": "pytorch_lightning.loggers.CometLogger"}), "logger")


def test_what_lightning_advises_on_our_settings_is_not_shown(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.INFO)
        monkeypatch.setattr(logging.getLogger(name), "handlers", [caplog.handler])
    assert trainer.refusal({"max_steps": 1, "accelerator": "cpu", "limit_val_batches": 1.0}) is None
    assert not caplog.records
