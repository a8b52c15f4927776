"""The hand-written loop: consume a batch, decode it, COPY and upsert, commit; offsets follow the commit."""

from _sink import ACCESS, BATCH, GROUP, KAFKA, QUICK, TOPIC, Sink, decode, fork, started
from confluent_kafka import Consumer

WAIT_S = 0.02

fork()
consumer = Consumer(
    {
        "bootstrap.servers": KAFKA,
        "group.id": GROUP,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        **ACCESS,
        **QUICK,
    }
)
consumer.subscribe([TOPIC])
sink = Sink()
while True:
    messages = consumer.consume(BATCH, WAIT_S)
    if messages:
        started()
        sink.write([decode(message.value()) for message in messages])
        consumer.commit(asynchronous=True)
