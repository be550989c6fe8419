"""Neural processes: a distribution over functions from a context set."""
