"""Entry point of the command ``limbert`` and of ``python -m limbert``."""

from limbert.cli.interrupt import quiet_interrupt


def main() -> None:
    """Run the command of ``sys.argv``."""
    with quiet_interrupt():
        from limbert.cli.main import main as run_command
    run_command()


if __name__ == "__main__":
    main()
