import pytest
import torch

from pyg_mmrec.data.graph import SIMILAR
from pyg_mmrec.nn.backbones import VLATTICE, VLightGCN
from pyg_mmrec.transforms import FuseModalityGraphs, ModalityKNNGraph

# Its vectors, loss and gradients are compared with dense matrices in test_formulas.py.


def build(data, **options):
    torch.manual_seed(0)
    return VLATTICE.from_data(data, embedding_dim=8, **options)


def densified(adjacency):
    dense = torch.zeros(adjacency.size[::-1])
    source, target = adjacency.edge_index
    return dense.index_put((target, source), adjacency.weight)


def total(backbone, graph, batch):
    return sum(backbone.loss(backbone(graph), batch).values())


def test_items_are_those_of_vlightgcn_and_a_row_of_length_one(tiny):
    backbone = build(tiny)
    graph = backbone.graph(tiny)
    plain = VLightGCN.from_data(tiny, embedding_dim=8)
    plain.load_state_dict(backbone.state_dict(), strict=False)
    ours, theirs = backbone(graph).output, plain(plain.graph(tiny)).output
    assert torch.equal(ours["user"], theirs["user"])
    norm = torch.linalg.vector_norm(ours["item"] - theirs["item"], dim=1)
    torch.testing.assert_close(norm, torch.ones(90))


def test_items_without_any_modality_are_those_of_vlightgcn(make_data):
    mask = torch.arange(20) % 3 > 0
    data = make_data(masks={"text": mask, "image": mask}, image=6, text=5)
    backbone = build(data, k=3)
    plain = VLightGCN.from_data(data, embedding_dim=8)
    plain.load_state_dict(backbone.state_dict(), strict=False)
    ours = backbone(backbone.graph(data)).output["item"]
    theirs = plain(plain.graph(data)).output["item"]
    assert torch.equal(ours[~mask], theirs[~mask]) and ours[mask].ne(theirs[mask]).any(1).all()


def test_the_item_graph_is_mixed_from_present_weights(tiny):
    backbone = build(tiny, k=4)
    graph = backbone.graph(tiny)
    assert SIMILAR not in graph.adjacency
    equal = densified(backbone.item_graph(graph))
    image = densified(graph.adjacency["image", "similar", "image"])
    text = densified(graph.adjacency["text", "similar", "text"])
    with torch.no_grad():
        backbone.modality_logits.copy_(torch.tensor([20.0, 0.0]))
    only_image = densified(backbone.item_graph(graph))
    for mixed, expected in ((equal, (image + text) / 2), (only_image, image)):
        root = expected.sum(1).rsqrt()
        torch.testing.assert_close(mixed, root[:, None] * expected * root, rtol=1e-4, atol=1e-6)


def test_every_step_moves_the_modality_weights(tiny, sample):
    backbone = build(tiny)
    graph = backbone.graph(tiny)
    optimizer = torch.optim.Adam([backbone.modality_logits], lr=0.1)
    for seed in range(3):
        before = backbone.modality_logits.detach().clone()
        optimizer.zero_grad()
        total(backbone, graph, sample(tiny, seed=seed)).backward()
        optimizer.step()
        assert backbone.modality_logits.ne(before).all()


def test_an_item_graph_that_is_given_is_taken(tiny, sample):
    backbone = build(tiny)
    graph, batch = backbone.graph(tiny), sample(tiny)
    similar = backbone.item_graph(graph)

    def given(weight):
        return graph.replace(adjacency={**graph.adjacency, SIMILAR: similar.with_weight(weight)})

    weight = similar.weight.detach().clone().requires_grad_()
    torch.testing.assert_close(backbone(given(weight)).output, backbone(graph).output)
    total(backbone, given(weight), batch).backward()
    assert weight.grad.count_nonzero() and backbone.modality_logits.grad is None
    masked = weight.detach() * (torch.arange(weight.numel()) % 3 > 0)
    item = backbone(given(masked)).output["item"]
    assert (item - backbone(graph).output["item"]).abs().max() > 1e-3


def test_an_attached_item_graph_may_be_read_twice(tiny, sample):
    backbone = build(tiny)
    graph, parameters = backbone.graph(tiny), list(backbone.parameters())
    given = graph.replace(adjacency={**graph.adjacency, SIMILAR: backbone.item_graph(graph)})
    batches = [sample(tiny, seed=0), sample(tiny, seed=1)]
    together = torch.autograd.grad(sum(total(backbone, given, b) for b in batches), parameters)
    apart = [torch.autograd.grad(total(backbone, graph, b), parameters) for b in batches]
    for x, *parts in zip(together, *apart, strict=True):
        torch.testing.assert_close(x, sum(parts))


def test_a_fused_graph_of_the_data_is_not_read(tiny):
    backbone = build(tiny)
    plain = backbone(backbone.graph(tiny)).output
    fused = FuseModalityGraphs()(ModalityKNNGraph(10)(tiny))
    graph = backbone.graph(fused)
    assert SIMILAR not in graph.adjacency
    for key, x in backbone(graph).output.items():
        assert torch.equal(x, plain[key])


def test_modalities_start_with_equal_weights(tiny):
    backbone = build(tiny)
    assert torch.equal(backbone.modality_logits, torch.zeros(2))
    backbone.modality_logits.data.normal_()
    backbone.reset_parameters()
    assert torch.equal(backbone.modality_logits, torch.zeros(2))


@pytest.mark.parametrize("name", ["num_item_layers", "k"])
def test_bad_options_are_refused(tiny, name):
    with pytest.raises(ValueError, match=rf"'{name}' needs to be a positive integer \(got 0\)"):
        VLATTICE.from_data(tiny, **{name: 0})
