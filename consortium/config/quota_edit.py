"""Change single values in the text of a quota file, leaving its comments and layout as they are.

A change is `accounts.fr.quotas.h100-sxm.nominal=4`, the path as it stands in the file. Entries of lists are named by
what they are about: `budgets.fr/health.2026-11=500` (reference GPU-hours), `pledges.fr.h100-sxm.2026-11=6000`
(GPU-hours).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import yaml

from consortium.config import marks
from consortium.config.build import nearest, unknown
from consortium.config.overrides import MAX_OVERRIDES
from consortium.errors import ConfigError

_LISTS = {
    "budgets": (("account", "period"), "reference_gpu_hours"),
    "pledges": (("partner", "flavor", "period"), "gpu_hours"),
}
_LEAVES = ("nominal", "borrowing_limit", "lending_limit", "weight")
_NONE = ("null", "none")
_MAX_DIGITS = 12
"""More than any amount in a quota file may have."""


def edit_quota(text: str, overrides: Sequence[str], file: str) -> str:
    """Return `text` with every `key=value` of `overrides` in it. Raises ConfigError naming the one at fault.

    Values are whole numbers, or `null` for no limit. What comes out still has to be read and checked.
    """
    if len(overrides) > MAX_OVERRIDES:
        raise ConfigError(f"more than {MAX_OVERRIDES} changes", fix="edit the file")
    for position in range(len(overrides)):
        text = _changed(text, overrides, position, file)
    return text


def blamed(fault: ConfigError, text: str, overrides: Sequence[str], file: str) -> ConfigError:
    """Return a fault found in `edit_quota(text, overrides, file)` as that of the overrides that made it.

    Those whose changes stand in the line that the fault names, else all: nobody sees the text that it is a line of.
    """
    name, _, line = (fault.where or "").rpartition(":")
    if name != file or not line.isdecimal():
        return fault
    spans: list[range] = []
    for position in range(len(overrides)):
        edited = _changed(text, overrides, position, file)
        before, after = text.splitlines(), edited.splitlines()
        start = _alike(before, after)
        kept = _alike(before[start:][::-1], after[start:][::-1])
        grown = len(after) - len(before)
        spans = [range(s.start + grown, s.stop + grown) if s.start >= len(before) - kept else s for s in spans]
        spans.append(range(start, len(after) - kept))
        text = edited
    at = [position for position, span in enumerate(spans) if int(line) - 1 in span]
    where = "; ".join(_where(overrides, position) for position in at or range(len(overrides)))
    return ConfigError(fault.what, where=where, fix=fault.fix)


def _changed(text: str, overrides: Sequence[str], position: int, file: str) -> str:
    """Return the text with one of the overrides in it."""
    where = _where(overrides, position)
    key, equals, value = overrides[position].partition("=")
    if not equals or not (value in _NONE or (value.isascii() and value.isdigit())):
        raise ConfigError(
            "not a change of a quota",
            where=where,
            fix="write a path and a whole number or null, such as accounts.fr.quotas.h100-sxm.nominal=4",
        )
    if len(value.lstrip("0")) > _MAX_DIGITS:
        raise ConfigError(f"a number of {len(value):,} digits is no amount of anything", where=where)
    _, root = marks.marked(text, file)  # refuses what is no plain mapping
    _check_names(root, key, overrides, where)
    return _edit(text, root, key, "null" if value in _NONE else (value.lstrip("0") or "0"), where)


def _where(overrides: Sequence[str], position: int) -> str:
    return f"override {position + 1}: {overrides[position][:120]}"


def _alike(one: list[str], other: list[str]) -> int:
    """How many lines two texts have in common at their start."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _check_names(root: yaml.Node, key: str, overrides: Sequence[str], where: str) -> None:
    """Raise ConfigError for an account that is not in the file, but for a project that is to get a nominal."""
    top, *steps = key.split(".")
    if top != "accounts" or not steps:
        return
    accounts, left = _descend(root, [top])
    partners = _names(accounts) if not left else []
    if steps[0] not in partners:
        raise unknown("partner", steps[0], partners, where)
    if len(steps) > 2 and steps[1] == "projects":
        projects, left = _descend(accounts, steps[:2])
        known, made = _names(projects) if not left else [], f"{top}.{'.'.join(steps[:3])}.quotas."
        if steps[2] not in known and not any(o.startswith(made) and ".nominal=" in o for o in overrides):
            raise unknown(f"project of {steps[0]}:", steps[2], known, where)


def _names(node: yaml.Node) -> list[str]:
    return [str(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []


def _edit(text: str, root: yaml.Node, key: str, value: str, where: str) -> str:
    top, _, rest = key.partition(".")
    if top in _LISTS:
        return _edit_entry(text, root, top, rest, value, where)
    if top == "accounts" and not rest:
        raise ConfigError(f"{key!r} is no single value", where=where, fix="go on, such as accounts.fr.weight")
    if top != "accounts":
        raise ConfigError(f"unknown key {key!r}", where=where, fix=nearest(top, ["accounts", *_LISTS]))
    node, steps = _descend(root, key.split("."))
    if not steps:
        if not isinstance(node, yaml.ScalarNode):
            raise ConfigError(f"{key!r} is no single value", where=where, fix=f"go on to one of {', '.join(_LEAVES)}")
        return text[: node.start_mark.index] + value + text[node.end_mark.index :]
    if steps[-1] not in _LEAVES:
        raise ConfigError(f"unknown key {steps[-1]!r}", where=where, fix=nearest(steps[-1], _LEAVES))
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"there is nothing to change at {key!r}", where=where, fix="edit the file")
    nested = value
    for step in reversed(steps[1:]):
        nested = f"{{{step}: {nested}}}"
    return _insert(text, node, f"{steps[0]}: {nested}")


def _descend(node: yaml.Node, steps: list[str]) -> tuple[yaml.Node, list[str]]:
    """Follow the path as far as it stands in the text; names may have dots in them. Return what is left of it."""
    while steps and isinstance(node, yaml.MappingNode):
        known = {key.value: item for key, item in node.value}
        for length in range(len(steps), 0, -1):
            name = ".".join(steps[:length])
            if name in known:
                node, steps = known[name], steps[length:]
                break
        else:
            return node, steps
    return node, steps


def _edit_entry(text: str, root: yaml.Node, top: str, rest: str, value: str, where: str) -> str:
    names, leaf = _LISTS[top]
    first, _, others = rest.partition(".")
    middle, _, last = others.rpartition(".")
    told = [first, *([middle] if middle else []), last]
    shape = f"{top}.{'.'.join(name.upper() for name in names)}"
    if len(told) != len(names) or not all(told) or value == "null":
        raise ConfigError(
            "not an entry of a list", where=where, fix=f"write {shape}=HOURS; to remove one, edit the file"
        )
    found, left = _descend(root, [top])
    entries = found.value if isinstance(found, yaml.SequenceNode) and not left else []
    for entry in entries:
        said = {key.value: item for key, item in entry.value}
        if [said[name].value if name in said else "" for name in names] == told and leaf in said:
            at = said[leaf]
            return text[: at.start_mark.index] + value + text[at.end_mark.index :]
    if top != "budgets":
        raise ConfigError(f"there is no such entry in {top}", where=where, fix="add it to the file")
    made = ", ".join(f"{name}: {_word(word)}" for name, word in zip(names, told, strict=True))
    made = f"{{{made}, {leaf}: {value}}}"
    if entries:
        first_at = entries[0].start_mark.index
        if isinstance(found, yaml.SequenceNode) and found.flow_style:
            return text[:first_at] + f"{made}, " + text[first_at:]
        dash = text.rindex("-", 0, first_at)
        indent = dash - (text.rfind("\n", 0, dash) + 1)
        return text[:dash] + f"- {made}\n" + " " * indent + text[dash:]
    if not left:
        return text[: found.start_mark.index] + f"[{made}]" + text[found.end_mark.index :]
    return f"{text.rstrip()}\n\n{top}:\n  - {made}\n"


def _insert(text: str, node: yaml.MappingNode, line: str) -> str:
    if node.flow_style:
        close = node.end_mark.index - 1
        return text[:close] + (", " if node.value else "") + line + text[close:]
    start = node.start_mark
    return text[: start.index] + f"{line}\n" + " " * start.column + text[start.index :]


def _word(word: str) -> str:
    """A name as YAML: quoted where it could be read as something else."""
    return word if word[:1].isalpha() and word not in ("no", "on", "off", "yes", "y", "n") else json.dumps(word)
