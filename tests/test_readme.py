"""What README shows runs as it stands there, one snippet after the other."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas
import pytest

from pyg_mmrec.cli import main
from pyg_mmrec.data import PlantedDataset, modalities

TEXT = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def write_data(folder, name):
    """The tiny generated data as a folder of files."""
    data = PlantedDataset("tiny")[0]
    (folder / name).mkdir(parents=True)
    store = data["user", "interacts", "item"]
    splits = (store.edge_index, store.val_label_index, store.test_label_index)
    table = pandas.concat(
        pandas.DataFrame({"userID": pairs[0], "itemID": pairs[1], "x_label": label})
        for label, pairs in enumerate(splits)
    )
    table.to_csv(folder / name / f"{name}.inter", sep="\t", index=False)
    for modality in modalities(data):
        np.save(folder / name / f"{modality}_feat.npy", data[modality].x.numpy())
    return table


@pytest.mark.filterwarnings("ignore:.*never occur")
def test_snippets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pyg_mmrec.cli.tune_process", lambda: None)
    table = write_data(tmp_path / "data", "baby")
    (command,) = re.findall(r"```bash\npyg-mmrec (.*?)```", TEXT, re.DOTALL)
    arguments = shlex.split(command.replace("\\\n", " ").replace("--seeds 5", "--seeds 1"))
    assert main([*arguments, "--quiet", "--set", "train.epochs=3"]) == 0

    names = {"pandas": pandas, "table": table}
    snippets = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(snippets) == 6
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert names["items"].shape == (1, 10)
    assert not set(names["items"][0].tolist()) & set(names["liked"].tolist())
    assert names["item_ids"][names["codes"]].tolist() == table["itemID"].tolist()
    assert 0 < float(re.findall(r"^(0\.\d+)$", capsys.readouterr().out, re.MULTILINE)[-1]) < 1
