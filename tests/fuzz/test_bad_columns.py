"""Avro bytes on the log that are damaged or lie: the decoders find each, spare its neighbours, and never take long or much."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from random import Random

from caudal.projections import _vet
from caudal.projections._few import prepare
from caudal.schemas import EVENT_TYPES
from caudal.schemas.codec import Codec, LocalRegistry
from examples import LONG, examples
from hypothesis import given
from logs import Record
from record_values import RANDOMS, event, plain, varint

CODEC = Codec(LocalRegistry())
LIMITS = [0, -1, 1, 2**31 - 1, 2**31, -(2**31), 2**32, 2**40, 2**62, 2**63 - 1, -(2**63)]


def hurt(rng: Random, message: bytes) -> bytes:
    """A message with lengths, counts, branches or any bytes of it changed, its schema's id or its magic byte another."""
    body = bytearray(message[5:])
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(body) + 1)
        match rng.randrange(7):
            case 0:
                body[at : at + rng.randrange(3)] = varint(rng.choice(LIMITS))
            case 1:
                body[at : at + 1] = varint(rng.randint(-(2**63), 2**63 - 1) >> rng.randrange(64))
            case 2:
                del body[at:]
            case 3:
                body[at:at] = body[rng.randrange(len(body) + 1) :]
            case 4:
                body[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
            case 5:
                body[at:at] = b"\xff" * rng.randint(1, 12)
            case _:
                body += bytes(rng.randrange(1, 3000))
    header = (
        message[:5]
        if rng.random() < 0.8
        else b"%c" % rng.choice((0, 0, 0, 1, 255)) + rng.randrange(40).to_bytes(4, "big")
    )
    return header + bytes(body)


def decode(seed: int, batches: int) -> None:
    """Decode so many batches of good and bad messages: every one is either a row or put aside, and the good are as if alone."""
    rng = Random(seed)
    for _ in range(batches):
        names = rng.choices(sorted(EVENT_TYPES), k=rng.randint(1, 3))
        good = [CODEC.encode_event(event(rng, rng.choice(names))) for _ in range(rng.randint(1, 6))]
        bad = [hurt(rng, rng.choice(good)) for _ in range(rng.randint(1, 40))]
        messages = good + bad
        rng.shuffle(messages)
        columns = CODEC.decode_columns(messages)
        rows = {place: (name, row) for name, batch, places in columns.batches
                for place, row in zip(places.to_pylist(), batch.to_pylist(maps_as_pydicts="strict"), strict=True)}  # fmt: skip
        put_aside = {place for place, _ in columns.bad}
        assert not rows.keys() & put_aside
        assert rows.keys() | put_aside == set(range(len(messages)))
        for place, message in enumerate(messages):
            if message in good:
                assert rows[place] == CODEC.decode(message)
            if few := CODEC.decode_few([message]):  # whatever it takes is a record
                assert repr(few) == repr([(rows[place][0], [plain(rows[place][1])], [0])])
        prepare(CODEC, [Record((0, place), message) for place, message in enumerate(messages)])


@examples(10)
@given(RANDOMS)
def test_every_message_is_a_row_or_put_aside_and_good_neighbours_are_as_if_alone(rng: Random) -> None:
    decode(rng.getrandbits(64), 10)


def test_no_bytes_take_the_process_down_or_more_memory_than_it_may_have() -> None:
    batches = 2_000 if LONG else 30
    command = [sys.executable, "-m", "test_bad_columns", str(batches)]
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=800, check=False)
    assert (done.stdout, done.returncode) == ("alive\n", 0), done.stderr[-2000:]


@examples(30)
@given(RANDOMS)
def test_what_is_wrong_with_a_batch_is_what_is_wrong_with_each_of_its_events(rng: Random) -> None:
    name = rng.choice(sorted(EVENT_TYPES))
    events = [CODEC.encode_event(event(rng, name)) for _ in range(rng.randint(1, 40))]
    ((_, together, _),) = CODEC.decode_columns(events).batches
    alone = {}
    for row in range(len(together)):
        record = together.take([row])
        if reason := _vet.faults(name, record).get(0):
            alone[row] = reason
        assert bool(reason) == bool(_vet._fault(name, record.to_pylist()[0]))
        assert reason is not None or name == "FieldCorrected" or _vet._sound(name, record)
    assert _vet.faults(name, together) == alone


def main(batches: int) -> None:
    """Decode under a limit on memory: a length or count that is believed would need more."""
    decode(0, 10)  # what is loaded and kept is there before the limit
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
    decode(1, batches)
    print("alive")


if __name__ == "__main__":
    main(int(sys.argv[1]))
