"""Tables and measurements, each made by one command."""
