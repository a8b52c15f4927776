"""Bytewax: its Kafka source, decoding by the batch, and our sink, because it ships none for PostgreSQL."""

import bytewax.operators as op
from _sink import ACCESS, BATCH, KAFKA, QUICK, TOPIC, Row, Sink, decode, started
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition


class _Part(StatelessSinkPartition[Row]):
    def __init__(self) -> None:
        self._sink = Sink()

    def write_batch(self, items: list[Row]) -> None:
        self._sink.write(items)


class _Profiles(DynamicSink[Row]):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Part:
        return _Part()


def _decoded(messages: list[KafkaSourceMessage]) -> list[Row]:
    started()
    return [decode(message.value) for message in messages]


flow = Dataflow("race")
config = {k: str(v) for k, v in {**ACCESS, **QUICK}.items()}
source = KafkaSource(KAFKA.split(","), [TOPIC], batch_size=BATCH, add_config=config)
rows = op.flat_map_batch("decode", op.input("messages", flow, source), _decoded)
op.output("profiles", rows, _Profiles())
