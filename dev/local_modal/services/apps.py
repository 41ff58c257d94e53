"""Apps: their life from creation over deployments to the end, and what they consist of."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal import ids
from local_modal.model import App
from local_modal.rpc import RpcError, Service, build, caller

if TYPE_CHECKING:
    from local_modal.services.named import ObjectService
    from local_modal.services.volumes import VolumeService

TABLE = "apps"
HEARTBEAT_EXPIRY = 60.0
"""Seconds without a heartbeat of its client (which sends one every 15 s) after which an ephemeral app is
stopped.
"""
STOPPED_APPS_KEPT = 200
LIVING_FOR_THEIR_CLIENT = (api.APP_STATE_INITIALIZING, api.APP_STATE_EPHEMERAL, api.APP_STATE_DETACHED)


class AppService(Service):
    """App* RPCs. Deployed apps survive a restart of the server, ephemeral ones don't."""

    async def start(self) -> None:
        self.apps = {key: App.from_bytes(data) for key, data in self.server.store.load(TABLE).items()}
        await self._release_ownerless()
        self._expiry = asyncio.ensure_future(self._stop_abandoned())

    async def stop(self) -> None:
        self._expiry.cancel()

    def get(self, app_id: str) -> App:
        """The app of that id.

        Raises:
            RpcError: NOT_FOUND.
        """
        if app_id not in self.apps:
            raise RpcError(Status.NOT_FOUND, f"App {app_id} not found.")
        return self.apps[app_id]

    def deployed(self, name: str, environment_name: str) -> App | None:
        """The app deployed under that name in that environment."""
        environment = self.server.environments.resolve(environment_name)
        for app in self.apps.values():
            if app.deployed and app.name == name and app.environment == environment:
                return app
        return None

    def page_url(self, app: App) -> str:
        """Something to show where Modal prints a link to its dashboard."""
        return f"{self.server.url}/apps/{app.environment}/{app.name or app.app_id}"

    # -- life

    async def AppCreate(self, request: api.AppCreateRequest) -> api.AppCreateResponse:
        now = self.server.clock.time()
        app = App(
            ids.new_id(ids.APP),
            request.description,
            self.server.environments.resolve(request.environment_name),
            state=request.app_state or api.APP_STATE_INITIALIZING,
            created_at=now,
            tags=dict(request.tags),
            last_heartbeat=now,
        )
        self.apps[app.app_id] = app
        return api.AppCreateResponse(
            app_id=app.app_id, app_page_url=self.page_url(app), app_logs_url=self.page_url(app)
        )

    async def AppGetByDeploymentName(
        self, request: api.AppGetByDeploymentNameRequest
    ) -> api.AppGetByDeploymentNameResponse:
        app = self.deployed(request.name, request.environment_name)
        response = api.AppGetByDeploymentNameResponse(
            environment_name=self.server.environments.resolve(request.environment_name)
        )
        if app is not None:
            response.app_id = app.app_id
            response.lifecycle.CopyFrom(self._lifecycle(app))
        return response

    async def AppLookup(self, request: api.AppLookupRequest) -> api.AppLookupResponse:
        app = self.deployed(request.app_name, request.environment_name)
        if app is None:
            raise _no_such_app(request.app_name, request.environment_name)
        return api.AppLookupResponse(app_id=app.app_id)

    async def AppGetOrCreate(self, request: api.AppGetOrCreateRequest) -> api.AppGetOrCreateResponse:
        app = self.deployed(request.app_name, request.environment_name)
        if app is None:
            if request.object_creation_type != api.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise _no_such_app(request.app_name, request.environment_name)
            created = await self.AppCreate(
                api.AppCreateRequest(
                    description=request.app_name,
                    environment_name=request.environment_name,
                    app_state=api.APP_STATE_DEPLOYED,
                )
            )
            app = self.apps[created.app_id]
            app.name = request.app_name
            app.deployed_at = app.created_at
            self.server.store.put(TABLE, app.app_id, app.to_bytes())
        response = api.AppGetOrCreateResponse(app_id=app.app_id)
        if "handle_metadata" in response.DESCRIPTOR.fields_by_name:  # not before modal 1.6
            response.handle_metadata.CopyFrom(self._handle(app))
        return response

    async def AppHeartbeat(self, request: api.AppHeartbeatRequest) -> Empty:
        self.get(request.app_id).last_heartbeat = self.server.clock.time()
        return Empty()

    async def AppPublish(self, request: api.AppPublishRequest) -> api.AppPublishResponse:
        app = self.get(request.app_id)
        if app.state == api.APP_STATE_STOPPED:
            raise RpcError(Status.FAILED_PRECONDITION, f"App {app.app_id} has been stopped.")
        if getattr(request, "staged", False):  # not before modal 1.6
            raise RpcError(Status.UNIMPLEMENTED, "The local Modal server has no staged deployments.")
        self.server.functions.check_created(request)
        if request.name and request.app_state == api.APP_STATE_DEPLOYED:
            holder = self.deployed(request.name, app.environment)
            if holder is not None and holder is not app:
                # Two first deployments at the same time. What Modal does isn't documented.
                raise RpcError(
                    Status.FAILED_PRECONDITION,
                    f"Another app was deployed as '{request.name}' meanwhile. Deploy again.",
                )
        if self._unchanged(app, request):
            self.server.functions.discard_staged(app)
            # Without deployed_at, which means that there was nothing to do.
            return api.AppPublishResponse(
                url=self.page_url(app), server_warnings=await self._image_warnings(app)
            )
        app.name = request.name or app.name
        # `modal serve` publishes its running app again, without saying what it is.
        app.state = request.app_state or app.state
        app.function_ids = dict(request.function_ids)
        app.class_ids = dict(request.class_ids)
        app.tags = dict(request.tags)
        version = request.client_version or caller().client_version
        await self._put_in_force(app, request.deployment_tag, version)
        return api.AppPublishResponse(
            url=self.page_url(app),
            deployed_at=app.deployed_at,
            server_warnings=await self._image_warnings(app),
        )

    async def AppRollover(self, request: api.AppRolloverRequest) -> api.AppRolloverResponse:
        app = self.get(request.app_id)
        if not app.deployed:
            raise RpcError(Status.FAILED_PRECONDITION, f"App {app.app_id} is not deployed.")
        await self._put_in_force(app, "", caller().client_version)
        return api.AppRolloverResponse(url=self.page_url(app), deployed_at=app.deployed_at)

    def _unchanged(self, app: App, request: api.AppPublishRequest) -> bool:
        """Whether this publish would change nothing, which the SDK reports as "no changes detected". What
        Modal compares isn't documented; here it is everything that a deployment says.
        """
        return (
            app.running
            and request.app_state in (app.state, api.APP_STATE_UNSPECIFIED)
            and request.name in (app.name, "")
            and not request.deployment_tag
            and app.function_ids == dict(request.function_ids)
            and app.class_ids == dict(request.class_ids)
            and app.tags == dict(request.tags)
            and self.server.functions.unchanged(app)
        )

    async def _put_in_force(self, app: App, tag: str, client_version: str) -> None:
        """A new version of the app: new containers for what waits, the old ones end what they run."""
        now = self.server.clock.time()
        functions = self.server.functions
        with self.server.store.transaction():
            app.deployed_at = now
            app.generation += 1
            app.history.append(
                {"version": app.generation, "deployed_at": now, "tag": tag, "client_version": client_version}
            )
            functions.publish(app)
            if app.deployed:
                self.server.store.put(TABLE, app.app_id, app.to_bytes())
        self.server.engine.supersede(app)
        self.server.schedules.publish(app)
        await self.server.web_functions.publish(app)
        functions.warm(app)
        for record in functions.of(app):
            if record.definition is not None:
                self.server.engine.spawn_background(self.server.workers.prepare(record.definition))

    async def _image_warnings(self, app: App) -> list[api.Warning]:
        definitions = [record.definition for record in self.server.functions.of(app)]
        return await self.server.images.warnings({each.image_id for each in definitions if each is not None})

    async def AppClientDisconnect(self, request: api.AppClientDisconnectRequest) -> Empty:
        app = self.apps.get(request.app_id)
        if app is not None and app.state in (api.APP_STATE_INITIALIZING, api.APP_STATE_EPHEMERAL):
            self._end(app)
        elif app is not None and app.state == api.APP_STATE_DETACHED:
            app.last_heartbeat = 0.0
            self._end_if_abandoned(app)
        return Empty()

    async def AppStop(self, request: api.AppStopRequest) -> Empty:
        app = self.get(request.app_id)
        if app.state != api.APP_STATE_STOPPED:
            self._end(app)
        return Empty()

    async def end_environment(self, environment: str) -> None:
        """Stop and forget every app in an environment that is being deleted; returns when none of them has
        containers any more.
        """
        apps = [app for app in self.apps.values() if app.environment == environment]
        for app in apps:
            if app.state != api.APP_STATE_STOPPED:
                self._end(app)
        ended = {app.app_id for app in apps}
        tasks = [task for task in self.server.engine.tasks.values() if task.app_id in ended]
        await asyncio.gather(*(task.exited.wait() for task in tasks))
        for app_id in ended:
            self.apps.pop(app_id, None)

    def rename_environment(self, old: str, new: str) -> None:
        """The environment `old` is called `new` from now on."""
        for app in self.apps.values():
            if app.environment == old:
                app.environment = new
                if app.deployed:
                    self.server.store.put(TABLE, app.app_id, app.to_bytes())
        for task in self.server.engine.tasks.values():
            if task.environment == old:
                task.environment = new

    def _end(self, app: App) -> None:
        app.state = api.APP_STATE_STOPPED
        app.stopped_at = self.server.clock.time()
        self.server.schedules.cancel(app)
        self.server.engine.end_app(app)
        with self.server.store.transaction():
            self.server.functions.forget(app)
            self.server.store.delete(TABLE, app.app_id)
        self.server.logs.app_ended(app.app_id)
        self.server.engine.spawn_background(self._release(app))
        stopped = [a for a in self.apps.values() if a.state == api.APP_STATE_STOPPED]
        for old in sorted(stopped, key=lambda a: a.stopped_at)[:-STOPPED_APPS_KEPT]:
            del self.apps[old.app_id]

    async def _release(self, app: App) -> None:
        """Remove the anonymous objects that the app owned, once no container of it uses them any more."""
        tasks = [task for task in self.server.engine.tasks.values() if task.app_id == app.app_id]
        await asyncio.gather(*(task.exited.wait() for task in tasks))
        for service in self._object_services():
            await service.release_app(app.app_id)

    async def _release_ownerless(self) -> None:
        """Remove the anonymous objects of apps that ended with a former server."""
        for service in self._object_services():
            owners = {record.app_id for record in service.objects.all() if record.app_id}
            for app_id in owners - self.apps.keys():
                await service.release_app(app_id)

    def _object_services(self) -> tuple[ObjectService | VolumeService, ...]:
        return self.server.dicts, self.server.queues, self.server.secrets, self.server.volumes

    def clients_alive(self, seconds: float) -> None:
        """The clock has been advanced by `seconds`: nobody could send heartbeats meanwhile."""
        for app in self.apps.values():
            app.last_heartbeat += seconds

    async def _stop_abandoned(self) -> None:
        while True:
            await self.server.clock.sleep(HEARTBEAT_EXPIRY / 4)
            for app in list(self.apps.values()):
                self._end_if_abandoned(app)

    def _end_if_abandoned(self, app: App) -> None:
        """Stop an app that lives for its client, once that is gone; a detached one first ends its calls."""
        expired = app.last_heartbeat < self.server.clock.time() - HEARTBEAT_EXPIRY
        if not expired or app.state not in LIVING_FOR_THEIR_CLIENT:
            return
        calls = self.server.engine.ledger.of_app(app.app_id)
        if app.state == api.APP_STATE_DETACHED and any(call.unfinished for call in calls):
            return
        self._end(app)

    # -- reading

    async def AppGetLayout(self, request: api.AppGetLayoutRequest) -> api.AppGetLayoutResponse:
        return api.AppGetLayoutResponse(app_layout=self.server.functions.layout(self.get(request.app_id)))

    async def AppGetObjects(self, request: api.AppGetObjectsRequest) -> api.AppGetObjectsResponse:
        app = self.get(request.app_id)
        layout = self.server.functions.layout(app)
        tags = {object_id: tag for tag, object_id in [*app.function_ids.items(), *app.class_ids.items()]}
        return api.AppGetObjectsResponse(
            items=[
                api.AppGetObjectsItem(tag=tags[entry.object_id], object=entry)
                for entry in layout.objects
                if entry.object_id in tags
            ]
        )

    async def AppList(self, request: api.AppListRequest) -> api.AppListResponse:
        environment = self.server.environments.resolve(request.environment_name)
        return api.AppListResponse(
            apps=[
                api.AppListResponse.AppListItem(
                    app_id=app.app_id,
                    description=app.name or app.description,
                    name=app.name,
                    state=app.state,  # type: ignore[arg-type]
                    created_at=app.created_at,
                    stopped_at=app.stopped_at,
                    n_running_tasks=sum(
                        task.app_id == app.app_id for task in self.server.engine.tasks.values()
                    ),
                )
                for app in self.apps.values()
                if app.environment == environment
            ]
        )

    async def AppGetLifecycle(self, request: api.AppGetLifecycleRequest) -> api.AppGetLifecycleResponse:
        return api.AppGetLifecycleResponse(lifecycle=self._lifecycle(self.get(request.app_id)))

    async def AppGetInfo(self, request: api.AppGetInfoRequest) -> api.AppGetInfoResponse:
        return api.AppGetInfoResponse(info=self._handle(self.get(request.app_id)))

    async def AppGetTags(self, request: api.AppGetTagsRequest) -> api.AppGetTagsResponse:
        return api.AppGetTagsResponse(tags=self.get(request.app_id).tags)

    async def AppSetTags(self, request: api.AppSetTagsRequest) -> Empty:
        app = self.get(request.app_id)
        app.tags = dict(request.tags)
        if app.deployed:
            self.server.store.put(TABLE, app.app_id, app.to_bytes())
        return Empty()

    async def AppDeploymentHistory(
        self, request: api.AppDeploymentHistoryRequest
    ) -> api.AppDeploymentHistoryResponse:
        app = self.get(request.app_id)
        return build(
            api.AppDeploymentHistoryResponse,
            app_deployment_histories=[
                api.AppDeploymentHistory(app_id=app.app_id, **entry) for entry in reversed(app.history)
            ],
            production_app_version=app.generation,
        )

    def _lifecycle(self, app: App) -> api.AppLifecycle:
        return api.AppLifecycle(
            app_state=app.state,  # type: ignore[arg-type]
            created_at=app.created_at,
            deployed_at=app.deployed_at,
            stopped_at=app.stopped_at,
            version=app.generation,
        )

    def _handle(self, app: App) -> api.AppHandleMetadata:
        return api.AppHandleMetadata(
            description=app.name or app.description,
            app_id=app.app_id,
            environment_name=app.environment,
            lifecycle=self._lifecycle(app),
        )


def _no_such_app(name: str, environment: str) -> RpcError:
    return RpcError(
        Status.NOT_FOUND, f"App '{name}' not found in environment '{environment or 'main'}'. Is it deployed?"
    )
