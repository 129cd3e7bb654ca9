"""The shipped check lets sound backbones pass, and names what is wrong with others."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from pyg_mmrec.data import PlantedDataset
from pyg_mmrec.data.graph import INTERACTS
from pyg_mmrec.nn.backbones import (
    EVERY_ROW,
    FREEDOM,
    VBPR,
    VLATTICE,
    Backbone,
    ContentBackbone,
    ItemKNN,
    LightGCN,
    MostPop,
    Triplets,
)
from pyg_mmrec.nn.backbones.stages import add_delta
from pyg_mmrec.nn.losses import bpr_loss
from pyg_mmrec.nn.objectives import FIB, DVIBa
from pyg_mmrec.testing import check_backbone, check_method

DATA = PlantedDataset("tiny")[0]


class Sound(Backbone):
    """Two layers over item IDs, each a site, with dropout beside them."""

    def __init__(self, num_users, num_items):
        super().__init__(num_users, num_items)
        self.user_embedding = nn.Embedding(num_users, 4)
        self.item_embedding = nn.Embedding(num_items, 4)
        self.linear = nn.Linear(4, 4)

    @property
    def sites(self):
        return {"item/first": 4, "item/second": 4}

    def fuse(self, modality, graph):
        weight = self.user_embedding.weight
        dropped = nn.functional.dropout(weight, 0.5, self.training)
        context = {"user/embedding": weight, "user/dropped": dropped}
        return {"item/first": self.item_embedding.weight}, context

    def encode(self, hidden, context, graph, delta=None):
        first = add_delta(hidden["item/first"], delta, "item/first")
        second = add_delta(self.linear(first).tanh(), delta, "item/second")
        output = {"user": context["user/embedding"], "item": first + second}
        output["user/dropped"] = context["user/dropped"]
        return {"item/first": first, "item/second": second}, output, {"item": output["item"]}

    def loss(self, stages, batch):
        user = batch.at("user", stages.output["user/dropped"])
        positive, negative = batch.at("item", stages.output["item"]).chunk(2)
        return {"bpr": bpr_loss((user * positive).sum(-1), (user * negative).sum(-1))}


class Rowwise(Sound):
    rowwise = True

    def fuse(self, modality, graph, rows=EVERY_ROW):
        hidden, context = super().fuse(modality, graph)
        hidden, context = (
            {key: rows.at(key, x) for key, x in part.items()} for part in (hidden, context)
        )
        return hidden, context


class Regularized(Sound):
    """Dropout of the hidden layer and batch normalization after it."""

    def __init__(self, num_users, num_items):
        super().__init__(num_users, num_items)
        self.dropout = nn.Dropout()
        self.linear = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def fuse(self, modality, graph):
        hidden, context = super().fuse(modality, graph)
        return {site: self.dropout(x) for site, x in hidden.items()}, context


class Content(ContentBackbone, Sound):
    """Content beside the IDs, of layers in a row that drop some of it."""

    def __init__(self, num_users, num_items, in_channels):
        super().__init__(num_users, num_items, in_channels)
        self.user_embedding = nn.Embedding(num_users, 4)
        self.item_embedding = nn.Embedding(num_items, 4)
        self.linear = nn.Linear(4, 4)
        self.projection = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(size, 4), nn.BatchNorm1d(4), nn.Dropout())
                for name, size in in_channels.items()
            }
        )

    def fuse(self, modality, graph):
        hidden, context = super().fuse(modality, graph)
        content = torch.stack(list(modality.values())).sum(0)
        return {site: x + content for site, x in hidden.items()}, context


class Lazy(Sound):
    """The first call finds out the layer's size; the context holds something else, too."""

    def __init__(self, num_users, num_items):
        super().__init__(num_users, num_items)
        self.linear = nn.LazyLinear(4)

    def fuse(self, modality, graph):
        hidden, context = super().fuse(modality, graph)
        return hidden, {**context, "activation": "tanh"}


def refused(cls, message, **options):
    torch.manual_seed(0)
    backbone = cls.from_data(DATA)
    with pytest.raises(AssertionError, match=message) as error:
        check_backbone(backbone, backbone.graph(DATA), **options)
    assert str(error.value).startswith(f"{cls.__name__}: ")


@pytest.mark.parametrize("cls", [Sound, Rowwise, Regularized, Lazy, Content])
def test_a_sound_backbone_passes(cls):
    backbone = cls.from_data(DATA)
    check_backbone(backbone, backbone.graph(DATA))
    ids = torch.arange(5)
    check_backbone(backbone, backbone.graph(DATA), batch=Triplets(ids, ids, ids + 5))
    check_method(DVIBa, backbone, backbone.graph(DATA))
    if backbone.content_channels:
        check_method(FIB, backbone, backbone.graph(DATA))


@pytest.mark.parametrize("cls", [MostPop, ItemKNN, LightGCN, VBPR, FREEDOM])
def test_nothing_is_changed(cls):
    torch.manual_seed(0)
    backbone = cls.from_data(DATA).eval()
    graph = backbone.graph(DATA)
    before = copy.deepcopy((graph, dict(backbone.state_dict())))
    state = torch.get_rng_state()
    check_backbone(backbone, graph)
    if backbone.sites:
        check_method(DVIBa, backbone, graph)
    assert torch.equal(torch.get_rng_state(), state) and not backbone.training
    assert all(p.grad is None for p in backbone.parameters())
    after = (graph, dict(backbone.state_dict()))
    for x, y in zip(pytree.tree_leaves(before), pytree.tree_leaves(after), strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def test_sizes_of_backbone_and_graph_agree():
    class Other(Sound):
        def graph(self, data):
            return super().graph(data).replace(num_items=91)

    refused(Other, "'num_items' is 90, but the graph has 91")


def test_keys_name_the_rows():
    def attention(base):
        class Named(base):
            def fuse(self, *args):
                hidden, context = super().fuse(*args)
                return hidden, {**context, "attention": args[1].x["image"]}

        return Named

    refused(attention(Rowwise), "a key of 'context' is wrong: .*'user' or 'item'.*'attention'")
    backbone = attention(Sound).from_data(DATA)  # nobody takes rows of its context
    check_backbone(backbone, backbone.graph(DATA))

    class Short(Rowwise):
        def encode(self, *args):
            hidden, output, compared = super().encode(*args)
            return hidden, {**output, "item/few": output["item"][:3]}, compared

    refused(Short, r"output 'item/few' is named for items and needs 90 rows \(got shape \[3, 4\]")

    class Modality(Sound):
        def project(self, graph):
            return {"image": graph.x["image"][:3]}

    refused(Modality, "'project' needs to return one row per item for 'image'")


def test_forward_is_the_three_stages():
    class Own(Sound):
        def forward(self, graph, rows=EVERY_ROW):
            stages = super().forward(graph, rows)
            output = {**stages.output, "item": 2 * stages.output["item"]}
            return replace(stages, output=output)

    refused(Own, r"'forward' differs from 'project', 'fuse' and 'encode' in output \['item'\]")


def test_stages_return_dicts():
    class OneTensor(Sound):
        def project(self, graph):
            return graph.x["image"]

    refused(OneTensor, r"'project' needs to return one dict, by modality \(got Tensor\)")

    class NoContext(Sound):
        def fuse(self, *args):
            return super().fuse(*args)[0]

    refused(NoContext, r"'fuse' needs to return two dicts, hidden layers and context \(got dict\)")

    class NoCompared(Sound):
        def encode(self, *args):
            return super().encode(*args)[:2]

    refused(NoCompared, r"'encode' needs to return three dicts, .* \(got dict, dict\)")


def test_sites_are_a_property():
    class Listed(Sound):
        sites = ["item/first", "item/second"]

    refused(Listed, "'sites' needs to be a property that gives numbers of channels by site")


def test_encode_is_pure():
    class Random(Sound):
        def encode(self, *args):
            hidden, output, compared = super().encode(*args)
            output["user/dropped"] = nn.functional.dropout(output["user"], 0.5, self.training)
            return hidden, output, compared

    refused(Random, r"'encode' is not pure: output \['user/dropped'\] differ between two calls")

    class Writing(Sound):
        def encode(self, hidden, context, graph, delta=None):
            for site in delta or {}:
                hidden[site].add_(delta[site])
            return super().encode(hidden, context, graph)

    refused(Writing, "'encode' writes into its arguments")


def test_encode_only_adds_its_delta():
    class Scaled(Sound):
        def encode(self, hidden, context, graph, delta=None):
            if delta is not None:
                hidden = {key: 1.1 * x for key, x in hidden.items()}
            return super().encode(hidden, context, graph, delta)

    refused(Scaled, "'encode' with an empty delta differs")

    class Stale(Sound):
        def encode(self, hidden, context, graph, delta=None):
            reached, output, compared = super().encode(hidden, context, graph, delta)
            if "item/second" in hidden:
                second = add_delta(hidden["item/second"], delta, "item/second")
                item = reached["item/first"] + second
                reached = {**reached, "item/second": second}
                output, compared = {**output, "item": item}, {"item": item}
            return reached, output, compared

    refused(Stale, "reads hidden layers that 'fuse' does not make.*so that noise adds up")

    class Halved(Sound):
        def encode(self, hidden, context, graph, delta=None):
            delta = {key: x / 2 for key, x in (delta or {}).items()}
            return super().encode(hidden, context, graph, delta)

    refused(Halved, "a delta at 'item/first' is not added there; return hidden")


def test_encode_reads_the_hidden_layers_that_it_gets():
    class Remade(Sound):
        def encode(self, hidden, context, graph, delta=None):
            return super().encode({"item/first": self.item_embedding.weight}, context, graph, delta)

    refused(Remade, "'encode' does not read the hidden layers that it gets: hidden")


def test_what_is_no_backbone_or_graph_is_refused():
    backbone = Sound(DATA["user"].num_nodes, DATA["item"].num_nodes)
    with pytest.raises(ValueError, match=r"'backbone' needs to be a Backbone \(got the class So"):
        check_backbone(Sound, backbone.graph(DATA))
    with pytest.raises(ValueError, match=r"'graph' needs to be a Graph.*\(got HeteroData\)"):
        check_backbone(backbone, DATA)


def test_sites_are_the_hidden_layers():
    class Missing(Sound):
        sites = {"item/first": 4}

    refused(Missing, r"'sites' declares \['item/first'\], but 'encode' returns .*'item/second'")

    class Forgetful(Sound):
        def encode(self, hidden, context, graph, delta=None):
            return {}, *super().encode(hidden, context, graph, delta)[1:]

    refused(Forgetful, r"but 'encode' returns the hidden layers \[\]")

    class Wide(Sound):
        sites = {"item/first": 4, "item/second": 8}

    refused(Wide, "'sites' declares 8 channels for 'item/second'")

    class Reversed(Sound):
        sites = {"item/second": 4, "item/first": 4}

    refused(Reversed, r"changes the hidden layers \['item/second'\], which 'sites' declares before")


def test_compared_tensors_change():
    class Nothing(Sound):
        def encode(self, *args):
            hidden, output, _ = super().encode(*args)
            return hidden, output, {}

    refused(Nothing, "returns nothing in 'compared', though there are sites")

    class Constant(Sound):
        def encode(self, *args):
            hidden, output, compared = super().encode(*args)
            return hidden, output, {**compared, "user": output["user"]}

    refused(Constant, r"'compared' names \['user'\], which no delta changes")

    class Blind(Sound):
        def encode(self, *args):
            hidden, output, _ = super().encode(*args)
            return hidden, output, {"item": self.item_embedding.weight}

    refused(Blind, "a delta at 'item/first' changes none of the compared tensors")


def test_unknown_sites_do_nothing_or_are_refused():
    class Greedy(Sound):
        def encode(self, hidden, context, graph, delta=None):
            reached, output, compared = super().encode(hidden, context, graph, delta)
            known = set(self.sites)
            for site, x in (delta or {}).items():
                if site not in known:
                    output = {**output, "item": output["item"] + x}
            return reached, output, compared

    refused(Greedy, "a delta at a site that was never declared changes the output")

    class Strict(Sound):
        def encode(self, hidden, context, graph, delta=None):
            for site in delta or {}:
                if site not in self.sites:
                    raise ValueError(f"no site {site}")
            return super().encode(hidden, context, graph, delta)

    backbone = Strict.from_data(DATA)
    check_backbone(backbone, backbone.graph(DATA))


def test_loss_terms_are_finite_scalars():
    class Vector(Sound):
        def loss(self, stages, batch):
            return {"bpr": batch.at("item", stages.output["item"]).sum(1)}

    refused(Vector, r"the loss term 'bpr' of 'loss' needs to be a scalar tensor \(got \[64\]\)")

    class Infinite(Sound):
        def loss(self, stages, batch):
            return {"bpr": super().loss(stages, batch)["bpr"] / 0}

    refused(Infinite, "the loss term 'bpr' of 'loss' is inf")

    class Sum(Sound):
        def loss(self, stages, batch):
            return super().loss(stages, batch)["bpr"]

    refused(Sum, "'loss' needs to return a dict of loss terms by name")

    class Nothing(Sound):
        def loss(self, stages, batch):
            return {}

    refused(Nothing, "'loss' returns no term, though there are parameters")


def test_loss_reads_rows_of_the_batch_from_the_output():
    def whole(base):
        class Whole(base):
            def loss(self, stages, batch):
                squares = stages.output["item"].square().mean()
                return {**super().loss(stages, batch), "squares": squares}

        return Whole

    backbone = whole(Sound).from_data(DATA)  # every row is there
    check_backbone(backbone, backbone.graph(DATA))
    refused(
        whole(Rowwise),
        r"'loss' of the batch's rows alone gives other terms \['squares'\]; read 'batch",
    )

    class Hidden(Sound):
        def loss(self, stages, batch):
            return {"x": batch.at("item", stages.hidden["item/first"]).square().mean()}

    refused(Hidden, "'loss' of the whole 'output' alone fails with KeyError")

    class Indexing(Rowwise):
        def loss(self, stages, batch):
            rows = stages.output["item"][torch.cat([batch.positive, batch.negative])]
            return {"x": rows.square().mean()}

    refused(Indexing, "'loss' of the batch's rows alone")


def test_rowwise_is_true_or_not_declared():
    class Mixing(Rowwise):
        def encode(self, hidden, context, graph, delta=None):
            reached, output, compared = super().encode(hidden, context, graph, delta)
            item = output["item"] + reached["item/first"].mean(0)
            return reached, {**output, "item": item}, {"item": item}

    refused(Mixing, r"'rowwise' is declared, but output \['item'\] of the batch's rows alone")


def test_stages_of_a_rowwise_backbone_take_rows():
    class Without(VBPR):
        def fuse(self, modality, graph):
            return super().fuse(modality, graph)

    refused(Without, "'rowwise' is declared, but the stages fail with TypeError.*'rows=EVERY_ROW'")


def test_every_parameter_gets_a_gradient_or_is_named():
    class Unused(Sound):
        def __init__(self, num_users, num_items):
            super().__init__(num_users, num_items)
            self.spare = nn.Linear(2, 2)

    refused(Unused, r"\['spare.weight', 'spare.bias'\] get no gradient")
    refused(Unused, r"\['spare.bias'\] get no gradient", unused_parameters=["spare.weight"])
    backbone = Unused.from_data(DATA)
    names = ["spare.weight", "spare.bias"]
    check_backbone(backbone, backbone.graph(DATA), unused_parameters=names)
    with pytest.raises(ValueError, match="'unused_parameters' names 'spares', but the parameters"):
        check_backbone(backbone, backbone.graph(DATA), unused_parameters=["spares"])

    class Detached(Sound):
        def loss(self, stages, batch):
            return {key: x.detach() for key, x in super().loss(stages, batch).items()}

    refused(Detached, "the loss depends on no parameter; is something detached")


def test_what_is_trained_is_registered():
    class Listed(Sound):
        def __init__(self, num_users, num_items):
            super().__init__(num_users, num_items)
            self.layers = [nn.Linear(4, 4)]

        def fuse(self, modality, graph):
            hidden, context = super().fuse(modality, graph)
            return {site: self.layers[0](x) for site, x in hidden.items()}, context

    refused(Listed, r"tensors that are not among 'parameters\(\)', of shapes \[\[4\], \[4, 4\]\]")


def test_vectors_rank_as_the_scores_do():
    class Other(Sound):
        def scores(self, stages, graph, users):
            return 2 * super().scores(stages, graph, users)

    refused(Other, "inner products of 'vectors' differ from 'scores'")

    class Few(Sound):
        def scores(self, stages, graph, users):
            return super().scores(stages, graph, users)[:, :5]

    refused(Few, r"of shape \[users, items\], \[32, 90\] \(got \[32, 5\]\)")

    class Uneven(Sound):
        def vectors(self, stages):
            user, item = super().vectors(stages)
            return user[:-1], item

    refused(Uneven, r"'vectors' needs to return \[120, d\] and \[90, d\] \(got \[119, 4\]")

    class Silent(Sound):
        def vectors(self, stages):
            raise ValueError("no vectors")

    with pytest.raises(ValueError, match="no vectors"):  # the inherited scores need them
        backbone = Silent.from_data(DATA)
        check_backbone(backbone, backbone.graph(DATA))

    class Dropped(Sound):
        def fuse(self, *args):
            hidden, context = super().fuse(*args)
            return hidden, {**context, "user/embedding": self.dropped(context["user/embedding"])}

        def dropped(self, x):
            return nn.functional.dropout(x)

    refused(Dropped, "two calls in evaluation mode rank differently")

    class Ordered(Sound):
        def scores(self, stages, graph, users):
            return super().scores(stages, graph, users.sort().values)

    refused(Ordered, "'scores' depends on the order of the users")


def test_the_graph_is_not_kept():
    class Cached(LightGCN):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.kept = []

        def encode(self, hidden, context, graph, delta=None):
            self.kept = self.kept or [graph]
            return super().encode(hidden, context, self.kept[0], delta)

    refused(Cached, "on another graph it ranks differently from a copy that never saw this one")


def test_all_that_is_learned_is_in_the_state():
    class Cached(Sound):
        cache = None

        def fuse(self, modality, graph):
            hidden, context = super().fuse(modality, graph)
            if self.training:
                return hidden, context
            if self.cache is None:  # as one would to save work at inference
                self.cache = hidden["item/first"].clone()
            return {"item/first": self.cache}, context

    message = r"with the 'state_dict\(\)' of a copy loaded it ranks differently from the copy"
    refused(Cached, message)

    class Loose(Sound):
        sharpness = 1.0

        def load_state_dict(self, *args, **kwargs):
            self.sharpness = 2.0  # stands for anything that is not among parameters and buffers
            return super().load_state_dict(*args, **kwargs)

        def encode(self, *args):
            hidden, output, compared = super().encode(*args)
            item = output["item"] * self.sharpness
            return hidden, {**output, "item": item}, {"item": item}

    refused(Loose, message)

    class Lowest(LightGCN):
        kept = None

        def encode(self, hidden, context, graph, delta=None):
            reached, output, _ = super().encode(hidden, context, graph, delta)
            degree = graph.adjacency[INTERACTS].rowptr.diff()[:, None]
            self.kept = degree if self.kept is None else torch.minimum(self.kept, degree)
            output["item"] = output["item"] * self.kept
            return reached, output, {"user": output["user"], "item": output["item"]}

    refused(Lowest, "after a call on another graph it ranks differently on this one")


def test_perturbed_terms_are_those_that_a_perturbation_changes():
    class Silent(LightGCN):
        def perturbed_loss(self, stages, batch):
            return {}

        def loss(self, stages, batch):
            return {**LightGCN.perturbed_loss(self, stages, batch)}

    refused(Silent, r"changes the loss terms \['bpr'\], which 'perturbed_loss' leaves out")

    class Other(LightGCN):
        def perturbed_loss(self, stages, batch):
            return {k: 2 * x for k, x in super().perturbed_loss(stages, batch).items()}

        def loss(self, stages, batch):
            return LightGCN.perturbed_loss(self, stages, batch)

    refused(Other, r"'perturbed_loss' gives terms \['bpr'\] that 'loss' does not give alike")


def test_sampled_graphs_follow_the_generator():
    class Global(FREEDOM):
        def sample_graph(self, graph, epoch, generator=None):
            return super().sample_graph(graph, epoch)

    refused(Global, "draws different graphs from generators of the same seed")

    class Undeclared(FREEDOM):
        graph_sampling = "never"

    refused(Undeclared, "changes the graph, but 'graph_sampling' is 'never'")

    class Rare(FREEDOM):
        graph_sampling = "rarely"

    refused(Rare, "needs to be 'never', 'epoch' or 'step'")

    class Smaller(FREEDOM):
        def sample_graph(self, graph, epoch, generator=None):
            return graph.replace(adjacency={INTERACTS: graph.adjacency[INTERACTS]})

    refused(Smaller, "'sample_graph' changes sizes or drops edge types")

    class Writing(FREEDOM):
        def sample_graph(self, graph, epoch, generator=None):
            graph.adjacency[INTERACTS].weight.mul_(0.5)
            return graph

    refused(Writing, "'sample_graph' writes into the graph it is given")


def test_content_is_what_is_declared():
    class Wide(VBPR):
        @property
        def content_channels(self):
            return dict.fromkeys(self.modalities, 7)

    refused(Wide, "declares 7 channels of 'image', but 'content'")

    class Silent(Sound):
        loss_reads_content = True

    refused(Silent, "neither 'modalities' nor 'content_channels' says which")

    class Late(VBPR):
        def content(self, graph, rows=EVERY_ROW):
            return {name: rows.at("item", z) + 1 for name, z in super().content(graph).items()}

        def project(self, graph, rows=EVERY_ROW):
            return VBPR.content(self, graph, rows)

    refused(Late, r"'content' and 'project' differ in \['image', 'text'\]")

    class Whole(VBPR):
        def content(self, graph, rows=EVERY_ROW):
            return super().content(graph)

        def project(self, graph, rows=EVERY_ROW):
            return VBPR.content(self, graph, rows)

    refused(Whole, "for some rows differs from the same rows")

    class Nobody(VBPR):
        def user_content_parameters(self):
            return iter(())

    refused(Nobody, "'user_content_parameters' names none")

    class Uneven(VBPR):
        def content_vectors(self, graph, rows=EVERY_ROW):
            user, item = super().content_vectors(graph, rows)
            return user[:, 1:], item

    refused(Uneven, "one row per given user and item, of one")


def test_the_item_graph_is_what_items_are_propagated_over():
    class Reversed(VLATTICE):
        def item_graph(self, graph):
            return super().item_graph(graph).t()

        def fuse(self, modality, graph):
            hidden, context = super().fuse(modality, graph)
            return hidden, {**context, "similar": VLATTICE.item_graph(self, graph)}

    refused(Reversed, "is not what items are propagated over")

    class Stubborn(VLATTICE):
        def fuse(self, modality, graph):
            hidden, context = super().fuse(modality, graph)
            own = {k: x for k, x in graph.adjacency.items() if k != ("item", "similar", "item")}
            similar = VLATTICE.item_graph(self, graph.replace(adjacency=own))
            return hidden, {**context, "similar": similar}

    refused(Stubborn, "another one changes nothing")

    class Elsewhere(VLATTICE):
        def item_vectors_on(self, similar, stages, graph, batch=None):
            return stages.output["item"]

    refused(Elsewhere, "'item_vectors_on' differs from a run")
