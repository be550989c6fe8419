"""Yardsticks: a network that is trained as usual, and a head for each task."""
