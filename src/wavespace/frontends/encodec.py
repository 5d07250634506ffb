"""EnCodec's latents before quantisation: the 24 kHz encoder of Defossez, Copet, Synnaeve and Adi (2022), frozen.

Strided convolutions that look back only, and an LSTM. Frame t encodes the 320 samples about its time, (t - 1/2) / 75 to
(t + 1/2) / 75 seconds, and what came before. Audio counts as zero before its start and after its end; at its own start
the encoder mirrors the first tenth of a second, as the official code does.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavespace.errors import BadInput, Incompatible
from wavespace.frontends.base import FrontEnd
from wavespace.frontends.weights import ENCODEC, encodec_weights
from wavespace.settings import validate_settings
from wavespace.spec import AudioSpec, FeatureSpec, Normalization

RATE, HOP, CHANNELS = 24_000, 320, 128
URL = f"https://dl.fbaipublicfiles.com/encodec/v0/{ENCODEC}"
CHUNK = 750
"""Frames to encode at once, more than `TAIL`."""
BEHIND = 2
"""Hops before a chunk that change it through the convolutions, which reach back 478 samples."""
TAIL = 6
"""Frames before a chunk that change it through the last convolution."""


@validate_settings
class EnCodec(FrontEnd):
    """Latents `(B, 128, 1, T)` at 75 frames a second of 24 kHz audio, before quantisation.

    The 128 channels have no order, so they are channels and not a frequency axis. The range of -10..10 is nominal: it
    scales what models see and is no limit. Long audio is encoded in chunks that hand the LSTM's state on: but for
    rounding the latents are those of one pass, at a memory that grows with the latents alone. The weights don't
    learn, and a checkpoint holds none of them. On the meta device they are not looked for.

    Args:
        in_spec: the audio that comes in, at 24 kHz.
        weights: the official `encodec_24khz-d7cc33bc.th`, or the folder it lies in; None is `data/encodec`. Any
            `state_dict` of `encodec.EncodecModel` will do. Where a name ends in a hash, the file must have it.

    Raises:
        Incompatible: the audio has another sample rate.
        BadInput: there are no weights, or they are damaged or of another model.
    """

    unbounded = True

    def __init__(self, in_spec: AudioSpec, *, weights: str | None = None, normalize: Normalization = "none") -> None:
        if in_spec.sample_rate != RATE:
            raise Incompatible(
                f"frontend=encodec reads {RATE} Hz audio, and the data has {in_spec.sample_rate} Hz; set "
                f"data.sample_rate={RATE}, or use a front-end for any rate, such as frontend=log_frequency or cqt"
            )
        # One bin, from 0 to the Nyquist frequency.
        raw = FeatureSpec(CHANNELS, (RATE / 4,), RATE / HOP, unit="latent", low=-10.0, high=10.0)
        super().__init__(in_spec, raw, normalize)
        on_meta = torch.empty(0).is_meta
        from encodec.modules import SEANetEncoder

        with torch.device("meta"):
            encoder: Any = SEANetEncoder(dimension=CHANNELS, norm="none", causal=True)
        if not on_meta:
            load_encoder(encodec_weights(weights), encoder)
        for module in encoder.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, weight.detach(), persistent=False)
        *convolutions, recurrent, activation, last = encoder.model
        self.convolutions = nn.Sequential(*convolutions)
        self.lstm: nn.LSTM = recurrent.lstm
        self.last = nn.Sequential(activation, last)

    def compute(self, audio: Tensor) -> Tensor:
        """Latents `(B, 128, 1, T)` of audio `(B, N)`."""
        frames = 1 + audio.shape[1] // HOP
        if audio.is_meta:  # where an LSTM is slow
            return audio.new_empty(len(audio), CHANNELS, 1, frames)
        audio = F.pad(audio, (HOP // 2, frames * HOP - HOP // 2 - audio.shape[1])).unsqueeze(1)  # (B, 1, T * HOP)
        latents = []
        state: Any = None
        before = audio.new_empty(len(audio), self.lstm.hidden_size, 0)
        for start in range(0, frames, CHUNK):
            behind = min(BEHIND, start)
            chunk = audio[..., (start - behind) * HOP : (start + CHUNK) * HOP]  # (B, 1, n)
            x = self.convolutions(chunk)[..., behind:]  # (B, 512, t)
            y, state = self.lstm(x.permute(2, 0, 1), state)  # (t, B, 512)
            x = torch.cat([before, x + y.permute(1, 2, 0)], dim=-1)  # (B, 512, TAIL + t)
            latents.append(self.last(x)[..., before.shape[-1] :])  # (B, 128, t)
            before = x[..., -TAIL:]
        return torch.cat(latents, dim=-1).unsqueeze(2)  # (B, 128, 1, T)


def load_encoder(file: Path, encoder: nn.Module) -> None:
    """Give an encoder on the meta device the weights of a file, weight normalisation multiplied out.

    Raises:
        BadInput: the file is missing, damaged or of another model.
    """
    if not file.is_file():
        raise BadInput(
            f"{file}: there are no EnCodec weights; download {URL} (93 MB) to there, "
            f"or set frontend.weights to the file or its folder"
        )
    stated = re.search(r"-([0-9a-f]{8,64})$", file.stem)
    if stated:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if not found.startswith(stated[1]):
            raise BadInput(
                f"{file}: is damaged: its SHA-256 begins with {found[:8]}, and its name says {stated[1]}; "
                "delete it and download it again"
            )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        weights = {
            key.removeprefix("encoder."): value.float() for key, value in state.items() if key.startswith("encoder.")
        }
    except Exception as error:  # torch's own text advises to run what is in the file
        raise BadInput(f"{file}: is no file of weights, or is damaged ({type(error).__name__})") from None
    for key in [key for key in weights if key.endswith("weight_v")]:
        direction, length = weights.pop(key), weights.pop(key[:-1] + "g")  # (out, in, taps), (out, 1, 1)
        weights[key[:-2]] = direction * (length / direction.norm(dim=(1, 2), keepdim=True))
    try:
        encoder.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{file}: is not the 24 kHz EnCodec ({ENCODEC}): {reason[:200]}") from None
