"""Values that Kafka, PostgreSQL or a library would refuse later, when nobody looks, are refused when settings are read."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from caudal import kafka, settings
from caudal.errors import BadSettings, LogTruncated
from caudal.settings import KafkaSettings


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("worker", "session_timeout_ms", 2_000_000_000),
        ("worker", "session_timeout_ms", 0),
        ("worker", "batch_max_events", 0),
        ("worker", "batch_max_events", 2_000_000),
        ("worker", "web_port", -1),
        ("worker", "scores_every_h", 10**12),
        ("edge", "port", 65_536),
        ("edge", "produce_timeout_s", "nan"),
        ("edge", "produce_timeout_s", "inf"),
        ("edge", "produce_timeout_s", 0.0001),
        ("edge", "receive_timeout_s", "inf"),
        ("edge", "replay_window_s", 10**15),
        ("serving", "min_token_wait_s", "inf"),
        ("postgres", "statement_timeout_s", 0.0001),
        ("postgres", "statement_timeout_s", 10_000_000),
        ("postgres", "statement_timeout_s", "nan"),
        ("postgres", "pool_size", 0),
        ("kafka", "partitions", 0),
        ("kafka", "replication_factor", 40_000),
        ("kafka", "topic_prefix", "a b"),
        ("kafka", "topic_prefix", "a" * 200),
        ("embedded", "kafka_heap_mb", 10**9),
    ],
)
def test_a_value_that_would_be_refused_later_is_refused_at_once(group, name, value):
    with pytest.raises(BadSettings, match=f"{group}.{name}"):
        settings.load(**{group: {name: value}})


@pytest.mark.parametrize(
    ("name", "value"), [("log_level", "loud"), ("default_region", "Brazil"), ("default_region", "br")]
)
def test_a_word_that_means_nothing_is_refused_at_once(name, value):
    with pytest.raises(BadSettings, match=name):
        settings.load(**{name: value})


@pytest.mark.parametrize("options", [{"no.such.option": "1"}, {"security.protocol": "nonsense"}])
@pytest.mark.parametrize("client", [kafka.admin, kafka.producer, lambda one: kafka.consumer(one, "group")])
def test_an_option_that_librdkafka_does_not_know_is_a_bad_setting(options, client):
    with pytest.raises(BadSettings, match=next(iter(options))):
        client(KafkaSettings(bootstrap_servers="127.0.0.1:1", options=options))


def test_an_offset_that_is_not_there_is_a_truncated_log():
    for code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        assert isinstance(kafka.translate_error(KafkaException(KafkaError(code))), LogTruncated)
