"""What a trainer refuses when it is built: arguments of another class, settings it would ignore, oracles.

The command line refuses most of this earlier; a trainer that is built in Python meets it here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError
from hf_xlt.languages import find_same
from hf_xlt.registry import changed_fields

if TYPE_CHECKING:
    from hf_xlt.training.trainer import XLTTrainer

EVAL = "eval_"
AVERAGE, TARGET_AVERAGE = "avg", "target_avg"


def check_arguments(trainer_cls: type[XLTTrainer], config: Any) -> None:
    """Refuse arguments that lack the strategy's settings.

    Raises:
        ConfigError: they are of another class than the trainer takes.
    """
    wanted = trainer_cls.config_cls
    if not isinstance(config, wanted):
        got = "nothing" if config is None else f"`{type(config).__name__}`"
        raise ConfigError(
            f"`{trainer_cls.__name__}` takes `args` of the class `{wanted.__name__}`, and got {got}. Write "
            f"`args={wanted.__name__}(output_dir=...)`: it has every field of `TrainingArguments`."
        )


def check_settings_of_phases(trainer_cls: type[XLTTrainer], config: Any) -> None:
    """Refuse settings that only the phases of a run carry out, where there are none.

    Raises:
        ConfigError: such a setting differs from its default.
    """
    changed = changed_fields(config, tuple(trainer_cls.settings_of_phases))
    if changed:
        name = changed[0]
        raise ConfigError(
            f"`{name}` is {getattr(config, name)!r}, and `{trainer_cls.__name__}` alone would ignore it: "
            f"{trainer_cls.settings_of_phases[name]}"
        )


def check_refusals(trainer_cls: type[XLTTrainer], config: Any) -> None:
    """Refuse the combinations that the strategy refuses on the command line.

    Raises:
        ConfigError: one of them is asked for.
    """
    for refusal in trainer_cls.refusals:
        if refusal.applies(config):
            raise ConfigError(f"`{trainer_cls.__name__}`: {refusal.reason}")


def check_precision(config: Any) -> None:
    """Refuse `fp16` on a CPU, where autocast takes no part in it and training would go on in float32.

    Raises:
        ConfigError: it is asked for.
    """
    if config.fp16 and config.device.type == "cpu":
        raise ConfigError("`fp16` needs a GPU, and would change nothing on a CPU. Use `bf16`, or leave it off.")


def check_label_smoothing(config: Any, model_config: Any, label_names: Sequence[str]) -> None:
    """Refuse label smoothing where there are no classes to smooth over.

    Args:
        config: the training's; `label_smoothing_factor` is read.
        model_config: for `problem_type` and `num_labels`.
        label_names: names of the model's label arguments.

    Raises:
        ConfigError: the model predicts positions, a number or several labels at once.
    """
    if not config.label_smoothing_factor:
        return
    problem = getattr(model_config, "problem_type", None)
    what = None
    if "start_positions" in label_names:
        what = "question answering, whose candidates are the positions of a batch, padding included"
    elif problem == "multi_label_classification":
        what = "several labels per example, each of which is a probability of its own"
    elif problem == "regression" or (problem is None and getattr(model_config, "num_labels", None) == 1):
        what = "regression, which has no classes"
    if what:
        raise ConfigError(f"`label_smoothing_factor` does not go with {what}. Leave it at 0.")


def source_languages_of(eval_dataset: Any, given: Sequence[str]) -> tuple[str, ...]:
    """Settle which languages of the evaluation data are sources.

    Args:
        eval_dataset: a data set, or data sets by language.
        given: what the user says; empty says nothing.

    Returns:
        The languages given; where none are, the only one there is, if there is one.

    Raises:
        ConfigError: there are several languages and none is said to be a source.
    """
    if given or not isinstance(eval_dataset, Mapping):
        return tuple(given)
    languages = tuple(eval_dataset)
    if len(languages) > 1:
        raise ConfigError(
            f"`eval_dataset` holds {len(languages)} languages ({', '.join(languages)}), and nothing says which are "
            "sources: an average over all of them would let target labels choose. Pass "
            f"`source_languages=[{languages[0]!r}]`, or whichever have training labels."
        )
    return languages


def check_selection(trainer: XLTTrainer) -> None:
    """Refuse to choose a model, an end of training or a learning rate by labels of target languages.

    `metric_for_best_model` serves `load_best_model_at_end`, `save_strategy="best"`, early stopping and the schedule
    `reduce_lr_on_plateau` alike.

    Raises:
        ConfigError: the metric is a target language's, without `select_on_target_validation`; or of source languages
            that are not evaluated.
    """
    datasets, asked = trainer.eval_dataset, trainer.args.metric_for_best_model
    if asked is None or not isinstance(datasets, Mapping):
        return
    name, sources = asked.removeprefix(EVAL), trainer.source_languages
    if trainer.compute_metrics is None and not name.endswith("loss"):
        raise ConfigError(
            f"`metric_for_best_model` is {asked!r}, and without `compute_metrics` the loss is the only metric. Pass "
            "`compute_metrics`, or choose `avg_loss`."
        )
    evaluated = [language for language in datasets if find_same(language, sources)]
    language = language_of(name, datasets)
    of_target = name.startswith(f"{TARGET_AVERAGE}_") or (language is not None and not find_same(language, sources))
    if of_target and not trainer.select_on_target_validation:
        raise ConfigError(
            f"`metric_for_best_model` is {asked!r}, which target-language labels decide. Choose "
            f"`avg_{_bare(name, language)}`, the mean over source languages, or allow it by name with "
            "`select_on_target_validation=True`; the result is then no zero-shot transfer."
        )
    if not of_target and not evaluated:
        raise ConfigError(
            f"`metric_for_best_model` is {asked!r}, and none of the source languages ({', '.join(sources)}) is in "
            f"`eval_dataset` ({', '.join(datasets)}). Add one, or allow target labels by name with "
            "`select_on_target_validation=True` and a metric `target_avg_...`."
        )


def _bare(name: str, language: str | None) -> str:
    return name.removeprefix(f"{language}_" if language else f"{TARGET_AVERAGE}_")


def language_of(name: str, languages: Mapping[str, Any] | Sequence[str]) -> str | None:
    """Return the language whose metric a name is, the longest code that fits, or None."""
    fitting = [language for language in languages if name.startswith(f"{language}_")]
    return max(fitting, key=len, default=None)


def with_selected(metrics: dict[str, float], asked: str | None, prefix: str) -> dict[str, float]:
    """Give the metric that selects its honest value under its own name.

    `eval_loss`, the stock default of `metric_for_best_model`, and any other metric without a language, is then the
    mean over source languages.

    Args:
        metrics: of an evaluation by language.
        asked: `metric_for_best_model`.
        prefix: of the keys, without underscore.
    """
    if asked is None:
        return metrics
    name = asked.removeprefix(EVAL)
    key, average = f"{prefix}_{name}", f"{prefix}_{AVERAGE}_{name}"
    return {**metrics, key: metrics[average]} if key not in metrics and average in metrics else metrics


def missing_metric(metrics: Mapping[str, float], asked: str) -> ConfigError:
    """Return the error of an evaluation that does not give the metric to select by."""
    known = [name.removeprefix(EVAL) for name in metrics if not name.endswith(("_runtime", "_per_second"))]
    return ConfigError(
        f"`metric_for_best_model` is {asked!r}, and evaluation gives {', '.join(known) or 'no metric'}. Choose one of "
        "these, or pass `compute_metrics` that returns it."
    )
