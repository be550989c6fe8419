"""Meta-learning on PyTorch Lightning: two pure hooks per algorithm, everything else from the Trainer."""

__version__ = "0.1.0"
