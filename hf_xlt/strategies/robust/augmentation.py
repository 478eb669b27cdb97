"""Settings of augmentation: which augmenter, how often, and the baselines that a fair comparison needs.

Augmented data make more updates: M copies in E epochs are as many as M x E epochs of plain data. So a gain over plain
training may come from training longer. `baseline` answers that with the same command otherwise.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from hf_xlt.data.augmentation import COPIES, EQUAL_UPDATES, OFFLINE, ONLINE, Augmentation, Augmenter
from hf_xlt.registry import dependent
from hf_xlt.strategies.robust.augmentation_characters import CharacterAugmenter
from hf_xlt.strategies.robust.augmentation_synonyms import SynonymAugmenter, shareable_name
from hf_xlt.strategies.robust.checks import choice_problems


@dataclass
class AugmentationSettings:
    """Settings of augmentation; evidence labels as in `RobustConfig`, and `code` for what the authors' code does."""

    LOCAL_FILES: ClassVar[tuple[str, ...]] = ("neighbours", "neighbour_filter")

    augmenter: Literal["none", "synonyms", "characters"] = field(
        default="none",
        metadata={
            "help": "What is done to source training text, with any method: `synonyms` replaces words by neighbours "
            "from a table (RS-DA; paper and code), `characters` inserts, deletes or replaces single characters "
            "(related work: Aepli and Sennrich 2022), `none` leaves it as it is."
        },
    )
    augmentation: Literal["offline", "online"] = field(
        default="offline",
        metadata={
            "help": "`offline`: train only on augmented copies, made once and the same in all epochs (code). "
            "`online`: augment an example anew whenever it is read, without more updates (ours)."
        },
    )
    copies: int = field(
        default=3,
        metadata={
            "help": "Augmented copies of each example, >= 1, for offline augmentation; an epoch takes as many "
            "times the updates. The authors' code makes 3 for XNLI and 10 for PAWS-X."
        },
    )
    neighbours: str | None = field(
        default=None,
        metadata={
            "help": "JSON file of words and their neighbours for `synonyms`: {word: [neighbour, ...]} (code). None "
            "comes with this package; docs/augmentation.md tells how to make one.",
        },
    )
    lookup: Literal["exact", "casefold"] = field(
        default="exact",
        metadata={
            "help": "How words are looked up: `exact` as they stand between blanks, case and punctuation included "
            "(code); `casefold` in lower case without punctuation at their ends, which are given back (ours)."
        },
    )
    neighbour_filter: str | None = field(
        default=None,
        metadata={
            "help": "Which neighbours to keep: a file of words, one to a line, or `package.module:function` that maps "
            "a neighbour to True or False. Ours; the authors' table holds Spanish, French and German words.",
        },
    )
    character_rate: float = field(
        default=0.1,
        metadata={
            "help": "Share of words that `characters` changes, above 0 and at most 1. Ours; the paper's rate could "
            "not be checked."
        },
    )
    baseline: Literal["off", "copies", "equal_updates"] = field(
        default="off",
        metadata={
            "help": "Train a baseline of offline augmentation in its place: `copies` trains on as many unchanged "
            "copies, `equal_updates` on the plain data for as many updates. Ours."
        },
    )


_AUGMENTERS = "`augmenter` synonyms or characters"
# A trainer in Python augments nothing, and refuses all of these.
DEPENDENT_OF_RUNS = (
    dependent("augmentation", lambda config: config.augmenter != "none", _AUGMENTERS),
    dependent(
        "copies",
        lambda config: config.augmenter != "none" and config.augmentation == "offline",
        f"{_AUGMENTERS} and `augmentation` offline",
    ),
    dependent("lookup", lambda config: config.augmenter == "synonyms", "`augmenter` synonyms"),
    dependent("character_rate", lambda config: config.augmenter == "characters", "`augmenter` characters"),
)
AUGMENTATION_FIELDS = tuple(entry.name for entry in fields(AugmentationSettings))


def augmentation_problems(config: AugmentationSettings) -> list[str]:
    """Say what is wrong with the settings, all at once."""
    problems = choice_problems(config, AugmentationSettings)
    copies, rate = config.copies, config.character_rate
    if isinstance(copies, bool) or not isinstance(copies, int) or copies < 1:
        problems.append(f"`copies` is {copies!r}; it must be a whole number of 1 or more")
    if isinstance(rate, bool) or not (isinstance(rate, (int, float)) and math.isfinite(rate) and 0 < rate <= 1):
        problems.append(f"`character_rate` is {rate!r}; it must be above 0 and at most 1")
    if config.augmenter == "synonyms" and not config.neighbours:
        problems.append("`augmenter` is synonyms without a table; name one by `neighbours`")
    for name in ("neighbours", "neighbour_filter"):
        if getattr(config, name) and config.augmenter != "synonyms":
            problems.append(f"`{name}` is given, but `augmenter` is {config.augmenter}; set `augmenter` to synonyms")
    if config.baseline != "off" and config.augmenter == "none":
        problems.append("`baseline` is that of an augmentation; name that by `augmenter`")
    elif config.baseline != "off" and config.augmentation == "online":
        problems.append(
            "`baseline` is for offline augmentation; online augmentation takes as many updates as plain training, so "
            "its baseline is the same run with `augmenter` none"
        )
    return problems


def plan_augmentation(config: Any) -> Augmentation | None:
    """Return what a config asks for; tables are read only when they are used.

    Raises:
        ConfigError: by the functions of the result, for a table or a filter that cannot be used.
    """
    if config.augmenter == "none":
        return None
    mode = {"copies": COPIES, "equal_updates": EQUAL_UPDATES}.get(config.baseline, config.augmentation)
    load = functools.cache(functools.partial(_load, config))
    return Augmentation(
        load=load,
        mode=mode,
        copies=1 if mode == ONLINE else config.copies,
        seed=config.seed,
        describe=functools.partial(_describe, config, mode, load),
        settings=functools.partial(_settings, config, load),
    )


def _load(config: AugmentationSettings) -> Augmenter:
    if config.augmenter == "characters":
        return CharacterAugmenter(config.character_rate)
    return SynonymAugmenter(config.neighbours, config.lookup, config.neighbour_filter)


def _settings(config: AugmentationSettings, load: Any) -> dict[str, str]:
    """Describe the files that the settings name, by file name, hash and size."""
    if config.augmenter != "synonyms":
        return {}
    described = {"neighbours": f"{shareable_name(config.neighbours)}, {load().describe()}"}
    if config.neighbour_filter:
        described["neighbour_filter"] = shareable_name(config.neighbour_filter)
    return described


def _describe(config: AugmentationSettings, mode: str, load: Any) -> str:
    what = f"one character changed in {100 * config.character_rate:g} % of the words"
    if config.augmenter == "synonyms":
        what = f"words replaced by neighbours ({load().describe()}, lookup {config.lookup})"
    return {
        OFFLINE: f"Source training data are {config.copies} copies of each example with {what}.",
        ONLINE: f"Source training data are read with {what}, drawn anew at every read.",
        COPIES: f"Baseline: source training data are {config.copies} unchanged copies of each example.",
        EQUAL_UPDATES: f"Baseline: unchanged source training data, the updates of {config.copies} augmented copies.",
    }[mode]
