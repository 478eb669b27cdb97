"""Runs on disk whose test scores are those of planted answers, and a reader of the comparison's page."""

from html.parser import HTMLParser

import numpy as np
from records import make_record

from hf_xlt.items import ItemScores
from hf_xlt.results import SOURCE, TARGET, LanguageScore, Results
from hf_xlt.tasks import get_task

LANGUAGES = {"en": SOURCE, "de": TARGET, "sw": TARGET}
SIZE = 200


def right_answers(seed, share):
    """(N,) of 0 and 1 per language; the noise of a seed is shared by all strategies."""
    generator = np.random.default_rng(seed)
    return {code: (generator.random(SIZE) < share).astype(np.float32) for code in LANGUAGES}


def plant(folder, strategy, seed, share, items=True, status="finished", data="0", **arguments):
    """Write a run whose test scores are those of planted answers."""
    folder.mkdir(parents=True)
    answers = right_answers(seed, share)
    scores = tuple(
        LanguageScore(code, role, SIZE, {"accuracy": float(answers[code].mean())}) for code, role in LANGUAGES.items()
    )
    prints = {code: f"{code}{data}" for code in LANGUAGES}
    record = make_record(results=Results("accuracy", scores).to_dict(), status=status, seeds={"seed": seed})
    record.strategy = {**record.strategy, "name": strategy}
    record.arguments = {"learning_rate": 1e-4, "seed": seed, **arguments}
    record.data = {
        "source test": {"fingerprints": {"en": prints["en"]}},
        "target": {"fingerprints": {code: prints[code] for code in ("de", "sw")}},
    }
    record.write(folder)
    if items:
        kept = ItemScores(get_task("text-classification"), None)
        kept.languages = {code: np.stack([values, np.ones_like(values)], axis=-1) for code, values in answers.items()}
        kept.write(folder)
    return folder


class Page(HTMLParser):
    """Collects what a page refers to, and the text of its cells."""

    def __init__(self):
        super().__init__()
        self.links, self.cells, self.open, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "action", "srcset", "poster")]
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)
