from __future__ import annotations

from collections.abc import Iterator

import pytest

from consortium.storage.objects import ObjectStore
from tests.s3 import S3, serving


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def store(s3: S3) -> ObjectStore:
    return s3.fresh()
