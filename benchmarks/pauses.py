# /// script
# dependencies = ["whisper-hailo-hf[onnx,mic,eval]", "soundfile", "soxr"]
# ///
"""Recordings with pauses, decoded whole and with the pauses left out: word errors, times of words, time taken.

    python benchmarks/pauses.py --speech recordings --speakers theo yweweler --seed 0

`--speech` is a folder of {digit}_{speaker}_{n}.flac, the Free Spoken Digit Dataset's names. Each stream is of
sequences of digits with pauses of a range of lengths between them, besides the short ones within each sequence.
"""

import argparse
import json
import time
from pathlib import Path

from live_streams import digit_stream, word_error_rate, word_times
from transformers.utils import logging

from whisper_hailo_hf.transcription import Transcriber, load_speech_model

PAUSES = ((0.0, 0.3), (0.2, 1.4), (1.0, 4.0), (4.0, 12.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--speakers", nargs="+", default=["theo", "yweweler"])
    parser.add_argument("--model", help="the bundled demo model by default")
    parser.add_argument("--backend", default="onnx", help="of the encoder")
    parser.add_argument("--decoder-backend", default="onnx")
    parser.add_argument("--vad", nargs="+", default=["none", "silero", "webrtc"])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.set_verbosity_error()
    speech = load_speech_model(options.model, options.backend, decoder_backend=options.decoder_backend)
    for vad in options.vad:  # untimed: sessions are built and detectors loaded at their first call
        Transcriber(speech, timestamps="word", vad=vad)(digit_stream(options.speech, options.speakers, 20.0).samples)
    for pauses in PAUSES:
        stream = digit_stream(options.speech, options.speakers, options.seconds, options.seed, pauses)
        row = {"pauses_s": pauses, "audio_s": round(stream.seconds), "words": len(stream.words)}
        for vad in options.vad:
            transcriber = Transcriber(speech, timestamps="word", vad=vad)
            began = time.perf_counter()
            found = transcriber(stream.samples)
            taken = time.perf_counter() - began
            words = [word for segment in found.segments for word in segment.words]
            row[vad] = {
                **word_error_rate(stream.text, found.text),
                "times": word_times(stream, words),
                "real_time_factor": round(taken / stream.seconds, 4),
            }
        print(json.dumps(row, default=float), flush=True)


if __name__ == "__main__":
    main()
