"""Puts the shared test material on the path and keeps the suite quick on small machines."""

import sys
from pathlib import Path

import torch

for folder in ("model", "app"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
torch.set_num_threads(min(2, torch.get_num_threads()))
