from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors here are so small that threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets named by ``PYG_MMREC_DATA``; without it the test is skipped."""
    value = os.environ.get("PYG_MMREC_DATA")
    if not value:
        pytest.skip("PYG_MMREC_DATA is not set: no real data to test on")
    root = Path(value)
    if not root.is_dir():
        pytest.fail(f"PYG_MMREC_DATA needs to name a folder (got '{value}')")
    return root


@pytest.fixture(scope="session")
def golden_root() -> Path:
    """The folder of reference tensors, ``tests/goldens`` unless ``PYG_MMREC_GOLDENS`` says."""
    root = Path(os.environ.get("PYG_MMREC_GOLDENS") or Path(__file__).parent / "goldens")
    if not root.is_dir():
        pytest.fail(f"the folder of reference tensors is missing ('{root}')")
    return root
