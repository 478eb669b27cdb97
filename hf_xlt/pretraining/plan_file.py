"""The YAML file of a pre-training: encoder, tokenizer, text, phases, and the training arguments they share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from hf_xlt.errors import ConfigError, close_match, setting
from hf_xlt.pretraining.plan import Phase, as_list, make_phase, make_source
from hf_xlt.yaml_file import check_kinds, read_yaml

DEFAULT_FOLDER = "runs/pretraining"


@dataclass
class Plan:
    """What a pre-training is asked to do.

    Attributes:
        model: Hub id or directory of an encoder to continue from, or the config of a new one (`model_type`, ...).
        tokenizer: directory or Hub id; None takes the model's.
        phases: in order.
        output_dir: where it goes.
        training: fields of `MetaPretrainingConfig` for all phases.
        manifest: file of `hf-xlt lang-stats` with the sizes of streamed text, or None.
        student_layers: layers of `model` that the encoder starts from: their numbers from 0, or how many, spread
            evenly; None takes all.
        attn_implementation: attention kernel, or None for the library's choice; not saved.
        threads: CPU threads per process, or None.
    """

    model: str | dict[str, Any]
    phases: list[Phase]
    tokenizer: str | None = None
    output_dir: str = DEFAULT_FOLDER
    training: dict[str, Any] = field(default_factory=dict)
    manifest: str | None = None
    student_layers: int | list[int] | None = None
    attn_implementation: str | None = None
    threads: int | None = None


def read_plan(path: str) -> Plan:
    """Read a plan from YAML.

    Raises:
        ConfigError: it cannot be read, a key is unknown or missing, or a value cannot be used.
    """
    values = read_yaml(path)
    known = [entry.name for entry in dataclasses.fields(Plan)] + ["sources"]
    unknown = [key for key in values if key not in known]
    if unknown:
        raise ConfigError(f"`{path}`: unknown key {unknown[0]!r}.{close_match(str(unknown[0]), known)}")
    for name in ("model", "phases"):
        if not values.get(name):
            raise ConfigError(f"`{path}`: `{name}` is missing.")
    if not isinstance(values["phases"], list):
        raise ConfigError(f"`{path}`: `phases` must be a list of mappings, each with `name` and `steps`.")
    if not isinstance(values.get("training") or {}, dict):
        raise ConfigError(f"`{path}`: `training` must be a mapping of training arguments.")
    values = {key: value for key, value in values.items() if value is not None}
    check_kinds(Plan, {key: value for key, value in values.items() if key != "phases"}, f"`{path}`")
    shared = values.pop("sources", None) or []
    shared = [shared] if isinstance(shared, (str, dict)) else shared
    sources = [make_source(entry, f"`{path}`") for entry in as_list(shared, f"`{path}`")]
    phases = [make_phase(entry, sources) for entry in values.pop("phases")]
    names = [phase.name for phase in phases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"`{path}`: two phases are called `{twice[0]}`; names must differ.")
    if isinstance(values["model"], dict) and "model_type" not in values["model"]:
        raise ConfigError(f"`{path}`: a new `model` needs `model_type`, such as modernbert or xlm-roberta.")
    if isinstance(values["model"], dict) and values.get("student_layers") is not None:
        raise ConfigError(f"`{path}`: `student_layers` chooses layers of a trained `model`; a new one has none.")
    if isinstance(values["model"], dict) and not values.get("tokenizer"):
        raise ConfigError(f"`{path}`: a new `model` needs a `tokenizer`; make one with `hf-xlt train-tokenizer`.")
    return Plan(phases=phases, **{**values, "training": values.get("training") or {}})


def parse_layers(value: str) -> int | list[int]:
    """Read `--student-layers`: numbers separated by commas, or a single number, which is how many.

    Raises:
        ConfigError: it is neither.
    """
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise ConfigError(
            f"{setting('student_layers')} is {value!r}; give numbers of layers such as 0,4,8,11, or how many, "
            "such as 4."
        )
    numbers = [int(part) for part in parts]
    return numbers if "," in value else numbers[0]
