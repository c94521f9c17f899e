"""English text that every Python brings: the topics of its interactive help, 460 kB by the authors of its documentation."""

from __future__ import annotations

import re


def topics() -> list[str]:
    """The topics in a fixed order, markup of headings and code left as it is."""
    from pydoc_data.topics import topics as found

    return [text for _, text in sorted(found.items())]


def sentences(least: int = 5, most: int = 40) -> list[str]:
    """Sentences of so many words, each once, in the order of the text."""
    found: dict[str, None] = {}
    for topic in topics():
        for paragraph in re.split(r"\n\s*\n", topic):
            text = " ".join(paragraph.split())
            for sentence in re.findall(r"[A-Z][^.!?]*[.!?](?=\s|$)", text):
                if least <= len(sentence.split()) <= most and sum(letter.isalpha() for letter in sentence) > 0.7 * len(sentence):
                    found[sentence] = None
    return list(found)
