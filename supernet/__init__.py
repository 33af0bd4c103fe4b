"""Weight-entangled supernets: train once, search, export. See README.md for the commands.

The public names are loaded, and torch with them, when they are first asked for: `python train.py --help` and a
mistyped setting are answered at once.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
HOMES = {
    "build": ("build", "load_supernet"),
    "calibrate": ("calibrate",),
    "cost": ("cost",),
    "errors": ("UserError",),
    "evaluate": ("evaluate",),
    "export": ("load_subnet",),
    "net": ("Supernet",),
    "pretrained": ("load_pretrained",),
    "space": ("Arch", "Space"),
}


class _Package(ModuleType):
    """This package: a public name means the function also where a submodule has the same (`build`, `cost`)."""

    def __getattr__(self, name: str) -> Any:
        for home, names in HOMES.items():
            if name in names:
                value = getattr(import_module(f"{self.__name__}.{home}"), name)
                setattr(self, name, value)
                return value
        if name in HOMES:
            return import_module(f"{self.__name__}.{name}")
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        # The import of a submodule binds its name here, which would hide the function from then on.
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
