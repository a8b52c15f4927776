"""The table of sources that the edge serves, kept equal to the configuration while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from caudal.connectors import Connector, Scheme
from caudal.connectors._signatures import accepting
from caudal.producers._http import Refusal

from caudal import sources
from caudal.errors import BadSettings
from caudal.settings import EdgeSettings, Settings
from caudal.sources import Source
from caudal.telemetry import DELIVERIES, DELIVERY_SECONDS, Log, logger

__all__ = ["Route", "Routes"]

LOOK_S = 1.0
TELL_S = 20.0
RETRY_S = 1.0


class Route:
    """One source, ready to use.

    Attributes:
        source: as configured.
        connector: None when no such connector is installed.
        secrets: those that are valid now.
        fault: why nothing can be taken for it, or empty.
        max_body_bytes: largest delivery.
        replay_window_s: how old a signed timestamp may be.
        scheme: how its deliveries are signed.
        ready: set when topic and schema are there.
        doubtful: deliveries are not stored; whether the topic is there still is to be looked at.
    """

    __slots__ = (
        "_counters", "_told", "connector", "doubtful", "fault", "max_body_bytes", "observe", "ready", "replay_window_s", "scheme",
        "secrets", "source",
    )  # fmt: skip

    def __init__(
        self,
        source: Source,
        connector: Connector | None,
        secrets: tuple[str, ...],
        fault: str,
        *,
        edge: EdgeSettings,
        scheme: Scheme | None,
    ) -> None:
        self.source = source
        self.connector = connector
        self.secrets = secrets
        self.fault = fault
        self.scheme = scheme
        self.max_body_bytes = source.max_body_bytes or edge.max_body_bytes
        self.replay_window_s = edge.replay_window_s if source.replay_window_s is None else source.replay_window_s
        self.ready = asyncio.Event()
        self.doubtful = False
        # looking a label up costs more than counting
        self.observe: Callable[[float], None] = DELIVERY_SECONDS.labels(source.name).observe
        self._counters: dict[str, Callable[[], None]] = {}
        self._told: dict[str, tuple[float, int]] = {}

    def count(self, outcome: str) -> None:
        """Count a delivery by its outcome."""
        counter = self._counters.get(outcome)
        if counter is None:
            counter = self._counters[outcome] = DELIVERIES.labels(self.source.name, outcome).inc
        counter()

    def refuse(self, refusal: Refusal) -> None:
        """Count a refusal, and log it unless the same was logged a moment ago: an outage or an attack must not fill the disk."""
        self.count(refusal.outcome)
        now = time.monotonic()
        last, unsaid = self._told.get(refusal.outcome, (-TELL_S, 0))
        if now - last < TELL_S:
            self._told[refusal.outcome] = last, unsaid + 1
            return
        self._told[refusal.outcome] = now, 0
        logger().warning(
            Log.DELIVERY_REFUSED,
            source=self.source.name,
            outcome=refusal.outcome,
            status=refusal.status,
            reason=refusal.reason,
            more_since_last=unsaid,
        )


class Routes:
    """Sources by name. A changed file is noticed within a second; a new name at once.

    Args:
        settings: where the sources are read from.
        connectors: by name.
        prepare: makes a source's topic and schema; blocks and is called in a thread of its own.
        check: gives the sources that were prepared and have lost their topic; blocks.

    Raises:
        BadSettings: the files can't be read. Once running, a bad file is reported and what was read before stays.
    """

    def __init__(
        self,
        settings: Settings,
        connectors: Mapping[str, Connector],
        prepare: Callable[[str], None],
        check: Callable[[], Collection[str]],
    ) -> None:
        self._settings = settings
        self._connectors = connectors
        self._prepare = prepare
        self._check = check
        self._routes: dict[str, Route] = {}
        self._watch = sources.Watch(settings)
        self._wake = threading.Event()
        self._stopping = False
        self._watch.changed()
        self._load()

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes.values())

    def get(self, name: str) -> Route | None:
        """The route of a source."""
        route = self._routes.get(name)
        if route is None:
            self._refresh()
            route = self._routes.get(name)
        return route

    def doubt(self, name: str) -> None:
        """A delivery could not be stored: see whether the source's topic is there still, and make it again when it isn't."""
        route = self._routes.get(name)
        if route is not None and not route.doubtful:
            route.doubtful = True
            self._wake.set()

    def start(self) -> None:
        """Keep the table fresh from now on, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._keeper = threading.Thread(target=self._keep, name="capture-topics", daemon=True)
        self._keeper.start()
        self._look()

    def stop(self) -> None:
        """Stop keeping it."""
        self._timer.cancel()
        self._stopping = True
        self._wake.set()

    def _look(self) -> None:
        self._refresh()
        self._timer = self._loop.call_later(LOOK_S, self._look)

    def _refresh(self) -> None:
        if not self._watch.changed():
            return
        try:
            self._load()
        except BadSettings as exc:
            logger().error(Log.SOURCES_REFUSED, reason=str(exc))

    def _load(self) -> None:
        loaded = sources.load(self._settings)
        routes = {}
        for name, source in loaded.items():
            route = self._route(loaded, source)
            before = self._routes.get(name)
            if before is not None:
                route.ready = before.ready
            if route.fault:
                logger().error(Log.SOURCE_UNUSABLE, source=name, reason=route.fault)
            routes[name] = route
        self._routes = routes
        logger().info(Log.SOURCES_LOADED, sources=sorted(routes))
        self._wake.set()

    def _route(self, loaded: sources.Sources, source: Source) -> Route:
        connector = self._connectors.get(source.connector)
        secrets: tuple[str, ...] = ()
        fault = "" if connector else f"there is no connector {source.connector} (`caudal connectors` lists them)"
        scheme: Scheme | None = None
        try:
            secrets = loaded.secrets(source.name)
            scheme = accepting(connector.verify, source.signature_versions) if connector else None
        except BadSettings as exc:
            fault = fault or str(exc)
        return Route(source, connector, secrets, fault, edge=self._settings.edge, scheme=scheme)

    def _keep(self) -> None:
        """Prepare what is not ready, again and again until it is: Kafka may come up after the edge, and topics may be deleted."""
        told = ""
        while not self._stopping:
            failed = False
            lost = self._lost()
            for route in list(self._routes.values()):
                if route.fault or (route.ready.is_set() and route.source.name not in lost):
                    continue
                try:
                    self._prepare(route.source.name)
                except Exception as exc:  # whatever it is, deliveries wait for it to pass, and the thread must live
                    failed = True
                    if str(exc) != told:
                        told = str(exc)
                        logger().error(Log.SERVER_UNREACHABLE, source=route.source.name, reason=told)
                else:
                    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                        self._loop.call_soon_threadsafe(route.ready.set)
            self._wake.wait(RETRY_S if failed else None)
            self._wake.clear()

    def _lost(self) -> Collection[str]:
        """When deliveries could not be stored: the sources whose topic is gone. Their deliveries wait until it is made again."""
        doubted = [route for route in list(self._routes.values()) if route.doubtful]
        if not doubted:
            return ()
        for route in doubted:
            route.doubtful = False
        try:
            lost = self._check()
        except Exception:  # an outage: the next delivery that can't be stored asks again
            return ()
        for route in list(self._routes.values()):
            if route.source.name in lost:
                logger().error(
                    Log.SOURCE_UNUSABLE, source=route.source.name, reason="its topic is gone and is made again"
                )
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                    self._loop.call_soon_threadsafe(route.ready.clear)
        return lost
