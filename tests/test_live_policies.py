"""The rules: which words stand, which are cut off, and when a word was said."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.whisper.generation_whisper import _dynamic_time_warping

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.live import guards
from whisper_hailo_hf.live.alignment import edges_at_pauses, token_starts, warp
from whisper_hailo_hf.live.policies import AlignAtt, GuessedWord, LocalAgreement, make_policy


def guess(*words):
    """(text, place of the attention) to words of one token each."""
    return [GuessedWord(text, (hash(text) % 1000,), (place,)) for text, place in words]


def test_two_passes_must_agree_on_a_prefix():
    policy = LocalAgreement()
    one, two, three, other = ("one", 10), ("two", 30), ("three", 50), ("tree", 50)
    assert policy.commit(guess(one, two), 60) == 0
    assert policy.commit(guess(one, two, other), 80) == 2
    assert policy.commit(guess(three), 100) == 0  # the first pass after "two" said "tree"
    assert policy.commit(guess(three), 120) == 1
    policy.reset()
    assert policy.commit(guess(three), 140) == 0


def test_words_are_held_back_while_attention_is_at_the_newest_frames():
    policy = AlignAtt(newest=0.4)  # 20 positions
    assert policy.commit(guess(("one", 30), ("two", 79), ("three", 95)), 100) == 2
    assert policy.commit(guess(("three", 95)), 115) == 0
    assert policy.commit(guess(("three", 95)), 120) == 1
    # attention that leaps back by more than 4 s is lost
    assert policy.commit(guess(("four", 400), ("what", 150), ("five", 410)), 1000) == 1
    policy.moved(300)
    assert policy.commit(guess(("five", 120)), 700) == 1


def test_the_decoder_may_stop_a_little_behind_the_newest_frames():
    stop = AlignAtt(newest=0.4).stopper(100)
    early, late = np.zeros(1500), np.zeros(1500)
    early[50] = late[90] = late[1400] = 1.0
    late[1400] = 2.0  # behind the audio: does not count
    assert not any(stop(early) for _ in range(20))
    asked = [stop(late) for _ in range(10)]
    assert asked.index(True) == 8
    assert LocalAgreement().stopper(100) is None


def test_an_unknown_policy_is_named_with_those_that_exist():
    with pytest.raises(RequestError, match="choose local-agreement, align-att"):
        make_policy("wait-k")


def test_a_loop_is_told_from_somebody_who_repeats_himself():
    tokens = [5, 7, 7, 7, 7, 7, 9]
    assert guards.cut_loop(tokens, [0, 10, 11, 11, 12, 12, 13]) == 2
    assert guards.cut_loop(tokens, [0, 10, 30, 50, 70, 90, 110]) == len(tokens)
    phrase = [1, 2, 3] * 5
    assert guards.cut_loop(phrase, [0, 20, 40] + [41] * 12) == 3
    assert guards.cut_loop([1, 2, 3], [0, 1, 2]) == 3


def test_a_word_said_already_is_cut_off():
    known = [("zero", 190), ("six", 216)]
    assert guards.cut_twice([("nine", 244), ("zero", 202), ("six", 220)], known) == 1  # seen in a real pass
    assert guards.cut_twice([("nine", 244), ("two", 202)], known) == 2  # back, but something else
    assert guards.cut_twice([("six", 240), ("six", 260)], known) == 2  # six six six, as people say it
    assert guards.cut_twice([("six", 217)], known) == 0
    assert guards.cut_twice([("one", 5)], []) == 1


def test_the_other_guards():
    assert guards.token_budget(0.0) == 12
    assert guards.token_budget(10.0) == 92
    assert guards.says_nothing(0.7, [-1.5, -0.9])
    assert not guards.says_nothing(0.7, [-0.2])
    assert not guards.says_nothing(0.5, [-3.0])
    assert not guards.says_nothing(0.9, [])
    assert guards.too_repetitive("thanks for watching " * 8)
    assert not guards.too_repetitive("no no no no")
    spoken = "the quick brown fox jumps over the lazy dog and then it runs back home because rain is coming"
    assert not guards.too_repetitive(spoken)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.integers(1, 12), columns=st.integers(1, 30), seed=st.integers(0, 10_000))
def test_the_path_is_that_of_transformers(rows, columns, seed):
    cost = np.random.default_rng(seed).standard_normal((rows, columns))
    ours, theirs = warp(cost), _dynamic_time_warping(cost)
    assert np.array_equal(ours[0], theirs[0])
    assert np.array_equal(ours[1], theirs[1])


def test_tokens_begin_where_the_attention_goes():
    attention = np.full((4, 200), 1e-4, np.float32)
    for row, (first, last) in enumerate([(10, 30), (30, 55), (55, 90), (90, 100)]):
        attention[row, first:last] = 1.0
    starts = token_starts(attention, 100)
    assert starts[1:] == pytest.approx([0.6, 1.1, 1.8], abs=0.05)


def test_edges_of_words_go_to_the_pauses_beside_them():
    # speech from 0.32 to 0.64, 0.96 to 1.12, and from 1.60 s on; the detector falls 0.08 s late
    probabilities = [0.0] * 10 + [0.9] * 10 + [0.0] * 10 + [0.9] * 5 + [0.0] * 15 + [0.9] * 10

    def edges(start, end, *peaks):
        return edges_at_pauses(start, end, peaks, probabilities, 0.032, 0.35)

    assert edges(0.1, 0.9, 0.0, 0.5, 0.5, 1.0) == (pytest.approx(0.32), pytest.approx(0.56))
    # a path that is early or late is mended, on either side of the pause
    assert edges(0.5, 1.3, 0.5, 1.0, 1.0, 1.7) == (pytest.approx(0.96), pytest.approx(1.04))
    # not across the peak of a neighbour, nor of the word itself: it lies in one stretch, though the path has two
    assert edges(0.1, 1.1, 0.0, 0.4, 1.0, 1.06) == (pytest.approx(0.32), 1.1)
    assert edges(0.45, 0.5, 0.4, 0.45, 0.5, 0.6) == (0.45, 0.5)
    # what lies behind a long pause from the word's peak is another word, which was not recognised
    assert edges(0.3, 1.9, 0.0, 1.0, 1.0, 1.92) == (pytest.approx(0.96), pytest.approx(1.04))
    assert edges(0.3, 1.9, 0.0, 1.9, 1.9, 1.92) == (pytest.approx(1.6), 1.9)
    # of two short ones within reach the nearer one: speech from 0.32, from 0.80, and from 1.28 s on
    probabilities[:] = [0.0] * 10 + [0.9] * 10 + [0.0] * 5 + [0.9] * 10 + [0.0] * 5 + [0.9] * 20
    assert edges(0.7, 1.2, 0.4, 1.9, 1.9, 1.92)[0] == pytest.approx(0.80)
    assert edges(1.1, 1.9, 0.4, 1.9, 1.9, 1.92)[0] == pytest.approx(1.28)
    # one that is too far away is another one
    assert edges(1.8, 1.9, 0.4, 1.9, 1.9, 1.92) == (1.8, 1.9)
    # a burst between a pause and a longer one still is the word; behind as long a pause it is not
    probabilities[:] = [0.0] * 10 + [0.9] * 10 + [0.0] * 4 + [0.9] * 5 + [0.0] * 15 + [0.9] * 16
    assert edges(0.3, 0.6, 0.0, 0.4, 0.4, 1.7)[1] == pytest.approx(0.928 - 0.08)
    probabilities[:] = [0.0] * 10 + [0.9] * 10 + [0.0] * 4 + [0.9] * 5 + [0.0] * 4 + [0.9] * 27
    assert edges(0.3, 0.6, 0.0, 0.4, 0.4, 1.7)[1] == pytest.approx(0.64 - 0.08)
    probabilities[:] = [0.0] * 10 + [0.9] * 10 + [0.0] * 10 + [0.9] * 5 + [0.0] * 25
    # no speech where the attention was: as it was; and an end is not before the word's peak
    assert edges(0.7, 0.9, 0.6, 0.8, 0.8, 1.0) == (0.7, 0.9)
    assert edges(0.4, 0.5, 0.0, 0.62, 0.62, 1.0)[1] == pytest.approx(0.62)
