"""`data trace`: where a model, a dataset, a shard, a token or a document comes from, and what was made of it."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from consortium.cli.context import As, Caller, Json
from consortium.cli.show import put, put_json, say, table

_HEX = re.compile(r"[0-9a-fA-F]{12,64}")
_DOCUMENT_HEX = 32
_WHOLE_HEX = 64
_TRACE_HELP = "Walk a model, dataset, shard or document back to its collections and on to what was made of it."
Root = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|DATASET|SHARD|DOCUMENT",
        help="A pretrain job's id; a dataset's name, name@version or id; sha256: and at least 12 digits of a shard's "
        "digest; or the SHA-256 of a document's text, 64 digits or the first 32, looked for in your partner's stores.",
    ),
]
Token = Annotated[int | None, typer.Option(min=0, help="From which document this token of the shard comes.")]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("trace", help=_TRACE_HELP)(trace)


def trace(root: Root, token: Token = None, as_json: Json = False, person: As = "") -> None:
    """Print the lineage."""
    from consortium.domain.codec import to_json
    from consortium.errors import UsageError
    from consortium.local.trace_home import find_at_home, token_at_home

    caller = Caller(person)
    kind, root = _kind(caller, root)
    if token is not None:
        if kind != "shard":
            raise UsageError(f"tokens are those of a shard, and {root} is none", where="--token")
        place = to_json(token_at_home(caller.client(), root, token, caller.name()[:2]))
        put_json(place) if as_json else _put_place(place)
        return
    if kind == "document":
        document = find_at_home(caller.client(), root, caller.name()[:2])
        put_json(document) if as_json else _put_document(document)
        return
    found = caller.client().trace(root)
    put_json(found) if as_json else _put_lineage(found)


def _kind(caller: Caller, root: str) -> tuple[str, str]:
    """Tell what is asked for, and in its full form: 64 digits are a shard's, if any has them, else a document's."""
    from consortium.errors import NotFoundError

    digits = root.removeprefix("sha256:")
    if not _HEX.fullmatch(digits):
        return ("shard" if root.startswith("sha256:") else "node"), root
    digits = digits.lower()
    if root.startswith("sha256:") or len(digits) not in (_DOCUMENT_HEX, _WHOLE_HEX):
        return "shard", f"sha256:{digits}"
    if len(digits) == _WHOLE_HEX:
        try:
            caller.client().trace(f"sha256:{digits}")
            return "shard", f"sha256:{digits}"
        except NotFoundError:
            pass
    return "document", digits[:_DOCUMENT_HEX]


def _put_place(place: dict[str, Any]) -> None:
    put(f"token {place['position']:,} of {place['shard']}")
    put(f"  is token {place['offset']:,} of document {place['document']} ({place['id']})")
    put(f"  of {place['name']} at {place['site']}, {place['territory']}  ({place['dataset']})")
    put(f"  whose text is row {place['row']} of {place['source']}")
    put(f"  licence {place['licence']}, contributor {place['contributor'] or '-'}, {place['language'] or 'und'}")


def _put_document(found: dict[str, Any]) -> None:
    for line in found["found"]:
        where = f"{line['name']}, shard {line['shard'] or '-'}"
        if line["class"] == "tokens":
            where += f", tokens {line['start']:,} to {line['start'] + line['tokens'] - 1:,}"
        else:
            where += f", row {line['row']:,}"
        put(f"{where}  ({line['dataset']})")
        if "rule" in line:
            became = f"removed by {line['rule']}" if line["rule"] else _after_cleaning(line)
            put(f"  {became}  ({line['cleaned_by']})")
    for model in found["models"]:
        put(f"model {_job_text(model)}")
    if not found["models"]:
        say("no model was made of it")
    for dataset, why in found["unread"].items():
        say(f"not looked in: {dataset}: {why}")
    if found["elsewhere"]:
        say(f"looked for at {', '.join(found['sites'])}; only at home can {', '.join(found['elsewhere'])} be searched")


def _after_cleaning(line: dict[str, Any]) -> str:
    return "stays as it is" if line["clean"] == line["document"] else f"stays, edited to {line['clean']}"


def _put_lineage(found: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in [*found["datasets"], *found["jobs"]]}
    starts = [found["root"]]
    if found["shard"]:
        starts = [place["dataset"] for place in found["shard"]["in"]]
        for place in found["shard"]["in"]:
            holder = nodes[place["dataset"]]
            counts = f"{place['documents']:,} documents, {place['tokens']:,} tokens, {place['size_bytes']:,} bytes"
            number = f"{place['number'] + 1} of {place['of']}"
            put(f"{found['shard']['digest']}\n  is shard {number} of {holder['name']}@{holder['version']}: {counts}")
    makers = {node["made_by"] for node in found["datasets"]} - set(starts)
    edges = [(read, made) for read, made in found["edges"] if not {read, made} & makers]
    for start in starts:
        _branch(start, nodes, _by(edges, 1), 0, set())
    onward = _by(edges, 0)
    if any(start in onward for start in starts):
        put("what was made of it:")
        for other in sorted({other for start in starts for other in onward.get(start, ())}):
            _branch(other, nodes, onward, 1, set())
    if found["legal_bases"]:
        put(f"legal bases: {'; '.join(found['legal_bases'])}")
    rows = [
        (record["record"], record["type"], "-" if record["leaf"] is None else record["leaf"], node)
        for node, records in found["records"].items()
        for record in records
    ]
    put("in the ledger (an inclusion proof: /v1/log/proof?index=LEAF, Client.inclusion(LEAF)):")
    table(["record", "type", "leaf", "of"], rows, empty="nothing yet")


def _by(edges: list[tuple[str, str]], end: int) -> dict[str, list[str]]:
    """Return the other ends of edges by one end: 1 is what was made, 0 what was read."""
    found: dict[str, list[str]] = {}
    for edge in edges:
        found.setdefault(edge[end], []).append(edge[1 - end])
    return found


def _branch(
    node: str, nodes: dict[str, dict[str, Any]], following: dict[str, list[str]], depth: int, seen: set[str]
) -> None:
    facts = nodes.get(node, {"id": node})
    text = _job_text(facts) if "kind" in facts else _dataset_text(facts, nodes)
    put("  " * depth + text + ("  see above" if node in seen else ""))
    if node in seen:
        return
    seen.add(node)
    for other in sorted(following.get(node, [])):
        _branch(other, nodes, following, depth + 1, seen)


def _line(text: object) -> str:
    """Return what somebody wrote as a piece of a line: nobody's words look like another line of the trace."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in str(text))


def _job_text(job: dict[str, Any]) -> str:
    outer = f", outer state {job['outer_digest']}" if job["outer_digest"] else ""
    facts = f"{job['kind']} job {job['name']} by {job['submitter']}, purpose {_line(job['purpose'])}, {job['state']}"
    return f"{facts}{outer}  ({job['id']})"


def _dataset_text(facts: dict[str, Any], nodes: dict[str, dict[str, Any]]) -> str:
    text = f"{facts.get('name', '')}@{facts.get('version', '')} at {facts.get('site', '')}"
    text += f", {facts.get('artifact_class', '')}, licence {_line(facts.get('licence', ''))}"
    if facts.get("manifest_digest"):
        text += f", rules {facts['manifest_digest']}"
    if facts.get("made_by"):
        maker = nodes.get(facts["made_by"], {})
        text += f", made by {maker.get('kind', '')} job {maker.get('name', '')} ({facts['made_by']})"
    return f"{text}  ({facts['id']})"
