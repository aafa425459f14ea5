"""Cutting recordings of several digits into clips: forced alignment with a model that tells digits frame by frame."""

import numpy as np
from digit_clips import SAMPLE_RATE, Clip


def force_align(scores: np.ndarray, classes: list[int], shortest: int = 6) -> list[tuple[int, int]]:
    """The most likely first and last + 1 frame of each word of a known text, by Viterbi's algorithm.

    Args:
        scores: Log probabilities, (frames, classes), class 0 for no speech.
        classes: The words, in order; between, before and after them may be frames of class 0.
        shortest: Frames a word takes at least.

    Returns:
        One pair for each word, or an empty list where the recording is too short for the text.
    """
    # states: silence, then `shortest` states for each word (the last one repeats) and a silence that may be skipped
    kinds, words, repeats = [0], [-1], [True]
    for i, kind in enumerate(classes):
        kinds += [kind] * shortest + [0]
        words += [i] * shortest + [-1]
        repeats += [False] * (shortest - 1) + [True, True]
    n_frames, n_states = len(scores), len(kinds)
    emitted = scores[:, kinds]
    best = np.full(n_states, -np.inf)
    best[:2] = emitted[0, :2]
    back = np.zeros((n_frames, n_states), dtype=np.int64)
    skips = np.array([s >= 2 and 0 <= words[s - 2] < words[s] for s in range(n_states)])
    for t in range(1, n_frames):
        stay = np.where(repeats, best, -np.inf)
        step = np.concatenate([[-np.inf], best[:-1]])
        skip = np.where(skips, np.concatenate([[-np.inf, -np.inf], best[:-2]]), -np.inf)
        options = np.stack([stay, step, skip])
        back[t] = options.argmax(axis=0)
        best = options.max(axis=0) + emitted[t]
    state = n_states - 1 if best[-1] >= best[-2] else n_states - 2
    if not np.isfinite(best[state]):
        return []
    path = [state]
    for t in range(n_frames - 1, 0, -1):
        state -= int(back[t, state])
        path.append(state)
    said = np.array([words[s] for s in reversed(path)])
    return [(int(np.flatnonzero(said == i)[0]), int(np.flatnonzero(said == i)[-1]) + 1) for i in range(len(classes))]


def cut_clips(
    samples: np.ndarray, words: tuple[str, ...], scores: np.ndarray, classes: list[int], speaker: str, rate: int = 50
) -> list[Clip]:
    """The words of a recording as clips, 20 ms of margin and 8 ms fades; words the model finds unlikely are left out.

    Args:
        samples: Mono, 16 kHz.
        words, classes: The text and its classes.
        scores: Log probabilities of the classes, `rate` frames a second.
        speaker: Whose clips they are.
    """
    clips = []
    for word, kind, (first, last) in zip(words, classes, force_align(scores, classes), strict=False):
        if np.median(scores[first:last, kind]) < np.log(0.3) or last - first > 1.2 * rate:
            continue
        begin, end = max(0, first / rate - 0.02), min(len(samples) / SAMPLE_RATE, last / rate + 0.02)
        cut = samples[int(begin * SAMPLE_RATE) : int(end * SAMPLE_RATE)].astype(np.float32)
        fade = np.linspace(0.0, 1.0, 128, dtype=np.float32)
        cut[:128] *= fade
        cut[-128:] *= fade[::-1]
        clips.append(Clip(cut, first / rate - begin, last / rate - begin, word, speaker, f"{speaker}:{word}"))
    return clips
