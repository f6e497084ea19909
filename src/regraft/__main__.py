"""`python -m regraft` is the command line."""

from regraft.cli import main

main()
