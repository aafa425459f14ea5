"""Whisper's text normalisers by name: what is not an error is taken out before words are compared.

They are those of the Whisper paper (Radford et al. 2022, arXiv:2212.04356, appendix C) as Transformers has them; the
British spellings, which Transformers expects from a checkpoint, come with this package.
"""

import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files

from whisper_hailo_hf.errors import RequestError

NORMALIZERS = {
    "basic": "lower case, no punctuation, nothing in brackets: for any language",
    "letters": "basic, and each letter a word of its own: for languages written without spaces",
    "english": "basic, and numbers, contractions and British spellings in one form: for English",
    "none": "texts as they are",
}


@cache
def get_normalizer(name: str) -> Callable[[str], str]:
    """A normaliser by its name: a function of a text. All but `none` leave single spaces and none at the ends.

    `english` writes spelled-out numbers in digits and joins neighbours, so that "one two three" is one word, "123":
    for connected digits take `basic`.

    Raises:
        RequestError: there is none of that name.
    """
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    normalize: Callable[[str], str]
    if name == "basic":
        normalize = BasicTextNormalizer()
    elif name == "letters":
        normalize = BasicTextNormalizer(split_letters=True)
    elif name == "english":
        normalize = EnglishTextNormalizer(_english_spellings())
    elif name == "none":
        return str
    else:
        raise RequestError(f"unknown normalizer {name!r}: choose {', '.join(NORMALIZERS)}")
    return lambda text: " ".join(normalize(text).split())


def _english_spellings() -> dict[str, str]:
    """British to American, as OpenAI's normaliser has them; the licence stands in the file."""
    text = files("whisper_hailo_hf.evaluation").joinpath("english_spellings.json").read_text(encoding="utf-8")
    spellings: dict[str, str] = json.loads(text)["spellings"]
    return spellings
