"""Puts the shared test material on the path and keeps the suite quick on small machines and off the network."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, by the import of transformers

import torch

for folder in ("model", "app"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
torch.set_num_threads(min(2, torch.get_num_threads()))
