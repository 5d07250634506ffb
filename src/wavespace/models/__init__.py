"""Models: features `(B, C, F, T)` to `(B, C', F', T)`. They know nothing of Lightning, Hydra or W&B.

All take `in_spec`, of the features, and `out_spec`, of what the task needs; a setting out of range is a `ValueError`.

Each has `receptive_field`, the frames on each side that can change an output frame: what inference on long audio must
give it. With group norm all frames change each other a little. What one with a code offers is `blocks.Autoencoder`.
"""
