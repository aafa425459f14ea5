"""The digits example: windows as the distillation wants them, the comparison of two models, and the bundled demo."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def _scripts():
    """The scripts import each other by name, as scripts do."""
    folders = [str(ROOT / "examples" / "digits"), str(ROOT / "benchmarks")]
    sys.path[:0] = folders
    yield
    for folder in folders:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def maker():
    """Draws windows of two voices of noise."""
    pytest.importorskip("scipy")
    from augmentation import Augmenter
    from digit_clips import DIGIT_WORDS, Clip
    from digit_tokenizer import build_processor
    from digit_windows import Ids, WindowMaker

    rng = np.random.default_rng(0)
    voices = {
        speaker: [
            Clip(0.1 * rng.standard_normal(8000).astype(np.float32), 0.1, 0.4, word, speaker, f"{word}_{speaker}")
            for word in DIGIT_WORDS
        ]
        for speaker in ("ann", "bob")
    }
    clips = [clip for voice in voices.values() for clip in voice]
    return WindowMaker(Ids(build_processor().tokenizer), [voices], [1.0], [], Augmenter(clips))


def test_an_item_has_the_tokens_after_the_first_and_the_frames_of_speech(maker):
    from digit_sequences import Word
    from digit_windows import make_target
    from distill_digits import item

    ids = maker.ids
    words = [Word("one", 1.0, 1.5), Word("two", 3.0, 3.2)]
    said = [ids.words["one"], ids.words["two"]]
    target = make_target(ids, words, 29.0, 30.0, timestamps=False, prompt=[ids.words["nine"]], task=ids.transcribe)
    found = item(ids, torch.zeros(80, 3000), target)
    assert found["labels"] == [ids.en, ids.transcribe, ids.plain, *said, ids.eot]
    assert found["speech_mask"].shape == (1500,)
    # a digit that the window's end cuts off is speech too
    assert sorted(np.flatnonzero(found["speech_mask"])) == [*range(50, 75), *range(150, 160), *range(1450, 1500)]


def test_a_window_depends_on_seed_and_index_alone(maker):
    from distill_digits import Windows

    first, again = Windows(maker, 4, 7), Windows(maker, 4, 7)
    second = first[1]
    assert first[0]["input_features"].shape == (80, 3000)
    assert torch.equal(again[1]["input_features"], second["input_features"])
    assert again[1]["labels"] == second["labels"]
    assert not torch.equal(first[0]["input_features"], second["input_features"])
    assert not torch.equal(Windows(maker, 4, 8)[1]["input_features"], second["input_features"])


def test_paired_difference_takes_the_same_sequences_of_both():
    pytest.importorskip("jiwer")
    from digits_wer import paired_difference

    references = ["one two three four", "five six", "seven eight nine zero"] * 20
    # wrong in very different numbers of words, but one more in each sequence of the first than of the second
    others = ["one two three four", "nine six", "one one one zero"] * 20
    texts = ["one two three five", "nine three", "one one one one"] * 20
    result = paired_difference(references, texts, others)
    assert result["other"]["wer"] == pytest.approx(80 / 200)
    assert result["difference"] == pytest.approx(60 / 200)
    low, high = result["interval_95"]
    # unpaired, the interval would be as wide as that of either error rate
    wide = result["other"]["interval_95"]
    assert low < 0.3 < high
    assert high - low < 0.5 * (wide[1] - wide[0])
    assert result["sequences_with_the_same_text"] == 0
    same = paired_difference(references, texts, texts)
    assert (same["difference"], same["interval_95"], same["sequences_with_the_same_text"]) == (0.0, [0.0, 0.0], 60)
