"""Small tasks built without data, for tests."""

from __future__ import annotations

import torch

from wavespace.build import build_task
from wavespace.config import compose
from wavespace.spec import AudioSpec
from wavespace.tasks.base import Task

AUDIO = AudioSpec(22_050, 1.0, ("notes", "instrument"))

FRONTENDS = {
    "log_frequency": ["frontend=log_frequency", "frontend.bins=48", "frontend.n_fft=2048"],
    "mel": ["frontend=mel", "frontend.bins=48", "frontend.n_fft=2048"],
    "multi_resolution": ["frontend=multi_resolution", "frontend.n_ffts=[4096,2048]", "frontend.crossovers=[600.0]"],
}
MODELS = {
    "harmonic": ["model=harmonic", "model.width=4", "model.dilations=[[1,1],[12,1],[1,2]]"],
    "unet": ["model=unet", "model.width=2", "model.depth=2"],
    "unet both": ["model=unet", "model.width=2", "model.depth=3", "model.pool=both", "model.skips=gated"],
    "conv2d": ["model=conv2d", "model.width=2", "model.depth=2"],
    "conv2d both": ["model=conv2d", "model.width=2", "model.depth=3", "model.pool_time=true"],
}


def small_task(frontend: str, model: str, task: str, *overrides: str) -> Task:
    """A task in evaluation mode, with running statistics as after some training, so that they matter."""
    cfg = compose(["data=medley_solos", f"task={task}", *FRONTENDS[frontend], *MODELS[model], *overrides])
    torch.manual_seed(0)
    built = build_task(cfg, AUDIO)
    for module in built.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return built.eval()
