"""Sweeps on rented GPUs: W&B hands out the jobs, Runpod the machines. Nothing here knows of audio."""
