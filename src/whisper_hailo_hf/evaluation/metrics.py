"""Word and character error rates as metrics of the `evaluate` library, which need no network.

    from whisper_hailo_hf.evaluation.metrics import WordErrorRate

    WordErrorRate().compute(predictions=["one two"], references=["one too"], normalizer="basic")

The counts are jiwer's. Importing this module needs `evaluate`: pip install 'whisper-hailo-hf[eval]'.
"""

from typing import Any, ClassVar

import datasets
import evaluate

from whisper_hailo_hf.evaluation.error_counts import count_errors
from whisper_hailo_hf.evaluation.normalizers import get_normalizer

_CITATION = """\
@inproceedings{morris2004wer,
  title = {From WER and RIL to MER and WIL: improved evaluation measures for connected speech recognition},
  author = {Morris, Andrew and Maier, Viktoria and Green, Phil},
  booktitle = {Interspeech},
  year = {2004}
}
"""
_PARTS = ("substitutions", "deletions", "insertions")
_INPUTS = """
Args:
    predictions: list of transcripts.
    references: list of what was said, one for each.
    normalizer: of both, "basic", "letters", "english" or "none" (the default: texts are compared as they are).
"""


class _ErrorRate(evaluate.Metric):
    """What both rates share: a rate and its parts."""

    rate: ClassVar[str]
    unit: ClassVar[str]
    words: ClassVar[str]

    def _info(self) -> evaluate.MetricInfo:
        returns = (
            f"Returns:\n    {self.rate}: substitutions, deletions and insertions per {self.words} of the references"
        )
        return evaluate.MetricInfo(
            module_name=self.rate,
            description=f"{(self.__doc__ or '').strip()}\n",
            citation=_CITATION,
            inputs_description=f"{_INPUTS}{returns};\n    hits, {', '.join(_PARTS)}, reference_length.\n",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
            codebase_urls=["https://github.com/jitsi/jiwer"],
        )

    def _compute(self, predictions: list[str], references: list[str], normalizer: str = "none") -> dict[str, Any]:
        normalize = get_normalizer(normalizer)
        found = count_errors([*map(normalize, references)], [*map(normalize, predictions)], self.unit)
        return {
            self.rate: found.rate,
            "hits": found.hits,
            "substitutions": found.substitutions,
            "deletions": found.deletions,
            "insertions": found.insertions,
            "reference_length": found.length,
        }


class WordErrorRate(_ErrorRate):
    """Word error rate: the least number of words to substitute, delete and insert, per word that was said."""

    rate, unit, words = "wer", "word", "word"


class CharacterErrorRate(_ErrorRate):
    """Character error rate: as the word error rate, of characters; a space between words is one of them."""

    rate, unit, words = "cer", "character", "character"
