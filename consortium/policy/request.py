"""Requests: what a job asks of the partners it touches, as attribute values that a policy can judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from consortium.domain import ids
from consortium.domain.data import ArtifactClass, Dataset
from consortium.domain.job import JobKind, JobSpec
from consortium.domain.partner import Cotenancy, Site
from consortium.policy.model import Action

SENT: dict[JobKind, tuple[ArtifactClass, ...]] = {
    JobKind.CLEAN: (),
    JobKind.TOKENIZE: (ArtifactClass.STATISTIC,),
    JobKind.PRETRAIN: (ArtifactClass.PSEUDO_GRADIENT, ArtifactClass.OUTER_STATE),
    JobKind.EVALUATE: (),
}
"""Artifact classes that the legs of a kind send to each other's sites.

`clean` with `across` sends one more, and so does `pretrain` with `outer.share`.
"""
REPORTED = (ArtifactClass.METRIC, ArtifactClass.CONTROL)
"""Artifact classes that every leg sends to the consortium."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question to the partners it touches. Equal requests get equal answers, so decisions are cached per request.

    An empty string means "does not apply"; where a rule needs the value, empty never passes.
    """

    action: Action
    job_kind: str = ""
    purpose: str = ""
    account: str = ""
    submitter_partner: str = ""
    host_site: str = ""
    """Where it happens: the site that runs, reads, sends or takes in."""
    host_partner: str = ""
    host_territory: str = ""
    host_cotenancy: str = Cotenancy.OPEN
    """How much the host keeps jobs apart; unless said otherwise, not at all."""
    owner: str = ""
    """Partner whose data or artifact it is (for `receive`, the sender's)."""
    owner_territory: str = ""
    """Home territory of the data."""
    artifact_class: str = ""
    categories: tuple[str, ...] = ()
    destination_partner: str = ""
    """Who gets it: a partner, or `consortium`."""
    destination_territory: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """A site where a model was trained, or one it goes back to, and the categories of the data it read there."""

    site: Site
    categories: tuple[str, ...] = ()


def sent(spec: JobSpec) -> tuple[ArtifactClass, ...]:
    """Return the artifact classes that the legs of a job send to each other's sites."""
    across = spec.params.get("across") if spec.kind is JobKind.CLEAN else None
    compared = isinstance(across, Mapping) and bool(across.get("order"))
    outer = spec.params.get("outer") if spec.kind is JobKind.PRETRAIN else None
    if isinstance(outer, Mapping) and outer.get("share", "none") != "none":
        return (*SENT[spec.kind], ArtifactClass.OPTIMIZER_STATE)
    return (*SENT[spec.kind], *((ArtifactClass.MINHASH,) if compared else ()))


def requests_for_job(
    spec: JobSpec, inputs: Iterable[Dataset], host_sites: Mapping[str, Site]
) -> dict[str, tuple[Request, ...]]:
    """Return, per site a job would run at, every request it makes there.

    To run; to read each input that is there (an input whose home is not among the hosts would be read at every one);
    to send what its kind sends to the other hosts, and to take in theirs; to report to the consortium.
    """
    data = sorted(inputs, key=lambda item: item.id)
    return {
        site_id: (
            _run(spec, host_sites[site_id]),
            *(_read(spec, item, host_sites[site_id]) for item in _read_at(site_id, data, host_sites)),
            *_exchange(spec, data, host_sites, site_id),
        )
        for site_id in sorted(host_sites)
    }


def requests_for_model(spec: JobSpec, behind: Iterable[Behind], host_sites: Mapping[str, Site]) -> tuple[Request, ...]:
    """Return what a job that reads a model asks of the partners behind it: an outer state holds what their data said.

    Of each site behind it: to read its outer state at home for the job's purpose, the categories of its data told, and
    to hand it to every host but itself.
    """
    requests = []
    for item in sorted(behind, key=lambda one: one.site.id):
        home = item.site
        requests.append(
            _hosted(
                Action.READ,
                spec,
                home,
                owner=home.partner,
                owner_territory=home.territory,
                artifact_class=ArtifactClass.OUTER_STATE.value,
                categories=item.categories,
            )
        )
        requests += [
            release_request(spec, home, ArtifactClass.OUTER_STATE, host_sites[name], item.categories)
            for name in sorted(set(host_sites) - {home.id})
        ]
    return tuple(requests)


def release_request(
    spec: JobSpec,
    host: Site,
    artifact_class: ArtifactClass,
    destination: Site | None,
    categories: tuple[str, ...] = (),
) -> Request:
    """Return the request to send an artifact of a job out of `host`, to a site or (None) to the consortium."""
    return _hosted(
        Action.RELEASE,
        spec,
        host,
        owner=host.partner,
        owner_territory=host.territory,
        artifact_class=artifact_class.value,
        categories=categories,
        destination_partner=destination.partner if destination else ids.CONSORTIUM,
        destination_territory=destination.territory if destination else "",
    )


def receive_request(spec: JobSpec, host: Site, artifact_class: ArtifactClass, sender: Site) -> Request:
    """Return the request to take an artifact of a job, sent by `sender`, in at `host`."""
    return _hosted(
        Action.RECEIVE,
        spec,
        host,
        owner=sender.partner,
        owner_territory=sender.territory,
        artifact_class=artifact_class.value,
        destination_partner=host.partner,
        destination_territory=host.territory,
    )


def log_request(spec: JobSpec, host: Site, reader_partner: str) -> Request:
    """Return the request to show a job's log of `host` to somebody of `reader_partner` (or to the consortium)."""
    return _hosted(
        Action.LOG,
        spec,
        host,
        owner=host.partner,
        owner_territory=host.territory,
        artifact_class=ArtifactClass.LOG.value,
        destination_partner=reader_partner,
    )


def _read_at(site_id: str, data: list[Dataset], hosts: Mapping[str, Site]) -> list[Dataset]:
    return [item for item in data if item.site == site_id or item.site not in hosts]


def _run(spec: JobSpec, host: Site) -> Request:
    return _hosted(Action.RUN, spec, host)


def _read(spec: JobSpec, item: Dataset, host: Site) -> Request:
    return _hosted(
        Action.READ,
        spec,
        host,
        owner=item.partner,
        owner_territory=item.territory,
        artifact_class=item.artifact_class.value,
        categories=item.categories,
    )


def _exchange(spec: JobSpec, data: list[Dataset], hosts: Mapping[str, Site], site_id: str) -> list[Request]:
    host = hosts[site_id]
    categories = tuple(sorted({c for item in _read_at(site_id, data, hosts) for c in item.categories}))
    requests = [release_request(spec, host, name, None, categories) for name in REPORTED]
    for peer_id in sorted(set(hosts) - {site_id}):
        peer = hosts[peer_id]
        for name in sent(spec):
            requests.append(release_request(spec, host, name, peer, categories))
            requests.append(receive_request(spec, host, name, peer))
    return requests


def _hosted(
    action: Action,
    spec: JobSpec,
    host: Site,
    *,
    owner: str = "",
    owner_territory: str = "",
    artifact_class: str = "",
    categories: tuple[str, ...] = (),
    destination_partner: str = "",
    destination_territory: str = "",
) -> Request:
    return Request(
        action=action,
        job_kind=spec.kind.value,
        purpose=spec.purpose,
        account=spec.account,
        submitter_partner=ids.partner_of(spec.submitter),
        host_site=host.id,
        host_partner=host.partner,
        host_territory=host.territory,
        host_cotenancy=host.cotenancy.value,
        owner=owner,
        owner_territory=owner_territory,
        artifact_class=artifact_class,
        categories=tuple(sorted({name.strip().lower() for name in categories})),  # as rules name them
        destination_partner=destination_partner,
        destination_territory=destination_territory,
    )
