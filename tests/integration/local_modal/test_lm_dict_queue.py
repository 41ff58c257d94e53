"""Dicts and Queues through the stock SDK."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Iterator

import modal
import pytest
from modal.exception import AlreadyExistsError, InvalidError, NotFoundError, RequestSizeError

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import start_client
from tests.integration.local_modal.sdk import connected, unique


@pytest.fixture(scope="module")
def sdk(local_modal: LocalModal) -> Iterator[modal.Client]:
    with connected(local_modal) as client:
        yield client


@pytest.fixture
def a_dict(sdk: modal.Client) -> modal.Dict:
    return modal.Dict.from_name(unique("dict"), create_if_missing=True, client=sdk)


@pytest.fixture
def a_queue(sdk: modal.Client) -> modal.Queue:
    return modal.Queue.from_name(unique("queue"), create_if_missing=True, client=sdk)


class TestNames:
    def test_a_look_up_in_vain(self, sdk: modal.Client) -> None:
        for kind in (modal.Dict, modal.Queue):
            with pytest.raises(NotFoundError, match=r"'nope' not found in environment 'main'"):
                kind.from_name("nope", client=sdk).hydrate()

    def test_creating_twice(self, sdk: modal.Client) -> None:
        for kind in (modal.Dict, modal.Queue):
            name = unique("twice")
            kind.objects.create(name, client=sdk)
            with pytest.raises(AlreadyExistsError):
                kind.objects.create(name, client=sdk)
            kind.objects.create(name, allow_existing=True, client=sdk)
            assert kind.from_name(name, client=sdk).info().name == name

    def test_deleting(self, sdk: modal.Client) -> None:
        for kind in (modal.Dict, modal.Queue):
            name = unique("deleted")
            kind.objects.create(name, client=sdk)
            stale = kind.from_name(name, client=sdk).hydrate()
            kind.objects.delete(name, client=sdk)
            with pytest.raises(NotFoundError):
                stale.len()
            with pytest.raises(NotFoundError):
                kind.objects.delete(name, client=sdk)
            kind.objects.delete(name, allow_missing=True, client=sdk)
            assert kind.from_name(name, create_if_missing=True, client=sdk).len() == 0

    def test_lists_are_newest_first_and_paged(self, sdk: modal.Client) -> None:
        prefix = unique("listed")
        names = [f"{prefix}-{number}" for number in range(105)]  # a page has 100
        for name in names:
            modal.Dict.objects.create(name, client=sdk)
        listed = [found.name for found in modal.Dict.objects.list(client=sdk)]
        assert [name for name in listed if name and name.startswith(prefix)] == names[::-1]
        assert [found.name for found in modal.Dict.objects.list(max_objects=2, client=sdk)] == names[:-3:-1]

    def test_an_unknown_environment(self, sdk: modal.Client) -> None:
        with pytest.raises(NotFoundError, match="Environment 'nowhere' not found"):
            modal.Dict.from_name(
                "x", environment_name="nowhere", create_if_missing=True, client=sdk
            ).hydrate()

    def test_from_id(self, a_dict: modal.Dict, sdk: modal.Client) -> None:
        a_dict["k"] = "v"
        assert modal.Dict.from_id(a_dict.object_id, client=sdk)["k"] == "v"
        with pytest.raises(NotFoundError):
            modal.Dict.from_id("di-0000000000000000000000", client=sdk).hydrate()

    def test_ephemeral_ones_are_not_listed(self, sdk: modal.Client) -> None:
        with modal.Dict.ephemeral(client=sdk) as one, modal.Dict.ephemeral(client=sdk) as other:
            one["k"] = 1
            assert other.len() == 0
            assert one.object_id not in [found.object_id for found in modal.Dict.objects.list(client=sdk)]


class TestDict:
    def test_it_behaves_like_a_dict(self, a_dict: modal.Dict) -> None:
        a_dict["a"] = 1
        a_dict[("b", 2)] = {"nested": [1, 2]}
        assert a_dict["a"] == 1
        assert a_dict[("b", 2)] == {"nested": [1, 2]}
        assert a_dict.get("missing") is None
        assert a_dict.get("missing", "default") == "default"
        with pytest.raises(KeyError):
            a_dict["missing"]
        assert "a" in a_dict
        assert "missing" not in a_dict
        a_dict.update({"a": 2}, c=3)
        assert sorted(a_dict.keys(), key=str) == [("b", 2), "a", "c"]
        assert sorted(a_dict.values(), key=str) == [2, 3, {"nested": [1, 2]}]
        assert dict(a_dict.items()) == {"a": 2, ("b", 2): {"nested": [1, 2]}, "c": 3}
        assert a_dict.len() == 3
        assert a_dict.pop("a") == 2
        with pytest.raises(KeyError):
            a_dict.pop("a")
        assert a_dict.pop("a", "default") == "default"
        del a_dict["c"]
        a_dict.clear()
        assert a_dict.len() == 0

    def test_none_is_a_value(self, a_dict: modal.Dict) -> None:
        a_dict["k"] = None
        assert "k" in a_dict
        assert a_dict.get("k", "default") is None
        assert a_dict.pop("k", "default") is None

    def test_put_if_absent_succeeds_once(self, a_dict: modal.Dict) -> None:
        outcomes = []
        threads = [
            threading.Thread(target=lambda n=n: outcomes.append(a_dict.put("lock", n, skip_if_exists=True)))
            for n in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == [False] * 9 + [True]
        winner = a_dict["lock"]
        assert not a_dict.put("lock", "late", skip_if_exists=True)
        assert a_dict["lock"] == winner
        assert a_dict.put("lock", "forced")

    def test_an_update_has_limits(self, a_dict: modal.Dict) -> None:
        with pytest.raises(InvalidError, match="10000 entries"):
            a_dict.update(dict.fromkeys(range(10001)))
        with pytest.raises(RequestSizeError):
            a_dict["huge"] = bytes(100 * 2**20 + 1)
        assert a_dict.len() == 0

    def test_large_values_travel(self, a_dict: modal.Dict) -> None:
        value = bytes(range(256)) * 4096 * 20
        a_dict["large"] = value
        assert a_dict["large"] == value


class TestQueue:
    def test_items_come_out_in_order(self, a_queue: modal.Queue) -> None:
        a_queue.put(1)
        a_queue.put_many([2, 3, 4, 5])
        assert a_queue.len() == 5
        assert list(a_queue.iterate()) == [1, 2, 3, 4, 5]
        assert a_queue.get() == 1
        assert a_queue.get_many(3) == [2, 3, 4]
        assert a_queue.get_many(10) == [5]
        assert a_queue.get(block=False) is None
        assert a_queue.get_many(10, block=False) == []

    def test_partitions_are_apart(self, a_queue: modal.Queue) -> None:
        a_queue.put("default")
        a_queue.put("x", partition="x")
        assert a_queue.len() == 1
        assert a_queue.len(partition="x") == 1
        assert a_queue.len(total=True) == 2
        assert a_queue.get(partition="x") == "x"
        assert a_queue.get(partition="x", block=False) is None
        a_queue.put_many(["y", "z"], partition="x")
        a_queue.clear(partition="x")
        assert a_queue.len(total=True) == 1
        a_queue.clear(all=True)
        assert a_queue.len(total=True) == 0

    def test_an_empty_queue_times_out(self, a_queue: modal.Queue) -> None:
        started = time.monotonic()
        with pytest.raises(queue.Empty):
            a_queue.get(timeout=0.3)
        assert time.monotonic() - started >= 0.3

    def test_a_blocked_getter_is_woken(self, a_queue: modal.Queue) -> None:
        threading.Timer(0.2, a_queue.put, ["late"]).start()
        assert a_queue.get(timeout=30) == "late"

    def test_iterate_waits_for_more(self, a_queue: modal.Queue) -> None:
        a_queue.put(1)
        threading.Timer(0.2, a_queue.put, [2]).start()
        items = a_queue.iterate(item_poll_timeout=30.0)
        assert [next(items), next(items)] == [1, 2]
        assert a_queue.len() == 2

    def test_a_full_partition_refuses_and_recovers(self, a_queue: modal.Queue) -> None:
        a_queue.put_many([0] * 5000)
        with pytest.raises(queue.Full):
            a_queue.put(1, block=False)
        with pytest.raises(queue.Full):
            a_queue.put(1, timeout=0.3)
        a_queue.put(1, partition="other")
        threading.Timer(0.2, a_queue.get_many, [10]).start()
        a_queue.put("in the end", timeout=60)
        assert a_queue.len() == 4991

    def test_an_item_has_a_limit(self, a_queue: modal.Queue) -> None:
        a_queue.put(bytes(2**20 - 100))
        with pytest.raises(InvalidError, match="1048576 bytes"):
            a_queue.put(bytes(2**20))
        assert a_queue.len() == 1

    def test_a_partition_expires(self, a_queue: modal.Queue) -> None:
        a_queue.put("short", partition="short", partition_ttl=1)
        a_queue.put("long")
        wait_until(lambda: a_queue.len(partition="short") == 0, seconds=30)
        assert a_queue.len(total=True) == 1

    def test_a_getter_whose_client_is_gone_eats_nothing(
        self, local_modal: LocalModal, a_queue: modal.Queue, sdk: modal.Client
    ) -> None:
        a_queue.hydrate()
        code = (
            "queue = modal.Queue.from_id(queue_id)\nqueue.len()\n"
            "print('WAITING', flush=True)\nresult = queue.get()"
        )
        gone = start_client(local_modal, code, queue_id=a_queue.object_id)
        alive = start_client(local_modal, code, queue_id=a_queue.object_id)
        for process in (gone, alive):
            assert process.stdout is not None
            assert process.stdout.readline() == "WAITING\n"
        # Nothing tells when the request that follows has arrived; too early only makes the test easier.
        time.sleep(0.3)
        gone.send_signal(signal.SIGKILL)
        gone.communicate()
        a_queue.put("for the living")
        output, _ = alive.communicate(timeout=60)
        assert '"for the living"' in output
        assert a_queue.len() == 0


def test_everything_answered_survives_kill_nine(fresh_local_modal: LocalModal) -> None:
    with connected(fresh_local_modal) as sdk:
        entries = modal.Dict.from_name("d", create_if_missing=True, client=sdk)
        entries.update({number: str(number) for number in range(200)})
        entries.pop(7)
        items = modal.Queue.from_name("q", create_if_missing=True, client=sdk)
        items.put_many(list(range(100)))
        items.put_many(["a", "b"], partition="p")
        items.get_many(10)
        gone = modal.Queue.from_name("gone", create_if_missing=True, client=sdk).hydrate()
        gone.put(1)
        modal.Queue.objects.delete("gone", client=sdk)
        fresh_local_modal.kill()
        fresh_local_modal.start()

        assert dict(entries.items()) == {number: str(number) for number in range(200) if number != 7}
        assert items.get_many(200) == list(range(10, 100))
        assert list(items.iterate(partition="p")) == ["a", "b"]
        items.put("c", partition="p")
        assert items.get_many(5, partition="p") == ["a", "b", "c"]
        with pytest.raises(NotFoundError):
            gone.len()
