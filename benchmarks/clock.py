"""Seconds by part, and memory.

``python benchmarks/clock.py FILE MODULE …`` is ``python -m MODULE …`` that leaves the bytes that it
held at most in a file.
"""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class Clock:
    """Seconds by part; it waits for the device before it looks at the time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds what happens inside to a part."""
        start = self.now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start

    def now(self) -> float:
        """Seconds of the clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def memory() -> tuple[int, int]:
    """Bytes that the process holds now, and held at most (Linux).

    Not ``ru_maxrss``, which of a new process begins at what its parent held.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = dict(line.split(":", 1) for line in lines)
    return int(kib["VmRSS"].split()[0]) * 1024, int(kib["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    file, *sys.argv = sys.argv[1:]
    sys.path[0] = ""  # as `python -m` has it
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    finally:
        if Path("/proc/self/status").exists():
            Path(file).write_text(str(memory()[1]))
