"""Sweeps without a server: the files that `wandb agent` takes, run through Optuna."""
