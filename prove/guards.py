"""Every guard, and how to take it out: the proof has to notice that it is gone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.servers import PROJECT

# What a worker and Alembic need of the project.
SOURCES = ("heartbeat_app", "alembic", "alembic.ini", "setup.cfg", "pyproject.toml")


@dataclass(frozen=True, slots=True)
class Guard:
    """One guard and a patch that takes it out.

    Attributes:
        name: As it is asked for.
        holds: What it guards, for the report.
        file: Where it is, below the project's folder.
        old, new: The patch; `old` is there exactly once.
        scenario: The scenario that fails without it.
    """

    name: str
    holds: str
    file: str
    old: str
    new: str
    scenario: str


GUARDS = {guard.name: guard for guard in (
    Guard(
        "fence",
        "what lies below the ledger's next offset was stored before and is dropped",
        "heartbeat_app/storage/writer.py",
        "        batch = batch.since(next_offset)\n",
        "",
        "frozen",
    ),
    Guard(
        "stored-before",
        "a batch that is stored whole is not booked again",
        "heartbeat_app/storage/writer.py",
        "        if batch.position <= next_offset:\n            return Written()\n",
        "",
        "frozen",
    ),
    Guard(
        "seek-to-ledger",
        "reading goes on where the ledger says, not where Kafka's group committed",
        "heartbeat_app/lane/consumer.py",
        "        offsets.update(await self.restart_at_ledger(lane_tps))\n",
        "        found = await self._thread.call_thread(\n"
        "            self._thread.seek_others_to_committed, lane_tps\n"
        "        )\n"
        "        begins = await self.earliest_offsets(*lane_tps)\n"
        "        starts = await self._find_starts(lane_tps)\n"
        "        starts = {\n"
        "            tp: each._replace(offset=found.get(tp) or begins[tp])\n"
        "            for tp, each in starts.items()\n"
        "        }\n"
        "        await self._thread.call_thread(self._thread.lane_seek, starts)\n"
        "        offsets.update({tp: each.offset for tp, each in starts.items()})\n",
        "restored-from-a-backup",
    ),
    Guard(
        "acknowledge-after-the-commit",
        "a batch is acknowledged once its transaction is committed",
        "heartbeat_app/lane/agent.py",
        "        async for event in cast(Stream[Any], stream).noack().events():\n",
        "        async for event in cast(Stream[Any], stream).events():\n",
        "killed",
    ),
    Guard(
        "retry-in-place",
        "a batch that fails is tried again until it is stored",
        "heartbeat_app/lane/agent.py",
        "                failures += 1\n"
        "                await _pause(chunk, failures, error)\n",
        "                event.ack()\n                return\n",
        "database-killed",
    ),
    Guard(
        "rewind",
        "a batch that begins above the ledger means that the ledger went back",
        "heartbeat_app/storage/writer.py",
        "        if next_offset is None or batch.asked > next_offset:\n",
        "        next_offset = next_offset or 0\n        if False:\n",
        "restored-from-a-backup",
    ),
    Guard(
        "escaping",
        "COPY's text is escaped",
        "heartbeat_app/storage/copy.py",
        "    if _special.search(\"\".join(ids)):\n",
        "    if False:\n",
        "odd-customers",
    ),
)}  # fmt: skip


@contextmanager
def without(guard: Guard) -> Iterator[Path]:
    """A copy of the application in which the guard is taken out.

    Raises:
        ValueError: The patch does not fit any more.
    """
    with TemporaryDirectory(prefix="prove-source-") as folder:
        copy = Path(folder)
        for name in SOURCES:
            source = PROJECT / name
            if source.is_dir():
                shutil.copytree(
                    source, copy / name, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                shutil.copy(source, copy / name)
        file = copy / guard.file
        text = file.read_text()
        if text.count(guard.old) != 1:
            raise ValueError(
                f"The patch of {guard.name} does not fit {guard.file}: its text is "
                f"there {text.count(guard.old)} times. Mend prove/guards.py."
            )
        file.write_text(text.replace(guard.old, guard.new))
        yield copy
