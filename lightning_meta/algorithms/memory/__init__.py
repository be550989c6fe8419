"""Learning to remember: adaptation in the state of a network that reads the support set."""
