"""Faust as shipped, with its own consumer: an agent that takes up to a thousand messages, and our sink."""

import sys

from _sink import ACCESS, FOLDER, GROUP, KAFKA, TOPIC, Sink, decode, started

TAKE, WITHIN_S = 1_000, 0.05

arguments, sys.argv = sys.argv, ["faust", "worker", "-l", "warn", "--without-web"]
import faust  # noqa: E402 - it reads the arguments

app = faust.App(
    GROUP,
    broker=f"kafka://{KAFKA}",
    broker_credentials=faust.SASLCredentials(
        username=ACCESS["sasl.username"], password=ACCESS["sasl.password"], mechanism=ACCESS["sasl.mechanism"]
    )
    if "sasl.username" in ACCESS
    else None,
    store="memory://",
    web_enabled=False,
    topic_disable_leader=True,
    consumer_auto_offset_reset="earliest",
    consumer_max_fetch_size=4 * 1024**2,
    datadir=f"{FOLDER}/faust",
)
topic = app.topic(TOPIC, value_type=bytes, value_serializer="raw", key_serializer="raw")
sink = Sink()


@app.agent(topic)
async def upsert(stream):  # type: ignore[no-untyped-def]
    """Write what is taken."""
    async for messages in stream.take(TAKE, within=WITHIN_S):
        started()
        sink.write([decode(message) for message in messages])


app.main()
