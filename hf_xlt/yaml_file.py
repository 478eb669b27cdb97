"""Reading YAML files: scalars as YAML 1.2 has them, no key twice, values of the right kind."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yaml import MappingNode, Node, SafeLoader, ScalarNode, SequenceNode, YAMLError

from hf_xlt.errors import ConfigError

_SCALARS = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    # A zero in front makes a name (`010`), which must keep it.
    "tag:yaml.org,2002:int": (r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "tag:yaml.org,2002:merge": (r"<<", ["<"]),
}
_TEXT = "tag:yaml.org,2002:str"
_KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    dict: "a mapping",
    list: "a list",
    tuple: "a list",
}


class _Loader(SafeLoader):
    """Reads `no`, `on`, `010`, `1:30` and dates as texts, and refuses keys that are there twice."""

    yaml_implicit_resolvers: typing.ClassVar[dict[str, list[Any]]] = {}

    def compose_mapping_node(self, anchor: str | None) -> MappingNode:
        """Compose a mapping whose keys differ; merged keys (`<<`) may come again, which is how they are overridden."""
        node = super().compose_mapping_node(anchor)
        check_keys(node, str)
        return node


for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)


def check_keys(node: MappingNode, normal: Callable[[str], str]) -> None:
    """Check that no two keys of a mapping are the same once `normal` has been applied.

    Raises:
        ConfigError: two are; the message names key and lines.
    """
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, ScalarNode) and not key.tag.endswith(":merge"):
            name, line = (key.tag, normal(key.value)), key.start_mark.line + 1
            if name in lines:
                raise ConfigError(
                    f"line {line}: the key `{key.value}` is there already, in line {lines[name]}; keep one."
                )
            lines[name] = line


def read_yaml(path: str, *, lists_as_written: bool = False) -> dict[str, Any]:
    """Read a YAML file that is a mapping.

    Scalars are those of YAML 1.2: `no`, `yes`, `on`, `off`, `1:30` and dates are texts, and so are numbers with a
    zero in front (`010`); `1e-5` is a number.

    Args:
        path: the file, in UTF-8, with a byte-order mark or without.
        lists_as_written: scalars of lists that are values of the file's own keys stay texts as they are written, so
            that labels such as `true` or `1.50` keep their spelling; so do numbers with a point or an exponent.

    Returns:
        The mapping; empty for an empty file.

    Raises:
        ConfigError: it is missing, no YAML, no mapping, or has a key twice; the message names key and line.
    """
    try:
        loader = _Loader(Path(path).read_text(encoding="utf-8-sig"))
        try:
            return _construct(loader, lists_as_written)
        finally:
            loader.dispose()
    except FileNotFoundError as error:
        raise ConfigError(f"config file `{path}` is missing.") from error
    except ConfigError as error:
        raise ConfigError(f"config file `{path}`: {error}") from error
    except (YAMLError, OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"config file `{path}` cannot be read as YAML: {' '.join(str(error).split())}") from error


def _construct(loader: _Loader, lists_as_written: bool) -> dict[str, Any]:
    node = loader.get_single_node()
    if node is None:
        return {}
    if not isinstance(node, MappingNode):
        if isinstance(node, ScalarNode) and node.tag.endswith(":null"):
            return {}
        raise ConfigError("it must be a mapping from argument names to values.")
    # A flag may be written with hyphens or underscores.
    check_keys(node, lambda key: key.replace("-", "_"))
    for key, _ in node.value:
        if not key.tag.endswith((":str", ":merge")):
            raise ConfigError(f"line {key.start_mark.line + 1}: a key must be a text; put quotation marks around it.")
    if lists_as_written:
        for _, value in node.value:
            _keep_texts(value)
    return loader.construct_document(node)


def _keep_texts(node: Node) -> None:
    if isinstance(node, SequenceNode) and all(isinstance(entry, ScalarNode) for entry in node.value):
        node.value = [ScalarNode(_TEXT, entry.value, entry.start_mark) for entry in node.value]
    elif node.tag.endswith(":float"):
        node.tag = _TEXT


def check_kinds(cls: type, values: Mapping[str, Any], where: str) -> None:
    """Check that values are of the kinds that a dataclass says.

    Args:
        cls: the dataclass.
        values: value by field; unknown fields are let pass.
        where: what the message begins with.

    Raises:
        ConfigError: one is not; the message names it.
    """
    hints = typing.get_type_hints(cls)
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            raise ConfigError(f"{where}: `{name}` is {value!r}; it must be {_describe(hints[name])}.")


def _fits(value: Any, hint: Any) -> bool:
    """Say whether a value is of a kind; kinds that YAML cannot hold take anything."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(entry, inner[0]) for entry in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(
            _fits(key, inner[0]) and _fits(entry, inner[1]) for key, entry in value.items()
        )
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in _KINDS else True


def _describe(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe(one) for one in inner))
    if origin in (list, tuple):
        return f"a list, each {_describe(inner[0])}"
    if origin in (dict, Mapping):
        return f"a mapping, each value {_describe(inner[1])}"
    return _KINDS.get(hint, getattr(hint, "__name__", str(hint)))
