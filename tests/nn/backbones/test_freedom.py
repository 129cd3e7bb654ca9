import copy

import pytest
import torch
from torch.utils import _pytree as pytree

from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS, SIMILAR
from pyg_mmrec.nn.backbones import FREEDOM, Triplets
from pyg_mmrec.transforms import ModalityKNNGraph, num_kept_edges, symmetric_normalization


def dense_item_graph(data, weights, k):
    """Row = item, column = its neighbour: 1/k where both have the modality, mixed by weights."""
    num_items = data["item"].num_nodes
    total = torch.zeros(num_items, num_items)
    has = {m: data[m].get("mask", torch.ones(num_items).bool()) for m in weights}
    for m, weight in weights.items():
        rows = has[m].nonzero().squeeze(1)
        unit = torch.nn.functional.normalize(data[m].x[rows].double(), dim=1)
        for row, item in enumerate(rows.tolist()):
            share = weight / sum(weights[n] for n in weights if has[n][item])
            for neighbour in (unit @ unit[row]).topk(k).indices:
                total[item, rows[neighbour]] += share / k
    return total


def dense_stages(backbone, data, graph):
    """Final vectors with dense matrices, on the interactions of ``graph``."""
    user, item = backbone.user_embedding.weight, backbone.item_embedding.weight
    liked = torch.zeros(backbone.num_users, backbone.num_items)
    liked[tuple(graph.adjacency[INTERACTS].edge_index)] = 1
    a = liked / liked.sum(1).clamp(min=1e-7).sqrt()[:, None]
    a = a / liked.sum(0).clamp(min=1e-7).sqrt()
    users, items = [user], [item]
    for _ in range(backbone.propagation.num_layers):
        users.append(a @ items[-1])
        items.append(a.t() @ users[-2])
    h = item
    similar = dense_item_graph(data, backbone.modality_weights, backbone.k)
    for _ in range(backbone.num_item_layers):
        h = similar @ h
    return torch.stack(users).mean(0), torch.stack(items).mean(0) + h


def loss_by_hand(backbone, data, user, item, batch):
    ids = list(zip(batch.user, batch.positive, batch.negative, strict=True))
    terms = {"bpr": torch.stack(
        [-(user[u] @ (item[i] - item[j])).sigmoid().log() for u, i, j in ids]
    ).mean()}  # fmt: skip
    for m in backbone.modalities:
        mask = data[m].get("mask", torch.ones(backbone.num_items).bool())
        linear = backbone.projection[m]
        own = [
            -(user[u] @ (linear(data[m].x[i]) - linear(data[m].x[j]))).sigmoid().log()
            for u, i, j in ids
            if mask[i] and mask[j]
        ]
        mean = torch.stack(own).mean() if own else torch.zeros(())
        terms[f"bpr_{m}"] = backbone.reg_weight * mean
    return terms


MASK = torch.arange(20) % 3 > 0


@pytest.mark.parametrize(
    ("channels", "masks", "options"),
    [
        ({"image": 6, "text": 5}, {}, {}),
        ({"image": 6, "text": 5}, {}, {"num_item_layers": 2, "num_layers": 3}),
        ({"image": 6, "text": 5}, {"text": MASK}, {"num_item_layers": 2}),
        ({"image": 6, "text": 5}, {"text": MASK, "image": ~MASK}, {}),
        ({"audio": 4}, {}, {}),
        ({"audio": 4}, {"audio": MASK}, {}),
        ({"video": 4, "audio": 3, "text": 5}, {"audio": MASK}, {}),
        (
            {"image": 6, "text": 5, "audio": 4},
            {},
            {"modality_weights": {"audio": 0.5, "image": 0.2, "text": 0.3}},
        ),
    ],
    ids=["two", "deep", "mask", "masks", "one", "one-mask", "three-mask", "weights"],
)
def test_equals_dense_reference(make_data, sample, channels, masks, options):
    data = make_data(masks=masks, **channels)
    torch.manual_seed(0)
    backbone = FREEDOM.from_data(data, embedding_dim=8, k=3, reg_weight=0.1, **options)
    graph = backbone.graph(data)
    batch = sample(data, 30)
    pruned = backbone.sample_graph(graph, 0, torch.Generator().manual_seed(0))
    for used in (graph, pruned):
        stages = backbone(used)
        user, item = dense_stages(backbone, data, used)
        torch.testing.assert_close(stages.output["user"], user)
        torch.testing.assert_close(stages.output["item"], item)
        expected = loss_by_hand(backbone, data, user, item, batch)
        torch.testing.assert_close(backbone.loss(stages, batch), expected)


def test_default_weights_are_a_tenth_for_the_first_modality(make_data):
    def weights(names, **options):
        return FREEDOM(3, 4, dict.fromkeys(names, 2), **options).modality_weights

    assert weights(["text", "image"]) == {"image": 0.1, "text": 0.9}
    assert weights(["b", "a", "text"]) == {"text": 0.1, "a": 0.45, "b": 0.45}
    assert weights(["text", "image"], modalities=["text", "image"]) == {"text": 0.1, "image": 0.9}
    assert weights(["audio"]) == {"audio": 1.0}


def test_a_batch_without_a_pair_that_has_the_modality_adds_nothing(make_data):
    data = make_data(masks={"text": MASK}, image=6, text=5)
    backbone = FREEDOM.from_data(data, embedding_dim=8, k=3)
    stages = backbone(backbone.graph(data))
    ids = torch.tensor([0, 1])
    batch = Triplets(ids, torch.tensor([0, 4]), torch.tensor([4, 3]))  # items 0 and 3 have no text
    loss = backbone.loss(stages, batch)
    assert loss["bpr_text"].item() == 0 and loss["bpr_image"].item() > 0
    sum(loss.values()).backward()
    assert backbone.projection["text"].weight.grad.eq(0).all()


def only_graphs(data):
    """The data as a folder gives them that has neighbours but no features."""
    data = ModalityKNNGraph(3)(data)
    for name in ("image", "text"):
        del data[name].x
    return data


def test_item_graphs_do_without_features_unless_these_are_weighted(make_data, sample):
    full = make_data(image=6, text=5)
    data = only_graphs(copy.copy(full))
    torch.manual_seed(0)
    backbone = FREEDOM.from_data(data, embedding_dim=8, k=3, reg_weight=0)
    graph = backbone.graph(data)
    assert graph.x == {} and backbone.modalities == ["image", "text"]
    stages = backbone(graph)
    assert list(backbone.loss(stages, sample(data, 8))) == ["bpr"]
    user, item = dense_stages(backbone, full, graph)
    torch.testing.assert_close(stages.output["item"], item)
    with pytest.raises(
        ValueError, match=r"reads the features of \['image', 'text'\], which the data lack: set reg"
    ):
        FREEDOM.from_data(data, reg_weight=0.1)
    weighted = FREEDOM.from_data(full, embedding_dim=8, k=3, reg_weight=0.1)
    with pytest.raises(ValueError, match="features of modality 'image', which the data lack"):
        weighted(graph)


def test_graphs_of_too_few_neighbours_and_no_features_are_refused(make_data):
    data = only_graphs(make_data(image=6, text=5))
    backbone = FREEDOM.from_data(data, k=10, reg_weight=0)
    with pytest.raises(ValueError, match="only k=3"):
        backbone.graph(data)


def test_sample_graph_keeps_the_right_number_and_renormalises(tiny):
    backbone = FREEDOM.from_data(tiny, embedding_dim=8, edge_dropout=0.7)
    graph = backbone.graph(tiny)
    full = graph.adjacency[INTERACTS]
    pruned = backbone.sample_graph(graph, 0, torch.Generator().manual_seed(0))
    kept = pruned.adjacency[INTERACTS]
    assert kept.num_edges == num_kept_edges(full.num_edges, 0.7) < full.num_edges
    pairs = set(map(tuple, full.edge_index.t().tolist()))
    drawn = list(map(tuple, kept.edge_index.t().tolist()))
    assert len(set(drawn)) == len(drawn) and set(drawn) < pairs
    expected = symmetric_normalization(kept.edge_index, 120, 90)
    torch.testing.assert_close(kept.weight, expected)
    reverse = pruned.adjacency[INTERACTED_BY]
    assert torch.equal(reverse.edge_index.flip(0)[:, kept.perm], kept.edge_index)
    assert torch.equal(reverse.weight[kept.perm], kept.weight)
    assert pruned.adjacency[SIMILAR] is graph.adjacency[SIMILAR]


def test_sample_graph_prunes_by_degree_and_afresh(tiny):
    backbone = FREEDOM.from_data(tiny, embedding_dim=8)
    graph = backbone.graph(tiny)
    full = graph.adjacency[INTERACTS]
    generator = torch.Generator().manual_seed(0)
    position = {tuple(pair): e for e, pair in enumerate(full.edge_index.t().tolist())}
    count = torch.zeros(full.num_edges)
    for epoch in range(200):
        pruned = backbone.sample_graph(graph, epoch, generator).adjacency[INTERACTS]
        count[[position[tuple(pair)] for pair in pruned.edge_index.t().tolist()]] += 1
    assert count.max() < 200 and count.sum() == 200 * num_kept_edges(full.num_edges, 0.8)
    light, heavy = full.weight.topk(200).indices, (-full.weight).topk(200).indices
    # Drawn in proportion to 1 / sqrt(d_u d_i), somewhat less at so large a share.
    ratio = (count[light].mean() / count[heavy].mean()).item()
    expected = (full.weight[light].mean() / full.weight[heavy].mean()).item()
    assert 0.7 * expected < ratio < 1.05 * expected


def test_sample_graph_without_dropout_is_the_graph(tiny):
    backbone = FREEDOM.from_data(tiny, edge_dropout=0)
    graph = backbone.graph(tiny)
    assert backbone.sample_graph(graph, 0) is graph


def test_sampling_leaves_the_graph_alone(tiny):
    backbone = FREEDOM.from_data(tiny)
    graph = backbone.graph(tiny)
    before = [x.clone() for x in pytree.tree_leaves(graph) if isinstance(x, torch.Tensor)]
    backbone.sample_graph(graph, 0)
    after = [x for x in pytree.tree_leaves(graph) if isinstance(x, torch.Tensor)]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_trained_features_start_from_the_data_and_get_a_gradient(tiny, sample):
    backbone = FREEDOM.from_data(tiny, preset="mmrec")
    assert torch.equal(backbone.features["text"], tiny["text"].x)
    graph = backbone.graph(tiny)
    sum(backbone.loss(backbone(graph), sample(tiny)).values()).backward()
    assert backbone.features["text"].grad.abs().sum() > 0
    backbone.features["text"].data.add_(1)
    assert torch.equal(graph.x["text"], tiny["text"].x)  # a copy, not the data
    again = backbone.graph(tiny)  # the item graph is that of the features as loaded
    assert torch.equal(again.adjacency[SIMILAR].weight, graph.adjacency[SIMILAR].weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edge_dropout": 1.0}, r"'edge_dropout' needs to lie in \[0, 1\) \(got 1.0\)"),
        ({"num_item_layers": 0}, "'num_item_layers' needs to be a positive integer"),
        ({"k": 0}, "'k' needs to be a positive integer"),
        ({"num_layers": -1}, "'num_layers' needs to be an integer of 0 or more"),
        ({"reg_weight": -1.0}, "'reg_weight' needs to be a number of 0 or more"),
        (
            {"modality_weights": {"image": 1.0}},
            r"one weight for each of \['image', 'text'\] \(got \['image'\]\)",
        ),
        ({"modality_weights": {"image": 0.5, "text": 0.6}}, "'weights' need to sum to 1"),
        ({"modality_weights": {"image": -0.5, "text": 1.5}}, "at least 0 .*modality 'image'"),
        ({"modalities": ["image", "audio"]}, "'modalities' names 'audio', but the data have"),
    ],
)
def test_bad_options_are_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        FREEDOM.from_data(tiny, **options)


def test_trained_features_need_to_be_given():
    with pytest.raises(ValueError, match=r"'train_features' needs 'features' .*\['text'\]"):
        FREEDOM(3, 4, {"text": 2}, train_features=True)
