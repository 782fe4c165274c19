"""What every sub-network costs on a machine, measured and kept with the run."""
