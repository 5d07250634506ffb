"""Every data x front-end x model x task either composes or refuses, naming both sides and what would work."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from parts import parts_of
from wavespace import build, config
from wavespace.build import check_shapes
from wavespace.config.construction import make
from wavespace.errors import Incompatible
from wavespace.frontends.base import FrontEnd
from wavespace.spec import AudioSpec

CHOICES = {group: parts_of(group) for group in ("data", "frontend", "model", "task")}
CHOICES["data"].remove("mixture")  # which gives what its parts give
# The originals are settings of unet and conv1d.
CHOICES["model"] = [name for name in CHOICES["model"] if not name.startswith("original")]
SMALL = {
    "harmonic": ["model.width=4"],
    "unet": ["model.width=4", "model.depth=2"],
    "unet1d": ["model.width=4", "model.depth=2"],
    "conv1d": ["model.width=4", "model.depth=2", "model.latent=4"],
    "conv2d": ["model.width=4", "model.depth=2"],
    "tcn": ["model.width=4", "model.layers=2"],
    "local_mlp": ["model.width=4"],
    "transformer": ["model.width=8", "model.layers=1"],
    "crnn": ["model.width=4", "model.depth=2", "model.hidden=4", "model.layers=1"],
    "dense": ["model.latent=4", "model.hidden=4"],
}
BASELINES = {"peaks": "task=piano_roll", "pca": "task=reconstruction", "harmonic_sum": "task=salience"}
"""Models that may refuse a task, and one that they take."""


@lru_cache
def section(group: str, choice: str, *overrides: str) -> DictConfig:
    """A section of the configuration, composed once."""
    return config.compose([f"{group}={choice}", *overrides])[group]


@lru_cache
def audio_of(data: str, *overrides: str) -> AudioSpec:
    return make(section("data", data, *overrides), "data").spec


@lru_cache
def on_meta(constructor: Callable[..., FrontEnd], audio: AudioSpec) -> FrontEnd:
    """A front-end on the meta device that has heard two items; each model is then given what came of them."""
    frontend = constructor(in_spec=audio)
    features = frontend(torch.empty(2, 1, audio.samples, device="meta"))
    frontend.forward = lambda audio: features  # type: ignore[method-assign]
    return frontend


@pytest.fixture(scope="module", autouse=True)
def sections_are_read_and_front_ends_built_once() -> Iterator[None]:
    """Both take longer than to make a small model on the meta device."""
    known: dict[int, tuple[DictConfig, Callable[..., Any]]] = {}

    def cached(node: DictConfig, key: str, **built: Any) -> Any:
        if id(node) not in known:  # and with the section itself, so that none comes to lie where it was
            settings = OmegaConf.to_container(node, resolve=True)
            known[id(node)] = node, instantiate(settings, _partial_=True, _convert_="all")
        constructor = known[id(node)][1]
        return on_meta(constructor, built["in_spec"]) if key == "frontend" else constructor(**built)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "make", cached)
        yield


COMPOSED: set[tuple[AudioSpec, str, str, str]] = set()


@pytest.mark.parametrize(("data", "frontend"), list(itertools.product(CHOICES["data"], CHOICES["frontend"])))
@pytest.mark.parametrize("model", CHOICES["model"])
def test_a_combination_composes_or_refuses(data: str, frontend: str, model: str) -> None:
    # At any other rate EnCodec refuses, before a model or task is met.
    rate = ["data.sample_rate=24000"] if frontend == "encodec" else []
    audio = audio_of(data, *rate)
    cfg: Any = SimpleNamespace(
        data=section("data", data, *rate),
        frontend=section("frontend", frontend),
        model=section("model", model, *SMALL.get(model, [])),
        optim=section("optim", "adamw"),
        baseline=None,
    )
    for task in CHOICES["task"]:
        if (audio, frontend, model, task) in COMPOSED:
            continue  # with other data, of which no more than the same spec was looked at
        cfg.task = section("task", task)
        try:
            built = check_shapes(cfg, audio)
        except Incompatible as refusal:
            text = str(refusal)
            if task == "self_salience" and "task=self_salience rebuilds" in text:
                assert frontend not in ("cqt", "vqt", "log_frequency", "nnaudio_cqt", "nnaudio_stft")
                assert "frontend=cqt" in text
            elif task != "reconstruction" and "notes" not in audio.labels:
                assert f"task={task}" in text
                assert f"data={data}" in text
                assert "rendered" in text
            elif frontend == "encodec" and task == "reconstruction":
                assert "task=reconstruction" in text
                assert "EnCodec" in text
                assert "frontend=log_frequency" in text
            elif frontend == "encodec" and model == "harmonic":
                assert "model=harmonic" in text
                assert "latent" in text
                assert "model=unet" in text
            else:
                assert model in BASELINES, f"only a baseline is allowed to refuse here: {text}"
                assert BASELINES[model] in text
        else:
            assert set(built.needs) <= set(audio.labels)
            assert built.out_spec.frame_rate == built.frontend.out_spec.frame_rate
            COMPOSED.add((audio, frontend, model, task))


@pytest.mark.parametrize("experiment", config.choices("experiment"))
def test_every_shipped_experiment_composes(experiment: str) -> None:
    cfg = config.compose([f"experiment={experiment}"])
    task = check_shapes(cfg, make(cfg.data, "data").spec)
    assert task.monitor.startswith("val/")
