"""Datamodules: audio with labels, in three splits, as a pure function of seed and position."""
