"""Trials of reinforcement learning: a task of a world, and the dice that will be thrown in it."""
