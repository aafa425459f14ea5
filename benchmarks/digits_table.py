# /// script
# dependencies = ["soundfile", "soxr", "numpy"]
# ///
"""Sequences of spoken digits by speakers that the bundled demo never heard, as a table for `whisper-hailo eval`.

    python benchmarks/digits_table.py --speech recordings --out sequences
    whisper-hailo eval sequences/digits.tsv --encoder-backend torch --encoder-backend onnx --output-dir results

The sequences are those of `digits_wer.py`; `--silence` adds windows of silence, noise and hum, without a word.
"""

import argparse
import csv
import sys
from pathlib import Path

import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "digits"))

from digit_clips import SAMPLE_RATE
from digits_wer import make_sequences, non_speech


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="folder of {digit}_{speaker}_{n}.flac or .wav")
    parser.add_argument("--speakers", nargs="+", default=["theo", "yweweler"])
    parser.add_argument("--sequences", type=int, default=200)
    parser.add_argument("--silence", action="store_true", help="add windows of silence, noise and hum")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the recordings and digits.tsv")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    drawn = make_sequences(options.speech, options.speakers, options.sequences, options.seed)
    quiet = non_speech(10.0, options.seed) if options.silence else []
    entries = [(speaker, sequence.samples, sequence.text) for speaker, sequence in drawn]
    entries += [("", samples, "") for _, samples in quiet]
    for number, (speaker, samples, text) in enumerate(entries):
        name = f"{number:04}.flac"
        soundfile.write(options.out / name, samples, SAMPLE_RATE, subtype="PCM_16")
        rows.append((name.partition(".")[0], name, f"{len(samples) / SAMPLE_RATE:.3f}", speaker, text))
    with (options.out / "digits.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE)
        writer.writerows([("id", "path", "seconds", "speaker", "text"), *rows])


if __name__ == "__main__":
    main()
