"""Functions to be minimised, on which an optimizer is learned."""
