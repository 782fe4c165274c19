"""Search for sub-networks off the grid: any layers, and heads and neurons of each layer chosen by themselves."""
