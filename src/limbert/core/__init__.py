"""Values: what a sub-network is, which ones a model has, and the settings of a run. Standard library only."""
