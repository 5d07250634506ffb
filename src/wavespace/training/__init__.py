"""Training: one run, a multirun, several devices."""
