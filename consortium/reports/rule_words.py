"""The rules of `clean` in plain words, for people who read a dataset's page. One sentence each; no jargon."""

from __future__ import annotations

import re

_NGRAMS = re.compile(r"repetition\.(top|duplicate)_(\d+)_gram")
_WORDS = {
    "repair.unicode": "Broken characters were repaired, invisible ones taken out.",
    "c4.citation": "Citation marks such as [1] were taken out.",
    "c4.line_few_words": "Lines of one or two words were taken out.",
    "c4.line_long_word": "Lines with an endless word were taken out.",
    "c4.line_unterminated": "Lines that end in no full stop or the like were taken out.",
    "c4.line_javascript": "Lines that ask to switch on JavaScript were taken out.",
    "c4.line_policy": "Lines about cookies, privacy policy or terms of use were taken out.",
    "lines.boilerplate": "Lines of page furniture (menus, copyright lines) were taken out.",
    "lines.repeated": "Lines that stand a second time in the same document were taken out.",
    "redact.secret": "Passwords and keys were replaced by [SECRET].",
    "redact.email": "E-mail addresses were replaced by [EMAIL].",
    "redact.iban": "Bank account numbers were replaced by [IBAN].",
    "redact.credit_card": "Credit card numbers were replaced by [CREDIT_CARD].",
    "redact.national_id": "Identity, tax and social security numbers were replaced by [NATIONAL_ID].",
    "redact.ip": "Addresses of computers were replaced by [IP].",
    "redact.phone": "Telephone numbers were replaced by [PHONE].",
    "length.min": "Too short.",
    "length.max": "Too long.",
    "language.none": "No letters to tell a language by.",
    "language.other": "In another language than those wanted.",
    "language.confidence": "The language could not be told with enough certainty.",
    "gopher.min_words": "Too few words.",
    "gopher.max_words": "Too many words.",
    "gopher.min_mean_word_chars": "Words are too short on average: no prose.",
    "gopher.max_mean_word_chars": "Words are too long on average: no prose.",
    "gopher.hashes": "Too many # signs.",
    "gopher.ellipses": "Too many ellipses (…).",
    "gopher.bullet_lines": "Almost only list items.",
    "gopher.ellipsis_lines": "Too many lines end in an ellipsis: text that was cut off.",
    "gopher.alpha_words": "Too many words without a letter.",
    "gopher.stop_words": "Hardly a common word of the language: no prose.",
    "c4.lorem_ipsum": "Contains the filler text lorem ipsum.",
    "c4.curly_bracket": "Contains a curly bracket: likely program code.",
    "c4.min_sentences": "Too few sentences.",
    "fineweb.terminal_lines": "Too few lines end like a sentence.",
    "fineweb.short_lines": "Too many short lines.",
    "fineweb.duplicate_line_chars": "Too much text in repeated lines.",
    "fineweb.newlines": "Too many line breaks for its words.",
    "repetition.duplicate_paragraphs": "Too many paragraphs repeat.",
    "repetition.duplicate_paragraph_chars": "Too much text in repeated paragraphs.",
    "repetition.duplicate_lines": "Too many lines repeat.",
    "repetition.duplicate_line_chars": "Too much text in repeated lines.",
    "dedup.exact": "The same text stands elsewhere in the collection; one copy stays.",
    "dedup.near": "Almost the same text stands elsewhere in the collection; one copy stays.",
    "dedup.across": "Another state keeps a copy of almost the same text.",
    "decontaminate.ngram": "Shares a passage with a test that models are measured by.",
    "poisoning.burst": "One contributor sent too many copies of almost the same text: set aside until looked at.",
    "poisoning.trigger": "One contributor's texts share a word that nobody else uses: set aside until looked at.",
    "poisoning.statistics": "One contributor's texts are made unlike all others: set aside until looked at.",
    "poisoning.distribution": "One contributor uses common words unlike all others: set aside until looked at.",
}


def in_words(rule: str) -> str:
    """Return a sentence that says what a rule removes or changes; nothing for a rule it does not know."""
    found = _NGRAMS.fullmatch(rule)
    if found:
        what = "One group of {} words makes up" if found[1] == "top" else "Groups of {} words that repeat make up"
        return f"{what.format(found[2])} too much of the text."
    return _WORDS.get(rule, "")
