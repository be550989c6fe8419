"""Learning to initialize: adaptation by gradient descent."""
