"""Small tasks built without data, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from wavespace.build import build_task
from wavespace.config import choices, compose, conf_dir
from wavespace.data.base import Notes
from wavespace.spec import AudioSpec
from wavespace.tasks.base import Task
from wavespace.tasks.decode import Decoder
from wavespace.units import midi_to_hz

AUDIO = AudioSpec(22_050, 1.0, ("notes", "instrument"))

FRONTENDS = {
    "log_frequency": ["frontend=log_frequency", "frontend.bins=48", "frontend.n_fft=2048"],
    "mel": ["frontend=mel", "frontend.bins=48", "frontend.n_fft=2048"],
    "multi_resolution": ["frontend=multi_resolution", "frontend.n_ffts=[4096,2048]", "frontend.crossovers=[600.0]"],
}
MODELS = {
    "harmonic": ["model=harmonic", "model.width=4", "model.dilations=[[1,1],[12,1],[1,2]]"],
    "peaks": ["model=peaks"],
    "unet": ["model=unet", "model.width=2", "model.depth=2"],
    "unet both": ["model=unet", "model.width=2", "model.depth=3", "model.pool=both", "model.skips=gated"],
    "unet1d": ["model=unet1d", "model.width=2", "model.depth=2"],
    "conv1d": ["model=conv1d", "model.width=2", "model.depth=2", "model.latent=4"],
    "conv2d": ["model=conv2d", "model.width=2", "model.depth=2"],
    "conv2d both": ["model=conv2d", "model.width=2", "model.depth=3", "model.pool_time=true"],
    "tcn": ["model=tcn", "model.width=8", "model.layers=3"],
    "local_mlp": ["model=local_mlp", "model.width=8"],
    "transformer": ["model=transformer", "model.width=8", "model.heads=2", "model.hidden=8", "model.window=7"],
    "crnn": ["model=crnn", "model.width=2", "model.depth=2", "model.hidden=4"],
}


def small_task(frontend: str, model: str, task: str, *overrides: str) -> Task:
    """A task in evaluation mode, with the running statistics of a batch, so that its output follows its input."""
    cfg = compose(["data=medley_solos", f"task={task}", *FRONTENDS[frontend], *MODELS[model], *overrides])
    torch.manual_seed(0)
    built = build_task(cfg, AUDIO)
    built.config_text = OmegaConf.to_yaml(cfg, resolve=True)
    for module in built.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        built.train()(torch.randn(2, 1, AUDIO.samples) * torch.logspace(-4, 0, AUDIO.samples))
    return built.eval()


def save(task: Task, path: Path) -> Path:
    """A checkpoint as training writes it, without what only training needs."""
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


def decode(*maps: Any, pitches: Sequence[int], frame_rate: float, **thresholds: float) -> Notes:
    """Notes of whole maps."""
    decoder = Decoder(pitches, frame_rate, **thresholds)
    notes = np.concatenate([decoder.push(*maps), decoder.flush()])
    return notes[np.lexsort((notes[:, 2], notes[:, 0]))]


def sound_of(notes: Notes, rate: int, seconds: float) -> NDArray[np.float32]:
    """Notes as tones `(N,)` of six harmonics that are struck and decay."""
    time = np.arange(round(rate * seconds)) / rate
    audio = np.zeros_like(time)
    for onset, offset, pitch, velocity in notes:
        part = (time >= onset) & (time < offset)
        t = time[part] - onset
        shape = np.minimum(1, t / 0.005) * np.exp(-2 * t) * np.minimum(1, (offset - onset - t) / 0.02)
        for harmonic in range(1, 7):
            wave = np.sin(2 * np.pi * harmonic * midi_to_hz(pitch) * t) / harmonic
            audio[part] += 0.2 * velocity / 127 * shape * wave
    return audio.astype(np.float32)


def parts_of(group: str) -> list[str]:
    """Choices of a group that name a constructor; the others are an experiment's settings of one of these."""
    return [
        name for name in choices(group) if "\n_target_:" in "\n" + (conf_dir() / group / f"{name}.yaml").read_text()
    ]
