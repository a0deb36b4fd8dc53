"""A machine with fr-1's private store, as commands at home find it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from consortium.domain.codec import to_json
from consortium.site.settings import SiteSettings, StoreSettings
from consortium.storage.objects import ObjectStore
from tests import builders
from tests.s3 import S3


def made_at(tmp_path: Path, s3: S3, store: ObjectStore) -> Path:
    """Write the folders and settings of a home below `tmp_path`; returns the home."""
    root = tmp_path / "home" / "federations" / "t"
    folder = root / "sites" / "fr-1"
    folder.mkdir(parents=True)
    (tmp_path / "home" / "current").symlink_to(root)
    (folder / "secret").write_text(s3.secret_key)
    private = StoreSettings(
        endpoint=s3.endpoint, bucket=store.bucket, access_key=s3.access_key, secret_path=str(folder / "secret")
    )
    unused = (
        *("home", "server_url", "mlflow_url", "gateway_url", "token_path", "signing_key_path", "sealing_key_path"),
        *("trust_path", "documents_dir", "ray_dashboard_url", "ray_token_path", "jobs_dir"),
    )
    settings: dict[str, Any] = dict.fromkeys(unused, "unused")
    settings |= {"private_store": private, "egress_store": private, "peer_egress": {}, "gateway_port": 1}
    (folder / "config.json").write_text(json.dumps(to_json(SiteSettings(site=builders.site("fr-1"), **settings))))
    return tmp_path / "home"
