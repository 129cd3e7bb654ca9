from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.metrics import (
    LinkPredCoverage,
    LinkPredHitRatio,
    LinkPredMAP,
    LinkPredMetricCollection,
    LinkPredNDCG,
    LinkPredPrecision,
    LinkPredRecall,
)
from torch_geometric.metrics.link_pred import LinkPredMetricData

from pyg_mmrec.evaluation import FullRanking, full_ranking
from pyg_mmrec.retrieval import InnerProduct

NUM_USERS, NUM_ITEMS, KS = 60, 90, (3, 1, 10, 20)


def make_pairs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Different training, validation and test pairs; some users lack some, some items are cold."""
    generator = torch.Generator().manual_seed(seed)
    key = torch.randperm(NUM_USERS * NUM_ITEMS, generator=generator)[:900]
    pairs = torch.stack([key // NUM_ITEMS, key % NUM_ITEMS])
    train, val, test = pairs[:, :500], pairs[:, 500:650], pairs[:, 650:]
    val, test = val[:, val[0] % 7 > 0], test[:, test[0] % 5 > 0]
    return train[:, train[1] % 11 > 0], val, test


def make_scores(levels: int | None, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.randn(NUM_USERS, NUM_ITEMS, generator=generator)
    return torch.randint(levels, (NUM_USERS, NUM_ITEMS), generator=generator).float()


def reference(
    scores: Tensor, held_out: Tensor, train: Tensor, excluded: Tensor, ks: tuple[int, ...]
) -> tuple[dict[str, float], dict[str, dict[int, float]]]:
    """Every metric, user by user, straight from its definition."""
    num_items = scores.size(1)
    warm = set(train[1].tolist())
    gone = set(map(tuple, excluded.t().tolist()))
    relevant: dict[int, set[int]] = {}
    for user, item in held_out.t().tolist():
        relevant.setdefault(user, set()).add(item)
    values: dict[str, dict[int, float]] = {}
    shown: dict[int, set[int]] = {k: set() for k in ks}
    for user, wanted in relevant.items():
        row = scores[user].tolist()
        order = [i for i in range(num_items) if (user, i) not in gone]
        order.sort(key=lambda i: (-row[i], i))
        cold = wanted - warm
        for k in ks:
            listed = order[:k]
            hits = [item in wanted for item in listed]
            best = min(len(wanted), k)
            dcg = sum(hit / math.log2(r + 2) for r, hit in enumerate(hits))
            precisions = [sum(hits[: r + 1]) / (r + 1) for r, hit in enumerate(hits) if hit]
            result = {
                "recall": sum(hits) / len(wanted),
                "ndcg": dcg / sum(1 / math.log2(r + 2) for r in range(best)),
                "precision": sum(hits) / k,
                "map": sum(precisions) / best,
                "hit_ratio": float(any(hits)),
            }
            if cold:
                result["cold_item_recall"] = len(cold.intersection(listed)) / len(cold)
            for name, value in result.items():
                values.setdefault(f"{name}@{k}", {})[user] = value
            shown[k].update(listed)
    means = {name: sum(value.values()) / len(value) for name, value in values.items()}
    means.update({f"coverage@{k}": len(items) / num_items for k, items in shown.items()})
    return means, values


@pytest.mark.parametrize("levels", [1, 2, 6, None])
@pytest.mark.parametrize("mask_validation", [False, True])
def test_equals_reference(levels: int | None, mask_validation: bool) -> None:
    train, val, test = make_pairs()
    scores = make_scores(levels)
    excluded = torch.cat([train, val], dim=1) if mask_validation else train
    expected, expected_values = reference(scores, test, train, excluded, KS)
    evaluator = FullRanking(
        test, train, NUM_USERS, NUM_ITEMS, KS, also_exclude=val if mask_validation else None
    )
    metrics, values = evaluator(lambda users: scores[users], per_user=True)
    assert metrics == pytest.approx(expected, abs=1e-6)
    assert any(name.startswith("cold_item_recall") for name in metrics)
    assert evaluator.users.tolist() == sorted(set(test[0].tolist()))
    assert evaluator.users.numel() < NUM_USERS
    assert set(values) == {n for n in metrics if not n.startswith(("coverage", "cold"))}
    for name, value in values.items():
        rows = [expected_values[name][user] for user in evaluator.users.tolist()]
        assert value.tolist() == pytest.approx(rows, abs=1e-6)
    assert evaluator(lambda users: scores[users]) == metrics


@pytest.mark.parametrize("levels", [3, None])
def test_equals_pyg(levels: int | None) -> None:
    train, _, test = make_pairs(seed=1)
    scores = make_scores(levels, seed=1)
    evaluator = FullRanking(test, train, NUM_USERS, NUM_ITEMS, KS)
    metrics = evaluator(lambda users: scores[users])

    masked = scores.clone()
    masked[train[0], train[1]] = -torch.inf
    # All users, in an order of its own: PyG leaves out those without held-out items by itself.
    ranked = masked.sort(dim=1, descending=True, stable=True).indices[:, : max(KS)]
    formulas = {
        "recall": LinkPredRecall,
        "ndcg": LinkPredNDCG,
        "precision": LinkPredPrecision,
        "map": LinkPredMAP,
        "hit_ratio": LinkPredHitRatio,
    }
    collection = LinkPredMetricCollection(
        {f"{name}-{k}": formula(k) for name, formula in formulas.items() for k in KS}
    )
    collection.update(ranked, test)
    for name, value in collection.compute().items():
        assert metrics[name.replace("-", "@")] == pytest.approx(float(value), abs=1e-6)
    for k in KS:
        coverage = LinkPredCoverage(k, NUM_ITEMS)
        coverage.update(ranked[evaluator.users], test)
        assert metrics[f"coverage@{k}"] == pytest.approx(float(coverage.compute()), abs=1e-6)


def test_one_user_by_hand() -> None:
    # Ranked 4, 3, 2, 1, 0 by score; 3 is a training item; 0 and 2 are held out, 2 is rank 2.
    scores = torch.arange(5.0).expand(2, 5)
    evaluator = FullRanking(
        torch.tensor([[1, 1], [0, 2]]), torch.tensor([[0, 1, 0], [0, 3, 2]]), 2, 5, ks=(1, 2)
    )
    metrics = evaluator(lambda users: scores[users])
    best_dcg = 1 + 1 / math.log2(3)
    assert metrics == pytest.approx(
        {
            "recall@1": 0.0,
            "recall@2": 0.5,
            "ndcg@1": 0.0,
            "ndcg@2": 1 / math.log2(3) / best_dcg,
            "precision@1": 0.0,
            "precision@2": 0.5,
            "map@1": 0.0,
            "map@2": 0.25,
            "hit_ratio@1": 0.0,
            "hit_ratio@2": 1.0,
            "coverage@1": 0.2,
            "coverage@2": 0.4,
        }
    )


def test_checkerboard_ranks_the_diagonal_first() -> None:
    # Even users like even items, odd users odd ones; the diagonal is held out.
    size = 12
    likes = (torch.arange(size).view(-1, 1) + torch.arange(size)) % 2 == 0
    train = (likes & ~torch.eye(size, dtype=torch.bool)).nonzero().t()
    held_out = torch.arange(size).expand(2, size)
    evaluator = FullRanking(held_out, train, size, size, ks=(1,))
    side = torch.nn.functional.one_hot(torch.arange(size) % 2).float()
    metrics = evaluator(InnerProduct(side, side))
    assert metrics["recall@1"] == metrics["ndcg@1"] == metrics["coverage@1"] == 1.0
    assert evaluator(InnerProduct(side, side.flip(0)))["recall@1"] == 0.0


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_chunk_size_does_not_matter(chunk_size: int) -> None:
    train, _, test = make_pairs()
    scores = make_scores(4)
    whole = FullRanking(test, train, NUM_USERS, NUM_ITEMS, KS)
    chunked = FullRanking(test, train, NUM_USERS, NUM_ITEMS, KS, chunk_size=chunk_size)
    assert chunked(lambda users: scores[users]) == whole(lambda users: scores[users])


def test_order_of_pairs_does_not_matter() -> None:
    train, val, test = make_pairs()
    scores = make_scores(4)
    expected = FullRanking(test, train, NUM_USERS, NUM_ITEMS, KS, val)(lambda users: scores[users])
    shuffled = [
        pairs[:, torch.randperm(pairs.size(1), generator=torch.Generator().manual_seed(3))]
        for pairs in (test, train, val)
    ]
    again = FullRanking(*shuffled[:2], NUM_USERS, NUM_ITEMS, KS, shuffled[2])
    assert again(lambda users: scores[users]) == expected


def test_fewer_candidates_than_k() -> None:
    # User 0 has one candidate left, user 1 has two; lists are longer than the catalogue.
    train = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 2, 0, 1]])
    held_out = torch.tensor([[0, 1], [3, 2]])
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    evaluator = FullRanking(held_out, train, 2, 4, ks=(1, 6))
    metrics = evaluator(lambda users: scores[users])
    expected, _ = reference(scores, held_out, train, train, (1, 6))
    assert metrics == pytest.approx(expected, abs=1e-6)
    assert metrics["coverage@6"] == 0.5  # items 2 and 3
    assert metrics["cold_item_recall@1"] == 1.0  # item 3 of user 0


def test_absent_items_are_no_hits() -> None:
    # -1 in the second row must not be read as the last item of the first.
    evaluator = FullRanking(
        torch.tensor([[0, 1], [4, 0]]), torch.tensor([[0], [4 - 1]]), 2, 5, (2,)
    )
    metrics, values = evaluator.measure(torch.tensor([[1, 4], [-1, -1]]), per_user=True)
    assert values["recall@2"].tolist() == [1.0, 0.0]
    assert metrics["coverage@2"] == pytest.approx(0.4)
    metrics = evaluator.measure(torch.tensor([[-1, -1], [-1, -1]]))
    assert set(metrics.values()) == {0.0}


def test_no_cold_items_no_cold_metric() -> None:
    train = torch.tensor([[0, 1, 1], [0, 1, 2]])
    evaluator = FullRanking(torch.tensor([[0], [1]]), train, 2, 3, ks=(2,))
    metrics = evaluator(lambda users: torch.zeros(users.numel(), 3))
    assert not any(name.startswith("cold") for name in metrics)


def make_data() -> HeteroData:
    train, val, test = make_pairs()
    data = HeteroData()
    data["user"].num_nodes, data["item"].num_nodes = NUM_USERS, NUM_ITEMS
    store = data["user", "interacts", "item"]
    store.edge_index, store.val_label_index, store.test_label_index = train, val, test
    return data


def test_from_hetero() -> None:
    train, val, test = make_pairs()
    data, scores = make_data(), make_scores(None)

    def score(users: Tensor) -> Tensor:
        return scores[users]

    def direct(held_out: Tensor, also_exclude: Tensor | None = None) -> dict[str, float]:
        return FullRanking(held_out, train, NUM_USERS, NUM_ITEMS, KS, also_exclude)(score)

    assert FullRanking.from_hetero(data, ks=KS)(score) == direct(val)
    plain = FullRanking.from_hetero(data, "test", ks=KS)(score)
    masked = FullRanking.from_hetero(data, "test", ks=KS, mask_validation=True)(score)
    assert plain == direct(test)
    assert masked == direct(test, val)
    assert masked != plain
    evaluator = FullRanking.from_hetero(data, "test", ks=KS, coverage=False)
    assert evaluator(score) == {name: plain[name] for name in plain if "coverage" not in name}


def test_from_hetero_refuses() -> None:
    data = make_data()
    with pytest.raises(ValueError, match=r"'split' needs to be 'val' or 'test' \(got 'train'\)"):
        FullRanking.from_hetero(data, "train")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'mask_validation' needs split 'test' \(got 'val'\)"):
        FullRanking.from_hetero(data, "val", mask_validation=True)
    del data["user", "interacts", "item"].val_label_index
    FullRanking.from_hetero(data, "test")
    with pytest.raises(ValueError, match=r"the data needs 'val_label_index' on its"):
        FullRanking.from_hetero(data, "val")
    with pytest.raises(ValueError, match=r"the data needs 'val_label_index' on its"):
        FullRanking.from_hetero(data, "test", mask_validation=True)


def test_refuses_bad_arguments() -> None:
    train, val, test = make_pairs()

    def make(held_out: Tensor = test, training: Tensor = train, **kwargs: object) -> FullRanking:
        return FullRanking(held_out, training, NUM_USERS, NUM_ITEMS, **kwargs)  # type: ignore

    for ks in ((), (5, 5), (0,), (2.0,)):
        with pytest.raises(ValueError, match=r"'ks' needs to hold different positive integers"):
            make(ks=ks)
    with pytest.raises(ValueError, match=r"'edge_label_index' needs at least one held-out pair"):
        make(test[:, :0])
    with pytest.raises(ValueError, match=r"'train_edge_index' needs to be int64 of shape .*\[3"):
        make(training=torch.zeros(3, 4).long())
    with pytest.raises(ValueError, match=r"'edge_label_index' needs to be int64 .*float32"):
        make(test.float())
    with pytest.raises(ValueError, match=r"'edge_label_index' needs user ids from 0 to 59 .*60"):
        make(torch.tensor([[60], [0]]))
    with pytest.raises(ValueError, match=r"'also_exclude' needs item ids from 0 to 89 .*-1 to -1"):
        make(also_exclude=torch.tensor([[0], [-1]]))
    user, item = test[:, 4].tolist()
    with pytest.raises(ValueError, match=rf"\(user {user} and item {item} occur twice\)"):
        make(torch.cat([test, test[:, 4:5]], dim=1))
    with pytest.raises(ValueError, match=rf"\(item {item} of user {user} is also in 'train_edge"):
        make(training=torch.cat([train, test[:, 4:5]], dim=1))
    with pytest.raises(ValueError, match=rf"\(item {item} of user {user} is also in 'train_edge"):
        make(also_exclude=torch.cat([val, test[:, 4:5]], dim=1))


def test_refuses_bad_scores_and_lists() -> None:
    train, _, test = make_pairs()
    evaluator = FullRanking(test, train, NUM_USERS, NUM_ITEMS, KS)
    rows = evaluator.users.numel()
    with pytest.raises(ValueError, match=rf"\[{rows}, 90\] .*\[{rows}, 89\]"):
        evaluator(lambda users: torch.zeros(users.numel(), NUM_ITEMS - 1))
    with pytest.raises(ValueError, match=r"got NaN"):
        evaluator(lambda users: torch.full((users.numel(), NUM_ITEMS), torch.nan))
    with pytest.raises(ValueError, match=rf"'items' needs to be int64 of shape \[{rows}, 20\]"):
        evaluator.measure(torch.zeros(rows, 10, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"'items' needs ids from -1 to 89 \(got 0 to 90\)"):
        items = torch.zeros(rows, 20, dtype=torch.int64)
        items[2, 3] = 90
        evaluator.measure(items)


def test_to_and_repr() -> None:
    train, _, test = make_pairs()
    evaluator = FullRanking(test, train, NUM_USERS, NUM_ITEMS, (5,), coverage=False)
    assert evaluator.to("cpu") is evaluator
    users = evaluator.users.numel()
    assert repr(evaluator) == (
        f"FullRanking({users} of 60 users, {test.size(1)} held-out pairs, 90 items, ks=(5,))"
    )
    meta = evaluator.to("meta")
    tensors = [value for value in vars(meta).values() if isinstance(value, Tensor)]
    assert len(tensors) >= 4 and len(meta._popular) == 2
    tensors += [*meta._exclude, *(tensor for part in meta._popular for tensor in part)]
    assert all(tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("baby", (0.0189, 0.0295, 0.0495)),
        ("sports", (0.0120, 0.0180, 0.0287)),
        ("clothing", (0.0053, 0.0086, 0.0150)),
    ],
)
def test_most_popular_on_real_data(
    data_root: Path, name: str, expected: tuple[float, float, float]
) -> None:
    path = data_root / name / f"{name}.inter"
    if not path.exists():
        pytest.skip(f"no data set '{name}' in PYG_MMREC_DATA")
    frame = pd.read_csv(path, sep="\t")
    pairs = torch.from_numpy(frame[["userID", "itemID"]].to_numpy().T.copy())
    label = torch.from_numpy(frame["x_label"].to_numpy().copy())
    num_users, num_items = (pairs.amax(dim=1) + 1).tolist()
    train, test = pairs[:, label == 0], pairs[:, label == 2]
    popularity = torch.bincount(train[1], minlength=num_items).float()
    evaluator = FullRanking(test, train, num_users, num_items, ks=(5, 10, 20))
    metrics = evaluator(InnerProduct(torch.ones(num_users, 1), popularity.view(-1, 1)))
    for k, value in zip((5, 10, 20), expected, strict=True):
        assert round(metrics[f"recall@{k}"], 4) == value


@pytest.mark.parametrize("held_out", [1, 4, 5, 9])
def test_finds_few_and_many_held_out_items_as_pyg_does(held_out):
    generator = torch.Generator().manual_seed(held_out)
    lists = torch.stack([torch.randperm(12, generator=generator)[:6] for _ in range(20)])
    items = torch.stack([torch.randperm(12, generator=generator)[:held_out] for _ in range(20)])
    row = torch.arange(20).repeat_interleave(held_out)
    label_index = torch.stack([row, items.flatten()])
    lists[3] = 12  # of absent items: a row without a hit
    expected = LinkPredMetricData(lists, label_index)
    rows, found = full_ranking._lists_with_hits(lists, label_index)
    assert torch.equal(rows, expected.pred_rel_mat.any(1).nonzero()[:, 0])
    assert rows.numel() < 20
    assert torch.equal(found.pred_rel_mat, expected.pred_rel_mat[rows])
    assert torch.equal(found.label_count, expected.label_count[rows])


def test_nothing_found_is_zero_everywhere():
    held_out = torch.tensor([[0, 0, 2], [1, 2, 3]])
    train = torch.tensor([[0, 1, 2], [0, 1, 0]])  # so that 2 and 3 are cold
    evaluator = FullRanking(held_out, train, num_users=3, num_items=6, ks=(1, 2))
    metrics, users = evaluator.measure(torch.tensor([[5, 4], [4, 5]]), per_user=True)
    assert {name: value for name, value in metrics.items() if "coverage" not in name} == {
        f"{name}@{k}": 0.0
        for k in (1, 2)
        for name in ("recall", "ndcg", "precision", "map", "hit_ratio", "cold_item_recall")
    }
    assert all(torch.equal(value, torch.zeros(2)) for value in users.values())
