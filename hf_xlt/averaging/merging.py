"""Merging averaged adapters into their base model; it holds that model in memory, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_xlt.averaging.adapter_files import Adapter, plain_name
from hf_xlt.averaging.compatibility import copy_companions, read_config, read_object, without_paths
from hf_xlt.averaging.lora import labelled_config, mean_delta, mean_of_full
from hf_xlt.errors import ConfigError, setting
from hf_xlt.files import TOKENIZER_FILES, write_json
from hf_xlt.modelling.reloading import forget_renaming
from hf_xlt.modelling.settings import settle_outputs
from hf_xlt.models import ModelSource, quiet, readable_errors, renaming_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_xlt.averaging.average import Settings

_AUTO_MODELS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
_CLASS_ROWS = ("classifier.weight", "classifier.out_proj.weight", "score.weight")


def write_merged(counted: Sequence[tuple[Adapter, float]], settings: Settings, part: Path) -> dict[str, Any]:
    """Write W₀ + Σ wᵢ sᵢ Bᵢ Aᵢ as a model with config and tokenizer.

    Args:
        counted: adapters and their weights.
        settings: `base` names the base model where the adapters do not; `dtype` and `max_shard_size` are kept to.
        part: the folder, empty.

    Returns:
        What the report says of it.

    Raises:
        ConfigError: the base model is unknown, cannot be loaded, or lacks an adapted module.
    """
    import torch

    last = counted[-1][0]
    source = _base(last, settings)
    full = {plain_name(name): numbers for name, numbers in mean_of_full(counted).items()}
    model, missing = _load(source, last, full)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for module in last.modules():
            weight = _parameter(parameters, f"{module}.weight", source)
            delta = mean_delta(counted, module)
            if last.is_embedding(module) or last.config.get("fan_in_fan_out"):
                delta = delta.T
            _check_shape(module, delta.shape, tuple(weight.shape), source)
            weight.copy_(torch.from_numpy(weight.double().numpy() + delta))
        for name, numbers in full.items():
            weight = _parameter(parameters, name, source)
            _check_shape(name, numbers.shape, tuple(weight.shape), source)
            weight.copy_(torch.from_numpy(np.ascontiguousarray(numbers)))
    unfilled = sorted(set(missing) - set(full))
    if unfilled:
        raise ConfigError(
            f"neither `{source.path}` nor the adapters hold `{unfilled[0]}`: it would be left at random. Give the "
            f"right base model with {setting('base')}."
        )
    source.anonymous(model)
    if settings.dtype is not None:
        model.to(getattr(torch, str(settings.dtype).removeprefix("torch.")))
    shard = settings.shard_bytes()
    with quiet():
        model.save_pretrained(part, **({"max_shard_size": shard} if shard else {}))
    _save_tokenizer(source, last.checkpoint.snapshot.folder, part)
    files = {path.name: path.stat().st_size for path in sorted(part.glob("*.safetensors"))}
    return {"dtypes": (str(model.dtype).removeprefix("torch."),), "files": files}


def _base(adapter: Adapter, settings: Settings) -> ModelSource:
    from hf_xlt import embedded

    name = settings.base or adapter.config.get("base_model_name_or_path")
    if not name:
        raise ConfigError(
            f"`{adapter.checkpoint.place}` does not name its base model; give the model that it was trained on with "
            f"{setting('base')}."
        )
    folders = {
        embedded.ENCODER_NAME: embedded.encoder_directory,
        embedded.PHRASE_ENCODER_NAME: embedded.phrase_encoder_directory,
    }
    if name in folders:
        return ModelSource(str(folders[name]()), name)
    revision = None if settings.base else adapter.config.get("revision")
    return ModelSource.find(name, revision=revision)


def _load(source: ModelSource, adapter: Adapter, full: dict[str, np.ndarray]) -> tuple[PreTrainedModel, list[str]]:
    """Load the base model in float32, with a head of the size of the adapters'.

    Returns:
        The model, and names of the weights that it left at random.
    """
    import torch
    import transformers

    task = adapter.config.get("task_type")
    config = source.load_config()
    # Adapters of no named task carry the class, or else it is that of the base model.
    mapping = adapter.config.get("auto_mapping") or {}
    classes = config.architectures or ["AutoModel"]
    name = _AUTO_MODELS.get(task) or mapping.get("base_model_class") or classes[0]
    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise ConfigError(f"`{source.path}` is of the unknown class `{name}`, so nothing can be merged into it.")
    labels = _labels(adapter, full)
    _settle(config, adapter, len(labels))
    if labels:
        config.id2label = labels
        config.label2id = {label: index for index, label in labels.items()}
    renaming = renaming_of(model_class, config)
    with readable_errors(source.path), quiet():
        model, report = model_class.from_pretrained(
            source.path,
            config=config,
            **({"key_mapping": renaming} if renaming else {}),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            revision=source.revision,
        )
    forget_renaming(model, renaming)
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    return model, [*report["missing_keys"], *mismatched]


def _settle(config: Any, adapter: Adapter, classes: int) -> None:
    """Let the base model's config say what the adapters were trained for, and not what the base was."""
    settle_outputs(config)
    place = labelled_config(adapter.checkpoint.snapshot.folder)
    if place is not None:
        config.problem_type = read_config(place).get("problem_type")
    elif classes != config.num_labels:
        config.problem_type = None


def _labels(adapter: Adapter, full: dict[str, np.ndarray]) -> dict[int, str]:
    """Return the classes: of the config beside the adapter or of its run, else as many as the head has rows."""
    place = labelled_config(adapter.checkpoint.snapshot.folder)
    table = ((read_config(place) if place else None) or {}).get("id2label")
    rows = next((len(numbers) for name, numbers in full.items() if name.endswith(_CLASS_ROWS)), 0)
    if table and len(table) == (rows or len(table)):
        return {int(index): label for index, label in table.items()}
    return {index: f"LABEL_{index}" for index in range(rows)}


def _parameter(parameters: dict[str, Any], name: str, source: ModelSource) -> Any:
    if name not in parameters:
        raise ConfigError(
            f"`{source.path}` has no `{name}`, which the adapters change. Give the model that they were trained on "
            f"with {setting('base')}."
        )
    return parameters[name]


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...], source: ModelSource) -> None:
    if tuple(found) != tuple(expected):
        raise ConfigError(
            f"the adapters change `{name}` by {list(found)} numbers, and in `{source.path}` it has {list(expected)}. "
            f"Give the model that they were trained on with {setting('base')}."
        )


def _save_tokenizer(source: ModelSource, folder: Path, part: Path) -> None:
    """Take the tokenizer beside the adapter, or else the base model's, where there is one."""
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        config = (part / "config.json").read_bytes()
        copy_companions(folder, part, None)
        # That of the merged model stands.
        (part / "config.json").write_bytes(config)
        return
    try:
        source.load_tokenizer().save_pretrained(part)
    except ConfigError:
        return
    path = part / "tokenizer_config.json"
    values = read_object(path)
    if values is not None:
        write_json(path, without_paths(values))
