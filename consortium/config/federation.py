"""The federation's files: partners and people, policies, sites, quotas, the server's timing.

`parse_*_text` read the text of a signed document; `load_federation` composes `configs/federation.yaml` with Hydra,
reads `clusters/*.yaml`, and checks that names in one file exist in the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from consortium.config import dirs, marks
from consortium.config.build import build, unknown
from consortium.config.compose import compose
from consortium.config.marks import KeyPath, Marked
from consortium.config.quota import QuotaConfig, build_quota
from consortium.config.schemas import PartnerConfig, PersonConfig, ServerTuning, SiteConfig
from consortium.domain.ids import CONSORTIUM
from consortium.domain.partner import Partner, Site
from consortium.domain.quota import Account, Budget, Pledge
from consortium.errors import ConfigError
from consortium.policy.model import PartnerPolicy, PolicyRules

_PACKAGES = {"partner": "partners.{}", "policy": "policies.{}", "quota": "", "server": ""}
SECTIONS = ("residency", "purposes", "embargoes", "artifacts", "logs", "cotenancy", "categories")


@dataclass(frozen=True, slots=True, kw_only=True)
class _FederationFile:
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    defaults: list[str | dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """A file that its owner signs, word for word."""

    kind: str
    """`partner`, `policy`, `site`, `quota` or `server`."""
    id: str
    file: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationConfig:
    """Everything the files say, validated and cross-checked; sorted by id."""

    partners: tuple[Partner, ...]
    people: tuple[PersonConfig, ...]
    sites: tuple[Site, ...]
    accounts: tuple[Account, ...]
    """Root first, then partners, then projects."""
    budgets: tuple[Budget, ...]
    pledges: tuple[Pledge, ...]
    policies: tuple[PartnerPolicy, ...]
    server: ServerTuning
    files: tuple[ConfigFile, ...] = field(default=())

    def text(self, kind: str, owner: str) -> ConfigFile:
        """Return the file of `kind` that belongs to `owner` (a partner, a site, or `consortium`)."""
        for file in self.files:
            if (file.kind, file.id) == (kind, owner):
                return file
        known = [f.id for f in self.files if f.kind == kind]
        raise unknown(f"{kind} file of", owner, known, "the federation's configs")


def parse_policy_text(text: str, file: str) -> PartnerPolicy:
    """Return the policy written in `text`. Raises ConfigError with file and line."""
    return _policy(marks.parse(text, file))


def parse_site_text(text: str, file: str) -> SiteConfig:
    """Return the site written in `text`. Raises ConfigError with file and line."""
    marked = marks.parse(text, file)
    return build(SiteConfig, marked.data, marked)


def parse_quota_text(text: str, file: str, sites: tuple[Site, ...] = (), partners: Iterable[str] = ()) -> QuotaConfig:
    """Return accounts, budgets and pledges written in `text`; nominals come from `sites` where left out.

    Where `partners` are given, all accounts must be theirs. Raises ConfigError with file and line.
    """
    return build_quota(marks.parse(text, file), sites, partners)


def load_federation(configs: Path | None = None, clusters: Path | None = None) -> FederationConfig:
    """Return the federation as `configs/federation.yaml` and `clusters/*.yaml` describe it.

    Raises ConfigError naming file, line and the nearest right name.
    """
    found = dirs.default_dirs() if configs is None or clusters is None else None
    root = (configs or (found.configs if found else Path())).resolve()
    lands = (clusters or (found.clusters if found else Path())).resolve()
    chosen = _chosen(root)
    for group, name in chosen:
        dirs.read(root, f"{group}/{name}.yaml")
    federation = _assemble(root, lands, chosen)
    composed = compose(root, "federation")
    for group, name in chosen:
        _same(dirs.read(root, f"{group}/{name}.yaml"), composed, _PACKAGES[group].format(name) or group)
    return federation


def _policy(marked: Marked) -> PartnerPolicy:
    rules = build(PolicyRules, marked.data, marked)
    lines = {}
    for section in SECTIONS:
        lines[section] = marked.line((section,))
        for index in range(len(getattr(rules, section))):
            lines[f"{section}/{index + 1}"] = marked.line((section, index))
    return PartnerPolicy(rules=rules, file=marked.file, lines=lines)


def _chosen(root: Path) -> list[tuple[str, str]]:
    """Return (group, file) for each entry of the defaults list of `federation.yaml`, after reading that file."""
    top = dirs.read(root, "federation.yaml")
    build(_FederationFile, top.data, top)
    chosen: list[tuple[str, str]] = []
    for index, entry in enumerate(top.data["defaults"]):
        if entry == "_self_":
            continue
        where = top.where(("defaults", index))
        if not isinstance(entry, dict) or len(entry) != 1:
            raise ConfigError("an entry picks one file: `- quota: consortium`", where=where)
        key, name = next(iter(entry.items()))
        group, _, package = key.partition("@")
        if group not in _PACKAGES:
            raise unknown("config group", group, _PACKAGES, where)
        if package != _PACKAGES[group].format(name) or not isinstance(name, str):
            right = f"{group}@{_PACKAGES[group].format(name)}" if _PACKAGES[group] else group
            raise ConfigError(
                f"{key!r} puts the file in the wrong place", where=where, fix=f"write `- {right}: {name}`"
            )
        if (group, name) in chosen:
            raise ConfigError(f"{group}/{name} is picked twice", where=where)
        if not (root / group / f"{name}.yaml").is_file():
            raise unknown(group, name, [path.stem for path in (root / group).glob("*.yaml")], where)
        chosen.append((group, name))
    return chosen


def _check_members(
    members: list[tuple[Marked, PartnerConfig]],
    policies: list[tuple[Marked, PartnerPolicy]],
    sites: list[tuple[Marked, SiteConfig]],
) -> None:
    names = [config.id for _, config in members]
    for marked, config in members:
        _named_after(marked, config.id, "id")
    for marked, policy in policies:
        _known(marked, "partner", policy.partner, names, ("partner",))
        _named_after(marked, policy.partner, "partner")
        for section, attribute in (("embargoes", "partners"), ("artifacts", "to"), ("logs", "to")):
            for index, rule in enumerate(getattr(policy.rules, section)):
                for position, value in enumerate(getattr(rule, attribute)):
                    path = (section, index, attribute, position)
                    _known(marked, "partner", value, [*names, CONSORTIUM] if attribute == "to" else names, path)
    for name in sorted(set(names) - {policy.partner for _, policy in policies}):
        raise ConfigError(
            f"{name} has no policy: nothing of it could be used",
            where="configs/federation.yaml",
            fix=f"add `- policy@policies.{name}: {name}`",
        )
    ids = [config.id for _, config in sites]
    for marked, site in sites:
        _known(marked, "partner", site.partner, names, ("partner",))
        _named_after(marked, site.id, "id")
        for other in sorted(site.links):
            _known(marked, "site", other, ids, ("links", other))


def _known(marked: Marked, what: str, name: str, names: list[str], path: KeyPath) -> None:
    if name not in names:
        raise unknown(what, name, names, marked.where(path))


def _named_after(marked: Marked, name: str, key: str) -> None:
    if Path(marked.file).stem != name:
        raise ConfigError(
            f"{key} is {name!r}, but the file is named otherwise",
            where=marked.where((key,)),
            fix=f"rename the file to {name}.yaml, or mend {key}",
        )


def _same(marked: Marked, composed: dict[str, Any], package: str) -> None:
    """Raise unless Hydra read the file as its owner's signature will be read: YAML 1.1 and 1.2 differ on some words."""
    read: Any = composed
    for step in package.split("."):
        read = read.get(step, {})
    for key, value in marked.data.items():
        if read.get(key) != value:
            raise ConfigError(
                f"{key!r} can be read in two ways (a word such as `no`, or a number such as 1_000)",
                where=marked.where((key,)),
                fix="put words in quotes and write numbers plainly",
            )


def _assemble(root: Path, lands: Path, chosen: list[tuple[str, str]]) -> FederationConfig:
    def picked(group: str) -> list[Marked]:
        return [dirs.read(root, f"{group}/{name}.yaml") for kind, name in chosen if kind == group]

    def only(group: str) -> Marked:
        files = picked(group)
        if len(files) != 1:
            where = dirs.display(root, "federation.yaml")
            raise ConfigError(f"pick exactly one {group!r}, not {len(files)}", where=where)
        return files[0]

    members = [(m, build(PartnerConfig, m.data, m)) for m in picked("partner")]
    policies = [(m, _policy(m)) for m in picked("policy")]
    site_files = [dirs.read(lands, path.name) for path in sorted(lands.glob("*.yaml"))]
    sites = [(m, build(SiteConfig, m.data, m)) for m in site_files]
    _check_members(members, policies, sites)
    bare = tuple(sorted((config.site for _, config in sites), key=lambda site: site.id))
    quota_file, server_file = only("quota"), only("server")
    quota = build_quota(quota_file, bare, partners=[config.id for _, config in members])
    owned = [("partner", c.id, m) for m, c in members]
    owned += [("policy", p.partner, m) for m, p in policies]
    owned += [("site", c.id, m) for m, c in sites]
    owned += [("quota", CONSORTIUM, quota_file), ("server", CONSORTIUM, server_file)]
    return FederationConfig(
        partners=_partners([c for _, c in members], quota),
        people=tuple(sorted((person for _, c in members for person in c.people), key=lambda person: person.id)),
        sites=bare,
        accounts=quota.accounts,
        budgets=quota.budgets,
        pledges=quota.pledges,
        policies=tuple(sorted((policy for _, policy in policies), key=lambda policy: policy.partner)),
        server=build(ServerTuning, server_file.data, server_file),
        files=tuple(
            ConfigFile(kind=kind, id=owner, file=m.file, text=m.text)
            for kind, owner, m in sorted(owned, key=lambda item: item[:2])
        ),
    )


def _partners(members: list[PartnerConfig], quota: QuotaConfig) -> tuple[Partner, ...]:
    weights = {account.id: account.weight for account in quota.accounts}
    return tuple(
        Partner(id=c.id, name=c.name, languages=c.languages, weight=weights.get(c.id, 1))
        for c in sorted(members, key=lambda config: config.id)
    )
