"""Settings of the process that make training steps faster."""

from __future__ import annotations

import ctypes
import platform

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # numbers in glibc's <malloc.h>


def tune_process(kept_bytes: int = 2**30) -> None:
    """Keeps freed memory, and rounds denormal numbers to zero.

    A training step frees and allocates the same large tensors again and again. Where glibc gives
    their pages back to the system in between, every step pays for thousands of page faults. And a
    saturated loss has gradients below 1e-38, with which a processor is many times slower than with
    zero. Both settings stay, the second for this thread and those that start later, so programs
    make them at their start: nothing in the library calls this.

    Args:
        kept_bytes (int, optional): Freed bytes that glibc may keep; elsewhere nothing is set.
            (default: 1 GiB)
    """
    torch.set_flush_denormal(True)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        for name in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(name, min(kept_bytes, 2**31 - 1))
