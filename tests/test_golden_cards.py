"""The cards of all strategies: against golden files, the Hub's own parser, and the figures of their records."""

import re

import pytest
from card_parts import figures, header, table
from hub_store import card_errors
from huggingface_hub import ModelCard
from records import make_record, named
from strategy_records import CARDS, finetune, golden_path, render_golden, run_averaging, soft_layers, xmaml

from hf_xlt.model_cards.card import check, render
from hf_xlt.registry import STRATEGIES

ROBUST = make_record().strategy
every_card = pytest.mark.parametrize("name", CARDS)
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)*(?:e-?\d+)?")


@every_card
def test_card_equals_the_golden_file(name):
    assert render_golden(name) == golden_path(name).read_text(encoding="utf-8")


def test_every_strategy_has_a_golden_card():
    assert {make().strategy["name"] for make, _ in CARDS.values()} == set(CARDS) & set(STRATEGIES) == set(STRATEGIES)


@every_card
def test_golden_cards_are_what_the_hub_accepts(name):
    text = render_golden(name)
    assert card_errors(text) == [] and check(text) == []
    card = ModelCard(text)
    assert card.data.to_dict() == header(text)
    assert len(card.data.eval_results or ()) == len(figures(text))


def prose(text):
    """What a card says beside its header, its code and its addresses."""
    body = re.sub(r"```.*?```", "", text.split("---\n", 2)[2], flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)|<!--.*?-->", "]", body)


def written(value):
    """Every form in which a card may write the figures of a record's value."""
    if isinstance(value, dict):
        return set().union(*map(written, value), *map(written, value.values()))
    if isinstance(value, (list, tuple)):
        return {f"{len(value):,}"}.union(*map(written, value))
    if isinstance(value, str):
        return set(_NUMBER.findall(value))
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, int):
        return {f"{value:,}", str(value)}
    small = {f"{value:.1f}", f"{value:.3f}", f"{value:.4f}", f"{100 * value:.3g}"}
    return {f"{100 * value:.1f}", f"{value:g}", str(value), f"{value:,.0f}"} | small


@every_card
def test_every_figure_of_the_text_is_the_records(name):
    record = CARDS[name][0]()
    scores = record.scores
    known = written({key: value for key, value in record.to_dict().items() if key != "format_version"})
    derived = [scores.source_average, scores.target_average, scores.transfer_gap]
    derived += [scores.source_average - score.metrics["accuracy"] for score in scores.of_role("target")]
    derived += [sum(phase.get("metaxl", {}).get("target_examples", {}).values()) for phase in record.phases]
    known |= written(derived) | {f"{len(scores.of_role('target'))}"} | {"1"}
    known |= {f"{entry['fingerprints'][code][:16]}" for entry in record.data.values() for code in entry["examples"]}
    if record.model.get("adapter"):
        share = record.model["adapter"]["trainable_parameters"] / record.model["parameters"]
        known.add(f"{100 * share:.2f}")
    found = _NUMBER.findall(prose(render_golden(name)))
    assert len(found) > 40
    assert [number for number in found if number.rstrip(",.") not in known] == []


def test_settings_at_their_defaults_are_folded_away():
    text = render(make_record(settings={"epsilon": 0.02, "steps": 1}, strategy={**ROBUST, "defaults": ["steps"]}))
    shown, folded = text.split("<summary>Settings of the strategy left at their defaults</summary>")
    assert "| `epsilon` | 0.02 |" in shown and "`steps`" not in shown
    assert "| `steps` | 1 |" in folded and "`epsilon`" not in folded
    assert "left at their defaults" not in render(make_record())


def test_no_evidence_is_told_apart_from_keep():
    rows = {row[0]: row for row in table(render(soft_layers()), "How much each layer could move")}
    assert rows["layer 0"][4].startswith("no evidence") and rows["layer 1"][4].startswith("no evidence")
    assert rows["word embeddings"][1:] == ["0.250", "0.125 %", "6.2", "close: moving less helped"]
    assert rows["layer 2"][4].startswith("open") and rows["head"][1:3] == ["none: moves freely", ""]


def test_auxiliary_languages_are_never_called_zero_shot_targets():
    text = render(soft_layers())
    assert "on labelled examples in English and, as auxiliary language, Hindi" in text
    assert "| Hindi | hi | auxiliary |" in text and "Not evaluated in Hindi" not in text
    assert "over 3 languages" in text
    assert "Hindi test set, a language with labels in training" in " ".join(text.split())
    assert "hi" in header(text)["language"]
    text = render(xmaml())
    assert "Not evaluated in Hindi (hi) and French (fr), auxiliary languages with labels in training." in text
    taught = soft_layers()
    taught.languages["auxiliary"] = named("sw")
    text = render(taught)
    assert "| Transfer | not zero-shot for Swahili: labelled in training, as auxiliary languages |" in text
    assert "no labelled example" not in text


def test_licences_and_citations_are_those_of_the_record():
    text = render(finetune())
    assert "- Licences: the base model's is mit; that of `org/topic` is cc-by-4.0." in text
    assert "holds no licence" not in text and text.count("@inproceedings{topic-2024,") == 1
    assert "The data: [org/topic](https://huggingface.co/datasets/org/topic)." in text
    bare = render(make_record(model={"name": "org/base", "model_type": "bert"}))
    assert "holds no licence of the base model `org/base` and the data `topic/{split}.{lang}.parquet`" in bare


def test_an_average_of_runs_tells_what_it_is_made_of():
    text = render(run_averaging())
    assert text.count("| Made from | a run of `finetune`") == 3
    assert "`seed` 2, target average by itself 54.7 |" in text
    assert "checkpoints `run-1`, `run-2`, `run-3`, each with weight 0.333333 |" in text
    code = text.split("## How to reproduce it\n\n```bash\n")[1].split("```")[0].splitlines()
    assert [line.split()[1] for line in code] == ["run", "run", "run", "average"]
    uneven = run_averaging()
    uneven.settings["weights"] = [0.5, 0.25, 0.25]
    assert "`run-1` 0.5, `run-2` 0.25, `run-3` 0.25" in render(uneven)
