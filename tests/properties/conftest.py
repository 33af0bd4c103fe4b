"""How many examples: `pytest tests/properties` tries 100 per property, the nightly profile 2,000.

All properties: `pytest tests/properties -m "" --hypothesis-profile=nightly -o faulthandler_timeout=3600`.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings

# Building a network takes longer than drawing an integer; a failure prints the line that repeats it.
COMMON = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "phases": (Phase.explicit, Phase.generate, Phase.shrink),
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("ci", max_examples=100, derandomize=True, **COMMON)
settings.register_profile("nightly", max_examples=2000, **COMMON)


def pytest_configure(config: pytest.Config) -> None:
    """The small profile, unless another one is asked for."""
    if not config.getoption("--hypothesis-profile", default=None):
        settings.load_profile("ci")
