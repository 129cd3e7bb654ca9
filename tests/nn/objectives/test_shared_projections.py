"""What a method has projected in a step is not projected again, and not taken for anything else."""

import pytest
import torch

from pyg_mmrec.nn.backbones import FREEDOM, LATTICE, VLATTICE
from pyg_mmrec.nn.objectives import AMR, FIB, GIB, Objective


@pytest.mark.parametrize("with_fib", [False, True])
@pytest.mark.parametrize(
    ("cls", "options"),
    [(VLATTICE, {}), (FREEDOM, {}), (FREEDOM, {"reg_weight": 0}), (LATTICE, {})],
)
def test_items_are_projected_once_a_step(cls, options, with_fib, tiny, sample, monkeypatch):
    methods = [FIB(), GIB()] if with_fib else [GIB()]
    objective = Objective(cls.from_data(tiny, embedding_dim=8, **options), *methods)
    backbone = objective.backbone
    graph = backbone.sample_graph(backbone.graph(tiny), 0).detach()
    content, calls = type(backbone).content, []

    def counted(self, *arguments):
        calls.append(arguments)
        return content(self, *arguments)

    monkeypatch.setattr(cls, "content", counted)
    objective(graph, sample(tiny, 16))
    assert len(calls) == 1


def test_projections_go_with_the_features_they_are_of(tiny):
    objective = Objective(VLATTICE.from_data(tiny, embedding_dim=8), GIB())
    backbone = objective.backbone
    refined = objective.methods[0].refine(backbone, backbone.graph(tiny))
    assert list(refined.content) == ["image", "text"]
    assert backbone.project(refined)["text"] is refined.content["text"]
    mask = {"text": torch.arange(tiny["item"].num_nodes) % 2 > 0}
    changed = {name: x + 1 for name, x in refined.x.items()}
    for other in (refined.replace(x=changed), refined.replace(mask=mask)):
        assert not other.content
        expected = backbone.content(other)
        torch.testing.assert_close(backbone.project(other), expected)
        assert not torch.equal(expected["text"], refined.content["text"])


def test_adversarial_features_reach_the_loss_beside_a_mask(tiny, sample):
    methods = [GIB(weight=0), AMR(epsilon=5.0, kind="random")]
    objective = Objective(VLATTICE.from_data(tiny, embedding_dim=8), *methods)
    graph = objective.backbone.graph(tiny)
    terms = objective(graph, sample(tiny, 16))
    clean = sum(terms[name] for name in terms if "/" not in name)
    assert abs(terms["amr/adversarial"] - clean) > 1e-3
