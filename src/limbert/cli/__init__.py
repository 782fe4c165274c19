"""The command ``limbert``: one file a verb."""
