"""Composing jobs: overrides, groups, threads, caches, folders."""

from __future__ import annotations

import json
import re
import shlex
import threading
from pathlib import Path

import pytest

from consortium.config import (
    Dirs,
    compose_job,
    default_dirs,
    load_federation,
    parse_quota_text,
    parse_site_text,
    validate_params,
)
from consortium.domain.job import JobKind, Priority
from consortium.domain.pretraining import PretrainConfig
from consortium.errors import ConfigError


def test_overrides_reach_keys_params_and_groups() -> None:
    job = compose_job(
        "pretrain",
        ["model=small", "model.dim=256", "outer.rounds=6", "gpus=4", "gpus_per_worker=2", "account=fr/health",
         "inputs=[laws-fr-tokens,laws-de-tokens]", "sites=[fr-1,de-1]", "min_sites=2", "priority=high", "seed=7"],
    )  # fmt: skip
    assert (job.kind, job.account, job.gpus, job.gpus_per_worker) == (JobKind.PRETRAIN, "fr/health", 4, 2)
    assert job.inputs == ("laws-fr-tokens", "laws-de-tokens")
    assert (job.sites, job.min_sites, job.priority) == (("fr-1", "de-1"), 2, Priority.HIGH)
    assert job.params["model"]["dim"] == 256
    assert job.params["model"]["layers"] == compose_job("pretrain", ["model=small"]).params["model"]["layers"]
    assert (job.params["outer"]["rounds"], job.params["seed"]) == (6, 7)


def test_a_later_override_wins() -> None:
    assert compose_job("tokenize", ["vocab_size=512", "vocab_size=1024"]).params["vocab_size"] == 1024


def test_a_clean_job_takes_a_profile_and_any_number_of_datasets() -> None:
    job = compose_job("clean", ["inputs=[laws-fr,laws-de]", "clean=strict"])
    assert (job.params["min_chars"], job.inputs) == (200, ("laws-fr", "laws-de"))


def test_a_wrong_threshold_is_found_in_the_file_it_stands_in(copied: Dirs) -> None:
    path = copied.configs / "clean" / "rules" / "published.yaml"
    path.write_text(path.read_text().replace("min_sentences: 5", "min_sentences: many"))
    line = 1 + path.read_text()[: path.read_text().index("min_sentences")].count("\n")
    with pytest.raises(ConfigError) as fault:
        compose_job("clean", ["clean=web"], configs=copied.configs)
    assert fault.value.where == f"configs/clean/rules/published.yaml:{line}"


def test_evaluate_takes_the_id_of_its_model() -> None:
    job = compose_job("evaluate", ["model=job-01arz3ndektsv4rrffq69g5fav", "rounds=[0,2,-1]"])
    assert job.model == "job-01arz3ndektsv4rrffq69g5fav"
    assert job.params["rounds"] == [0, 2, -1]


@pytest.mark.parametrize("kind", list(JobKind))
def test_composed_params_are_plain_json_that_validates_again(kind: JobKind) -> None:
    params = compose_job(kind.value).params
    assert validate_params(kind, json.loads(json.dumps(params))) == params


def test_params_from_the_network_are_checked() -> None:
    params = compose_job("pretrain").params
    with pytest.raises(ConfigError, match=r"unknown key 'model\._target_'"):
        validate_params("pretrain", params | {"model": params["model"] | {"_target_": "os.system"}})
    with pytest.raises(ConfigError, match="rounds must be 1 to 100,000") as fault:
        validate_params("pretrain", params | {"outer": params["outer"] | {"rounds": -3}})
    assert fault.value.where == "params.outer.rounds"


@pytest.mark.parametrize(
    ("key", "value", "bound"), [("min_count", 2, "3"), ("min_documents", 1, "2"), ("max_word_chars", 65, "64")]
)
def test_no_job_loosens_what_word_counts_may_tell(key: str, value: int, bound: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be .*{bound}"):
        validate_params("tokenize", compose_job("tokenize").params | {key: value})


BETWEEN_KEYS = (
    ("clean", ["languages=[french]"], 1, "'french' is not", "such as fr"),
    ("clean", ["min_chars=300", "max_chars=200"], 1, "min_chars (300) must be at most max_chars (200)", None),
    ("clean", ["max_chars=10"], 1, "min_chars (40) must be at most max_chars (10)", None),
    ("clean", ["across.order=[fr,fr]"], 1, "got ['fr', 'fr']", None),
    ("clean", ["dedup=exact", "across.order=[fr,de]"], 1, "got exact", "dedup=near"),
    ("clean", ["dedup=near", "across.order=[fr,de]", "near.ngram=4"], 3, "others could read words", "near.ngram=5"),
    ("clean", ["dedup=near", "near.rows=7", "across.order=[fr,de]"], 2, "others could read words", "near.rows=8"),
    ("clean", ["dedup=near", "across.order=[fr,de]", "near.bands=33"], 3, "at most 256", "14 and 8"),
    ("clean", ["dedup=near", "across.order=[fr,de]", "across.min_words=49"], 3, "at least 50", "across.min_words=50"),
    ("pretrain", ["optim.betas=[0.99,0.95]", "outer=shared"], 1, "got [0.99, 0.95]", "outer.share=none"),
    ("pretrain", ["outer=shared", "outer.delay=3"], 2, "delay must be 0, got 3", "set delay to 0"),
    ("pretrain", ["outer=shared", "outer.screen.aggregate=median"], 2, "got median", "share to none"),
    ("pretrain", ["model.layers=2", "outer.fragments=4"], 2, "(2), got 4", "outer.fragments=2 or less"),
    ("pretrain", ["outer.fragments=2", "model.layers=1"], 1, "(1), got 2", "outer.fragments=1 or less"),
    ("pretrain", ["outer.inner_steps=3", "outer.delay=4"], 2, "delay (4) must be at most inner_steps (3)", None),
    ("pretrain", ["outer.inner_steps=3", "outer.delay=3"], 2, "all of a round's steps", "an outer.mix above 0"),
    ("pretrain", ["gpus=3", "gpus_per_worker=2"], 2, "gpus (3) must be a multiple", None),
    ("pretrain", ["model.heads=3"], 1, "twice the heads (3)", None),
)


@pytest.mark.parametrize(("kind", "overrides", "position", "what", "fix"), BETWEEN_KEYS)
def test_a_fault_between_keys_is_found_at_the_override_that_set_one(
    kind: str, overrides: list[str], position: int, what: str, fix: str | None
) -> None:
    with pytest.raises(ConfigError) as fault:
        compose_job(kind, overrides)
    assert what in fault.value.what
    assert fault.value.where == f"override {position}: {overrides[position - 1]}"
    assert fix is None or fix in str(fault.value.fix)


def test_a_fault_between_keys_of_files_is_found_in_one_of_them(copied: Dirs) -> None:
    path = copied.configs / "optim" / "adamw.yaml"
    path.write_text(path.read_text().replace("betas: [0.9, 0.95]", "betas: [0.99, 0.95]"))
    line = 1 + path.read_text()[: path.read_text().index("betas")].count("\n")
    with pytest.raises(ConfigError) as fault:
        compose_job("pretrain", ["outer=shared"], configs=copied.configs)
    assert fault.value.where == f"configs/optim/adamw.yaml:{line}"


FORGOTTEN = (
    (["start.round=2"], 1, "add start.job=job-…"),
    (["seed=1", "start.round=0"], 2, "add start.job=job-…"),
    (["start.digest=zz"], 1, "add start.weights=KEY"),
)


@pytest.mark.parametrize(("overrides", "position", "fix"), FORGOTTEN)
def test_a_start_that_names_no_model_is_refused(overrides: list[str], position: int, fix: str) -> None:
    with pytest.raises(ConfigError) as fault:
        compose_job("pretrain", overrides)
    assert fault.value.where == f"override {position}: {overrides[position - 1]}"
    assert str(fault.value.fix).startswith(fix)


def test_the_server_refuses_a_start_that_names_no_model_and_reads_older_jobs_that_say_one() -> None:
    params = compose_job("pretrain").params
    older = params | {"start": params["start"] | {"round": 2}}
    with pytest.raises(ConfigError, match=r"no start\.job") as fault:
        validate_params("pretrain", older)
    assert fault.value.where == "params.start.round"
    assert PretrainConfig.of(older).start.round == 2


BOUNDS = (
    ("tokenize", "vocab_size=1", "vocab_size must be 320 to 1,000,000, got 1"),
    ("tokenize", "shard_tokens=1", "shard_tokens must be 1,024 to 33,554,432, got 1"),
    ("pretrain", "walltime_s=0", "walltime_s must be 1 to 31,622,400, got 0"),
    ("pretrain", "seed=-1", "seed must be 0 to 9,007,199,254,740,991, got -1"),
    ("pretrain", "optim.grad_clip=0.0", "grad_clip must be 1e-06 to 1,000,000, got 0.0"),
    ("pretrain", "model.rope_base=1.0", "rope_base must be 10 to 1,000,000,000, got 1.0"),
    ("pretrain", "outer.screen.clip_window=0", "clip_window must be 1 to 4,096, got 0"),
    ("clean", "max_chars=0", "max_chars must be 1 to 8,000,000, got 0"),
    ("clean", "near.bands=600", "bands must be 1 to 512, got 600"),
)


@pytest.mark.parametrize(("kind", "override", "what"), BOUNDS)
def test_bounds_are_told_in_full(kind: str, override: str, what: str) -> None:
    with pytest.raises(ConfigError) as fault:
        compose_job(kind, [override])
    assert (fault.value.what, fault.value.where) == (what, f"override 1: {override}")


FIXES = (
    ("pretrain", "inputs=laws-fr", "write a list: [laws-fr]"),
    ("pretrain", "optim.betas=0.9", "write a list: [0.9]"),
    ("pretrain", "walltime_s=1h", "write a whole number of seconds, such as 3600"),
    ("pretrain", "gpus=2.0", "write a whole number, such as 2"),
    ("pretrain", "optim.lr=high", "write a number, such as 0.7"),
    ("pretrain", "optim.lr=0,7", "a list is written key=[a,b]; a number has a point, not a comma: key=0.7"),
    ("pretrain", "preemptible=yes", "write true or false"),
    ("pretrain", "name=12", """put it in quotes, and those in others: 'name="12"'"""),
    ("pretrain", "GPUS=2", "did you mean 'gpus'?"),
    ("CLEAN", "gpus=2", "did you mean 'clean'?"),
)


@pytest.mark.parametrize(("kind", "override", "fix"), FIXES)
def test_a_value_of_the_wrong_form_is_told_the_right_one(kind: str, override: str, fix: str) -> None:
    with pytest.raises(ConfigError) as fault:
        compose_job(kind, [override])
    assert fault.value.fix == fix


def test_the_fix_for_a_number_that_should_be_a_word_survives_the_shell() -> None:
    with pytest.raises(ConfigError) as fault:
        compose_job("clean", ["name=12"])
    (typed,) = shlex.split(str(fault.value.fix).rpartition(": ")[2])
    assert compose_job("clean", [typed]).name == "12"


def test_a_decimal_without_quotes_is_told_to_stand_in_quotes(copied: Dirs) -> None:
    path = copied.clusters / "fr-1.yaml"
    text = re.sub(r'measured_tflops: "[0-9.]+"', "measured_tflops: 620", path.read_text())
    with pytest.raises(ConfigError, match="got 620") as fault:
        parse_site_text(text, "clusters/fr-1.yaml")
    assert fault.value.fix == 'put it in quotes: "620"'
    line = 1 + text[: text.index("measured_tflops")].count("\n")
    assert fault.value.where == f"clusters/fr-1.yaml:{line}"
    with pytest.raises(ConfigError, match="got true") as fault:
        parse_site_text(text.replace("620", "true"), "clusters/fr-1.yaml")
    assert fault.value.fix is None


def test_sixteen_threads_compose_at_once() -> None:
    results: list[int] = []
    faults: list[Exception] = []
    start = threading.Barrier(16)

    def one(number: int) -> None:
        try:
            start.wait(timeout=30)
            results.append(compose_job("clean", [f"gpus={number}"]).gpus)
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not faults
    assert sorted(results) == list(range(1, 17))


def test_a_changed_file_is_composed_anew_and_a_result_cannot_spoil_the_cache(copied: Dirs) -> None:
    before = compose_job("tokenize", configs=copied.configs)
    before.params["vocab_size"] = 1
    assert compose_job("tokenize", configs=copied.configs).params["vocab_size"] == 4096
    path = copied.configs / "job" / "tokenize.yaml"
    path.write_text(path.read_text().replace("vocab_size: 4096", "vocab_size: 12345"))
    assert compose_job("tokenize", configs=copied.configs).params["vocab_size"] == 12345


def test_the_environment_names_the_folders(copied: Dirs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONSORTIUM_CONFIGS", str(copied.configs.parent))
    assert default_dirs() == copied
    monkeypatch.setenv("CONSORTIUM_CONFIGS", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError) as fault:
        default_dirs()
    assert "CONSORTIUM_CONFIGS" in str(fault.value)


def test_a_missing_file_is_named(copied: Dirs) -> None:
    (copied.configs / "outer" / "diloco.yaml").rename(copied.configs / "outer" / "dilocco.yaml")
    with pytest.raises(ConfigError) as fault:
        compose_job("pretrain", configs=copied.configs)
    assert fault.value.where == "configs/outer/diloco.yaml"
    assert fault.value.fix == "did you mean 'outer/dilocco.yaml'?"


def test_a_word_that_yaml_versions_read_differently_must_be_quoted(copied: Dirs) -> None:
    path = copied.configs / "partner" / "fr.yaml"
    path.write_text(path.read_text().replace("languages: [fr]", "languages: [no]"))
    with pytest.raises(ConfigError, match="read in two ways"):
        load_federation(copied.configs, copied.clusters)
    path.write_text(path.read_text().replace("languages: [no]", 'languages: ["no"]'))
    assert load_federation(copied.configs, copied.clusters).partners[1].languages == ("no",)


QUOTA = """accounts:
  fr:
    quotas: {h100-sxm: {}}
    projects:
      health: {quotas: {h100-sxm: {nominal: 3, borrowing_limit: 2, lending_limit: 1}}}
"""


def test_quota_text_takes_nominals_left_out_from_sites() -> None:
    sites = load_federation().sites
    accounts = {account.id: account for account in parse_quota_text(QUOTA, "q.yaml", sites).accounts}
    assert [(a.id, a.parent) for a in accounts.values()] == [("", None), ("fr", ""), ("fr/health", "fr")]
    assert accounts["fr"].quotas[0].nominal == 8 - 3
    assert accounts["fr/health"].quotas[0].lending_limit == 1


def test_quota_text_without_sites_needs_its_nominals() -> None:
    with pytest.raises(ConfigError, match="no site is known") as fault:
        parse_quota_text(QUOTA, "q.yaml")
    assert fault.value.where == "q.yaml:3"


def test_a_project_uses_only_flavors_its_partner_declares() -> None:
    text = QUOTA.replace("{quotas: {h100-sxm:", "{quotas: {a100-80g: {nominal: 0}, h100-sxm:")
    with pytest.raises(ConfigError, match="which fr itself does not declare"):
        parse_quota_text(text, "q.yaml", load_federation().sites)
