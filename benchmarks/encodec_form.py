"""Train weights in EnCodec's format, for use when the official ones are not available.

    python benchmarks/encodec_form.py OUT FOLDER [MINUTES]

EnCodec's 24 kHz encoder and decoder, without the quantiser, learn to reconstruct the recordings of a folder for some
CPU minutes. The loss is the L1 of samples and of log-mel spectra at several lengths, as in the paper's equations 1 and
2, without the discriminator. Then each channel of the latents is scaled to mean 0 and deviation 1, because after so
short a training they are small beside their offsets. The result is a far weaker code than the official one, in the
same format: `frontend.weights=OUT` reads it. With `MINUTES` 0 the weights stay random.
"""

from __future__ import annotations

import sys
import time
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from encodec import EncodecModel
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from wavespace import build, config
from wavespace.frontends.encodec import RATE

LENGTHS = (128, 256, 512, 1024, 2048)


class Distance(nn.Module):
    """Distance of audio `(B, 1, N)` from audio: L1 of samples and of log-mel spectra with windows of `LENGTHS`."""

    def __init__(self) -> None:
        super().__init__()
        self.spectra = nn.ModuleList(
            MelSpectrogram(RATE, n_fft=n, hop_length=n // 4, n_mels=min(64, n // 16), power=1.0) for n in LENGTHS
        )

    def forward(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Return the distance, a scalar."""
        spectra = [((s(found) + 1e-3).log() - (s(wanted) + 1e-3).log()).abs().mean() for s in self.spectra]
        return 10 * (found - wanted).abs().mean() + torch.stack(spectra).mean()


def main(out: Path, folder: str, minutes: float) -> None:
    """Train and save."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    overrides = ["data=audio_folder", f"data.folder={folder}", f"data.sample_rate={RATE}", "data.seconds=1.0"]
    cfg = config.compose([*overrides, "data.batch_size=4", "data.workers=0", "task=salience", "frontend=cqt"])
    data = build.build(cfg).data
    data.setup("fit")
    batches = chain.from_iterable(data.train_dataloader() for _ in repeat(None))
    model = EncodecModel.encodec_model_24khz(pretrained=False)
    distance = Distance()
    optimizer = torch.optim.AdamW([*model.encoder.parameters(), *model.decoder.parameters()], 1e-3, betas=(0.5, 0.9))
    begun, step, mean = time.process_time(), 0, 0.0
    while (spent := (time.process_time() - begun) / 60) < minutes:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * (1 - spent / minutes)
        audio = next(batches).audio.float() / 32768  # (B, 1, N), from int16
        loss = distance(model.decoder(model.encoder(audio))[..., : audio.shape[-1]], audio)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = float(loss) if not step else 0.95 * mean + 0.05 * float(loss)
        step += 1
        print(f"\r{spent:5.1f} of {minutes:g} CPU minutes, step {step}, distance {mean:.3f}", end="", flush=True)
    print()
    standardise(model.encoder, [next(batches).audio.float() / 32768 for _ in range(20)])
    torch.save(model.state_dict(), out.with_suffix(".part"))
    out.with_suffix(".part").rename(out)


@torch.inference_mode()
def standardise(encoder: nn.Module, audio: list[Tensor]) -> None:
    """Scale each output channel of the encoder's last convolution to mean 0 and deviation 1 on this audio."""
    latents = torch.cat([encoder(each).transpose(1, 2).flatten(0, 1) for each in audio])  # (frames, channels)
    mean, std = latents.mean(0), latents.std(0)
    last: Any = [module for module in encoder.modules() if isinstance(module, nn.Conv1d)][-1]
    last.weight_g.div_(std[:, None, None])
    last.bias.sub_(mean).div_(std)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 12.0)
