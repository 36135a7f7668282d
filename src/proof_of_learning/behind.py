"""Work done beside the training loop: one job at a time, in order, its errors handed to whoever submits the next."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Behind:
    """Runs jobs in a thread of its own; at most one waits or runs, so that memory is bounded by one job's."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pol-recorder")
        self._job: Future[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether the last job has ended."""
        return self._job is None or self._job.done()

    def check(self) -> None:
        """Raise what the last job raised, if it has ended; wait for nothing."""
        if self.idle:
            self.join()

    def join(self) -> None:
        """Wait for the last job; raise what it raised."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def submit(self, job: Callable[[], None]) -> None:
        self.join()
        self._job = self._thread.submit(job)

    def close(self) -> None:
        """Let the last job end; what it raised is lost, for something else went wrong before."""
        self._job = None
        self._thread.shutdown()
