"""`python -m sweeper`, the same as `sweeper`."""

from sweeper.cli import main

main()
