"""`python -m threefold`: the program, where its script is not on the path."""

from threefold.cli.app import program

program()
