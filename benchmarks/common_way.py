"""Training and evaluation as public toolboxes write it, to be compared with."""

from __future__ import annotations

import torch
from clock import Clock
from ranking import CommonRanking, draw_commonly
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from pyg_mmrec.data.graph import INTERACTS
from pyg_mmrec.training import Trainer

CHANNELS = 64


class Common:
    """LightGCN, FREEDOM, or LATTICE, as public toolboxes train and rank them, on the CPU.

    Args:
        ours (Trainer): What trains the same here; sizes and options are read from it.
        data (HeteroData): The data.

    Raises:
        ValueError: If ``ours`` is not on the CPU.
    """

    def __init__(self, ours: Trainer, data: HeteroData) -> None:
        if ours.device.type != "cpu":
            raise ValueError(f"'ours' needs to be on the CPU (got '{ours.device}')")
        torch.manual_seed(0)
        self.device, self.options = ours.device, ours.options
        self.model = type(ours.backbone).__name__
        self.num_users, self.num_items = data["user"].num_nodes, data["item"].num_nodes
        store = data[INTERACTS]
        self.train = store.edge_index
        self.rank = CommonRanking(store.val_label_index, self.train, self.num_users)
        self.liked: list[set[int]] = [set() for _ in range(self.num_users)]
        for user, item in self.train.t().tolist():
            self.liked[user].add(item)
        self.num_layers = 2
        self.user = nn.Parameter(torch.empty(self.num_users, CHANNELS))
        self.item = nn.Parameter(torch.empty(self.num_items, CHANNELS))
        nn.init.xavier_uniform_(self.user), nn.init.xavier_uniform_(self.item)
        self.features: dict[str, nn.Parameter] = {}
        self.layers: dict[str, nn.Linear] = {}
        self.reg_weight = float(getattr(ours.backbone, "reg_weight", 0.0))
        self.dropout = float(getattr(ours.backbone, "edge_dropout", 0.0))
        self.clock = Clock(self.device)
        if self.model == "FREEDOM":
            names = list(ours.backbone.modalities)  # type: ignore[union-attr,arg-type]
            found = {name: data[name].x for name in names if "x" in data[name]}
            self.features = {name: nn.Parameter(x.clone()) for name, x in found.items()}
            self.layers = {n: nn.Linear(x.size(1), CHANNELS) for n, x in self.features.items()}
            with self.clock.part("kNN"):
                self.similar = self._similar(
                    [
                        self._neighbours(found[name])
                        if name in found
                        else data[name, "similar", name].edge_index.flip(0)
                        for name in names
                    ]
                )
        parameters = [self.user, self.item, *self.features.values()]
        if self.model == "LATTICE":
            lattice = ours.backbone
            self.original_weight = float(lattice.original_weight)  # type: ignore[arg-type]
            names = list(lattice.modalities)  # type: ignore[arg-type]
            self.features = {name: nn.Parameter(data[name].x.clone()) for name in names}
            self.layers = {n: nn.Linear(x.size(1), CHANNELS) for n, x in self.features.items()}
            self.logits = nn.Parameter(torch.zeros(len(names)))
            parameters += [*self.features.values(), self.logits]
            with self.clock.part("kNN"):
                self.originals = [
                    self._symmetric(self._dense_neighbours(data[name].x)) for name in names
                ]
        parameters += [p for layer in self.layers.values() for p in layer.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=self.options.learning_rate)
        normalized = self._row_normalized if self.model == "LATTICE" else self._normalized
        self.adjacency = normalized(self.train)

    @staticmethod
    def _neighbours(x: Tensor) -> Tensor:
        """Ten neighbours of every item, by a dense matrix of cosines."""
        unit = x / x.norm(dim=1, keepdim=True)
        neighbours = (unit @ unit.t()).topk(10).indices
        rows = torch.arange(x.size(0)).repeat_interleave(10)
        return torch.stack([rows, neighbours.flatten()])

    @staticmethod
    def _dense_neighbours(x: Tensor) -> Tensor:
        """Cosines with the ten neighbours of every item, as a dense matrix."""
        unit = x / x.norm(dim=1, keepdim=True)
        cosine = unit @ unit.t()
        value, index = cosine.topk(10)
        return torch.zeros_like(cosine).scatter(1, index, value)

    @staticmethod
    def _symmetric(dense: Tensor) -> Tensor:
        scale = dense.sum(1).clamp(min=1e-12) ** -0.5
        return scale[:, None] * dense * scale

    def _learned(self) -> Tensor:
        """LATTICE's item graph, a dense matrix."""
        share = self.logits.softmax(0)
        learned = sum(
            a * self._dense_neighbours(layer(self.features[name]))
            for a, (name, layer) in zip(share, self.layers.items(), strict=True)
        )
        original = sum(a * dense for a, dense in zip(share, self.originals, strict=True))
        c = self.original_weight
        return (1 - c) * self._symmetric(learned) + c * original

    def _similar(self, parts: list[Tensor]) -> Tensor:
        """The mean of the modalities' item graphs, every item's weights adding up to one."""
        index = torch.cat(parts, 1)
        value = torch.cat([torch.ones(part.size(1)) / part.size(1) for part in parts])
        value *= self.num_items / len(parts)
        return torch.sparse_coo_tensor(index, value, (self.num_items, self.num_items)).coalesce()

    def _both_ways(self, pairs: Tensor) -> Tensor:
        user, item = pairs[0], pairs[1] + self.num_users
        return torch.cat([torch.stack([user, item]), torch.stack([item, user])], 1)

    def _normalized(self, pairs: Tensor) -> Tensor:
        size, index = self.num_users + self.num_items, self._both_ways(pairs)
        degree = torch.zeros(size).index_add(0, index[0], torch.ones(index.size(1))) + 1e-7
        value = degree[index[0]] ** -0.5 * degree[index[1]] ** -0.5
        return torch.sparse_coo_tensor(index, value, (size, size)).coalesce()

    def _row_normalized(self, pairs: Tensor) -> Tensor:
        ids = torch.arange(self.num_users + self.num_items)
        index = torch.cat([self._both_ways(pairs), torch.stack([ids, ids])], 1)
        value = 1 / torch.bincount(index[0])[index[0]]
        return torch.sparse_coo_tensor(index, value, 2 * (ids.numel(),)).coalesce()

    def _vectors(self, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        layers = [torch.cat([self.user, self.item])]
        for _ in range(self.num_layers):
            layers.append(torch.sparse.mm(adjacency, layers[-1]))
        user, item = torch.stack(layers, 1).mean(1).split([self.num_users, self.num_items])
        if self.model == "FREEDOM":
            item = item + torch.sparse.mm(self.similar, self.item)
        if self.model == "LATTICE":
            item = item + nn.functional.normalize(self.learned @ self.item)
        return user, item

    def epoch(self, number: int) -> tuple[float, float]:
        """Seconds of training and of validation."""
        start, adjacency = self.clock.now(), self.adjacency
        if self.dropout and self.model == "FREEDOM":
            weight = self._normalized(self.train).values()[: self.train.size(1)]
            kept = torch.multinomial(weight, int(self.train.size(1) * (1 - self.dropout)))
            adjacency = self._normalized(self.train[:, kept])
        order_parts = torch.randperm(self.train.size(1)).split(self.options.batch_size)
        for ids in order_parts:
            user, positive = self.train[:, ids]
            negative = draw_commonly(user, self.liked, self.num_items)
            if self.model == "LATTICE":  # learned in an epoch's first step, then a constant
                first = ids is order_parts[0]
                self.learned = self._learned() if first else self.learned.detach()
            users, items = self._vectors(adjacency)
            loss = self._bpr(users[user], items[positive], items[negative])
            for name, layer in self.layers.items() if self.model == "FREEDOM" else ():
                z = layer(self.features[name])
                loss = loss + self.reg_weight * self._bpr(users[user], z[positive], z[negative])
            if self.model == "LightGCN":
                rows = (self.user[user], self.item[positive], self.item[negative])
                loss = loss + self.reg_weight * sum(x.norm() for x in rows) / len(ids)
            if self.model == "LATTICE":
                squares = sum(
                    x.square().sum() for x in (users[user], items[positive], items[negative])
                )
                loss = loss + self.reg_weight * squares / (2 * self.options.batch_size)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        trained = self.clock.now()
        with torch.no_grad():
            users, items = self._vectors(self.adjacency)
            self.rank(users, items)
        return trained - start, self.clock.now() - trained

    @staticmethod
    def _bpr(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        difference = (user * positive).sum(1) - (user * negative).sum(1)
        return -nn.functional.logsigmoid(difference).mean()
