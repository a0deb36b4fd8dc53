"""`python -m consortium` is the console script `consortium`."""

from consortium.cli import main

main()
