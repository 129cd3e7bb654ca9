from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_mmrec.data import read_interactions
from pyg_mmrec.data.interaction_file import read_header

# Most files here are too small for every id to occur.
pytestmark = pytest.mark.filterwarnings("ignore:.*never occur")

Row = tuple[int, int, int, float, int]

rows_strategy = st.lists(
    st.tuples(
        st.integers(0, 6),
        st.integers(0, 5),
        st.integers(0, 2),
        st.floats(-5, 5, width=16),
        st.integers(-(10**12), 10**12),
    ),
    min_size=1,
    max_size=30,
)


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def reference(rows: list[Row]) -> tuple[dict[tuple[int, int], tuple[int, float, int]], int]:
    """Pairs by (user, item): the smallest label wins, then the first row."""
    kept: dict[tuple[int, int], tuple[int, float, int]] = {}
    across = 0
    for user, item, label, rating, time in rows:
        if (user, item) not in kept or label < kept[user, item][0]:
            kept[user, item] = (label, rating, time)
    for user, item, label, _, _ in rows:
        across += label != kept[user, item][0]
    return dict(sorted(kept.items())), across


@settings(max_examples=40, deadline=None)
@given(
    rows=rows_strategy,
    separator=st.sampled_from(["\t", ","]),
    newline=st.sampled_from(["\n", "\r\n"]),
    order=st.permutations(["userID", "itemID", "x_label", "rating", "timestamp"]),
    bom=st.booleans(),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Row],
    separator: str,
    newline: str,
    order: list[str],
    bom: bool,
) -> None:
    names = ["userID", "itemID", "x_label", "rating", "timestamp"]
    lines = [separator.join(order)]
    for row in rows:
        values = dict(zip(names, map(repr, row), strict=True))
        lines.append(separator.join(values[name] for name in order))
    text = ("\ufeff" if bom else "") + newline.join(lines) + newline
    path = write(tmp_path_factory.mktemp("inter") / "x.inter", text)

    out = read_interactions(path)
    kept, across = reference(rows)
    assert list(zip(out.user.tolist(), out.item.tolist(), strict=True)) == list(kept)
    assert out.label is not None and out.rating is not None and out.time is not None
    values = zip(out.label.tolist(), out.rating.tolist(), out.time.tolist(), strict=True)
    assert list(values) == list(kept.values())
    assert out.num_users == max(row[0] for row in rows) + 1
    assert out.num_items == max(row[1] for row in rows) + 1
    assert out.dropped == {
        "duplicate_pairs": len(rows) - len(kept),
        "duplicate_pairs_across_splits": across,
    }
    assert len(out) == len(kept)


def test_types_and_optional_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "x.inter", "userID,note,itemID,x_label\n1,a,2,0\n0,b,3,2\n")
    out = read_interactions(path, num_users=5, num_items=9)
    assert out.user.dtype == out.item.dtype == torch.int64
    assert (out.num_users, out.num_items) == (5, 9)
    assert out.rating is None and out.time is None
    assert out.label is not None and out.label.tolist() == [2, 0]
    assert read_interactions(path, {"label": None}).label is None


def test_column_names(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "uid, iid ,stars\n0,1,2.5\n")
    out = read_interactions(path, {"user": "uid", "item": "iid", "rating": "stars"})
    assert out.rating is not None and out.rating.tolist() == [2.5]
    assert out.rating.dtype == torch.float32
    assert read_header(path) == (["uid", "iid", "stars"], ",")


def test_column_that_is_not_read_may_hold_anything(tmp_path: Path) -> None:
    path = write(tmp_path / "x.inter", "userID\titemID\tx_label\n0\t1\tnone\n")
    assert read_interactions(path, {"label": None}).label is None


def test_float_timestamps_are_read_if_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "x.inter", "userID,itemID,timestamp\n0,1,1.5e9\n0,2,1500000001.0\n")
    out = read_interactions(path)
    assert out.time is not None and out.time.dtype == torch.int64
    assert out.time.tolist() == [1_500_000_000, 1_500_000_001]


def test_blank_lines_do_not_count_as_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "x.inter", "userID,itemID\n0,1\n\n   \n1,0\n\n")
    assert len(read_interactions(path)) == 2


HEADER = "userID\titemID\tx_label\trating\ttimestamp\n"
GOOD = "0\t1\t0\t1.5\t7\n"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("x\t1\t0\t1\t7", r"x.inter', line 3, column 'userID': expected a non-neg.*\(got 'x'\)"),
        ("0\t-4\t0\t1\t7", r"line 3, column 'itemID': expected a non-negative.*\(got '-4'\)"),
        ("0\t1.0\t0\t1\t7", r"line 3, column 'itemID': .*\(got '1.0'\)"),
        ("0\t\t0\t1\t7", r"line 3, column 'itemID': .*\(got ''\)"),
        ("0\tTrue\t0\t1\t7", r"line 3, column 'itemID': .*\(got 'True'\)"),
        ("2147483648\t1\t0\t1\t7", r"column 'userID': .*below 2\^31; .* \(got '2147483648'\)"),
        ("9" * 25 + "\t1\t0\t1\t7", r"column 'userID': .*below 2\^31; .* \(got '9+'\)"),
        ("0\t1\t3\t1\t7", r"column 'x_label': expected 0 \(training\), 1 .* \(got '3'\)"),
        ("0\t1\t-1\t1\t7", r"column 'x_label': .*\(got '-1'\)"),
        ("0\t1\ttrain\t1\t7", r"column 'x_label': .*\(got 'train'\)"),
        ("0\t1\t0\tgood\t7", r"line 3, column 'rating': expected a finite number \(got 'good'\)"),
        ("0\t1\t0\tinf\t7", r"column 'rating': .*\(got 'inf'\)"),
        ("0\t1\t0\t1e99\t7", r"column 'rating': .*\(got '1e99'\)"),
        ("0\t1\t0\t\t7", r"column 'rating': .*\(got ''\)"),
        ("0\t1\t0\t1\tnoon", r"line 3, column 'timestamp': expected an integer timestamp"),
        ("0\t1\t0\t1\t7.5", r"column 'timestamp': .*\(got '7.5'\); columns=.'time': None. lea"),
        ("0\t1\t0\t1\t", r"column 'timestamp': .*\(got ''\)"),
        ("0\t1\t0\t1\t1e30", r"column 'timestamp': .*\(got '1e30'\)"),
        ("0\t1", r"line 3, column 'x_label': .*\(got ''\)"),
        ("0\t1\t0\t1\t7\t8", r"cannot be read as rows of 5 fields: Expected 5 .*line 3, saw 6"),
        ('"0\t1\t0\t1\t7', r"line 3, column 'userID': .*\(got '\"0'\)"),
    ],
)
def test_bad_row_is_named(tmp_path: Path, bad: str, message: str) -> None:
    path = write(tmp_path / "x.inter", HEADER + GOOD + bad + "\n" + GOOD)
    with pytest.raises(ValueError, match=message):
        read_interactions(path)


def test_between_tabs_a_quotation_mark_is_text(tmp_path: Path) -> None:
    rows = ['0\t0\t"great', '0\t1\tthe "best"', '1\t1\t"', '1\t2\ta "b"']
    path = write(tmp_path / "x.inter", "\n".join(["userID\titemID\treview", *rows, ""]))
    assert len(read_interactions(path)) == 4
    write(path, 'userID,itemID,review\n0,0,"great\n0,1,fine\n')
    with pytest.raises(ValueError, match="EOF inside string"):
        read_interactions(path)


def test_line_numbers_count_blank_lines_and_quoted_breaks(tmp_path: Path) -> None:
    text = 'userID,itemID,note\n0,1,"two\nlines"\n\n  \n0,2,"q"\n0,?,\n'
    with pytest.raises(ValueError, match=r"line 7, column 'itemID': .*\(got '\?'\)"):
        read_interactions(write(tmp_path / "x.inter", text))


def test_first_row_longer_or_shorter_than_header(tmp_path: Path) -> None:
    path = write(tmp_path / "x.inter", "userID,itemID\n0,1,5\n0,2,5\n")
    with pytest.raises(ValueError, match=r"line 2: expected 2 fields, as in the header \(got 3\)"):
        read_interactions(path)
    write(path, "userID,itemID,x_label\n0,1\n0,2,0\n")
    with pytest.raises(ValueError, match=r"line 2, column 'x_label': .*\(got ''\)"):
        read_interactions(path)


def test_ids_out_of_the_given_range(tmp_path: Path) -> None:
    path = write(tmp_path / "x.inter", "userID,itemID\n0,1\n4,7\n")
    with pytest.raises(ValueError, match=r"line 3, .*0 to 6 \(from 'a.npy'\) \(got '7'\)"):
        read_interactions(path, num_items=7, num_items_source="'a.npy'")
    with pytest.raises(ValueError, match=r"line 3, .*0 to 3 \(from 'num_users'\) \(got '4'\)"):
        read_interactions(path, num_users=4)
    with pytest.raises(ValueError, match=r"'num_users' needs to be a positive integer \(got 0\)"):
        read_interactions(path, num_users=0)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "x.inter"
    with pytest.raises(FileNotFoundError, match=r"x.inter' does not exist"):
        read_interactions(path)
    with pytest.raises(ValueError, match=r"line 1: no column 'itemID' \(found \['userID', 'a'\]"):
        read_interactions(write(path, "userID\ta\n0\t1\n"))
    with pytest.raises(ValueError, match=r"line 1: column 'itemID' occurs 2 times"):
        read_interactions(write(path, "userID\titemID\titemID\n0\t1\t1\n"))
    with pytest.raises(ValueError, match=r"line 1: no column 'stars'"):
        read_interactions(write(path, "userID,itemID\n0,1\n"), {"rating": "stars"})
    with pytest.raises(ValueError, match="has a header, but no interactions"):
        read_interactions(write(path, "userID,itemID\n"))
    with pytest.raises(ValueError, match="line 1: expected a header with tab- or comma-separated"):
        read_interactions(write(path, ""))
    with pytest.raises(ValueError, match="line 1: expected a header with tab- or comma-separated"):
        read_interactions(write(path, "0 1 0\n"))
    path.write_bytes(b"userID,itemID\n0,1\xff\n")
    with pytest.raises(ValueError, match=r"x.inter' cannot be read .*'utf-8' codec can't decode"):
        read_interactions(path)
    path.write_bytes(b"userID,\xff\n0,1\n")
    with pytest.raises(ValueError, match=r"x.inter', line 1: expected UTF-8 text"):
        read_interactions(path)


def test_ids_that_never_occur_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "x.inter", "userID,itemID\n1,0\n2,1\n2,3\n")
    with pytest.warns(UserWarning) as told:
        read_interactions(path)
    assert [str(warning.message).split(", and")[0] for warning in told] == [
        f"'{path}', column 'userID': 1 of 3 users never occur, the first is 0",
        f"'{path}', column 'itemID': 1 of 4 items never occur, the first is 2",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_interactions(path, num_users=3, num_items=4)


def test_ids_that_are_no_numbering_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.inter", "userID,itemID\n0,0\n1,2000000000\n")
    with pytest.raises(ValueError, match="'itemID': ids reach 2000000000 in 2 rows, so nearly all"):
        read_interactions(path)
    path = write(path, "userID,itemID\nu0,i0\n")
    with pytest.raises(ValueError, match=r"'pandas.factorize' numbers other ids \(got 'u0'\)"):
        read_interactions(path)


def test_bad_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "x.inter", "userID,itemID\n0,1\n")
    with pytest.raises(ValueError, match=r"'columns' knows the keys \['user', .*\(got 'users'\)"):
        read_interactions(path, {"users": "userID"})
    with pytest.raises(ValueError, match="'columns' needs a column name for 'item'"):
        read_interactions(path, {"item": None})


def test_real_duplicates(data_root: Path) -> None:
    out = read_interactions(data_root / "ku" / "ku.inter")
    assert len(out) == 3_484
    assert out.dropped["duplicate_pairs"] == 5
    assert out.time is not None and int(out.time.min()) > 1_000_000_000_000  # milliseconds
