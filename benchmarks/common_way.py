"""Training and evaluation as public toolboxes write it, to be compared with."""

from __future__ import annotations

import random

import torch
from clock import Clock
from ranking import rank_commonly
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from pyg_mmrec.data.graph import INTERACTS
from pyg_mmrec.training import Trainer

CHANNELS = 64


class Common:
    """LightGCN, or FREEDOM, as public toolboxes train and rank them.

    Args:
        ours (Trainer): What trains the same here; sizes and options are read from it.
        data (HeteroData): The data.
    """

    def __init__(self, ours: Trainer, data: HeteroData) -> None:
        torch.manual_seed(0)
        self.device, self.options = ours.device, ours.options
        self.model = type(ours.backbone).__name__
        self.num_users, self.num_items = data["user"].num_nodes, data["item"].num_nodes
        store = data[INTERACTS]
        self.train, self.held_out = store.edge_index, store.val_label_index
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
        parameters += [p for layer in self.layers.values() for p in layer.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=self.options.learning_rate)
        self.adjacency = self._normalized(self.train)

    @staticmethod
    def _neighbours(x: Tensor) -> Tensor:
        """Ten neighbours of every item, by a dense matrix of cosines."""
        unit = x / x.norm(dim=1, keepdim=True)
        neighbours = (unit @ unit.t()).topk(10).indices
        rows = torch.arange(x.size(0)).repeat_interleave(10)
        return torch.stack([rows, neighbours.flatten()])

    def _similar(self, parts: list[Tensor]) -> Tensor:
        """The mean of the modalities' item graphs, every item's weights adding up to one."""
        index = torch.cat(parts, 1)
        value = torch.cat([torch.ones(part.size(1)) / part.size(1) for part in parts])
        value *= self.num_items / len(parts)
        return torch.sparse_coo_tensor(index, value, (self.num_items, self.num_items)).coalesce()

    def _normalized(self, pairs: Tensor) -> Tensor:
        size = self.num_users + self.num_items
        user, item = pairs[0], pairs[1] + self.num_users
        index = torch.cat([torch.stack([user, item]), torch.stack([item, user])], 1)
        degree = torch.zeros(size).index_add(0, index[0], torch.ones(index.size(1))) + 1e-7
        value = degree[index[0]] ** -0.5 * degree[index[1]] ** -0.5
        return torch.sparse_coo_tensor(index, value, (size, size)).coalesce()

    def _vectors(self, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        layers = [torch.cat([self.user, self.item])]
        for _ in range(self.num_layers):
            layers.append(torch.sparse.mm(adjacency, layers[-1]))
        user, item = torch.stack(layers, 1).mean(1).split([self.num_users, self.num_items])
        if self.model == "FREEDOM":
            item = item + torch.sparse.mm(self.similar, self.item)
        return user, item

    def epoch(self, number: int) -> tuple[float, float]:
        """Seconds of training and of validation."""
        start, adjacency = self.clock.now(), self.adjacency
        if self.dropout and self.model == "FREEDOM":
            weight = self._normalized(self.train).values()[: self.train.size(1)]
            kept = torch.multinomial(weight, int(self.train.size(1) * (1 - self.dropout)))
            adjacency = self._normalized(self.train[:, kept])
        order = torch.randperm(self.train.size(1))
        for ids in order.split(self.options.batch_size):
            user, positive = self.train[:, ids]
            drawn = []
            for u in user.tolist():
                item = random.randrange(self.num_items)
                while item in self.liked[u]:
                    item = random.randrange(self.num_items)
                drawn.append(item)
            negative = torch.tensor(drawn)
            users, items = self._vectors(adjacency)
            loss = self._bpr(users[user], items[positive], items[negative])
            for name, layer in self.layers.items():
                z = layer(self.features[name])
                loss = loss + self.reg_weight * self._bpr(users[user], z[positive], z[negative])
            if self.model == "LightGCN":
                rows = (self.user[user], self.item[positive], self.item[negative])
                loss = loss + self.reg_weight * sum(x.norm() for x in rows) / len(ids)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        trained = self.clock.now()
        with torch.no_grad():
            users, items = self._vectors(self.adjacency)
            rank_commonly(users, items, self.train, self.held_out)
        return trained - start, self.clock.now() - trained

    @staticmethod
    def _bpr(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        difference = (user * positive).sum(1) - (user * negative).sum(1)
        return -nn.functional.logsigmoid(difference).mean()
