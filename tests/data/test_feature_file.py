from __future__ import annotations

import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from pyg_mmrec.data import feature_file, find_features, find_graphs, load_features, load_graph
from pyg_mmrec.data.feature_file import read_num_rows

rng = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("fortran", [False, True])
def test_features_become_float32(tmp_path: Path, dtype: str, fortran: bool) -> None:
    array = rng.standard_normal((9, 4)).astype(dtype)
    array[3] = 0
    path = tmp_path / "image_feat.npy"
    np.save(path, np.asfortranarray(array) if fortran else array)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = load_features(path)
    assert out.mask is None
    assert out.x.dtype == torch.float32 and out.x.is_contiguous()
    assert torch.equal(out.x, torch.from_numpy(array.astype("=f4")))
    assert read_num_rows(path) == 9


def test_float32_is_mapped_and_the_file_never_changes(tmp_path: Path) -> None:
    path = tmp_path / "image_feat.npy"
    np.save(path, rng.standard_normal((5, 3)).astype(np.float32))
    before = path.read_bytes()
    out = load_features(path)
    if sys.platform == "linux":
        assert str(path) in Path("/proc/self/maps").read_text()
    out.x[0] = 7
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_invalid_rows(tmp_path: Path, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    array = rng.standard_normal((20, 3)).astype(dtype)
    array[13, 2], array[17, 0] = np.nan, -np.inf
    path = tmp_path / "image_feat.npy"
    np.save(path, array)
    before = path.read_bytes()
    monkeypatch.setattr(feature_file, "_CHUNK_ELEMENTS", 12)
    with pytest.raises(ValueError, match=r"image_feat.npy', row 13, column 2: .*\(got nan\)"):
        load_features(path)
    out = load_features(path, on_invalid="mask")
    assert out.mask is not None
    assert (~out.mask).nonzero().view(-1).tolist() == [13, 17]
    valid = out.mask.numpy()
    assert (out.x[~out.mask] == 0).all()
    np.testing.assert_array_equal(out.x.numpy()[valid], array[valid].astype(np.float32))
    assert path.read_bytes() == before


def test_numbers_beyond_float32_are_invalid(tmp_path: Path) -> None:
    array = np.ones((3, 2))
    array[1, 1] = 1e300
    np.save(tmp_path / "image_feat.npy", array)
    with pytest.raises(ValueError, match=r"row 1, column 1: expected a finite float32 .*1e\+300"):
        load_features(tmp_path / "image_feat.npy")


def test_bad_feature_files(tmp_path: Path) -> None:
    path = tmp_path / "image_feat.npy"
    with pytest.raises(FileNotFoundError, match="image_feat.npy' does not exist"):
        load_features(path)
    np.save(path, np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="object arrays are pickles and are refused"):
        load_features(path)
    path.write_bytes(pickle.dumps([1.0, 2.0]))
    with pytest.raises(ValueError, match="expected a plain .npy array; pickles are refused"):
        load_features(path)
    np.save(path, np.ones((3, 2), dtype=np.int64))
    with pytest.raises(ValueError, match=r"expected float16, float32 or float64 \(got int64\)"):
        load_features(path)
    np.save(path, np.ones(3))
    with pytest.raises(ValueError, match=r"expected a matrix of items times features \(got \(3,\)"):
        load_features(path)
    np.save(path, np.ones((3, 0)))
    with pytest.raises(ValueError, match=r"expected a matrix of items times features"):
        load_features(path)
    np.save(path, np.ones((30, 4)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="the file ends before its data"):
        load_features(path)
    np.save(path, np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="has no row of finite numbers"):
        load_features(path, on_invalid="mask")
    with pytest.raises(ValueError, match=r"'on_invalid' needs to be 'error' or 'mask' \(got 'x'\)"):
        load_features(path, on_invalid="x")


def test_find(tmp_path: Path) -> None:
    names = ["b_feat.npy", "image_feat.npy", "image_knn5.npz", "image_knn10.npz", "feat.npy", "x"]
    for name in names:
        (tmp_path / name).touch()
    assert {m: p.name for m, p in find_features(tmp_path).items()} == {
        "b": "b_feat.npy",
        "image": "image_feat.npy",
    }
    assert {m: p.name for m, p in find_graphs(tmp_path).items()} == {"image": "image_knn10.npz"}


@pytest.mark.parametrize("name", ["item_feat.npy", "a.b_feat.npy", "user_knn3.npz"])
def test_bad_modality_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{name}': a modality needs a name of letters"):
        (find_features if name.endswith("npy") else find_graphs)(tmp_path)


def save_graph(path: Path, index: object, cosine: object) -> Path:
    np.savez(path, index=np.asarray(index), cosine=np.asarray(cosine))
    return path


def test_graph_edges_are_sorted_by_item_then_similarity(tmp_path: Path) -> None:
    path = save_graph(
        tmp_path / "image_knn3.npz",
        np.array([[1, 0, 2], [-1, 1, 0], [-1, -1, -1], [0, 1, 2]], dtype=np.int32),
        np.array([[0.2, 1.0, 0.5], [np.nan, 1.0, 0.2], [0, 0, 0], [0.3, 0.3, 0.3]]),
    )
    graph, num_items = load_graph(path)
    assert (num_items, graph.k) == (4, 3)
    assert graph.edge_index.dtype == torch.int64
    assert graph.edge_index.tolist() == [[0, 2, 1, 1, 0, 0, 1, 2], [0, 0, 0, 1, 1, 3, 3, 3]]
    assert graph.cosine.dtype == torch.float32
    torch.testing.assert_close(graph.cosine, torch.tensor([1.0, 0.5, 0.2, 1.0, 0.2, 0.3, 0.3, 0.3]))
    assert read_num_rows(path) == 4


INDEX = [[0, 1], [1, 0], [2, 0]]
COSINE = [[1.0, 0.5], [1.0, 0.5], [1.0, 0.1]]


@pytest.mark.parametrize(
    ("index", "cosine", "message"),
    [
        ([[0, 1], [1, 3], [2, 0]], COSINE, r"'index' row 1, column 1: expected an item from 0 to"),
        ([[0, 1], [1, 0], [-2, 0]], COSINE, r"'index' row 2, column 0: .*or -1 \(got -2\)"),
        ([[0, 1], [0, 0], [2, 0]], COSINE, r"'index' row 1 names item 0 more than once"),
        (INDEX, [[1, 0.5], [1, np.nan], [1, 0.1]], r"'cosine' row 1, column 1: .*\(got nan\)"),
        (INDEX, [[1, 0.5], [1, 0.5], [1.2, 0.1]], r"'cosine' row 2, column 0: .*\(got 1.2\)"),
        (INDEX, [[1.0], [1.0], [1.0]], r"'cosine' needs .* of shape \(3, 2\) \(got float64 \(3, 1"),
        (INDEX, [[1, 0], [1, 0], [1, 0]], r"'cosine' needs to be a floating-point matrix"),
        ([[0.0, 1.0]], [[1.0, 0.5]], r"'index' needs to be an integer matrix \(got float64"),
        ([0, 1], [1.0, 0.5], r"'index' needs to be an integer matrix \(got int64 \(2,\)\)"),
    ],
)
def test_bad_graphs(tmp_path: Path, index: object, cosine: object, message: str) -> None:
    with pytest.raises(ValueError, match=r"image_knn2.npz': " + message):
        load_graph(save_graph(tmp_path / "image_knn2.npz", index, cosine))


def test_bad_graph_files(tmp_path: Path) -> None:
    path = tmp_path / "image_knn4.npz"
    for read in (load_graph, read_num_rows):
        path.unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError, match="image_knn4.npz' does not exist"):
            read(path)
        path.write_bytes(b"nonsense")
        with pytest.raises(ValueError, match="expected a .npz archive with the arrays 'index'"):
            read(path)
        np.savez(path, cosine=np.ones((2, 2)))
        with pytest.raises(ValueError, match="no (readable )?array 'index'"):
            read(path)
    with pytest.raises(ValueError, match=r"expected 4 columns, as its name says \(got 2\)"):
        load_graph(save_graph(path, INDEX, COSINE))
    np.savez(path, index=np.array(INDEX, dtype=object), cosine=np.array(COSINE))
    with pytest.raises(ValueError, match="array 'index' cannot be read; pickles are refused"):
        load_graph(path)
    np.savez(path, index=np.int64(3))
    with pytest.raises(ValueError, match=r"'index' needs to be an integer matrix \(got shape"):
        read_num_rows(path)
