"""Loading an encoder with a task's head.

Models load in float32 unless asked; nothing of this machine goes into the saved config.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.data.labels import LabelInventory
from hf_xlt.data.patterns import expand_home, looks_local
from hf_xlt.errors import ConfigError, one_line, setting
from hf_xlt.files import write_json
from hf_xlt.modelling.classes import class_order, named_classes, order_head
from hf_xlt.modelling.reloading import bare_names, body_names, body_renaming, forget_renaming
from hf_xlt.modelling.settings import THRESHOLD_FIELD, put_padding, settle_config, settle_outputs
from hf_xlt.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
EMBEDDED_PHRASES = "embedded-phrases"
CONFIG_NAME = "config.json"


class ModelError(ConfigError):
    """A model's files cannot be used.

    Attributes:
        path: where they are.
        problem: what is wrong with them, as a sentence whose subject is the model.
    """

    def __init__(self, path: str, problem: str, remedy: str = "") -> None:
        """Make the message of place, problem and remedy."""
        super().__init__(f"model `{path}` {problem} {remedy}".rstrip())
        self.path, self.problem = path, problem


def _model_instead(folder: Path) -> str:
    """Say what to give in place of a directory that holds no model."""
    if (folder / "adapter_config.json").is_file():
        if (folder.parent / "config.json").is_file():
            return f"it is an adapter alone. Give `{folder.parent}`, which holds the model with it merged in"
        return "it is an adapter alone. Give a model that it is merged into"
    runs = sorted(path.name for path in folder.iterdir() if (path / "config.json").is_file())
    return f"give one of the models in it, such as `{folder / runs[0]}`" if runs else "give a saved model"


@dataclass(frozen=True)
class ModelSource:
    """Where an encoder is loaded from.

    Attributes:
        path: Hub id or directory, for `from_pretrained`.
        name: how records and cards call it: the Hub id, or an embedded encoder's plain name; None for a directory.
        revision: branch, tag or commit on the Hub, or None.
        trust_remote_code: whether to run code that comes with it.
        attn_implementation: attention kernel, or None for the library's choice.
        pad_token_id: padding token that the config is to name; None leaves the config's.
        token_rows: how many tokens are to have an embedding; None leaves those that have one.
    """

    path: str
    name: str | None
    revision: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    pad_token_id: int | None = None
    token_rows: int | None = None

    @classmethod
    def find(cls, model: str, **options: Any) -> ModelSource:
        """Resolve what the user typed.

        Args:
            model: Hub id, directory, `embedded` or `embedded-phrases`.
            **options: the other fields.

        Raises:
            ConfigError: a path that is no directory, or a revision of a model that is not on the Hub.
        """
        local = model in (EMBEDDED, EMBEDDED_PHRASES) or os.path.isdir(expand_home(model))
        if local and options.get("revision") is not None:
            raise ConfigError(
                f"revision `{options['revision']}` is a version on the Hub, and `{model}` lies here; leave it out, or "
                "give the model's Hub id."
            )
        if model in (EMBEDDED, EMBEDDED_PHRASES):
            from hf_xlt import embedded

            if model == EMBEDDED:
                return cls(str(embedded.encoder_directory()), embedded.ENCODER_NAME, **options)
            return cls(str(embedded.phrase_encoder_directory()), embedded.PHRASE_ENCODER_NAME, **options)
        model = expand_home(model)
        if os.path.isdir(model):
            if not os.path.isfile(os.path.join(model, "config.json")):
                raise ConfigError(f"model directory `{model}` holds no `config.json`; {_model_instead(Path(model))}.")
            return cls(model, None, **options)
        _refuse_local(model, "model directory")
        return cls(model, model, **options)

    def left_in(self, folder: Path) -> ModelSource:
        """Return where the model is that was loaded from here and saved in a folder, with all that was settled."""
        return dataclasses.replace(
            self, path=str(folder), name=None, revision=None, pad_token_id=None, token_rows=None
        )

    def _options(self) -> dict[str, Any]:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def load_config(self) -> Any:
        """Load the model's config.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """
        from transformers import AutoConfig

        with readable_errors(self.path):
            return AutoConfig.from_pretrained(self.path, **self._options())

    def load_tokenizer(self, task: Task | None = None) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Args:
            task: what it is for; None is for anything, which takes a fast one.

        Raises:
            ConfigError: there is none, or it is not a fast one where it has to be.
        """
        from transformers import AutoTokenizer

        with readable_errors(self.path):
            tokenizer = AutoTokenizer.from_pretrained(self.path, **self._options())
        if not tokenizer.is_fast and (task is None or task.needs_fast_tokenizer):
            reason = f", and {task.name} has to know where in a text its tokens lie" if task else ""
            raise ConfigError(
                f"model `{self.path}` has no fast tokenizer{reason}; convert it or choose another model."
            )
        if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
            # transformers 5 makes an empty tokenizer where there are no files for one.
            raise ConfigError(f"model `{self.path}` comes without a tokenizer; save one beside it (`tokenizer.json`).")
        return tokenizer

    def load(self, task: Task, inventory: LabelInventory | None) -> PreTrainedModel:
        """Load the encoder in float32, with a new head where it has none of the right size.

        Raises:
            ConfigError: it cannot be loaded, or has no head for the task.
        """
        config = self.load_config()
        order = class_order(named_classes(config), inventory)
        config = settle_config(config, task, inventory, self.pad_token_id)
        model, report = self._load(
            task, config, attn_implementation=self.attn_implementation, ignore_mismatched_sizes=True
        )
        self.check_body(model, report)
        if order is not None:
            mismatched = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
            order_head(model, order, mismatched | set(report["missing_keys"]))
        return self.anonymous(self._resized(model))

    def _load(self, task: Task, config: Any, **settings: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Load a model with the task's head in float32; return what was missing in its files as well."""
        import torch

        with readable_errors(self.path), quiet():
            renaming = renaming_of(_auto_class(task), config)
            model, report = _auto_class(task).from_pretrained(
                self.path,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                **({"key_mapping": renaming} if renaming else {}),
                **settings,
                **self._options(),
            )
        forget_renaming(model, renaming)
        return model, report

    def _resized(self, model: PreTrainedModel) -> PreTrainedModel:
        """Give embeddings to the tokens that are to have one."""
        if self.token_rows is not None:
            with quiet():
                model.resize_token_embeddings(self.token_rows)
        return model

    def check_body(self, model: PreTrainedModel, report: dict[str, Any]) -> None:
        """Refuse weights that leave parts of the encoder at random; only head and pooler may be new."""
        mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
        body = body_names(model)
        unfit = [key for key in [*report["missing_keys"], *mismatched] if key in body and "pooler" not in key]
        if unfit:
            # The decoder that a Perceiver has for each task lies within what its class calls the encoder.
            bare = bare_names(model)
            unfit = [key for key in unfit if key in bare or ".decoder." not in key]
        if unfit:
            raise ModelError(
                self.path,
                f"cannot be used: its weights do not fit its config ({len(unfit)} tensors of the encoder, such as "
                f"`{sorted(unfit)[0]}`, are missing or of another shape).",
                "Copy or download it again.",
            )

    def load_masked_lm(self, seed: int = 0) -> tuple[PreTrainedModel, list[str]]:
        """Load the encoder in float32 with its masked-LM head; a missing head is made anew from the seed.

        Returns:
            The model, and notes for the user.

        Raises:
            ConfigError: it cannot be loaded, or parts of its body are missing.
        """
        import torch
        from transformers import AutoModelForMaskedLM, set_seed

        set_seed(seed)
        with readable_errors(self.path), quiet():
            model, report = AutoModelForMaskedLM.from_pretrained(
                self.path,
                dtype=torch.float32,
                attn_implementation=self.attn_implementation,
                output_loading_info=True,
                **self._options(),
            )
        self.check_body(model, report)
        model = self._resized(model)
        notes = []
        if report["missing_keys"]:
            notes.append("the model has no head for masked language modelling; a new, untrained one is made.")
        if report["unexpected_keys"]:
            first = sorted(report["unexpected_keys"])[0]
            notes.append(
                f"{len(report['unexpected_keys'])} tensors, such as `{first}`, are no part of a masked language model "
                "and are left out."
            )
        return self.anonymous(model), notes

    def load_random(self, task: Task, inventory: LabelInventory | None) -> PreTrainedModel:
        """Build the same architecture with random weights, in float32."""
        import torch

        config = settle_config(self.load_config(), task, inventory, self.pad_token_id)
        with readable_errors(self.path):
            model = _auto_class(task).from_config(
                config,
                dtype=torch.float32,
                attn_implementation=self.attn_implementation,
                trust_remote_code=self.trust_remote_code,
            )
        return self.anonymous(self._resized(model))

    def load_trained(self, task: Task) -> PreTrainedModel:
        """Load a model whose head was trained, for scoring.

        Raises:
            ConfigError: weights are missing or do not fit: the head was never trained for this task.
        """
        config = self.load_config()
        settle_outputs(config)
        if self.pad_token_id is not None:
            put_padding(config, self.pad_token_id)
        model, report = self._load(task, config)
        missing = sorted(report["missing_keys"])
        if missing:
            raise ConfigError(
                f"`{self.path}` has no trained head for {task.name}: {', '.join(missing[:3])} "
                f"{'is' if len(missing) == 1 else 'are'} missing. Give a run's output, or a model fine-tuned for it."
            )
        return self.anonymous(self._resized(model))

    def load_task_model(self, task: Task, inventory: LabelInventory | None) -> PreTrainedModel | None:
        """Load a model that was trained for just this task and these labels; None where it was not."""
        config = self.load_config()
        names = config.id2label
        if inventory is not None and [names[index] for index in sorted(names)] != list(inventory.names):
            return None
        if task.problem_type and config.problem_type != task.problem_type:
            return None
        try:
            return self.load_trained(task)
        except ModelError:
            raise
        except ConfigError:
            return None

    def license(self) -> dict[str, str]:
        """Return `license`, and `license_link` where there is one, off the model's card, if that is at hand.

        Nothing is fetched and nothing assumed: without a card on this machine the license is unknown.
        """
        from huggingface_hub import metadata_load

        card = self._card_path()
        try:
            metadata = metadata_load(card) if card else None
        except ValueError:
            metadata = None
        if not isinstance(metadata, dict) or not metadata.get("license"):
            return {}
        name = metadata.get("license_name") if metadata["license"] == "other" else metadata["license"]
        link = metadata.get("license_link")
        return {"license": str(name or "other"), **({"license_link": str(link)} if link else {})}

    def card(self) -> str | None:
        """Return the text of the model's card, if that is at hand; nothing is fetched."""
        card = self._card_path()
        return Path(card).read_text(encoding="utf-8", errors="replace") if card else None

    def _card_path(self) -> str | None:
        from huggingface_hub import try_to_load_from_cache

        card = os.path.join(self.path, "README.md")
        if not os.path.isdir(self.path):
            card = try_to_load_from_cache(self.path, "README.md", revision=self.revision)
        return card if isinstance(card, str) and os.path.isfile(card) else None

    def anonymous(self, model: PreTrainedModel) -> PreTrainedModel:
        """Let the model's config name nothing but the Hub id or the plain name."""
        model.config._name_or_path = self.name or ""
        model.name_or_path = self.name or ""
        return model


def _auto_class(task: Task) -> Any:
    import transformers

    return getattr(transformers, task.auto_model)


def renaming_of(auto_class: Any, config: Any) -> dict[str, str]:
    """Return how files name the encoder where a class with a head holds it under another name.

    Args:
        auto_class: an `AutoModelFor…`, or a class itself.
        config: of the model.
    """
    import transformers

    body = transformers.AutoModel._model_mapping
    heads = getattr(auto_class, "_model_mapping", {type(config): auto_class})
    if any(type(config) not in mapping for mapping in (heads, body)):
        return {}
    pair = heads[type(config)], body[type(config)]
    return {} if any(isinstance(found, tuple) for found in pair) else body_renaming(*pair)


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a Hub id, or from a directory with or without a model.

    Raises:
        ConfigError: there is none, or it is not a fast one.
    """
    name = expand_home(name)
    if os.path.isfile(os.path.join(name, "tokenizer.json")):
        return ModelSource(name, None, trust_remote_code=trust_remote_code).load_tokenizer()
    if os.path.isdir(name):
        raise ConfigError(f"`{name}` holds no fast tokenizer; save one there (`tokenizer.json`), or give another.")
    _refuse_local(name, "tokenizer directory")
    return ModelSource.find(name, trust_remote_code=trust_remote_code).load_tokenizer()


def _refuse_local(name: str, what: str) -> None:
    """Refuse a name that can only have been meant as a directory, before it is sought on the Hub.

    Raises:
        ConfigError: it is one.
    """
    reason = looks_local(name)
    if reason:
        raise ConfigError(f"{what} `{name}` is missing. It {reason}, so it was not sought on the Hub.")


def write_threshold(folder: Path, threshold: float) -> None:
    """Write into the config in a model's folder from which probability on it says a label."""
    path = folder / CONFIG_NAME
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), THRESHOLD_FIELD: threshold})


@contextlib.contextmanager
def readable_errors(path: str) -> Iterator[None]:
    """Turn the many errors of `from_pretrained` into one sentence.

    Raises:
        ModelError: whatever kept the model from loading.
    """
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, ImportError) as error:
        raise ModelError(path, f"cannot be loaded: {_reason(error)}") from error
    except Exception as error:
        # safetensors raises an exception class of its own that derives from nothing else.
        if type(error).__name__ != "SafetensorError":
            raise
        problem = f"cannot be loaded: its weights are damaged or cut off ({one_line(error)})."
        raise ModelError(path, problem, "Copy or download it again.") from error


def _reason(error: BaseException) -> str:
    text = one_line(error)
    if "Unrecognized configuration class" in text:
        return "its architecture has no head for this task. Choose an encoder such as `xlm-roberta-base`."
    if "trust_remote_code" in text:
        permission = setting("trust_remote_code", True)
        return f"it comes with its own Python code. Read that code, and add {permission} if you trust it."
    if "is not a local folder" in text or "not a valid model identifier" in text:
        return "no such directory, and no such model on the Hub. Check the spelling, or log in if it is private."
    if "offline" in text.lower() or "connect" in text.lower() or "couldn't connect" in text.lower():
        return "the Hub cannot be reached and the model is not in the cache. Check the network, or give a directory."
    return text


def is_adapted(model: Any) -> bool:
    """Say whether a model is trained through the adapters of `peft`."""
    # It is imported by whatever made such a model; nothing else here needs it installed.
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the report on the head's new weights, which is what fine-tuning expects."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
