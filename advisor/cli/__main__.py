"""`python -m advisor.cli` is `ftadvise`."""

from advisor.cli.main import main

main()
