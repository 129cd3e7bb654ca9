from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Batch, HeteroData
from torch_geometric.transforms import Compose

from pyg_mmrec.data import PlantedDataset
from pyg_mmrec.data.modality import feature_fingerprint
from pyg_mmrec.nn.backbones import BACKBONES
from pyg_mmrec.transforms import (
    AddFeatureNoise,
    FuseModalityGraphs,
    ModalityKNNGraph,
    ScaleFeatures,
    cosine_knn,
    knn_graph,
)

MakeData = Callable[..., HeteroData]


def reference_knn(x: Tensor, k: int, mask: Tensor | None = None) -> dict[int, list[int]]:
    """The neighbours of every row by decreasing cosine, row by row, in float64."""
    x = x.double()
    use = [
        i
        for i in range(x.size(0))
        if (mask is None or bool(mask[i])) and float(x[i].abs().max()) > 0
    ]
    out: dict[int, list[int]] = {}
    for i in use:
        scored = [(float(x[i] @ x[j] / (x[i].norm() * x[j].norm())), j) for j in use]
        out[i] = [j for _, j in sorted(scored, key=lambda pair: -pair[0])[:k]]
    return out


def neighbors(edge_index: Tensor) -> dict[int, list[int]]:
    out: dict[int, list[int]] = {}
    for source, target in edge_index.t().tolist():
        out.setdefault(target, []).append(source)
    return out


def assert_sorted(edge_index: Tensor, weight: Tensor) -> None:
    target = edge_index[1]
    assert bool((target[1:] >= target[:-1]).all())
    same = target[1:] == target[:-1]
    assert bool((weight[1:] <= weight[:-1])[same].all())


@pytest.mark.parametrize("batch_size", [1, 7, 4096])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_cosine_knn_equals_dense_reference(batch_size: int, dtype: torch.dtype) -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    edge_index, cosine = cosine_knn(x, k=5, batch_size=batch_size)
    assert edge_index.dtype == torch.int64 and cosine.dtype == torch.float32
    assert neighbors(edge_index) == reference_knn(x, 5)
    assert_sorted(edge_index, cosine)
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    expected = (unit[edge_index[0]] * unit[edge_index[1]]).sum(dim=1)
    torch.testing.assert_close(cosine.double(), expected, rtol=0, atol=1e-6)
    assert (edge_index[0] == edge_index[1]).sum() == 40  # every row finds itself


@given(
    num_rows=st.integers(0, 12),
    k=st.integers(1, 15),
    seed=st.integers(0, 10_000),
    masked=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_cosine_knn_leaves_out_masked_and_zero_rows(
    num_rows: int, k: int, seed: int, masked: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, 4, generator=generator)
    x[torch.rand(num_rows, generator=generator) < 0.3] = 0.0
    mask = torch.rand(num_rows, generator=generator) < 0.7 if masked else None
    edge_index, cosine = cosine_knn(x, k, mask=mask)
    expected = reference_knn(x, k, mask)
    assert neighbors(edge_index) == expected
    assert edge_index.size(1) == len(expected) * min(k, len(expected)) == cosine.numel()
    assert bool(cosine.isfinite().all())


def test_cosine_knn_of_tiny_and_huge_rows() -> None:
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    scale = torch.tensor([1e-30, 1e30] * 5).unsqueeze(-1)
    edge_index, cosine = cosine_knn(x * scale, k=3)
    assert neighbors(edge_index) == reference_knn(x, 3)
    assert bool(cosine.isfinite().all())


def test_cosine_knn_without_columns_and_gradient() -> None:
    edge_index, cosine = cosine_knn(torch.empty(5, 0), k=2)
    assert edge_index.shape == (2, 0) and cosine.shape == (0,)
    x = torch.randn(5, 2, requires_grad=True)
    assert not cosine_knn(x, k=2)[1].requires_grad


@pytest.mark.parametrize(
    "options",
    [{"index": "ivf"}, {"index": "hnsw"}, {"index": "ivf", "faiss_options": {"nlist": 8}}],
)
def test_approximate_index_recall(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(30, 16, generator=generator)
    x = centers[torch.randint(30, (3000,), generator=generator)]
    x = x + 0.5 * torch.randn(3000, 16, generator=generator)
    exact, _ = cosine_knn(x, k=10)
    found, cosine = cosine_knn(x, k=10, **options)
    assert_sorted(found, cosine)
    assert int(found.min()) >= 0
    exact_pairs = set(map(tuple, exact.t().tolist()))
    common = sum(tuple(pair) in exact_pairs for pair in found.t().tolist())
    assert common / len(exact_pairs) > 0.95


def test_ivf_with_too_few_probes_gives_fewer_edges() -> None:
    x = torch.eye(6).repeat_interleave(2, dim=0)
    options = {"nlist": 6, "nprobe": 1}
    edge_index, _ = cosine_knn(x, k=4, index="ivf", faiss_options=options)
    assert int(edge_index.min()) >= 0
    assert edge_index.size(1) < 12 * 4


def test_no_query_is_larger_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    queries: list[tuple[int, ...]] = []
    knn = faiss.knn

    def spy(query: np.ndarray, *arguments: Any, **options: Any) -> Any:
        queries.append(query.shape)
        return knn(query, *arguments, **options)

    monkeypatch.setattr(faiss, "knn", spy)
    cosine_knn(torch.randn(1000, 4), k=3, batch_size=64)
    assert queries == [(64, 4)] * 15 + [(40, 4)]


def test_index_is_filled_and_asked_by_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    make_index = knn_graph._make_index

    class Spy:
        def __init__(self, index: Any) -> None:
            self.index = index
            self.is_trained = index.is_trained

        def train(self, rows: np.ndarray) -> None:
            self.index.train(rows)

        def add(self, rows: np.ndarray) -> None:
            seen.append(rows.shape)
            self.index.add(rows)

        def search(self, rows: np.ndarray, k: int) -> Any:
            seen.append(rows.shape)
            return self.index.search(rows, k)

    monkeypatch.setattr(knn_graph, "_make_index", lambda *args: Spy(make_index(*args)))
    cosine_knn(torch.randn(1000, 4), k=3, index="ivf", batch_size=64)
    assert seen == ([(64, 4)] * 15 + [(40, 4)]) * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, r"'k' needs to be a positive integer \(got 0\)"),
        ({"k": True}, r"'k' needs to be a positive integer \(got True\)"),
        ({"k": 2.0}, r"'k' needs to be a positive integer \(got 2.0\)"),
        ({"batch_size": 0}, r"'batch_size' needs to be a positive integer \(got 0\)"),
        (
            {"index": "tree"},
            r"'index' needs to be one of \['flat', 'ivf', 'hnsw', 'auto'\] \(got 'tree'\)",
        ),
        (
            {"index": "ivf", "faiss_options": {"M": 3}},
            r"'faiss_options' of index 'ivf' has no option 'M' \(its options: nlist, nprobe\)",
        ),
        ({"faiss_options": {"nlist": 3}}, r"of index 'flat' has no option 'nlist' .*: none"),
        (
            {"index": "ivf", "faiss_options": {"nprobe": 0}},
            r"'faiss_options\['nprobe'\]' needs to be a positive integer",
        ),
        ({"index": "hnsw", "faiss_options": {"M": 1}}, r"\['M'\]' needs to be at least 2"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cosine_knn(torch.randn(4, 2), **{"k": 2, **arguments})
    with pytest.raises(ValueError, match=message):
        ModalityKNNGraph(**arguments)


def test_inputs_are_checked() -> None:
    with pytest.raises(ValueError, match=r"real matrix \[num_items, num_features\]"):
        cosine_knn(torch.randn(4), k=2)
    with pytest.raises(ValueError, match=r"'mask' needs to be boolean of shape \(4,\)"):
        cosine_knn(torch.randn(4, 2), k=2, mask=torch.ones(3, dtype=torch.bool))
    x = torch.randn(4, 2)
    x[2, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity in 1 rows, the first is row 2"):
        cosine_knn(x, k=2)
    assert cosine_knn(x, k=2, mask=torch.tensor([True, True, False, True]))[0].size(1) == 6
    with pytest.raises(ValueError, match="'faiss_options\\['nlist'\\]' needs to be at most"):
        cosine_knn(torch.randn(4, 2), k=2, index="ivf", faiss_options={"nlist": 5})


def test_missing_faiss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        cosine_knn(torch.randn(4, 2), k=2)


def test_gpu_needs_a_faiss_with_gpu_support(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", ModuleType("faiss"))
    with pytest.raises(ImportError, match=r"'cuda:0'.*pip install pyg-mmrec\[gpu\]"):
        knn_graph._import_faiss(torch.device("cuda:0"))
    with pytest.raises(ValueError, match="index 'hnsw' is for features on the CPU"):
        knn_graph._plan("hnsw", None, 10, 100, torch.device("cuda:0"))
    with pytest.raises(ValueError, match=r"'k' needs to be at most 2048 on a GPU \(got 4000\)"):
        knn_graph._plan("flat", None, 4000, 9000, torch.device("cuda:0"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("index", ["flat", "ivf"])
def test_gpu_equals_cpu(index: str) -> None:
    faiss = pytest.importorskip("faiss")
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("needs a FAISS with GPU support")
    x = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    options = {"nlist": 4, "nprobe": 4} if index == "ivf" else None
    edge_index, cosine = cosine_knn(x.cuda(), k=5, index=index, faiss_options=options)
    assert edge_index.is_cuda and cosine.is_cuda
    assert neighbors(edge_index.cpu()) == reference_knn(x, 5)


def test_auto_is_flat_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert str(knn_graph._plan("auto", None, 10, 100_000, cpu)) == "flat"
    assert str(knn_graph._plan("auto", None, 10, 100_001, cpu)) == "ivf(nlist=1265, nprobe=64)"
    plan = knn_graph._plan("hnsw", {"M": 16}, 20, 10, cpu)
    assert str(plan) == "hnsw(M=16, efConstruction=100, efSearch=80)"


def test_transform_writes_every_modality(
    make_data: MakeData, caplog: pytest.LogCaptureFixture
) -> None:
    generator = torch.Generator().manual_seed(3)
    features = {
        name: torch.randn(20, width, generator=generator)
        for name, width in [("text", 4), ("audio", 3), ("image", 6)]
    }
    mask = torch.arange(20) % 3 > 0
    data = make_data(masks={"audio": mask}, **features)
    with caplog.at_level(logging.INFO, logger="pyg_mmrec.transforms.knn_graph"):
        out = ModalityKNNGraph(k=4)(data)
    named = [message.split("'")[1] for message in caplog.messages]
    assert named == ["image", "text", "audio"]
    assert "13 of 20 items, index flat" in caplog.messages[2]
    assert ("text", "similar", "text") not in data.edge_types
    for name in features:
        store = out[name, "similar", name]
        expected = reference_knn(data[name].x, 4, mask if name == "audio" else None)
        assert neighbors(store.edge_index) == expected
        assert_sorted(store.edge_index, store.edge_weight)
        assert store.k == 4 and store.index == "flat"
        assert store.fingerprint == feature_fingerprint(data[name].x, data[name].get("mask"))
    assert out.validate()
    assert out.to("cpu")["text", "similar", "text"].index == "flat"
    assert Batch.from_data_list([out, out]).num_graphs == 2


def test_transform_takes_some_modalities(make_data: MakeData) -> None:
    out = ModalityKNNGraph(k=2, modalities="text", index="ivf")(make_data())
    assert ("image", "similar", "image") not in out.edge_types
    assert out["text", "similar", "text"].index == "ivf(nlist=1, nprobe=1)"
    with pytest.raises(
        ValueError, match=r"modality 'audio' is not in the data \(its modalities: image, text\)"
    ):
        ModalityKNNGraph(modalities=["text", "audio"])(make_data())
    with pytest.raises(ValueError, match="at least one modality"):
        ModalityKNNGraph(modalities=[])(make_data())


def with_graph(data: HeteroData, k: int, fingerprint: str | None = None) -> HeteroData:
    """Gives image a recognisable graph of k neighbours, as a reader would load it."""
    num_items = data["item"].num_nodes
    target = torch.arange(num_items).repeat_interleave(k)
    store = data["image", "similar", "image"]
    store.edge_index = torch.stack([(target + torch.arange(k).repeat(num_items)) % 20, target])
    store.edge_weight = torch.linspace(1.0, 0.1, k).repeat(num_items)
    store.k = k
    if fingerprint is None:
        fingerprint = feature_fingerprint(data["image"].x, data["image"].get("mask"))
    store.fingerprint = fingerprint
    return data


def test_a_graph_of_the_same_features_is_kept_or_cut(make_data: MakeData) -> None:
    data = with_graph(make_data(), k=6)
    before = data["image", "similar", "image"]
    kept = ModalityKNNGraph(k=6)(data)["image", "similar", "image"]
    assert kept.edge_index is before.edge_index and "index" not in kept

    cut = ModalityKNNGraph(k=2)(data)["image", "similar", "image"]
    assert neighbors(cut.edge_index) == {i: [i, (i + 1) % 20] for i in range(20)}
    torch.testing.assert_close(cut.edge_weight, torch.tensor([1.0, 0.82]).repeat(20))
    assert cut.k == 2 and cut.fingerprint == before.fingerprint
    assert before.k == 6 and before.edge_index.size(1) == 120


def test_cut_does_not_need_sorted_edges_nor_full_rows(make_data: MakeData) -> None:
    data = make_data()
    data["image", "similar", "image"].edge_index = torch.tensor([[4, 1, 2, 3, 9], [5, 0, 5, 5, 7]])
    data["image", "similar", "image"].edge_weight = torch.tensor([0.1, 0.9, 0.3, 0.2, 0.5])
    data["image", "similar", "image"].k = 3
    del data["image"].x
    out = ModalityKNNGraph(k=2, modalities="image")(data)["image", "similar", "image"]
    assert out.edge_index.tolist() == [[1, 2, 3, 9], [0, 5, 5, 7]]
    torch.testing.assert_close(out.edge_weight, torch.tensor([0.9, 0.3, 0.2, 0.5]))


@pytest.mark.parametrize("change", ["fingerprint", "empty", "k", "features"])
def test_a_graph_of_other_features_is_rebuilt(make_data: MakeData, change: str) -> None:
    data = make_data()
    fingerprint = {"fingerprint": "0" * 32, "empty": ""}.get(change)
    data = with_graph(data, k=3 if change == "k" else 6, fingerprint=fingerprint)
    if change == "features":
        data["image"].x = data["image"].x * 2.0
    out = ModalityKNNGraph(k=5)(data)["image", "similar", "image"]
    assert neighbors(out.edge_index) == reference_knn(data["image"].x, 5)
    assert out.k == 5 and out.fingerprint == feature_fingerprint(data["image"].x)


def test_an_approximate_graph_is_kept_for_the_same_index_only(make_data: MakeData) -> None:
    data = ModalityKNNGraph(k=4, index="hnsw")(make_data())
    edge_index = data["text", "similar", "text"].edge_index
    again = ModalityKNNGraph(k=4, index="hnsw")(data)
    assert again["text", "similar", "text"].edge_index is edge_index
    exact = ModalityKNNGraph(k=4)(data)
    assert exact["text", "similar", "text"].index == "flat"
    kept = ModalityKNNGraph(k=3, index="ivf")(exact)
    assert kept["text", "similar", "text"].index == "flat"


def test_a_graph_without_features(make_data: MakeData) -> None:
    data = with_graph(make_data(), k=6, fingerprint="")
    del data["image"].x
    assert ModalityKNNGraph(k=6)(data)["image", "similar", "image"].edge_index.size(1) == 120
    assert ModalityKNNGraph(k=3)(data)["image", "similar", "image"].edge_index.size(1) == 60
    with pytest.raises(
        ValueError,
        match="modality 'image' has no features 'x' to build a graph of k=7 neighbours from, and "
        "its item graph has only k=6",
    ):
        ModalityKNNGraph(k=7)(data)
    del data["image", "similar", "image"]
    with pytest.raises(ValueError, match="'image' has neither features 'x' nor an item graph"):
        ModalityKNNGraph(k=7)(data)


def test_errors_leave_the_data_as_it_was(make_data: MakeData) -> None:
    data = make_data()
    data["text"].x = data["text"].x[:5]
    with pytest.raises(ValueError, match=r"modality 'text' need one row for each of 20 items"):
        ModalityKNNGraph(k=2).forward(data)
    assert ("image", "similar", "image") not in data.edge_types


def test_a_stale_fused_graph_is_dropped(make_data: MakeData) -> None:
    fused = ("item", "similar", "item")
    data = Compose([ModalityKNNGraph(k=4), FuseModalityGraphs()])(make_data())
    assert fused in ModalityKNNGraph(k=4)(data).edge_types
    assert fused not in ModalityKNNGraph(k=3)(data).edge_types
    assert fused not in ModalityKNNGraph(k=5)(data).edge_types
    assert fused in data.edge_types


def test_changed_features_give_a_new_graph(make_data: MakeData) -> None:
    data = ModalityKNNGraph(k=3)(make_data())
    noisy = AddFeatureNoise(std=1.0, seed=0)(data)
    assert ("text", "similar", "text") not in noisy.edge_types
    rebuilt = ModalityKNNGraph(k=3)(noisy)["text", "similar", "text"]
    assert neighbors(rebuilt.edge_index) == reference_knn(noisy["text"].x, 3)
    assert not torch.equal(rebuilt.edge_index, data["text", "similar", "text"].edge_index)
    scaled = ModalityKNNGraph(k=3)(ScaleFeatures("l2")(data))["text", "similar", "text"]
    assert torch.equal(scaled.edge_index, data["text", "similar", "text"].edge_index)


def test_repr() -> None:
    assert repr(ModalityKNNGraph()) == "ModalityKNNGraph(k=10, modalities=None, index='flat')"
    assert "faiss_options={'nlist': 4}" in repr(
        ModalityKNNGraph(index="ivf", faiss_options={"nlist": 4})
    )


@pytest.mark.parametrize("modality", ["image", "text"])
def test_real_features_recover_the_loaded_graph(data_root: Path, modality: str) -> None:
    folder = data_root / "baby_proxy"
    if not folder.is_dir():
        pytest.skip("the data set 'baby_proxy' is not there")
    x = torch.from_numpy(np.load(folder / f"{modality}_feat.npy")).float()
    loaded = torch.from_numpy(np.load(folder / f"{modality}_knn10.npz")["index"]).long()
    edge_index, cosine = cosine_knn(x, k=10)
    assert edge_index.shape == (2, 10 * x.size(0))
    assert_sorted(edge_index, cosine)
    found = edge_index[0].view(-1, 10)
    share = (found.unsqueeze(-1) == loaded.unsqueeze(1)).any(dim=-1).float().mean()
    assert 0.85 < float(share) <= 1.0


@pytest.mark.parametrize("name", ["FREEDOM", "LATTICE", "VLATTICE"])
def test_backbones_find_neighbours_by_the_index_that_is_asked_for(name, monkeypatch):
    monkeypatch.setattr("pyg_mmrec.transforms.knn_graph.AUTO_FLAT_LIMIT", 10)
    data = PlantedDataset("tiny")[0]
    for index, found in ((None, "flat"), ("hnsw", "hnsw"), ("auto", "ivf")):
        options = {} if index is None else {"knn_index": index}
        graph = BACKBONES[name].from_data(data, **options).transform(data)
        assert graph["image", "similar", "image"].index.partition("(")[0] == found
    options = {"knn_index": "ivf", "faiss_options": {"nlist": 3, "nprobe": 2}}
    graph = BACKBONES[name].from_data(data, **options).transform(data)
    assert graph["text", "similar", "text"].index == "ivf(nlist=3, nprobe=2)"
    with pytest.raises(ValueError, match="'knn_index' needs to be one of"):
        BACKBONES[name].from_data(data, knn_index="tree")
    with pytest.raises(ValueError, match="of index 'flat' has no option 'nlist'"):
        BACKBONES[name].from_data(data, faiss_options={"nlist": 3})
