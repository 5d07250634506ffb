"""Models: features `(B, C, F, T)` to `(B, C', F', T)`. They know nothing of Lightning, Hydra or W&B.

Each has `context`, the frames on each side that can change an output frame: what inference on long audio must give it.
"""
