"""The tokenizer that is left when a part of its vocabulary goes."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import RunError
from hf_xlt.pretraining.statistics import tokenizer_hash
from hf_xlt.trimming.pieces import Selection, Vocabulary, merge_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLAIN_CLASS = "PreTrainedTokenizerFast"


def trimmed_tokenizer(vocabulary: Vocabulary, selection: Selection) -> PreTrainedTokenizerBase:
    """Return a tokenizer with the kept tokens alone, under new ids in the old order."""
    from tokenizers import Tokenizer

    new_ids = selection.new_ids
    state = copy.deepcopy(vocabulary.state)
    model = state["model"]
    if vocabulary.kind == "Unigram":
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in new_ids]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_ids[model["unk_id"]]
    else:
        model["vocab"] = {piece: new_ids[index] for piece, index in model["vocab"].items() if index in new_ids}
    if selection.merges is not None:
        model["merges"] = [entry for entry in model["merges"] if merge_of(entry) in selection.merges]
    for token in state["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    if state.get("padding"):
        state["padding"]["pad_id"] = new_ids.get(state["padding"]["pad_id"], state["padding"]["pad_id"])
    _renumber(state["post_processor"], new_ids)
    made = copy.deepcopy(vocabulary.tokenizer)
    made._tokenizer = Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
    return made


def _renumber(part: Any, new_ids: Mapping[int, int]) -> None:
    """Give the tokens of a post-processor their new ids, however it is built."""
    if isinstance(part, list):
        for entry in part:
            _renumber(entry, new_ids)
    elif isinstance(part, dict):
        for name, value in part.items():
            if name == "ids" and all(isinstance(index, int) for index in value):
                part[name] = [new_ids[index] for index in value]
            elif name in ("sep", "cls") and isinstance(value, list) and len(value) == 2:
                part[name] = [value[0], new_ids[value[1]]]
            else:
                _renumber(value, new_ids)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """Save a tokenizer so that `AutoTokenizer` reads it as it is; the config of its model lies in the folder already.

    A class of its own may lay tokens out as it always did; then the file is given to the plain one.

    Returns:
        The tokenizer as it is read again, and notes for the user.

    Raises:
        RunError: it is read as another one all the same.
    """
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    # Only what is written here is the vocabulary: slow tokenizers' files hold the old one.
    dropped = [path.name for path in folder.glob("*.model")]
    for name in dropped:
        (folder / name).unlink()
    notes = [
        f"`{name}` holds the old vocabulary and is left out: `tokenizer.json` is the tokenizer." for name in dropped
    ]
    wanted = tokenizer_hash(tokenizer)
    reread = AutoTokenizer.from_pretrained(folder)
    if tokenizer_hash(reread) == wanted:
        return reread, notes
    name = type(tokenizer).__name__
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": _PLAIN_CLASS}
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    reread = AutoTokenizer.from_pretrained(folder)
    if tokenizer_hash(reread) != wanted:
        raise RunError(
            f"`AutoTokenizer` reads the trimmed tokenizer as another one, as `{name}` and as `{_PLAIN_CLASS}`."
        )
    return reread, [*notes, f"`{name}` would lay the vocabulary out anew, so it is saved as `{_PLAIN_CLASS}`."]
