"""Starting the processes of ``pol prove SCRIPT --ranks N``, as a launcher of PyTorch's would on one machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

from proof_of_learning.errors import UsageError
from proof_of_learning.limits import MAX_RANKS

GRACE = 15.0  # seconds for the others to end by themselves, once one has failed
_POLL = 0.05
LAUNCHED = "POL_LAUNCHED"  # set for the processes of this launcher, which says itself how they ended


def launch(count: int, command: Sequence[str]) -> tuple[int, str]:
    """Run ``command`` in so many processes, each told its rank.

    Returns the status to end with, 0 where all ended well, and what is to be said of a process that was killed.
    """
    if not 1 < count <= MAX_RANKS:
        raise UsageError(f"--ranks {count}: expected 2 to {MAX_RANKS} processes")
    shared = {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()), LAUNCHED: "1",
        # As PyTorch's launcher does, so that the processes do not take the processors from each other.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }  # fmt: skip
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    try:
        return _wait(processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[int, str]:
    end, killed = None, ""
    while any(process.poll() is None for process in processes):
        if end is None:
            failed = [rank for rank, process in enumerate(processes) if process.poll()]
            if failed:
                end, status = time.monotonic() + GRACE, processes[failed[0]].returncode
                if status < 0:
                    name = signal.Signals(-status).name
                    killed = f"process {failed[0]} was ended by {name}, so nothing was sealed"
        elif time.monotonic() > end:
            break
        time.sleep(_POLL)
    statuses = [process.poll() for process in processes]
    bad = [status for status in statuses if status != 0]
    if not bad:
        return 0, ""
    return (statuses[0] or 2) if not killed else 2, killed


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
