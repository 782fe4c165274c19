"""Entry point of ``python -m limbert``, which is the command ``limbert``."""

from limbert.cli.main import main

main()
