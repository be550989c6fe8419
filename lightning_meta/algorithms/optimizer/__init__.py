"""Learning to optimize: the rule of adaptation is itself learned."""
