"""What is given by name, as text: options and their values, models and methods."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, Union

#: How options that declare no type write what has a name.
_WORDS = {"none": None, "null": None, "true": True, "false": False}


def choose(kind: str, name: str, choices: Mapping[str, Any], own: type | None = None) -> Any:
    """The entry called ``name``; or what ``module:Class`` names, a subclass of ``own``.

    Raises:
        ValueError: If there is none; the message lists those that are.
        ImportError: If the module cannot be imported.
    """
    if name in choices:
        return choices[name]
    if own is None or ":" not in name:
        also = "" if own is None else f", or module:Class, a {own.__name__} of your own"
        raise ValueError(
            f"there is no {kind} '{name}'; there are {', '.join(sorted(choices))}{also}"
        )
    if "" not in sys.path:
        sys.path.append("")  # scripts do not look where they are called from
    try:
        found = resolve_name(name)
    except ImportError as error:
        raise ImportError(f"{kind} '{name}' cannot be imported: {error}") from error
    except (AttributeError, ValueError) as error:
        module = name.split(":")[0]
        there = [
            f"{module}:{key}"
            for key, value in getattr(sys.modules.get(module), "__dict__", {}).items()
            if isinstance(value, type) and issubclass(value, own) and value.__module__ == module
        ]
        also = f"; there are {', '.join(there)}" if there else ""
        raise ValueError(f"there is no {kind} '{name}' ({error}){also}") from error
    if not (isinstance(found, type) and issubclass(found, own) and found is not own):
        raise ValueError(f"{kind} '{name}' needs to name a {own.__name__} (got {found!r})")
    if inspect.isabstract(found):
        raise ValueError(f"{kind} '{name}' is abstract: it lacks methods that it needs")
    return found


def option_types(function: Any, hidden: Sequence[str] = ()) -> dict[str, Any]:
    """The options of a class by name, with the types that its constructor declares, or else those
    of the defaults, or else :obj:`typing.Any`: what Python would read, otherwise text.

    Args:
        function (Any): A class.
        hidden (list[str], optional): Arguments that are not for the user to set.
    """
    return dict(_option_types(function, tuple(hidden)))


@functools.cache
def _option_types(function: Any, hidden: tuple[str, ...]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(function.__init__)
    except NameError:  # imported for a type checker alone
        hints = {}
    parameters = list(inspect.signature(function).parameters.values())
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

    def undeclared(default: Any) -> Any:
        return type(default) if isinstance(default, (bool, int, float, str)) else Any

    return {
        parameter.name: hints.get(parameter.name, undeclared(parameter.default))
        for parameter in parameters
        if parameter.kind in named and parameter.name not in hidden
    }


def find_option(key: str, known: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Section and name of an option, such as ``model`` and ``num_layers``.

    Args:
        key (str): Its full name, such as ``model.num_layers``. An option of a method goes without
            the method's name, ``method.std``, where no other has it.
        known (dict[str, dict[str, Any]]): The options of each section; of methods, the sections
            ``method.gib`` and so on.

    Raises:
        ValueError: If there is no such option, or several methods have it; the message lists
            those that are.
    """
    section, _, name = key.rpartition(".")
    if section == "method":  # of whichever method has it
        found = [s for s in known if s.startswith("method.") and name in known[s]]
        if len(found) > 1:
            listed = ", ".join(f"{s}.{name}" for s in found)
            raise ValueError(f"several methods have an option '{key}': say {listed}")
    else:
        found = [section] if name in known.get(section, ()) else []
    if found:
        return found[0], name
    kind = key.partition(".")[0]
    near = [part for part in known if part.partition(".")[0] == kind]
    if kind == "method" and not near:
        raise ValueError(f"there is no option '{key}' without a method")
    names = []
    for part in near or known:
        for option in known[part]:
            shared = sum(p.startswith("method.") and option in known[p] for p in known) > 1
            short = part.startswith("method.") and not shared
            names.append(f"{'method' if short else part}.{option}")
    if name == "seed" and section in ("", "train"):
        raise ValueError(f"there is no option '{key}': the seed is an argument, '--seed'")
    meant = sorted(full for full in names if full.rpartition(".")[2] == name)
    if meant and not section:
        raise ValueError(f"there is no option '{key}'; did you mean {' or '.join(meant)}?")
    raise ValueError(f"there is no option '{key}'; there are {', '.join(sorted(names))}")


def parse_option(name: str, text: str, kind: Any) -> Any:
    """Reads the text of an option as the declared type.

    Lists are written ``a,b``; mappings ``a:0.1,b:0.9``; nothing is ``none``.

    Args:
        name (str): For the error message.
        text (str): What the user wrote.
        kind (Any): The declared type.

    Raises:
        ValueError: If the text does not fit.
    """
    for choice in _choices(kind):
        try:
            return _parse(text.strip(), choice)
        except (ValueError, SyntaxError):
            continue
    raise ValueError(f"'{name}' needs {' or '.join(map(_describe, _choices(kind)))} (got '{text}')")


def option_text(value: Any) -> str:
    """An option's value as :func:`parse_option` reads it; text stays as it is."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}:{option_text(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(map(option_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _choices(kind: Any) -> list[Any]:
    if typing.get_origin(kind) in (Union, types.UnionType):
        # None first: 'none' is also a fine string.
        return sorted(typing.get_args(kind), key=lambda choice: choice is not type(None))
    return [kind]


def _parse(text: str, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is type(None):
        if text.lower() in ("none", "null"):
            return None
    elif kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif kind in (int, float):
        return kind(text)
    elif kind is str:
        return text
    elif origin is typing.Literal:
        for choice in arguments:
            if option_text(choice) == text:
                return choice
    elif origin is tuple:
        parts, kinds = _split(text), arguments or (Any, Ellipsis)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(parts)
        if len(parts) == len(kinds):
            return tuple(map(_parse, parts, kinds))
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        pairs = [part.split(":", 1) for part in _split(text)]
        if all(len(pair) == 2 for pair in pairs):
            kind = arguments[1] if arguments else Any
            return {key.strip(): parse_option(key, value, kind) for key, value in pairs}
    elif isinstance(origin, type) and issubclass(origin, Sequence):
        return [_parse(part, arguments[0] if arguments else Any) for part in _split(text)]
    elif text.lower() in _WORDS:
        return _WORDS[text.lower()]
    else:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            if kind is Any:
                return text
    raise ValueError


def _split(text: str) -> list[str]:
    parts = [part.strip().strip("'\"") for part in text.strip("[](){}").split(",")]
    return [part for part in parts if part]


def _describe(kind: Any) -> str:
    if kind is type(None):
        return "none"
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(map(option_text, typing.get_args(kind)))}"
    words = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    if kind in words:
        return words[kind]
    origin = typing.get_origin(kind) or kind
    if isinstance(origin, type) and issubclass(origin, Mapping):
        number = float in typing.get_args(kind)
        return f"names with {'numbers like a:0.1,b:0.9' if number else 'values like a:x,b:y'}"
    return "values like a,b"
