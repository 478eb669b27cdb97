"""Rewriting the words of a row by the roles of its columns, so that labels, tags and answer spans stay true."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any

Row = dict[str, Any]

# Columns that are rewritten as running text. `context` is too, except for its answers.
TEXT_ROLES = ("text", "text_pair", "question")


class WordAugmenter:
    """Rewrites words one by one, each independently of the others; a subclass says how.

    Texts keep their white space, rows their other columns. Of `tokens` each word is replaced by one word, so tags
    stay as they are. Of a `context`, words that touch an answer stay, and `answer_start` moves with the text before.
    """

    words = re.compile(r"\S+")

    def fit(self, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> WordAugmenter:
        """Return the augmenter for one language, having looked at its training rows.

        Args:
            rows: the rows.
            columns: their columns by role.
        """
        return self

    def rewrite(self, word: str, random: Random, *, one_word: bool) -> str:
        """Return what stands for a word.

        Args:
            word: not empty.
            random: where draws come from.
            one_word: the answer must not contain white space, nor be empty.
        """
        raise NotImplementedError

    def augment(self, row: Mapping[str, Any], columns: Mapping[str, str], random: Random) -> Row:
        """Return a copy of a row with its words rewritten.

        Args:
            row: values by column; those of another type than a task would take are left as they are.
            columns: columns by role.
            random: where draws come from; the two texts of a pair take different draws.
        """
        changed = dict(row)
        for role in TEXT_ROLES:
            if isinstance(row.get(columns.get(role)), str):
                changed[columns[role]] = self.rewrite_text(row[columns[role]], random)
        if isinstance(row.get(columns.get("tokens")), Sequence):
            changed[columns["tokens"]] = [
                self.rewrite(token, random, one_word=True) if isinstance(token, str) and token else token
                for token in row[columns["tokens"]]
            ]
        if isinstance(row.get(columns.get("context")), str):
            changed |= self._rewrite_context(row, columns, random)
        return changed

    def rewrite_text(self, text: str, random: Random) -> str:
        """Return a text with its words rewritten and its white space kept."""
        return self._rewrite_around(text, random, ())[0]

    def _rewrite_context(self, row: Mapping[str, Any], columns: Mapping[str, str], random: Random) -> Row:
        answers = row.get(columns.get("answers"))
        spans = _answer_spans(answers)
        if spans is None:
            return {}
        context, edits = self._rewrite_around(row[columns["context"]], random, spans)
        changed = {columns["context"]: context}
        if spans:
            changed[columns["answers"]] = _move_answers(answers, lambda start: start + _shift_before(edits, start))
        return changed

    def _rewrite_around(
        self, text: str, random: Random, kept: Sequence[tuple[int, int]]
    ) -> tuple[str, list[tuple[int, int]]]:
        """Rewrite the words that touch no kept span.

        Returns:
            The text, and of each change the end of the old word with how far what follows has moved in all.
        """
        pieces, edits, place, shift = [], [], 0, 0
        for match in self.words.finditer(text):
            start, end = match.span()
            if any(start < stop and begin < end for begin, stop in kept):
                continue
            word = self.rewrite(match[0], random, one_word=False)
            if word != match[0]:
                pieces += [text[place:start], word]
                place, shift = end, shift + len(word) - (end - start)
                edits.append((end, shift))
        return "".join([*pieces, text[place:]]), edits


def _answer_spans(answers: Any) -> list[tuple[int, int]] | None:
    """Return where answers begin and end; None for what is of no form that the task takes."""
    if answers is None:
        return []
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
        pairs = list(zip(_listed(texts), _listed(starts), strict=False))
    elif isinstance(answers, list) and all(isinstance(entry, Mapping) for entry in answers):
        pairs = [(entry.get("text"), entry.get("answer_start")) for entry in answers]
    else:
        return None
    fits = all(isinstance(text, str) and isinstance(start, int) for text, start in pairs)
    return [(start, start + len(text)) for text, start in pairs] if fits else None


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _move_answers(answers: Any, move: Callable[[int], int]) -> Any:
    if isinstance(answers, list):
        return [{**entry, "answer_start": move(entry["answer_start"])} for entry in answers]
    starts = answers["answer_start"]
    return {**answers, "answer_start": [move(start) for start in starts] if isinstance(starts, list) else move(starts)}


def _shift_before(edits: Sequence[tuple[int, int]], place: int) -> int:
    number = bisect.bisect_right(edits, place, key=lambda edit: edit[0])
    return edits[number - 1][1] if number else 0
