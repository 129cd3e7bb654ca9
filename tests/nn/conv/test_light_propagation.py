import pytest
import torch

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.conv import LightPropagation

NUM_USERS, NUM_ITEMS = 4, 6


@pytest.fixture
def graph():
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(NUM_USERS, NUM_ITEMS, dtype=torch.float64, generator=generator)
    weight = weight * (torch.rand(NUM_USERS, NUM_ITEMS, generator=generator) < 0.5)
    edge_index = weight.nonzero().t()
    adjacency = Adjacency.from_edge_index(
        edge_index, weight[tuple(edge_index)], size=(NUM_USERS, NUM_ITEMS)
    )
    square = torch.zeros(NUM_USERS + NUM_ITEMS, NUM_USERS + NUM_ITEMS, dtype=torch.float64)
    square[:NUM_USERS, NUM_USERS:] = weight
    square[NUM_USERS:, :NUM_USERS] = weight.t()
    x = torch.randn(NUM_USERS + NUM_ITEMS, 3, dtype=torch.float64, generator=generator)
    return adjacency, square, x


def propagate(adjacency, x, num_layers):
    user, item = x.split([NUM_USERS, NUM_ITEMS])
    return torch.cat(LightPropagation(num_layers)(user, item, adjacency, adjacency.t()))


@pytest.mark.parametrize("num_layers", [0, 1, 2, 3])
def test_equals_the_mean_of_the_layers_of_the_square_matrix(graph, num_layers):
    adjacency, square, x = graph
    layers = [x]
    for _ in range(num_layers):
        layers.append(square @ layers[-1])
    torch.testing.assert_close(
        propagate(adjacency, x, num_layers), torch.stack(layers).mean(0), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("num_layers", [1, 2])
def test_gradcheck(graph, num_layers):
    adjacency, _, x = graph
    x.requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x: propagate(adjacency, x, num_layers), x)


ROWS = (torch.tensor([3, 0, 3]), torch.tensor([5, 1, 0, 2]))


@pytest.mark.parametrize("num_layers", [0, 1, 2, 3])
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_some_rows_are_those_of_all_with_their_gradient(graph, num_layers, directed, dtype):
    to_item, _, x = graph
    to_user = to_item.t()
    if directed:  # other weights on the way back
        to_user = to_user.with_weight(to_user.weight.flip(0) + 1)
    user, item = (part.to(dtype).requires_grad_() for part in x.split([NUM_USERS, NUM_ITEMS]))
    propagation = LightPropagation(num_layers)
    full = propagation(user, item, to_item, to_user)
    wanted = [part[ids] for part, ids in zip(full, ROWS, strict=True)]
    found = propagation(user, item, to_item, to_user, ROWS)
    direction = [torch.randn_like(part) for part in wanted]
    torch.testing.assert_close(found, tuple(wanted))
    torch.testing.assert_close(
        torch.autograd.grad(found, (user, item), direction),
        torch.autograd.grad(wanted, (user, item), direction),
    )


def test_some_rows_of_one_side_alone_have_a_gradient(graph):
    to_item, _, x = graph
    user, item = (part.requires_grad_() for part in x.split([NUM_USERS, NUM_ITEMS]))

    def loss(rows):
        found = LightPropagation(2)(user, item, to_item, to_item.t(), rows)[0]
        return (found if rows is not None else found[ROWS[0]]).square().sum()

    torch.testing.assert_close(
        torch.autograd.grad(loss(ROWS), (user, item)), torch.autograd.grad(loss(None), (user, item))
    )


def test_some_rows_on_learned_weights_have_the_weights_gradient(graph):
    to_item, _, x = graph
    weight = to_item.weight.clone().requires_grad_()
    user, item = x.split([NUM_USERS, NUM_ITEMS])

    def gradient(rows):
        learned = to_item.with_weight(weight)
        found = LightPropagation(2)(user, item, learned, learned.t(), rows)
        if rows is None:
            found = [part[ids] for part, ids in zip(found, ROWS, strict=True)]
        return torch.autograd.grad(sum(part.sum() for part in found), weight)

    torch.testing.assert_close(gradient(ROWS), gradient(None))


def test_some_rows_are_differentiable_once(graph):
    to_item, _, x = graph
    user, item = (part.requires_grad_() for part in x.split([NUM_USERS, NUM_ITEMS]))
    users, _ = LightPropagation(2)(user, item, to_item, to_item.t(), ROWS)
    (gradient,) = torch.autograd.grad(users.square().sum(), user, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("rows", [None, ROWS])
def test_a_graph_kept_for_a_second_pass_gives_the_same_gradient(graph, rows):
    to_item, _, x = graph
    user, item = (part.requires_grad_() for part in x.split([NUM_USERS, NUM_ITEMS]))
    out = LightPropagation(2)(user, item, to_item, to_item.t(), rows)
    loss = sum(part.square().sum() for part in out)
    first = torch.autograd.grad(loss, (user, item), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, (user, item)), first, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [None, ROWS])
def test_compiles(graph, rows):
    to_item, _, x = graph
    user, item = x.split([NUM_USERS, NUM_ITEMS])
    propagation = LightPropagation(2)
    compiled = torch.compile(propagation, backend="aot_eager", fullgraph=True)
    arguments = (user.requires_grad_(), item, to_item, to_item.t(), rows)
    torch.testing.assert_close(compiled(*arguments), propagation(*arguments))


def test_fewer_than_no_layers_are_refused():
    with pytest.raises(ValueError, match=r"needs to be an integer of 0 or more \(got -1\)"):
        LightPropagation(-1)


@pytest.mark.parametrize("rows", [None, ROWS])
@pytest.mark.parametrize(
    ("user", "item", "message"),
    [
        ((5, 3), (6, 3), r"'user' needs one row per source, shape \[4, channels\]"),
        ((4, 3), (5, 3), r"'item' needs one row per source, shape \[6, channels\]"),
        ((4, 3), (6, 2), "'user' and 'item' need the same type and width"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(graph, rows, user, item, message):
    to_item = graph[0]
    with pytest.raises(ValueError, match=message):
        LightPropagation(1)(torch.zeros(user), torch.zeros(item), to_item, to_item.t(), rows)
