"""The engine: audio in, events out.

The voice activity detector cuts the stream into phrases. While a phrase lasts, a pass is made over it every so often:
the encoder sees the whole phrase (up to a limit), the decoder goes on from the words that are committed, and the
policy says how many more stand from now on. When the speaker pauses, a last pass commits the rest.

What is done depends on the audio alone, never on when it came or in which blocks: passes are made at places of the
stream, and a decision of one pass moves the window of the second pass after it, so that the next one may already be on
its way through the encoder. Only `set_pace` changes the places, and whoever calls it says so in an event.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from whisper_hailo_hf.audio import SAMPLING_RATE, FloatArray
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.live.decoding import GreedyDecoder
from whisper_hailo_hf.live.events import Dropped, Event, Notice, Pace, Silence
from whisper_hailo_hf.live.intake import Chunk, Gap, Intake
from whisper_hailo_hf.live.passes import Pass, PassReader, Phrase
from whisper_hailo_hf.live.policies import make_policy
from whisper_hailo_hf.live.scribe import Move, Scribe
from whisper_hailo_hf.live.window import Window
from whisper_hailo_hf.voice_activity import FRAME, SpeechGate, VoiceActivity, make_vad

# The moment before the voice that belongs to a phrase: the detector needs a frame or two to be sure.
_LEAD_FRAMES = round(0.3 * SAMPLING_RATE / FRAME)
_FEWEST_FRAMES = 2  # with speech, for a phrase to be one
_MOST_FRAMES = round(28.0 * SAMPLING_RATE / FRAME)
_SILENCE_S = 2.0
_LONGEST_STEP_S = 5.0
_NOTICE_EVERY_S = 60.0
_CLIPPED_CHUNKS = 10


@dataclass
class Work:
    """What has been done so far: counts, and seconds of computing.

    `reused` are the tokens of drafts that were right, out of `tokens`.
    """

    audio: float = 0.0
    passes: int = 0
    encoding: float = 0.0
    decoding: float = 0.0
    detecting: float = 0.0
    tokens: int = 0
    reused: int = 0


class LiveTranscriber:
    """Turns one stream of audio into words as they are said.

    Args:
        speech: model, tokenizer and feature extractor, as `transcription.load_speech_model` gives them.
        policy: `local-agreement` or `align-att`.
        language: code or English name; None detects it, until a phrase of two seconds has settled it.
        task: `transcribe` or `translate`.
        min_chunk: seconds of audio between passes; a machine that is too slow lengthens it.
        vad: `auto`, `silero`, `webrtc`, `none`, or a detector of your own.
        min_silence: seconds of silence that end a phrase.
        context: how many tokens of what was said before a pass is prompted with; 0 for none.
        guarded: whether the rules of `live.guards` are applied.
        window: `full`, or `short` where the encoder is made of windows shorter than 30 s.
        overlap: whether the encoder runs while the decoder does; None where the encoder runs on a chip or elsewhere.
        patience: seconds for which an encoder that fails is tried again before the words of a phrase are given up.

    Raises:
        RequestError: something that this model cannot do, or that is not installed, in one line.
    """

    def __init__(
        self,
        speech: Any,
        *,
        policy: str = "local-agreement",
        language: str | None = None,
        task: str | None = None,
        min_chunk: float = 0.5,
        vad: str | VoiceActivity = "auto",
        min_silence: float = 0.6,
        context: int = 64,
        guarded: bool = True,
        window: str = "full",
        overlap: bool | None = None,
        patience: float = 10.0,
    ) -> None:
        for name, value, low, high in (
            ("min_chunk", min_chunk, 0.1, _LONGEST_STEP_S),
            ("min_silence", min_silence, 0.1, 5.0),
            ("context", context, 0, 200),
        ):
            if not low <= value <= high:
                raise RequestError(f"{name} is between {low} and {high}, not {value}")
        self.vad = make_vad(vad) if isinstance(vad, str) else vad
        self.work = Work()
        self.step = self.min_chunk = min_chunk
        decoder = GreedyDecoder(speech, language, task)
        self._scribe = Scribe(PassReader(speech, decoder, guarded), make_policy(policy), context, decoder.language)
        self._window = Window(speech, window)
        self._patience = patience
        if overlap is None:
            overlap = speech.encoder_backend in ("hef", "remote")
        self._encoder = ThreadPoolExecutor(1, "encoder") if overlap else None
        self._intake, self._gate = Intake(), SpeechGate(min_silence)
        self._rest = np.zeros(0, np.float32)
        # The last frames, those of the phrase if there is one: samples and probabilities of speech; `_now` is the
        # place in the stream behind them.
        self._frames: deque[FloatArray] = deque()
        self._probabilities: deque[float] = deque()
        self._now = 0
        self._quiet_since: int | None = 0
        self._phrase: Phrase | None = None
        self._passes = self._voiced = self._next_pass = 0
        self._voice_since_pass = False
        self._moves: deque[Move] = deque()
        self._first_word = 0
        self._queue: deque[Event | Pass] = deque()
        self._clipped, self._noticed, self._trouble = 0, -_NOTICE_EVERY_S, ""
        self._failure: WhisperHailoError | None = None
        self._finished = False

    @property
    def clock(self) -> float:
        """Seconds of the stream so far, lost audio included."""
        return self._intake.clock

    def warm_up(self) -> None:
        """Run encoder and decoder once, so that what cannot run says so now and the first word does not wait."""
        silence = np.zeros(SAMPLING_RATE, np.float32)
        states = self._window.encode(self._window.features(silence), len(silence))
        self._scribe.reader.decoder.decode(states, budget=1)

    def feed(self, block: Any, rate: int = SAMPLING_RATE, at: float | None = None) -> list[Event]:
        """Take a block of audio; return what it led to.

        Args:
            block: float, int16 or int32 samples, (samples,), or (samples, channels) of one or two channels.
            rate: its sampling rate, Hz; may change from block to block.
            at: where in the stream the block begins, seconds, if its source knows; audio that is missing before it
                gives a `Dropped` event, and the clock goes on.

        Raises:
            RequestError: not audio, or the stream has been finished.
            WhisperHailoError: the encoder has failed for longer than `patience`. All that was committed before has
                been returned.
        """
        if self._finished:
            raise RequestError("this stream has been finished: make a new LiveTranscriber for another")
        self.check()
        return self._take(self._intake.push(block, rate, at))

    def lost(self, seconds: float) -> list[Event]:
        """So many seconds of audio were lost here."""
        return self._take(self._intake.skip(seconds))

    def finish(self) -> list[Event]:
        """The stream has ended, in the middle of a word perhaps: commit what is pending. `check` says if all was."""
        if self._finished:
            return []
        self._finished = True
        events = [] if self._failure else self._take(self._intake.flush(), last=True)
        if self._encoder is not None:
            self._encoder.shutdown()
        return events

    def check(self) -> None:
        """Raise the `WhisperHailoError` that has ended the stream, if one has."""
        if self._failure is not None:
            raise self._failure

    def set_pace(self, behind: float) -> list[Event]:
        """Say how late the work is, in seconds: the step grows to catch up, and shrinks again when that is done."""
        step = self.step
        if behind > 2 * step:
            step = min(_LONGEST_STEP_S, 1.5 * step)
        elif behind < 0.25 * step:
            step = max(self.min_chunk, step / 1.1)
        grown, back = step > self.step, step == self.min_chunk < self.step
        self.step = step
        return [Pace(self._seconds(self._now), round(behind, 3), round(step, 3))] if grown or back else []

    def _seconds(self, place: int) -> float:
        return round(place / SAMPLING_RATE, 3)

    def _take(self, pieces: Any, last: bool = False) -> list[Event]:
        events: list[Event] = []
        for piece in pieces:
            if isinstance(piece, Gap):
                self._pass_over(piece, events)
                continue
            self._look_for_faults(piece)
            samples = np.concatenate([self._rest, piece.samples])
            whole = len(samples) // FRAME * FRAME
            self._rest = samples[whole:].copy()
            for first in range(0, whole, FRAME):
                self._frame(samples[first : first + FRAME], events)
        if last:
            self._break_off(events)
        self._drain(events, 0)
        return events

    def _pass_over(self, gap: Gap, events: list[Event]) -> None:
        start = self._intake.clock - (0 if gap.filled else gap.seconds)
        if not gap.filled:
            self._break_off(events)
            self._now = round(self._intake.clock * SAMPLING_RATE)
            self.vad.reset()
            self._quiet_since = self._now
        self._queue.append(Dropped(self._seconds(self._now), round(start, 3), round(start + gap.seconds, 3)))

    def _break_off(self, events: list[Event]) -> None:
        """Nothing follows what came last."""
        if len(self._rest):
            self._frame(np.pad(self._rest, (0, FRAME - len(self._rest))), events)
            self._rest = np.zeros(0, np.float32)
        if self._phrase is not None:
            self._close()
        self._gate.reset()
        self._frames.clear()
        self._probabilities.clear()

    def _look_for_faults(self, chunk: Chunk) -> None:
        self._clipped += chunk.clipped
        message = None
        if chunk.broken:
            message = "the audio has samples that are not numbers: they were taken as silence"
        elif self._clipped >= _CLIPPED_CHUNKS:
            message = "the audio is clipped, words may be lost: turn the microphone down"
        clock = self._seconds(self._now)
        if message and clock - self._noticed >= _NOTICE_EVERY_S:
            self._noticed, self._clipped = clock, 0
            self._queue.append(Notice(clock, message))

    def _frame(self, frame: FloatArray, events: list[Event]) -> None:
        """The next `FRAME` samples: hear whether somebody speaks, and begin, go on with or end a phrase."""
        began = time.perf_counter()
        probability = self.vad(frame)
        self.work.detecting += time.perf_counter() - began
        self.work.audio += FRAME / SAMPLING_RATE
        speaking = self._gate(probability)
        voice = speaking and self._gate.quiet_frames == 0
        self._frames.append(frame)
        self._probabilities.append(probability)
        self._now += FRAME
        if self._phrase is None:
            if speaking:
                start = self._now - len(self._frames) * FRAME
                self._phrase = Phrase(start, start)
                self._voiced, self._voice_since_pass = 1, True
                self._next_pass = self._now + round(self.step * SAMPLING_RATE)
                self._quiet_since = None
            else:
                self._keep_lead()
                if self._quiet_since is not None and self._now - self._quiet_since >= _SILENCE_S * SAMPLING_RATE:
                    self._queue.append(Silence(self._seconds(self._now), self._seconds(self._quiet_since)))
                    self._quiet_since = None
            return
        self._voiced += voice
        self._voice_since_pass |= voice
        if not speaking:
            self._close()
            self._keep_lead()
        elif len(self._frames) >= _MOST_FRAMES:
            # The encoder has been away, or the window would have been cut long ago: what is there must do.
            self._close()
            self._frames.clear()
            self._probabilities.clear()
        elif self._now >= self._next_pass and self._voice_since_pass:
            self._begin_pass(final=False)
            self._next_pass = self._now + round(self.step * SAMPLING_RATE)
        else:
            return
        self._drain(events, 1)

    def _keep_lead(self) -> None:
        while len(self._frames) > _LEAD_FRAMES:
            self._frames.popleft()
            self._probabilities.popleft()

    def _close(self) -> None:
        if self._voiced >= _FEWEST_FRAMES:
            self._begin_pass(final=True)
        self._phrase, self._quiet_since = None, self._now - self._gate.quiet_frames * FRAME
        self._moves.clear()
        self._first_word = 0

    def _begin_pass(self, final: bool) -> None:
        phrase = self._phrase
        assert phrase is not None
        self._passes += 1
        while self._moves and self._moves[0].number <= self._passes:
            move = self._moves.popleft()
            phrase.base, self._first_word = move.base, move.first
        have = self._now - len(self._frames) * FRAME
        while phrase.base - have >= FRAME:
            self._frames.popleft()
            self._probabilities.popleft()
            have += FRAME
        samples = np.concatenate(self._frames)[phrase.base - have :]
        probabilities = np.array(self._probabilities, np.float32)
        clock = self._seconds(self._now)
        item = Pass(self._passes, phrase, phrase.base, self._first_word, samples, probabilities, clock, final)
        item.encoded = self._encode(samples) if self._encoder is None else self._encoder.submit(self._encode, samples)
        self._voice_since_pass = False
        self._queue.append(item)

    def _encode(self, samples: FloatArray) -> Any:
        """Encoder states, or the error that there is in place of them."""
        began = time.perf_counter()
        try:
            return self._window.encode(self._window.features(samples), len(samples))
        except WhisperHailoError as error:
            return error
        finally:
            self.work.encoding += time.perf_counter() - began

    def _drain(self, events: list[Event], passes: int) -> None:
        """Bring what is queued to its end, in order, until so many passes are left."""
        waiting = sum(isinstance(item, Pass) for item in self._queue)
        while self._queue and (waiting > passes or not isinstance(self._queue[0], Pass)):
            item = self._queue.popleft()
            if isinstance(item, Pass):
                waiting -= 1
                self._complete(item, events)
            else:
                events.append(item)

    def _complete(self, item: Pass, events: list[Event]) -> None:
        if self._failure is not None:
            return
        states = item.encoded.result() if isinstance(item.encoded, Future) else item.encoded
        item.encoded = None
        if isinstance(states, WhisperHailoError):
            states = self._try_again(item, states, events)
            if states is None:
                return
        self._trouble = ""
        began = time.perf_counter()
        found = self._scribe.write(item, states, events)
        if self._scribe.move is not None:
            self._moves.append(self._scribe.move)
        self.work.decoding += time.perf_counter() - began
        self.work.passes += 1
        self.work.tokens += len(found.decoded.tokens)
        self.work.reused += found.decoded.reused

    def _try_again(self, item: Pass, error: WhisperHailoError, events: list[Event]) -> Any:
        """An encoder that fails, busy perhaps: the next pass sees the same audio; at a phrase's end there is none."""
        if str(error) != self._trouble:
            self._trouble = str(error)
            events.append(Notice(item.clock, f"{error}; trying again"))
        if not item.final:
            return None
        until = time.monotonic() + self._patience
        while time.monotonic() < until:
            time.sleep(min(0.5, self._patience / 4))
            states = self._encode(item.samples)
            if not isinstance(states, WhisperHailoError):
                return states
            error = states
        self._failure = error
        return None
