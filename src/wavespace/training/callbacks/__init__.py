"""What watches a run: checkpoints, progress, samples."""
