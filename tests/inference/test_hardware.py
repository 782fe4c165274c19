"""Which device computes, and how many cores there are, on any system."""

import os

import pytest
import torch

from limbert.errors import ConfigError
from limbert.inference.load import resolve_device, usable_cores


@pytest.mark.parametrize("gpus", [0, 2])
def test_devices_are_those_that_there_are(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto") == torch.device("cuda" if gpus else "cpu")
    for name in ("cuda", "cuda:1", "cuda:2"):
        if name == "cuda:2" or not gpus:
            with pytest.raises(ConfigError, match=f"device is '{name}'; torch finds {gpus or 'no'} GPU"):
                resolve_device(name)
        else:
            assert resolve_device(name) == torch.device(name)
    for name in ("gpu", "cuda:", "cuda:x", "", "mps"):
        with pytest.raises(ConfigError, match=r"it must be auto, cpu, cuda or cuda:NUMBER"):
            resolve_device(name)


def test_cores_are_counted_where_the_system_knows_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == 7
