"""The phases of a pre-training: their text, objectives, length and languages.

Chi et al. 2021 (arXiv 2109.11129, abstract): first a monolingual phase, then a multilingual one. What else is set here
(objectives, mixture, schedule) the abstract does not say; every choice is a field. The contrastive objective is our
addition.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_xlt.errors import ConfigError, close_match, setting
from hf_xlt.registry import dependent, unused_problems
from hf_xlt.yaml_file import check_kinds

MLM, TLM, CONTRASTIVE, DISTILL = "mlm", "tlm", "contrastive", "distill"
OBJECTIVES = (MLM, TLM, CONTRASTIVE, DISTILL)
# Part of the loss beside those named by objectives: the teacher's token states.
DISTILL_TOKENS = "distill_tokens"
COSINE, MSE = "cosine", "mse"
MATCHES = (COSINE, MSE)
ALL_LANGUAGES = "all"
LEAVE, REDRAW, FREEZE = "leave", "redraw", "freeze"
UNSEEN_ROWS = (LEAVE, REDRAW, FREEZE)
# Fields that came later: a phase that leaves them alone is the same phase as before.
_LATER_FIELDS = {
    "optimizer_carry": False,
    "unseen_rows": LEAVE,
    "teacher": None,
    "match": COSINE,
    "token_weight": 1.0,
    "texts": None,
    "text_length": 128,
    "teacher_cache_gb": 2.0,
}


@dataclass(frozen=True)
class Source:
    """Text of one or more languages.

    Attributes:
        text: pattern with `{lang}`, file with a language column, or Hub id, as `--text-dataset`.
        languages: codes to take, or `all`.
        split: split to read.
        text_column: column of the text.
        id_column: column whose equal values mark translations.
        streaming: read it while training instead of tokenising it before; for text that is too large.
        language_map: `NAME=CODE` of languages that the text calls by name.
    """

    text: str
    languages: tuple[str, ...] = (ALL_LANGUAGES,)
    split: str = "train"
    text_column: str = "text"
    id_column: str = "id"
    streaming: bool = False
    language_map: tuple[str, ...] = ()


@dataclass(frozen=True)
class Phase:
    """One phase of a pre-training.

    Attributes:
        name: part of its folder's name; its random streams are keyed by it.
        steps: updates.
        sources: its text.
        objectives: weight in the loss by objective: `mlm`, `tlm`, `contrastive`, `distill`.
        learning_rate: peak rate; None takes the config's.
        alpha: exponent of the language mixture; 1 follows the data, 0 is uniform.
        floors: least share of single languages (the replay floor against forgetting).
        tlm_share: share of rows that hold translation pairs when `tlm` is among the objectives.
        pivot: language to be on one side of `pivot_share` of the translation pairs.
        pivot_share: that share; 0 leaves it to the mixture.
        pairs: translation pairs in each contrastive batch of a device; None takes half the rows.
        pair_length: longest side of a translation pair in tokens.
        temperature: of the contrastive softmax.
        masked_share: share of tokens to predict.
        whole_words: mask whole words.
        isolated: documents of a row do not attend to each other, and positions restart.
        tokenizer: directory or Hub id of a new tokenizer at the start of the phase; None keeps the model's.
        embedding_init: how rows of new pieces start: `overlap`, `random`, or `package.module:function`.
        embedding_warmup_steps: first updates that train only the embeddings, after a change of tokenizer.
        optimizer_carry: start with the AdamW moments that the phase before ended with; not of embeddings that changed
            in between. The schedule starts anew all the same.
        unseen_rows: what happens to embeddings of pieces that the text does not hold: `leave`, `redraw` (when the next
            phase starts, those of pieces in no text so far are drawn like the others) or `freeze` (in this phase).
        teacher: directory or Hub id of the encoder that `distill` follows.
        match: how far a vector is from the teacher's: `cosine` (1 - cosine) or `mse` (mean squared difference).
        token_weight: weight of the token states' part beside that of the sentence vectors; 0 leaves it out.
        texts: texts in each distillation batch of a device; None takes as many as rows.
        text_length: longest of these texts in tokens; longer ones are cut.
        teacher_cache_gb: GiB of the teacher's states that are kept on disk; what does not fit is computed again
            each time it is drawn.
    """

    name: str
    steps: int
    sources: tuple[Source, ...] = ()
    objectives: Mapping[str, float] = field(default_factory=lambda: {MLM: 1.0})
    learning_rate: float | None = None
    alpha: float = 0.7
    floors: Mapping[str, float] = field(default_factory=dict)
    tlm_share: float = 0.5
    pivot: str | None = "en"
    pivot_share: float = 0.0
    pairs: int | None = None
    pair_length: int = 64
    temperature: float = 0.05
    masked_share: float = 0.15
    whole_words: bool = False
    isolated: bool = False
    tokenizer: str | None = None
    embedding_init: str = "overlap"
    embedding_warmup_steps: int = 0
    optimizer_carry: bool = False
    unseen_rows: str = LEAVE
    teacher: str | None = None
    match: str = COSINE
    token_weight: float = 1.0
    texts: int | None = None
    text_length: int = 128
    teacher_cache_gb: float = 2.0

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: a value is out of range; all problems are named.
        """
        problems = _problems(self)
        if problems:
            raise ConfigError(f"phase `{self.name}`: {'; '.join(problems)}.")

    @property
    def masked(self) -> dict[str, float]:
        """Weights of the objectives that predict masked tokens."""
        return {name: weight for name, weight in self.objectives.items() if name in (MLM, TLM)}

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the parts of the loss: the masked objectives in their order, then the others."""
        parts = {**self.masked, **{name: self.objectives[name] for name in (CONTRASTIVE,) if name in self.objectives}}
        if DISTILL in self.objectives:
            parts[DISTILL] = self.objectives[DISTILL]
            if self.token_weight:
                parts[DISTILL_TOKENS] = self.objectives[DISTILL] * self.token_weight
        return parts

    @property
    def parallel(self) -> bool:
        """Whether it needs translations."""
        return TLM in self.objectives or CONTRASTIVE in self.objectives

    def definition(self) -> dict[str, Any]:
        """Return what identifies the phase, JSON-able; local places of the text are left out."""
        from hf_xlt.data.sources import shareable_pattern

        values = json.loads(json.dumps(dataclasses.asdict(self)))
        for source in values["sources"]:
            source["text"] = shareable_pattern(source["text"])
            if not source["language_map"]:
                del source["language_map"]
        for name in ("tokenizer", "teacher"):
            if values[name] is not None:
                values[name] = shareable_pattern(values[name])
        return {name: value for name, value in values.items() if _LATER_FIELDS.get(name, ...) != value}

    def changes_from(self, definition: Mapping[str, Any]) -> list[str]:
        """Return the names of what differs from the definition of another phase."""
        own = self.definition()
        return sorted(name for name in own.keys() | definition.keys() if own.get(name) != definition.get(name))

    def fingerprint(self) -> str:
        """Return a hash of the definition."""
        return hashlib.sha256(json.dumps(self.definition(), sort_keys=True).encode()).hexdigest()[:16]


_CONTRASTIVE = "the objective contrastive"
DEPENDENT = (
    dependent("masked_share whole_words isolated", lambda phase: phase.masked, "the objectives mlm and tlm"),
    dependent("floors", lambda phase: MLM in phase.objectives, "the objective mlm"),
    dependent(
        "tlm_share",
        lambda phase: MLM in phase.objectives and TLM in phase.objectives,
        "the objectives mlm and tlm together",
    ),
    dependent("pivot", lambda phase: phase.parallel and phase.pivot_share > 0, "`pivot_share` above 0"),
    dependent("pivot_share", lambda phase: phase.parallel, "the objectives tlm and contrastive"),
    dependent("pairs pair_length temperature", lambda phase: CONTRASTIVE in phase.objectives, _CONTRASTIVE),
    dependent("embedding_init", lambda phase: phase.tokenizer is not None, "a new `tokenizer`"),
)


def _problems(phase: Phase) -> list[str]:
    problems = []
    if not phase.name or not phase.name.replace("-", "").replace("_", "").isalnum():
        problems.append(f"the name {phase.name!r} must be letters, digits, `-` and `_`")
    if not (isinstance(phase.steps, int) and phase.steps > 0):
        problems.append(f"`steps` is {phase.steps!r}; a phase needs 1 update or more")
    unknown = [name for name in phase.objectives if name not in OBJECTIVES]
    if unknown or not phase.objectives:
        named = f"unknown objective {unknown[0]!r}" if unknown else "no objective"
        problems.append(f"{named}; give weights of {', '.join(OBJECTIVES)}")
    if any(not weight > 0 for weight in phase.objectives.values()):
        problems.append("every weight of an objective must be above 0; leave the others out")
    if TLM in phase.objectives and MLM in phase.objectives and not 0 < phase.tlm_share < 1:
        problems.append(f"`tlm_share` is {phase.tlm_share}; it must lie between 0 and 1")
    if phase.learning_rate is not None and not phase.learning_rate > 0:
        problems.append(f"`learning_rate` is {phase.learning_rate}; it must be above 0")
    if not phase.alpha >= 0:
        problems.append(f"`alpha` is {phase.alpha}; it must be 0 or more")
    shares = {"masked_share": phase.masked_share, "temperature": phase.temperature}
    problems += [f"`{name}` is {value}; it must lie in (0, 1]" for name, value in shares.items() if not 0 < value <= 1]
    if not 0 <= phase.pivot_share <= 1:
        problems.append(f"`pivot_share` is {phase.pivot_share}; it must lie in [0, 1]")
    if phase.pairs is not None and phase.pairs < 2:
        problems.append(f"`pairs` is {phase.pairs}; in-batch contrast needs 2 or more")
    if phase.pair_length < 4:
        problems.append(f"`pair_length` is {phase.pair_length}; give 4 tokens or more")
    if not isinstance(phase.optimizer_carry, bool):
        problems.append(f"`optimizer_carry` is {phase.optimizer_carry!r}; it must be true or false")
    streamed = any(source.streaming for source in phase.sources)
    if phase.unseen_rows not in UNSEEN_ROWS:
        problems.append(f"`unseen_rows` is {phase.unseen_rows!r}; choose from {', '.join(UNSEEN_ROWS)}")
    elif phase.unseen_rows != LEAVE and streamed:
        problems.append(
            f"`unseen_rows: {phase.unseen_rows}` needs text that is not streamed: the pieces that streamed text holds "
            "are known only when it is read"
        )
    if phase.parallel and streamed:
        problems.append("tlm and contrastive need text that is not streamed: translations are found by id beforehand")
    return problems + _distillation_problems(phase, streamed)


def _distillation_problems(phase: Phase, streamed: bool) -> list[str]:
    if DISTILL not in phase.objectives:
        own = ("teacher", "match", "token_weight", "texts", "text_length", "teacher_cache_gb")
        given = [name for name in own if getattr(phase, name) != _LATER_FIELDS[name]]
        return [f"`{given[0]}` is of the objective `distill`, which is not among `objectives`"] if given else []
    problems = []
    if not phase.teacher:
        problems.append("`distill` needs `teacher`, the directory or Hub id of the encoder to follow")
    if phase.match not in MATCHES:
        problems.append(f"`match` is {phase.match!r}; choose from {', '.join(MATCHES)}")
    if not 0 <= phase.token_weight < math.inf:
        problems.append(f"`token_weight` is {phase.token_weight}; it must be 0 or more")
    if phase.texts is not None and phase.texts < 1:
        problems.append(f"`texts` is {phase.texts}; give 1 or more")
    if phase.text_length < 4:
        problems.append(f"`text_length` is {phase.text_length}; give 4 tokens or more")
    if not 0 <= phase.teacher_cache_gb < math.inf:
        problems.append(f"`teacher_cache_gb` is {phase.teacher_cache_gb}; it must be 0 (nothing is kept) or more")
    if streamed:
        problems.append("distill needs text that is not streamed: the teacher reads it beforehand")
    return problems


def make_source(value: Any, where: str) -> Source:
    """Build a source from YAML: a string, or a mapping of the fields of `Source`.

    Raises:
        ConfigError: a key is unknown, or `text` is missing.
    """
    if isinstance(value, str):
        return Source(value)
    values = _fields(Source, value, where)
    if "text" not in values:
        raise ConfigError(f"{where}: a source needs `text`: a pattern or a Hub id.")
    if isinstance(values.get("languages"), str):
        values["languages"] = [code.strip() for code in values["languages"].split(",")]
    if isinstance(values.get("languages"), list):
        values["languages"] = tuple(values["languages"])
    if "language_map" in values:
        values["language_map"] = _name_map(values["language_map"])
    check_kinds(Source, values, where)
    return Source(**values)


def as_list(value: Any, where: str) -> list[Any]:
    """Return the sources of a file, which must be a list.

    Raises:
        ConfigError: they are none.
    """
    if not isinstance(value, list):
        raise ConfigError(f"{where}: `sources` is {value!r}; it must be a list.")
    return value


def _name_map(value: Any) -> tuple[str, ...]:
    """Read a map of names to codes from YAML: a mapping, a list of `NAME=CODE`, or these in one text."""
    from hf_xlt.data.patterns import parse_language_map

    entries = [f"{name}={code}" for name, code in value.items()] if isinstance(value, dict) else value
    entries = [entries] if isinstance(entries, str) else entries
    codes = parse_language_map(entries or ()).codes
    return tuple(f"{name}={code}" for name, code in codes.items())


def make_phase(value: Any, sources: Sequence[Source]) -> Phase:
    """Build a phase from a mapping of the fields of `Phase`.

    Args:
        value: as read from YAML. `objectives` may be a list of names, each with weight 1; `replay_floor` stands for
            `floors`.
        sources: what a phase without sources of its own reads.

    Raises:
        ConfigError: a key is unknown, a value is out of range, or there is no text.
    """
    where = f"phase {value.get('name')!r}" if isinstance(value, dict) else "phase"
    if isinstance(value, dict) and "replay_floor" in value:
        value = {**value, "floors": value["replay_floor"]}
        del value["replay_floor"]
    values = _fields(Phase, value, where)
    for name in ("name", "steps"):
        if name not in values:
            raise ConfigError(f"{where}: `{name}` is missing.")
    own = values.get("sources")
    own = [own] if isinstance(own, (str, dict)) else own
    values["sources"] = tuple(make_source(entry, where) for entry in as_list(own, where)) if own else tuple(sources)
    if not values["sources"]:
        raise ConfigError(f"{where} has no text: give `sources`, in the phase or for all phases.")
    if isinstance(values.get("objectives"), str):
        values["objectives"] = values["objectives"].replace("+", " ").replace(",", " ").split()
    if isinstance(values.get("objectives"), list):
        values["objectives"] = dict.fromkeys(values["objectives"], 1.0)
    check_kinds(Phase, values, where)
    phase = Phase(**values)
    unused = unused_problems(phase, DEPENDENT, among=values)
    if unused:
        raise ConfigError(f"{where}: {'; '.join(unused)}.")
    return phase


def _fields(cls: type, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping, got {value!r}.")
    known = [entry.name for entry in dataclasses.fields(cls)]
    unknown = [key for key in value if key not in known]
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}.{close_match(str(unknown[0]), known)}")
    return dict(value)


def split_budget(phases: Sequence[Phase], total_steps: int, meta_fraction: float) -> list[Phase]:
    """Divide a budget between two phases: T1 = f T and T2 = T - T1.

    Args:
        phases: the monolingual phase and the multilingual one.
        total_steps: T, updates in all.
        meta_fraction: f in [0, 1]; 0 leaves the first phase out (the single-phase baseline), 1 the second.

    Returns:
        The phases that have steps.

    Raises:
        ConfigError: there are not two phases, or a value is out of range.
    """
    if len(phases) != 2:
        raise ConfigError(
            f"{setting('meta_fraction')} divides a budget between 2 phases; this plan has {len(phases)}."
        )
    if total_steps < 1 or not 0 <= meta_fraction <= 1:
        raise ConfigError(
            f"{setting('total_steps')} is {total_steps} and {setting('meta_fraction')} {meta_fraction}; give 1 or "
            f"more, and 0 to 1."
        )
    first = round(meta_fraction * total_steps)
    budgets = (first, total_steps - first)
    return [dataclasses.replace(phase, steps=steps) for phase, steps in zip(phases, budgets, strict=True) if steps]
