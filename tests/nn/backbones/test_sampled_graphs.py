"""The graphs that LayerGCN and SelfCF draw for training."""

import pytest
import torch

from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS
from pyg_mmrec.nn.backbones import LayerGCN, SelfCF
from pyg_mmrec.transforms import prune_interactions, symmetric_normalization


def dense(adjacency):
    matrix = torch.zeros(adjacency.size)
    matrix[tuple(adjacency.edge_index)] = adjacency.weight
    return matrix


def test_pruned_graphs_are_normalised_on_what_is_kept(tiny):
    graph = LayerGCN.from_data(tiny).graph(tiny)
    kept = torch.arange(0, graph.adjacency[INTERACTS].num_edges, 3)
    pruned = prune_interactions(graph, kept)
    edge_index = graph.adjacency[INTERACTS].edge_index[:, kept]
    expected = torch.zeros(120, 90)
    expected[tuple(edge_index)] = symmetric_normalization(edge_index, 120, 90)
    torch.testing.assert_close(dense(pruned.adjacency[INTERACTS]), expected)
    torch.testing.assert_close(dense(pruned.adjacency[INTERACTED_BY]), expected.t())


def test_layergcn_prunes_by_degree_and_uniformly_in_turns(tiny):
    backbone = LayerGCN.from_data(tiny, edge_dropout=0.5)
    graph, generator = backbone.graph(tiny), torch.Generator().manual_seed(0)
    full = dense(graph.adjacency[INTERACTS])
    edges = full > 0
    share = []
    for parity in (0, 1):
        count = torch.zeros(120, 90)
        for draw in range(60):
            pruned = backbone.sample_graph(graph, 2 * draw + parity, generator)
            kept = dense(pruned.adjacency[INTERACTS]) > 0
            assert kept.sum() == edges.sum() // 2 and not (kept & ~edges).any()
            count += kept
        light, heavy = full[edges] > full[edges].median(), full[edges] <= full[edges].median()
        share.append([count[edges][half].mean().item() / 60 for half in (light, heavy)])
    (light, heavy), (one, other) = share
    assert light > heavy + 0.1  # fewer interactions of popular items and active users
    assert abs(one - 0.5) < 0.02 and abs(other - 0.5) < 0.02


@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_selfcf_drops_entries_of_both_directions_independently(tiny, rate):
    backbone = SelfCF.from_data(tiny, edge_dropout=rate)
    graph = backbone.graph(tiny)
    drawn = backbone.sample_graph(graph, 0, torch.Generator().manual_seed(0))
    full = dense(graph.adjacency[INTERACTS])
    edges = full > 0
    to_item = dense(drawn.adjacency[INTERACTS])[edges] / full[edges]
    to_user = dense(drawn.adjacency[INTERACTED_BY]).t()[edges] / full[edges]
    for ratio in (to_item, to_user):
        torch.testing.assert_close(ratio, (ratio > 0) / (1 - rate))
        assert abs((ratio > 0).float().mean() - (1 - rate)) < 0.05
    both = ((to_item > 0) & (to_user > 0)).float().mean()
    assert abs(both - (1 - rate) ** 2) < 0.05


def test_selfcf_draws_the_rate_anew_in_every_step(tiny):
    backbone = SelfCF.from_data(tiny)
    graph, generator = backbone.graph(tiny), torch.Generator().manual_seed(0)
    rates = []
    for _ in range(200):
        drawn = backbone.sample_graph(graph, 0, generator).adjacency
        share = [(drawn[key].weight == 0).float().mean() for key in (INTERACTS, INTERACTED_BY)]
        assert abs(share[0] - share[1]) < 0.07  # one rate for both directions
        rates.append(share[0])
    rates = torch.stack(rates)
    assert rates.min() < 0.05 and rates.max() > 0.95 and abs(rates.mean() - 0.5) < 0.08


def test_without_dropout_the_graph_stays(tiny):
    for backbone in (
        LayerGCN.from_data(tiny, edge_dropout=0.0),
        SelfCF.from_data(tiny, edge_dropout=None),
        SelfCF.from_data(tiny, edge_dropout=0.0),
    ):
        graph = backbone.graph(tiny)
        assert backbone.graph_sampling == "never"
        assert backbone.sample_graph(graph, 0) is graph
    assert LayerGCN.from_data(tiny).graph_sampling == "epoch"
    assert SelfCF.from_data(tiny, edge_dropout=0.1).graph_sampling == "step"
    assert SelfCF.from_data(tiny).graph_sampling == "step"
