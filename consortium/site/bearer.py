"""A site's bearer token as its programs show and check it: what stands in its file now, since tokens are renewed."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

import httpx


class TokenFile(httpx.Auth):
    """Signs requests with the token in a file, read again for each of them."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._last = self._path.read_text().strip()

    @property
    def bearer(self) -> str:
        """The `Authorization` header's value; the last token known where the file cannot be read or is empty."""
        with contextlib.suppress(OSError):  # such as too many open files: the last one holds for weeks
            self._last = self._path.read_text().strip() or self._last
        return f"Bearer {self._last}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the header to a request."""
        request.headers["Authorization"] = self.bearer
        yield request
