import copy
import subprocess
import sys

import pytest
import torch
from torch.utils import _pytree as pytree

from pyg_mmrec.data.graph import INTERACTS, SIMILAR
from pyg_mmrec.nn.backbones import LATTICE
from pyg_mmrec.nn.objectives import Objective
from pyg_mmrec.training import Trainer, TrainingOptions
from pyg_mmrec.transforms import FuseModalityGraphs, ModalityKNNGraph, NormalizeInteractions

MASK, OTHER = torch.arange(20) % 3 > 0, torch.arange(20) % 4 != 1  # item 9 has neither


def dense_knn(x, k, has):
    """Row = item, column = its neighbour: cosine; the choice of neighbours is constant."""
    rows = (has & x.detach().ne(0).any(1)).nonzero().squeeze(1)
    unit = x[rows] / x[rows].square().sum(1, keepdim=True).sqrt()
    cosine = unit @ unit.t()
    chosen = torch.zeros_like(cosine)
    for row, values in enumerate(cosine.tolist()):
        best = sorted(range(len(values)), key=values.__getitem__, reverse=True)[:k]
        chosen[row, best] = 1.0
    graph = torch.zeros(x.size(0), x.size(0), dtype=x.dtype)
    return graph.index_put((rows[:, None], rows), cosine * chosen)


def dense_norm(graph):
    total = graph.sum(1)
    scale = torch.where(total > 0, total, torch.ones_like(total)) ** -0.5 * (total > 0)
    return scale[:, None] * graph * scale


def dense_shares(backbone, data):
    """Weight of each modality in the row of each item, among the modalities that it has."""
    exp = backbone.modality_logits.exp()
    has = [data[m].get("mask", torch.ones(backbone.num_items).bool()) for m in backbone.modalities]
    share = torch.stack([e * h for e, h in zip(exp, has, strict=True)], 1)
    total = share.sum(1, keepdim=True)
    return share / (total + (total == 0)), has


def dense_item_graph(backbone, data):
    shares, masks = dense_shares(backbone, data)
    learned = original = 0.0
    for share, m, has in zip(shares.t(), backbone.modalities, masks, strict=True):
        x = data[m].x.double()
        raw = x if backbone.features is None else backbone.features[m]
        z = backbone.projection[m](raw)
        learned = learned + share[:, None] * dense_knn(z, backbone.k, has)
        original = original + share[:, None] * dense_norm(dense_knn(x, backbone.k, has))
    weight = backbone.original_weight
    return (1 - weight) * dense_norm(learned) + weight * original


def dense_vectors(backbone, data):
    """Final vectors with square matrices over users and items, and over items."""
    num_users, num_items = backbone.num_users, backbone.num_items
    adjacency = torch.eye(num_users + num_items, dtype=torch.float64)
    for u, i in data["user", "interacts", "item"].edge_index.t().tolist():
        adjacency[u, num_users + i] = adjacency[num_users + i, u] = 1
    step = adjacency / adjacency.sum(1, keepdim=True)
    layer = torch.cat([backbone.user_embedding.weight, backbone.item_embedding.weight])
    layers = [layer]
    if backbone.cf_model == "lightgcn":
        for _ in range(backbone.num_layers):
            layers.append(step @ layers[-1])
    user, item = (sum(layers) / len(layers)).split([num_users, num_items])
    h = backbone.item_embedding.weight
    similar = dense_item_graph(backbone, data)
    for _ in range(backbone.num_item_layers):
        h = similar @ h
    square = h.square().sum(1, keepdim=True)
    return user, item + h / (square + (square == 0)).sqrt()


def loss_by_hand(backbone, user, item, batch):
    bpr = squares = 0.0
    for u, i, j in zip(batch.user, batch.positive, batch.negative, strict=True):
        bpr = bpr - (user[u] @ (item[i] - item[j])).sigmoid().log() / batch.user.numel()
        squares = squares + sum(x.square().sum() for x in (user[u], item[i], item[j]))
    penalty = backbone.reg_weight * squares / 2 / backbone.batch_size
    return {"bpr": bpr, "regularization": penalty}


def in_double(graph):
    return pytree.tree_map_only(
        torch.Tensor, lambda x: x.double() if x.is_floating_point() else x, graph
    )


def densified(adjacency, num_items):
    dense = torch.zeros(num_items, num_items, dtype=adjacency.weight.dtype)
    source, target = adjacency.edge_index
    return dense.index_put((target, source), adjacency.weight)


@pytest.mark.parametrize(
    ("channels", "masks", "options"),
    [
        ({"image": 6, "text": 5}, {}, {}),
        ({"image": 6, "text": 5}, {}, {"preset": "mmrec"}),
        ({"image": 6, "text": 5}, {}, {"num_item_layers": 2, "num_layers": 3}),
        ({"image": 6, "text": 5}, {}, {"cf_model": "mf", "original_weight": 0.0}),
        ({"image": 6, "text": 5}, {}, {"original_weight": 1.0}),
        ({"image": 6, "text": 5}, {}, {"k": 16}),
        ({"image": 6, "text": 5}, {}, {"modalities": ["text", "image"]}),
        ({"image": 6, "text": 5}, {"text": MASK}, {"num_item_layers": 2}),
        ({"image": 6, "text": 5}, {"text": MASK, "image": OTHER}, {"preset": "mmrec"}),
        ({"image": 6, "text": 5}, {"text": MASK, "image": MASK}, {}),
        ({"image": 6, "text": 5}, {}, {"modalities": ["text"]}),
        ({"audio": 4}, {"audio": MASK}, {}),
        ({"video": 4, "audio": 3, "text": 5}, {"audio": MASK}, {}),
    ],
)  # fmt: skip
def test_equals_dense_reference(make_data, sample, channels, masks, options):
    data = make_data(masks=masks, **channels)
    user, item = data["user", "interacts", "item"].edge_index
    kept = (user != 2) & (item != 4)  # leaves two alone
    data["user", "interacts", "item"].edge_index = torch.stack([user, item])[:, kept]
    torch.manual_seed(0)
    options = {"embedding_dim": 8, "k": 3, "reg_weight": 0.1, "batch_size": 7, **options}
    backbone = LATTICE.from_data(data, **options).double()
    for name, parameter in backbone.named_parameters():
        if name == "modality_logits" or name.endswith("bias"):  # which start at 0
            torch.nn.init.normal_(parameter)
        elif name.startswith("features"):  # no longer those that the original graphs are made of
            parameter.data += torch.randn_like(parameter)
    graph, batch = in_double(backbone.graph(data)), sample(data, 30)
    similar = dense_item_graph(backbone, data)
    torch.testing.assert_close(
        densified(backbone.item_graph(graph), 20), similar, rtol=1e-5, atol=1e-6
    )
    user, item = dense_vectors(backbone, data)
    expected = loss_by_hand(backbone, user, item, batch)
    names, parameters = zip(*backbone.named_parameters(), strict=True)
    wanted = torch.autograd.grad(sum(expected.values()), parameters)
    for used in (graph, backbone.sample_graph(graph, 0)):
        stages = backbone(used)
        torch.testing.assert_close(stages.output["user"], user)
        torch.testing.assert_close(stages.output["item"], item, rtol=1e-5, atol=1e-6)
        loss = backbone.loss(stages, batch)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        found = torch.autograd.grad(sum(loss.values()), parameters)
        for name, x, y in zip(names, found, wanted, strict=True):
            scale = float(y.abs().max())
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5 * scale + 1e-12, msg=name)
            of_graph = name.startswith(("projection", "features"))
            constant = of_graph and backbone.original_weight == 1
            constant = constant or name == "modality_logits" and len(backbone.modalities) == 1
            assert constant or scale > 1e-7, name


def test_items_without_any_modality_keep_their_collaborative_vector(make_data):
    data = make_data(masks={"text": MASK, "image": MASK}, image=6, text=5)
    backbone = LATTICE.from_data(data, embedding_dim=8, k=3, cf_model="mf")
    stages = backbone(backbone.graph(data))
    own = backbone.item_embedding.weight
    assert torch.equal(stages.output["item"][~MASK], own[~MASK])
    assert stages.output["item"][MASK].ne(own[MASK]).any(1).all()


def test_values_of_lacking_modalities_are_not_read(make_data):
    data = make_data(masks={"text": MASK}, image=6, text=5)
    backbone = LATTICE.from_data(data, embedding_dim=8, k=3)
    item = backbone(backbone.graph(data)).output["item"]
    data["text"].x = data["text"].x.masked_fill(~MASK[:, None], 100.0)
    assert torch.equal(backbone(backbone.graph(data)).output["item"], item)


def test_features_of_zeros_give_finite_gradients(make_data, sample):
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)) * MASK[:, None]
    data = make_data(image=x)
    backbone = LATTICE.from_data(data, preset="mmrec", embedding_dim=8, k=3)
    sum(backbone.loss(backbone(backbone.graph(data)), sample(data, 30)).values()).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad.abs().max() < 10, name


# When the item graph is learned ------------------------------------------------------------------


def test_gradients_reach_the_item_graph_in_an_epochs_first_step_only(tiny):
    torch.manual_seed(0)
    backbone = LATTICE.from_data(tiny, preset="mmrec", embedding_dim=8)
    calls = {}
    for name, parameter in backbone.named_parameters():
        calls[name] = []
        parameter.register_hook(lambda grad, seen=calls[name]: seen.append(grad.abs().sum() > 0))
    num_batches = 4
    size = -(-tiny["user", "interacts", "item"].edge_index.size(1) // num_batches)
    options = TrainingOptions(batch_size=size, epochs=3, learning_rate=0.01)
    Trainer(Objective(backbone), tiny, options, progress=False).fit()
    for name, seen in calls.items():
        steps = 3 * num_batches if "embedding" in name else 3
        assert seen == [True] * steps, name


def test_the_epochs_item_graph_stays_while_weights_move(tiny, sample):
    torch.manual_seed(0)
    backbone = LATTICE.from_data(tiny, embedding_dim=8)
    graph = backbone.graph(tiny)
    sampled = backbone.sample_graph(graph, 0)
    assert SIMILAR not in graph.adjacency and sampled.adjacency[SIMILAR].weight.requires_grad
    before = backbone(sampled).hidden["item/layer_1"]
    torch.testing.assert_close(backbone(graph).hidden["item/layer_1"], before)
    with torch.no_grad():
        for linear in backbone.projection.values():
            linear.weight.normal_()
    assert torch.equal(backbone(sampled).hidden["item/layer_1"], before)
    moved = backbone(graph).hidden["item/layer_1"]  # as in ranking: learned from present weights
    assert (moved - before).abs().max() > 1e-3
    again = backbone(backbone.sample_graph(graph, 1)).hidden["item/layer_1"]
    torch.testing.assert_close(again, moved)


def test_a_sampled_graph_may_be_read_several_times(tiny, sample):
    torch.manual_seed(0)
    backbone = LATTICE.from_data(tiny, embedding_dim=8)
    graph, batches = backbone.graph(tiny), [sample(tiny, seed=0), sample(tiny, seed=1)]
    parameters = list(backbone.parameters())

    def gradients(runs):
        loss = sum(sum(backbone.loss(backbone(g), b).values()) for g, b in runs)
        return torch.autograd.grad(loss, parameters)

    sampled = backbone.sample_graph(graph, 0)
    together = gradients([(sampled, batch) for batch in batches])
    apart = [gradients([(backbone.sample_graph(graph, 0), batch)]) for batch in batches]
    for x, *parts in zip(together, *apart, strict=True):
        assert x.count_nonzero()
        torch.testing.assert_close(x, sum(parts))


def test_a_batchs_rows_are_those_of_all_on_a_sampled_graph(tiny, sample):
    torch.manual_seed(0)
    backbone = LATTICE.from_data(tiny, embedding_dim=8)
    sampled, batch = backbone.sample_graph(backbone.graph(tiny), 0), sample(tiny)
    stages, every = backbone(sampled, batch.rows), backbone(sampled)
    for key in ("user", "item"):
        torch.testing.assert_close(stages.output[key], batch.rows.at(key, every.output[key]))
    assert stages.modality == {} and list(every.modality) == ["image", "text"]
    assert list(backbone.project(sampled)) == ["image", "text"]  # for methods that read them


# What the graph is made of -----------------------------------------------------------------------


def test_neither_a_fused_graph_nor_weights_of_the_interactions_are_read(tiny):
    torch.manual_seed(0)
    backbone = LATTICE.from_data(tiny, embedding_dim=8)
    plain = backbone(backbone.graph(tiny)).output
    fused = FuseModalityGraphs("cosine")(ModalityKNNGraph(10)(NormalizeInteractions()(tiny)))
    graph = backbone.graph(fused)
    assert SIMILAR not in graph.adjacency
    assert graph.adjacency[INTERACTS].weight.eq(1).all()
    for key, x in backbone(graph).output.items():
        assert torch.equal(x, plain[key])


def test_the_item_graph_is_sparse_with_one_edge_per_pair(tiny):
    backbone = LATTICE.from_data(tiny, embedding_dim=8, k=4)
    similar = backbone.item_graph(backbone.graph(tiny))
    pairs = similar.edge_index.unique(dim=1)
    assert similar.num_edges == pairs.size(1) <= 4 * 4 * tiny["item"].num_nodes


def test_with_the_original_graphs_alone_the_item_graph_is_the_fused_one(tiny):
    backbone = LATTICE.from_data(tiny, embedding_dim=8, original_weight=1.0)
    data = FuseModalityGraphs("cosine")(ModalityKNNGraph(10)(copy.copy(tiny)))
    similar = data[SIMILAR]
    dense = torch.zeros(90, 90)
    dense[similar.edge_index[1], similar.edge_index[0]] = similar.edge_weight
    with torch.no_grad():
        ours = densified(backbone.item_graph(backbone.graph(tiny)), 90)
    torch.testing.assert_close(ours, dense)


def test_original_graphs_stay_those_of_the_features_as_loaded(tiny):
    backbone = LATTICE.from_data(tiny, preset="mmrec", embedding_dim=8, original_weight=1.0)
    before = densified(backbone.item_graph(backbone.graph(tiny)), 90)
    backbone.features["text"].data.normal_()
    assert torch.equal(densified(backbone.item_graph(backbone.graph(tiny)), 90), before)
    backbone.original_weight = 0.5
    moved = densified(backbone.item_graph(backbone.graph(tiny)), 90)
    assert (moved - before).abs().max() > 1e-3


def test_modalities_start_with_equal_weights(tiny):
    backbone = LATTICE.from_data(tiny)
    assert torch.equal(backbone.modality_logits, torch.zeros(2))
    assert backbone.training_defaults == {"lr_decay": 0.96, "lr_decay_epochs": 50}


def test_squares_are_divided_by_the_configured_batch_size(tiny, sample):
    torch.manual_seed(0)
    backbone = LATTICE.from_data(tiny, embedding_dim=8, batch_size=100)
    stages, batch = backbone(backbone.graph(tiny)), sample(tiny, 32)
    penalty = backbone.loss(stages, batch)["regularization"]
    backbone.batch_size = 50
    torch.testing.assert_close(backbone.loss(stages, batch)["regularization"], 2 * penalty)


# Errors ------------------------------------------------------------------------------------------


def test_data_without_features_are_refused(make_data):
    data = ModalityKNNGraph(3)(make_data(image=6, text=5))
    for name in ("image", "text"):
        del data[name].x
    with pytest.raises(ValueError, match=r"LATTICE reads the features of \['image', 'text'\]"):
        LATTICE.from_data(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 0}, r"'embedding_dim' needs to be a positive integer \(got 0\)"),
        ({"num_item_layers": 0}, r"'num_item_layers' needs to be a positive integer \(got 0\)"),
        ({"num_layers": 0}, r"'num_layers' needs to be a positive integer \(got 0\)"),
        ({"k": 0}, r"'k' needs to be a positive integer \(got 0\)"),
        ({"batch_size": 0}, r"'batch_size' needs to be a positive integer \(got 0\)"),
        ({"reg_weight": -1.0}, r"'reg_weight' needs to be a number of 0 or more \(got -1.0\)"),
        ({"original_weight": 1.1}, r"'original_weight' needs to lie in \[0, 1\] \(got 1.1\)"),
        (
            {"cf_model": "ngcf"},
            r"'cf_model' needs to be one of \['lightgcn', 'mf'\] \(got 'ngcf'\)",
        ),
        ({"modalities": ["image", "audio"]}, "'modalities' names 'audio', but the data have"),
    ],
)
def test_bad_options_are_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        LATTICE.from_data(tiny, **options)


# Memory ------------------------------------------------------------------------------------------

STEPS = """
import resource, sys
from itertools import islice
import torch
from pyg_mmrec.data import MultimodalDataset
from pyg_mmrec.nn.backbones import LATTICE
from pyg_mmrec.nn.objectives import Objective
from pyg_mmrec.training import Trainer, TrainingOptions, TripletSampler

data = MultimodalDataset(sys.argv[1], "sports_proxy")[0]
backbone = LATTICE.from_data(data, preset="mmrec")
trainer = Trainer(Objective(backbone), data, TrainingOptions(), progress=False)
graph = backbone.sample_graph(trainer.graph, 0)
sampler = TripletSampler(
    data["user", "interacts", "item"].edge_index, backbone.num_users, backbone.num_items
)
for batch in islice(sampler.epoch(2048), 5):
    sum(trainer.objective(graph, batch).values()).backward()
    trainer.optimizers["adam"].step()
    trainer.optimizers["adam"].zero_grad()
    graph = graph.detach()
trainer.evaluate("val")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_training_steps_and_a_ranking_on_real_data_stay_below_two_gib(data_root):
    if not (data_root / "sports_proxy").is_dir():
        pytest.skip("there is no data set 'sports_proxy'")
    command = [sys.executable, "-c", STEPS, str(data_root)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) < 2048  # MiB; 18,357 items squared take 1285 MiB alone
