"""`python -m datahound_storage.cli`: the same as the console script."""

from datahound_storage.cli import main

main()
