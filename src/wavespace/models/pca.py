"""Principal components of single frames: the linear autoencoder that a learned one of the same latent has to beat."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from wavespace.errors import Incompatible
from wavespace.models.blocks import as_frames, from_frames
from wavespace.spec import FeatureSpec


class PCA(nn.Module):
    """The best linear map of frames to `latent` numbers and back, by squared error; a baseline that `fit` sets.

    Args:
        in_spec: features.
        out_spec: the same, as it gives back what came in.
        latent: numbers a frame.

    Raises:
        Incompatible: the task asks for something other than its input.
        ValueError: there are fewer numbers in a frame.
    """

    context = 0
    step = 1
    mean: Tensor  # (1, C * F, 1, 1)
    basis: Tensor  # (C * F, latent), orthonormal

    def __init__(self, in_spec: FeatureSpec, out_spec: FeatureSpec, *, latent: int = 16) -> None:
        super().__init__()
        size = in_spec.channels * in_spec.bins
        if in_spec != out_spec:
            raise Incompatible(
                f"model=pca gives back what came in, {in_spec}, and the task asks for {out_spec}; "
                "use task=reconstruction with it, or model=conv1d"
            )
        if not 1 <= latent <= size:
            raise ValueError(f"latent is {latent}; a frame has {size} numbers")
        self.channels, self.bins, self.latent = in_spec.channels, in_spec.bins, latent
        self.register_buffer("mean", torch.zeros(1, size, 1, 1))
        self.register_buffer("basis", torch.eye(size, latent))

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take mean and components, in float64, from all frames of features `(B, C, F, T)`."""
        size = len(self.basis)
        count, total = 0, torch.zeros(size, dtype=torch.float64)
        products = torch.zeros(size, size, dtype=torch.float64)
        for features in batches:
            frames = as_frames(features.cpu().double()).squeeze(2).transpose(1, 2).flatten(0, 1)  # (B * T, C * F)
            count += len(frames)
            total += frames.sum(0)
            products += frames.T @ frames
        mean = total / count
        covariance = products / count - mean[:, None] * mean
        _, vectors = torch.linalg.eigh(covariance)  # ascending
        self.mean.copy_(mean[None, :, None, None])
        self.basis.copy_(vectors[:, -self.latent :].flip(1))

    def encode(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to codes `(B, latent, 1, T)`, the strongest component first."""
        return torch.einsum("bsit,sn->bnit", as_frames(x) - self.mean, self.basis)

    def decode(self, code: Tensor) -> Tensor:
        """Codes to `(B, C, F, T)`."""
        return from_frames(torch.einsum("bnit,sn->bsit", code, self.basis) + self.mean, self.channels, self.bins)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to the same."""
        return self.decode(self.encode(x))
