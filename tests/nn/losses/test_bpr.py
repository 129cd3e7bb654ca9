import math

import pytest
import torch

from pyg_mmrec.nn.losses import BPRLoss, bpr_loss, triplet_scores


@pytest.mark.parametrize("epsilon", [0.0, 1e-10, 1e-2])
def test_equals_the_formula_pair_by_pair(epsilon):
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 9, dtype=torch.float64, generator=generator)
    terms = [
        -math.log(1 / (1 + math.exp(-(p - n))) + epsilon)
        for p, n in zip(positive.tolist(), negative.tolist(), strict=True)
    ]
    assert bpr_loss(positive, negative, epsilon).item() == pytest.approx(sum(terms) / 9, rel=1e-12)
    torch.testing.assert_close(
        BPRLoss(epsilon)(positive, negative), bpr_loss(positive, negative, epsilon)
    )


@pytest.mark.parametrize("epsilon", [0.0, 1e-10])
def test_gradcheck(epsilon):
    scores = torch.randn(
        2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: bpr_loss(s[0], s[1], epsilon), scores)


def test_scores_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"need the same shape \(got \[3\] and \[3, 1\]\)"):
        bpr_loss(torch.zeros(3), torch.zeros(3, 1))


def test_equal_scores_give_ln_2_and_order_does_not_matter():
    same = torch.tensor([3.0, -1.0, 0.5])
    assert bpr_loss(same, same).item() == pytest.approx(math.log(2))
    positive, negative = torch.randn(2, 30, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        bpr_loss(positive[order], negative[order]), bpr_loss(positive, negative)
    )


def test_wide_gaps_stay_finite():
    far = torch.tensor([-200.0], requires_grad=True)
    loss = bpr_loss(far, torch.zeros(1))
    loss.backward()
    assert loss.item() == pytest.approx(200) and far.grad.item() == pytest.approx(-1)
    # With epsilon inside the logarithm the loss is bounded.
    bounded = bpr_loss(torch.tensor([-200.0]), torch.zeros(1), 1e-10)
    assert bounded.item() == pytest.approx(-math.log(1e-10), rel=1e-5)


def test_scores_of_triplets_are_inner_products():
    user, item = torch.randn(3, 4), torch.randn(6, 4)
    positive, negative = triplet_scores(user, item)
    for row in range(3):
        assert positive[row].item() == pytest.approx(float(user[row] @ item[row]), rel=1e-5)
        assert negative[row].item() == pytest.approx(float(user[row] @ item[3 + row]), rel=1e-5)
