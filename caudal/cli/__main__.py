"""`python -m caudal.cli`."""

from caudal.cli import main

main()
