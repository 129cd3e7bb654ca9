"""The second stage of IBMRec."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from pyg_mmrec.data import Graph
from pyg_mmrec.nn.backbones import Backbone, SomeRows, Triplets
from pyg_mmrec.nn.losses import InfoNCELoss
from pyg_mmrec.nn.objectives.method import Method, backbones_with


class SecondStage(Method):
    r"""Second stage of IBMRec ("Less is More: Information Bottleneck Denoised Multimedia
    Recommendation", Eq. 20, 31, Algorithm 1): after the first stage's step on a batch, a step on

    .. math::
        - \frac{1}{N} \sum_{(a, i)} \log \frac{\exp(\cos(\mathbf{c}_a, \mathbf{z}_i) / \tau)}
        {\sum_{j \in B_v} \exp(\cos(\mathbf{c}_a, \mathbf{z}_j) / \tau)}

    with an optimiser of its own, which keeps the multimedia vectors of users :math:`\mathbf{c}` and
    items :math:`\mathbf{z}` informed of the interactions. :math:`B_v` are the batch's positive
    items, each once; a GPU is waited for to find them. Only the users' multimedia vectors and the
    projections are trained.

    Args:
        temperature (float, optional): :math:`\tau`. (default: 0.2)

    Raises:
        ValueError: If the temperature is not positive; from :class:`Objective`, if users of the
            backbone have no multimedia vectors.
    """

    name = "second_stage"
    reads_hidden = False

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.contrast = InfoNCELoss(temperature)

    def attach(self, backbone: Backbone) -> None:
        """Needs multimedia vectors of users."""
        if not backbone.has_user_content:
            raise ValueError(
                f"the second stage contrasts the multimedia vectors of users and items, and users "
                f"of {type(backbone).__name__} have none (its 'has_user_content' is false); those "
                f"of {backbones_with(lambda item: item.has_user_content)} have some"
            )

    def second_parameters(self, backbone: Backbone) -> Iterator[nn.Parameter]:
        """The users' multimedia vectors and the projections."""
        yield from backbone.user_content_parameters()
        yield from backbone.content_parameters()

    def second_terms(self, backbone: Backbone, graph: Graph, batch: Triplets) -> dict[str, Tensor]:
        """The contrast of each user's positive item with the batch's."""
        items, index = batch.positive.unique(return_inverse=True)
        user, item = backbone.content_vectors(graph, SomeRows(batch.user, items))
        return {"contrast": self.contrast(user, item, index)}
