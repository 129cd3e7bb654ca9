import pytest
import torch

from pyg_mmrec.nn.functional import confidence_weight

SOURCE = torch.tensor([2, 0, 1, 2, 2, 0])


@pytest.mark.parametrize("num_modalities", [1, 3])
def test_equals_the_formula_edge_by_edge(num_modalities):
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(6, num_modalities, dtype=torch.float64, generator=generator)
    confidence = torch.randn(3, num_modalities, dtype=torch.float64, generator=generator)
    confidence[0] = -confidence[0].abs()
    attention.requires_grad_()
    confidence.requires_grad_()
    weight = confidence_weight(attention, confidence, SOURCE)
    for e, j in enumerate(SOURCE.tolist()):
        products = [attention[e, m].item() * confidence[j, m].item() for m in range(num_modalities)]
        assert weight[e].item() == pytest.approx(max(0.0, *products))
    assert 0 < weight.count_nonzero() < 6  # both sides of the ReLU occur
    assert torch.autograd.gradcheck(
        lambda a, c: confidence_weight(a, c, SOURCE), (attention, confidence)
    )


def test_one_of_equal_products_gets_the_gradient():
    attention = torch.full((6, 2), 0.5, requires_grad=True)
    confidence_weight(attention, torch.ones(3, 2), SOURCE).sum().backward()
    assert attention.grad.sort(1).values.tolist() == [[0.0, 1.0]] * 6


@pytest.mark.parametrize(("rows", "columns"), [(5, 2), (6, 3)])
def test_bad_shapes_are_refused(rows, columns):
    with pytest.raises(ValueError, match=r"'attention' one row per edge, shape \[6, 2\] \(got \["):
        confidence_weight(torch.ones(rows, columns), torch.ones(3, 2), SOURCE)
