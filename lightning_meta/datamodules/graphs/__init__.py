"""Graphs of entities and relations, where a relation is a task."""
