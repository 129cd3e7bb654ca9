"""Training triplets with one sampled negative item for each interaction."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from pyg_mmrec.argument_checks import check_positive
from pyg_mmrec.nn.backbones import Triplets

# Interactions handled at a time, and (batch, item) pairs of which is kept whether they occur.
_ROWS_AT_A_TIME = 2**20
_ITEMS_AT_A_TIME = 2**24


class TripletSampler:
    r"""Draws, for every training interaction, an item that the user has not interacted with.

    Negatives are uniform over the items that occur in training, less the user's own. Instead of
    drawing until one fits, a number below the count of a user's free items is drawn once and the
    free item of that rank is found by binary search: one exact pass without rejection, on whatever
    device the interactions are.

    Args:
        edge_index (torch.Tensor): Training interactions (user, item), ``[2, num_edges]``.
        num_users (int): Number of users.
        num_items (int): Number of items.

    Raises:
        ValueError: If there are no interactions, or a user has interacted with every item, so
            that no negative exists.
    """

    def __init__(self, edge_index: Tensor, num_users: int, num_items: int) -> None:
        if edge_index.size(1) == 0:
            raise ValueError("'edge_index' needs at least one training interaction (got none)")
        user, item = edge_index
        self.edge_index = edge_index
        self._num_items = num_items
        device = edge_index.device
        #: The items that occur in training, by rank.
        self.candidates = item.unique()
        num_candidates = self.candidates.numel()
        rank_of_item = torch.zeros(num_items, dtype=torch.long, device=device)
        rank_of_item[self.candidates] = torch.arange(num_candidates, device=device)

        # A user's own items, by rank: the r-th free rank is r + p, where p own items have at most
        # r free ranks below them. Own item number p at rank t has t - p free ranks below it.
        user_rank = (user * num_candidates + rank_of_item[item]).unique()
        user, rank = user_rank // num_candidates, user_rank % num_candidates
        degree = torch.bincount(user, minlength=num_users)
        self._first = degree.cumsum(0) - degree
        place = torch.arange(user.numel(), device=device) - self._first[user]
        self._stride = num_candidates + 1
        self._free_below = user * self._stride + rank - place
        self.num_free = num_candidates - degree
        if int(self.num_free.min()) < 1:
            raise ValueError(
                f"user {int(self.num_free.argmin())} has interacted with all {num_candidates} "
                f"items that occur in training, so no negative item exists"
            )

    def negatives(self, user: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws one negative item for each of ``user`` ``[n]``; item ids ``[n]``."""
        return self._free_item(user, self._uniform(user.numel(), generator))

    def _uniform(self, count: int, generator: torch.Generator | None) -> Tensor:
        device = self.edge_index.device
        return torch.rand(count, dtype=torch.float64, device=device, generator=generator)

    def _free_item(self, user: Tensor, uniform: Tensor) -> Tensor:
        free = self.num_free[user]
        drawn = torch.minimum((uniform * free).long(), free - 1)
        end = torch.searchsorted(self._free_below, user * self._stride + drawn, right=True)
        return self.candidates[drawn + end - self._first[user]]

    def epoch(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[Triplets]:
        """Batches of all interactions in random order, each with a fresh negative item.

        Args:
            batch_size (int): Interactions in each batch but the last.
            generator (torch.Generator, optional): On the interactions' device.

        Raises:
            ValueError: If ``batch_size`` is not a positive integer.
        """
        check_positive("batch_size", batch_size)
        user = self.edge_index[0]
        order = torch.randperm(user.numel(), device=user.device, generator=generator)
        # Searched in the order of the interactions: where it is by user, that takes half the time.
        uniform = self._uniform(user.numel(), generator)
        uniform = torch.empty_like(uniform).index_copy_(0, order, uniform)
        negative = self._free_item(user, uniform)
        triplets = torch.cat([self.edge_index, negative[None]])[:, order]
        count = max(1, min(_ROWS_AT_A_TIME // batch_size, _ITEMS_AT_A_TIME // self._num_items))
        parts = triplets.split(count * batch_size, dim=1)
        return chain.from_iterable(self._batches(part, batch_size) for part in parts)

    def _batches(self, triplets: Tensor, batch_size: int) -> Iterator[Triplets]:
        """Finds the items of many batches at once: a device is waited for by part, not by batch."""
        row = torch.arange(triplets.size(1), device=triplets.device) // batch_size
        key = row * self._num_items + triplets[1:]
        num_batches = -(-triplets.size(1) // batch_size)
        occurs = key.new_zeros(num_batches, self._num_items, dtype=torch.bool)
        occurs.view(-1).index_fill_(0, key.view(-1), True)
        rank = occurs.cumsum(dim=1)
        places = rank.view(-1)[key] - 1
        return map(
            Triplets,
            *(ids.split(batch_size) for ids in triplets),
            occurs.nonzero()[:, 1].contiguous().split(rank[:, -1].tolist()),
            (part.flatten() for part in places.split(batch_size, dim=1)),
        )
