"""Full ranking of the users who may find something, beside that of all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyg_mmrec.evaluation import FullRanking, full_ranking
from pyg_mmrec.retrieval import InnerProduct

NUM_USERS, NUM_ITEMS = 320, 900


def make_long_tailed() -> tuple[Tensor, Tensor, Tensor]:
    """Different training, validation and test pairs, mostly of the items with low ids. The last
    items and users have no training pair, every third user has no test pair, and the most popular
    items are each a validation item of every second user.
    """
    generator = torch.Generator().manual_seed(4)
    user = torch.randint(NUM_USERS, (9000,), generator=generator)
    item = (NUM_ITEMS * torch.rand(9000, generator=generator) ** 4).long()
    favourite = (torch.arange(NUM_USERS) % 2 == 0).view(-1, 1) & (torch.arange(NUM_ITEMS) < 6)
    favourite = favourite.nonzero()
    val_key = favourite[:, 0] * NUM_ITEMS + favourite[:, 1]
    key = (user * NUM_ITEMS + item).unique()
    key = key[~torch.isin(key, val_key)]
    key = key[torch.randperm(key.numel(), generator=generator)]
    pairs = torch.stack([key // NUM_ITEMS, key % NUM_ITEMS])
    train, test = pairs[:, 3000:], pairs[:, :3000]
    train = train[:, (train[0] < 300) & (train[1] < 600)]
    return train, favourite.t(), test[:, test[0] % 3 > 0]


def assert_coverage_does_not_matter(
    score: Callable[[Tensor], Tensor],
    ks: tuple[int, ...] = (1, 5),
    chunk_size: int | None = None,
) -> FullRanking:
    """Whether metrics, also every user's, are the same to the last digit; returns the evaluator."""
    train, val, test = make_long_tailed()
    arguments = (test, train, NUM_USERS, NUM_ITEMS, ks, val, chunk_size)
    expected, expected_users = FullRanking(*arguments)(score, per_user=True)
    evaluator = FullRanking(*arguments, coverage=False)
    metrics, users = evaluator(score, per_user=True)
    assert metrics == {name: expected[name] for name in expected if "coverage" not in name}
    assert len(metrics) == len(expected) - len(ks)
    assert any(name.startswith("cold") for name in metrics)
    assert users.keys() == expected_users.keys()
    assert all(torch.equal(users[name], expected_users[name]) for name in users)
    return evaluator


def whole_numbers(largest: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Vectors whose products are exact whatever the order of summation."""
    generator = torch.Generator().manual_seed(5)
    user, item = (
        torch.randint(-largest, largest + 1, (size, 8), generator=generator).to(dtype)
        for size in (NUM_USERS, NUM_ITEMS)
    )
    return user, item


@pytest.mark.parametrize(("vectors", "share"), [("any", 0.55), ("popular", 0.6), ("tied", 0.7)])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("chunk_size", [None, 37])
def test_most_users_are_not_ranked(
    monkeypatch: pytest.MonkeyPatch,
    vectors: str,
    share: float,
    dtype: torch.dtype,
    chunk_size: int | None,
) -> None:
    monkeypatch.setattr(full_ranking, "_PAIRS_AT_A_TIME", chunk_size or 2**14)
    user, item = whole_numbers(1 if vectors == "tied" else 60, dtype)
    if vectors == "popular":
        user[:, 0], item[:60, 0], item[:6, 0] = 60, 180, 250  # six are excluded for many
    score = InnerProduct(user, item)
    evaluator = assert_coverage_does_not_matter(score, (1, 5), chunk_size)

    sizes = []
    call = InnerProduct.__call__

    def counted(self: InnerProduct, users: Tensor, out: Tensor | None = None) -> Tensor:
        scores = call(self, users, out)
        sizes.append(scores.numel())
        return scores

    monkeypatch.setattr(InnerProduct, "__call__", counted)
    evaluator(score)
    assert sum(sizes) < share * evaluator.users.numel() * NUM_ITEMS


def test_whatever_the_vectors() -> None:
    user, item = whole_numbers(60)
    nowhere = torch.zeros_like(item)
    nowhere[600:] = -1.0  # what is held out of other items is never among the best
    for vectors in ((user * 0, item), (user, item * 0), (user.abs(), nowhere)):
        assert_coverage_does_not_matter(InnerProduct(*vectors))
    assert_coverage_does_not_matter(InnerProduct(user, item), ks=(300,))  # longer than the parts
    generator = torch.Generator().manual_seed(8)
    for scale in (1.0, 1e-25, 1e15):  # of the second, squares underflow
        user = torch.rand(NUM_USERS, 8, generator=generator)
        item = torch.rand(30, 8, generator=generator)[torch.arange(NUM_ITEMS) % 30]
        assert_coverage_does_not_matter(InnerProduct(user * scale, item))
        assert_coverage_does_not_matter(InnerProduct(user, item * scale))


def test_all_users_may_be_passed_over() -> None:
    train, _, test = make_long_tailed()
    user, item = torch.ones(NUM_USERS, 2), torch.zeros(NUM_ITEMS, 2)
    item[:100] = 1.0
    test = test[:, test[1] >= 100]
    evaluator = FullRanking(test, train, NUM_USERS, NUM_ITEMS, (2,), coverage=False)
    assert set(evaluator(InnerProduct(user, item)).values()) == {0.0}


def test_rounding_loses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    # As a processor may multiply: on vectors in bfloat16, whose steps are as large as differences.
    def rounded(self: InnerProduct, users: Tensor, out: Tensor | None = None) -> Tensor:
        user, item = self.user_vectors[users].bfloat16(), self.item_vectors.bfloat16()
        return torch.mm(user.double(), item.double().t()).float()

    monkeypatch.setattr(InnerProduct, "__call__", rounded)
    generator = torch.Generator().manual_seed(7)
    user = torch.randn(NUM_USERS, 8, generator=generator)
    item = 1 + 0.003 * torch.randn(NUM_ITEMS, 8, generator=generator)
    item[:112, 0] += 0.01
    user[:, 0] = 2
    assert_coverage_does_not_matter(InnerProduct(user, 64 * item), ks=(20,))


def test_other_scores_are_ranked_in_full() -> None:
    user, item = whole_numbers(60)

    class Biased(InnerProduct):
        def __call__(self, users: Tensor, out: Tensor | None = None) -> Tensor:
            return super().__call__(users, out).add_(1000 * torch.arange(NUM_ITEMS))

    assert_coverage_does_not_matter(Biased(user, item))
    scores = user @ item.t()
    assert_coverage_does_not_matter(lambda users: scores[users])


@pytest.mark.parametrize("where", ["user", "item"])
@pytest.mark.parametrize("row", [1, 310])
def test_vectors_that_are_no_numbers(where: str, row: int) -> None:
    train, _, test = make_long_tailed()
    vectors = dict(zip(("user", "item"), whole_numbers(60), strict=True))
    test = torch.cat([test, torch.tensor([[row], [899]])], dim=1).unique(dim=1)
    arguments = (test, train, NUM_USERS, NUM_ITEMS, (5,))
    vectors[where][row, 1] = torch.inf
    vectors["item" if where == "user" else "user"][:, 1] += 0.5  # no infinity times zero
    score = InnerProduct(vectors["user"], vectors["item"])
    expected = FullRanking(*arguments)(score)
    metrics = FullRanking(*arguments, coverage=False)(score)
    assert metrics == {name: expected[name] for name in expected if "coverage" not in name}
    vectors[where][row, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        FullRanking(*arguments, coverage=False)(InnerProduct(vectors["user"], vectors["item"]))


def test_refuses_vectors_of_others() -> None:
    train, _, test = make_long_tailed()
    evaluator = FullRanking(test, train, NUM_USERS, NUM_ITEMS, (5,), coverage=False)
    with pytest.raises(ValueError, match=r"'score' needs to return .* shape \[\d+, 900\]"):
        evaluator(InnerProduct(torch.ones(NUM_USERS, 2), torch.ones(NUM_ITEMS - 1, 2)))
    with pytest.raises(ValueError, match="'users' needs ids below 3, the number of user vectors"):
        evaluator(InnerProduct(torch.ones(3, 2), torch.ones(NUM_ITEMS, 2)))
