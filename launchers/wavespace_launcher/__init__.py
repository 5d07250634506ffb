"""Run sweeps on rented GPUs: W&B distributes the jobs, Runpod rents the machines. Nothing here deals with audio."""
