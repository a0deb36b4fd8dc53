"""A site's own model: installed by the site as an entry point, named by the job, trained like the package's."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from consortium.domain.pretraining import ModelConfig, PretrainConfig
from consortium.errors import NotFoundError, UsageError, VerificationError
from consortium.train.inner import InnerWorker
from consortium.train.plugin import build, installed, same_everywhere
from tests.train.conftest import PARAMS, VOCAB
from tests.train.hub import Hub, Line
from tests.train.test_model import text

MODULE = """
    import torch
    from torch import nn
    from torch.nn import functional as F

    from consortium.train.plugin import LanguageModel, token_losses


    class Recurrent(LanguageModel):
        '''A GRU with a loss of its own: label smoothing in training, plain nats in what is reported.'''

        def __init__(self, config, vocab_size):
            super().__init__(config, vocab_size)
            self.embedding = nn.Embedding(vocab_size, config.dim)
            self.cell = nn.GRU(config.dim, config.dim, batch_first=True)
            self.mix = nn.Linear(config.dim, config.dim, bias=False)
            self.out = nn.Linear(config.dim, vocab_size)

        def initialise(self, seed):
            generator = torch.Generator().manual_seed(seed)
            for _, parameter in sorted(self.named_parameters()):
                nn.init.normal_(parameter, std=0.1, generator=generator)

        def forward(self, tokens_BT):
            return self.out(self.mix(self.cell(self.embedding(tokens_BT))[0]))

        def losses(self, output, rows_BT):
            nats = token_losses(output, rows_BT)[1]
            words = rows_BT[:, 1:].flatten()
            return F.cross_entropy(output.flatten(0, 1), words, label_smoothing=0.1), nats

        def hidden(self):
            return {"mix.weight": (self.config.dim,), "cell.weight_hh_l0": (self.config.dim,) * 3}


    class NoModel:
        pass
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a distribution as pip lays it out: a module, and metadata that names its entry points."""

    def put(distribution: str, entries: str) -> None:
        site = tmp_path / distribution
        info = site / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "site_models.py").write_text(textwrap.dedent(MODULE))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[consortium.models]\n{entries}\n")
        monkeypatch.syspath_prepend(str(site))

    return put


def worker(name: str = "adamw") -> InnerWorker:
    params = PARAMS | {"model": PARAMS["model"] | {"plugin": "recurrent"}, "optim": {"name": name, "lr": 0.01}}
    return InnerWorker(PretrainConfig.of(params), VOCAB, text(), "fr-1")


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_installed_model_trains_and_resumes_like_any_other(install, name):
    install("lyrebird", "recurrent = site_models:Recurrent")
    one, other = worker(name), worker(name)
    first = one.run(one.initial(), position=0, step=0, count=8)
    other.restore(one.moments())
    straight = one.run(first.local, position=first.position, step=8, count=4)
    resumed = other.run(first.local, position=first.position, step=8, count=4)
    np.testing.assert_array_equal(straight.local, resumed.local)
    assert straight.loss < first.loss
    assert "cell.weight_hh_l0" in one.layout.names


def test_a_model_that_no_package_declares_is_not_looked_for_anywhere_else(install):
    install("lyrebird", "recurrent = site_models:Recurrent")
    with pytest.raises(NotFoundError, match=r"no model 'os' is installed at this site \(installed: recurrent\)"):
        build(ModelConfig(dim=8, layers=1, heads=1, context=8, plugin="os"), VOCAB)


def test_two_packages_with_one_name_and_what_is_no_model_are_refused(install):
    install("lyrebird", "recurrent = site_models:Recurrent\nempty = site_models:NoModel")
    install("magpie", "recurrent = site_models:NoModel")
    with pytest.raises(UsageError, match="lyrebird, magpie"):
        installed("recurrent")
    with pytest.raises(UsageError, match="no subclass"):
        build(ModelConfig(dim=8, layers=1, heads=1, context=8, plugin="empty"), VOCAB)


@pytest.mark.integration
def test_sites_that_installed_different_code_under_one_version_are_told_apart(install, leg, monkeypatch, tmp_path):
    sites = ("de-1", "fr-1")
    hub = Hub(sites)
    lines = [Line(hub, *leg(site, sites)) for site in sites]
    install("lyrebird", "recurrent = site_models:Recurrent")
    monkeypatch.delitem(sys.modules, "site_models", raising=False)
    mine = same_everywhere(lines[0], "recurrent")
    assert mine.startswith("lyrebird 1.0 sha256:")
    assert same_everywhere(lines[0], "recurrent") == mine, "as after a restart"
    assert same_everywhere(lines[1], "recurrent") == mine
    code = tmp_path / "lyrebird" / "site_models.py"
    code.write_text(code.read_text() + "# a patch\n")
    with pytest.raises(VerificationError, match=r"fr-1 has lyrebird 1\.0 .* now, and began this job with another"):
        same_everywhere(lines[1], "recurrent")
    third = Line(hub, *leg("uy-1", (*sites, "uy-1")))
    with pytest.raises(VerificationError, match=r"differ: uy-1 has lyrebird 1\.0 .*de-1 sha256:.*fr-1"):
        same_everywhere(third, "recurrent")


@pytest.mark.parametrize("name", ["site_models:Recurrent", "../models", "a b"])
def test_a_job_cannot_name_a_path_to_code(name):
    with pytest.raises(ValueError, match="not a path to code"):
        ModelConfig(dim=8, layers=1, heads=1, context=8, plugin=name)
