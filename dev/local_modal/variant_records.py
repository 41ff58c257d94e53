"""The variants that have been made of functions, by `with_options`, by class parameters and by web requests.

The SDK makes a variant once and goes on using its id, so those of clients stay as long as their function.
Those that the server makes for requests to web methods are bound anew by each request: there is one for every
value that anybody has put into a query, and they go when they haven't been used for a day.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from modal_proto import api_pb2 as api

from local_modal import ids
from local_modal.clock import Clock
from local_modal.quotas import DAY
from local_modal.store import Store

VARIANTS, WEB_USES = "variants", "web_variants"
"""Tables: the requests by which variants were bound; of those made for web requests alone, their last use."""
WEB_KEPT = DAY
"""Seconds that a variant of web requests is kept after its last use."""
WRITTEN_EVERY = 3600.0
"""Seconds between two times that the use of a variant is written down."""


class VariantRecords:
    """Variants by their ids, in memory and (for deployed apps) in the store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._bound = {
            key: api.FunctionBindParamsRequest.FromString(data) for key, data in store.load(VARIANTS).items()
        }
        self._web_uses = {key: float(data) for key, data in store.load(WEB_USES).items()}
        self._written = dict(self._web_uses)

    def get(self, variant_id: str) -> api.FunctionBindParamsRequest | None:
        """How a variant was bound; None if there is none of that id."""
        return self._bound.get(variant_id)

    def all(self) -> Iterable[api.FunctionBindParamsRequest]:
        """How the variants of all functions were bound."""
        return self._bound.values()

    def of(self, function_id: str) -> dict[str, api.FunctionBindParamsRequest]:
        """The variants of a function, by their ids."""
        return {key: bound for key, bound in self._bound.items() if bound.function_id == function_id}

    def bind(self, request: api.FunctionBindParamsRequest, *, durable: bool, web: bool) -> str:
        """The id of the variant that `request` asks for: the same for the same request, as it decides which
        containers are shared.

        Args:
            durable: it outlives the server.
            web: it is for a web request. One that a client has asked for as well is a client's.
        """
        key = api.FunctionBindParamsRequest.FromString(request.SerializeToString())
        key.ClearField("auth_secret")
        data = key.SerializeToString(deterministic=True)
        variant_id = ids.derived_id(ids.FUNCTION, data)
        new = variant_id not in self._bound
        with self._store.transaction():
            if new:
                self._bound[variant_id] = key
                if durable:
                    self._store.put(VARIANTS, variant_id, data)
            if web and (new or variant_id in self._web_uses):
                self._used(variant_id, durable)
            elif not web and variant_id in self._web_uses:
                self._unmark(variant_id)
        return variant_id

    def forget_of(self, function_id: str) -> list[str]:
        """The function is gone: remove its variants; returns their ids."""
        gone = list(self.of(function_id))
        for variant_id in gone:
            self._forget(variant_id)
        return gone

    def sweep(self, needed: Container[str]) -> list[str]:
        """Remove the variants of web requests that weren't used lately and aren't `needed`; returns their
        ids.
        """
        before = self._clock.time() - WEB_KEPT
        gone = [key for key, used in self._web_uses.items() if used <= before and key not in needed]
        with self._store.transaction():
            for variant_id in gone:
                self._forget(variant_id)
        return gone

    def _used(self, variant_id: str, durable: bool) -> None:
        self._web_uses[variant_id] = now = self._clock.time()
        if durable and now - self._written.get(variant_id, 0.0) >= WRITTEN_EVERY:
            self._written[variant_id] = now
            self._store.put(WEB_USES, variant_id, repr(now).encode())

    def _unmark(self, variant_id: str) -> None:
        del self._web_uses[variant_id]
        if self._written.pop(variant_id, None) is not None:
            self._store.delete(WEB_USES, variant_id)

    def _forget(self, variant_id: str) -> None:
        del self._bound[variant_id]
        self._store.delete(VARIANTS, variant_id)
        if variant_id in self._web_uses:
            self._unmark(variant_id)
