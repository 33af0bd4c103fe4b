"""Small spaces of cells."""

from __future__ import annotations

from typing import Any

import supernet
from supernet.space import Space

CELLS = [{"kind": "reduce", "width": 8}, {"kind": "normal", "width": 8}, {"kind": "reduce", "width": 12}]
OPS = ["skip_connect", "max_pool_3x3", "avg_pool_3x3", "nor_conv_1x1", "dil_conv_3x3", "sep_conv_3x3", "sep_conv_5x5"]


def toy(**overrides: Any) -> Space:
    """The toy cell space, for images of 3 x 13 x 13, or another of its family."""
    settings = {"num_classes": 5, "in_channels": 3, "resolution": [13], "cells": CELLS}
    return supernet.build("toy_cell", **{**settings, **overrides}).space


def bench(**overrides: Any) -> Space:
    """NAS-Bench-201 with 4 channels and 2 cells a stage, for images of 3 x 9 x 9."""
    return supernet.build(
        "nb201", **{"num_classes": 5, "channels": 4, "cells": 2, "resolution": [9], **overrides}
    ).space
