"""Overrides and files that try to do more than say values are refused, with what, where and a fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from consortium.config import Dirs, compose_job, load_federation, parse_policy_text
from consortium.errors import ConfigError

OVERRIDES = {
    "interpolation of the environment": ("purpose='${oc.env:AWS_SECRET_ACCESS_KEY}'", "interpolation"),
    "interpolation inside a list": ("inputs=['${oc.env:HOME}']", "interpolation"),
    "interpolation of another key": ("name=${account}", "interpolation"),
    "another search path": ("hydra.searchpath=[file:///tmp/evil]", "Hydra's own settings are closed"),
    "the hydra group": ("hydra/launcher=basic", "Hydra's own settings are closed"),
    "a key added": ("+partner.zz=1", "not allowed"),
    "a key forced": ("++gpus=4", "not allowed"),
    "a group deleted": ("~model", "not allowed"),
    "a value deleted": ("~gpus=2", "not allowed"),
    "a package moved": ("model@data=tiny", "not allowed"),
    "a class to instantiate": ("model._target_=os.system", "unknown key"),
    "a class at the top": ("_target_=os.system", "unknown key"),
    "a group by path": ("model=../policy/fr", "not a choice"),
    "a group by absolute path": ("model=/etc/passwd", "not a choice"),
    "two groups": ("model=[tiny,small]", "not a choice"),
    "a whole group as a dictionary": ("outer={rounds:1}", "not a choice"),
    "a dictionary value": ("inputs={a:1}", "only numbers, words"),
    "a nested list": ("inputs=[[a]]", "only numbers, words"),
    "null": ("gpus=null", "only numbers, words"),
    "a sweep": ("gpus=1,2", "sweeps"),
    "a range": ("gpus=range(1,4)", "sweeps"),
    "a glob": ("model=glob(*)", "sweeps"),
    "infinity": ("optim.lr=inf", "only numbers, words"),
    "not a number": ("optim.lr=nan", "only numbers, words"),
    "the kind": ("kind=clean", "unknown key"),
    "an unknown key": ("outer.ronds=2", "unknown key"),
    "no value": ("gpus", "not an override"),
    "no key": ("=4", "unknown key"),
    "broken grammar": ("inputs=[a", "not a valid override"),
    "a letter beyond the grammar": ("name=é", "a sign that may stand in quotes only"),
    "a quote without its end": ('name="a', "a quote without its end"),
    "a number of any length": ("gpus=" + "7" * 5_000, "a number of thousands of digits"),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_override_is_refused(name: str) -> None:
    override, why = OVERRIDES[name]
    with pytest.raises(ConfigError) as fault:
        compose_job("pretrain", ["gpus=2", override])
    assert why in fault.value.what
    assert fault.value.where is not None
    assert fault.value.where.startswith("override 2: ")
    assert fault.value.exit_code == 2


NUMBERS = (
    "gpus=-5", "gpus=0", "gpus=1000000000", "gpus=2.5", "gpus=true", "gpus='2'",
    "walltime_s=-1", "walltime_s=99999999999",
    "outer.rounds=0", "outer.rounds=999999999", "outer.lr=-0.7", "outer.momentum=1.5", "outer.quorum=-1", "model.dim=7",
    "model.layers=0", "data.batch_size=-16", "optim.lr=0", "optim.betas=[0.9]", "optim.betas=[0.9,1.0]", "seed=-1",
    "min_sites=0", "model.heads=3", "gpus_per_worker=3",
)  # fmt: skip


@pytest.mark.parametrize("override", NUMBERS)
def test_negative_absurd_or_mistyped_number_is_refused_at_its_override(override: str) -> None:
    with pytest.raises(ConfigError) as fault:
        compose_job("pretrain", [override])
    key = override.partition("=")[0]
    if key in ("model.heads", "gpus_per_worker"):  # the fault lies between two keys
        assert "multiple" in fault.value.what
    else:
        assert fault.value.where == f"override 1: {override}"


NEAREST = (
    ("pretain", [], "did you mean 'pretrain'?"),
    ("pretrain", ["outer.ronds=2"], "did you mean 'outer.rounds'?"),
    ("pretrain", ["outer.min_sites=2"], "did you mean 'min_sites'?"),
    ("pretrain", ["batch_size=2"], "did you mean 'data.batch_size'?"),
    ("pretrain", ["lr=0.1"], "one of: optim.lr, outer.lr"),
    ("pretrain", ["model=tinny"], "did you mean 'tiny'?"),
    ("clean", ["prioritty=high"], "did you mean 'priority'?"),
    ("clean", ["priority=hihg"], "did you mean 'high'?"),
    ("clean", ["redact=[emial]"], "did you mean 'email'?"),
)


@pytest.mark.parametrize(("kind", "overrides", "fix"), NEAREST)
def test_unknown_name_gets_the_nearest_right_one(kind: str, overrides: list[str], fix: str) -> None:
    with pytest.raises(ConfigError) as fault:
        compose_job(kind, overrides)
    assert fault.value.fix == fix


FILES = {
    "interpolation": ("purpose: ${oc.env:HOME}\n", 1, "interpolation"),
    "interpolation in a key": ("a: 1\n${oc.env:HOME}: 1\n", 2, "does not steer Hydra"),
    "instantiation": ("model:\n  _target_: os.system\n", 2, "never code"),
    "hydra's settings": ("a: 1\nhydra:\n  searchpath: [file:///tmp]\n", 2, "does not steer Hydra"),
    "a python tag": ("a: !!python/object/apply:os.system [ls]\n", 1, "tags"),
    "an alias bomb": ("a: &a [x, x]\nb: [*a, *a]\n", 1, "anchors"),
    "a key given twice": ("a: 1\nb: 2\na: 3\n", 3, "given twice"),
    "a merge key": ("a: {<<: {b: 1}}\n", 1, "plain word"),
    "half-written, list open": ("partner: fr\nresidency: [{classes: [raw\n", 3, "not valid YAML"),
    "half-written, quote open": ('partner: fr\nname: "Fran', 2, "not valid YAML"),
    "half-written, key without value": ("partner: fr\nversion\n", 3, "not valid YAML"),
    "a tab": ("partner: fr\n\tversion: 1\n", 2, "not valid YAML"),
    "a list": ("- a\n", 1, "not a mapping"),
    "nothing": ("", 1, "empty"),
    "a control character": ("a: \x00\n", None, "not valid YAML"),
}


@pytest.mark.parametrize("name", FILES)
def test_file_is_refused_with_its_line(name: str) -> None:
    text, line, why = FILES[name]
    with pytest.raises(ConfigError) as fault:
        parse_policy_text(text, "configs/policy/fr.yaml")
    assert why in fault.value.what
    assert fault.value.where == ("configs/policy/fr.yaml" if line is None else f"configs/policy/fr.yaml:{line}")


@pytest.mark.parametrize("text", ["a: " + "[" * 40 + "]" * 40, "a: " + "[" * 100_000, "a: " + "{b: " * 50_000])
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="nested deeper"):
        parse_policy_text(text, "x.yaml")


def test_endless_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="more than 40 digits"):
        parse_policy_text(f"version: {'9' * 5_000}", "x.yaml")
    with pytest.raises(ConfigError):
        compose_job("clean", [f"gpus={'9' * 5_000}"])


@pytest.mark.parametrize("override", ["inputs=" + "[" * 5_000, "inputs=" + "[" * 5_000 + "]" * 5_000, "a" * 50_000])
def test_monstrous_overrides_are_refused(override: str) -> None:
    with pytest.raises(ConfigError) as fault:
        compose_job("clean", [override])
    assert len(str(fault.value)) < 1_000


def _edit(folder: Path, file: str, old: str, new: str) -> int:
    path = folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return text[: text.index(old)].count("\n") + 1


JOB_FILES = (
    ("outer/diloco.yaml", "rounds: 4", "ronds: 4", "unknown key 'outer.ronds'", "did you mean 'outer.rounds'?"),
    ("outer/diloco.yaml", "rounds: 4", "rounds: -4", "rounds must be 1 to 100,000, got -4", None),
    ("model/tiny.yaml", "layers: 2", "layers: two", 'model.layers: should be a valid integer, got "two"', None),
    ("model/tiny.yaml", "dim: 128", "dim: ${oc.env:HOME}", "interpolation is not allowed", None),
    ("job/pretrain.yaml", "seed: 0", "sede: 0", "unknown key 'sede'", "did you mean 'seed'?"),
    ("job/pretrain.yaml", "gpus: 2", "gpus: 0", "gpus must be 1 to 100,000, got 0", None),
    ("job/pretrain.yaml", "- /model: tiny", "- /modle: tiny", "defaults pick from model, data, optim, outer", None),
)


@pytest.mark.parametrize(("file", "old", "new", "what", "fix"), JOB_FILES)
def test_fault_in_a_job_file_names_its_line(copied: Dirs, file: str, old: str, new: str, what: str, fix: str) -> None:
    line = _edit(copied.configs, file, old, new)
    with pytest.raises(ConfigError) as fault:
        compose_job("pretrain", configs=copied.configs)
    assert what in fault.value.what
    assert fault.value.where == f"configs/{file}:{line}"
    assert fix is None or fault.value.fix == fix


FEDERATION_FILES = (
    ("configs/policy/fr.yaml", "to: [de, uy]", "to: [de, uj]", "unknown partner 'uj'", "uy"),
    ("configs/policy/fr.yaml", "residency:", "residenzy:", "unknown key 'residenzy'", "residency"),
    ("configs/policy/fr.yaml", "statistic,", "statistics,", '"statistics" is not allowed', "statistic"),
    ("configs/policy/fr.yaml", "version: 1", "version: 0", "version must be at least 1", None),
    ("configs/policy/fr.yaml", "classes: [statistic", "classes: [raw, statistic", "text never crosses", None),
    ("configs/policy/fr.yaml", "within: [fr]", "within: [fr, de]", "text never crosses", None),
    ("configs/quota/consortium.yaml", "nominal: 2, borrowing_limit: 6", "nominal: 9", "its sites deliver 8", None),
    ("configs/quota/consortium.yaml", "lending_limit: 4", "lending_limit: 40", "cannot lend 40", None),
    (
        "configs/quota/consortium.yaml",
        "a100-80g: {nominal: 0}",
        "a100-80gb: {nominal: 0}",
        "unknown flavor",
        "a100-80g",
    ),
    ("configs/quota/consortium.yaml", "  uy:\n", "  uz:\n", "unknown partner 'uz'", "uy"),
    ("configs/quota/consortium.yaml", "account: fr,", "account: fr/helth,", "unknown account", "fr/health"),
    ("configs/quota/consortium.yaml", "gpu_hours: 5184", "gpu_hours: -1", "gpu_hours must be 0 or more", None),
    ("configs/quota/consortium.yaml", "gpu_hours: 5184", "gpu_hours: 518400", "its 8 GPUs have 5,760", None),
    ("configs/quota/consortium.yaml", "period: 2026-11", "period: 2026-13", "must be a month", None),
    ("configs/partner/fr.yaml", "roles: [engineer]", "roles: [enginer]", '"enginer" is not allowed', "engineer"),
    ("configs/partner/fr.yaml", "id: fr/amelie", "id: de/amelie", "is not a person of 'fr'", None),
    ("configs/partner/fr.yaml", "languages: [fr]", "languages: [no]", "languages", None),
    ("configs/server/embedded.yaml", "lease_ms: 15000", "lease_ms: -1", "lease_ms must be", None),
    ("configs/server/embedded.yaml", "site_lost_ms: 20000", "site_lost_ms: 2000", "a leg could run twice", None),
    ("configs/federation.yaml", "- quota: consortium", "- quotas: consortium", "unknown config group", "quota"),
    ("configs/federation.yaml", "- quota: consortium", "- quota: consortum", "unknown quota", "consortium"),
    ("configs/federation.yaml", "policy@policies.fr: fr", "policy@policies.fr: de", "wrong place", None),
    ("clusters/fr-1.yaml", "partner: fr", "partner: zz", "site id 'fr-1' must be its partner's id", None),
    ("clusters/fr-1.yaml", "gpus: 8", "gpus: -8", "nodes", None),
    ("clusters/fr-1.yaml", 'measured_tflops: "620"', 'measured_tflops: "6200"', "above peak_tflops", None),
    ("clusters/fr-1.yaml", 'pue: "1.15"', 'pue: "0.5"', "pue must be 1 to 5", None),
    ("clusters/fr-1.yaml", "  de-1:", "  de-2:", "unknown site 'de-2'", "de-1"),
    ("clusters/fr-1.yaml", "cotenancy: partner", "cotenancy: partners", "is not allowed", "partner"),
)


@pytest.mark.parametrize(("file", "old", "new", "what", "near"), FEDERATION_FILES)
def test_fault_in_a_federation_file_names_its_line(
    copied: Dirs, file: str, old: str, new: str, what: str, near: str | None
) -> None:
    line = _edit(copied.configs.parent, file, old, new)
    with pytest.raises(ConfigError) as fault:
        load_federation(copied.configs, copied.clusters)
    assert what in str(fault.value)
    assert fault.value.where is not None
    assert fault.value.where.startswith(f"{file}:")
    assert near is None or f"{near!r}" in (fault.value.fix or "")
    if "must be its partner's id" not in what and "a leg could run twice" not in what:
        assert fault.value.where == f"{file}:{line}"
