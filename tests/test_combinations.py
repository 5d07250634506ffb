"""Every model x task: all parameters learn, a batch is its items, seeds are exact, windows join, a batch is learned.

What holds of a model whatever its task is in `test_models.py`; every front-end in windows in `test_inference.py`.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from parts import sound_of
from wavespace import config
from wavespace.build import build_task
from wavespace.data.base import Batch, Item, Notes, collate
from wavespace.inference import CONTEXT, stream
from wavespace.spec import AudioSpec
from wavespace.tasks.base import Example, Task

RATE, HOP = 8000, 256
SECONDS = 0.75
AUDIO = AudioSpec(RATE, SECONDS, ("notes", "instrument"))
CQT = ("frontend.fmin=220.0", "frontend.bins=40", "frontend.bins_per_octave=12", f"frontend.hop={HOP}")

MODELS = {
    "harmonic": ("model.width=8", "model.dilations=[[1,1],[12,1]]"),
    "unet": ("model.width=4", "model.depth=2"),
    "unet1d": ("model.width=4", "model.depth=2"),
    "conv1d": ("model.width=4", "model.depth=2"),
    "conv2d": ("model.width=4", "model.depth=2"),
    "tcn": ("model.width=32", "model.layers=2"),
    "local_mlp": ("model.width=48", "model.context=2"),
    "transformer": ("model.width=32", "model.layers=1", "model.heads=2", "model.hidden=32", "model.window=7"),
    "crnn": ("model.width=4", "model.depth=2", "model.hidden=24", "model.layers=1"),
}
MAP = ("task.bins_per_octave=12", "task.fmin=220.0", "task.fmax=1000.0")
GRIDS = ("task.onset_thresholds=[0.1,0.2,0.3,0.5]", "task.frame_thresholds=[0.35]", "task.offset_thresholds=[0.5]")
TONES = ("task.tone_windows=1", "task.tone_notes=4")
TASKS = {"reconstruction": (), "piano_roll": GRIDS, "salience": MAP, "self_salience": TONES}
CASES = list(itertools.product(MODELS, TASKS))

NOTES: tuple[Notes, ...] = (
    np.array([[0.1, 0.35, 60, 90], [0.4, 0.7, 64, 60]]),
    np.array([[0.2, 0.5, 69, 110], [0.2, 0.6, 72, 40]]),
)


@lru_cache
def section(group: str, choice: str, *overrides: str) -> DictConfig:
    """A section of the configuration, composed once."""
    return config.compose([f"{group}={choice}", *overrides])[group]


@lru_cache
def whole() -> DictConfig:
    """A configuration to put sections into."""
    return config.compose(["frontend=cqt", *CQT])


def task_of(model: str, task: str) -> Task:
    """A small task in training mode, in which norms know the batch that they saw last."""
    cfg = whole().copy()
    cfg.model, cfg.task = section("model", model, *MODELS[model]), section("task", task, *TASKS[task])
    torch.manual_seed(0)
    built = build_task(cfg, AUDIO)
    for module in built.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    return built.train()


@lru_cache
def batch() -> Batch:
    """Two items: tones, and noise that is 40 dB lower."""
    rng = np.random.default_rng(0)
    noise = (0.002 * rng.normal(size=(2, AUDIO.samples))).astype(np.float32)
    return collate([Item(sound_of(n, RATE, SECONDS) + x, f"{i}", n) for i, (n, x) in enumerate(zip(NOTES, noise))])


def step(task: Task, optimizer: torch.optim.Optimizer, example: Example) -> float:
    optimizer.zero_grad()
    loss = task.loss(task.apply_model(example.features), example)["loss"]
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize(("model", "task"), CASES)
def test_the_loss_has_a_gradient_to_every_parameter(model: str, task: str) -> None:
    built = task_of(model, task)
    example = built.training_example(batch())
    built.loss(built.apply_model(example.features), example)["loss"].backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("model", "task"), CASES)
@torch.no_grad()
def test_a_batch_is_its_items_one_by_one(model: str, task: str) -> None:
    built = task_of(model, task)
    built(batch().audio)
    built.eval()
    together = built(batch().audio)
    alone = torch.cat([built(audio[None]) for audio in batch().audio])
    assert together.std(0).max() > 0
    reach = built.out_spec.high - built.out_spec.low
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 * reach)


@pytest.mark.parametrize(("model", "task"), CASES)
def test_equal_seeds_give_equal_bits_after_two_steps(model: str, task: str) -> None:
    def trained() -> tuple[list[float], dict[str, Tensor]]:
        built = task_of(model, task)
        example, optimizer, losses = built.training_example(batch()), built.optim.build(built), []
        for number in range(2):
            torch.manual_seed(number)  # as `Task.on_train_batch_start`
            losses.append(step(built, optimizer, example))
        return losses, built.state_dict()

    (losses, state), (again, same) = trained(), trained()
    assert losses == again
    assert losses[0] != losses[1]
    assert all(torch.equal(state[key], same[key]) for key in state)


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_what_a_task_adds_to_a_model_joins_in_windows(model: str) -> None:
    built = task_of(model, "piano_roll")
    rng = np.random.default_rng(0)
    audio = (rng.choice([0.001, 0.1], 500).repeat(320) * rng.normal(size=160_000)).astype(np.float32)
    once = torch.from_numpy(audio)[None, None]
    built(once)
    built.eval()
    one_pass = built(once)[0]  # (C', F', T)
    pieces = torch.cat(list(stream(built, [audio])), -1)
    assert pieces.shape == one_pass.shape
    middle = slice(CONTEXT, -CONTEXT)
    torch.testing.assert_close(pieces[..., middle], one_pass[..., middle], rtol=0, atol=1e-3)
    assert one_pass[..., middle].std(-1).max() > 0.05


@pytest.mark.parametrize(("model", "task"), [case for case in CASES if case[1] != "self_salience"])  # it has no labels
def test_a_batch_is_learned_by_heart(model: str, task: str) -> None:
    built = task_of(model, task)
    example = built.training_example(batch())
    features = example.features
    mean = features.mean((0, 3), keepdim=True).expand_as(features)
    least, most = {
        "reconstruction": (0.0, 0.5 * float((features - mean).abs().mean())),  # of what a constant spectrum is off
        "piano_roll": (0.85, 1.0),  # one note of four wrong at most
        "salience": (0.85, 1.0),
    }[task]
    optimizer = torch.optim.AdamW(built.parameters(), lr=0.03, fused=True)
    for _ in range(20):
        for _ in range(10):
            step(built.train(), optimizer, example)
        with torch.no_grad():
            outputs = built.eval().eval_batch(batch())
            metric = built.compute_metrics(outputs, tune=True)[built.table[0]]
        if least <= metric <= most:
            return
    pytest.fail(f"after 200 steps {built.table[0]} is {metric:.3f}")
