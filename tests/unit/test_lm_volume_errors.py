"""What a client is told when the server's own disk fails it."""

from __future__ import annotations

import errno
import os

import pytest
from grpclib.const import Status

from local_modal.rpc import RpcError
from local_modal.services.volumes import _as_rpc_errors


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (errno.ENOSPC, Status.RESOURCE_EXHAUSTED),
        (errno.EDQUOT, Status.RESOURCE_EXHAUSTED),
        (errno.ENOTDIR, Status.FAILED_PRECONDITION),
    ],
)
def test_a_failure_of_the_file_system_is_told(number: int, status: Status) -> None:
    with pytest.raises(RpcError, match=os.strerror(number)) as failure, _as_rpc_errors():
        raise OSError(number, os.strerror(number), "file")
    assert failure.value.status is status
