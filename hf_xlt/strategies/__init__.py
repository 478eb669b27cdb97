"""One module or package per strategy; each ends in `STRATEGY = Strategy(...)`, in a package in its module `entry`.

A package may have a module `card`, which imports no torch: `block(phase)` says what a card tells of a phase, `PLOTS`
and `FILES` name what the strategy leaves beside the model, `KEPT` what it leaves in a folder there (`FOLDER/FILE`) and
never pushes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module


def on_first_use(package: str, public: Mapping[str, str]) -> Callable[[str], object]:
    """Return a module's `__getattr__` that imports its public names when they are asked for.

    So the words of a card, and the settings of a strategy, can be read without torch.

    Args:
        package: the module's name.
        public: of each public name, the module where it lives; with a leading dot, below the package.
    """

    def get(name: str) -> object:
        if name not in public:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(public[name], package), name)

    return get
