"""What must not be in a card, or in any text that is pushed: bad metadata, other figures, local paths, tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hf_xlt.model_cards.metadata import HUB_ID, LANGUAGE_CODE, eval_results
from hf_xlt.record import RunRecord

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_HEADER = re.compile(r"---\n(.*?)\n---(\n|$)", re.DOTALL)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
# The start of an absolute path; not a part of a web address, in which a letter precedes the slash.
_LOCAL_PATH = re.compile(
    r"(?<![\w/.:~-])(/(?:home|root|Users|tmp|var|mnt|media|data|scratch|work|workspace|opt|srv|private|content|kaggle)"
    r"/[^\s\"'`)|,]+)|(?<![\w/])(~/[^\s\"'`)|,]+)|(?<!\w)([A-Za-z]:\\+[^\s\"'`)|,]+)|(file://\S+)"
)


def leaks(text: str) -> list[str]:
    """Find local paths and access tokens.

    Returns:
        Problems in words; a token is not repeated.
    """
    found = [f"local path `{match[0]}`" for match in _LOCAL_PATH.finditer(text)]
    if _TOKEN.search(text):
        found.append("an access token")
    return list(dict.fromkeys(found))


def header(text: str) -> dict[str, Any]:
    """Return a card's metadata.

    Raises:
        ValueError: there is none, or it is not a YAML mapping.
    """
    import yaml

    match = _HEADER.match(text.replace("\r\n", "\n"))
    if match is None:
        raise ValueError("metadata is missing: the card must begin with a block between two lines `---`")
    try:
        values = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(f"metadata is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError("metadata is not a mapping of names to values")
    return values


def check(text: str) -> list[str]:
    """Check a card as the Hub will, and for what should not leave this machine; needs no network.

    Args:
        text: the whole card.

    Returns:
        Problems in words; empty when the card can be pushed.
    """
    try:
        values = header(text)
    except ValueError as error:
        return [str(error), *leaks(text)]
    problems = [
        f"`language` holds {code!r}, not an ISO 639 code of two or three lower-case letters"
        for code in _as_list(values.get("language"))
        if not (isinstance(code, str) and LANGUAGE_CODE.fullmatch(code))
    ]
    for key in ("datasets", "base_model"):
        problems += [
            f"`{key}` holds {name!r}, not a Hub id"
            for name in _as_list(values.get(key))
            if not (isinstance(name, str) and HUB_ID.fullmatch(name))
        ]
    problems += [
        f"`{key}` is not a text"
        for key in ("license", "pipeline_tag", "library_name")
        if key in values and not isinstance(values[key], str)
    ]
    problems += [
        f"`tags` holds {tag!r}, not a text" for tag in _as_list(values.get("tags")) if not isinstance(tag, str)
    ]
    return problems + _check_model_index(values) + leaks(text)


def _check_model_index(values: dict[str, Any]) -> list[str]:
    if "model-index" not in values:
        return []
    from huggingface_hub.repocard_data import model_index_to_eval_results

    try:
        _, results = model_index_to_eval_results(values["model-index"])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        return [f"`model-index` cannot be read: {type(error).__name__} {error}"]
    return [
        f"`model-index` holds {result.metric_value!r}, not a number"
        for result in results
        if isinstance(result.metric_value, bool) or not isinstance(result.metric_value, (int, float))
    ]


def contradictions(text: str, record: RunRecord) -> list[str]:
    """Find figures in a card's header that are not those of the run; figures of other test sets may be added.

    Args:
        text: a card that `check` has no complaint of.
        record: of the run that it tells of.

    Returns:
        Problems in words.
    """
    from huggingface_hub.repocard_data import model_index_to_eval_results

    values = header(text)
    _, found = model_index_to_eval_results(values["model-index"]) if "model-index" in values else ("", [])
    measured = {_place_of(result): result.metric_value for result in eval_results(record)}
    return [
        f"`model-index` gives {result.metric_value} as {result.metric_name or result.metric_type} of "
        f"`{result.dataset_config}`, and the run has measured {measured[_place_of(result)]}"
        for result in found
        if measured.get(_place_of(result), result.metric_value) != result.metric_value
    ]


def _place_of(result: EvalResult) -> tuple[str | None, ...]:
    return (result.dataset_type, result.dataset_config, result.dataset_split, result.metric_type, result.metric_name)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
