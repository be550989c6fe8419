"""Bilevel problems: what else of a training can be learned than its first weights."""
