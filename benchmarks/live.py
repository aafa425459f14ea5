# /// script
# dependencies = ["whisper-hailo-hf[onnx,mic,eval]", "jiwer", "soundfile", "soxr", "scipy"]
# ///
r"""Live transcription, measured: word errors, delays, flicker, computing, silence, and hours at a stretch.

Each part runs alone; `--json FILE` keeps the numbers. `--speech` is a folder of {digit}_{speaker}_{n}.flac, the Free
Spoken Digit Dataset's names; streams are made of the two speakers that the bundled model never heard.

    python benchmarks/live.py digits --speech recordings --json live-digits.json   # 10 minutes, both policies
    python benchmarks/live.py quiet                                                # 10 minutes of each kind of nothing
    python benchmarks/live.py speed  --speech recordings                           # tiny's shapes, against a re-run
    python benchmarks/live.py long   --speech recordings --hours 2 --speed 20
    python benchmarks/live.py pi     --counts live-digits.json                     # modelled, nothing is run
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from live_streams import (
    SAMPLE_RATE,
    Stream,
    Word,
    delays,
    digit_pieces,
    digit_stream,
    flicker,
    matched,
    play,
    quantiles,
    quiet_streams,
    word_error_rate,
    word_times,
)
from transformers.utils import logging

from whisper_hailo_hf.live import POLICIES, Committed, Dropped, LiveTranscriber, Pace
from whisper_hailo_hf.live.session import LiveSession
from whisper_hailo_hf.live.sources import Block
from whisper_hailo_hf.transcription import SpeechModel, Transcriber, load_speech_model

SPEAKERS = ["theo", "yweweler"]


def computing(transcriber: LiveTranscriber, seconds: float, wall: float, cpu: float) -> dict[str, Any]:
    """What a stream cost."""
    work = transcriber.work
    return {
        "audio_s": round(seconds, 1),
        "real_time_factor": round(wall / seconds, 4),
        "processor_s_per_audio_s": round(cpu / seconds, 4),
        "passes_per_s": round(work.passes / seconds, 3),
        "tokens_per_s": round(work.tokens / seconds, 3),
        "tokens_from_drafts": round(work.reused / max(1, work.tokens), 3),
        "detecting_s_per_s": round(work.detecting / seconds, 4),
        "encoding_s_per_s": round(work.encoding / seconds, 4),
        "decoding_s_per_s": round(work.decoding / seconds, 4),
    }


def digits(options: argparse.Namespace) -> dict[str, Any]:
    """Word errors against the truth and against the offline result, times, delays, flicker, computing."""
    stream = digit_stream(options.speech, SPEAKERS, options.seconds, options.seed)
    speech = load_speech_model(options.model, options.backend, decoder_backend=options.decoder_backend)
    report: dict[str, Any] = {"audio_s": round(stream.seconds, 1), "words": len(stream.words)}
    offline = Transcriber(speech, timestamps="segment")(stream.samples)
    report["offline, whole recording"] = word_error_rate(stream.text, offline.text)
    without_pauses = Transcriber(speech, timestamps="segment", vad="auto")(stream.samples)
    report["offline, without pauses"] = word_error_rate(stream.text, without_pauses.text)
    for policy in options.policy:
        transcriber = LiveTranscriber(speech, policy=policy, min_chunk=options.min_chunk, context=options.context)
        transcriber.warm_up()
        played = play(transcriber, stream.samples)
        live = word_error_rate(stream.text, played.text)
        report[policy] = {
            "against_the_truth": live,
            "points_above_offline": round(100 * (live["wer"] - report["offline, whole recording"]["wer"]), 2),
            "points_above_offline_without_pauses": round(
                100 * (live["wer"] - report["offline, without pauses"]["wer"]), 2
            ),
            "against_offline": word_error_rate(offline.text, played.text),
            "against_offline_without_pauses": word_error_rate(without_pauses.text, played.text),
            "times": word_times(stream, played.words),
            "flicker": flicker(played.events),
            "computing": computing(transcriber, played.seconds, played.wall, played.cpu),
            **delays(stream, played),
        }
        again = LiveTranscriber(speech, policy=policy, min_chunk=options.min_chunk, context=options.context)
        cut = round(min(60.0, stream.seconds) * SAMPLE_RATE)
        one, other = play(again, stream.samples[:cut], 0.037).events, None
        again = LiveTranscriber(speech, policy=policy, min_chunk=options.min_chunk, context=options.context)
        other = play(again, stream.samples[:cut], 1.0).events
        report[policy]["same_events_in_blocks_of_0.037_and_1_s"] = one == other
    return report


def quiet(options: argparse.Namespace) -> dict[str, Any]:
    """Words that are committed where nobody speaks."""
    speech = load_speech_model(options.model, options.backend, decoder_backend=options.decoder_backend)
    report: dict[str, Any] = {"audio_s": options.seconds}
    for name, samples in quiet_streams(options.seconds, options.seed).items():
        report[name] = {}
        for kind, vad, guarded in (
            ("detector and guards", "auto", True),
            ("detector, no guards", "auto", False),
            ("guards, no detector", "none", True),
            ("neither", "none", False),
        ):
            if vad == "none" and options.seconds_without < options.seconds:
                samples = samples[: round(options.seconds_without * SAMPLE_RATE)]
            transcriber = LiveTranscriber(speech, policy=options.policy[0], vad=vad, guarded=guarded)
            played = play(transcriber, samples)
            report[name][kind] = {
                "words": len(played.words),
                "audio_s": round(played.seconds),
                "passes": transcriber.work.passes,
                "examples": played.text[:60],
            }
    return report


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Live in tiny's shapes, and stock Whisper re-run over the same windows at the same moments, in turns."""
    from tiny_shapes import live_model, stock_model

    torch.set_num_threads(options.threads)
    demo = load_speech_model(None, "torch")
    stream = digit_stream(options.speech, SPEAKERS, options.seconds, options.seed)
    report: dict[str, Any] = {"audio_s": round(stream.seconds, 1), "threads": options.threads}
    report["decoder"] = options.decoder_backend
    with tempfile.TemporaryDirectory() as folder:
        ours = live_model(demo, options.keep or Path(folder), options.threads, options.decoder_backend)
        stock = stock_model(demo)
        for policy in options.policy:
            report[policy] = _in_turns(stream, policy, options.min_chunk, ours, stock)
    return report


def _in_turns(stream: Stream, policy: str, min_chunk: float, ours: SpeechModel, stock: SpeechModel) -> dict[str, Any]:
    transcriber = LiveTranscriber(ours, policy=policy, min_chunk=min_chunk)
    transcriber.warm_up()
    windows: list[np.ndarray] = []
    write = transcriber._scribe.write

    def watched(item: Any, *rest: Any) -> Any:
        windows.append(item.samples)
        return write(item, *rest)

    transcriber._scribe.write = watched  # type: ignore[method-assign]
    encoders: list[Any] = [ours.model.get_encoder(), stock.model.get_encoder()]
    times = {"live": 0.0, "re-run": 0.0}
    cpu = {"live": 0.0, "re-run": 0.0}
    encoders[0].overhead = encoders[1].overhead = 0.0
    size, events = round(0.1 * SAMPLE_RATE), []
    for first in range(0, len(stream.samples) + size, size):
        began, used = time.perf_counter(), time.process_time()
        piece = stream.samples[first : first + size]
        events += transcriber.feed(piece) if len(piece) else transcriber.finish()
        times["live"] += time.perf_counter() - began
        cpu["live"] += time.process_time() - used
        for samples in windows:
            began, used = time.perf_counter(), time.process_time()
            found = stock.feature_extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            stock.model.generate(found, return_timestamps=True, language="en", task="transcribe")
            times["re-run"] += time.perf_counter() - began
            cpu["re-run"] += time.process_time() - used
        windows.clear()
    for name, encoder in zip(times, encoders, strict=True):
        times[name] -= encoder.overhead
    words = [word for event in events if isinstance(event, Committed) for word in event.words]
    heard = word_error_rate(stream.text, " ".join(word.text.strip() for word in words))
    return {
        "real_time_factor": {name: round(value / stream.seconds, 4) for name, value in times.items()},
        "ratio": round(times["re-run"] / times["live"], 2),
        "processor_s_per_audio_s, demo encoder included": {k: round(v / stream.seconds, 4) for k, v in cpu.items()},
        "live_parts_s_per_s": {
            "detecting": round(transcriber.work.detecting / stream.seconds, 4),
            "encoding, features and demo encoder included": round(transcriber.work.encoding / stream.seconds, 4),
            "demo encoder, taken off": round(encoders[0].overhead / stream.seconds, 4),
            "decoding": round(transcriber.work.decoding / stream.seconds, 4),
        },
        "passes": transcriber.work.passes,
        "tokens_from_drafts": round(transcriber.work.reused / max(1, transcriber.work.tokens), 3),
        "words": heard,
    }


class DigitSource:
    """Hours of digits without a file, at a speed; remembers what was said."""

    name, waits = "digits", True

    def __init__(self, speech: Path, seconds: float, speed: float, seed: int) -> None:
        self._speech, self._seconds, self.speed, self._seed = speech, seconds, speed, seed
        self.words: list[Word] = []
        self.given = 0.0

    def pieces(self) -> Iterator[np.ndarray]:
        """The audio, a sequence and a pause at a time."""
        length = 0
        self.words = []
        for samples, said in digit_pieces(self._speech, SPEAKERS, self._seed):
            offset = length / SAMPLE_RATE
            self.words += [Word(word.text, word.start + offset, word.end + offset) for word in said]
            length += len(samples)
            yield samples
            if length >= self._seconds * SAMPLE_RATE:
                return

    def __iter__(self) -> Iterator[Block]:
        began, size = time.monotonic(), round(0.1 * SAMPLE_RATE)
        for samples in self.pieces():
            for first in range(0, len(samples), size):
                block = Block(samples[first : first + size], SAMPLE_RATE)
                self.given += block.seconds
                time.sleep(max(0.0, began + self.given / self.speed - time.monotonic()))
                yield block

    def close(self) -> None:
        """Nobody does."""


def resident_mb() -> float:
    """Memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def long(options: argparse.Namespace) -> dict[str, Any]:
    """Hours faster than real time: memory, clock, and words lost against the offline result."""
    speech = load_speech_model(options.model, options.backend, decoder_backend=options.decoder_backend)
    transcriber = LiveTranscriber(speech, policy=options.policy[0], min_chunk=options.min_chunk)
    transcriber.warm_up()
    source = DigitSource(options.speech, 3600 * options.hours, options.speed, options.seed)
    words, memory, paces, dropped, mark = [], [], [], 0, 0.0
    began, used = time.monotonic(), time.process_time()
    for event in LiveSession(transcriber, source).run():
        if isinstance(event, Committed):
            words += event.words
        elif isinstance(event, Pace):
            paces.append((event.clock, event.step))
        elif isinstance(event, Dropped):
            dropped += 1
        if event.clock >= mark:
            memory.append((round(event.clock), resident_mb()))
            mark += 600.0
    wall, cpu = time.monotonic() - began, time.process_time() - used
    truth = Stream(np.zeros(0, np.float32), list(source.words))
    offline = {}
    for name, vad in (("offline, whole recording", "none"), ("offline, without pauses", "auto")):
        ((_, heard),) = Transcriber(speech, timestamps="segment", vad=vad).run([(None, None, source.pieces())])  # type: ignore[list-item]
        offline[name] = word_error_rate(truth.text, heard.text)  # type: ignore[union-attr]
    live = word_error_rate(truth.text, " ".join(word.text.strip() for word in words))
    pairs = matched(truth.words, words)
    offsets = [words[hyp].start - truth.words[ref].start for ref, hyp in pairs]
    tenth = max(1, len(offsets) // 10)
    return {
        "audio_s": round(source.given, 1),
        "speed_reached": round(source.given / wall, 2),
        "clock_s": round(transcriber.clock, 4),
        "memory_mb_by_second": memory,
        "paces": paces[:20],
        "paces_in_all": len(paces),
        "dropped": dropped,
        "live": live,
        **offline,
        "start_offset_first_tenth_s": round(float(np.median(offsets[:tenth])), 4),
        "start_offset_last_tenth_s": round(float(np.median(offsets[-tenth:])), 4),
        "start_error_s": quantiles([abs(offset) for offset in offsets]),
        "computing": computing(transcriber, source.given, wall, cpu),
    }


def pi(options: argparse.Namespace) -> dict[str, Any]:
    """Modelled for a Raspberry Pi 5 with a Hailo-8L at tiny's shapes: counts that were measured times figures that
    others published, and the cost model's for the encoder.

    Feature extraction and voice activity are not in it. The decoder's figures are of another int8 decoder in ONNX
    Runtime; this package's `onnx-int8` has not been measured on a Pi.
    """
    from cost_table import reports

    counts = json.loads(options.counts.read_text(encoding="utf-8"))["result"]
    encoder = reports("tiny", "conv", "width")["hailo8l", "gen3"].total_ms
    found: dict[str, Any] = {
        "modelled": True,
        "encoder_ms_a_pass": [round(value, 1) for value in encoder],
        "first_forward_ms": options.first,
        "token_ms": options.token,
    }
    for policy in POLICIES:
        if policy not in counts:
            continue
        part = counts[policy]["computing"]
        made = part["tokens_per_s"] * (1 - part["tokens_from_drafts"])
        low, high = (
            part["passes_per_s"] * (ms + options.first) / 1000 + made * token / 1000
            for ms, token in zip((encoder[0], encoder[-1]), options.token, strict=True)
        )
        busy = [
            ms + options.first + token * made / part["passes_per_s"]
            for ms, token in zip((encoder[0], encoder[-1]), options.token, strict=True)
        ]
        audio = counts[policy]["commit_after_word_end_audio_s"]
        found[policy] = {
            "real_time_factor": [round(low, 3), round(high, 3)],
            "ms_a_pass": [round(value) for value in busy],
            "commit_after_word_end_s_p50": [round(audio["p50"] + value / 1000, 2) for value in busy],
            "commit_after_word_end_s_p95": [round(audio["p95"] + value / 1000, 2) for value in busy],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["digits", "quiet", "speed", "long", "pi"])
    parser.add_argument("--speech", type=Path, help="folder of recordings of digits")
    parser.add_argument("--model", help="folder or Hub id; the bundled demo if left out")
    parser.add_argument("--backend", default="onnx", help="of the encoder")
    parser.add_argument("--decoder-backend", default="torch", help="of the decoder")
    parser.add_argument("--policy", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seconds-without", type=float, default=120.0, help="of quiet, without a detector")
    parser.add_argument("--min-chunk", type=float, default=0.5)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--speed", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder that keeps the 8-bit encoder of `speed` for the next run")
    parser.add_argument("--counts", type=Path, help="what `digits --json` wrote, for pi")
    # ktomanek's ONNX int8 decoder with a key-value cache on a Pi 5, whisper-tiny, 1500 states: milliseconds
    parser.add_argument("--first", type=float, default=61.0, help="first forward of a pass, ms")
    parser.add_argument("--token", type=float, nargs=2, default=[8.0, 13.8], help="a further token, ms, low and high")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    if options.part in ("digits", "speed", "long") and options.speech is None:
        parser.error("--speech is needed")
    if options.part == "pi" and options.counts is None:
        parser.error("--counts is needed")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    part = {"digits": digits, "quiet": quiet, "speed": speed, "long": long, "pi": pi}[options.part]
    result = part(options)
    setting = {name: str(value) for name, value in vars(options).items() if value is not None}
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg()}
    document = json.dumps({"setting": setting, "machine": machine, "result": result}, indent=2)
    print(document)
    if options.json is not None:
        options.json.write_text(document + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
