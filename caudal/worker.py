"""The worker: one Faust app whose agents translate captures and project changes, fed by pumps.

Faust gives the agents, their supervision, timers, the health and metrics page, and the topic of operators' commands. Its own consumer
carries nothing but those commands: it may be slow or lose its way, and the data path goes on (see processors/_pump.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import orjson
import prometheus_client
import uvloop

from caudal import access, generations, kafka, offsets, postgres, sources
from caudal._nightly import Nightly
from caudal._periodic import Periodic
from caudal._scheduled import Reporting
from caudal.connections import is_loopback
from caudal.errors import BadSettings, CaudalError, Fatal, LostPartition, Retryable
from caudal.presence import announced
from caudal.processors._pump import Feed, Partition, Pump, Stage
from caudal.schemas.codec import Codec, Registry
from caudal.settings import Settings
from caudal.supervisor import ROLES
from caudal.telemetry import Log, Seldom, logger

if TYPE_CHECKING:
    from caudal.projections._runner import Runner
    from caudal.projections.membership.stage import Memberships

__all__ = ["run"]

COMMANDS = ("pause", "resume")
HOST = "127.0.0.1"
REPLAY = "replay"
"""Not a worker's role, but it can be paused like one: a replay that loads or translates looks into hub.control between chunks."""
CAPTURES_MAX = 2_000
"""Most captures of one batch: a capture holds a whole delivery, of some kilobytes, and bounds the worker's memory."""
SWITCH_S = 0.0005
"""How long a thread that computes keeps the interpreter from one whose answer has come. A batch asks PostgreSQL some thirty times; with
Python's own 5 ms each answer would wait that long while the other step translates or decodes."""
STOP_S = 10.0
"""How long each step of stopping Faust may take."""
_WRITTEN = (kafka.CHANGES, kafka.PROFILES, kafka.METRICS, kafka.SEGMENTS, kafka.DEAD_LETTERS)
"""Topics that a worker writes: their schemas are registered before it writes anything."""


def run(settings: Settings, *, roles: Sequence[str] = ROLES) -> None:
    """Run a worker until SIGTERM or SIGINT; what is being applied is finished first. Call it in the main thread.

    Args:
        settings: resolved settings (servers known), schema hub migrated.
        roles: which of `ROLES` to run.

    Raises:
        Fatal: something that only a human can mend.
        Retryable: a server that is needed to start can't be reached.
    """
    unknown = set(roles) - set(ROLES)
    if unknown or not roles:
        raise BadSettings(f"no worker role is named {', '.join(sorted(unknown)) or 'so'}", hint=" or ".join(ROLES))
    sys.setswitchinterval(SWITCH_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if not runner.run(_Worker(settings, roles).run()):
            # all of ours is closed; what is left of Faust would keep the process from ending
            logging.shutdown()
            os._exit(0)


class _Worker:
    def __init__(self, settings: Settings, roles: Sequence[str]) -> None:
        self._settings = settings
        self._roles = roles
        self._stages: dict[str, Stage[Any]] = {}
        self._pumps: dict[str, Pump[Any]] = {}
        self._generation = 0
        self._told = Seldom()
        self._started = asyncio.Event()

    async def run(self) -> bool:
        """Run until told to end; whether Faust could be stopped, too."""
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._control = _Control(self._settings)
        with _signals(loop, self._end), _quiet():
            await asyncio.to_thread(_check_session, self._settings)
            registry = Registry(self._settings)
            await asyncio.to_thread(registry.register_all, _WRITTEN)
            codec = Codec(registry)
            for role in self._roles:
                self._stages[role] = await asyncio.to_thread(_STAGES[role], self._settings, codec)
            app, port = self._app()
            beside = self._beside(codec)
            running = asyncio.ensure_future(self._run_app(app))
            try:
                self._generation = await asyncio.to_thread(self._control.generation)
                for pump in self._pumps.values():
                    await pump.start()
                for one in beside:
                    one.start()
                address = f"http://{HOST}:{port}"
                with announced(
                    self._settings.home, self._roles[0] if len(self._roles) == 1 else "worker", host=HOST, port=port
                ):
                    logger().info(Log.PROCESS_STARTED, process="worker", roles=list(self._roles), web=address)
                    await self._ended
            finally:
                for pump in self._pumps.values():
                    await pump.stop()
                for one in beside:
                    await asyncio.to_thread(one.stop)
                stopped = await self._stop_app(app, running)
                for stage in self._stages.values():
                    await asyncio.to_thread(stage.close)
                await asyncio.to_thread(self._control.close)
                registry.close()
                logger().info(Log.PROCESS_STOPPED, process="worker")
        return stopped

    def _beside(self, codec: Codec) -> tuple[Periodic | Memberships, ...]:
        """What a worker that projects does besides, in threads: of all workers one at a time."""
        if "project" not in self._roles:
            return ()
        from caudal.projections.membership.stage import Memberships
        from caudal.scores import Scoring

        settings = self._settings
        proof = (Nightly(settings, codec),) if settings.worker.verify_sample else ()
        scoring = (Scoring(settings),) if settings.worker.scores_every_h else ()
        return (*proof, *scoring, Memberships(settings), Reporting(settings))

    def _end(self, reason: BaseException | None = None) -> None:
        if not self._ended.done():
            if reason is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(reason)

    async def _run_app(self, app: Any) -> None:
        """Start the app, and end the worker when it crashes."""
        try:
            await app.start()
            self._started.set()
            await app.wait_until_stopped()
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            logger().exception(Log.PROCESS_FAILED, process="worker", step="start", error=type(exc).__name__)
            self._end(Fatal(f"the Faust app could not start: {type(exc).__name__}"))
            raise
        if app.crash_reason is not None:
            self._end(Fatal(f"the Faust app crashed: {type(app.crash_reason).__name__}"))

    async def _stop_app(self, app: Any, running: asyncio.Future[None]) -> bool:
        """Stop the app; whether that came to an end. Stopped while it starts, Faust may hang, so it first finishes starting."""
        starting: asyncio.Future[Any] = asyncio.ensure_future(self._started.wait())
        either: list[asyncio.Future[Any]] = [starting, running]
        await asyncio.wait(either, timeout=STOP_S, return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        try:
            async with asyncio.timeout(STOP_S):
                await app.stop()
        except TimeoutError:
            logger().warning(Log.PROCESS_FAILED, process="worker", step="stop")
        running.cancel()
        await asyncio.wait([running], timeout=STOP_S)
        if running.done() and not running.cancelled():
            running.exception()  # told by _run_app
        # one that never got started (its group waits for members that were killed) leaves tasks behind that nothing ends
        return running.done() and self._started.is_set()

    def _app(self) -> tuple[Any, int]:
        """The Faust app with its agents, pages and timers, not started; and the port of its pages."""
        faust = _import_faust()
        port = _free_port(self._settings.worker.web_port)
        folder = self._settings.home / "faust"  # Faust wants one; with stores in memory it keeps nothing there
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        app = faust.App(
            f"{self._settings.kafka.topic_prefix}caudal.worker",
            **_broker(faust, self._settings),
            # as for the pumps: Faust's own minute is what a worker would wait for one that was killed
            broker_session_timeout=self._settings.worker.session_timeout_ms / 1000,
            broker_heartbeat_interval=self._settings.worker.session_timeout_ms / 4000,
            datadir=folder,
            store="memory://",
            topic_disable_leader=True,
            topic_allow_declare=False,
            topic_partitions=1,
            stream_wait_empty=False,
            web_enabled=True,
            web_bind=HOST,
            web_host=HOST,
            web_port=port,
            web_in_thread=False,
            web_application_options={"middlewares": [guard(self._control.may_read_metrics)]},
            logging_config=None,
        )
        for role in self._roles:
            self._add_agent(faust, app, role)
        self._add_commands(app)
        self._add_page(app)
        app.timer(1.0)(self._look_around)
        return app, port

    def _add_agent(self, faust: Any, app: Any, role: str) -> None:
        channel = _channel_class(faust)(app)
        settings = self._settings.kafka
        topics = {"translate": lambda: _pattern(settings.topic_prefix), "project": self._log}
        pump = self._pumps[role] = Pump(
            self._settings,
            name=role,
            topic=topics[role],
            stage=self._stages[role],
            deliver=channel.put,  # not send: streams drop what is sent while Faust's own consumer is rebalancing
            batch_max=min(self._settings.worker.batch_max_events, CAPTURES_MAX if role == "translate" else sys.maxsize),
            failed=self._end,
        )
        thread = ThreadPoolExecutor(1, thread_name_prefix=role)

        @app.agent(channel, name=f"caudal.{role}")  # type: ignore[untyped-decorator]  # faust has no types
        async def agent(feeds: Any) -> None:
            pump.attach()
            loop = asyncio.get_running_loop()
            feed: Feed[Any]
            async for feed in feeds:
                try:
                    await loop.run_in_executor(thread, pump.run, feed)
                except Fatal as exc:
                    self._end(exc)
                except Exception as exc:
                    # Faust starts the agent anew, which reads again from what is stored
                    logger().exception(Log.PROCESS_FAILED, process="worker", step=role, error=type(exc).__name__)
                    await asyncio.sleep(1)
                    raise

    def _log(self) -> str:
        """The topic that is projected: the log's live generation."""
        return generations.current_topic(self._settings)

    def _add_commands(self, app: Any) -> None:
        topic = app.topic(
            kafka.topic(self._settings.kafka, kafka.COMMANDS), value_type=bytes, value_serializer="raw", internal=False
        )

        @app.agent(topic, name="caudal.commands")  # type: ignore[untyped-decorator]  # faust has no types
        async def commands(values: Any) -> None:
            async for value in values:
                command, roles = parse_command(value)
                logger().info(Log.COMMAND_RECEIVED, command=command or "unknown", roles=list(roles))
                if command is not None:
                    try:
                        await asyncio.to_thread(self._control.set_paused, roles, command == "pause")
                    except Retryable as exc:
                        logger().warning(Log.BATCH_RETRIED, step="commands", code=exc.code)

    @staticmethod
    def _add_page(app: Any) -> None:
        @app.page("/metrics/")  # type: ignore[untyped-decorator]  # faust has no types
        async def metrics(web: Any, _request: Any) -> Any:
            return web.bytes(prometheus_client.generate_latest(), content_type="text/plain; version=0.0.4")

        @app.page("/health/")  # type: ignore[untyped-decorator]  # faust has no types
        async def health(web: Any, _request: Any) -> Any:
            return web.json({"status": "ok"})

    async def _look_around(self) -> None:
        """Every second: what operators want, and which generation of the log is live."""
        try:
            paused = await asyncio.to_thread(self._control.paused)
            generation = await asyncio.to_thread(self._control.generation)
        except CaudalError as exc:
            self._told.warning(Log.SERVER_UNREACHABLE, server="postgres", code=exc.code)
            return
        if generation != self._generation and "project" in self._pumps:
            self._pumps["project"].reopen()
        self._generation = generation
        for role, pump in self._pumps.items():
            pump.pause(role in paused)


class _Control:
    """What operators want of the workers, in hub.control."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._db: Any = None

    def paused(self) -> set[str]:
        """The roles that shall not run."""
        rows = self._execute(
            "SELECT key FROM hub.control WHERE key = ANY(%s) AND value = 'true'", ([f"{r}.paused" for r in ROLES],)
        )
        return {key.removesuffix(".paused") for (key,) in rows.fetchall()}

    def generation(self) -> int:
        """The generation of the log that is live."""
        row = self._execute("SELECT number FROM hub.generation", ()).fetchone()
        return int(row[0])

    def may_read_metrics(self, token: str) -> bool:
        """Whether a token allows it."""
        grant = access.granted(self._connection(), token)
        return grant is not None and grant.allows(access.Scope.METRICS_READ)

    def set_paused(self, roles: Sequence[str], paused: bool) -> None:
        """Remember what is wanted of the roles, for all workers and for those that start later."""
        self._execute(
            """INSERT INTO hub.control (key, value) SELECT key, %s::jsonb FROM unnest(%s::text[]) key
               ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value, changed_at = now()""",
            ("true" if paused else "false", [f"{role}.paused" for role in roles]),
        )

    def close(self) -> None:
        if self._db is not None:
            self._db.close()

    def _execute(self, statement: str, values: tuple[Any, ...]) -> Any:
        connection = self._connection()
        try:
            with postgres.translated():
                return connection.execute(statement, values)
        except Retryable:
            connection.close()
            raise

    def _connection(self) -> Any:
        if self._db is None or self._db.closed:
            self._db = postgres.connect(self._settings.postgres, role="worker")
        return self._db


def guard(may_read_metrics: Callable[[str], bool]) -> Any:
    """What stands before the worker's pages: `/health/` is open, `/metrics/` needs a token, of Faust's own pages there are none.

    Only this machine's own names for itself are good in `Host`: else a page in somebody's browser could read along.
    """
    from aiohttp import web

    @web.middleware
    async def guarded(request: web.Request, handler: Any) -> Any:
        if not is_loopback(request.host):
            return web.json_response({"error": "not the worker of that host"}, status=403)
        match request.path:
            case "/health/":
                return await handler(request)
            case "/metrics/":
                scheme, _, token = request.headers.get("authorization", "").partition(" ")
                try:
                    if scheme.lower() == "bearer" and await asyncio.to_thread(may_read_metrics, token.strip()):
                        return await handler(request)
                except Retryable as exc:
                    return web.json_response({"error": exc.code}, status=503)
                return web.json_response(
                    {"error": "needs a token of metrics:read"}, status=401, headers={"WWW-Authenticate": "Bearer"}
                )
            case _:
                return web.json_response({"error": "there is nothing here"}, status=404)

    return guarded


def parse_command(value: bytes) -> tuple[str | None, tuple[str, ...]]:
    """An operator's command, `{"command": "pause" | "resume", "role": "translate" | "project" | "replay"}`; no role means the workers'."""
    try:
        stated = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None, ()
    if not isinstance(stated, dict) or stated.get("command") not in COMMANDS:
        return None, ()
    role = stated.get("role")
    if role is not None and role not in (*ROLES, REPLAY):
        return None, ()
    return stated["command"], ROLES if role is None else (role,)


class _Projecting:
    """The projection's runner as a stage."""

    def __init__(self, runner: Runner, settings: Settings) -> None:
        self._runner = runner
        self._settings = settings
        self.ids: dict[str, str] = {}
        self.prepare = runner.decode
        self.apply = runner.apply
        self.idle = runner.idle
        self.close = runner.close

    def assigned(self, partitions: Sequence[Partition]) -> None:
        self._runner.assigned([number for _, number in partitions])

    def positions(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        numbers = [number for _, number in partitions]
        stored = self._runner.positions(numbers)
        log = generations.topic(self._settings.kafka, self._runner.generation)
        if any(topic != log for topic, _ in partitions):
            raise LostPartition("the log has a new generation")  # the pump asks for its topic anew
        self._runner.recover(numbers)
        id_, stored = offsets.goes_on(self._settings, log, stored, generation=self._runner.generation)
        self.ids = {log: id_}
        return {(log, number): offset for number, offset in stored.items()}

    def revoked(self, partitions: Sequence[Partition]) -> None:
        self._runner.revoked([number for _, number in partitions])


def _translating(settings: Settings, codec: Codec) -> Stage[Any]:
    from caudal.processors.translate import Translator

    return Translator(settings, codec)


def _projecting(settings: Settings, codec: Codec) -> Stage[Any]:
    from caudal.projections import Runner

    priorities = {name: source.priority for name, source in sources.load(settings).items()}
    return _Projecting(Runner(settings, codec, priorities=priorities), settings)


_STAGES: dict[str, Callable[[Settings, Codec], Stage[Any]]] = {"translate": _translating, "project": _projecting}


def _check_session(settings: Settings) -> None:
    """See that Kafka takes the session: a group never says why nobody joins it.

    Raises:
        BadSettings: it doesn't.
        BrokerUnavailable: Kafka can't be reached.
    """
    bounds, session_ms = kafka.sessions(settings.kafka), settings.worker.session_timeout_ms
    if bounds is not None and not bounds[0] <= session_ms <= bounds[1]:
        raise BadSettings(
            f"Kafka takes sessions of {bounds[0]} to {bounds[1]} ms, not of {session_ms}",
            hint="CAUDAL_WORKER__SESSION_TIMEOUT_MS; or the brokers' group.min.session.timeout.ms and group.max.session.timeout.ms",
        )


def _pattern(prefix: str) -> str:
    """The capture topics as librdkafka's regular expression."""
    return "^" + f"{prefix}capture.".replace(".", "\\.") + ".*"


def _channel_class(faust: Any) -> Any:
    """A channel whose queue Faust's flow control leaves alone: that one follows the state of Faust's own consumer."""
    from mode.utils.queues import FlowControlEvent, ThrowableQueue

    class BatchChannel(faust.Channel):  # type: ignore[misc]  # faust is imported when it is needed
        _queue: Any

        @property
        def queue(self) -> Any:
            if self._queue is None:
                open_ = FlowControlEvent(initially_suspended=False)
                self._queue = ThrowableQueue(maxsize=0, flow_control=open_)  # the pump bounds what is under way
            return self._queue

    return BatchChannel


def _import_faust() -> Any:
    argv, sys.argv = sys.argv, sys.argv[:1]  # it looks there for options of its own command
    try:
        import faust
    finally:
        sys.argv = argv
    return faust


def _broker(faust: Any, settings: Settings) -> dict[str, Any]:
    """Librdkafka's options for Faust's driver: brokers, TLS with a CA, and SASL with a password."""
    conf = kafka.options(settings.kafka)
    servers = str(conf["bootstrap.servers"]).split(",")
    options: dict[str, Any] = {"broker": ";".join(f"kafka://{server.strip()}" for server in servers)}
    protocol = str(conf.get("security.protocol", "plaintext")).lower()
    context = None
    if protocol.endswith("ssl"):
        context = ssl.create_default_context(cafile=conf.get("ssl.ca.location"))
        if certificate := conf.get("ssl.certificate.location"):
            context.load_cert_chain(certificate, conf.get("ssl.key.location"), conf.get("ssl.key.password"))
    if protocol.startswith("sasl"):
        options["broker_credentials"] = faust.SASLCredentials(
            username=conf.get("sasl.username"),
            password=conf.get("sasl.password"),
            mechanism=conf.get("sasl.mechanism", conf.get("sasl.mechanisms", "PLAIN")),
            ssl_context=context,
        )
    elif context is not None:
        options["broker_credentials"] = faust.SSLCredentials(context)
    return options


def _free_port(wanted: int) -> int:
    """The wanted port, or any free one when it is 0 or taken (by another worker of this machine)."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise Fatal("no port of this machine is free")


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, end: Callable[[], None]) -> Iterator[None]:
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Faust and its driver tell their whole life; what matters of it is logged here."""
    loggers = [logging.getLogger(name) for name in ("faust", "mode", "aiokafka", "kafka")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
