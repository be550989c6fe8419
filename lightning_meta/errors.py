"""Errors that a user can mend. The command line prints them as one message, without a traceback."""


class UserError(RuntimeError):
    """Something in the request or its surroundings is wrong; the message names the facts and the remedy."""


class ConfigError(UserError):
    """Two settings disagree."""


class DataError(UserError):
    """Data are missing, corrupt or too few."""


class DivergenceError(UserError):
    """Training has produced a loss or weights that are not finite."""
