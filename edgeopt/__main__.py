"""`python -m edgeopt`: the same as the command `edgeopt`."""

from edgeopt.cli import main

main()
