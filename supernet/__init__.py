"""Weight-entangled supernets: train once, search, export. See README.md for the commands."""

from supernet.build import build, load_supernet
from supernet.calibrate import calibrate
from supernet.cost import cost
from supernet.errors import UserError
from supernet.evaluate import evaluate
from supernet.export import load_subnet
from supernet.net import Supernet
from supernet.pretrained import load_pretrained
from supernet.space import Arch, Space

__all__ = [
    "Arch",
    "Space",
    "Supernet",
    "UserError",
    "build",
    "calibrate",
    "cost",
    "evaluate",
    "load_pretrained",
    "load_subnet",
    "load_supernet",
]
