"""The machine that a measurement is made on: CPU, cores, GPU and memory."""

import platform
from pathlib import Path
from typing import Any

import psutil
import torch


def hardware_info() -> dict[str, Any]:
    """``{cpu, cores, gpu, ram, platform}``: names, logical cores, bytes of memory; ``gpu`` may be None."""
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "ram": psutil.virtual_memory().total,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def describe_hardware(info: dict[str, Any], *, device: str) -> str:
    """The name of the GPU for ``cuda``, else of the CPU with its number of cores."""
    if device == "cuda":
        return str(info["gpu"])
    return f"{info['cpu']}, {info['cores']} cores"


def describe_this_machine(num_threads: int | None = None, *, device: str = "cpu") -> str:
    """The name of this machine's GPU or CPU, with the number of CPU threads (None: torch's default)."""
    if device == "cuda":
        return describe_hardware(hardware_info(), device=device)
    count = num_threads or torch.get_num_threads()
    return f"{_cpu_name()}, {count} thread{'s' * (count > 1)}"


def _cpu_name() -> str:
    """The processor's name from the kernel; on other systems from Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
