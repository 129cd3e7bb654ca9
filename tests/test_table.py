from pyg_mmrec.table import format_table


def test_table_is_aligned():
    table = format_table(["name", "x"], [["a", "1.0"], ["long", "10.0"]])
    assert table == "name     x\n----  ----\na      1.0\nlong  10.0"
