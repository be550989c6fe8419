"""Inner trainings and the held-out data that judge them."""
