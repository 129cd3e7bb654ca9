from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import HeteroData, InMemoryDataset

from .feature_file import ModalityFeatures
from .interaction_file import Interactions
from .multimodal_dataset import to_hetero_data
from .splits import SPLITS, split_labels
from .statistics import statistics

_Array = npt.NDArray[np.float64]

_TASTE_CHANNELS = 16
_MIN_INTERACTIONS = 5
_START, _SPAN = 1_500_000_000, 2 * 365 * 24 * 3600  # seconds

# Tuned so that popularity < interactions < interactions with content by clear margins, and that
# neighbours by all columns are clearly worse than neighbours by the taste columns.
_ITEM_SPREAD = 0.5
_USER_SPREAD = 0.2
_TASTE_STRENGTH = 7.5
_POPULARITY_EXPONENT = 0.7
_TASTE_NOISE = 0.2
_IRRELEVANT_SCALE = 1.5


@dataclass(frozen=True)
class _Size:
    users: int
    items: int
    clusters: int
    mean_interactions: float
    columns: dict[str, tuple[int, int, int]]  # taste, irrelevant, noise


_SIZES = {
    "tiny": _Size(120, 90, 12, 15.0, {"image": (12, 8, 4), "text": (8, 6, 2)}),
    "small": _Size(2000, 1500, 200, 17.0, {"image": (32, 24, 8), "text": (24, 16, 8)}),
}
# Image and text see different parts of the taste that overlap in the middle.
_SEEN = {"image": slice(0, 10), "text": slice(6, 16)}


class PlantedDataset(InMemoryDataset):
    r"""A generated dataset whose truth is known: who likes what, and which feature columns tell.

    Items fall into taste clusters, :math:`t_i = c_{k(i)} + e_i`; a user's taste :math:`t_u` is a
    mixture of three of them. User :math:`u` picks its :math:`n_u` items without replacement with
    probability proportional to :math:`\exp(\beta\, t_u^{\top} t_i + b_i)`, where the popularity
    :math:`\exp(b_i)` and the activity :math:`n_u \geq 5` have long tails. Image and text each
    carry a part of :math:`t_i` (the parts overlap) in some columns, clusters that have nothing to
    do with taste in others, and noise in the rest, so that neighbours by all columns are often
    wrong. A user picks at any time of a stretch of its own, whatever the item.

    The truth is kept in :obj:`data["user"].taste` and :obj:`data["item"].taste`
    :math:`(N, 16)` and in :obj:`data[m].column_kind` :math:`(F_m,)`, int8: 0 taste,
    1 irrelevant structure, 2 noise. Nothing is read or written.

    Args:
        size (str): :obj:`"tiny"` (120 users, 90 items) or :obj:`"small"` (2,000 users,
            1,500 items). (default: :obj:`"small"`)
        seed (int): Seed of everything. (default: :obj:`0`)
        transform (Callable, optional): Applied at every access. (default: :obj:`None`)
        split (str): :obj:`"random"` per user, :obj:`"temporal"` per user,
            :obj:`"global_temporal"` or :obj:`"item_cold_start"`. (default: :obj:`"random"`)

    Raises:
        ValueError: If :obj:`size` or :obj:`split` is unknown or :obj:`seed` negative.
    """

    def __init__(
        self,
        size: str = "small",
        seed: int = 0,
        transform: Callable[[HeteroData], HeteroData] | None = None,
        split: str = "random",
    ) -> None:
        if size not in _SIZES:
            raise ValueError(f"'size' needs to be one of {list(_SIZES)} (got '{size}')")
        if seed < 0:
            raise ValueError(f"'seed' needs to be a non-negative integer (got {seed})")
        splits = [name for name in SPLITS if name != "label"]
        if split not in splits:
            raise ValueError(f"'split' needs to be one of {splits} (got '{split}')")
        super().__init__(None, transform)
        self.size, self.seed, self.split = size, seed, split
        self.data, self.slices = self.collate([_generate(_SIZES[size], seed, split)])

    @property
    def statistics(self) -> dict[str, Any]:
        r"""The counts of :func:`~pyg_mmrec.data.statistics`, before :obj:`transform`."""
        return statistics(self.get(0))

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.size}, seed={self.seed}, split={self.split})"


def _generate(size: _Size, seed: int, split: str) -> HeteroData:
    rng = np.random.Generator(np.random.PCG64(seed))
    centers = rng.standard_normal((size.clusters, _TASTE_CHANNELS))
    item_taste = _unit(
        centers[rng.integers(size.clusters, size=size.items)]
        + _ITEM_SPREAD * rng.standard_normal((size.items, _TASTE_CHANNELS))
    )
    liked = rng.gumbel(size=(size.users, size.clusters)).argsort(axis=1)[:, :3]
    share = rng.dirichlet((2.0, 1.5, 0.5), size=size.users)
    user_taste = _unit(
        np.einsum("uc,ucd->ud", share, centers[liked])
        + _USER_SPREAD * rng.standard_normal((size.users, _TASTE_CHANNELS))
    )
    rank = rng.permutation(size.items)
    popularity = -_POPULARITY_EXPONENT * np.log(rank + 0.02 * size.items)

    user, item = _pick(rng, size, _TASTE_STRENGTH * (user_taste @ item_taste.T) + popularity)
    interactions = Interactions(
        user=torch.from_numpy(user),
        item=torch.from_numpy(item),
        num_users=size.users,
        num_items=size.items,
        time=torch.from_numpy(_times(rng, user, size.users)),
    )
    label = split_labels(interactions, split, seed)

    features, kinds = {}, {}
    for m, columns in size.columns.items():
        x, kinds[m] = _features(rng, item_taste[:, _SEEN[m]], columns, size.clusters)
        features[m] = ModalityFeatures(x)
    data = to_hetero_data(interactions, label, features)
    data["user"].taste = torch.from_numpy(user_taste.astype(np.float32))
    data["item"].taste = torch.from_numpy(item_taste.astype(np.float32))
    for m, kind in kinds.items():
        data[m].column_kind = kind
    return data


def _pick(
    rng: np.random.Generator, size: _Size, score: _Array
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every user's items, drawn without replacement by the Gumbel top-k trick."""
    extra = rng.lognormal(np.log(size.mean_interactions - _MIN_INTERACTIONS) - 0.4, 0.9, size.users)
    count = np.minimum(_MIN_INTERACTIONS + extra.astype(np.int64), size.items // 3)
    order = np.argsort(-(score + rng.gumbel(size=score.shape)), axis=1, kind="stable")
    chosen = np.zeros(score.shape, dtype=bool)
    picked = np.arange(size.items) < count[:, None]
    np.put_along_axis(chosen, order, picked, axis=1)
    user, item = np.nonzero(chosen)
    return user, item


def _times(
    rng: np.random.Generator, user: npt.NDArray[np.int64], num_users: int
) -> npt.NDArray[np.int64]:
    """Seconds: every user is active for a stretch of the two years."""
    begin = rng.random(num_users) * 0.7
    length = 0.05 + 0.25 * rng.random(num_users)
    moment = begin[user] + length[user] * rng.random(user.size)
    return _START + (moment * _SPAN).astype(np.int64)


def _features(
    rng: np.random.Generator, taste: _Array, columns: tuple[int, int, int], clusters: int
) -> tuple[Tensor, Tensor]:
    num_items, (num_taste, num_irrelevant, num_noise) = taste.shape[0], columns
    seen = taste @ rng.standard_normal((taste.shape[1], num_taste))
    seen = seen / seen.std() + _TASTE_NOISE * rng.standard_normal(seen.shape)
    other = rng.standard_normal((clusters, num_irrelevant))
    other = other[rng.integers(clusters, size=num_items)]
    other = _IRRELEVANT_SCALE * (other + 0.4 * rng.standard_normal(other.shape))
    noise = rng.standard_normal((num_items, num_noise))
    kind = np.repeat(np.arange(3, dtype=np.int8), columns)
    order = rng.permutation(kind.size)
    x = np.concatenate([seen, other, noise], axis=1)[:, order]
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(kind[order])


def _unit(x: _Array) -> _Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True)
