"""Multilingual phrases, parallel by construction, from the Unicode CLDR data that `babel` carries.

A phrase is a language-independent spec (kind, item, number, style) which a renderer turns into the text of one
language; the task is to tell from the text alone what kind of thing it denotes. No alignment is needed: row i of
every language is the same spec.

Items are divided into training, development and test items by a hash of the item's key. The division depends neither
on the languages nor on the babel version, and pre-training follows it too, so a test item is seen nowhere before the
test. Dates are divided by whole months, because one style shows month and year only; every style shows the year, since
without it a held-out date would read like one of another year.

A style of an item is left out for all languages when, in one of them, its text (digits and case aside) is also that of
another kind (Russian names some time zones by the bare country) or of an item in another part of the division; an
item without its main style is left out altogether. So no phrase has two classes, and no test phrase is among the
training phrases of any of the languages compared.

Numbers are formatted with Latin digits in every language: an anchor that all languages share.
"""

import functools
import hashlib
import itertools
import json
import random
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, time
from typing import Literal

import babel
from babel import Locale, localedata
from babel.core import get_cldr_version
from babel.dates import format_date, format_skeleton

from hf_xlt.embedded import SOURCE_LANGUAGE, TARGET_LANGUAGES, TEST_PHRASES

Split = Literal["train", "validation", "test"]

LABELS = ("place", "language", "money", "zone", "date", "clock", "past", "future", "duration", "measure")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
DEFAULT_LANGUAGES: tuple[str, ...] = (SOURCE_LANGUAGE, *TARGET_LANGUAGES)

TEST_SHARE, VALIDATION_SHARE = 0.25, 0.10
# With fewer than 20 items, a hash alone could leave a part empty. This is the first salt that gives the relative times
# and the durations four test and two development items each.
SPLIT_SALT = 55

# Every style of a kind, the main one first, with its weight in sampling.
STYLES: dict[str, dict[str, int]] = {
    "place": {"name": 1},
    "language": {"name": 1},
    "money": {"name": 1},
    "zone": {"standard": 3, "daylight": 1},
    "date": {"full": 1, "long": 1, "weekday": 1, "month": 1},
    "clock": {"period": 1, "plain": 1},
    "past": {"long": 3, "short": 1},
    "future": {"long": 3, "short": 1},
    "duration": {"long": 3, "short": 1},
    "measure": {"long": 3, "short": 1},
}
NUMBERED_KINDS = frozenset({"money", "past", "future", "duration", "measure"})
CALENDAR_KINDS = frozenset({"date", "clock"})
DATE_SKELETONS = {"weekday": ("yMMMEd", "yMMMd"), "month": ("yMMMM", "yMMM")}
CLOCK_SKELETONS = {"period": "Bhm", "plain": "hm"}

PLURAL_CATEGORIES = ("zero", "one", "two", "few", "many", "other")
RELATIVE_FIELDS = tuple("year quarter month week day hour minute second sun mon tue wed thu fri sat".split())
MEASURE_QUANTITIES = ("length", "area", "volume", "mass", "speed", "pressure", "energy", "power", "digital")
# Unions, unknown and test regions; collective and placeholder languages.
NO_PLACES = frozenset({"EU", "EZ", "UN", "ZZ", "XA", "XB", "QO"})
NO_LANGUAGES = frozenset({"und", "mul", "zxx", "root"})
# Units of the wrong quantity, and units which most languages name like another one of the list.
NO_UNITS = frozenset(
    "pressure-gasoline-energy-density energy-foodcalorie length-point mass-grain mass-carat mass-ton volume-dram "
    "volume-cup-metric volume-pint-metric volume-gallon-imperial volume-quart-imperial volume-fluid-ounce-imperial "
    "volume-dessert-spoon-imperial".split()
)

# Direction marks, soft hyphens and zero-width spaces. The zero-width joiners stay: they are spelling in Hindi.
INVISIBLE = dict.fromkeys(
    map(ord, "\u200e\u200f\u061c\u00ad\u200b\ufeff\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
)


@dataclass(frozen=True, slots=True)
class PhraseSpec:
    """What a phrase denotes, independent of language.

    Attributes:
        kind: one of `LABELS`.
        item: CLDR key, ISO date or `hour:minute`.
        number: the count in the phrase, 1 to 999; 0 for kinds without one.
        style: one of `STYLES[kind]`.
    """

    kind: str
    item: str
    number: int
    style: str


def clean(text: str) -> str:
    """Return the text in NFKC, without invisible marks and with single plain spaces."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text.translate(INVISIBLE))).strip()


def item_split(kind: str, item: str) -> Split:
    """Return the part to which an item belongs, the same in every language and every babel version."""
    group = "relative" if kind in ("past", "future") else kind
    key = item[: len("2000-01")] if kind == "date" else item
    digest = hashlib.sha256(f"{SPLIT_SALT}|{group}|{key}".encode()).hexdigest()
    position = int(digest[:8], 16) / 2**32
    if position < TEST_SHARE:
        return "test"
    return "validation" if position < TEST_SHARE + VALIDATION_SHARE else "train"


class PhraseGenerator:
    """Samples specs and renders them in any of its languages.

    Args:
        languages: CLDR codes, the source language among them or not. The items are those that all of them name, so
            generators of different languages may have different items, but never the same item in different parts.

    Raises:
        ValueError: a code is unknown to babel, or no language is given.
    """

    def __init__(self, languages: Iterable[str] = DEFAULT_LANGUAGES) -> None:
        """Load the languages' data and divide their common items."""
        self.languages = tuple(languages)
        if not self.languages:
            raise ValueError("`languages` is empty; give at least one CLDR language code.")
        unknown = [code for code in self.languages if not localedata.exists(code)]
        if unknown:
            raise ValueError(
                f"babel {babel_version()} has no data for {unknown!r}; use CLDR codes such as 'en', 'sw'."
            )
        self._locales = {code: Locale.parse(code) for code in self.languages}
        self._data = {code: localedata.LocaleDataDict(localedata.load(code)) for code in self.languages}
        candidates = self._common_items()
        self.excluded: frozenset[tuple[str, str, str]] = self._ambiguous_forms(candidates)
        self._items = {
            (kind, split): tuple(
                item
                for item in items
                if item_split(kind, item) == split and (kind, item, next(iter(STYLES[kind]))) not in self.excluded
            )
            for kind, items in candidates.items()
            for split in SPLITS
        }

    def items(self, kind: str, split: Split) -> tuple[str, ...]:
        """Return the items of a kind in one part, sorted."""
        return self._items[kind, split]

    def sample(self, rng: random.Random, split: Split, kind: str, item: str | None = None) -> PhraseSpec:
        """Draw a spec.

        Args:
            rng: the source of all randomness.
            split: the part from which the item is drawn.
            kind: one of `LABELS`.
            item: use this item instead of a random one.

        Returns:
            A spec that every language of the generator can render.
        """
        item = item or rng.choice(self.items(kind, split))
        styles = STYLES[kind]
        style = rng.choices(list(styles), weights=list(styles.values()))[0]
        if not self._has_style(kind, item, style):
            style = next(iter(styles))
        number = _sample_number(rng, kind) if kind in NUMBERED_KINDS else 0
        return PhraseSpec(kind, item, number, style)

    def balanced(self, split: Split, count: int, seed: int = 0) -> list[PhraseSpec]:
        """Draw specs with the kinds in turn, every item of a kind once before any comes again.

        A spec is repeated only where its kind has no further ones: names of places and languages carry no number.

        Args:
            split: the part from which the items are drawn.
            count: the number of specs.
            seed: another seed gives another drawing from the same part.

        Returns:
            The specs; the first n of a longer list are the list of length n.
        """
        rng = random.Random(f"{split} {seed}")
        queues: dict[str, list[str]] = {kind: [] for kind in LABELS}
        seen: set[PhraseSpec] = set()
        specs = []
        for index in range(count):
            kind = LABELS[index % len(LABELS)]
            if not queues[kind]:
                queues[kind] = rng.sample(self.items(kind, split), len(self.items(kind, split)))
            item = queues[kind].pop()
            for _ in range(20):
                spec = self.sample(rng, split, kind, item)
                if spec not in seen:
                    break
            seen.add(spec)
            specs.append(spec)
        return specs

    def render(self, language: str, spec: PhraseSpec) -> str:
        """Return the text of a spec in one of the generator's languages."""
        if spec.kind in CALENDAR_KINDS:
            return clean(self._calendar_text(language, spec))
        patterns = self._patterns(language, spec.kind, spec.item, spec.style)
        if spec.kind in NUMBERED_KINDS:
            pattern = patterns.get(self._locales[language].plural_form(spec.number)) or patterns["other"]
            return clean(pattern.replace("{0}", str(spec.number)))
        return clean(patterns["other"])

    def _has_style(self, kind: str, item: str, style: str) -> bool:
        if style == "daylight" and not all(style in self._zone_names(code, item) for code in self.languages):
            return False
        return (kind, item, style) not in self.excluded

    def _zone_names(self, language: str, item: str) -> dict[str, str]:
        return self._data[language]["meta_zones"].get(item, {}).get("long", {})

    def _patterns(self, language: str, kind: str, item: str, style: str) -> dict[str, str]:
        """Return the patterns of an item per plural category, `other` always among them; empty if it has no name.

        Fallbacks of incomplete data: long to short and short to long, plural name to name, category to `other`.
        """
        data = self._data[language]
        if kind in ("place", "language"):
            name = data["territories" if kind == "place" else "languages"].get(item)
            return {"other": name} if name else {}
        if kind == "zone":
            names = self._zone_names(language, item)
            return {"other": names.get(style) or names["standard"]} if "standard" in names else {}
        if kind == "money":
            return self._money_patterns(language, item)
        if kind in ("past", "future"):
            sources = [data["date_fields"].get(field, {}).get(kind) for field in (item, f"{item}-short")]
        else:
            forms = data["unit_patterns"].get(item, {})
            sources = [forms.get("long"), forms.get("short")]
        # Beside the plural forms CLDR stores others, such as `per` and the grammatical cases.
        usable = [{key: p[key] for key in PLURAL_CATEGORIES if p and p.get(key)} for p in sources]
        long, short = ({**p, "other": p.get("other") or next(iter(p.values()))} if p else {} for p in usable)
        return (short or long) if style == "short" else (long or short)

    def _money_patterns(self, language: str, item: str) -> dict[str, str]:
        data = self._data[language]
        name = data["currency_names"].get(item)
        names = data["currency_names_plural"].get(item) or {}
        if not (name or names):
            return {}
        frames = data["currency_unit_patterns"]
        return {
            category: (frames.get(category) or frames["other"]).replace(
                "{1}", names.get(category) or names.get("other") or name
            )
            for category in PLURAL_CATEGORIES
        }

    def _calendar_text(self, language: str, spec: PhraseSpec) -> str:
        locale = self._locales[language]
        if spec.kind == "clock":
            hour, minute = map(int, spec.item.split(":"))
            return format_skeleton(CLOCK_SKELETONS[spec.style], time(hour, minute), locale=locale)
        day = date.fromisoformat(spec.item)
        if spec.style in ("full", "long"):
            return format_date(day, spec.style, locale=locale)
        wanted, fallback = DATE_SKELETONS[spec.style]
        skeletons = self._data[language]["datetime_skeletons"]
        return format_skeleton(wanted if wanted in skeletons else fallback, day, locale=locale)

    def _common_items(self) -> dict[str, list[str]]:
        """Return, for each kind, the sorted items that all languages name."""
        first = self._data[self.languages[0]]
        named = {
            "place": [k for k in first["territories"] if re.fullmatch("[A-Z]{2}", k) and k not in NO_PLACES],
            "language": [k for k in first["languages"] if re.fullmatch("[a-z]{2,3}", k) and k not in NO_LANGUAGES],
            # A leading X marks metals, funds and tests, a parenthesis ("1927-2002") superseded currencies.
            "money": [k for k, name in first["currency_names"].items() if k[0] != "X" and "(" not in name],
            "zone": list(first["meta_zones"]),
            "past": list(RELATIVE_FIELDS),
            "future": list(RELATIVE_FIELDS),
            "duration": [k for k in first["unit_patterns"] if _quantity(k) == "duration" and "person" not in k],
            "measure": [k for k in first["unit_patterns"] if _quantity(k) in MEASURE_QUANTITIES and k not in NO_UNITS],
        }
        common = {
            kind: sorted(
                item for item in items if all(self._patterns(code, kind, item, "long") for code in self.languages)
            )
            for kind, items in named.items()
        }
        # Days 29 to 31 are left out: every listed day exists in every month.
        days = [f"{y}-{m:02d}-{d:02d}" for y in range(1950, 2031) for m in range(1, 13) for d in range(1, 29)]
        minutes = [f"{hour}:{minute:02d}" for hour in range(24) for minute in range(60)]
        return common | {"date": days, "clock": minutes}

    def _ambiguous_forms(self, candidates: dict[str, list[str]]) -> frozenset[tuple[str, str, str]]:
        """Return the (kind, item, style) triples that share a text with another kind or another part of the division.

        Dates and clock times are not compared: their digits and signs belong to no other kind.
        """
        excluded = set()
        for language in self.languages:
            owners = defaultdict(set)
            for kind in STYLES.keys() - CALENDAR_KINDS:
                for item, style in itertools.product(candidates[kind], STYLES[kind]):
                    for pattern in self._patterns(language, kind, item, style).values():
                        owners[clean(pattern).casefold()].add((kind, item, style))
            for forms in owners.values():
                if len({(kind, item_split(kind, item)) for kind, item, _ in forms}) > 1:
                    excluded |= forms
        return frozenset(excluded)


def _quantity(unit: str) -> str:
    return unit.partition("-")[0]


def _sample_number(rng: random.Random, kind: str) -> int:
    """Draw small numbers more often; the kinds share the range 1 to 99, so that digits give none of them away."""
    size = rng.random()
    if size < 0.5:
        return rng.randint(1, 12)
    if kind in ("past", "future"):
        return rng.randint(13, 99) if size < 0.8 else rng.randint(2, 30)
    return rng.randint(13, 99) if size < 0.8 else rng.randint(100, 999)


@functools.lru_cache(maxsize=1)
def default_generator() -> PhraseGenerator:
    """Return the generator of the twelve default languages, loaded once per process."""
    return PhraseGenerator()


def phrase_rows(
    split: Split, language: str, count: int, seed: int = 0, generator: PhraseGenerator | None = None
) -> list[dict[str, str | int]]:
    """Return labelled phrases of one language, the same specs in the same order for every language.

    Args:
        split: `train`, `validation` or `test`.
        language: one of the generator's languages.
        count: the number of rows; the classes come in turn.
        seed: the drawing; the published test set is the one of seed 0.
        generator: by default the one of the twelve languages of this package.

    Returns:
        Rows with the keys `id` (equal across languages), `lang`, `text`, `label` (index into `LABELS`), `label_text`.

    Raises:
        ValueError: the split or the language does not exist.
    """
    generator = generator or default_generator()
    if split not in SPLITS:
        raise ValueError(f"Got split {split!r}; it must be one of {SPLITS!r}.")
    if language not in generator.languages:
        raise ValueError(f"Got language {language!r}; this generator renders {generator.languages!r}.")
    return [
        {
            "id": f"{split}-{seed}-{index:05d}",
            "lang": language,
            "text": generator.render(language, spec),
            "label": LABELS.index(spec.kind),
            "label_text": spec.kind,
        }
        for index, spec in enumerate(generator.balanced(split, count, seed))
    ]


def test_set_hash(languages: Sequence[str] = DEFAULT_LANGUAGES) -> str:
    """Return the SHA-256, in hex, of the published test rows of the languages in the order given."""
    digest = hashlib.sha256()
    for language in languages:
        for row in phrase_rows("test", language, TEST_PHRASES):
            digest.update(json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


# Pytest would take the name for a test where a test module imports it.
test_set_hash.__test__ = False


def babel_version() -> str:
    """Return the version of babel, which fixes the version of CLDR."""
    return babel.__version__


def cldr_version() -> str:
    """Return the version of the CLDR data that babel carries."""
    return get_cldr_version()
