"""Recordings of any length through Whisper, window after window.

The sequential long-form algorithm of the Whisper paper (arXiv:2212.04356, section 3.8): decode a window of 30 s, go to
where its last whole segment ends, decode the next. Each window is one short-form `generate()` of Transformers, with
features from its own samples, as in training. Hence memory does not grow with the recording, several recordings make
one batch, and times are right after silence, where the ASR pipeline's tokenizer can only guess which window a
timestamp belongs to.

Where a voice activity detector is asked for, that begins anew with each stretch of speech that it finds: pauses, in
which Whisper loses its place or makes something up, are not decoded, and windows are cut at pauses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from whisper_hailo_hf.audio import SAMPLING_RATE, FloatArray
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.speech_model import SpeechModel
from whisper_hailo_hf.transcript import Segment, Transcript, Word, join_texts
from whisper_hailo_hf.transcription.stretches import SpeechStretches, Stretch
from whisper_hailo_hf.voice_activity import make_vad

TIMESTAMPS = ("none", "segment", "word")
TASKS = ("transcribe", "translate")
# Within one step of 16-bit audio there is nothing to hear, and Whisper would make something up.
_SILENCE = 2.0**-15
_TIMESTAMP_STEP_S = 0.02
# What is left after the last segment, if shorter than this, holds no word.
_SHORTEST_REST_S = 0.1


@dataclass(eq=False)
class _Recording:
    """One recording on its way through the model: the samples not yet decoded, and what came of those before."""

    key: Any
    blocks: Iterator[FloatArray]
    file: str | None = None
    language: str | None = None
    # No timestamps are decoded: nobody asked, and there is no next window to find (or the model knows none).
    untimed: bool = False
    samples: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))
    done: int = 0  # samples before `samples`
    told: int = 0  # of these, how many the caller has been told of
    exhausted: bool = False
    segments: list[Segment] = field(default_factory=list)
    error: Exception | None = None

    def fill(self, wanted: int) -> None:
        """Read until `wanted` samples are at hand or the recording ends."""
        parts = [self.samples]
        size = self.samples.size
        while size < wanted and not self.exhausted:
            block = next(self.blocks, None)
            if block is None:
                self.exhausted = True
            else:
                parts.append(block)
                size += block.size
        if len(parts) > 1:
            self.samples = np.concatenate(parts)

    def drop(self, count: int) -> None:
        count = min(count, self.samples.size)
        # A copy, or a small rest would keep the whole block in memory.
        self.samples = self.samples[count:].copy()
        self.done += count

    def spent(self) -> bool:
        """Whether the samples at hand hold nothing more."""
        rest = self.samples.size
        return rest == 0 or (self.done > 0 and rest < _SHORTEST_REST_S * SAMPLING_RATE)

    def finished(self) -> bool:
        return self.exhausted and self.spent()


@dataclass(eq=False)
class _SpokenRecording(_Recording):
    """A recording of which only the stretches of speech are taken up, each by itself."""

    speech: SpeechStretches = field(kw_only=True)
    stretches: Iterator[Stretch] = field(init=False)

    def __post_init__(self) -> None:
        self.stretches = iter(self.speech)

    def fill(self, wanted: int) -> None:
        """Go to the next stretch that holds something, where this one holds no more."""
        while self.spent() and not self.exhausted:
            stretch = next(self.stretches, None)
            self.exhausted = stretch is None
            self.done, self.samples = stretch or (self.speech.heard, self.samples[:0])


class Transcriber:
    """A loaded Whisper that turns recordings into `Transcript`s.

    Args:
        speech: model, tokenizer and feature extractor, from `load_speech_model`.
        timestamps: `none`, `segment`, or `word` (dynamic time warping over the decoder's cross-attention).
        language: code or English name; None detects it, once for each recording, in its first window.
        task: `transcribe`, or `translate` into English; None is the model's own default.
        batch_size: how many recordings are decoded together.
        generate_kwargs: passed on to `generate()`, `num_beams` for example.
        vad: the detector that finds the stretches of speech, by `voice_activity.make_vad`'s names; `none` decodes
            everything.

    Raises:
        RequestError: something that this model cannot do, an unknown language for example, or a detector that is not
            installed.
    """

    def __init__(
        self,
        speech: SpeechModel,
        *,
        timestamps: str = "none",
        language: str | None = None,
        task: str | None = None,
        batch_size: int = 1,
        generate_kwargs: dict[str, Any] | None = None,
        vad: str = "none",
    ) -> None:
        if timestamps not in TIMESTAMPS:
            raise RequestError(f"unknown timestamps {timestamps!r}: choose {', '.join(TIMESTAMPS)}")
        if batch_size < 1:
            raise RequestError(f"the batch size must be 1 or more, not {batch_size}")
        self.speech = speech
        self.timestamps = timestamps
        self.batch_size = batch_size
        self.vad = vad
        make_vad(vad)  # one that is not installed shall be named now
        self.generate_kwargs = dict(generate_kwargs or {})
        settings = speech.model.generation_config
        known = getattr(settings, "lang_to_id", None) or {}
        # Of a multilingual model: its languages by their tokens.
        self._codes: dict[int, str] = {}
        if getattr(settings, "is_multilingual", bool(known)):
            self._codes = {token: text.strip("<|>") for text, token in known.items()}
        self.language, self.task = _check_language_and_task(speech, self._codes, language, task)
        no_timestamps = getattr(settings, "no_timestamps_token_id", None)
        if timestamps != "none" and no_timestamps is None:
            raise RequestError(f"{speech.name} knows no timestamps: ask for --timestamps none and --format text")
        if timestamps == "word" and not getattr(settings, "alignment_heads", None):
            raise RequestError(
                f"the generation config of {speech.name} has no alignment_heads, which words need: "
                "ask for --timestamps segment"
            )
        self._knows_timestamps = no_timestamps is not None
        self._timestamp_begin = no_timestamps + 1 if no_timestamps is not None else len(speech.tokenizer)
        extractor = speech.feature_extractor
        if extractor.sampling_rate != SAMPLING_RATE:
            raise RequestError(
                f"{speech.name} wants audio at {extractor.sampling_rate} Hz, Whisper's is {SAMPLING_RATE}"
            )
        self._window = 2 * speech.model.config.max_source_positions * extractor.hop_length

    def __call__(self, samples: FloatArray) -> Transcript:
        """Transcribe float32 samples (samples,) at 16 kHz, full scale ±1."""
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1 or not samples.size or not np.isfinite(samples).all():
            raise RequestError(f"wants finite samples of shape (samples,), one or more; got shape {samples.shape}")
        ((_, transcript),) = self.run([(None, None, iter([samples]))])
        if isinstance(transcript, Exception):
            raise transcript
        return transcript

    def run(
        self,
        recordings: Iterable[tuple[Any, str | None, Iterator[FloatArray]]],
        progress: Callable[[float], None] | None = None,
    ) -> Iterator[tuple[Any, Transcript | RequestError]]:
        """Transcribe many recordings, `batch_size` at a time; each is yielded as soon as it is done.

        Args:
            recordings: (key, file, blocks): anything to know it by, its path or None, and its samples as
                `audio.iter_audio` gives them. They are taken up one after the other, as places become free.
            progress: called with the seconds of audio that each step has finished, pauses left out among them.

        Yields:
            (key, transcript), or (key, error) where reading failed on the way.
        """
        waiting = iter(recordings)
        active: list[_Recording] = []
        while True:
            while len(active) < self.batch_size and (item := next(waiting, None)) is not None:
                active.append(self._take_up(*item))
            if not active:
                return
            for recording in active:
                self._read_on(recording)
            self._step([recording for recording in active if not recording.finished()])
            if progress is not None:
                for recording in active:
                    progress((recording.done - recording.told) / SAMPLING_RATE)
                    recording.told = recording.done
            for recording in [recording for recording in active if recording.finished()]:
                active.remove(recording)
                if isinstance(recording.error, RequestError):
                    yield recording.key, recording.error
                else:
                    yield recording.key, self._transcript(recording)

    def _take_up(self, key: Any, file: str | None, blocks: Iterator[FloatArray]) -> _Recording:
        recording = _Recording(key, blocks, file, self.language)
        if self.vad != "none":
            speech = SpeechStretches(blocks, make_vad(self.vad), self._window)
            recording = _SpokenRecording(key, blocks, file, self.language, speech=speech)
        self._read_on(recording)
        one_window = self.vad != "none" or (recording.exhausted and recording.samples.size <= self._window)
        # a checkpoint may say that it decodes with timestamps where nobody asks: then its text is the better for them
        always = bool(getattr(self.speech.model.generation_config, "return_timestamps", False))
        wanted = always or self.timestamps != "none" or not one_window
        recording.untimed = not (wanted and self._knows_timestamps)
        return recording

    def _read_on(self, recording: _Recording) -> None:
        try:
            recording.fill(self._window + 1)
        except RequestError as error:
            recording.error, recording.exhausted = error, True
            recording.drop(recording.samples.size)

    def _step(self, recordings: list[_Recording]) -> None:
        """Decode one window of each recording and move each on."""
        for untimed in (True, False):
            group = [recording for recording in recordings if recording.untimed is untimed]
            audible = [r for r in group if np.abs(r.samples[: self._window]).max(initial=0.0) > _SILENCE]
            sequences = self._decode(audible, untimed) if audible else []
            advances = {id(r): self._keep(r, *sequence) for r, sequence in zip(audible, sequences, strict=True)}
            for recording in group:
                recording.drop(advances.get(id(recording), self._window))
                if recording.exhausted and recording.finished():
                    recording.drop(recording.samples.size)

    def _decode(self, recordings: list[_Recording], untimed: bool) -> list[tuple[list[int], list[float]]]:
        """The tokens of one window of each recording, with their times in seconds where words are wanted."""
        model, extractor = self.speech.model, self.speech.feature_extractor
        features = extractor(
            [recording.samples[: self._window] for recording in recordings],
            sampling_rate=SAMPLING_RATE,
            max_length=self._window,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(model.device)
        input_features = features.input_features.to(model.dtype)
        self._detect_languages(recordings, input_features)
        settings = dict(self.generate_kwargs)
        if any(recording.language for recording in recordings):
            settings["language"] = [recording.language for recording in recordings]
        if self.task is not None:
            settings["task"] = self.task
        words = self.timestamps == "word"
        if words:
            settings["return_token_timestamps"] = True
        output = model.generate(
            input_features,
            attention_mask=features.attention_mask,
            return_timestamps=not untimed,
            return_segments=True,
            # One pass over the window: what it leaves is decoded with the samples that follow.
            force_unique_generate_call=True,
            **settings,
        )
        sequences = []
        for segments in output["segments"]:
            tokens = list(chain.from_iterable(segment["tokens"].tolist() for segment in segments))
            times = chain.from_iterable(segment["token_timestamps"].tolist() for segment in segments) if words else ()
            sequences.append((tokens, list(times)))
        return sequences

    def _detect_languages(self, recordings: list[_Recording], input_features: Any) -> None:
        if not self._codes or all(recording.language for recording in recordings):
            return
        found = self.speech.model.detect_language(input_features=input_features).tolist()
        for recording, token in zip(recordings, found, strict=True):
            recording.language = recording.language or self._codes[token]

    def _keep(self, recording: _Recording, tokens: list[int], times: list[float]) -> int:
        """Turn a window's tokens into segments; return by how many samples to go on."""
        begin = self._timestamp_begin
        offset = recording.done / SAMPLING_RATE
        length = min(recording.samples.size, self._window) / SAMPLING_RATE
        if recording.untimed:
            tokens = [token for token in tokens if token < begin]
        start, first = 0.0, 0
        for index, token in enumerate(tokens):
            if token < begin:
                continue
            time = min((token - begin) * _TIMESTAMP_STEP_S, length)
            if index > first:
                self._add_segment(recording, tokens, times, (first, index), (start, time), offset)
            start, first = time, index + 1
        # Text without an end goes on to the end of the window.
        self._add_segment(recording, tokens, times, (first, len(tokens)), (start, length), offset)
        if len(tokens) > 1 and tokens[-1] >= begin and tokens[-2] >= begin:
            # A segment had begun that the window cut: generate() has dropped its text, go back to its beginning.
            return round(start * SAMPLING_RATE) or self._window
        return self._window

    def _add_segment(
        self,
        recording: _Recording,
        tokens: list[int],
        times: list[float],
        where: tuple[int, int],
        when: tuple[float, float],
        offset: float,
    ) -> None:
        first, last = where
        text = " ".join(str(self.speech.tokenizer.decode(tokens[first:last], skip_special_tokens=True)).split())
        if not text:
            return
        start, end = when[0], max(when)
        words: tuple[Word, ...] = ()
        if times:
            limit = min(recording.samples.size, self._window) / SAMPLING_RATE
            # A token lasts from the time of the one before it to its own.
            ends = [min(time, limit) for time in times[first:last]]
            begins = [min(times[first - 1], limit) if first else start, *ends[:-1]]
            words = self._words(tokens[first:last], begins, ends, recording.language, offset)
        recording.segments.append(Segment(text, round(offset + start, 3), round(offset + end, 3), words))

    def _words(
        self, tokens: list[int], begins: list[float], ends: list[float], language: str | None, offset: float
    ) -> tuple[Word, ...]:
        from transformers.models.whisper.tokenization_whisper import LANGUAGES, _combine_tokens_into_words

        special = set(self.speech.tokenizer.all_special_ids)
        kept = [index for index, token in enumerate(tokens) if token not in special]
        texts, _, groups = _combine_tokens_into_words(
            self.speech.tokenizer, [tokens[index] for index in kept], LANGUAGES.get(language or "en", "english")
        )
        return tuple(
            Word(text, round(offset + begins[kept[group[0]]], 3), round(offset + ends[kept[group[-1]]], 3))
            for text, group in zip(texts, groups, strict=True)
            if text.strip()
        )

    def _transcript(self, recording: _Recording) -> Transcript:
        text = join_texts([segment.text for segment in recording.segments], recording.language)
        segments = tuple(recording.segments) if self.timestamps != "none" else ()
        return Transcript(text, recording.done / SAMPLING_RATE, recording.language, segments, recording.file)


def _check_language_and_task(
    speech: SpeechModel, codes: dict[int, str], language: str | None, task: str | None
) -> tuple[str | None, str | None]:
    """The language as a code and the task, from the caller or the checkpoint; refuses what this model cannot do."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    if not codes:
        for option, value in (("--language", language), ("--task", task)):
            if value is not None:
                raise RequestError(f"{speech.name} knows one language only: leave out {option} {value}")
        return None, None
    if task is not None and task not in TASKS:
        raise RequestError(f"unknown task {task!r}: choose {', '.join(TASKS)}")
    settings = speech.model.generation_config
    name = language if language is not None else getattr(settings, "language", None)
    if isinstance(name, str):
        code = name.strip().lower().strip("<|>")
        code = TO_LANGUAGE_CODE.get(code, code)
        if code not in codes.values():
            known = ", ".join(sorted(codes.values()))
            raise RequestError(f"unknown language {name!r}: {speech.name} knows {known}, or their English names")
        return code, task
    # Checkpoints from before 2024 fix language and task as tokens, which generate() obeys if neither is given.
    forced = dict(getattr(settings, "forced_decoder_ids", None) or ())
    if task is None:
        tasks = {token: name for name, token in (getattr(settings, "task_to_id", None) or {}).items()}
        task = tasks.get(forced.get(2, -1))
    return codes.get(forced.get(1, -1)), task
