"""`python -m consilia` is `consilia`."""

from consilia.cli import main

main()
