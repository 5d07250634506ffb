"""Every data x front-end x model x task either composes or refuses, naming both sides and what would work."""

from __future__ import annotations

import itertools

import pytest

from wavespace import config
from wavespace.build import make, probe
from wavespace.errors import Incompatible

COMBINATIONS = list(itertools.product(*(config.choices(group) for group in ("data", "frontend", "model", "task"))))
SMALL = {
    "harmonic": ["model.width=4"],
    "unet": ["model.width=4", "model.depth=2"],
    "conv2d": ["model.width=4", "model.depth=2"],
}
RATE = {"encodec": ["data.sample_rate=24000"]}  # at any other it refuses, before a model or task is met


@pytest.mark.parametrize(("data", "frontend", "model", "task"), COMBINATIONS)
def test_a_combination_composes_or_refuses(data: str, frontend: str, model: str, task: str) -> None:
    cfg = config.compose(
        [
            *(f"data={data}", f"frontend={frontend}", f"model={model}", f"task={task}"),
            *(SMALL.get(model, []) + RATE.get(frontend, [])),
        ]
    )
    audio = make(cfg.data, "data").spec
    try:
        built = probe(cfg, audio)
    except Incompatible as refusal:
        text = str(refusal)
        if task == "piano_roll" and "notes" not in audio.labels:
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
            assert model == "peaks", f"only the baseline is allowed to refuse here: {text}"
            assert "task=piano_roll" in text
    else:
        assert set(built.needs) <= set(audio.labels)
        assert built.out_spec.frame_rate == built.frontend.out_spec.frame_rate


@pytest.mark.parametrize("experiment", config.choices("experiment"))
def test_every_shipped_experiment_composes(experiment: str) -> None:
    cfg = config.compose([f"experiment={experiment}"])
    task = probe(cfg, make(cfg.data, "data").spec)
    assert task.monitor.startswith("val/")
