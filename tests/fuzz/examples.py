"""How many examples a fuzz test tries: few and always the same in `make test`, many and ever new ones in `make test-fuzz`.

The long form is the Hypothesis profile `long` (tests/conftest.py); the number given here is that of the short form.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

__all__ = ["LONG", "TIMES", "examples"]

TIMES = 50
"""How many times as many examples the long form tries."""
LONG = settings.get_current_profile_name() == "long"


def examples(number: int) -> settings:
    """Settings of a test that tries `number` examples in its short form."""
    return settings(
        max_examples=number * TIMES if LONG else number,
        derandomize=not LONG,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
