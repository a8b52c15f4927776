"""Quix Streams with the PostgreSQL sink that it ships, its commits far apart."""

from typing import Any

from _sink import ACCESS, DSN, FOLDER, GROUP, KAFKA, QUICK, TOPIC, started
from psycopg.conninfo import conninfo_to_dict
from quixstreams import Application
from quixstreams.kafka import ConnectionConfig
from quixstreams.sinks.community.postgresql import PostgreSQLSink


class Sink(PostgreSQLSink):
    """Theirs; it says when the first message is there."""

    def add(self, *args: Any, **named: Any) -> Any:
        """The first row; the others go straight to theirs."""
        started()
        Sink.add = PostgreSQLSink.add  # type: ignore[method-assign]
        return super().add(*args, **named)


server = conninfo_to_dict(DSN)
app = Application(
    broker_address=ConnectionConfig.from_librdkafka_dict({"bootstrap.servers": KAFKA, **ACCESS}),
    consumer_group=GROUP,
    auto_offset_reset="earliest",
    loglevel="WARNING",
    commit_interval=1.0,
    commit_every=10_000,
    auto_create_topics=False,
    use_changelog_topics=False,
    state_dir=f"{FOLDER}/quix",
    consumer_extra_config=QUICK,
    consumer_poll_timeout=0.02,
)
sink = Sink(
    host=server["host"],
    port=int(server["port"]),
    dbname=server["dbname"],
    user=server["user"],
    password=server["password"],
    table_name="profile",
    primary_key_columns="id",
    upsert_on_primary_key=True,
    include_metadata=False,
    schema_auto_update=False,
)
app.dataframe(app.topic(TOPIC, value_deserializer="json", key_deserializer="str")).sink(sink)
app.run()
