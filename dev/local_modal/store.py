"""What survives a restart: one sqlite file of named tables from string keys to bytes.

Only the server process is expected to die, not the machine, so `synchronous=OFF` is enough: what `put`
returned from has been handed to the kernel. Services keep their working copies in memory, write through, and
`load` once at start.
"""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StateDirInUse(Exception):
    """Another server holds the lock of this state directory."""


class StateDirUnsafe(Exception):
    """The state directory is open to others, and not the server's to close."""


class Store:
    """Write-through key/value tables in `state.db`; usable from any thread.

    Raises:
        StateDirInUse: another live process serves this directory.
        StateDirUnsafe: others could read or change what is in it.
    """

    def __init__(self, state_dir: Path) -> None:
        # Secrets, source code and results are in there.
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._close_to_others(state_dir)
        self._lock_fd = self._take_lock(state_dir)
        self._mutex = threading.RLock()
        self._depth = 0
        self._tables: set[str] = set()
        self._db = sqlite3.connect(state_dir / "state.db", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")

    @staticmethod
    def _close_to_others(state_dir: Path) -> None:
        status = state_dir.stat()
        problem = ""
        if status.st_uid != os.geteuid():
            problem = f"belongs to user {status.st_uid}, this server runs as {os.geteuid()}"
        elif status.st_mode & 0o077:
            # Somebody's home, or /tmp, must not be closed by a slip.
            if (state_dir / "lock").exists() or not any(state_dir.iterdir()):
                state_dir.chmod(0o700)
            else:
                problem = "has other files than a server's and is open to others"
        if problem:
            raise StateDirUnsafe(f"State directory {state_dir} {problem}: choose another --state-dir.")

    @staticmethod
    def _take_lock(state_dir: Path) -> int:
        lock_fd = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock_fd, 32, 0).decode(errors="replace").strip()
            os.close(lock_fd)
            raise StateDirInUse(
                f"State directory {state_dir} is in use by another local Modal server"
                f"{f' (pid {holder})' if holder else ''}: stop it or choose another --state-dir."
            ) from None
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
        return lock_fd

    def put(self, table: str, key: str, value: bytes) -> None:
        """Set `key` in `table`; the table is made on first use."""
        with self._mutex:
            # Not REPLACE, which is a new row: `load` promises the order of first insertion.
            self._db.execute(
                f"INSERT INTO {self._table(table)} VALUES (?, ?)"
                " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )

    def delete(self, table: str, key: str) -> None:
        """Remove `key` from `table`; nothing happens if it isn't there."""
        with self._mutex:
            self._db.execute(f"DELETE FROM {self._table(table)} WHERE key = ?", (key,))

    def load(self, table: str) -> dict[str, bytes]:
        """Everything in `table`, in the order in which the keys came first."""
        with self._mutex:
            rows = self._db.execute(f"SELECT key, value FROM {self._table(table)} ORDER BY rowid").fetchall()
        return {key: bytes(value) for key, value in rows}

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside happen, or (on an exception) none; may be nested. Never `await` inside: other
        handlers would join it.
        """
        with self._mutex:
            if self._depth == 0:
                self._db.execute("BEGIN")
            self._depth += 1
            try:
                yield
            except BaseException:
                self._depth -= 1
                if self._depth == 0:
                    self._db.execute("ROLLBACK")
                raise
            self._depth -= 1
            if self._depth == 0:
                self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the file and release the directory."""
        with self._mutex:
            self._db.close()
            os.close(self._lock_fd)

    def _table(self, name: str) -> str:
        if name not in self._tables:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"Not a table name: {name!r}")
            self._db.execute(
                f'CREATE TABLE IF NOT EXISTS "{name}" (key TEXT PRIMARY KEY, value BLOB NOT NULL)'
            )
            self._tables.add(name)
        return f'"{name}"'
