"""Texts by class."""
