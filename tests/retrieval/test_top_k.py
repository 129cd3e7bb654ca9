from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyg_mmrec.retrieval import InnerProduct, top_k


def to_csr(pairs: list[tuple[int, int]], num_users: int) -> tuple[Tensor, Tensor]:
    items = [[item for user, item in pairs if user == row] for row in range(num_users)]
    rowptr = torch.tensor([0] + [len(row) for row in items]).cumsum(0)
    return rowptr, torch.tensor([item for row in items for item in row], dtype=torch.int64)


def reference(
    scores: Tensor, users: Tensor, k: int, excluded: list[tuple[int, int]]
) -> tuple[list[list[float]], list[list[int]]]:
    values, items = [], []
    for user in users.tolist():
        row = scores[user].tolist()
        gone = {item for owner, item in excluded if owner == user}
        best = [i for i in range(len(row)) if i not in gone and row[i] > -torch.inf]
        best = sorted(best, key=lambda i: (-row[i], i))[:k]
        values.append([row[i] for i in best] + [-torch.inf] * (k - len(best)))
        items.append(best + [-1] * (k - len(best)))
    return values, items


def random_pairs(num_users: int, num_items: int, count: int, seed: int) -> list[tuple[int, int]]:
    generator = torch.Generator().manual_seed(seed)
    key = torch.randperm(num_users * num_items, generator=generator)[:count].tolist()
    return [(i // num_items, i % num_items) for i in key]


def assert_equal(actual: tuple[Tensor, Tensor], expected: tuple[list, list]) -> None:
    assert actual[0].tolist() == expected[0]
    assert actual[1].tolist() == expected[1]


# Few items are sorted directly, many go through blocks (from 16 * (k + 1) items on).
@pytest.mark.parametrize(("num_items", "k"), [(12, 3), (160, 9), (161, 9), (500, 4), (803, 10)])
@pytest.mark.parametrize("levels", [1, 2, 5, 40, None])
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_equals_reference(
    num_items: int, k: int, levels: int | None, chunk_size: int | None
) -> None:
    generator = torch.Generator().manual_seed(num_items + k)
    num_users = 25
    if levels is None:
        scores = torch.randn(num_users, num_items, generator=generator)
    else:  # the fewer levels, the more ties
        scores = torch.randint(levels, (num_users, num_items), generator=generator).float()
    excluded = random_pairs(num_users, num_items, 4 * num_users, seed=1)
    users = torch.randint(num_users, (30,), generator=generator)  # any order, some twice
    actual = top_k(
        lambda chunk: scores[chunk],
        users,
        k,
        exclude=to_csr(excluded, num_users),
        chunk_size=chunk_size,
    )
    assert_equal(actual, reference(scores, users, k, excluded))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_equals_reference_on_any_size(data: st.DataObject) -> None:
    num_users, num_items = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 90))
    k, levels = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 6))
    seed = data.draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (num_users, num_items), generator=generator).float()
    scores[scores == 3] = -torch.inf
    count = data.draw(st.integers(0, num_users * num_items))
    excluded = random_pairs(num_users, num_items, count, seed)
    users = torch.arange(num_users)
    exclude = to_csr(excluded, num_users)
    actual = top_k(lambda chunk: scores[chunk], users, k, exclude=exclude, chunk_size=2)
    assert_equal(actual, reference(scores, users, k, excluded))


def test_tie_at_last_place_reaches_blocks_that_were_not_chosen() -> None:
    # One item is best, all others are equal: any item may fill the list, the lowest ids must.
    scores = torch.zeros(1, 1000)
    scores[0, 777] = 1.0
    values, items = top_k(lambda chunk: scores[chunk], torch.tensor([0]), 4)
    assert items.tolist() == [[777, 0, 1, 2]]
    assert values.tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_negative_zero_ties_with_zero() -> None:
    scores = torch.tensor([[-0.0, 0.0, -1.0, 0.0]])
    assert top_k(lambda chunk: scores[chunk], torch.tensor([0]), 3)[1].tolist() == [[0, 1, 3]]


def test_positive_infinity_comes_first() -> None:
    scores = torch.tensor([[0.0, torch.inf, 2.0, torch.inf]])
    assert top_k(lambda chunk: scores[chunk], torch.tensor([0]), 3)[1].tolist() == [[1, 3, 2]]


def test_too_few_candidates_are_padded() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, -torch.inf]])
    exclude = to_csr([(0, 0), (1, 0), (1, 1)], 2)
    values, items = top_k(lambda chunk: scores[chunk], torch.arange(2), 5, exclude=exclude)
    assert items.tolist() == [[2, 1, -1, -1, -1], [-1] * 5]
    infinity = -torch.inf
    assert values.tolist() == [[2.0, 1.0, infinity, infinity, infinity], [infinity] * 5]


@pytest.mark.parametrize("num_items", [6, 400])
def test_does_not_write_to_the_callers_scores(num_items: int) -> None:
    scores = torch.randn(4, num_items, generator=torch.Generator().manual_seed(0))
    popularity = torch.arange(num_items).float()
    before = scores.clone()
    exclude = to_csr([(0, num_items - 1), (2, 1)], 4)
    users = torch.arange(4)
    top_k(lambda chunk: scores, users, 2, exclude=exclude)
    assert torch.equal(scores, before)
    # Views: one row for all users, and columns in memory order.
    _, items = top_k(lambda chunk: popularity.expand(4, -1), users, 1, exclude=exclude)
    assert items.tolist() == [[num_items - 2]] + [[num_items - 1]] * 3
    transposed = scores.t().contiguous().t()
    _, items = top_k(lambda chunk: transposed, users, 2, exclude=exclude)
    assert_equal(
        (scores, items),
        (before.tolist(), reference(before, users, 2, [(0, num_items - 1), (2, 1)])[1]),
    )


def test_inner_product_equals_any_callable() -> None:
    generator = torch.Generator().manual_seed(2)
    # Small whole numbers: exact whatever the order of summation, and full of ties.
    user_vectors = torch.randint(-2, 3, (40, 8), generator=generator).float()
    item_vectors = torch.randint(-2, 3, (700, 8), generator=generator).float()
    scores = user_vectors @ item_vectors.t()
    excluded = random_pairs(40, 700, 300, seed=3)
    exclude, users = to_csr(excluded, 40), torch.arange(40).flip(0)
    expected = reference(scores, users, 10, excluded)
    inner_product = InnerProduct(user_vectors.requires_grad_(), item_vectors)
    for chunk_size in (None, 1, 9, 40, 1000):
        actual = top_k(inner_product, users, 10, exclude=exclude, chunk_size=chunk_size)
        assert not actual[0].requires_grad
        assert_equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_vectors_are_scored_in_single(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    user_vectors = torch.randn(20, 16, generator=generator).to(dtype)
    item_vectors = torch.randn(500, 16, generator=generator).to(dtype)
    values, items = top_k(InnerProduct(user_vectors, item_vectors), torch.arange(20), 5)
    assert values.dtype == torch.float32
    expected = (user_vectors.double() @ item_vectors.double().t()).topk(5)
    assert torch.equal(items, expected.indices)
    assert torch.allclose(values.double(), expected.values, rtol=1e-5)


def test_half_precision_scores() -> None:
    scores = torch.randn(10, 600, generator=torch.Generator().manual_seed(5)).bfloat16()
    users = torch.arange(10)
    values, items = top_k(lambda chunk: scores[chunk], users, 12)
    assert values.dtype == torch.bfloat16
    assert_equal((values, items), reference(scores, users, 12, []))


def test_no_users() -> None:
    values, items = top_k(lambda chunk: torch.zeros(len(chunk), 3), torch.empty(0).long(), 4)
    assert values.shape == items.shape == (0, 4)
    assert items.dtype == torch.int64


@pytest.mark.parametrize("num_items", [5, 300])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_refuses_nan(num_items: int, chunk_size: int | None) -> None:
    scores = torch.zeros(5, num_items)
    scores[3, num_items - 1] = torch.nan
    with pytest.raises(ValueError, match=r"'score' needs to return numbers \(got NaN\)"):
        top_k(lambda chunk: scores[chunk], torch.arange(5), 2, chunk_size=chunk_size)


def test_excluded_pairs_are_the_rows_they_make() -> None:
    generator = torch.Generator().manual_seed(0)
    score = InnerProduct(
        torch.randn(9, 4, generator=generator), torch.randn(30, 4, generator=generator)
    )
    pairs = torch.rand(7, 30, generator=generator).gt(0.6).nonzero().t()  # of the first 7 users
    pairs = pairs[:, torch.randperm(pairs.size(1), generator=generator)]
    users = torch.tensor([8, 0, 6, 3])
    values, items = top_k(score, users, 5, exclude=pairs)
    scores = score(torch.arange(9))
    scores[pairs[0], pairs[1]] = -torch.inf
    torch.testing.assert_close(values, scores[users].topk(5).values)
    assert torch.equal(items, scores[users].topk(5).indices)
    nothing = torch.empty(2, 0, dtype=torch.int64)
    assert torch.equal(top_k(score, users, 5, exclude=nothing)[1], top_k(score, users, 5)[1])


def test_k_may_be_any_integer() -> None:
    score = InnerProduct(torch.eye(3), torch.eye(3))
    users = torch.arange(3)
    for ours, theirs in zip(top_k(score, users, np.int64(2)), top_k(score, users, 2), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match=r"'users' needs to be a tensor of ids \(got list\)"):
        top_k(score, [0, 1], 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'k' needs to be a positive integer \(got True\)"):
        top_k(score, users, True)


def test_refuses_bad_arguments() -> None:
    scores = torch.zeros(4, 6)
    users = torch.arange(4)
    exclude = (torch.tensor([0, 1, 1, 1, 2]), torch.tensor([2, 3]))

    def score(chunk: Tensor) -> Tensor:
        return scores[chunk]

    with pytest.raises(ValueError, match=r"'k' needs to be a positive integer \(got 0\)"):
        top_k(score, users, 0)
    with pytest.raises(ValueError, match=r"'k' needs to be a positive integer \(got 2.0\)"):
        top_k(score, users, 2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'chunk_size' needs to be a positive integer \(got -1\)"):
        top_k(score, users, 1, chunk_size=-1)
    with pytest.raises(ValueError, match=r"'users' needs to be a vector of int64 ids .*float32"):
        top_k(score, users.float(), 1)
    with pytest.raises(ValueError, match=r"'users' needs to be a vector of int64 ids .*\[4, 1\]"):
        top_k(score, users.view(4, 1), 1)
    with pytest.raises(ValueError, match=r"'users' needs ids from 0 to 3.*got 4"):
        top_k(score, torch.arange(5), 1, exclude=exclude)
    with pytest.raises(ValueError, match=r"'users' needs ids of 0 or more \(got -1\)"):
        top_k(score, torch.tensor([2, -1]), 1)
    with pytest.raises(ValueError, match=r"'users' needs ids below 4.*\(got 4\)"):
        top_k(InnerProduct(torch.ones(4, 2), torch.ones(6, 2)), torch.arange(5), 1)
    with pytest.raises(ValueError, match=r"'exclude' needs to be int64 of shape .*\[3, 1\]"):
        top_k(score, users, 1, exclude=torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"'exclude' needs non-negative user ids \(got -2\)"):
        top_k(score, users, 1, exclude=torch.tensor([[-2], [0]]))
    with pytest.raises(ValueError, match=r"'exclude' needs to be a pair .*\[5\] and \[1\]"):
        top_k(score, users, 1, exclude=(exclude[0], exclude[1][:1]))
    with pytest.raises(ValueError, match=r"'exclude' needs item ids below 6.*got 6"):
        top_k(score, users, 1, exclude=(exclude[0], torch.tensor([2, 6])))
    with pytest.raises(ValueError, match=r"'exclude' needs non-negative item ids \(got -1\)"):
        top_k(score, users, 1, exclude=(exclude[0], torch.tensor([-1, 3])))
    with pytest.raises(ValueError, match=r"'score' needs to return .* \[4, 7\] .*\[4, 6\]"):
        top_k(score, users, 1, num_items=7)
    with pytest.raises(ValueError, match=r"'score' needs to return .* \[4, 7\] .*\[4, 6\]"):
        top_k(InnerProduct(torch.ones(4, 2), torch.ones(6, 2)), users, 1, num_items=7)
    with pytest.raises(ValueError, match=r"'score' needs to return floating-point.*int64"):
        top_k(lambda chunk: scores[chunk].long(), users, 1)
    with pytest.raises(ValueError, match=r"'score' needs to return .* \[2, 6\] .*\[4, 6\]"):
        top_k(lambda chunk: scores, users, 1, chunk_size=2)


def test_inner_product_refuses_bad_vectors() -> None:
    with pytest.raises(ValueError, match=r"'item_vectors' needs .*matrix .*\[3\]"):
        InnerProduct(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(ValueError, match=r"'user_vectors' needs .*matrix .*int64"):
        InnerProduct(torch.ones(2, 3).long(), torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"same width and type .*3 of torch.float32 and\s+4 of"):
        InnerProduct(torch.ones(2, 3), torch.ones(5, 4))
    with pytest.raises(ValueError, match=r"same width and type"):
        InnerProduct(torch.ones(2, 3), torch.ones(5, 3).double())


def test_inner_product_repr() -> None:
    vectors = InnerProduct(torch.ones(2, 3), torch.ones(5, 3))
    assert repr(vectors) == "InnerProduct(2 users, 5 items, 3)"
