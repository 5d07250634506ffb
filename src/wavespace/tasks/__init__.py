"""Tasks: what is learned from features, how it is measured, and what comes out of it."""
