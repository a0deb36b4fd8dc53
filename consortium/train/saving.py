"""Progress saved beside the steps: bringing it to the store takes long where a model is large, and steps need not wait.

What is saved is the caller's copy in main memory, made before; a crash on the way leaves what was kept before, because
the object that names the vectors is written last.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from consortium.train.keep import Begun


class Saving:
    """Saves one thing at a time, on a thread of its own."""

    def __init__(self, save: Callable[[Begun], None]) -> None:
        self._save = save
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saving")
        self._under_way: Future[Begun] | None = None

    @property
    def busy(self) -> bool:
        """Whether something is still being saved."""
        return self._under_way is not None and not self._under_way.done()

    def begin(self, begun: Begun) -> None:
        """Save it, once what is being saved is. Raises what went wrong with that."""
        self.ended(wait=True)
        self._under_way = self._threads.submit(self._saved, begun)

    def ended(self, *, wait: bool = False) -> Begun | None:
        """Return what was saved since this was last asked, None where nothing was; raises what went wrong.

        With `wait` it waits for what is being saved.
        """
        if self._under_way is None or (self.busy and not wait):
            return None
        done, self._under_way = self._under_way, None
        return done.result()

    def _saved(self, begun: Begun) -> Begun:
        self._save(begun)
        return begun
