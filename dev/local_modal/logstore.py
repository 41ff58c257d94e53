"""What containers have printed, on disk: found by app, function, call or container without reading the rest,
and bounded by size and age.

Writing never makes a container wait: pieces are gathered in memory and written together, `FLUSH_SECONDS`
later at most, in a thread of its own. `kill -9` of the server loses what was printed in that moment, nothing
older.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.1
APP_CHARACTERS = 64 * 2**20
"""Kept per app; a noisy one loses its own oldest output, not that of the others."""
ALL_CHARACTERS = 512 * 2**20
"""Kept of all apps together; looked after every `TRIM_EVERY` seconds."""
KEPT_SECONDS = 7 * 24 * 3600.0
"""How long output is kept. The cloud's retention depends on the plan: a day at least."""
PENDING_CHARACTERS = 64 * 2**20
"""What may wait to be written; more is dropped, and that is said in the log."""
TRIM_EVERY = 3600.0
PAGE = 1000

T = TypeVar("T")


class LogEntry(NamedTuple):
    """A piece of output, usually a line."""

    number: int
    """Grows with time, over restarts."""
    time: float
    """Epoch seconds."""
    app_id: str
    function_id: str
    variant_id: str
    """The function with its parameters and options; the same as `function_id` if it has none."""
    call_id: str
    input_id: str
    task_id: str
    descriptor: int
    """1 = stdout, 2 = stderr, 3 = said by the server."""
    text: str


@dataclass(frozen=True)
class Selection:
    """Which entries are meant; the empty string, 0 and None are no condition."""

    app_id: str = ""
    function_id: str = ""
    variant_id: str = ""
    call_id: str = ""
    input_id: str = ""
    task_id: str = ""
    descriptor: int = 0
    text: str = ""
    """Occurs in the entry."""
    since: float | None = None
    until: float | None = None
    """Exclusive."""
    after: int = 0
    """The number of an entry."""

    def condition(self) -> tuple[str, list[object]]:
        """For a WHERE clause, with its parameters."""
        names = ("app_id", "function_id", "variant_id", "call_id", "input_id", "task_id", "descriptor")
        terms: list[tuple[str, object]] = [
            (f"{name} = ?", value) for name in names if (value := getattr(self, name))
        ]
        if self.text:
            terms.append(("instr(text, ?) > 0", self.text))
        if self.since is not None:
            terms.append(("time >= ?", self.since))
        if self.until is not None:
            terms.append(("time < ?", self.until))
        terms.append(("number > ?", self.after))
        return " AND ".join(term for term, _ in terms), [value for _, value in terms]


_COLUMNS = LogEntry._fields
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS entries ({", ".join(_COLUMNS)}, PRIMARY KEY (number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sizes (app_id TEXT PRIMARY KEY, characters INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS by_app ON entries (app_id, number);
CREATE INDEX IF NOT EXISTS by_call ON entries (call_id, number);
CREATE INDEX IF NOT EXISTS by_task ON entries (task_id, number);
CREATE INDEX IF NOT EXISTS by_time ON entries (time);
"""


class LogStore:
    """The file, and what waits to be written to it. All methods belong on one event loop.

    Args:
        path: of the file.
        on_written: is called after new entries have become readable.
        app_characters: see `APP_CHARACTERS`.
    """

    def __init__(
        self, path: Path, on_written: Callable[[], None], *, app_characters: int = APP_CHARACTERS
    ) -> None:
        self._on_written = on_written
        self._app_characters = app_characters
        self._pending: list[LogEntry] = []
        self._pending_characters = 0
        self._dropped: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        # One thread, so that a read finds all that was handed over before it.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="logs")
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")  # as the state: the machine isn't expected to die
        self._db.executescript(_SCHEMA)
        [[last]] = self._db.execute("SELECT coalesce(max(number), 0) FROM entries")
        self._numbers = itertools.count(last + 1)

    def append(self, entry: LogEntry) -> None:
        """Keep an entry; its number is given here. Doesn't wait for anything."""
        if self._pending_characters > PENDING_CHARACTERS:
            self._dropped[entry.app_id] += 1
            return
        self._pending.append(entry._replace(number=next(self._numbers)))
        self._pending_characters += len(entry.text)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    async def read(self, selection: Selection, limit: int = 0, *, newest: bool = False) -> list[LogEntry]:
        """Entries in their order: all, or the first `limit`, or with `newest` the last `limit`."""
        condition, values = selection.condition()
        query = (
            f"SELECT {', '.join(_COLUMNS)} FROM entries WHERE {condition} "
            f"ORDER BY number {'DESC' if newest else 'ASC'} LIMIT {limit or -1}"
        )
        entries = [LogEntry(*row) for row in await self._run(lambda: self._select(query, values))]
        return entries[::-1] if newest else entries

    async def count(self, selection: Selection, start: float, width: float) -> dict[int, Counter[int]]:
        """Entries per descriptor in intervals of `width` seconds from `start` on, by the interval's index."""
        condition, values = selection.condition()
        query = (
            "SELECT CAST((time - ?) / ? AS INTEGER), descriptor, count(*) FROM entries "
            f"WHERE {condition} GROUP BY 1, 2 ORDER BY 1"
        )
        counts: dict[int, Counter[int]] = {}
        for index, descriptor, count in await self._run(lambda: self._select(query, [start, width, *values])):
            counts.setdefault(index, Counter())[descriptor] = count
        return counts

    async def trim(self, now: float) -> None:
        """Remove what is too old, and the oldest of what is too much."""
        await self._run(lambda: self._trim(now))

    async def close(self) -> None:
        """Write the rest and close the file."""
        await self._run(lambda: None)
        self._thread.shutdown()
        self._db.close()

    async def _run(self, work: Callable[[], T]) -> T:
        """Do something with the file, after all that was appended before."""
        self._flush()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._pending:
            return
        batch, self._pending, self._pending_characters = self._pending, [], 0
        for app_id, count in self._dropped.items():
            text = f"{count} pieces of output were dropped: they came faster than they could be kept\n"
            batch.append(LogEntry(next(self._numbers), batch[-1].time, app_id, "", "", "", "", "", 3, text))
        self._dropped.clear()
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._write, batch)
        future.add_done_callback(self._written)

    def _written(self, done: asyncio.Future[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("Output of containers could not be kept", exc_info=error)
        self._on_written()

    # -- in the thread

    def _select(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        return self._db.execute(query, values).fetchall()

    def _write(self, batch: list[LogEntry]) -> None:
        sizes = Counter[str]()
        for entry in batch:
            sizes[entry.app_id] += len(entry.text)
        with _Transaction(self._db):
            places = ", ".join("?" * len(_COLUMNS))
            self._db.executemany(f"INSERT INTO entries VALUES ({places})", batch)
            self._db.executemany(
                "INSERT INTO sizes VALUES (?, ?) "
                "ON CONFLICT (app_id) DO UPDATE SET characters = characters + excluded.characters",
                sizes.items(),
            )
        for app_id in sizes:
            self._shrink(app_id)

    def _trim(self, now: float) -> None:
        self._remove("time < ?", [now - KEPT_SECONDS])
        [[characters]] = self._db.execute("SELECT coalesce(sum(characters), 0) FROM sizes")
        if characters > ALL_CHARACTERS:
            self._remove_oldest("1", [], characters - ALL_CHARACTERS)

    def _shrink(self, app_id: str) -> None:
        [[characters]] = self._db.execute("SELECT characters FROM sizes WHERE app_id = ?", [app_id])
        if characters > self._app_characters:
            # A tenth more than necessary, or every write would remove a little.
            self._remove_oldest("app_id = ?", [app_id], characters - self._app_characters * 9 // 10)

    def _remove_oldest(self, condition: str, values: list[object], excess: int) -> None:
        last = 0
        query = f"SELECT number, length(text) FROM entries WHERE {condition} ORDER BY number"
        for number, length in self._db.execute(query, values):
            last, excess = number, excess - length
            if excess <= 0:
                break
        self._remove(f"{condition} AND number <= ?", [*values, last])

    def _remove(self, condition: str, values: Sequence[object]) -> None:
        with _Transaction(self._db):
            self._db.execute(
                "UPDATE sizes SET characters = characters - coalesce((SELECT sum(length(text)) FROM entries "
                f"WHERE entries.app_id = sizes.app_id AND {condition}), 0)",
                values,
            )
            self._db.execute(f"DELETE FROM entries WHERE {condition}", values)
            self._db.execute("DELETE FROM sizes WHERE characters <= 0")


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._db.execute("ROLLBACK" if kind else "COMMIT")
