"""Bridges to other libraries of the field. None of them is imported before it is needed."""
