"""Learning while examples come, one after another: to remember the first when the last are learned."""
