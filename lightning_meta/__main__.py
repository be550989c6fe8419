"""`python -m lightning_meta`."""

from lightning_meta.cli import main

if __name__ == "__main__":
    main()
