"""`python -m wavespace`."""

from wavespace.cli import main

main()
