"""The contents of one Dict: byte-wise keys and expiry after a week without use."""

from __future__ import annotations

from local_modal.services.dicts import ENTRY_LIFETIME, TOUCH_INTERVAL, Entries

NOW = 1_800_000_000.0


def test_keys_are_compared_byte_by_byte() -> None:
    entries = Entries()
    entries.put(b"\x80\x05K\x01.", b"one", NOW)
    assert entries.get(b"\x80\x05K\x01.", NOW) == b"one"
    assert entries.get(b"\x80\x04K\x01.", NOW) is None


def test_an_entry_expires_after_its_lifetime_without_use() -> None:
    entries = Entries()
    entries.put(b"k", b"v", NOW)
    assert entries.get(b"k", NOW + ENTRY_LIFETIME - 1) == b"v"
    assert entries.get(b"k", NOW + ENTRY_LIFETIME) is None
    assert entries.live(NOW + ENTRY_LIFETIME) == []
    assert entries.expired(NOW + ENTRY_LIFETIME) == [b"k"]


def test_a_read_prolongs_it() -> None:
    entries = Entries()
    entries.put(b"k", b"v", NOW)
    assert entries.touch(b"k", NOW + ENTRY_LIFETIME - 1)
    assert entries.get(b"k", NOW + ENTRY_LIFETIME + 1) == b"v"


def test_reads_in_quick_succession_are_not_written_down() -> None:
    entries = Entries()
    entries.put(b"k", b"v", NOW)
    assert not entries.touch(b"k", NOW + TOUCH_INTERVAL - 1)
    assert entries.touch(b"k", NOW + TOUCH_INTERVAL)
    assert not entries.touch(b"k", NOW + TOUCH_INTERVAL + 1)


def test_a_removed_key_is_gone_and_removing_it_again_is_harmless() -> None:
    entries = Entries()
    entries.put(b"k", b"v", NOW)
    entries.remove(b"k")
    entries.remove(b"k")
    assert entries.get(b"k", NOW) is None
    assert entries.keys() == []
