from __future__ import annotations

import pytest
from torch_geometric.data import HeteroData

from pyg_mmrec.data import PlantedDataset


@pytest.fixture(scope="module")
def data() -> HeteroData:
    return PlantedDataset("tiny")[0]
