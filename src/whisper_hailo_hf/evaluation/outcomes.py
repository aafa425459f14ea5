"""What became of one utterance: its errors, and whether nothing came out or something that nobody said.

What counts as a hallucination is defined here, by rules that need no judge:

- `on_silence`: the reference has no word, the hypothesis has;
- `repetition`: the hypothesis compresses by more than 2.4 with zlib, at which Whisper's own decoding takes a text for
  a loop (arXiv:2212.04356, section 4.5), and the reference does not;
- `insertions`: five inserted words or more, and more than half as many as the reference has words;
- `unrelated`: five words or more, of which none is right, where something was said.
"""

import zlib
from dataclasses import asdict, dataclass
from typing import Any

from whisper_hailo_hf.evaluation.error_counts import ErrorCounts, count_errors
from whisper_hailo_hf.evaluation.normalizers import get_normalizer

HALLUCINATIONS = ("on_silence", "repetition", "insertions", "unrelated")
COMPRESSION_RATIO = 2.4
HALLUCINATED_WORDS = 5
HALLUCINATED_SHARE = 0.5


@dataclass(frozen=True)
class Outcome:
    """One utterance by one system.

    Attributes:
        id: of the utterance.
        reference, text: as they are.
        reference_normalized, text_normalized: what was compared.
        words, characters: errors.
        empty: something was said, and nothing came out.
        hallucinations: which of `HALLUCINATIONS` hold.
        audio_seconds, seconds: length, and time that it took.
    """

    id: str
    reference: str
    text: str
    reference_normalized: str
    text_normalized: str
    words: ErrorCounts
    characters: ErrorCounts
    empty: bool
    hallucinations: tuple[str, ...]
    audio_seconds: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return asdict(self) | {"wer": self.words.rate, "cer": self.characters.rate}


def judge(
    utterance_id: str, reference: str, text: str, normalizer: str, audio_seconds: float, seconds: float
) -> Outcome:
    """Compares what was heard with what was said.

    Args:
        utterance_id: to know it by.
        reference: what was said.
        text: what was heard.
        normalizer: of both, one of `NORMALIZERS`.
        audio_seconds, seconds: length of the audio, and time that it took.
    """
    normalize = get_normalizer(normalizer)
    said, heard = normalize(reference.strip()), normalize(text.strip())
    words = count_errors([said], [heard])
    return Outcome(
        utterance_id,
        reference,
        text,
        said,
        heard,
        words,
        count_errors([said], [heard], "character"),
        bool(said and not heard),
        _hallucinations(said, heard, words),
        audio_seconds,
        seconds,
    )


def compression_ratio(text: str) -> float:
    """Bytes of a text by bytes of it compressed with zlib, as Whisper reckons it; 0 of an empty text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def _hallucinations(said: str, heard: str, words: ErrorCounts) -> tuple[str, ...]:
    heard_words = words.hits + words.substitutions + words.insertions
    many = heard_words >= HALLUCINATED_WORDS
    found = {
        "on_silence": bool(heard and not said),
        "repetition": compression_ratio(heard) > COMPRESSION_RATIO >= compression_ratio(said),
        "insertions": bool(said)
        and words.insertions >= HALLUCINATED_WORDS
        and words.insertions > HALLUCINATED_SHARE * words.length,
        "unrelated": bool(said) and many and not words.hits,
    }
    return tuple(name for name in HALLUCINATIONS if found[name])
