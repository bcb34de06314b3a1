"""The processes of one ``accelerate launch``: who is who, and how the others do their share.

The main process owns the run folder and is the only one that writes it. Every other process scores
its share of the same batch plan into ``<run>/.parts/rank<n>.jsonl``, and writes its state and
progress to ``rank<n>.json``. The main one adds the parts to its own records and completes the run. Files,
not collectives, carry the results: what was scored survives any of the processes, a run goes on
with another number of them, and nobody waits for a process that has died.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged, write_json
from bidir_core.common.process import ProcessLost, is_alive, launched, this_process, told_when_lost
from bidir_core.common.progress import TERMINATED
from bidir_core.runs.read import read_object
from bidir_core.runs.records import read_jsonl, to_line
from bidir_core.runs.shapes import STATUS
from bidir_core.runs.writer import RunWriter

T = TypeVar("T")
PARTS = ".parts"
_POLL_SECONDS = 0.2
# A process may wait for another as long as a stage takes; the launcher ends them if one dies.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Team:
    """This process among those of one launch; ``rank`` 0 is the main one."""

    rank: int = 0
    world: int = 1

    def on_main(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the main process alone; all get what it returned, or its UserError."""
        if self.world == 1:
            return work()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except UserError as error:
                outcome[1] = error
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


ALONE = Team()


def team(device: str = "auto") -> Team:
    """The processes of this launch, connected; just this one outside ``accelerate launch``."""
    if launched() == 1:
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu(device), timeout=PATIENCE)
    check_connected(state.num_processes)
    return Team(state.process_index, state.num_processes)


def on_cpu(device: str) -> bool:
    """What accelerate has to be told before it connects processes: it does not look by itself.

    If it expects GPUs where there are none, it connects nothing, and each process does all the work.
    """
    from bidir_core.models.devices import choose_device

    return choose_device(device).type == "cpu"


def check_connected(world: int) -> None:
    """UserError where fewer processes are connected than were launched: each would do it all."""
    if world != launched():
        raise UserError(
            f"{launched()} processes were launched, but accelerate connected {world}: each would "
            "do all the work; give --device cpu, or leave accelerate launch out"
        )


def leave() -> None:
    """Disconnect from the other processes of this launch, when a command has succeeded.

    A process that just ends leaves its connections' threads to the interpreter's last moments,
    and now and then one of them then aborts it ("terminate called without an active exception").
    """
    if launched() == 1:
        return
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
    from accelerate import PartialState

    # The main one may still be writing. NCCL waits for it in either call, but treats a long wait
    # in the second as a fault.
    with told_when_lost("its own message says why"):
        PartialState().wait_for_everyone()
        dist.destroy_process_group()


def share(batches: Sequence[Sequence[int]], weights: Sequence[int], team: Team) -> list[list[int]]:
    """The batches this process scores: each goes to whoever has the fewest tokens so far.

    ``weights``: tokens of each item, by the item's index. The plan is the same in every process
    and whatever their number; only who runs a batch differs.
    """
    loads, assigned = [0] * team.world, []
    for batch in batches:
        rank = loads.index(min(loads))
        loads[rank] += sum(weights[index] for index in batch)
        if rank == team.rank:
            assigned.append(list(batch))
    return assigned


class Part:
    """What a process other than the main one writes: its records and its state."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.rank = folder, rank
        self._state: dict[str, Any] = {**this_process(), "done": 0}
        self._state |= {"state": "running", "error": None}
        self._write()

    def append(self, records: Iterable[Mapping[str, Any]], cost: Mapping[str, Any]) -> None:
        """Add finished items; whole lines in one write, as in the run's own file."""
        lines = [to_line(record) for record in records]
        with open(self.folder / f"rank{self.rank}.jsonl", "ab") as file:
            file.write(b"".join(lines))
        self._state |= {"done": self._state["done"] + len(lines), "cost": dict(cost)}
        self._write()

    def finish(self, error: str | None = None) -> None:
        self._state |= {"state": "failed" if error else "done", "error": error}
        self._write()

    def _write(self) -> None:
        write_json(self.folder / f"rank{self.rank}.json", self._state)


class Parts:
    """The main process's view of the other processes' parts."""

    def __init__(self, run: Path, team: Team) -> None:
        self.folder, self.team = run / PARTS, team

    def states(self) -> dict[int, dict[str, Any]]:
        """The last state of each of the others; one that has not begun yet is left out."""
        ranks = range(1, self.team.world)
        by_rank = {rank: _read(self.folder / f"rank{rank}.json") for rank in ranks}
        return {rank: state for rank, state in by_rank.items() if state}

    def check(self) -> dict[int, dict[str, Any]]:
        """The states; ProcessLost if one of the others has failed or died."""
        states = self.states()
        for rank, state in states.items():
            if state["state"] == "failed":
                raise ProcessLost(f"process {rank} of {self.team.world}: {state['error']}")
            if state["state"] == "running" and not is_alive({**state, "heartbeat": time.time()}):
                last = _read(self.folder / f"rank{rank}.json")
                if last.get("state") == "done":  # it finished after it was read above
                    states[rank] = last
                    continue
                raise ProcessLost(
                    f"{_describe(rank, self.team.world, state)} ended before its share was scored; "
                    "--resume goes on from what is recorded"
                )
        return states

    @contextmanager
    def asked_why(self) -> Iterator[None]:
        """ProcessLost where a launcher ends this process because it has lost another.

        Where a user ends them all, every other process is alive, done, or stopped in the same way.
        """
        try:
            yield
        except KeyboardInterrupt as stopped:
            if str(stopped) != TERMINATED:  # Ctrl-C
                raise
            for rank, state in self.states().items():
                failed = state["state"] == "failed" and state["error"] not in (
                    TERMINATED,
                    KeyboardInterrupt.__name__,
                )
                alive = is_alive({**state, "heartbeat": time.time()})
                if failed or (state["state"] == "running" and not alive):
                    raise ProcessLost(
                        f"{_describe(rank, self.team.world, state)} failed or died; "
                        "go on with --resume"
                    ) from None
            raise

    def wait(self, report_done: Callable[[int], None]) -> None:
        """Wait until all others are done; ``report_done`` gets the number of items they have scored."""
        while True:
            states = self.check()
            report_done(sum(state["done"] for state in states.values()))
            if sum(state["state"] == "done" for state in states.values()) == self.team.world - 1:
                return
            time.sleep(_POLL_SECONDS)


@contextmanager
def main_asked_for(run: Path, world: int) -> Iterator[None]:
    """ProcessLost, naming the main process of ``world``, where this one ends because that one died.

    A launcher then ends the others, or what they do together with it fails.
    """
    try:
        with told_when_lost("go on with --resume"):
            yield
    except (KeyboardInterrupt, ProcessLost) as stopped:
        main = _read(run / "status.json")
        was_ended = isinstance(stopped, ProcessLost) or str(stopped) == TERMINATED
        if not was_ended or main.get("state") != "running" or not _ended(main):
            raise
        raise ProcessLost(
            f"{_describe(0, world, main)} died before the run was complete; go on with --resume"
        ) from None


def _ended(state: Mapping[str, Any]) -> bool:
    """Whether a process has died; one whose connections just broke may take a moment to."""
    until = time.monotonic() + 0.5
    while (alive := is_alive(state)) and time.monotonic() < until:
        time.sleep(0.01)
    return not alive


def _describe(rank: int, world: int, state: Mapping[str, Any]) -> str:
    return f"process {rank} of {world} (pid {state.get('pid')} on {state.get('host')})"


def merge_parts(writer: RunWriter) -> list[dict[str, Any]]:
    """Move what other processes recorded into the run's own file; returns the cost of each."""
    folder = writer.path / PARTS
    for path in sorted(folder.glob("*.jsonl")):
        writer.append(read_jsonl(path)[0])
    costs = [_read(path).get("cost") or {} for path in sorted(folder.glob("*.json"))]
    shutil.rmtree(folder, ignore_errors=True)
    return costs


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_object(path.parent, path.name, STATUS)
    except (FileNotFoundError, Damaged):
        return {}
