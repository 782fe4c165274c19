"""``python -m limbert`` is the command ``limbert``, also where a launcher starts the module itself."""

from limbert.cli.main import main

main()
