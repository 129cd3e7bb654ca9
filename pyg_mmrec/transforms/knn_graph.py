from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.storage import EdgeStorage
from torch_geometric.transforms import BaseTransform

from pyg_mmrec.argument_checks import check_choice, check_positive
from pyg_mmrec.data.modality import feature_fingerprint

from .edge_selection import keep_edges
from .modality_features import (
    check_features,
    drop_item_graphs,
    features_and_mask,
    select_modalities,
)

AUTO_FLAT_LIMIT = 100_000
_OPTIONS: dict[str, tuple[str, ...]] = {
    "flat": (),
    "ivf": ("nlist", "nprobe"),
    "hnsw": ("M", "efConstruction", "efSearch"),
}
#: Ways to find neighbours, by name.
KNN_INDEXES = (*_OPTIONS, "auto")
_MAX_GPU_K = 2048
_TRAINING_ROWS_PER_LIST = 64
_CHUNK_ENTRIES = 1 << 20  # of float64 at a time, however many columns there are
_MIN_ROWS_PER_LIST = 39  # FAISS warns below.

_logger = logging.getLogger(__name__)


def cosine_knn(
    x: Tensor,
    k: int,
    mask: Tensor | None = None,
    index: str = "flat",
    faiss_options: Mapping[str, int] | None = None,
    batch_size: int = 4096,
) -> tuple[Tensor, Tensor]:
    r"""The cosine k-nearest-neighbour graph of the rows of a matrix, found by FAISS.

    .. math::
        s_{ij} = \frac{\mathbf{x}_i^\top \mathbf{x}_j}
        {\lVert \mathbf{x}_i \rVert_2 \, \lVert \mathbf{x}_j \rVert_2}, \qquad
        \mathcal{N}_k(i) = \operatorname*{arg\,top\text{-}k}_j \; s_{ij}

    A row finds itself, unless ties push it out. Rows that are left out (:obj:`mask`) or zero have
    no edges in either direction, and where fewer than :obj:`k` rows are left, each has fewer
    edges. Queries run in batches: memory beyond the input is one normalised copy (the index) and
    the :math:`N k` edges.

    Args:
        x (Tensor): The rows; the result lies on its device and carries no gradient.
        k (int): The number of neighbours, at least 1, a row's own included.
        mask (Tensor, optional): Which rows take part; :obj:`None` is all. (default: :obj:`None`)
        index (str, optional): :obj:`"flat"` (exact), :obj:`"ivf"` or :obj:`"hnsw"` (approximate),
            or :obj:`"auto"`: flat up to 100,000 rows, ivf above. (default: :obj:`"flat"`)
        faiss_options (dict[str, int], optional): Options of the index, by FAISS' names; not with
            :obj:`"flat"` and :obj:`"auto"`. For :obj:`"ivf"`: :obj:`nlist`, the number of
            clusters (default :math:`4 \sqrt{N}`, at most :math:`N / 39`), and :obj:`nprobe`, how
            many are searched (default :obj:`nlist / 16`, from 8 to 64). For :obj:`"hnsw"`:
            :obj:`M`, links per row (default 32), :obj:`efConstruction` (default 100) and
            :obj:`efSearch` (default :math:`\max(64, 4k)`). (default: :obj:`None`)
        batch_size (int, optional): The number of rows per query. (default: :obj:`4096`)

    Shapes:
        - **x:** :math:`(N, F)`
        - **mask:** :math:`(N,)`, boolean
        - **output:** :obj:`(edge_index, cosine)`, :math:`(2, E)` and :math:`(E,)`,
          :math:`E \le N k`: neighbours in row 0, rows of :obj:`x` in row 1, sorted by the latter,
          then by decreasing cosine

    Raises:
        ValueError: If :obj:`k`, :obj:`index`, an option, :obj:`batch_size`, or a shape is not as
            above, or if :obj:`x` has entries that are not finite.
        ImportError: If FAISS is missing, or has no GPU support and :obj:`x` is on a GPU.

    .. note::
        On a GPU the search runs there, :obj:`"hnsw"` excepted, which FAISS has for CPUs only.
        Building :obj:`"hnsw"` with several threads is not deterministic; the others are. On
        features of 7,000 to 18,000 items, the defaults of :obj:`"ivf"` found 93 to 99 % of the
        exact neighbours, those of :obj:`"hnsw"` more than 99 %.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 3.0]])
        >>> edge_index, cosine = cosine_knn(x, k=2)
        >>> edge_index
        tensor([[0, 1, 1, 0, 2, 1],
                [0, 0, 1, 1, 2, 2]])
    """
    check_positive("k", k)
    check_positive("batch_size", batch_size)
    _check_index(index, faiss_options)
    check_features(x, mask)
    x = x.detach()
    norm, rows = _norms(x, mask)
    plan = _plan(index, faiss_options, k, rows.numel(), x.device)
    return _search(x, norm, rows, plan, k, batch_size)


class ModalityKNNGraph(BaseTransform):
    r"""Builds the cosine k-nearest-neighbour graph between the items of each modality, as in
    `"Mining Latent Structures for Multimedia Recommendation" <https://arxiv.org/abs/2104.09036>`_
    (LATTICE).

    Written to :obj:`(m, "similar", m)` (see :func:`cosine_knn`): :obj:`edge_index` with the
    neighbour in row 0 and the item in row 1, sorted by item, then by decreasing similarity;
    :obj:`edge_weight`, the cosine similarity; :obj:`k`; :obj:`fingerprint`, that of the features
    used; and :obj:`index`, the index used with its parameters.

    A graph that the data has already is kept, cut to its :obj:`k` most similar neighbours per
    item, if it has at least as many and belongs to the modality's present features (or if these
    are not in the data). Otherwise it is built anew. A fused graph is dropped where one of its
    parts changes.

    Args:
        k (int, optional): The number of neighbours, at least 1; an item counts as its own.
            (default: :obj:`10`)
        modalities (Sequence[str], optional): The modalities to do this for; :obj:`None` takes all
            of the data's. (default: :obj:`None`)
        index (str, optional): :obj:`"flat"` (exact), :obj:`"ivf"` or :obj:`"hnsw"` (approximate),
            or :obj:`"auto"`: flat up to 100,000 items, ivf above. (default: :obj:`"flat"`)
        faiss_options (dict[str, int], optional): Options of the index, see :func:`cosine_knn`.
            (default: :obj:`None`)
        batch_size (int, optional): The number of items per query. (default: :obj:`4096`)

    Raises:
        ValueError: If an argument is out of its range, if a modality is not in the data, if it
            has neither features nor a graph of at least :obj:`k` neighbours, or if its features
            have entries that are not finite.
        ImportError: If FAISS is missing, or has no GPU support and features are on a GPU.

    .. note::
        An approximate graph that the data has already is kept only where the same index is asked
        for; an exact or a loaded one always.
    """

    def __init__(
        self,
        k: int = 10,
        modalities: Sequence[str] | str | None = None,
        index: str = "flat",
        faiss_options: Mapping[str, int] | None = None,
        batch_size: int = 4096,
    ) -> None:
        check_positive("k", k)
        check_positive("batch_size", batch_size)
        _check_index(index, faiss_options)
        self.k = k
        self.modalities = modalities
        self.index = index
        self.faiss_options = None if faiss_options is None else dict(faiss_options)
        self.batch_size = batch_size

    def forward(self, data: HeteroData) -> HeteroData:
        """Return the data with an item graph for each modality."""
        names = select_modalities(data, self.modalities, with_features=False)
        for name in names:
            self._check_source(data, name)
        for name in names:
            self._build(data, name)
        return data

    def _check_source(self, data: HeteroData, name: str) -> None:
        if "x" in data[name]:
            features_and_mask(data, name)
            return
        store = _graph(data, name)
        if store is None:
            raise ValueError(
                f"modality '{name}' has neither features 'x' nor an item graph to take "
                f"k={self.k} neighbours from"
            )
        present = store.get("k")
        if present is None or present < self.k:
            raise ValueError(
                f"modality '{name}' has no features 'x' to build a graph of k={self.k} neighbours "
                f"from, and its item graph has only k={present}"
            )

    def _build(self, data: HeteroData, name: str) -> None:
        edge_type = (name, "similar", name)
        store = _graph(data, name)
        if "x" not in data[name]:
            if store is not None and store.k > self.k:
                self._cut(data, edge_type)
            return
        x, mask = features_and_mask(data, name)
        x = x.detach()
        fingerprint = feature_fingerprint(x, mask)
        norm, rows = _norms(x, mask, name)
        plan = _plan(self.index, self.faiss_options, self.k, rows.numel(), x.device)
        if store is not None and _usable(store, self.k, fingerprint, plan):
            if store.k > self.k:
                self._cut(data, edge_type)
            _logger.info("modality '%s': its graph of k=%d neighbours is kept", name, self.k)
            return
        edge_index, cosine = _search(x, norm, rows, plan, self.k, self.batch_size)
        drop_item_graphs(data, edge_type)
        store = data[edge_type]
        store.edge_index = edge_index
        store.edge_weight = cosine
        store.k = self.k
        store.fingerprint = fingerprint
        store.index = str(plan)
        _logger.info(
            "modality '%s': graph of k=%d neighbours between %d of %d items, index %s",
            name,
            self.k,
            rows.numel(),
            x.size(0),
            plan,
        )

    def _cut(self, data: HeteroData, edge_type: tuple[str, str, str]) -> None:
        store = data[edge_type]
        keep_edges(store, _first_k(store.edge_index[1], store.edge_weight, self.k))
        store.k = self.k
        drop_item_graphs(data)

    def __repr__(self) -> str:
        options = "" if not self.faiss_options else f", faiss_options={self.faiss_options}"
        return (
            f"{type(self).__name__}(k={self.k}, modalities={self.modalities}, "
            f"index={self.index!r}{options})"
        )


@dataclass(frozen=True)
class _Plan:
    kind: str
    options: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        inside = ", ".join(f"{name}={value}" for name, value in self.options)
        return f"{self.kind}({inside})" if inside else self.kind


def _check_index(index: str, faiss_options: Mapping[str, int] | None) -> None:
    check_choice("index", index, KNN_INDEXES)
    known = _OPTIONS.get(index, ())
    for name, value in (faiss_options or {}).items():
        if name not in known:
            listed = ", ".join(known) or "none"
            raise ValueError(
                f"'faiss_options' of index '{index}' has no option '{name}' (its options: {listed})"
            )
        check_positive(f"faiss_options['{name}']", value)
    links = (faiss_options or {}).get("M", 2)
    if links < 2:
        raise ValueError(f"'faiss_options['M']' needs to be at least 2 (got {links})")


def _plan(
    index: str,
    faiss_options: Mapping[str, int] | None,
    k: int,
    num_rows: int,
    device: torch.device,
) -> _Plan:
    if index == "auto":
        index = "flat" if num_rows <= AUTO_FLAT_LIMIT else "ivf"
    given = dict(faiss_options or {})
    if device.type == "cuda":
        if index == "hnsw":
            raise ValueError(
                "index 'hnsw' is for features on the CPU (got features on a GPU): use 'flat' or "
                "'ivf' there"
            )
        if k > _MAX_GPU_K:
            raise ValueError(f"'k' needs to be at most {_MAX_GPU_K} on a GPU (got {k})")
    if index == "ivf":
        most = max(1, num_rows // _MIN_ROWS_PER_LIST)
        nlist = given.get("nlist", min(most, max(1, round(4 * math.sqrt(num_rows)))))
        if nlist > max(1, num_rows):
            raise ValueError(
                f"'faiss_options['nlist']' needs to be at most the number of rows, {num_rows} "
                f"(got {nlist})"
            )
        nprobe = min(nlist, given.get("nprobe", min(64, max(8, nlist // 16))))
        return _Plan(index, (("nlist", nlist), ("nprobe", nprobe)))
    if index == "hnsw":
        defaults = {"M": 32, "efConstruction": 100, "efSearch": max(64, 4 * k)}
        return _Plan(index, tuple((defaults | given).items()))
    return _Plan(index)


def _norms(x: Tensor, mask: Tensor | None, modality: str | None = None) -> tuple[Tensor, Tensor]:
    """Return the norm of every row, in float64, and the positions of the rows to index."""
    norm = torch.cat([_wide(part).norm(dim=1) for part in x.split(_chunk_rows(x))])
    use = torch.ones_like(norm, dtype=torch.bool) if mask is None else mask.to(norm.device)
    invalid = (use & ~norm.isfinite()).nonzero().view(-1)
    if invalid.numel() > 0:
        of = f" of modality '{modality}'" if modality is not None else ""
        raise ValueError(
            f"the features 'x'{of} need to be finite (got NaN or infinity in {invalid.numel()} "
            f"rows, the first is row {int(invalid[0])})"
        )
    return norm, (use & (norm > 0)).nonzero().view(-1)


def _wide(x: Tensor) -> Tensor:
    """Return rows in float64 (no square overflows or vanishes), on the CPU but for CUDA."""
    return (x if x.is_cuda else x.cpu()).to(torch.float64)


def _chunk_rows(x: Tensor) -> int:
    return max(1, _CHUNK_ENTRIES // max(1, x.size(1)))


def _search(
    x: Tensor, norm: Tensor, rows: Tensor, plan: _Plan, k: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    if rows.numel() == 0:
        return x.new_zeros((2, 0), dtype=torch.int64), x.new_zeros(0, dtype=torch.float32)

    def unit(position: Tensor) -> Any:
        out = torch.empty(position.numel(), x.size(1))
        for to, part in zip(out.split(_chunk_rows(x)), position.split(_chunk_rows(x)), strict=True):
            to.copy_(_wide(x[part.to(x.device)]) / norm[part].unsqueeze(-1))
        return out.numpy()

    k = min(k, rows.numel())
    batches = rows.split(batch_size)
    if plan.kind == "flat" and not x.is_cuda:  # no index that grows: the copy itself is searched
        faiss, copy = _import_faiss(x.device), unit(rows)
        units = [copy[b : b + batch_size] for b in range(0, len(copy), batch_size)]
        results = (faiss.knn(u, copy, k, metric=faiss.METRIC_INNER_PRODUCT) for u in units)
    else:
        index = _make_index(plan, x.size(1), x.device)
        if not index.is_trained:
            generator = torch.Generator().manual_seed(0)
            sample = torch.randperm(rows.numel(), generator=generator).to(rows.device)
            nlist = dict(plan.options)["nlist"]
            index.train(unit(rows[sample[: _TRAINING_ROWS_PER_LIST * nlist]]))
        for batch in batches:
            index.add(unit(batch))
        results = (index.search(unit(batch), k) for batch in batches)

    sources: list[Tensor] = []
    targets: list[Tensor] = []
    cosines: list[Tensor] = []
    rows_on_cpu = rows.cpu()
    for batch, (cosine, neighbor) in zip(rows_on_cpu.split(batch_size), results, strict=True):
        neighbor, cosine = torch.from_numpy(neighbor), torch.from_numpy(cosine)
        found = neighbor >= 0
        sources.append(rows_on_cpu[neighbor[found]])
        targets.append(batch.unsqueeze(-1).expand_as(neighbor)[found])
        cosines.append(cosine[found])
    edge_index = torch.stack([torch.cat(sources), torch.cat(targets)])
    return edge_index.to(x.device), torch.cat(cosines).to(x.device)


def _import_faiss(device: torch.device) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "neighbour search needs FAISS, which is not installed: pip install faiss-cpu"
        ) from error
    if device.type == "cuda" and not hasattr(faiss, "StandardGpuResources"):
        raise ImportError(
            f"the features are on '{device}', but the FAISS installed has no GPU support: "
            f"pip install pyg-mmrec[gpu], or move the data to the CPU"
        )
    return faiss


def _make_index(plan: _Plan, dim: int, device: torch.device) -> Any:
    faiss = _import_faiss(device)
    options = dict(plan.options)
    if plan.kind == "ivf":
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(dim), dim, options["nlist"], faiss.METRIC_INNER_PRODUCT
        )
        index.cp.spherical = True
        index.cp.min_points_per_centroid = 1
        index.nprobe = options["nprobe"]
    elif plan.kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, options["M"], faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = options["efConstruction"]
        index.hnsw.efSearch = options["efSearch"]
    else:
        index = faiss.IndexFlatIP(dim)
    if device.type != "cuda":
        return index
    number = torch.cuda.current_device() if device.index is None else device.index
    resources = faiss.StandardGpuResources()
    on_gpu = faiss.index_cpu_to_gpu(resources, number, index)
    on_gpu.resources = resources  # they need to live as long as the index
    return on_gpu


def _graph(data: HeteroData, name: str) -> EdgeStorage | None:
    edge_type = (name, "similar", name)
    return data[edge_type] if edge_type in data.edge_types else None


def _usable(store: EdgeStorage, k: int, fingerprint: str, plan: _Plan) -> bool:
    present = store.get("k")
    return (
        present is not None
        and present >= k
        and store.get("fingerprint") == fingerprint
        and store.get("index") in (None, "flat", str(plan))
    )


def _first_k(target: Tensor, similarity: Tensor, k: int) -> Tensor:
    """Return the positions of the k most similar neighbours of every target, by target."""
    order = similarity.argsort(descending=True, stable=True)
    order = order[target[order].argsort(stable=True)]
    ordered = target[order]
    # The position where a target's run begins is that of its first entry.
    begin = torch.searchsorted(ordered, ordered)
    return order[torch.arange(order.numel(), device=order.device) - begin < k]
