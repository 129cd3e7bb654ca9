from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch_geometric.data import HeteroData

from pyg_mmrec.data import PlantedDataset


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data() -> HeteroData:
    return PlantedDataset("tiny")[0]
