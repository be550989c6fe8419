"""Users who rate items, and relations between entities."""
