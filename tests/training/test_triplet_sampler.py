from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from pyg_mmrec.nn.backbones import Triplets
from pyg_mmrec.training import TripletSampler

NUM_USERS, NUM_ITEMS = 4, 9
# Items 4 and 8 occur in no interaction, and user 2 has none.
PAIRS = [(0, 1), (0, 2), (0, 7), (1, 0), (3, 0), (3, 1), (3, 2), (3, 3), (3, 5), (3, 6)]
CANDIDATES = {0, 1, 2, 3, 5, 6, 7}


def tiny() -> TripletSampler:
    return TripletSampler(torch.tensor(PAIRS).t(), NUM_USERS, NUM_ITEMS)


@pytest.mark.parametrize("user", range(NUM_USERS))
def test_uniform_over_exactly_the_allowed_items(user: int) -> None:
    allowed = sorted(CANDIDATES - {item for owner, item in PAIRS if owner == user})
    generator = torch.Generator().manual_seed(user)
    drawn = tiny().negatives(torch.full((7000,), user), generator)
    count = torch.bincount(drawn, minlength=NUM_ITEMS)
    assert count.nonzero().view(-1).tolist() == allowed
    if len(allowed) > 1:
        assert chisquare(count[allowed].numpy()).pvalue > 1e-3


def test_draws_are_independent_of_each_other() -> None:
    # Pairs of successive draws of one user are uniform over all pairs of its free items.
    drawn = tiny().negatives(torch.zeros(16000, dtype=torch.long), torch.Generator().manual_seed(5))
    pairs = drawn.view(-1, 2)
    count = torch.bincount(pairs[:, 0] * NUM_ITEMS + pairs[:, 1])
    count = count[count > 0]
    assert count.numel() == 16
    assert chisquare(count.numpy()).pvalue > 1e-3


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(2, 12))
def test_never_a_training_item_nor_an_unseen_one(
    data: st.DataObject, num_users: int, num_items: int
) -> None:
    pair = st.tuples(st.integers(0, num_users - 1), st.integers(0, num_items - 1))
    pairs = data.draw(st.sets(pair, min_size=1))
    edge_index = torch.tensor(data.draw(st.permutations(sorted(pairs)))).t()
    seen = {item for _, item in pairs}
    full = [u for u in range(num_users) if {i for v, i in pairs if v == u} == seen]
    if full:
        with pytest.raises(ValueError, match=rf"user {full[0]} has interacted with all"):
            TripletSampler(edge_index, num_users, num_items)
        return
    sampler = TripletSampler(edge_index, num_users, num_items)
    user = torch.arange(num_users).repeat(8)
    drawn = sampler.negatives(user, torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    for u, item in zip(user.tolist(), drawn.tolist(), strict=True):
        assert item in seen and (u, item) not in pairs


def test_every_interaction_once_in_an_epoch_in_another_order_each_time() -> None:
    sampler, generator = tiny(), torch.Generator().manual_seed(0)
    size = len(PAIRS)
    (first,), (second,) = sampler.epoch(size, generator), sampler.epoch(size, generator)
    for epoch in (first, second):
        pairs = list(zip(epoch.user.tolist(), epoch.positive.tolist(), strict=True))
        assert sorted(pairs) == sorted(PAIRS)
        negatives = zip(epoch.user.tolist(), epoch.negative.tolist(), strict=True)
        assert not set(negatives) & set(PAIRS)
    assert not torch.equal(first.user * 9 + first.positive, second.user * 9 + second.positive)


@pytest.mark.parametrize("rows", [1, 8, 2**20])
@pytest.mark.parametrize("items", [1, 2**24])
def test_batches_know_their_items(monkeypatch: pytest.MonkeyPatch, rows: int, items: int) -> None:
    monkeypatch.setattr("pyg_mmrec.training.triplet_sampler._ROWS_AT_A_TIME", rows)
    monkeypatch.setattr("pyg_mmrec.training.triplet_sampler._ITEMS_AT_A_TIME", items)
    (whole,) = tiny().epoch(len(PAIRS), torch.Generator().manual_seed(5))
    found_batches = list(tiny().epoch(3, torch.Generator().manual_seed(5)))
    assert [batch.user.numel() for batch in found_batches] == [3, 3, 3, 1]
    for name in ("user", "positive", "negative"):
        assert torch.equal(torch.cat([vars(b)[name] for b in found_batches]), vars(whole)[name])
    for batch in found_batches:
        found = Triplets(batch.user, batch.positive, batch.negative)
        assert torch.equal(batch.items, found.items) and torch.equal(batch.places, found.places)
        assert batch.items.is_contiguous()


def test_reproducible_by_generator() -> None:
    def fields(seed: int) -> list[int]:
        (epoch,) = tiny().epoch(len(PAIRS), torch.Generator().manual_seed(seed))
        return torch.cat([epoch.user, epoch.positive, epoch.negative]).tolist()

    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert fields(3) == fields(3) != fields(4)
    assert torch.equal(torch.get_rng_state(), state), "the global generator has moved"


def test_repeated_pairs_do_not_disturb_the_draw() -> None:
    repeated = torch.tensor([*PAIRS, (0, 1), (0, 1), (0, 7)]).t()
    user = torch.zeros(500, dtype=torch.long)
    once = tiny().negatives(user, torch.Generator().manual_seed(2))
    twice = TripletSampler(repeated, NUM_USERS, NUM_ITEMS).negatives(
        user, torch.Generator().manual_seed(2)
    )
    assert torch.equal(once, twice)


def test_no_interaction_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one training interaction"):
        TripletSampler(torch.empty(2, 0, dtype=torch.long), 3, 3)


def test_user_with_every_item_is_refused() -> None:
    # Item 5 exists but occurs in no interaction, so it is no negative.
    edge_index = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 2]])
    with pytest.raises(ValueError, match="user 1 has interacted with all 3 items that occur"):
        TripletSampler(edge_index, 2, 6)


@pytest.mark.parametrize("size", [0, -3, 2.0])
def test_a_wrong_batch_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="'batch_size' needs to be a positive integer"):
        tiny().epoch(size)
