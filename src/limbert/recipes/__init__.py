"""Recipes as data files; ``limbert.run.recipes`` reads them."""
