"""The strategies: what each is called, needs, costs and promises.

A new strategy is one module that ends in `STRATEGY = Strategy(...)` and one line in `STRATEGIES`. The command
line, the help, the cards and the contract test read nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError, close_match, shortened

if TYPE_CHECKING:
    from hf_xlt.data.augmentation import Augmentation
    from hf_xlt.training.phases import RunPhase

STRATEGIES = {
    "finetune": "hf_xlt.strategies.finetune",
    "robust": "hf_xlt.strategies.robust",
    "meta-pretrain": "hf_xlt.strategies.meta_pretraining",
    "averaging": "hf_xlt.strategies.averaging",
    "metaxl": "hf_xlt.strategies.metaxl",
    "soft-layers": "hf_xlt.strategies.soft_layers",
    "xmaml": "hf_xlt.strategies.xmaml",
}

ROLES = ("source", "target", "auxiliary", "text")

# What an entry may claim; the contract test checks exactly the claimed ones.
ACCUMULATION = "accumulation"
PROCESSES = "processes"
RESUME = "resume"
PADDING = "padding"
INVARIANCES = (ACCUMULATION, PROCESSES, RESUME, PADDING)


@dataclass(frozen=True)
class Paper:
    """Where a strategy comes from."""

    title: str
    authors: str
    venue: str
    url: str
    bibtex: str


@dataclass(frozen=True)
class Refusal:
    """A combination of settings that a strategy does not support.

    Attributes:
        applies: says of a config whether it asks for the combination.
        reason: what is refused, why, and the way out, in one sentence.
    """

    applies: Callable[[Any], bool]
    reason: str


@dataclass(frozen=True)
class Dependent:
    """Settings that are read in some states only.

    Attributes:
        names: fields of one dataclass.
        used: whether they are read, from the object that holds them.
        needs: what they go with, as the end of the sentence `it goes with ...`.
    """

    names: tuple[str, ...]
    used: Callable[[Any], bool]
    needs: str


def dependent(names: str, used: Callable[[Any], bool], needs: str) -> Dependent:
    """Make an entry of a table from names that are separated by blanks."""
    return Dependent(tuple(names.split()), used, needs)


def changed_fields(config: Any, names: Sequence[str]) -> list[str]:
    """Return which of some fields of a dataclass differ from their defaults."""
    entries = {entry.name: entry for entry in fields(config)}
    changed = []
    for name in names:
        entry = entries[name]
        made = entry.default_factory is not MISSING
        default = entry.default_factory() if made else entry.default
        value = getattr(config, name)
        # Enumerations are declared by their value.
        if getattr(value, "value", value) != getattr(default, "value", default):
            changed.append(name)
    return changed


def unused_problems(
    config: Any,
    table: Sequence[Dependent],
    *,
    among: Collection[str] | None = None,
    changed: Callable[[Sequence[str]], Sequence[str]] | None = None,
    spelt: Callable[[str], str] = lambda name: f"`{name}`",
) -> list[str]:
    """Say which settings differ from their defaults although nothing reads them.

    Args:
        config: a dataclass, or any object where `changed` is given.
        table: what depends on what.
        among: the settings that were asked for; None looks at all.
        changed: which of some settings differ from their defaults; None asks the dataclass.
        spelt: how a setting is written in messages.

    Returns:
        A clause for each, to be joined by semicolons.
    """
    problems = []
    for entry in table:
        names = [name for name in entry.names if among is None or name in among]
        for name in changed(names) if changed else changed_fields(config, names):
            if not entry.used(config):
                value = shortened(getattr(getattr(config, name), "value", getattr(config, name)))
                problems.append(f"{spelt(name)} is {value} and would be ignored: it goes with {entry.needs}")
    return problems


@dataclass(frozen=True)
class Strategy:
    """One way to transfer.

    Attributes:
        name: as typed after `--strategy`.
        title: as printed on a card.
        config_cls: dataclass that extends `XLTConfig`.
        trainer_cls: `XLTTrainer` subclass of a one-phase strategy.
        summary: one sentence for help and card.
        paper: its source; None for a baseline.
        roles: data roles that must be met (`ROLES`); `source` always is one.
        optional_roles: data roles that it uses when given.
        waived_roles: which of `roles` do not apply under a config, and are then not taken.
        tasks: names in `hf_xlt.tasks.TASKS` that it supports; empty means every task.
        phases: the phases of a run, from the config; None is one phase with `trainer_cls`.
        invariances: what leaves a run's result unchanged (`INVARIANCES`).
        refusals: combinations of settings that it does not support.
        dependent: settings that a run reads in some states only, beside those that the config itself refuses.
        cost: cost of one update in units of a plain fine-tuning step, from the config.
        cost_note: what a run costs besides.
        peft: whether `--peft lora` may freeze the encoder and train adapters in its place.
        averages: whether the output is the mean of the run's snapshots unasked, as with `--average`.
        augmentation: what happens to source training rows before they are encoded, from the config; None is nothing.
        trains_on: role of the examples that its main loader goes through, from the config.
        notes: what a card must say of the implementation's relation to the paper.
        check_data: refuses a plan's data that the config cannot be used with, with a `ConfigError`.
        trial: what it does to a model around the forward pass that tries one before anything is written, from the
            model, the config and a batch; a model that it cannot train raises a `ConfigError` there.
    """

    name: str
    title: str
    config_cls: type
    trainer_cls: type
    summary: str
    paper: Paper | None = None
    roles: tuple[str, ...] = ("source",)
    optional_roles: tuple[str, ...] = ("target",)
    waived_roles: Callable[[Any], tuple[str, ...]] = lambda config: ()
    tasks: tuple[str, ...] = ()
    phases: Callable[[Any], Sequence[RunPhase]] | None = None
    invariances: frozenset[str] = frozenset(INVARIANCES)
    refusals: tuple[Refusal, ...] = ()
    dependent: tuple[Dependent, ...] = ()
    cost: Callable[[Any], float] = lambda config: 1.0
    cost_note: str = ""
    peft: bool = False
    averages: bool = False
    augmentation: Callable[[Any], Augmentation | None] = lambda config: None
    trains_on: Callable[[Any], str] = lambda config: "source"
    notes: str = ""
    check_data: Callable[[Any, Any], None] = lambda config, plan: None
    trial: Callable[[Any, Any, Mapping[str, Any]], AbstractContextManager[Any]] = lambda model, config, batch: (
        nullcontext()
    )

    @property
    def uses_shots(self) -> bool:
        """Whether few-shot examples go to the strategy itself, rather than into the training data or the loss."""
        return "target" in self.roles

    def check(self, config: Any, task: str, asked: Collection[str] | None = None) -> None:
        """Refuse what this strategy does not support, and settings that a run with it would ignore.

        Args:
            config: of the run.
            task: its task.
            asked: settings that the user set; None takes all that differ from their defaults.

        Raises:
            ConfigError: a refused combination, a setting of no effect, or a task it does not cover.
        """
        if self.tasks and task not in self.tasks:
            raise ConfigError(f"strategy `{self.name}` supports the tasks {', '.join(self.tasks)}; got {task!r}.")
        for refusal in self.refusals:
            if refusal.applies(config):
                raise ConfigError(f"strategy `{self.name}`: {refusal.reason}")
        unused = unused_problems(config, self.dependent, among=asked)
        if unused:
            raise ConfigError(f"strategy `{self.name}`: {'; '.join(unused)}.")


def card_module(name: str) -> ModuleType | None:
    """Return the module of a strategy that makes the words of its card, without torch; None where it has none."""
    place = STRATEGIES.get(name)
    if place is None or not _is_package(place) or find_spec(f"{place}.card") is None:
        return None
    return import_module(f"{place}.card")


def _is_package(place: str) -> bool:
    """Say whether a module is a package, without importing it: a strategy of one file imports torch."""
    try:
        spec = find_spec(place)
    except ValueError:
        return False
    return spec is not None and spec.submodule_search_locations is not None


def left_beside(kind: str) -> tuple[str, ...]:
    """Return the names of what strategies leave beside a model.

    Args:
        kind: `PLOTS`, `FILES` or `KEPT`.
    """
    modules = [card_module(name) for name in STRATEGIES]
    return tuple(name for module in modules for name in getattr(module, kind, ()))


def get_strategy(name: str) -> Strategy:
    """Import a strategy by name.

    Raises:
        ConfigError: the name is unknown; the message lists the known ones.
    """
    if name not in STRATEGIES:
        known = ", ".join(f"`{known}`" for known in STRATEGIES)
        raise ConfigError(f"unknown strategy {name!r}.{close_match(name, STRATEGIES)} Known strategies: {known}.")
    return import_module(STRATEGIES[name]).STRATEGY
