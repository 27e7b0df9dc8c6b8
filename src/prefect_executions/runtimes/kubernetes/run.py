"""A run in a pod: all that is known of it is asked of the cluster, each time anew."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime

from prefect_executions.errors import InfrastructureError
from prefect_executions.runtimes.container_init import OWN_FOLDER
from prefect_executions.runtimes.interface import GRACE, Exit, LogPiece, RunStatus, Seen
from prefect_executions.runtimes.kubernetes.api import Cluster, Command
from prefect_executions.runtimes.kubernetes.handing import fetch, hand_over
from prefect_executions.runtimes.kubernetes.job import Job, pauses
from prefect_executions.runtimes.kubernetes.looking import CANCELLED, END, KEEPER, SCRIPT, Look

_AFTER_KILL = 120.0  # a node on a busy machine
_TRIES = 5
_OVER = 0

# Until it is over, or for some seconds (3), so that a lost connection or a script's lost container is noticed.
_TELL = f"""
cd {OWN_FOLDER}; out=$1; err=$2; rounds=0
while :; do
  over=; [ -e over ] && over=1
  if [ -e stdout ]; then
    size=$(wc -c <stdout)
    if [ "$size" -gt "$out" ]; then tail -c "+$((out + 1))" stdout | head -c "$((size - out))"; out=$size; fi
  fi
  if [ -e stderr ]; then
    size=$(wc -c <stderr)
    if [ "$size" -gt "$err" ]; then tail -c "+$((err + 1))" stderr | head -c "$((size - err))" >&2; err=$size; fi
  fi
  [ "$over" ] && exit {_OVER}
  rounds=$((rounds + 1)); [ "$rounds" -ge 100 ] && exit 3
  sleep 0.1
done
"""


class PodRun:
    """A run whose Job is known."""

    def __init__(self, cluster: Cluster, run_id: str) -> None:
        """Know the run; as long as its pod waits for its data, this process will give it."""
        self.id = run_id
        self._job = Job(cluster, run_id)
        threading.Thread(target=hand_over, args=(self._job,), name=f"data of {run_id}", daemon=True).start()

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs, and when nobody saw it."""
        end = self._job.end()
        return None if end is None else end.code

    def status(self) -> RunStatus:
        """Return how it stands now."""
        end = self._job.end()
        if end is not None:
            return end.status
        look = self._job.look()
        return RunStatus.RUNNING if look is not None and look.begun else RunStatus.WAITING

    def seen(self) -> Seen:
        """Return the pod, its node and its image, as the cluster says them."""
        look = self._job.look()
        return Seen() if look is None else look.seen()

    def wait(self, timeout: float | None = None) -> Exit:
        """Return how it ended, as soon as it has and what it left is back in the data folder."""
        end = self._ended(timeout)
        if end is None:
            raise TimeoutError(f"The run {self.id} still runs after {timeout:g} s")
        fetch(self._job)
        return end

    def logs(self) -> Iterator[LogPiece]:
        """Yield what it has written and will write; after the last piece what it left is in the data folder."""
        told = {"stdout": 0, "stderr": 0}
        failures = 0
        for _ in pauses():
            over = self._job.end() is not None
            look = self._job.look()
            command = None if look is None else self._telling(look, told)
            if command is not None:
                try:
                    with closing(command):
                        for stream, data in command.pieces():
                            told[stream] += len(data)
                            yield LogPiece(stream, data)
                        over = command.code() == _OVER or over
                except InfrastructureError:
                    failures += 1
                    if failures >= _TRIES:
                        raise
                    continue
            if over:
                break
        self.wait()

    def cancel(self, grace: float = GRACE) -> Exit:
        """End every process of it; return its end when none is left and what it left is back."""
        if self._job.end() is None:
            self._job.note(CANCELLED, datetime.now(UTC).isoformat(), unless=(END,))
            look = self._job.look()
            if look is not None and not look.begun and look.end() is None:
                self.discard()
                return Exit(status=RunStatus.CANCELLED, why="it was cancelled before it began")
            self._kill(grace)
        return self.wait(_AFTER_KILL)

    def discard(self) -> None:
        """Forget it: end what is left of it, and remove its Job, its pod and its Secret."""
        self._job.remove()

    def _ended(self, timeout: float | None) -> Exit | None:
        for _ in pauses(timeout):
            end = self._job.end()
            if end is not None:
                return end
        return None

    def _telling(self, look: Look, told: dict[str, int]) -> Command | None:
        """A command that tells the logs from where they were told; None when nobody has them, or not yet."""
        if not look.keeps or not look.begun:
            return None
        return self._job.command(look, KEEPER, _TELL, str(told["stdout"]), str(told["stderr"]))

    def _kill(self, grace: float) -> None:
        for number, patience in (("TERM", grace), ("KILL", _AFTER_KILL)):
            look = self._job.look()
            if look is None or look.end() is not None:
                return
            if not self._signal(look, number):
                self._excuse()
            if self._ended(patience) is not None:
                return
        raise InfrastructureError(f"The script of {self.id} does not end; is its node away?")

    def _signal(self, look: Look, number: str) -> bool:
        """Send a signal to every process of the script's container but the first, which ends with the script."""
        with suppress(InfrastructureError):
            command = self._job.command(look, SCRIPT, f"kill -{number} -1")
            if command is not None:
                with closing(command):
                    command.code()
                return True
        return False

    def _excuse(self) -> None:
        """A script that had ended by itself before it could be told stays as it ended."""
        look = self._job.look()
        if look is not None and look.script.get("terminated") and END not in look.notes:
            self._job.note(CANCELLED, None, unless=(END,))
