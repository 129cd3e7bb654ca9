from collections.abc import Mapping, Sequence
from typing import Literal

import pytest

from pyg_mmrec.options import option_text, option_types, parse_option


class Sample:
    def __init__(
        self,
        size: int,
        count: int = 1,
        rate: float = 0.5,
        flag: bool = False,
        word: str = "a",
        names: Sequence[str] | None = None,
        weights: Mapping[str, float] | None = None,
        widths: tuple[int, int] | None = None,
        ratios: tuple[float, ...] = (0.8, 0.2),
        undeclared=2,
        unknown=None,
        bare: list = (),
        mixed: tuple[int, float] = (1, 0.5),
        choice: Literal["a", 2] = "a",
    ):
        pass


TYPES = option_types(Sample, hidden=["size"])


@pytest.mark.parametrize(
    "name, text, value",
    [
        ("count", "3", 3),
        ("rate", "1e-3", 1e-3),
        ("rate", "1", 1.0),
        ("flag", "true", True),
        ("flag", "False", False),
        ("word", "none", "none"),
        ("names", "audio,text", ["audio", "text"]),
        ("names", "['audio', 'text']", ["audio", "text"]),
        ("names", "audio", ["audio"]),
        ("names", "none", None),
        ("weights", "audio:0.1, text:0.9", {"audio": 0.1, "text": 0.9}),
        ("widths", "32,16", (32, 16)),
        ("widths", "none", None),
        ("ratios", "0.5,0.3,0.2", (0.5, 0.3, 0.2)),
        ("undeclared", "3", 3),
        ("unknown", "a", "a"),
        ("unknown", "3", 3),
        ("unknown", "true", True),
        ("bare", "a,2", ["a", 2]),
        ("mixed", "2,1", (2, 1.0)),
        ("choice", "2", 2),
    ],
)
def test_options_are_read_as_their_type(name, text, value):
    parsed = parse_option(name, text, TYPES[name])
    assert parsed == value and type(parsed) is type(value)
    assert parse_option(name, option_text(value), TYPES[name]) == value


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("count", "3.5", "'count' needs an integer .got '3.5'."),
        ("rate", "fast", "'rate' needs a number"),
        ("flag", "1", "'flag' needs true or false"),
        ("weights", "audio", "'weights' needs none or names with numbers like a:0.1,b:0.9"),
        ("widths", "32", "'widths' needs none or values like a,b"),
        ("choice", "3", "'choice' needs one of a, 2 .got '3'."),
    ],
)
def test_what_does_not_fit_is_refused(name, text, message):
    with pytest.raises(ValueError, match=message):
        parse_option(name, text, TYPES[name])


def test_hidden_arguments_are_no_options():
    assert "size" not in TYPES and list(TYPES)[0] == "count"
