"""Every front-end on every device here: plain, under autocast and compiled, held against float64 on the CPU.

The reference is the front-end itself with tables and audio in float64; that its formula is right is for the tests of
each family to say.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from parts import parts_of
from wavespace import config
from wavespace.config.construction import make
from wavespace.frontends import base
from wavespace.frontends.base import FrontEnd
from wavespace.spec import AudioSpec

AUDIO = AudioSpec(sample_rate=24_000, seconds=1.0)
SMALL: dict[str, dict[str, Any]] = {
    "cqt": {"bins": 84, "bins_per_octave": 12},
    "vqt": {"bins": 84, "bins_per_octave": 12},
    "hcqt": {"bins": 60, "bins_per_octave": 12},
    "log_frequency": {"bins": 64, "n_fft": 2048},
    "mel": {"bins": 64, "n_fft": 2048},
    "multi_resolution": {"bins_per_octave": 12, "n_ffts": [4096, 1024], "crossovers": [600.0]},
    "nnaudio_cqt": {"bins": 60, "bins_per_octave": 12, "fmin": 110.0},
    "nnaudio_stft": {"bins": 64, "n_fft": 1024},
}
"""Settings at which a front-end takes little time; those without take their own."""

EPS = torch.finfo(torch.float32).eps
SUM = 32 * EPS
"""Error of a sum of float32 products as a share of the largest: half an EPS at each of 4096 terms, as a random walk."""
LAYERS = math.sqrt(16) * SUM
"""Error of a codec's latents: as many layers in a row, each with its own."""
LOGARITHM = 4 * EPS * 80
"""Rounding of a level of -80 dB, on its way through a logarithm."""

every_front_end = pytest.mark.parametrize("name", parts_of("frontend"))
every_normalization = pytest.mark.parametrize("normalize", ["none", "frame", "dataset"])
every_device = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
    ],
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EnCodec encoder from random."""
    from encodec.modules import SEANetEncoder

    torch.manual_seed(0)
    encoder = SEANetEncoder(dimension=128, norm="none", causal=True)
    path = tmp_path_factory.mktemp("encodec") / "random.th"
    torch.save({f"encoder.{key}": value for key, value in encoder.state_dict().items()}, path)
    return path


def audio() -> Tensor:
    """Noise, and a decaying chord of ten partials each in a little noise: `(2, 1, 24000)`."""
    noise = torch.randn(2, AUDIO.samples, generator=torch.Generator().manual_seed(3))
    t = torch.arange(AUDIO.samples, dtype=torch.float64) / AUDIO.sample_rate
    tones = [
        0.2 / h * torch.exp(-t * decay) * torch.sin(2 * torch.pi * h * hz * t)
        for hz, decay in [(220.0, 1.0), (277.18, 1.5), (329.63, 2.0)]
        for h in range(1, 11)
    ]
    chord = sum(tones, torch.zeros(())).float()  # (N,)
    return torch.stack([0.1 * noise[0], chord + 1e-3 * noise[1]]).unsqueeze(1)


def build(name: str, normalize: str, weights: Path) -> FrontEnd:
    """A front-end as its file in conf/ has it, but small, and measured on the audio."""
    changed = SMALL.get(name, {}) | {"normalize": normalize} | ({"weights": str(weights)} if name == "encodec" else {})
    node: Any = OmegaConf.merge(OmegaConf.load(config.conf_dir() / "frontend" / f"{name}.yaml"), changed)
    front_end: FrontEnd = make(node, "frontend", in_spec=AUDIO)
    if normalize == "dataset":
        front_end.measure([audio()])
    return front_end


def hold(features: Tensor, front_end: FrontEnd) -> None:
    """Assert that features of `audio()` are those of a front-end in float64, but for what float32 rounds."""
    exact = copy.deepcopy(front_end).cpu().double()
    plain = exact.compute(audio()[:, 0].double())  # (B, C, F, T)
    expected = exact.normalize(plain)
    assert features.dtype == torch.float32
    assert expected.dtype == torch.float64
    error = (features.cpu().double() - expected).abs()
    if front_end.out_spec.normalization == "dataset":
        error = error * exact.std  # in the unit of `raw_spec`
    if front_end.raw_spec.unit == "dB":
        # Rounding is a share of the loudest value of the frame, so it weighs more in a quiet one.
        below = plain.amax((1, 2), keepdim=True) - plain  # (B, C, F, T) in dB
        allowed = 20 * torch.log10(1 + SUM * 10 ** (below / 20)) + SUM * 20 / math.log(10) + LOGARITHM
    else:
        allowed = LAYERS * plain.abs().amax()
        if front_end.out_spec.normalization == "frame":
            root = plain.square().mean((1, 2), keepdim=True).sqrt()  # (B, 1, 1, T)
            error, allowed = error * root, 2 * allowed * (1 + expected.abs())  # of the value, and of the root
    spec = front_end.raw_spec
    away = plain > spec.low if spec.unit == "dB" else torch.ones_like(plain, dtype=torch.bool)
    assert away.float().mean() > 0.5
    worst = (error / allowed)[away].max()
    assert worst <= 1, f"{float(worst):.2f} times what float32 arithmetic explains"


@every_device
@every_normalization
@every_front_end
def test_plain(name: str, normalize: str, device: str, weights: Path) -> None:
    front_end = build(name, normalize, weights).to(device)
    hold(front_end(audio().to(device)), front_end)


@every_device
@every_normalization
@every_front_end
def test_autocast_changes_no_bit(name: str, normalize: str, device: str, weights: Path) -> None:
    front_end, heard = build(name, normalize, weights).to(device), audio().to(device)
    plain = front_end(heard)
    with torch.autocast(device, dtype=torch.bfloat16):
        cast = front_end(heard)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)


@every_device
@pytest.mark.parametrize(
    ("name", "normalize"),
    [(name, "none") for name in parts_of("frontend")] + [("mel", "frame"), ("mel", "dataset")],
)
def test_compiled(name: str, normalize: str, device: str, weights: Path) -> None:
    """On the CPU through AOTAutograd, which takes seconds where Inductor takes a minute."""
    torch.compiler.reset()
    front_end = build(name, normalize, weights).to(device)
    compiled = torch.compile(front_end, backend="inductor" if device == "cuda" else "aot_eager")
    with base._without_tf32(torch.device(device)):  # as a compiled graph leaves that to its caller
        features = compiled(audio().to(device))
    hold(features, front_end)


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="before torch 2.9 these settings had other names")
@pytest.mark.parametrize("chosen", ["highest", "high"])
def test_cuda_multiplies_in_float32_inside_and_as_before_outside(chosen: str) -> None:
    """The settings alone: there may be no CUDA device."""

    def settings() -> list[str]:
        parts = [torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul]
        return [part.fp32_precision for part in parts]

    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(chosen)
    try:
        outside = settings()
        assert outside[0] == "tf32"  # PyTorch's own default
        with base._without_tf32(torch.device("cuda")):
            assert settings() == ["ieee"] * 3
        assert settings() == outside
        with pytest.raises(KeyError), base._without_tf32(torch.device("cuda")):
            raise KeyError
        assert settings() == outside
        assert torch.backends.cudnn.allow_tf32  # a mixture of settings would raise
        assert torch.get_float32_matmul_precision() == chosen
    finally:
        torch.set_float32_matmul_precision(precision)
