"""How do the entry process and the zygote speak? In length-prefixed JSON over a unix socket.

A frame is four bytes of length, big-endian, and that many bytes of JSON; it may carry one file descriptor.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any

MAX_FRAME = 64 * 1024 * 1024
"""Bytes; a longer frame is a broken stream or a result that belongs on the Volume."""

_LENGTH = struct.Struct(">I")
_CHUNK = 64 * 1024
_MAX_FDS = 16


class FrameError(Exception):
    """The stream does not hold frames, or one that is too long."""


def send(sock: socket.socket, message: Any, fd: int | None = None) -> None:
    """Write one frame, with a file descriptor if one is given.

    :raises FrameError: the message is longer than ``MAX_FRAME``.
    :raises TypeError: the message is not JSON-able.
    :raises OSError: the other side is gone.
    """
    data = json.dumps(message).encode()
    if len(data) > MAX_FRAME:
        raise FrameError(f"message of {len(data)} bytes is longer than the limit of {MAX_FRAME}")
    frame = memoryview(_LENGTH.pack(len(data)) + data)
    if fd is not None:
        # The descriptor travels with the first byte; the rest may need more calls.
        sent = socket.send_fds(sock, [frame], [fd])
        frame = frame[sent:]
    sock.sendall(frame)


class Reader:
    """Takes frames out of a stream, however they are cut; for blocking and non-blocking sockets."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._fds: deque[int] = deque()
        self.ended = False
        """The other side has closed the stream."""

    def receive(self) -> None:
        """Read what is there, or wait for something when the socket blocks.

        :raises BlockingIOError: nothing is there (non-blocking sockets).
        """
        size = array.array("i").itemsize
        try:
            data, ancillary, _, _ = self._sock.recvmsg(_CHUNK, socket.CMSG_SPACE(_MAX_FDS * size))
        except ConnectionResetError:
            data, ancillary = b"", []
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors = array.array("i")
                descriptors.frombytes(content[: len(content) - len(content) % size])
                for descriptor in descriptors:
                    os.set_inheritable(descriptor, False)
                    self._fds.append(descriptor)
        if not data:
            self.ended = True
        self._buffer += data

    def frames(self) -> Iterator[Any]:
        """Yield the complete frames received so far.

        :raises FrameError: the stream holds something else.
        """
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise FrameError(f"frame of {length} bytes is longer than the limit of {MAX_FRAME}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            data = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                yield json.loads(data)
            except ValueError as error:
                raise FrameError(f"frame is not JSON: {error}") from None

    def take_fd(self) -> int:
        """Return the oldest file descriptor received and not yet taken; the caller owns it."""
        return self._fds.popleft()

    def read(self) -> Any:
        """Wait for one frame on a blocking socket and return it.

        :raises EOFError: the other side closed the stream before.
        """
        while True:
            for frame in self.frames():
                return frame
            if self.ended:
                raise EOFError("the stream ended before a message")
            self.receive()
