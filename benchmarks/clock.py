"""Seconds by part, and memory."""

from __future__ import annotations

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
