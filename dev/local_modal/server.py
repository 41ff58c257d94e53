"""The server: one store, one clock, two listeners (gRPC and HTTP) and the services, wired in one place."""

from __future__ import annotations

import logging
import random
import socket
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from grpclib.config import Configuration

from local_modal import fault_http
from local_modal.access import Access
from local_modal.clock import Clock, SystemClock
from local_modal.desk import Desk
from local_modal.engine import Engine
from local_modal.fault_journal import Journal, Plan
from local_modal.fault_targets import Targets
from local_modal.faults import Faults
from local_modal.grpc_server import GrpcServer
from local_modal.quotas import Quotas
from local_modal.rpc import Dispatcher, Service
from local_modal.scheduler import CANCEL_LIMIT
from local_modal.services.apps import AppService
from local_modal.services.blobs import BlobService
from local_modal.services.calls import CallService
from local_modal.services.containers import ContainerService
from local_modal.services.control import ControlService
from local_modal.services.dicts import DictService
from local_modal.services.environments import EnvironmentService
from local_modal.services.fault_control import FaultControlService
from local_modal.services.functions import FunctionService
from local_modal.services.images import REFUSE, ImageService
from local_modal.services.inspection import InspectionService
from local_modal.services.logs import LogService
from local_modal.services.mounts import MountService
from local_modal.services.queues import QueueService
from local_modal.services.scaling import ScalingService
from local_modal.services.schedules import ScheduleService
from local_modal.services.secrets import SecretService
from local_modal.services.status import StatusService
from local_modal.services.sweeping import SweepService
from local_modal.services.tunnels import TunnelService
from local_modal.services.volumes import VolumeService
from local_modal.services.web_functions import WebFunctionService
from local_modal.stats import Stats
from local_modal.store import Store
from local_modal.web import HttpSide
from local_modal.worker import Workers

log = logging.getLogger(__name__)

CLOCK = "clock"
"""The table with the seconds by which the clock has been advanced, so that a restart doesn't put it back."""
WINDOW_BYTES = 64 * 2**20
"""HTTP/2 windows wide enough that a payload of the maximal size doesn't wait for round trips."""


@dataclass(frozen=True)
class Options:
    """How a server is started; see `python -m local_modal serve --help`."""

    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    max_containers: int = 12
    python: str = sys.executable
    image_pythons: tuple[tuple[str, str], ...] = field(default=())
    """(glob on an image's FROM line, interpreter) pairs; the first match stands in for the image."""
    missing_packages: str = REFUSE
    """What happens to the build of an image with packages that its interpreter lacks: refuse or warn."""
    cancel_grace: float = 2.0
    """Seconds between the cancel event for an input that timed out and SIGINT to its container."""
    cancel_limit: float = CANCEL_LIMIT
    """Seconds that user code may ignore a cancel; its container then ends as after a timeout."""
    stop_grace: float = 10.0
    """Seconds between SIGINT to a container and SIGKILL."""
    preemption_grace: float = 30.0
    """The same for a container that is preempted; 30 s is what Modal documents for exit handlers then."""
    require_isolation: bool = False
    """Refuse to start where containers can't be kept apart or limited by the kernel."""
    web_timeout: float = 150.0
    """Seconds until a web request without a response is redirected to a URL where it can be fetched."""
    fresh_monotonic: bool = False
    """The monotonic clock of a container begins near zero, as on a machine that has just started."""
    zygote: bool = True
    """Fork containers from a process that has imported `modal`, instead of starting an interpreter each."""
    share: tuple[Path, ...] = ()
    """Directories of the host that isolated containers see, and may write to; nothing in Modal's cloud is
    like them.
    """
    seed: int | None = None
    """From which all chance of fault injection derives; None = one at random."""
    plan: Plan | None = None
    """Faults to be set and actions to be taken, in seconds from the start."""
    background_commits: float = 5.0
    """Seconds between the commits of all mounted volumes; 0 for none. Modal's guide says "every few seconds"
    without a number."""
    copy_volumes: bool = False
    """Never mount volumes as overlays."""
    quotas: Quotas = field(default_factory=Quotas)
    """What is accepted and kept, to begin with."""


class Server:
    """Everything a service may reach. Construction loads nothing; `start` does."""

    def __init__(self, options: Options, clock: Clock | None = None) -> None:
        self.options = options
        self.state_dir = options.state_dir.resolve()
        self.quotas = replace(options.quotas)
        self.store = Store(self.state_dir)
        self.clock: Clock = clock or SystemClock(float(self.store.load(CLOCK).get("offset", b"0")))
        self.access = Access(self.state_dir)
        self.stats = Stats()
        self.seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
        self.journal = Journal(self.state_dir)
        # By real time: putting the clock forward must not end them.
        self.faults = Faults(self.seed, time.monotonic, self.journal.write)
        self.targets = Targets(self)
        self.http = HttpSide(options.host, self.access, [fault_http.middleware(self.faults)])
        self.workers = Workers(self)
        self.engine = Engine(self)
        self.desk = Desk(self)
        self.environments = EnvironmentService(self)
        self.blobs = BlobService(self)
        self.secrets = SecretService(self)
        self.dicts = DictService(self)
        self.queues = QueueService(self)
        self.volumes = VolumeService(self)
        self.mounts = MountService(self)
        self.images = ImageService(self)
        self.logs = LogService(self)
        self.functions = FunctionService(self)
        self.scaling = ScalingService(self)
        self.apps = AppService(self)
        self.web_functions = WebFunctionService(self)
        self.calls = CallService(self)
        self.containers = ContainerService(self)
        self.tunnels = TunnelService(self)
        self.schedules = ScheduleService(self)
        self.inspection = InspectionService(self)
        self.sweeping = SweepService(self)
        self.control = ControlService(self)
        self.fault_control = FaultControlService(self)
        self.status = StatusService(self)
        # In the order of their start; each may use the ones before it.
        self.services: dict[str, Service] = {
            "environments": self.environments,
            "blobs": self.blobs,
            "secrets": self.secrets,
            "dicts": self.dicts,
            "queues": self.queues,
            "volumes": self.volumes,
            "mounts": self.mounts,
            "images": self.images,
            "logs": self.logs,
            "functions": self.functions,
            "scaling": self.scaling,
            "apps": self.apps,
            "web_functions": self.web_functions,
            "calls": self.calls,
            "containers": self.containers,
            "tunnels": self.tunnels,
            "schedules": self.schedules,
            "inspection": self.inspection,
            "sweeping": self.sweeping,
            "control": self.control,
            "fault_control": self.fault_control,
            "status": self.status,
        }
        self._grpc: GrpcServer | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """What clients put into MODAL_SERVER_URL."""
        return f"http://{self.options.host}:{self.port}"

    async def start(self) -> None:
        """Load the state, start the services and listen.

        Raises:
            OSError: the port is taken.
        """
        # First the port: everything else changes files.
        listener = socket.create_server((self.options.host, self.options.port), backlog=1024)
        # Accepted connections inherit it. asyncio only sets it where a socket names its protocol, and each
        # answer would otherwise wait 40 ms for the acknowledgement of the one before.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = listener.getsockname()[1]
        await self.workers.start()
        for service in self.services.values():
            await service.start()
        await self.http.start()
        self._grpc = GrpcServer(
            [Dispatcher(self.services.values(), self.access, self.stats, self.faults, self.targets.rpc)],
            config=Configuration(
                http2_connection_window_size=WINDOW_BYTES, http2_stream_window_size=WINDOW_BYTES
            ),
        )
        await self._grpc.start(sock=listener)
        await self.engine.start()
        self.functions.warm_all()

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass at once: deadlines that lie in between are over, schedules that became due fire
        once. Clients count as alive, for they could send no heartbeats meanwhile.

        Raises:
            ValueError: `seconds` is negative, or the clock is one that can't be advanced.
        """
        if not isinstance(self.clock, SystemClock):
            raise ValueError("this server's clock can't be advanced")
        self.clock.advance(seconds)
        self.store.put(CLOCK, "offset", repr(self.clock.offset).encode())
        self.apps.clients_alive(seconds)
        for service in (self.dicts, self.queues, self.secrets, self.volumes):
            service.objects.clients_alive(seconds)
        self.engine.kick()

    async def stop(self) -> None:
        """End the containers, stop listening, stop the services, release the state directory."""
        await self.engine.stop()
        if self._grpc is not None:
            self._grpc.close()
            await self._grpc.wait_closed()
        for service in reversed(self.services.values()):
            await service.stop()
        await self.http.stop()
        await self.workers.stop()
        self.store.close()
