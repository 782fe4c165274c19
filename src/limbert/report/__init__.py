"""The HTML report of a training run, with its pictures, from the JSON files in the run directory."""
