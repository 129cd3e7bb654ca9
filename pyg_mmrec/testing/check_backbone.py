"""The contract of a backbone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch.nn.parameter import is_lazy

from pyg_mmrec.data import Graph
from pyg_mmrec.data.graph import INTERACTS, SIMILAR
from pyg_mmrec.nn.backbones import Backbone, GatheredTriplets, SomeRows, Stages, Triplets
from pyg_mmrec.testing.check import (
    Snapshot,
    check_types,
    close,
    different,
    finite,
    forked_random_state,
    graph_sizes,
    leaves,
    some_batch,
)
from pyg_mmrec.testing.check_stages import StageCheck


def check_backbone(
    backbone: Backbone,
    graph: Graph,
    *,
    batch: Triplets | None = None,
    unused_parameters: Sequence[str] = (),
) -> None:
    r"""Checks that a backbone fulfils the stage contract, so that every method works on it.

    The backbone is copied first and left as it is; random states too. Use a small graph.

    Args:
        backbone (Backbone): The backbone.
        graph (Graph): What it computes on, usually ``backbone.graph(data)``.
        batch (Triplets, optional): A batch for the loss. (default: some training interactions,
            with sampled negatives)
        unused_parameters (list[str], optional): Names of parameters that rightly get no gradient
            from the loss. (default: none)

    Raises:
        AssertionError: If a rule is broken; the message says which, and how to fix it.
        ValueError: If an argument is of another kind, or ``unused_parameters`` names something that
            is no parameter.

    Example:
        .. code-block:: python

            def test_my_backbone():
                data = PlantedDataset("tiny")[0]
                backbone = MyBackbone.from_data(data)
                check_backbone(backbone, backbone.graph(data))
    """
    check_types(backbone, graph)
    names = [name for name, _ in backbone.named_parameters()]
    for name in unused_parameters:
        if name not in names:
            raise ValueError(f"'unused_parameters' names '{name}', but the parameters are {names}")
    with forked_random_state(graph):
        batch = some_batch(graph) if batch is None else batch
        check = _BackboneCheck(copy.deepcopy(backbone), graph, batch)
        check.sizes()
        check.stages()
        check.encode()
        check.sites()
        check.loss()
        check.rows()
        check.gradients(unused_parameters)
        check.vectors()
        check.state()
        check.sample_graph()
        check.content()
        check.item_graph()
        check.hidden()


class _BackboneCheck(StageCheck):
    """The rules of a backbone, those of its stages among them."""

    def __init__(self, backbone: Backbone, graph: Graph, batch: Triplets) -> None:
        super().__init__(backbone, graph, batch)
        if any(is_lazy(parameter) for parameter in backbone.parameters()):
            self.rank(backbone, graph)  # the first call makes them
        # Copies that no other call has passed through.
        self.unused, self.first = copy.deepcopy(backbone), copy.deepcopy(backbone)

    def sizes(self) -> None:
        for name in ("num_users", "num_items"):
            ours, theirs = getattr(self.backbone, name, None), getattr(self.graph, name)
            self.require(
                ours == theirs, f"'{name}' is {ours}, but the graph has {theirs}; build both alike"
            )

    @torch.no_grad()
    def loss(self) -> None:
        stages = self.forward()
        terms = self.backbone.loss(stages, self.batch)
        self.require_terms(terms, "'loss'")
        self.require(
            bool(terms) or next(self.backbone.parameters(), None) is None,
            "'loss' returns no term, though there are parameters to train",
        )
        for name in terms:
            self.require("/" not in name, f"the loss term '{name}' has a '/', kept for methods")
        batch = GatheredTriplets.of(self.batch)
        rows = {}
        by_rows = self.backbone.rowwise or self.backbone.gathers_output
        if by_rows:
            rows = {key: self.batch.rows.at(key, x) for key, x in stages.output.items()}
        fix = "read 'batch.at(key, stages.output[key])' only, and put what else it needs there"
        cases = [("of the whole 'output' alone", stages.output, self.batch)]
        if by_rows:
            cases.append(("of the batch's rows alone", rows, batch))
        for part, output, reader in cases:
            try:
                same = self.backbone.loss(Stages({}, {}, {}, output, {}), reader)
            except (KeyError, IndexError, RuntimeError, StopIteration) as error:
                raise AssertionError(
                    f"{self.subject}: 'loss' {part} fails with {error!r}; {fix}"
                ) from error
            self.require(
                not different(same, terms),
                f"'loss' {part} gives other terms {different(same, terms)}; {fix}",
            )
        self.require_unwritten("'loss'")
        perturbed = self.backbone.perturbed_loss(stages, self.batch)
        wrong = [k for k, x in perturbed.items() if k not in terms or not close(x, terms[k])]
        self.require(
            not wrong, f"'perturbed_loss' gives terms {wrong} that 'loss' does not give alike"
        )
        delta = {site: self.noise(x) for site, x in stages.hidden.items()}
        hidden, output, compared = self.backbone.encode(
            stages.hidden, stages.context, self.graph, delta
        )
        other = self.backbone.loss(Stages({}, hidden, {}, output, compared), self.batch)
        missed = [key for key in different(other, terms) if key not in perturbed]
        self.require(
            not missed,
            f"a perturbation changes the loss terms {missed}, which 'perturbed_loss' leaves out",
        )

    def gradients(self, unused: Sequence[str]) -> None:
        parameters = {k: p for k, p in self.backbone.named_parameters() if p.requires_grad}
        known = {id(parameter) for parameter in self.backbone.parameters()}
        self.require(
            all(id(parameter) in known for parameter in self.backbone.content_parameters()),
            "'content_parameters' yields tensors that are not among 'parameters()'",
        )
        if not parameters:
            return
        terms = self.backbone.loss(self.forward(), self.batch)
        loss = torch.stack(list(terms.values())).sum()
        self.require(loss.requires_grad, "the loss depends on no parameter; is something detached?")
        reached = sorted(list(x.shape) for x in leaves(loss) if id(x) not in known)
        self.require(
            not reached,
            f"the loss reaches tensors that are not among 'parameters()', of shapes {reached}; "
            f"nobody trains or saves them: register them (modules in a list as nn.ModuleList)",
        )
        loss.backward()
        without = [k for k, p in parameters.items() if p.grad is None and k not in unused]
        self.require(
            not without,
            f"the parameters {without} get no gradient from the loss; use them, or name them in "
            f"'unused_parameters' if that is right",
        )
        wrong = [k for k, p in parameters.items() if p.grad is not None and not finite(p.grad)]
        self.require(not wrong, f"the gradients of {wrong} are not finite")
        self.backbone.zero_grad()
        self.require_unwritten("the backward pass")

    @torch.no_grad()
    def vectors(self) -> None:
        backbone, graph = self.backbone, self.graph
        backbone.eval()
        stages = self.forward()
        torch.manual_seed(1)
        again = backbone(graph)
        users = self.batch.user
        scores = backbone.scores(stages, graph, users)
        shape = [users.numel(), graph.num_items]
        self.require(
            list(scores.shape) == shape and finite(scores[scores != -torch.inf]),
            f"'scores' needs to return numbers, or -inf of what is no candidate, of shape [users, "
            f"items], {shape} (got {list(scores.shape)})",
        )
        self.require(
            close(backbone.scores(again, graph, users), scores),
            "two calls in evaluation mode rank differently; draw random numbers only where "
            "'self.training' says so",
        )
        self.require(
            close(backbone.scores(stages, graph, users.flip(0)), scores.flip(0)),
            "'scores' depends on the order of the users asked for; give each user its own row",
        )
        try:
            user, item = backbone.vectors(stages)
        except ValueError:
            # Scores that are no inner product, as those of item-based neighbours.
            self.require(
                type(backbone).scores is not Backbone.scores,
                "'vectors' refuses, so 'scores' needs an own implementation",
            )
            backbone.train()
            return
        self.require(
            user.dim() == item.dim() == 2
            and user.size(0) == graph.num_users
            and item.size(0) == graph.num_items
            and user.size(1) == item.size(1),
            f"'vectors' needs to return [{graph.num_users}, d] and [{graph.num_items}, d] "
            f"(got {list(user.shape)} and {list(item.shape)})",
        )
        self.require(
            close(user[users] @ item.t(), scores),
            "inner products of 'vectors' differ from 'scores'; retrieval needs them to rank alike",
        )
        backbone.train()

    @torch.no_grad()
    def state(self) -> None:
        backbone = self.backbone
        scores = self.rank(backbone, self.graph)
        state = {key: x.clone() for key, x in backbone.state_dict().items()}
        for x in (*self.unused.parameters(), *self.unused.buffers()):
            if x.is_floating_point():
                x.add_(torch.rand_like(x))  # not less, or variances would be negative
        others = {key: x.clone() for key, x in self.unused.state_dict().items()}
        expected = self.rank(self.unused, self.graph)
        for weights, ranking in ((others, expected), (state, scores)):
            backbone.load_state_dict(weights)
            self.require(
                close(self.rank(backbone, self.graph), ranking),
                "with the 'state_dict()' of a copy loaded it ranks differently from the copy; "
                "register what is learned as parameters and buffers, and keep nothing between "
                "calls",
            )
        edges = self.graph.adjacency[INTERACTS]
        half = torch.arange(edges.num_edges, device=edges.col.device) % 2 == 0
        other = self.graph.with_interactions(edges.select(half))
        self.first.load_state_dict(backbone.state_dict())
        self.require(
            close(self.rank(backbone, other), self.rank(self.first, other)),
            "on another graph it ranks differently from a copy that never saw this one; the graph "
            "is an argument, keep nothing of it between calls (no 'cached=True')",
        )
        self.require(
            close(self.rank(backbone, self.graph), scores),
            "after a call on another graph it ranks differently on this one; the graph is an "
            "argument, keep nothing of it between calls",
        )
        self.require_unwritten("ranking")

    def sample_graph(self) -> None:
        sampling = self.backbone.graph_sampling
        self.require(
            sampling in ("never", "epoch", "step"),
            f"'graph_sampling' needs to be 'never', 'epoch' or 'step' (got {sampling!r})",
        )
        graphs = []
        for seed in range(2):
            torch.manual_seed(seed)
            generator = torch.Generator(self.batch.user.device).manual_seed(0)
            graphs.append(self.backbone.sample_graph(self.graph, 0, generator))
        self.require_unwritten("'sample_graph'")
        drawn = graphs[0]
        self.require(
            isinstance(drawn, Graph), "'sample_graph' needs to return a Graph; 'return graph' does"
        )
        sizes = graph_sizes(drawn)
        kept = {edge_type: sizes.get(edge_type) for edge_type in graph_sizes(self.graph)}
        ours = (drawn.num_users, drawn.num_items, kept)
        theirs = (self.graph.num_users, self.graph.num_items, graph_sizes(self.graph))
        self.require(
            ours == theirs,
            f"'sample_graph' changes sizes or drops edge types (from {theirs} to {ours}); drop "
            f"edges, not nodes; new edge types may come",
        )
        self.require(
            Snapshot(drawn).holds(graphs[1]),
            "'sample_graph' draws different graphs from generators of the same seed; hand "
            "'generator' to every random call",
        )
        self.require(
            sampling != "never" or self.given.holds(drawn),
            "'sample_graph' changes the graph, but 'graph_sampling' is 'never', so nobody calls "
            "it; declare 'epoch' or 'step'",
        )
        with torch.no_grad():
            terms = self.backbone.loss(self.backbone(drawn), self.batch)
        self.require_terms(terms, "'loss' on a sampled graph")

    @torch.no_grad()
    def content(self) -> None:
        backbone, graph = self.backbone, self.graph
        rows = SomeRows(self.batch.user, self.batch.positive)
        channels = backbone.content_channels
        self.require(
            not backbone.loss_reads_content or bool(getattr(backbone, "modalities", channels)),
            "'loss_reads_content' is true, but neither 'modalities' nor 'content_channels' says "
            "which modalities it reads",
        )
        backbone.eval()
        whole, some = ({}, {}) if not channels else (
            backbone.content(graph), backbone.content(graph, rows)
        )  # fmt: skip
        fused = backbone.project(graph)
        other = [name for name in whole if name in fused and not close(fused[name], whole[name])]
        self.require(
            not other,
            f"'content' and 'project' differ in {other}; methods read the former: override "
            f"'content', which the inherited 'project' returns",
        )
        for name, width in channels.items():
            shape = list(whole[name].shape) if name in whole else "nothing"
            self.require(
                shape == [graph.num_items, width],
                f"'content_channels' declares {width} channels of '{name}', but 'content' returns "
                f"{shape}; return one row per item",
            )
            self.require(
                close(some[name], rows.at("item", whole[name])),
                f"'content' for some rows differs from the same rows of all in '{name}'; return "
                f"'rows.at(\"item\", z)'",
            )
        if backbone.has_user_content:
            user, item = backbone.content_vectors(graph, rows)
            self.require(
                user.shape[1:] == item.shape[1:] and len(user) == len(item) == len(rows.user),
                f"'content_vectors' needs to return one row per given user and item, of one width "
                f"(got {list(user.shape)} and {list(item.shape)} for {len(rows.user)} of each)",
            )
            self.require(
                any(True for _ in backbone.user_content_parameters()),
                "'has_user_content' is true, but 'user_content_parameters' names none",
            )
        backbone.train()

    def item_graph(self) -> None:
        backbone, graph = self.backbone, self.graph
        if not backbone.has_item_graph:
            return
        backbone.eval()
        similar = backbone.item_graph(graph)
        self.require(
            similar.size == (graph.num_items, graph.num_items),
            f"'item_graph' needs to lead from items to items (its size is {similar.size})",
        )
        refined = graph.replace(adjacency={**graph.adjacency, SIMILAR: similar})
        stages = backbone(refined)
        item = backbone.vectors(stages)[1]
        self.require(
            close(item, backbone.vectors(backbone(graph))[1]),
            f"'item_graph' is not what items are propagated over: given as {SIMILAR}, it changes "
            f"the item vectors",
        )
        half = similar.with_weight(similar.weight * torch.rand_like(similar.weight))
        other = graph.replace(adjacency={**graph.adjacency, SIMILAR: half})
        expected = backbone.vectors(backbone(other))[1]
        self.require(
            not close(expected, item),
            f"items are not propagated over the graph's {SIMILAR}: another one changes nothing",
        )
        self.require(
            close(backbone.item_vectors_on(half, stages, refined), expected),
            "'item_vectors_on' differs from a run on a graph with that item graph",
        )
        if backbone.rowwise or backbone.gathers_output:
            wanted = self.batch.rows
            found = backbone.item_vectors_on(half, backbone(refined, wanted), refined, wanted)
            self.require(
                close(found, wanted.at("item", expected)),
                "'item_vectors_on' of the batch's rows alone differs from these rows of all",
            )
        backbone.train()
