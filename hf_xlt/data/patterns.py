"""Patterns with `{lang}` and `{split}`: which files fit, which names of languages lie there, what to call the data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_xlt.errors import ConfigError, close_match, setting
from hf_xlt.languages import check_code, is_code

LANG, SPLIT = "lang", "split"
# Splits as they are usually called: only these are read off names of files that no one asked for.
USUAL_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "eval")
_PARTS = re.compile(r"\{(lang|split)\}")
# Endings of files that hold no data as they are read here, and that no data set or model of the Hub is called by.
_FILE_ENDINGS = frozenset(
    "txt text gz bz2 xz zst zip tar tgz 7z rar conll conllu bio iob xml xlsx xls ods arrow feather orc pkl pickle npy "
    "npz db sqlite yaml yml toml md html tmx po json jsonl ndjson csv tsv parquet bin pt pth ckpt safetensors onnx "
    "gguf h5 msgpack model py ipynb log".split()
)


@dataclass(frozen=True)
class Fit:
    """A file, or a link that leads nowhere, whose name fits a pattern.

    Attributes:
        path: where it lies.
        parts: what stands in the place of `lang` and `split`.
    """

    path: Path
    parts: Mapping[str, str]


def find_fits(pattern: str, known: Mapping[str, str | Sequence[str]]) -> list[Fit]:
    """List what lies on the disk and fits a pattern.

    All characters but the parts in braces stand for themselves; a part that comes again must be the same. The case of
    the last suffix does not matter. Hidden names count only where the pattern begins so itself.

    Args:
        pattern: a path with `{lang}` and `{split}`, each any number of times.
        known: values of the parts; a list allows several; a part that is not named may be anything in one name.
    """
    fixed = {name: value for name, value in known.items() if isinstance(value, str)}
    choices = {name: value for name, value in known.items() if not isinstance(value, str)}
    components = Path(pattern).parts
    places: list[tuple[Path, dict[str, str]]] = [(Path(), fixed)]
    for number, component in enumerate(components):
        last = number == len(components) - 1
        places = [step for place, bound in places for step in _steps(place, component, bound, choices, last)]
    return [Fit(path, bound) for path, bound in places if path.is_file() or (path.is_symlink() and not path.exists())]


def _steps(
    place: Path, component: str, bound: dict[str, str], choices: Mapping[str, Sequence[str]], last: bool
) -> Iterator[tuple[Path, dict[str, str]]]:
    """Go one folder down, or to the file at the end."""
    literal = fill(component, bound)
    if not _PARTS.search(literal):
        path = place / literal
        if not last or os.path.lexists(path):
            yield path, bound
            return
    shape = _shape(literal, choices, last)
    try:
        names = sorted(os.listdir(place if place.parts else "."))
    except OSError:
        return
    for name in names:
        match = shape.fullmatch(name)
        if match and not (name.startswith(".") and not literal.startswith(".")):
            yield place / name, {**bound, **match.groupdict()}


def _shape(component: str, choices: Mapping[str, Sequence[str]], last: bool) -> re.Pattern[str]:
    stem, suffix = os.path.splitext(component) if last else (component, "")
    if _PARTS.search(suffix):
        stem, suffix = component, ""
    text, seen = "", set()
    for number, piece in enumerate(_PARTS.split(stem)):
        if number % 2 == 0:
            text += re.escape(piece)
        elif piece in seen:
            text += f"(?P={piece})"
        else:
            seen.add(piece)
            text += f"(?P<{piece}>{'|'.join(map(re.escape, choices[piece])) if piece in choices else '.+'})"
    return re.compile(text + (f"(?i:{re.escape(suffix)})" if suffix else ""))


def fill(pattern: str, parts: Mapping[str, str]) -> str:
    """Put values in the place of parts in braces; others stay."""
    return _PARTS.sub(lambda match: parts.get(match[1], match[0]), pattern)


def expand_home(spec: str) -> str:
    """Replace `~` at the start of a path by the home folder, as a shell does where nothing is quoted."""
    return os.path.expanduser(spec) if spec.startswith("~") else spec


def looks_local(name: str) -> str | None:
    """Say why a name that is neither file nor folder can only have been meant as one; None where it may be a Hub id.

    Args:
        name: what the user typed in the place of a path or a Hub id.
    """
    if name.startswith((".", "/", "~", os.sep)) or name.endswith("/") or "\\" in name or name.count("/") > 1:
        return "is a path"
    if os.path.isfile(name):
        return "is a file here"
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    if ending in _FILE_ENDINGS:
        return f"is called as a file is (`.{ending}`)"
    folder = os.path.dirname(name)
    if folder and os.path.isdir(folder) and not _is_cached(name):
        return f"would lie in the folder `{folder}` here"
    return None


def _is_cached(name: str) -> bool:
    """Say whether the Hub's cache holds a repository of a name, which is then meant."""
    from huggingface_hub import constants

    flat = name.replace("/", "--")
    return any((Path(constants.HF_HUB_CACHE) / f"{kind}--{flat}").is_dir() for kind in ("models", "datasets"))


def shareable_pattern(pattern: str) -> str:
    """Cut a local pattern to what says what the data are and not where or whose they are.

    That is the file and its folder, and of a pattern with parts in folders all from the folder above the first one.
    """
    pieces = Path(pattern).parts
    first = next((number for number, piece in enumerate(pieces) if _PARTS.search(piece)), len(pieces) - 1)
    folder = Path(*pieces[:first]) if first > 0 else Path()
    place = folder.absolute()
    is_home = place == Path.home() or place.parent.name in ("home", "Users") or place.name == Path.home().name
    told = pieces[first:] if is_home or folder.name in ("", "..") else (folder.name, *pieces[first:])
    return "/".join(told)


def label_of(place: str) -> str:
    """Return a name for a folder from a pattern or a Hub id: its words, without parts in braces and the suffix.

    `topic/{split}.{lang}.csv` gives `topic`, `topic/a.{lang}.csv` gives `topic-a`, `org/name:{lang}` gives `org-name`.
    """
    words, text = [], place
    while (ending := os.path.splitext(text)[1]) and ending[1:].lower() in _FILE_ENDINGS:
        text = text.removesuffix(ending)
    for word in re.split(r"[^\w-]+", _PARTS.sub(" ", text)):
        word = word.strip("-_")
        if word:
            words.append(word)
    return "-".join(words) or "data"


@dataclass(frozen=True)
class LanguageNames:
    """Names that data have for languages, and the codes that stand for them.

    Attributes:
        codes: code by name, for names that are no codes themselves.
        used: filled with those of the names that were found.
    """

    codes: Mapping[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set, compare=False)

    def find(self, names: Iterable[str], where: str) -> tuple[dict[str, str], list[str]]:
        """Give names their codes.

        Args:
            names: as they lie there.
            where: what the data are, for messages.

        Returns:
            Names by code, and the names that no code stands for.

        Raises:
            ConfigError: two names have one code.
        """
        found: dict[str, str] = {}
        strange = []
        for name in sorted(set(names)):
            code = self.codes.get(name, name)
            if name in self.codes:
                self.used.add(name)
            if not is_code(code):
                strange.append(name)
            elif code in found:
                raise ConfigError(
                    f"{where} has both `{found[code]}` and `{name}`, and {setting('language_map')} makes both "
                    f"`{code}`; give "
                    "one of them another code."
                )
            else:
                found[code] = name
        return found, strange


def parse_language_map(entries: Sequence[str] | None) -> LanguageNames:
    """Read `NAME=CODE` entries, several in one separated by commas.

    Raises:
        ConfigError: an entry is none, a name comes twice, or a code cannot be one.
    """
    codes: dict[str, str] = {}
    for entry in (part.strip() for value in entries or () for part in str(value).split(",")):
        if not entry:
            continue
        name, equals, code = (part.strip() for part in entry.partition("="))
        if not (name and equals and code):
            raise ConfigError(
                f"{setting('language_map', entry)} is no NAME=CODE; write `indonesian=id,toba_batak=bbc`: the name "
                f"that the "
                "data have, and the language's code."
            )
        if codes.get(name, code) != code:
            raise ConfigError(f"{setting('language_map')} gives `{name}` two codes, `{codes[name]}` and `{code}`.")
        codes[name] = check_code(code)
    return LanguageNames(codes)


def unknown_names(strange: Sequence[str], where: str) -> str:
    """Say which names lie somewhere and are not used, and what to do; nothing where there are none."""
    if not strange:
        return ""
    shown = [f"`{name}`" for name in strange[:8]]
    more = f" and {len(strange) - 8} more" if len(strange) > 8 else ""
    example = next((name for name in strange if name != "all" and not re.search(r"[,=\s]", name)), None)
    way_out = f"; {setting('language_map', f'{example}=CODE')} says which language is meant" if example else ""
    are = "is no language code and was" if len(strange) == 1 else "are no language codes and were"
    return f"{', '.join(shown)}{more} in {where} {are} not used{way_out}."


def missing_language(language: str, present: Sequence[str], strange: Sequence[str]) -> str:
    """Say what is there in place of a language that is not."""
    there = f"{close_match(language, present)} Languages there: {', '.join(present) or 'none'}."
    if not strange:
        return there
    mapping = setting("language_map", "NAME=CODE")
    return f"{there} Not taken as codes: {', '.join(strange[:8])} ({mapping} names their languages)."
