"""Principal components of frames or blocks of them: the linear autoencoder that a learned one has to beat."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from wavespace.errors import Incompatible
from wavespace.models.blocks import BlockSize, as_frames, from_frames, in_blocks
from wavespace.settings import validate_settings
from wavespace.spec import FeatureSpec


@validate_settings
class PCA(nn.Module):
    """The best linear map of frames to `latent` dims each and back, by squared error; a baseline that `fit` sets.

    Args:
        in_spec: features.
        out_spec: the same, as it gives back what came in.
        latent: dims a frame.
        frames: consecutive ones that share a code of `latent * frames` dims. Windows of neighbouring frames overlap,
            so a block of them takes far fewer dims than its frames do one by one.

    Raises:
        Incompatible: the task asks for something other than its input.
        ValueError: a frame has fewer dims, or there are no frames.
    """

    mean: Tensor  # (1, C * F, 1, 1), of all frames
    basis: Tensor  # (dims, C * F, 1, frames), orthonormal rows, the strongest first

    def __init__(
        self, in_spec: FeatureSpec, out_spec: FeatureSpec, *, latent: PositiveInt = 16, frames: BlockSize = 1
    ) -> None:
        super().__init__()
        size = in_spec.channels * in_spec.bins
        if in_spec != out_spec:
            raise Incompatible(
                f"model=pca gives back what came in, {in_spec}, and the task asks for {out_spec}; "
                "use task=reconstruction with it, or model=conv1d"
            )
        if latent > size:
            raise ValueError(f"latent is {latent}; a frame has {size} dims")
        self.channels, self.bins = in_spec.channels, in_spec.bins
        self.dims, self.step, self.receptive_field = latent * frames, frames, frames - 1
        self.register_buffer("mean", torch.zeros(1, size, 1, 1))
        self.register_buffer("basis", torch.eye(self.dims, size * frames).view(self.dims, size, 1, frames))

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take mean and components, in float64, from all whole blocks of frames of features `(B, C, F, T)`."""
        size = self.basis[0].numel()
        count, total = 0, torch.zeros(size, dtype=torch.float64)
        products = torch.zeros(size, size, dtype=torch.float64)
        for features in batches:
            x = as_frames(features.cpu().double()).squeeze(2)  # (B, C * F, T)
            blocks = x.unfold(2, self.step, self.step).transpose(1, 2).flatten(2).flatten(0, 1)  # (n, C * F * step)
            count += len(blocks)
            total += blocks.sum(0)
            products += blocks.T @ blocks
        by_place = (total / count).view(-1, self.step)  # (C * F, step)
        mean = by_place.mean(1, keepdim=True)
        whole = mean.expand_as(by_place).flatten()
        # Of blocks less the mean of frames, which places in a block differ from by chance alone.
        moment = products / count - torch.outer(whole, total / count)
        moment -= torch.outer(total / count - whole, whole)
        _, vectors = torch.linalg.eigh((moment + moment.T) / 2)  # ascending
        self.mean.copy_(mean[None, :, :, None])
        self.basis.copy_(vectors.T[-len(self.basis) :].flip(0).view_as(self.basis))

    def encode(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to codes `(B, dims, 1, ceil(T / step))`, the strongest component first."""
        x = as_frames(x) - self.mean  # (B, C * F, 1, T)
        return F.conv2d(in_blocks(x, self.step), self.basis, stride=(1, self.step))

    def decode(self, code: Tensor) -> Tensor:
        """Codes `(B, dims, 1, t)` to `(B, C, F, t * step)`."""
        x = F.conv_transpose2d(code, self.basis, stride=(1, self.step)) + self.mean  # (B, C * F, 1, t * step)
        return from_frames(x, self.channels, self.bins)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to the same."""
        return self.decode(self.encode(x))[..., : x.shape[-1]]
