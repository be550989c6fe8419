"""Regression tasks: each task is a function."""
