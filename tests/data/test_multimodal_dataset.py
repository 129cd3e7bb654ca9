from __future__ import annotations

import copy
import os
import pickle
import re
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.typing
from torch_geometric.data import HeteroData
from torch_geometric.loader import DataLoader, NeighborLoader

from pyg_mmrec.data import (
    Interactions,
    ModalityFeatures,
    MultimodalDataset,
    NeighborGraph,
    feature_fingerprint,
    modalities,
    to_hetero_data,
)

INTERACTS = ("user", "interacts", "item")
NUM_USERS, NUM_ITEMS = 12, 15


def write_interactions(folder: Path, columns: str = "userID\titemID\tx_label\ttimestamp") -> None:
    """Every user has 11 items; the last two of each are validation and test."""
    rng = np.random.default_rng(0)
    lines = [columns]
    for user in range(NUM_USERS):
        for position, item in enumerate(rng.permutation(NUM_ITEMS)[:11]):
            values = {
                "userID": user,
                "itemID": item,
                "x_label": max(0, position - 8),
                "timestamp": 1000 + int(rng.integers(500)),
                "rating": position / 2,
            }
            lines.append("\t".join(str(values[name]) for name in columns.split("\t")))
    (folder / f"{folder.name}.inter").write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the data set "toy": image with a graph, text, audio as a graph only."""
    folder = tmp_path / "toy"
    folder.mkdir()
    write_interactions(folder)
    rng = np.random.default_rng(1)
    np.save(folder / "image_feat.npy", rng.standard_normal((NUM_ITEMS, 4)).astype(np.float32))
    np.save(folder / "text_feat.npy", rng.standard_normal((NUM_ITEMS, 3)).astype(np.float16))
    index = (np.arange(NUM_ITEMS)[:, None] + np.arange(2)) % NUM_ITEMS
    for m in ("image", "audio"):
        cosine = np.tile([1.0, 0.5], (NUM_ITEMS, 1)).astype(np.float32)
        np.savez(folder / f"{m}_knn2.npz", index=index, cosine=cosine)
    return tmp_path


def pairs(index: torch.Tensor) -> list[tuple[int, int]]:
    return list(zip(*index.tolist(), strict=True))


def test_graph(root: Path) -> None:
    dataset = MultimodalDataset(root, "toy")
    assert len(dataset) == 1 and repr(dataset) == "MultimodalDataset(toy)"
    assert dataset.split == "label"
    data = dataset[0]
    assert data.validate()
    assert modalities(data) == ["image", "text", "audio"]
    assert data.node_types == ["user", "item", "image", "text", "audio"]
    assert (data["user"].num_nodes, data["item"].num_nodes) == (NUM_USERS, NUM_ITEMS)
    assert data["image"].x.shape == (NUM_ITEMS, 4) and data["text"].x.shape == (NUM_ITEMS, 3)
    assert "x" not in data["audio"] and data["audio"].num_nodes == NUM_ITEMS
    assert "mask" not in data["image"]
    for m in modalities(data):
        expected = torch.arange(NUM_ITEMS).expand(2, -1)
        assert torch.equal(data[m, "describes", "item"].edge_index, expected)

    store = data[INTERACTS]
    assert store.edge_index.shape == (2, 9 * NUM_USERS) and store.time.shape == (9 * NUM_USERS,)
    assert "rating" not in store
    for index in (store.edge_index, store.val_label_index, store.test_label_index):
        assert pairs(index) == sorted(set(pairs(index)))
    every = pairs(store.edge_index) + pairs(store.val_label_index) + pairs(store.test_label_index)
    assert len(set(every)) == 11 * NUM_USERS

    similar = data["image", "similar", "image"]
    assert similar.k == 2 and similar.fingerprint == feature_fingerprint(data["image"].x)
    assert similar.edge_index[1].tolist() == [i for i in range(NUM_ITEMS) for _ in range(2)]
    assert similar.edge_index[0, :2].tolist() == [0, 1]
    assert similar.edge_weight[:2].tolist() == [1.0, 0.5]
    assert data["audio", "similar", "audio"].fingerprint == ""
    assert ("text", "similar", "text") not in data.edge_types
    assert dataset.statistics["modalities"]["audio"] == {"dim": None, "missing": 0, "neighbors": 2}


def test_read_only_folder_stays_untouched(root: Path) -> None:
    folder = root / "toy"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    os.chmod(folder, stat.S_IRUSR | stat.S_IXUSR)
    try:
        data = MultimodalDataset(str(root), "toy", on_invalid="mask")[0]
        data["image"].x[0] = 0
    finally:
        os.chmod(folder, stat.S_IRWXU)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in root.iterdir()] == ["toy"]


def test_items_of_features_that_never_occur_are_told(root: Path) -> None:
    path = root / "toy" / "toy.inter"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if line.split("\t")[1] != "14") + "\n")
    expected = r"'image_feat.npy' has rows of 15 items, of which 1 never occur in .*first is 14"
    with pytest.warns(UserWarning, match=expected):
        MultimodalDataset(root, "toy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MultimodalDataset(root, "toy", num_items=NUM_ITEMS)[0]["item"].num_nodes == 15


def test_modalities_are_picked(root: Path) -> None:
    assert modalities(MultimodalDataset(root, "toy", modalities=["text", "image"])[0]) == [
        "image",
        "text",
    ]
    data = MultimodalDataset(root, "toy", modalities=[])[0]
    assert modalities(data) == [] and data["item"].num_nodes == NUM_ITEMS
    with pytest.raises(ValueError, match=r"no modality 'x' \(present: \['image', 'text', 'audio'"):
        MultimodalDataset(root, "toy", modalities=["image", "x"])
    with pytest.raises(ValueError, match=r"'modalities' needs to be a list of names \(got 'text'"):
        MultimodalDataset(root, "toy", modalities="text")


def test_files_that_are_named_otherwise_are_told(root: Path) -> None:
    folder = root / "toy"
    (folder / "text_feat.npy").rename(folder / "text_feats.npy")
    (folder / "user_graph_dict.npy").touch()  # of another program
    with pytest.warns(UserWarning, match=r"toy': \['text_feats.npy'\] are not read; features are"):
        data = MultimodalDataset(str(root), "toy")[0]
    assert modalities(data) == ["image", "audio"]


def test_without_features(root: Path) -> None:
    folder = root / "bare"
    folder.mkdir()
    write_interactions(folder, "userID\titemID\tx_label\trating")
    data = MultimodalDataset(root, "bare", num_items=40, num_users=30)[0]
    assert modalities(data) == [] and data.validate()
    assert (data["user"].num_nodes, data["item"].num_nodes) == (30, 40)
    assert data[INTERACTS].rating.max() == 4.0  # of the nine training rows
    assert MultimodalDataset(root, "bare")[0]["item"].num_nodes == NUM_ITEMS


def test_column_names_and_default_split(root: Path) -> None:
    folder = root / "bare"
    folder.mkdir()
    write_interactions(folder, "userID\titemID\trating")
    text = (folder / "bare.inter").read_text().replace("userID\titemID", "u,i").replace("\t", ",")
    (folder / "bare.inter").write_text(text)
    dataset = MultimodalDataset(root, "bare", columns={"user": "u", "item": "i"})
    assert dataset.split == "random"
    with pytest.raises(ValueError, match=r"split='label' needs the column 'x_label' \(found \['u'"):
        MultimodalDataset(root, "bare", split="label", columns={"user": "u", "item": "i"})
    with pytest.raises(ValueError, match=r"split='temporal' needs the column 'timestamp'"):
        MultimodalDataset(root, "bare", split="temporal", columns={"user": "u", "item": "i"})
    with pytest.raises(ValueError, match=r"split='label' needs a column name for 'label'"):
        MultimodalDataset(root, "toy", split="label", columns={"label": None})


@pytest.mark.parametrize("split", ["random", "temporal", "global_temporal", "item_cold_start"])
def test_splits(root: Path, split: str) -> None:
    path = root / "toy" / "toy.inter"
    text = re.sub(r"\t0(\t1\d{3})", r"\twhatever\1", path.read_text())
    path.write_text(text)  # the label column is not read
    assert "whatever" in text
    dataset = MultimodalDataset(root, "toy", split=split, seed=3)
    store = dataset[0][INTERACTS]
    assert dataset.split == split
    train, validation, test = (
        set(pairs(store[key])) for key in ("edge_index", "val_label_index", "test_label_index")
    )
    assert train and validation and test
    assert not train & validation and not train & test and not validation & test
    again = MultimodalDataset(root, "toy", split=split, seed=3)[0][INTERACTS]
    assert torch.equal(store.edge_index, again.edge_index)
    if split in ("random", "item_cold_start"):
        other = MultimodalDataset(root, "toy", split=split, seed=4)[0][INTERACTS]
        assert set(pairs(other.edge_index)) != train
    if split == "item_cold_start":
        assert not {i for _, i in train} & {i for _, i in validation | test}
        assert dataset.statistics["cold_items"] == 2
    if split == "temporal":
        last = {u: max(store.time[store.edge_index[0] == u].tolist()) for u in range(NUM_USERS)}
        rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
        time = {(int(row[0]), int(row[1])): int(row[3]) for row in rows}
        assert all(time[pair] >= last[pair[0]] for pair in validation | test)


def test_row_order_does_not_matter(root: Path) -> None:
    before = MultimodalDataset(root, "toy", split="random")[0][INTERACTS]
    path = root / "toy" / "toy.inter"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(rows)]))
    after = MultimodalDataset(root, "toy", split="random")[0][INTERACTS]
    assert torch.equal(before.edge_index, after.edge_index)
    assert torch.equal(before.time, after.time)
    assert torch.equal(before.test_label_index, after.test_label_index)


def test_users_without_training_are_dropped(root: Path) -> None:
    with open(root / "toy" / "toy.inter", "a") as file:
        file.write("12\t1\t1\t5\n12\t2\t2\t5\n13\t3\t2\t5\n13\t4\t2\t5\n0\t1\t0\t5\n0\t1\t2\t5\n")
    dataset = MultimodalDataset(root, "toy")
    store = dataset[0][INTERACTS]
    assert store.test_label_index[0].max() < 12 and store.val_label_index[0].max() < 12
    assert dataset[0]["user"].num_nodes == 14
    dropped = dataset[0].dropped
    assert dropped == dataset.statistics["dropped"]
    assert {key: dropped[key] for key in dropped if not key.startswith("duplicate")} == {
        "validation_users": 1,
        "validation_interactions": 1,
        "test_users": 2,
        "test_interactions": 3,
    }
    assert dropped["duplicate_pairs"] >= 1
    assert dataset.statistics["users_without_training"] == 2


def test_invalid_features(root: Path) -> None:
    x = np.load(root / "toy" / "text_feat.npy")
    x[4, 1] = np.nan
    np.save(root / "toy" / "text_feat.npy", x)
    with pytest.raises(ValueError, match=r"text_feat.npy', row 4, column 1"):
        MultimodalDataset(root, "toy")
    MultimodalDataset(root, "toy", modalities=["image"])  # the broken file is not read
    data = MultimodalDataset(root, "toy", on_invalid="mask")[0]
    assert (~data["text"].mask).nonzero().tolist() == [[4]]
    assert (data["text"].x[4] == 0).all()
    present = [i for i in range(NUM_ITEMS) if i != 4]
    assert data["text", "describes", "item"].edge_index.tolist() == [present, present]
    assert data.validate()


def test_stored_graph_with_edges_to_masked_items_is_not_used(root: Path) -> None:
    x = np.load(root / "toy" / "image_feat.npy")
    x[4] = np.nan
    np.save(root / "toy" / "image_feat.npy", x)
    with pytest.warns(UserWarning, match="stored item graph of 'image' is not used"):
        data = MultimodalDataset(root, "toy", on_invalid="mask")[0]
    assert ("image", "similar", "image") not in data.edge_types

    archive = dict(np.load(root / "toy" / "image_knn2.npz"))
    archive["index"][archive["index"] == 4] = -1
    archive["index"][4] = -1
    np.savez(root / "toy" / "image_knn2.npz", **archive)
    data = MultimodalDataset(root, "toy", on_invalid="mask")[0]
    similar = data["image", "similar", "image"]
    assert similar.edge_index.size(1) == 2 * NUM_ITEMS - 3
    assert similar.fingerprint == feature_fingerprint(data["image"].x, data["image"].mask)


def test_files_disagree_on_the_number_of_items(root: Path) -> None:
    np.save(root / "toy" / "text_feat.npy", np.ones((NUM_ITEMS + 1, 2)))
    message = r"text_feat.npy': expected 15 rows, one per item, as in 'image_feat.npy' \(got 16\)"
    with pytest.raises(ValueError, match=message):
        MultimodalDataset(root, "toy", modalities=["image"])
    with pytest.raises(ValueError, match=r"image_feat.npy': expected 20 rows.*in 'num_items'"):
        MultimodalDataset(root, "toy", num_items=20)


def test_item_without_feature_row(root: Path) -> None:
    with open(root / "toy" / "toy.inter", "a") as file:
        file.write("0\t15\t0\t5\n")
    message = r"toy.inter', line 134, column 'itemID': .*0 to 14 \(from 'image_feat.npy'\)"
    with pytest.raises(ValueError, match=message):
        MultimodalDataset(root, "toy")


@pytest.mark.filterwarnings("ignore:.*never occur")
@pytest.mark.parametrize(("value", "name"), [(0, "training"), (1, "validation"), (2, "test")])
def test_empty_split(root: Path, value: int, name: str) -> None:
    path = root / "toy" / "toy.inter"
    header, *rows = path.read_text().splitlines()
    kept = [row for row in rows if row.split("\t")[2] != str(value)]
    path.write_text("\n".join([header, *kept]))
    with pytest.raises(ValueError, match=rf"toy.inter: the {name} split is empty"):
        MultimodalDataset(root, "toy")


def test_bad_arguments(root: Path) -> None:
    with pytest.raises(ValueError, match=r"'split' needs to be one of \['label', .*\(got 'x'\)"):
        MultimodalDataset(root, "toy", split="x")
    with pytest.raises(ValueError, match="'on_invalid' needs to be 'error' or 'mask'"):
        MultimodalDataset(root, "toy", on_invalid="drop")
    with pytest.raises(FileNotFoundError, match=r"toi' is not a folder \(datasets in .*\['toy'\]"):
        MultimodalDataset(root, "toi")
    with pytest.raises(FileNotFoundError, match=r"\(datasets in .*: \[\]\); it needs 'toy"):
        MultimodalDataset(root / "nowhere", "toy")
    (root / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty.inter' does not exist"):
        MultimodalDataset(root, "empty")


def test_transforms(root: Path) -> None:
    calls: list[str] = []

    def mark(name: str) -> Any:
        def apply(data: HeteroData) -> HeteroData:
            calls.append(name)
            data[name] = True
            return data

        return apply

    dataset = MultimodalDataset(root, "toy", transform=mark("t"), pre_transform=mark("p"))
    assert calls == ["p"]
    assert dataset[0].p and dataset[0].t
    assert calls == ["p", "t", "t"]
    assert dataset.statistics["users"] == NUM_USERS and calls == ["p", "t", "t"]


def test_works_as_a_pyg_dataset(root: Path) -> None:
    dataset = MultimodalDataset(root, "toy")
    data = dataset[0]
    assert dataset[:1][0][INTERACTS].edge_index.equal(data[INTERACTS].edge_index)
    assert next(iter(DataLoader(dataset)))["image"].x.equal(data["image"].x)
    moved = data.to("cpu")
    assert moved["image", "similar", "image"].k == 2
    for twin in (copy.deepcopy(data), pickle.loads(pickle.dumps(dataset))[0]):
        assert twin["image"].x.equal(data["image"].x)
        assert twin.dropped == data.dropped


def test_neighbor_loader(root: Path) -> None:
    if not (torch_geometric.typing.WITH_TORCH_SPARSE or torch_geometric.typing.WITH_PYG_LIB):
        pytest.skip("neighbour sampling needs pyg-lib or torch-sparse")
    data = MultimodalDataset(root, "toy")[0]
    seeds = torch.tensor([3, 7])
    loader = NeighborLoader(data, [-1, -1], input_nodes=("item", seeds), batch_size=2)
    batch = next(iter(loader))
    # From an item, sampling reaches its modality nodes and their features.
    reached = batch["image"].n_id
    assert {3, 7} <= set(reached.tolist())
    assert batch["image"].x.equal(data["image"].x[reached])


def interactions() -> Interactions:
    user, item = torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2])
    return Interactions(user, item, num_users=1, num_items=3)


def test_to_hetero_data_checks_its_parts() -> None:
    label = torch.tensor([0, 1, 2])
    data = to_hetero_data(interactions(), label, {"image": ModalityFeatures(torch.ones(3, 2))})
    assert data.validate() and data[INTERACTS].edge_index.tolist() == [[0], [0]]
    with pytest.raises(ValueError, match=r"'label' needs one entry for each of 3 interactions"):
        to_hetero_data(interactions(), label[:2])
    with pytest.raises(ValueError, match=r"'image' features need 3 rows, one per item .*\(4, 2\)"):
        to_hetero_data(interactions(), label, {"image": ModalityFeatures(torch.ones(4, 2))})
    graph = NeighborGraph(torch.tensor([[0], [3]]), torch.ones(1), 1)
    with pytest.raises(ValueError, match=r"item graph of 'text' needs ids below 3, .*\(got 3\)"):
        to_hetero_data(interactions(), label, graphs={"text": graph})


@pytest.mark.parametrize(
    ("name", "users", "items", "counts", "dims", "k"),
    [
        ("baby", 19445, 7050, (118551, 20559, 21682), {"image": None, "text": None}, 10),
        ("sports", 35598, 18357, (218409, 37899, 40029), {"image": None, "text": None}, 10),
        ("baby_proxy", 19445, 7050, (118551, 20559, 21682), {"image": 128, "text": 128}, 10),
        ("sports_proxy", 35598, 18357, (218409, 37899, 40029), {"image": 128, "text": 128}, 10),
        ("clothing", 39387, 23033, (197338, 40150, 41189), {}, None),
        (
            "lfm2k",
            1858,
            1425,
            (44327, 4799, 7219),
            {"text": 384, "audio": 128, "speech": 512},
            None,
        ),
        ("ku", 204, 560, None, {"image": 512, "text": 512}, None),
    ],
)
def test_real_counts(
    data_root: Path,
    name: str,
    users: int,
    items: int,
    counts: tuple[int, int, int] | None,
    dims: dict[str, int | None],
    k: int | None,
) -> None:
    if not (data_root / name).is_dir():
        pytest.skip(f"no data set '{name}' in PYG_MMREC_DATA")
    dataset = MultimodalDataset(data_root, name)
    found = dataset.statistics
    assert dataset.split == "label" and dataset[0].validate()
    assert (found["users"], found["items"]) == (users, items)
    if counts is not None:
        assert (found["training"], found["validation"], found["test"]) == counts
        assert set(found["dropped"].values()) == {0}
    else:
        assert found["interactions"] == 3489 - 5 and found["dropped"]["duplicate_pairs"] == 5
    described = found["modalities"]
    assert {m: described[m]["dim"] for m in described} == dims
    assert all(described[m]["neighbors"] == k for m in described)
