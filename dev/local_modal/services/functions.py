"""Functions and classes of apps, and the variants that `with_options` and class parameters make of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal import ids, web_server
from local_modal.function_handles import function_handle
from local_modal.model import App, FunctionRecord
from local_modal.rpc import RpcError, Service, build
from local_modal.scheduler import PoolKey, PoolSettings
from local_modal.unsupported import refuse_unsupported
from local_modal.variant_records import VariantRecords
from local_modal.variants import Derived, apply_options

log = logging.getLogger(__name__)

FUNCTIONS, CLASSES, STAGED_CLASSES = "functions", "classes", "staged_classes"


@dataclass(frozen=True)
class Resolved:
    """A function or variant with all that a container of it needs to know."""

    function_id: str
    record: FunctionRecord
    app: App
    definition: api.Function
    serialized_params: bytes = b""

    @property
    def autoscaler(self) -> api.AutoscalerSettings | None:
        """What was changed for it since its deployment."""
        return self.record.autoscaler.get(self.function_id)


class FunctionService(Service):
    """FunctionPrecreate, -Create, -Get, -BindParams, Class*; and `resolve` for the engine."""

    async def start(self) -> None:
        store = self.server.store
        self.records = {key: FunctionRecord.from_bytes(data) for key, data in store.load(FUNCTIONS).items()}
        self.classes = {
            key: api.ClassHandleMetadata.FromString(data) for key, data in store.load(CLASSES).items()
        }
        self._derived = Derived()
        self._staged_classes = {
            key: api.ClassHandleMetadata.FromString(data) for key, data in store.load(STAGED_CLASSES).items()
        }
        """Created since their app was published."""
        self._variants = VariantRecords(store, self.server.clock)

    # -- for the other services

    def resolve(self, function_id: str) -> Resolved:
        """What a function or variant id means now.

        Raises:
            RpcError: NOT_FOUND, there is no such function or its app isn't running any more.
        """
        bound = self._variants.get(function_id)
        record = self.records.get(bound.function_id if bound else function_id)
        app = self.server.apps.apps.get(record.app_id) if record else None
        if record is None or record.definition is None or app is None or not app.running:
            raise RpcError(Status.NOT_FOUND, f"Function {function_id} not found, or its app was stopped.")
        if bound is None:
            return Resolved(function_id, record, app, record.definition)
        definition = self._derived.variant(function_id, record.definition, bound.function_options)
        return Resolved(function_id, record, app, definition, bound.serialized_params)

    def definitions(self) -> list[api.Function]:
        """All functions and variants that containers may be started for, now or after the next publish."""
        found = [d for record in self.records.values() for d in (record.definition, record.staged) if d]
        for bound in self._variants.all():
            record = self.records.get(bound.function_id)
            if record is not None and record.definition is not None:
                found.append(apply_options(record.definition, bound.function_options))
        return found

    def of(self, app: App) -> list[FunctionRecord]:
        """The functions of an app."""
        return [record for record in self.records.values() if record.app_id == app.app_id]

    def base_of(self, function_id: str) -> str:
        """The function that a variant was made of; a function itself."""
        bound = self._variants.get(function_id)
        return bound.function_id if bound else function_id

    def variants_of(self, function_id: str) -> dict[str, api.FunctionBindParamsRequest]:
        """The variants that have been made of a function, by their ids."""
        return self._variants.of(function_id)

    def app_of(self, function_id: str) -> str:
        """The app id of a function or variant, "" if unknown."""
        bound = self._variants.get(function_id)
        record = self.records.get(bound.function_id if bound else function_id)
        return record.app_id if record else ""

    def bind_for_web(self, function_id: str, serialized_params: bytes) -> str:
        """The variant of a class with these parameters, for a web request that is about to call it.

        Raises:
            RpcError: NOT_FOUND.
        """
        base = self.resolve(function_id)
        request = api.FunctionBindParamsRequest(function_id=function_id, serialized_params=serialized_params)
        return self._variants.bind(request, durable=base.app.deployed, web=True)

    def sweep(self) -> None:
        """Remove the variants of web requests that weren't used for a day and that nothing refers to."""
        engine = self.server.engine
        needed = {call.function_id for call in engine.ledger.calls.values()}
        needed.update(key.function_id for key in engine.scheduler.pools)
        needed.update(task.function_id for task in engine.tasks.values())
        for record in self.records.values():
            needed.update(record.autoscaler)
        self._gone(self._variants.sweep(needed))

    def ensure_pool(self, function_id: str) -> PoolKey:
        """The pool where inputs of this function or variant are queued now.

        Raises:
            RpcError: NOT_FOUND.
        """
        resolved = self.resolve(function_id)
        key = PoolKey(function_id, resolved.app.generation)
        self.server.engine.scheduler.ensure_pool(key, self._settings(resolved))
        return key

    def _settings(self, resolved: Resolved) -> PoolSettings:
        return self._derived.settings(resolved.function_id, resolved.definition, resolved.autoscaler)

    def publish(self, app: App) -> None:
        """Put in force what has been created for `app` since its last publish; drop what it doesn't have any
        more.
        """
        kept = set(app.function_ids.values())
        for record in self.of(app):
            if record.function_id not in kept:
                self._drop(record)
                continue
            record.definition = record.staged or record.definition
            record.handle = record.staged_handle or record.handle
            record.staged = record.staged_handle = None
            record.autoscaler.clear()
            if app.deployed:
                self.keep(record)
        for class_id in app.class_ids.values():
            staged = self._staged_classes.pop(class_id, None)
            self.server.store.delete(STAGED_CLASSES, class_id)
            if staged is not None:
                self.classes[class_id] = staged
            if app.deployed:
                self.server.store.put(CLASSES, class_id, self.classes[class_id].SerializeToString())

    def check_created(self, request: api.AppPublishRequest) -> None:
        """Refuse to publish what this server doesn't know: it was created before a restart.

        Raises:
            RpcError: FAILED_PRECONDITION.
        """
        for name, function_id in request.function_ids.items():
            record = self.records.get(function_id)
            if record is None or not (record.staged or record.definition):
                raise _not_created(f"function {name}")
        for name, class_id in request.class_ids.items():
            if class_id not in self.classes and class_id not in self._staged_classes:
                raise _not_created(f"class {name}")

    def keep(self, record: FunctionRecord) -> None:
        """Write down what is deployed."""
        self.server.store.put(FUNCTIONS, record.function_id, record.to_bytes())

    def unchanged(self, app: App) -> bool:
        """Whether publishing what has been created for `app` would change nothing."""
        for record in self.of(app):
            if record.function_id not in app.function_ids.values() or record.definition is None:
                return False
            if record.autoscaler:
                return False  # a deployment takes back what was changed after the last one
            if record.staged is not None and record.staged != record.definition:
                return False
        return all(
            self._staged_classes.get(class_id) in (None, self.classes.get(class_id))
            for class_id in app.class_ids.values()
        )

    def discard_staged(self, app: App) -> None:
        """Forget what has been created for `app` since its last publish."""
        for record in self.of(app):
            if record.staged is not None or record.staged_handle is not None:
                record.staged = record.staged_handle = None
                if app.deployed:
                    self.keep(record)
        for class_id in app.class_ids.values():
            self._staged_classes.pop(class_id, None)
            self.server.store.delete(STAGED_CLASSES, class_id)

    def warm(self, app: App) -> None:
        """Make the pools of functions that keep containers warm, which nobody has called yet."""
        for function_id in app.function_ids.values():
            if function_id in self.records and self._settings(self.resolve(function_id)).min_containers:
                self.ensure_pool(function_id)
        self.server.engine.kick()

    def warm_all(self) -> None:
        """At the start of the server: what deployed apps keep warm."""
        for app in self.server.apps.apps.values():
            self.warm(app)

    def forget(self, app: App) -> None:
        """The app has ended: nothing of it can be called any more."""
        for record in self.of(app):
            self._drop(record)
        for class_id in app.class_ids.values():
            self.classes.pop(class_id, None)
            self._staged_classes.pop(class_id, None)
            self.server.store.delete(CLASSES, class_id)
            self.server.store.delete(STAGED_CLASSES, class_id)

    def _drop(self, record: FunctionRecord) -> None:
        self.server.web_functions.close(record.function_id)
        del self.records[record.function_id]
        self.server.store.delete(FUNCTIONS, record.function_id)
        self._gone([record.function_id, *self._variants.forget_of(record.function_id)])

    def _gone(self, function_ids: Iterable[str]) -> None:
        for function_id in function_ids:
            self._derived.forget(function_id)
            self.server.stats.forget(function_id)

    def layout(self, app: App) -> api.AppLayout:
        """The objects of an app as the SDK and its containers need them."""
        layout = api.AppLayout(function_ids=app.function_ids, class_ids=app.class_ids)
        for function_id in app.function_ids.values():
            layout.objects.add(
                object_id=function_id, function_handle_metadata=self.records[function_id].handle
            )
        for class_id in app.class_ids.values():
            layout.objects.add(object_id=class_id, class_handle_metadata=self.classes[class_id])
        return layout

    # -- creation

    async def FunctionPrecreate(self, request: api.FunctionPrecreateRequest) -> api.FunctionPrecreateResponse:
        app = self.server.apps.get(request.app_id)
        record = self.records.get(request.existing_function_id)
        if record is None or record.app_id != app.app_id:
            function_id = ids.new_id(ids.FUNCTION)
            record = FunctionRecord(
                function_id, app.app_id, request.function_name, api.FunctionHandleMetadata()
            )
            self.records[function_id] = record
        handle = self._stage_handle(app, record, request)
        return api.FunctionPrecreateResponse(function_id=record.function_id, handle_metadata=handle)

    async def FunctionCreate(self, request: api.FunctionCreateRequest) -> api.FunctionCreateResponse:
        app = self.server.apps.get(request.app_id)
        if request.HasField("function_data"):
            definition = api.Function.FromString(
                request.function_data.ranked_functions[0].function.SerializeToString()
            )
            if request.function_data.HasField("schedule"):
                definition.schedule.CopyFrom(request.function_data.schedule)
        else:
            definition = request.function
        if request.HasField("schedule"):
            definition.schedule.CopyFrom(request.schedule)
        refuse_unsupported(definition)
        web_server.check(definition)
        record = self.records.get(request.existing_function_id)
        if record is None or record.app_id != app.app_id:
            function_id = ids.new_id(ids.FUNCTION)
            record = FunctionRecord(
                function_id, app.app_id, definition.function_name, api.FunctionHandleMetadata()
            )
            self.records[function_id] = record
        record.name = definition.function_name
        record.staged = definition
        handle = self._stage_handle(app, record, definition)
        return build(
            api.FunctionCreateResponse,
            function_id=record.function_id,
            function=definition,
            handle_metadata=handle,
            function_data=record.data(),
        )

    def _stage_handle(
        self, app: App, record: FunctionRecord, source: api.FunctionPrecreateRequest | api.Function
    ) -> api.FunctionHandleMetadata:
        """Note what the SDK shall know of a function after the next publish. For a deployed app it is written
        down: the SDK may publish after a restart of the server.
        """
        record.staged_handle = handle = function_handle(record, source)
        self.server.web_functions.assign(app, handle, record.function_id, source)
        if app.deployed:
            self.keep(record)
        return handle

    async def ClassCreate(self, request: api.ClassCreateRequest) -> api.ClassCreateResponse:
        class_id = request.existing_class_id or ids.new_id(ids.CLASS)
        metadata = api.ClassHandleMetadata(methods=request.methods)
        self._staged_classes[class_id] = metadata
        app = self.server.apps.apps.get(request.app_id)
        if app is not None and app.deployed:
            self.server.store.put(STAGED_CLASSES, class_id, metadata.SerializeToString())
        return api.ClassCreateResponse(class_id=class_id, handle_metadata=metadata)

    # -- looking up

    async def FunctionGet(self, request: api.FunctionGetRequest) -> api.FunctionGetResponse:
        app = self.server.apps.deployed(request.app_name, request.environment_name)
        function_id = app.function_ids.get(request.object_tag) if app else None
        if app is None or function_id is None:
            # The SDK says itself what it looked for.
            environment = request.environment_name or "main"
            raise RpcError(
                Status.NOT_FOUND,
                f"there is no function of that name in app '{request.app_name}'"
                if app
                else f"there is no app '{request.app_name}' in environment '{environment}'",
            )
        record = self.records[function_id]
        return build(
            api.FunctionGetResponse,
            function_id=function_id,
            handle_metadata=record.handle,
            function=record.data(),
        )

    async def ClassGet(self, request: api.ClassGetRequest) -> api.ClassGetResponse:
        app = self.server.apps.deployed(request.app_name, request.environment_name)
        class_id = app.class_ids.get(request.object_tag) if app else None
        if app is None or class_id is None:
            raise RpcError(
                Status.NOT_FOUND,
                f"Lookup failed for Cls '{request.object_tag}' from the '{request.app_name}' app.",
            )
        return api.ClassGetResponse(class_id=class_id, handle_metadata=self.classes[class_id])

    async def FunctionBindParams(
        self, request: api.FunctionBindParamsRequest
    ) -> api.FunctionBindParamsResponse:
        base = self.resolve(request.function_id)
        if request.HasField("function_options"):
            refuse_unsupported(apply_options(base.definition, request.function_options))
        variant_id = self._variants.bind(request, durable=base.app.deployed, web=False)
        handle = api.FunctionHandleMetadata.FromString(base.record.handle.SerializeToString())
        if "base_function_id" in handle.DESCRIPTOR.fields_by_name:  # not before modal 1.6
            handle.base_function_id = request.function_id
        return api.FunctionBindParamsResponse(bound_function_id=variant_id, handle_metadata=handle)

    async def FunctionGetSerialized(
        self, request: api.FunctionGetSerializedRequest
    ) -> api.FunctionGetSerializedResponse:
        definition = self.resolve(request.function_id).definition
        return api.FunctionGetSerializedResponse(
            function_serialized=definition.function_serialized, class_serialized=definition.class_serialized
        )


def _not_created(what: str) -> RpcError:
    return RpcError(
        Status.FAILED_PRECONDITION,
        f"This server doesn't know the {what}: it was restarted during the deployment. Deploy again.",
    )
