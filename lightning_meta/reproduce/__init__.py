"""The project's numbers by one command: each experiment whose result is missing or too short is trained and tested."""
