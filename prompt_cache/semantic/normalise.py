"""The form of a question that is embedded, kept and compared."""

from __future__ import annotations

import unicodedata

# Format characters that join or direct what stands beside them; they are seen by nobody, and would make equal questions differ.
_INVISIBLE = frozenset({"Cc", "Cf", "Co", "Cs", "Cn"})

_SENTENCE_MARKS = "".join(dict.fromkeys(".,!?;:…¿¡。，、！？；：«»“”„\"'‘’"))


def normalise(text: str) -> str:
    """The text in NFC, without control, format and unassigned characters, white space collapsed to single spaces, trimmed; case is kept.

    Applying it again changes nothing.
    """
    composed = unicodedata.normalize("NFC", text)
    if not composed.isascii() or not composed.isprintable():
        kept = (" " if char.isspace() else char for char in composed if char.isspace() or unicodedata.category(char) not in _INVISIBLE)
        composed = unicodedata.normalize("NFC", "".join(kept))
    return " ".join(composed.split())


def folded(text: str) -> str:
    """The text without what never makes another question: case, spacing and the marks that end or part sentences.

    Marks inside a word or a number stay, and so does what programs are written with: C is not C++, 3.5 is not 35, 5 is not -5.
    """
    words = (word.strip(_SENTENCE_MARKS) for word in normalise(text).casefold().split())
    return " ".join(word for word in words if word)
