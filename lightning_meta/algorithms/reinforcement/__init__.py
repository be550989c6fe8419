"""Reinforcement learning: act, be told rewards, and act better in the task at hand."""
