"""One thread for the tests and for the programs they start: threads that wait for each other cost more."""

import os

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the programs that tests start
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
torch.set_num_threads(1)

# Spaces of which a smaller one of the same family goes through the same tests; `pytest -m ""` runs these too.
SIBLINGS = (
    *("attentivenas", "bignas", "ofa_mbv3_w12", "ofa_proxyless", "mobilenetv2_slimmable", "resnet_slimmable"),
    *("autoformer_small", "autoformer_base", "nb_macro_separate"),
)
CONFORMANCE = ("test_net", "test_cost", "test_space", "test_memory_cost", "test_init", "test_mixture")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what repeats a test on another space of the same family."""
    for item in items:
        named = item.name.partition("[")[2].rstrip("]").split("-")
        if item.path.stem.startswith(CONFORMANCE) and any(name in SIBLINGS for name in named):
            item.add_marker("exhaustive")
