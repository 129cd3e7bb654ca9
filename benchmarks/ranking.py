"""Times full-ranking evaluation and negative sampling against the way they are commonly written.

The common way scores users in batches, takes :func:`torch.topk` and then walks over the users in
Python; it draws negative items one by one. Both see the same vectors and must give the same
metrics; coverage, which takes every user's list, is none of them. What either prepares once for
all evaluations or epochs is not timed. Data is generated, of the size of Amazon Baby by default,
unless a data set is given, whose validation split is ranked; so are the vectors, unless they are
those of a finished run::

    python benchmarks/ranking.py
    python benchmarks/ranking.py --users 35598 --items 18357 --interactions 218409
    python benchmarks/ranking.py --root data --dataset baby --vectors runs/baby/vectors.safetensors
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from pyg_mmrec.evaluation import KS, FullRanking
from pyg_mmrec.experiment import Experiment
from pyg_mmrec.retrieval import InnerProduct, top_k
from pyg_mmrec.training import TripletSampler


def generate_pairs(
    num_users: int, num_items: int, interactions: int, held_out: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return different training and held-out pairs, of items with a long-tailed popularity."""
    wanted = interactions + held_out
    if wanted > num_users * num_items // 4:
        raise ValueError(f"{wanted} pairs are too many for {num_users} users, {num_items} items")
    key = torch.empty(0, dtype=torch.int64)
    while key.numel() < wanted:
        user = torch.randint(num_users, (wanted,), generator=generator)
        item = (num_items * torch.rand(wanted, generator=generator) ** 2).long()
        key = torch.cat([key, user * num_items + item]).unique()
    key = key[torch.randperm(key.numel(), generator=generator)[:wanted]]
    pairs = torch.stack([key // num_items, key % num_items])
    return pairs[:, :interactions], pairs[:, interactions:]


def draw_commonly(users: Tensor, liked: Sequence[set[int]], num_items: int) -> Tensor:
    """An item that each user has not interacted with, drawn one by one."""
    drawn = []
    for user in users.tolist():
        item = random.randrange(num_items)
        while item in liked[user]:
            item = random.randrange(num_items)
        drawn.append(item)
    return torch.tensor(drawn)


class CommonRanking:
    """Evaluates with a dense mask per batch, :func:`torch.topk` and a Python loop over users. What
    does not depend on the vectors is prepared once, as in
    :class:`~pyg_mmrec.evaluation.FullRanking`.

    Args:
        held_out (Tensor): Pairs to find, ``[2, num_held_out]``.
        train (Tensor): Pairs to leave out, ``[2, num_train]``.
        num_users (int): Number of users.
        batch_size (int, optional): Users at a time. (default: 4096)
    """

    def __init__(
        self, held_out: Tensor, train: Tensor, num_users: int, batch_size: int = 4096
    ) -> None:
        self.relevant: dict[int, set[int]] = {}
        for user, item in held_out.t().tolist():
            self.relevant.setdefault(user, set()).add(item)
        self.users = torch.tensor(sorted(self.relevant), device=held_out.device)
        row_of = torch.full((num_users,), -1, device=held_out.device)
        row_of[self.users] = torch.arange(self.users.numel(), device=held_out.device)
        row = row_of[train[0]]
        self.batches = []
        for start in range(0, self.users.numel(), batch_size):
            inside = (row >= start) & (row < start + batch_size)
            users = self.users[start : start + batch_size]
            self.batches.append((users, row[inside] - start, train[1][inside]))

    def __call__(self, user_vectors: Tensor, item_vectors: Tensor) -> dict[str, float]:
        """The metrics' means over the users.

        Args:
            user_vectors (Tensor): Vectors of the users, ``[num_users, channels]``.
            item_vectors (Tensor): Vectors of the items, ``[num_items, channels]``.
        """
        return self.measure(self.rank(user_vectors, item_vectors))

    def rank(self, user_vectors: Tensor, item_vectors: Tensor) -> Tensor:
        """The items of each user, best first, ``[users, max(KS)]``."""
        ranked = []
        for users, row, item in self.batches:
            scores = user_vectors[users] @ item_vectors.t()
            scores[row, item] = -1e10
            ranked.append(scores.topk(max(KS)).indices)
        return torch.cat(ranked)

    def measure(self, ranked: Tensor) -> dict[str, float]:
        """The metrics of such lists, the means over the users."""
        sums: dict[str, float] = {}
        rank = np.arange(1, max(KS) + 1)
        discount = 1 / np.log2(rank + 1)
        for user, row in zip(self.users.tolist(), ranked.tolist(), strict=True):
            wanted = self.relevant[user]
            found = np.array([item in wanted for item in row], dtype=float)
            hits = found.cumsum()
            for k in KS:
                best = min(len(wanted), k)
                values = {
                    "recall": hits[k - 1] / len(wanted),
                    "ndcg": (found * discount)[:k].sum() / discount[:best].sum(),
                    "precision": hits[k - 1] / k,
                    "map": (found * hits / rank)[:k].sum() / best,
                    "hit_ratio": float(hits[k - 1] > 0),
                }
                for name, value in values.items():
                    sums[f"{name}@{k}"] = sums.get(f"{name}@{k}", 0.0) + value
        return {name: float(value) / len(self.relevant) for name, value in sums.items()}


def best_seconds(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the least time of :obj:`repeats` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main(arguments: Sequence[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=19_445)
    parser.add_argument("--items", type=int, default=7_050)
    parser.add_argument("--interactions", type=int, default=118_551)
    parser.add_argument("--held-out", type=int, default=21_682)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--root", default="data", help="folder of data set folders")
    parser.add_argument("--dataset", help="a folder's name, which tells the sizes too")
    parser.add_argument("--vectors", help="a run's vectors.safetensors, of the same sizes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="write the result to this JSON file too")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    generator = torch.Generator().manual_seed(options.seed)
    if options.dataset:
        data = Experiment("MostPop", options.dataset, options.root).load()
        options.users, options.items = data["user"].num_nodes, data["item"].num_nodes
        train = data["user", "interacts", "item"].edge_index
        held_out = data["user", "interacts", "item"].val_label_index
        options.interactions, options.held_out = train.size(1), held_out.size(1)
    else:
        train, held_out = generate_pairs(
            options.users, options.items, options.interactions, options.held_out, generator
        )
    if options.vectors:
        vectors = load_file(options.vectors)
        options.channels = vectors["user"].size(1)
        sizes = (len(vectors["user"]), len(vectors["item"]))
        if sizes != (options.users, options.items):
            parser.error(
                f"'{options.vectors}' holds {sizes[0]} users and {sizes[1]} items, the data have "
                f"{options.users} and {options.items}"
            )
    else:
        vectors = {
            "user": torch.randn(options.users, options.channels, generator=generator),
            "item": torch.randn(options.items, options.channels, generator=generator),
        }
    train = train[:, train[0].argsort(stable=True)]  # by user, as data sets are
    train, held_out = train.to(device), held_out.to(device)
    user_vectors, item_vectors = vectors["user"].to(device), vectors["item"].to(device)

    evaluator = FullRanking(held_out, train, options.users, options.items, KS, coverage=False)
    score = InnerProduct(user_vectors, item_vectors)
    ours = evaluator(score)
    rank_commonly = CommonRanking(held_out, train, options.users)
    common = rank_commonly(user_vectors, item_vectors)
    difference = max(abs(ours[name] - value) for name, value in common.items())
    if difference > 1e-4:  # a few swaps of items whose scores differ by rounding
        raise RuntimeError(f"the two ways differ by up to {difference:.2e}")

    def topk_only() -> None:
        for users in evaluator.users.split(4096):
            (user_vectors[users] @ item_vectors.t()).topk(max(KS))

    def ours_only() -> None:
        top_k(score, evaluator.users, max(KS))

    ranked = rank_commonly.rank(user_vectors, item_vectors)
    liked: list[set[int]] = [set() for _ in range(options.users)]
    for user, item in train.t().tolist():
        liked[user].add(item)
    sampler = TripletSampler(train, options.users, options.items)
    draws = torch.Generator(device).manual_seed(options.seed)

    def draw_epoch() -> None:
        for _ in sampler.epoch(2048, draws):
            pass

    def time_of(function: Callable[[], object]) -> float:
        return best_seconds(function, options.repeats, device)

    compared: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        (
            "full ranking",
            lambda: rank_commonly(user_vectors, item_vectors),
            lambda: evaluator(score),
        ),
        ("top-k, beside torch.topk in batches of 4096", topk_only, ours_only),
        (
            "metrics of given lists",
            lambda: rank_commonly.measure(ranked),
            lambda: evaluator.measure(ranked),
        ),
        (
            "negatives of all interactions",
            lambda: draw_commonly(train[0], liked, options.items),
            lambda: sampler.negatives(train[0], draws),
        ),
        (
            "beside an epoch, in order and with its items",
            lambda: draw_commonly(train[0], liked, options.items),
            draw_epoch,
        ),
    ]
    seconds = {
        name: {"common": time_of(commonly), "ours": time_of(ours_way)}
        for name, commonly, ours_way in compared
    }

    result: dict[str, object] = {
        "config": vars(options),
        "seconds": seconds,
        "ratios": {name: both["common"] / both["ours"] for name, both in seconds.items()},
        "largest_metric_difference": difference,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for name, both in seconds.items():
        print(
            f"{name:<46}{both['common']:8.4f} s commonly,{both['ours']:8.4f} s ours: "
            f"{both['common'] / both['ours']:.1f} times as fast"
        )
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
    return result


if __name__ == "__main__":
    main()
