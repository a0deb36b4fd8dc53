"""`python -m consortium.cli` is the console script `consortium`."""

from consortium.cli import main

main()
