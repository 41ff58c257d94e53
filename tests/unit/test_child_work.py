"""Does no child go on when whoever waits for it is interrupted?"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from airflow_provider_modal.child_work import child_of
from airflow_provider_modal.container.zygote import Child, Zygote
from tests.support.processes import is_running

SLEEP = "zygote_targets:sleep"


class Cancelled(BaseException):
    """As Modal's ``InputCancellation``."""


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    here = str(Path(__file__).parent)
    sys.path.insert(0, here)
    zygote = Zygote.start()
    zygote.ready(30)
    yield zygote
    zygote.stop()
    sys.path.remove(here)


@contextmanager
def handled(signum: int, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    former = signal.signal(signum, handler)
    try:
        yield
    finally:
        signal.signal(signum, former)


def raise_cancelled(_signum: int, _frame: FrameType | None) -> None:
    raise Cancelled


def test_child_that_ends_is_left_alone(zygote: Zygote) -> None:
    with child_of(zygote, "zygote_targets:echo", {"value": 1}) as child:
        outcome = child.wait(30)
    assert outcome is not None and outcome.result == 1


def test_child_that_takes_too_long_has_ended_with_the_block(zygote: Zygote) -> None:
    with child_of(zygote, SLEEP, {}) as child:
        assert child.wait(0.05) is None
    ended = child.wait(0)
    assert ended is not None and ended.signal == signal.SIGKILL


def test_interruptions_that_go_on_do_not_save_the_child(
    zygote: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    with handled(signal.SIGUSR1, raise_cancelled), pytest.raises(Cancelled):
        with child_of(zygote, SLEEP, {}) as child:
            kill = child.kill

            def kill_under_fire() -> None:
                os.kill(os.getpid(), signal.SIGUSR1)
                kill()

            monkeypatch.setattr(child, "kill", kill_under_fire)
            os.kill(os.getpid(), signal.SIGUSR1)
            child.wait(30)
    assert child.wait(0) is not None


def test_interruption_while_the_child_is_made_leaves_none(zygote: Zygote) -> None:
    pids: list[int] = []

    class Interrupted:
        """Interrupts as soon as the child works, before its handle is known to whoever asked for it."""

        def spawn(self, target: str, args: Mapping[str, Any], env: Mapping[str, str] | None) -> Child:
            pids.append(zygote.spawn(target, args, env).pid)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)
            raise AssertionError("it was not interrupted")

        def stop(self) -> None:
            zygote.stop()

    with pytest.raises(KeyboardInterrupt):
        with child_of(Interrupted(), SLEEP, {}):  # type: ignore[arg-type]
            pass
    assert not is_running(pids[0])
    with child_of(zygote, "zygote_targets:echo", {"value": 2}) as child:
        again = child.wait(30)
    assert again is not None and again.result == 2, "the zygote is started again"
