"""Tables, whose rows are examples."""
