"""Learning from the queries too: frozen features, and a head that reads the whole query set of a task."""
