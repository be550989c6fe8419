"""Learned optimizers: the update rule itself is trained."""
