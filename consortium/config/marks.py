"""YAML text to plain data, remembering on which line each key and item stands.

Configs are data: anchors, aliases, tags, interpolations (`${…}`), `_target_` and its kin, `hydra` keys and duplicate
keys are refused here, before anything else looks at them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from consortium.errors import ConfigError

KeyPath = tuple[str | int, ...]
_INSTANTIATE = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
_MAX_BYTES = 1_000_000
_MAX_DEPTH = 12
_MAX_DIGITS = 40


class _Loader(yaml.SafeLoader):
    """Scalars as YAML 1.2's core schema reads them: `no` is a word (and Norway's code), not a boolean.

    Tricks are refused at their event, before anything is composed of it: one pass reads a text and checks it.
    """

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text)
        self._file = file
        self._depth = 0

    def get_event(self) -> yaml.Event:
        event: yaml.Event = super().get_event()  # type: ignore[no-untyped-call]  # the stubs leave it untyped
        self._depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if refused := self._trick(event):
            what, fix = refused
            raise ConfigError(what, where=f"{self._file}:{_line(event)}", fix=fix)
        return event

    def _trick(self, event: yaml.Event) -> tuple[str, str | None] | None:
        if self._depth > _MAX_DEPTH:
            return f"nested deeper than {_MAX_DEPTH} levels", None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            return "YAML anchors and aliases are not allowed", "write the value out"
        tag = getattr(event, "tag", None)
        return None if tag is None else (f"YAML tags such as {tag!r} are not allowed", "write a plain value")


_Loader.yaml_implicit_resolvers = {}


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """Plain data of one YAML text, with the line (from 1) of each path."""

    file: str
    text: str
    data: dict[str, Any]
    lines: dict[KeyPath, int]

    def line(self, path: Iterable[str | int]) -> int:
        """Return the line of `path`, or of its nearest parent that stands in the text."""
        steps = tuple(path)
        while steps and steps not in self.lines:
            steps = steps[:-1]
        return self.lines.get(steps, 1)

    def where(self, path: Iterable[str | int]) -> str:
        """Return `file:line` of `path`."""
        return f"{self.file}:{self.line(path)}"


def parse(text: str, file: str) -> Marked:
    """Parse YAML text whose top is a mapping. Raises ConfigError with file and line."""
    return marked(text, file)[0]


def marked(text: str, file: str) -> tuple[Marked, yaml.MappingNode]:
    """Return what `parse` does, and the nodes it was read from, with their places in the text."""
    node = _compose(text, file)
    lines: dict[KeyPath, int] = {(): _line(node)}
    data: dict[str, Any] = _value(node, (), file, lines)
    return Marked(file=file, text=text, data=data, lines=lines), node


def _compose(text: str, file: str) -> yaml.MappingNode:
    if len(text.encode()) > _MAX_BYTES:
        raise ConfigError(f"larger than {_MAX_BYTES} bytes", where=file)
    try:
        loader = _Loader(text, file)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        problem = " ".join(part for part in (fault.context, fault.problem) if part)
        raise ConfigError(
            f"not valid YAML: {problem}",
            where=f"{file}:{mark.line + 1}" if mark else file,
            fix="is the file half-written? complete or mend it at that line",
        ) from fault
    except yaml.YAMLError as fault:
        raise ConfigError(f"not valid YAML: {fault}", where=file) from fault
    if node is None or not isinstance(node, yaml.MappingNode):
        where = f"{file}:{_line(node) if node else 1}"
        raise ConfigError("empty, or not a mapping of keys to values", where=where)
    return node


def read(path: Path, file: str) -> Marked:
    """Parse the YAML file at `path`, called `file` in messages. Raises ConfigError."""
    return parse(read_text(path, file), file)


def read_text(path: Path, file: str) -> str:
    """Return the text of `path`. Raises ConfigError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        raise ConfigError("not UTF-8 text", where=file) from fault
    except OSError as fault:
        raise ConfigError(f"cannot read the file: {fault.strerror}", where=file) from fault


def _line(item: yaml.Node | yaml.Event) -> int:
    return int(item.start_mark.line) + 1 if item.start_mark else 1


def _value(node: yaml.Node, path: KeyPath, file: str, lines: dict[KeyPath, int]) -> Any:
    where = f"{file}:{_line(node)}"
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, file, lines)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            lines[(*path, index)] = _line(item)
            items.append(_value(item, (*path, index), file, lines))
        return items
    if "${" in node.value:
        raise ConfigError(
            f"interpolation is not allowed: {node.value!r}", where=where, fix="write the value itself; configs are data"
        )
    if len(node.value) > _MAX_DIGITS and node.tag.endswith((":int", ":float")):
        raise ConfigError(f"a number of more than {_MAX_DIGITS} digits", where=where)
    return _scalar(node)


def _mapping(node: yaml.MappingNode, path: KeyPath, file: str, lines: dict[KeyPath, int]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, item in node.value:
        where = f"{file}:{_line(key_node)}"
        key = key_node.value
        if not isinstance(key_node, yaml.ScalarNode) or key == "<<" or not key:
            raise ConfigError("a key must be a plain word", where=where)
        if key in _INSTANTIATE:
            raise ConfigError(
                f"{key!r} is not allowed: configs are data, never code", where=where, fix="remove the key"
            )
        if (not path and key == "hydra") or "${" in key:
            raise ConfigError(
                f"{key!r} is not allowed: a config does not steer Hydra", where=where, fix="remove the key"
            )
        if key in result:
            raise ConfigError(
                f"{key!r} is given twice", where=where, fix=f"keep one; the first is on line {lines[(*path, key)]}"
            )
        lines[(*path, key)] = _line(key_node)
        result[key] = _value(item, (*path, key), file, lines)
    return result


def _scalar(node: yaml.Node) -> Any:
    kind = node.tag.rsplit(":", 1)[-1]
    text: str = node.value
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text)
    return float(text) if kind == "float" else text


def copy(value: Any) -> Any:
    """Return plain data copied to its leaves, so that a cached value cannot be changed."""
    if isinstance(value, dict):
        return {key: copy(item) for key, item in value.items()}
    return [copy(item) for item in value] if isinstance(value, list | tuple) else value
