"""Which strategy of a sweep gets which flag: those that have the setting, and no other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from hf_xlt.averaging.arguments import AverageArguments
from hf_xlt.errors import ConfigError, close_match
from hf_xlt.registry import STRATEGIES, Strategy

# The settings of a data role, by the role: a strategy that takes no such data does not get them.
_OF_ROLE = {
    role: tuple(f"{role}_{part}" for part in ("dataset", "languages", "split")) for role in ("auxiliary", "text")
} | {"target": ("shots", "shot_seed", "few_shot_mode", "few_shot_split")}
_OF_AVERAGE = frozenset(entry.name for entry in fields(AverageArguments)) - {"average"}


@dataclass(frozen=True)
class Division:
    """Divides flags among strategies.

    Attributes:
        strategies: in the order asked for.
        options: per strategy's name, its flags without hyphens in front, and the field that each sets.
        averages: whether `--average` is asked of all.
        limited: filled while flags are divided: flags that not all strategies get, and who gets them.
    """

    strategies: tuple[Strategy, ...]
    options: Mapping[str, Mapping[str, str]]
    averages: bool = False
    limited: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The strategies' names."""
        return tuple(strategy.name for strategy in self.strategies)

    def receivers(self, flag: str) -> tuple[str, ...]:
        """Return the names of the strategies that get a flag.

        Args:
            flag: without hyphens in front and without a value; `robust.epsilon` is for one strategy.

        Raises:
            ConfigError: no strategy has it.
        """
        owner, dot, own = flag.partition(".")
        if dot and owner.replace("_", "-") in STRATEGIES:
            return (self._owner(owner.replace("_", "-"), own),)
        having = [strategy for strategy in self.strategies if flag in self.options[strategy.name]]
        if not having:
            known = {name for options in self.options.values() for name in options}
            near = close_match(f"--{flag}", [f"--{name}" for name in known])
            raise ConfigError(f"unknown argument `--{flag}`: none of {', '.join(self.names)} has it.{near}")
        setting = self.options[having[0].name][flag]
        taking = tuple(strategy.name for strategy in having if self._takes(strategy, setting))
        if not taking:
            # The first one's own refusal says why, and what to do.
            taking = (self.names[0],)
        if len(taking) < len(self.strategies):
            self.limited[f"--{flag.replace('_', '-')}"] = taking
        return taking

    def _owner(self, name: str, flag: str) -> str:
        if name not in self.names:
            raise ConfigError(f"`--{name}.{flag}` is for `{name}`, which is not among `--strategies`; add it there.")
        if flag not in self.options[name]:
            near = close_match(flag, self.options[name])
            raise ConfigError(f"`--{name}.{flag}`: strategy `{name}` has no setting `{flag}`.{near}")
        return name

    def _takes(self, strategy: Strategy, setting: str) -> bool:
        if setting in _OF_AVERAGE and not self.averages:
            return strategy.averages
        if setting == "few_shot_mode" and strategy.uses_shots:
            return False
        return all(
            role in (*strategy.roles, *strategy.optional_roles)
            for role, settings in _OF_ROLE.items()
            if setting in settings
        )

    def tokens(self, tokens: Iterable[str], name: str) -> list[str]:
        """Return the part of a command line that one strategy gets."""
        kept, keeping = [], True
        for token in tokens:
            if token.startswith("--"):
                flag, equals, value = token[2:].partition("=")
                keeping = name in self.receivers(flag)
                token = f"--{_bare(flag)}{equals}{value}"
            if keeping:
                kept.append(token)
        return kept

    def settings(self, settings: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Return the part of a YAML file that one strategy gets."""
        return {_bare(key): value for key, value in settings.items() if name in self.receivers(key)}

    def notes(self) -> list[str]:
        """Say which flags not all strategies get, in one line per group of receivers."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for flag, receivers in self.limited.items():
            groups.setdefault(receivers, []).append(flag)
        return [f"{', '.join(flags)}: for {', '.join(names)} only." for names, flags in groups.items()]


def _bare(flag: str) -> str:
    owner, dot, own = flag.partition(".")
    return own if dot and owner.replace("_", "-") in STRATEGIES else flag


def check_names(names: Sequence[str]) -> None:
    """Refuse strategies that are named twice.

    Raises:
        ConfigError: one is.
    """
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise ConfigError(f"`--strategies` names `{twice[0]}` twice; runs of one strategy are made by `--seeds`.")
