"""Models: features `(B, C, F, T)` to `(B, C', F', T)`. They know nothing of Lightning, Hydra or W&B."""
