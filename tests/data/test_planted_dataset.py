from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from pyg_mmrec.data import PlantedDataset, modalities

INTERACTS = ("user", "interacts", "item")


@pytest.fixture(scope="module")
def small() -> HeteroData:
    return PlantedDataset()[0]


def dense(data: HeteroData, key: str) -> Tensor:
    out = torch.zeros(data["user"].num_nodes, data["item"].num_nodes)
    out[tuple(data[INTERACTS][key])] = 1
    return out


def recall(data: HeteroData, score: Tensor, k: int = 20) -> float:
    train, test = dense(data, "edge_index"), dense(data, "test_label_index")
    top = score.masked_fill(train > 0, -torch.inf).topk(k).indices
    relevant = test.sum(1)
    return float((test.gather(1, top).sum(1) / relevant)[relevant > 0].mean())


def neighbors(x: Tensor, k: int = 10) -> Tensor:
    x = torch.nn.functional.normalize(x)
    similarity = (x @ x.t()).fill_diagonal_(-2)
    return torch.zeros_like(similarity).scatter_(1, similarity.topk(k).indices, 1)


def standard(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


@pytest.mark.parametrize(("size", "users", "items"), [("tiny", 120, 90), ("small", 2000, 1500)])
def test_sizes(size: str, users: int, items: int) -> None:
    dataset = PlantedDataset(size)
    found = dataset.statistics
    assert repr(dataset) == f"PlantedDataset({size}, seed=0, split=random)"
    assert (found["users"], found["items"]) == (users, items)
    data = dataset[0]
    assert data.validate() and modalities(data) == ["image", "text"]
    assert 11 < found["training"] / users < 20
    user = torch.cat([data[INTERACTS][key][0] for key in
                      ("edge_index", "val_label_index", "test_label_index")])  # fmt: skip
    assert int(torch.bincount(user, minlength=users).min()) >= 5
    assert data[INTERACTS].time.shape == (found["training"],)
    assert found["dropped"] == {
        "validation_users": 0,
        "validation_interactions": 0,
        "test_users": 0,
        "test_interactions": 0,
    }


def test_truth_is_kept(small: HeteroData) -> None:
    assert small["user"].taste.shape == (2000, 16) and small["item"].taste.shape == (1500, 16)
    fit = []
    for m in modalities(small):
        kind, x = small[m].column_kind, small[m].x
        assert kind.dtype == torch.int8 and kind.shape == (x.size(1),)
        assert set(kind.tolist()) == {0, 1, 2}
        assert not torch.equal(kind, kind.sort().values)  # kinds are mixed among the columns
        # Which taste channels can be read off linearly, from which columns?
        for value in range(3):
            columns = torch.cat([x[:, kind == value], torch.ones(1500, 1)], dim=1)
            weight = torch.linalg.lstsq(columns, small["item"].taste).solution
            rest = (small["item"].taste - columns @ weight).var(0)
            fit.append(1 - rest / small["item"].taste.var(0))
    image, text = fit[0], fit[3]
    assert image[:10].min() > 0.8 and text[6:].min() > 0.8
    assert image[10:].max() < 0.3 and text[:6].max() < 0.3  # each sees only its part
    for other in (*fit[1:3], *fit[4:]):
        assert other.max() < 0.1


def test_long_tails(small: HeteroData) -> None:
    train = dense(small, "edge_index")
    for count in (train.sum(0), train.sum(1)):
        ordered = count.sort(descending=True).values
        assert ordered[: len(ordered) // 5].sum() > 0.35 * ordered.sum()
        assert ordered[0] > 4 * ordered.median()


def test_content_helps_and_irrelevant_columns_hurt(small: HeteroData) -> None:
    train = dense(small, "edge_index")
    degree = train.sum(0)
    together = (train.t() @ train) / ((degree[:, None] * degree).sqrt() + 5)
    interactions = train @ together.fill_diagonal_(0)
    content = {}
    for name, kinds in (("taste", (0,)), ("all", (0, 1, 2)), ("irrelevant", (1,))):
        graph = torch.zeros(1500, 1500)
        for m in modalities(small):
            keep = torch.isin(small[m].column_kind, torch.tensor(kinds))
            graph += neighbors(small[m].x[:, keep])
        content[name] = train @ graph.t()

    popular = recall(small, degree.expand(2000, -1))
    alone = recall(small, interactions)
    both = recall(small, standard(interactions) + 0.4 * standard(content["taste"]))
    diluted = recall(small, standard(interactions) + 0.4 * standard(content["all"]))
    assert popular < 0.1 < 0.17 < alone
    assert both > 1.15 * alone
    assert diluted < 0.9 * both
    by_taste, by_all = recall(small, content["taste"]), recall(small, content["all"])
    assert by_all < 0.55 * by_taste
    assert recall(small, content["irrelevant"]) < 0.05
    truth = small["user"].taste @ small["item"].taste.t()
    assert recall(small, truth) > 1.15 * both


def digest(data: HeteroData) -> str:
    store = data[INTERACTS]
    out = hashlib.blake2b(digest_size=8)
    for value in (store.edge_index, store.val_label_index, store.test_label_index, store.time):
        out.update(value.contiguous().numpy().tobytes())
    return out.hexdigest()


def test_same_seed_same_data() -> None:
    first, second = PlantedDataset("tiny", seed=1)[0], PlantedDataset("tiny", seed=1)[0]
    assert digest(first) == digest(second)
    for m in modalities(first):
        assert torch.equal(first[m].x, second[m].x)
        assert torch.equal(first[m].column_kind, second[m].column_kind)
    assert digest(PlantedDataset("tiny", seed=2)[0]) != digest(first)
    state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    torch_state = torch.get_rng_state()
    PlantedDataset("tiny")
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_data_stays_the_same_across_versions(small: HeteroData) -> None:
    assert digest(PlantedDataset("tiny")[0]) == "1a8bf73c091589d2"
    assert digest(small) == "5c0d3a7dcb6d7bdc"


def test_transform_and_errors() -> None:
    dataset = PlantedDataset("tiny", transform=lambda data: data["user"].num_nodes)
    assert dataset[0] == 120
    with pytest.raises(ValueError, match=r"'size' needs to be one of \['tiny', 'small'\]"):
        PlantedDataset("huge")
    with pytest.raises(ValueError, match=r"'seed' needs to be a non-negative integer \(got -1\)"):
        PlantedDataset(seed=-1)
    with pytest.raises(ValueError, match=r"'split' needs to be one of \['random', .* 'label'\)"):
        PlantedDataset(split="label")


def test_splits_share_their_interactions() -> None:
    def pairs(split: str) -> list[set[tuple[int, int]]]:
        store = PlantedDataset("tiny", split=split)[0]["user", "interacts", "item"]
        parts = (store.edge_index, store.val_label_index, store.test_label_index)
        return [set(zip(*part.tolist(), strict=True)) for part in parts]

    random = pairs("random")
    temporal = pairs("temporal")
    assert set().union(*random) == set().union(*temporal)
    assert [len(part) for part in random] == [len(part) for part in temporal]
    assert random[2] != temporal[2]

    store = PlantedDataset("tiny", split="global_temporal")[0]["user", "interacts", "item"]
    assert store.val_label_index.size(1) <= 0.1 * len(set().union(*random))
    cold = pairs("item_cold_start")
    assert not {item for _, item in cold[0]} & {item for _, item in cold[2]}
