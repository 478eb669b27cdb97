"""What the user asks for: the arguments of a run beside those of its strategy, and what may not go together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from hf_xlt.data.division import parse_division
from hf_xlt.data.patterns import parse_language_map
from hf_xlt.errors import ConfigError
from hf_xlt.languages import check_code, check_no_target
from hf_xlt.registry import Strategy

if TYPE_CHECKING:
    from hf_xlt.averaging.arguments import AverageArguments
    from hf_xlt.peft_arguments import PeftArguments
    from hf_xlt.sweep.arguments import SweepArguments

EMBEDDED = "embedded"
EMBEDDED_PHRASES = "embedded-phrases"
ALL_LANGUAGES = "all"


@dataclass
class RunArguments:
    """What to run, and what to do with what is there already."""

    _argument_group_name = "run"

    strategy: str = field(
        default="finetune", metadata={"help": "How to transfer; `hf-xlt strategies` lists the strategies."}
    )
    config: str | None = field(
        default=None, metadata={"help": "YAML file of arguments; what the command line names wins over it."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Continue the run in --output_dir from its newest complete checkpoint."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Delete the run that --output_dir holds, and start anew."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Print what would be run, and stop."})
    floor: bool = field(
        default=True,
        metadata={"help": "With the embedded task, train once more from random weights, to show what transfer adds."},
    )
    threads: int | None = field(
        default=None,
        metadata={"help": "CPU threads per process, 1 or more; results are bit-equal only for equal numbers."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better source-language score."}
    )
    quiet: bool = field(default=False, metadata={"help": "Print nothing but errors, and no progress bars."})
    json: bool = field(
        default=False, metadata={"help": "Print one JSON document of the scores to stdout, and all else to stderr."}
    )
    traceback: bool = field(default=False, metadata={"help": "Show the traceback of an error."})


@dataclass
class ModelArguments:
    """Where training starts."""

    _argument_group_name = "model"

    model: str | None = field(
        default=None,
        metadata={
            "help": "Encoder: Hub id, directory, `embedded` for the small multilingual one in this package, or "
            "`embedded-phrases` for the tiny one of the demo task."
        },
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run Python code that comes with the model. Only for authors you trust."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention kernel for training (eager, sdpa, flash_attention_2); not saved."}
    )
    resize_embeddings: bool = field(
        default=False,
        metadata={
            "help": "Make new embeddings, and train them, for tokens of the tokenizer that the model has none for; "
            "without this such a tokenizer is refused."
        },
    )


@dataclass
class DataArguments:
    """Data by role: what to learn from, what to score on."""

    _argument_group_name = "data"

    task: str = field(
        default="text-classification",
        metadata={
            "help": "Kind of task: text-classification (texts or pairs), multi-label-classification (the same with "
            "several labels or none), token-classification (a tag per word; spans where the tags are those of spans), "
            "question-answering (answers that are part of a text)."
        },
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Source data: a pattern such as topic/{split}.{lang}.parquet (also .jsonl .json .csv .tsv), one "
            "file with a language column, a Hub id (ORG/NAME, or ORG/NAME:{lang}), or `embedded`."
        },
    )
    target_dataset: list[str] | None = field(
        default=None,
        metadata={
            "help": "Target data where they differ from --dataset; repeatable; `sw,yo=PATTERN` names its languages.",
            "action": "extend",
        },
    )
    source_languages: list[str] | None = field(
        default=None, metadata={"help": "Languages with training labels, separated by commas. Default: en."}
    )
    target_languages: list[str] | None = field(
        default=None,
        metadata={
            "help": "Languages to transfer to, separated by commas, or `all` others of the target data (default)."
        },
    )
    source_split: str = field(default="train", metadata={"help": "Split of the source data to train on."})
    validation_split: str = field(default="validation", metadata={"help": "Split to select checkpoints on."})
    target_split: str = field(default="test", metadata={"help": "Split of every language that is scored at the end."})
    few_shot_split: str = field(default="train", metadata={"help": "Split of the target data to take shots from."})
    divide_split: list[str] | None = field(
        default=None,
        metadata={
            "help": "Divide data that have one split, or none, by chance: train=0.8,validation=0.1,test=0.1. Rows of "
            "one id stay together; classes have their shares in every part."
        },
    )
    divide_seed: int = field(default=0, metadata={"help": "Seed of --divide-split."})
    allow_shared_rows: bool = field(
        default=False,
        metadata={"help": "Let the same rows have two roles, such as training and test. The card says so."},
    )
    text_column: str | None = field(default=None, metadata={"help": "Column of the text. Default: found by name."})
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of the second text of a pair."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the label, an index or a name."})
    label_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "For multi-label-classification: columns of 0 and 1, one for each label, in place of a column of "
            "lists; separated by commas."
        },
    )
    tokens_column: str | None = field(default=None, metadata={"help": "Column of a sentence's words, a list."})
    tags_column: str | None = field(default=None, metadata={"help": "Column of the words' tags, a list."})
    question_column: str | None = field(default=None, metadata={"help": "Column of the question."})
    context_column: str | None = field(default=None, metadata={"help": "Column of the text that answers it."})
    answers_column: str | None = field(
        default=None, metadata={"help": "Column of the answers: {text: [...], answer_start: [...]}."}
    )
    language_column: str | None = field(
        default=None, metadata={"help": "Column that names the language, where the pattern has no {lang}."}
    )
    language_map: list[str] | None = field(
        default=None,
        metadata={"help": "Codes of languages that the data call by name: indonesian=id,toba_batak=bbc."},
    )
    labels: list[str] | None = field(
        default=None, metadata={"help": "Class names in index order. Default: those of the source training data."}
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest input in tokens. Longer texts are cut; sentences of words and the texts that answer "
            "questions are split into windows. Default: 128, for question answering 384."
        },
    )
    window_overlap: int = field(
        default=128, metadata={"help": "Tokens that neighbouring windows of a text that answers questions share."}
    )
    shots: int = field(
        default=0, metadata={"help": "Labelled examples per target language, in all; 0 is zero-shot transfer."}
    )
    shot_seed: int = field(default=0, metadata={"help": "Seed of the choice of shots; budgets are nested."})
    few_shot_mode: Literal["concat", "joint"] = field(
        default="joint",
        metadata={
            "help": "joint: each update takes one batch per language and averages their losses (Schmidt et al. 2023); "
            "concat: shots are mixed into the source data."
        },
    )
    auxiliary_dataset: list[str] | None = field(
        default=None,
        metadata={
            "help": "Labelled data of auxiliary languages, for strategies that learn how to transfer; repeatable.",
            "action": "extend",
        },
    )
    auxiliary_languages: list[str] | None = field(
        default=None, metadata={"help": "Auxiliary languages, separated by commas. Default: all in their data."}
    )
    auxiliary_split: str = field(default="train", metadata={"help": "Split of the auxiliary data."})
    text_dataset: list[str] | None = field(
        default=None,
        metadata={"help": "Unlabelled text, for strategies that pre-train; repeatable.", "action": "extend"},
    )
    text_languages: list[str] | None = field(
        default=None, metadata={"help": "Languages of the text, separated by commas. Default: all in its data."}
    )
    text_split: str = field(default="train", metadata={"help": "Split of the text."})
    select_on_target_validation: bool = field(
        default=False,
        metadata={"help": "Let target-language validation labels choose the checkpoint. An oracle; the card says so."},
    )
    generalized: bool = field(
        default=False,
        metadata={
            "help": "For tasks of sentence pairs, also score each ordered pair of languages: the first sentence in "
            "one, the second in the other, test sets joined by --id_column (Huang et al. 2021)."
        },
    )
    generalized_languages: list[str] | None = field(
        default=None,
        metadata={"help": "Languages of --generalized, separated by commas. Default: all that are scored."},
    )
    id_column: str = field(
        default="id", metadata={"help": "Column of the example's id, by which --generalized joins languages."}
    )

    def __post_init__(self) -> None:
        """Split lists and check ranges."""
        self.source_languages = split_codes(self.source_languages) or ["en"]
        self.target_languages = split_codes(self.target_languages) or [ALL_LANGUAGES]
        self.auxiliary_languages = split_codes(self.auxiliary_languages) or [ALL_LANGUAGES]
        self.text_languages = split_codes(self.text_languages) or [ALL_LANGUAGES]
        self.labels = split_names(self.labels)
        self.divide_split = split_names(self.divide_split)
        self.language_map = split_names(self.language_map)
        self.label_columns = split_names(self.label_columns)
        self.generalized_languages = split_codes(self.generalized_languages) or None
        if self.generalized_languages and not self.generalized:
            raise ConfigError("`--generalized-languages` says what `--generalized` scores; add `--generalized`.")
        parse_division(self.divide_split, self.divide_seed)
        parse_language_map(self.language_map)
        if self.shots < 0:
            raise ConfigError(f"`--shots` is {self.shots}; give 0 (zero-shot) or more.")
        if self.max_length is not None and self.max_length < 4:
            raise ConfigError(f"`--max-length` is {self.max_length}; give 4 or more.")
        check_no_target(self.source_languages, self.target_languages, "a source")


def split_names(values: Sequence[str] | None) -> list[str] | None:
    """Split what may be separated by commas or blanks into names."""
    if values is None:
        return None
    return [name.strip() for value in values for name in str(value).split(",") if name.strip()]


def split_codes(values: Sequence[str] | None) -> list[str]:
    """Split language codes and check each; repeated ones count once.

    Raises:
        ConfigError: one cannot be a language code.
    """
    return list(dict.fromkeys(check_code(code) for code in split_names(values) or []))


@dataclass(frozen=True)
class Arguments:
    """Everything that a run is asked to do, parsed and checked.

    Attributes:
        strategy: registry entry.
        run: what to run.
        model: where training starts.
        data: data by role.
        peft: what to train in place of all weights.
        average: what of the run to average.
        sweep: whether it is one of several runs, or several.
        config: the strategy's config.
        explicit: names of the fields that the command line or the YAML file set.
        asked: what both asked for, as one command line; the file's settings come first.
    """

    strategy: Strategy
    run: RunArguments
    model: ModelArguments
    data: DataArguments
    peft: PeftArguments
    average: AverageArguments
    sweep: SweepArguments
    config: Any
    explicit: frozenset[str]
    asked: tuple[str, ...] = ()

    @property
    def embedded(self) -> bool:
        """Whether the run is on the embedded task."""
        return self.data.dataset == EMBEDDED


# What the phrase encoder's figures were measured with; see `docs/embedded.md`.
EMBEDDED_SETTINGS = {
    "max_steps": 180,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 256,
    "learning_rate": 5e-4,
    "warmup_steps": 20,
    "logging_steps": 30,
    "save_steps": 90,
    "save_total_limit": 1,
    "attn_implementation": "eager",
    "threads": 1,
    "max_length": 64,
}


def check_arguments(arguments: Arguments) -> None:
    """Refuse what cannot go together.

    Raises:
        ConfigError: a setting is missing, out of range, or contradicts another.
    """
    from hf_xlt.tasks import get_task

    run, model, data, config = arguments.run, arguments.model, arguments.data, arguments.config
    if data.dataset is None:
        raise ConfigError("no data: give `--dataset` (a pattern, a Hub id, or `embedded`) beside `--model`.")
    if model.model is None:
        raise ConfigError("no model: give `--model` (a Hub id, a directory, or `embedded`) beside `--dataset`.")
    if run.resume and run.overwrite:
        raise ConfigError("`--resume` continues a run and `--overwrite` deletes it; give one of them.")
    if run.threads is not None and run.threads < 1:
        raise ConfigError(f"`--threads` is {run.threads}; give 1 or more.")
    if config.resume_from_checkpoint:
        raise ConfigError(
            "`--resume_from_checkpoint` is not taken: `--resume` continues the run in `--output_dir` from its newest "
            "complete checkpoint."
        )
    if run.early_stopping_patience is not None and config.eval_strategy == "no":
        raise ConfigError("`--early-stopping-patience` needs evaluations: add `--eval-strategy epoch` (or `steps`).")
    if data.select_on_target_validation and not config.load_best_model_at_end:
        raise ConfigError(
            "`--select-on-target-validation` selects nothing without `--load-best-model-at-end` "
            "(with `--eval-strategy epoch --save-strategy epoch`)."
        )
    _check_roles(arguments.strategy, config, data)
    arguments.strategy.check(config, data.task, arguments.explicit)
    _check_unused(arguments)
    unsmoothed = get_task(data.task).unsmoothed
    if config.label_smoothing_factor and unsmoothed:
        raise ConfigError(
            f"`--label-smoothing-factor` does not go with the task `{data.task}`: {unsmoothed}. Leave it at 0."
        )


def _check_unused(arguments: Arguments) -> None:
    """Refuse settings that were asked for and that this run would ignore.

    Raises:
        ConfigError: there are some.
    """
    from hf_xlt.data.settings import check_data_used
    from hf_xlt.registry import dependent
    from hf_xlt.tasks import get_task
    from hf_xlt.training.stock_settings import check_start, check_used_by_run

    run, config, strategy, asked = arguments.run, arguments.config, arguments.strategy, arguments.explicit
    task = get_task(arguments.data.task)
    check_start(config)
    check_used_by_run(config, asked, stops_early=run.early_stopping_patience is not None)
    validates = needs_validation(config) or arguments.average.compares_validation or task.find_threshold is not None
    check_data_used(
        arguments.data,
        task,
        asked,
        dependent(
            "validation_split",
            lambda data: validates,
            "evaluation during training (`--eval-strategy epoch`), or a choice by it",
        ),
        dependent(
            "few_shot_mode",
            lambda data: not strategy.uses_shots,
            f"strategies that leave shots to the loss or the training data; `{strategy.name}` has its own use of them",
        ),
    )
    if getattr(config, "allow_phase_change", False) and not run.resume:
        raise ConfigError("`--allow-phase-change` says how to resume; add `--resume`, or leave it out.")


def needs_validation(config: Any) -> bool:
    """Say whether a run looks at validation data."""
    evaluates = str(getattr(config.eval_strategy, "value", config.eval_strategy)) != "no"
    return evaluates or config.eval_on_start or config.load_best_model_at_end


# What meets each data role besides the source: the field of `DataArguments`, and how to say it on a command line.
_ROLE_FIELDS = {
    "target": ("shots", "labelled target-language examples: add `--shots 100`"),
    "auxiliary": ("auxiliary_dataset", "labelled data of auxiliary languages: add `--auxiliary-dataset PATTERN`"),
    "text": ("text_dataset", "unlabelled text: add `--text-dataset PATTERN`"),
}


def _check_roles(strategy: Strategy, config: Any, data: DataArguments) -> None:
    waived = strategy.waived_roles(config)
    needed = [role for role in strategy.roles if role not in waived]
    for role, (name, how) in _ROLE_FIELDS.items():
        given = bool(getattr(data, name))
        if role in needed and not given:
            raise ConfigError(f"strategy `{strategy.name}` needs {how}.")
        if given and role not in (*needed, *strategy.optional_roles):
            these = " with these settings" if role in waived else ""
            raise ConfigError(
                f"strategy `{strategy.name}` takes no {role} data{these}; leave `--{name.replace('_', '-')}` out."
            )


def non_default(arguments: Arguments) -> dict[str, Any]:
    """Return the settings that differ from their fields' defaults, and all of the strategy's own, by field name."""
    from hf_xlt.training.config import XLTConfig

    shared = {entry.name for entry in dataclasses.fields(XLTConfig)}
    own = [entry.name for entry in dataclasses.fields(arguments.config) if entry.name not in shared]
    changed = {name: getattr(arguments.config, name) for name in own}
    groups = (arguments.run, arguments.model, arguments.data, arguments.peft, arguments.average, arguments.config)
    for group in groups:
        for entry in dataclasses.fields(group):
            value = getattr(group, entry.name)
            default = entry.default_factory() if callable(entry.default_factory) else entry.default
            if entry.name in arguments.explicit or entry.name in EMBEDDED_SETTINGS:
                if value != default:
                    changed[entry.name] = value
    return changed
