"""Learning to compare: adaptation in a learned embedding."""
