# /// script
# dependencies = ["whisper-hailo-hf[eval,onnx]", "jiwer", "soundfile", "soxr", "numpy"]
# ///
"""Word error rate and timing of a digits model on sequences made from speakers it never heard.

Usage, on the two speakers that the bundled demo model never heard, with both encoder backends:

    python benchmarks/digits_wer.py --model digits --speech recordings --encoder-backend torch onnx

With a table (columns id, path, text) of further recordings whose text is digits, and the numbers as JSON:

    python benchmarks/digits_wer.py --model digits --speech recordings --tsv more/dev.tsv --json

With each decoder backend, what 8 bits in the decoder cost:

    python benchmarks/digits_wer.py --model digits --speech recordings --decoder-backend torch onnx onnx-int8

A student against its teacher on the same sequences, with an interval of the difference:

    python benchmarks/digits_wer.py --model digits_student --compare digits/stock --speech recordings
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from transformers import pipeline
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "digits"))

from digit_clips import SAMPLE_RATE, digit_files, load_digits
from digit_sequences import DigitSequence, random_sequence, split_segments

TOLERANCE = 0.2


def make_sequences(speech: Path, speakers: list[str], number: int, seed: int) -> list[tuple[str, DigitSequence]]:
    """`number` sequences of 1 to 20 digits and at most 30 s, the speakers taking turns; recordings are not altered."""
    rng = np.random.default_rng(seed)
    clips = {s: load_digits(f for f in digit_files(speech) if f[2] == s) for s in speakers}
    for speaker, found in clips.items():
        if not found:
            raise SystemExit(f"{speech}: no recordings of a speaker named {speaker}")
    return [(s, random_sequence(rng, clips[s])) for s in (speakers[i % len(speakers)] for i in range(number))]


def load_table(tsv: Path) -> list[tuple[np.ndarray, str]]:
    """Recordings of the table whose text is nothing but digit words, with that text in lower case."""
    from digit_windows import load_utterances

    return [(u.samples, " ".join(u.words)) for u in load_utterances(tsv)]


def non_speech(seconds: float, seed: int) -> list[tuple[str, np.ndarray]]:
    """Silence, noise and hum at several levels: audio whose right transcript is empty."""
    from augmentation import coloured_noise, mains_hum

    rng, n = np.random.default_rng(seed), round(seconds * SAMPLE_RATE)
    out = [("silence", np.zeros(n, dtype=np.float32))]
    for level in (-70, -50, -30, -15):
        gain = np.float32(10 ** (level / 20))
        for name, slope in (("white noise", 0.0), ("pink noise", 1.0), ("brown noise", 2.0)):
            out += [(f"{name} {level} dB", gain * coloured_noise(rng, n, slope)) for _ in range(3)]
        out += [(f"hum {level} dB", gain * mains_hum(rng, n)) for _ in range(3)]
    return out


def error_counts(references: list[str], texts: list[str]) -> np.ndarray:
    """For each sequence: words substituted, deleted, inserted, and spoken."""
    counts = []
    for reference, text in zip(references, texts, strict=True):
        one = jiwer.process_words(reference, text)
        counts.append((one.substitutions, one.deletions, one.insertions, one.hits + one.substitutions + one.deletions))
    return np.array(counts, dtype=float)


def resampled_counts(table: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Sums of the rows over sequences drawn with replacement, (resamples, columns)."""
    rng = np.random.default_rng(seed)
    return table[rng.integers(len(table), size=(resamples, len(table)))].sum(axis=1)


def word_errors(references: list[str], texts: list[str], seed: int = 0, resamples: int = 2000) -> dict[str, Any]:
    """Word error rate with its parts, and a 95 % interval by bootstrap over the sequences."""
    table = error_counts(references, texts)
    total, drawn = table.sum(axis=0), resampled_counts(table, seed, resamples)
    rates = drawn[:, :3].sum(axis=1) / drawn[:, 3]
    return {
        "wer": float(total[:3].sum() / total[3]),
        "interval_95": [float(x) for x in np.percentile(rates, [2.5, 97.5])],
        "substitutions": int(total[0]),
        "deletions": int(total[1]),
        "insertions": int(total[2]),
        "words": int(total[3]),
        "sequences": len(table),
        "sequences_without_error": int((table[:, :3].sum(axis=1) == 0).sum()),
    }


def paired_difference(
    references: list[str], texts: list[str], others: list[str], seed: int = 0, resamples: int = 2000
) -> dict[str, Any]:
    """The first texts' word error rate less the others', and its 95 % interval by bootstrap over the sequences.

    Paired: each draw takes the same sequences of both (Bisani & Ney 2004, https://doi.org/10.1109/ICASSP.2004.1326009).
    """
    ours, theirs = error_counts(references, texts), error_counts(references, others)
    table = np.stack([ours[:, :3].sum(axis=1), theirs[:, :3].sum(axis=1), ours[:, 3]], axis=1)
    drawn, total = resampled_counts(table, seed, resamples), table.sum(axis=0)
    differences = (drawn[:, 0] - drawn[:, 1]) / drawn[:, 2]
    return {
        "other": word_errors(references, others, seed, resamples),
        "difference": float((total[0] - total[1]) / total[2]),
        "interval_95": [float(x) for x in np.percentile(differences, [2.5, 97.5])],
        "sequences_with_the_same_text": sum(a == b for a, b in zip(texts, others, strict=True)),
    }


def confusions(references: list[str], texts: list[str]) -> dict[str, int]:
    """How often each kind of error was made: `five>nine`, `eight>` for a word left out, `>two` for one put in."""
    found: dict[str, int] = {}
    for reference, text in zip(references, texts, strict=True):
        result = jiwer.process_words(reference, text)
        said, heard = result.references[0], result.hypotheses[0]
        for chunk in result.alignments[0]:
            if chunk.type == "equal":
                continue
            left = said[chunk.ref_start_idx : chunk.ref_end_idx] or [""]
            right = heard[chunk.hyp_start_idx : chunk.hyp_end_idx] or [""]
            for i in range(max(len(left), len(right))):
                pair = f"{left[i] if i < len(left) else ''}>{right[i] if i < len(right) else ''}"
                found[pair] = found.get(pair, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def word_times(sequences: list[DigitSequence], outputs: list[dict[str, Any]]) -> dict[str, float]:
    """Share of the spoken digits that were recognised with their times within the tolerance; a missed one counts."""
    starts = ends = both = total = 0
    offsets = []
    for sequence, output in zip(sequences, outputs, strict=True):
        chunks = [c for c in output["chunks"] if c["text"].strip()]
        total += len(sequence.words)
        if not chunks:
            continue
        result = jiwer.process_words(sequence.text, " ".join(c["text"].strip() for c in chunks))
        for part in result.alignments[0]:
            if part.type != "equal":
                continue
            for r, h in zip(
                range(part.ref_start_idx, part.ref_end_idx), range(part.hyp_start_idx, part.hyp_end_idx), strict=True
            ):
                start, end = chunks[h]["timestamp"]
                off = (
                    start - sequence.words[r].start if start is not None else np.inf,
                    end - sequence.words[r].end if end is not None else np.inf,
                )
                offsets.append(off)
                good = [abs(x) <= TOLERANCE + 1e-9 for x in off]
                starts, ends, both = starts + good[0], ends + good[1], both + all(good)
    median = np.median(np.abs(offsets), axis=0) if offsets else [np.inf, np.inf]
    return {
        "starts": starts / total, "ends": ends / total, "both": both / total,
        "median_start_error": float(median[0]), "median_end_error": float(median[1]), "words": total,
    }  # fmt: skip


def segment_times(sequences: list[DigitSequence], outputs: list[dict[str, Any]]) -> dict[str, float]:
    """Share of the true segment boundaries found within the tolerance, and of the found ones that are true."""
    hit = true_total = right = found_total = 0
    for sequence, output in zip(sequences, outputs, strict=True):
        segments = split_segments(sequence.words)
        for side in (0, 1):
            true = np.array([s[0].start if side == 0 else s[-1].end for s in segments])
            times = [c["timestamp"][side] for c in output["chunks"] if c["text"].strip()]
            found = np.array([t for t in times if t is not None])
            true_total, found_total = true_total + len(true), found_total + len(found)
            if len(found):
                near = np.abs(true[:, None] - found[None]) <= TOLERANCE + 1e-9
                hit, right = hit + int(near.any(axis=1).sum()), right + int(near.any(axis=0).sum())
    return {"recall": hit / true_total, "precision": right / max(1, found_total), "boundaries": true_total}


def run(recogniser: Any, audios: list[np.ndarray], batch_size: int, timestamps: bool | str) -> list[dict[str, Any]]:
    """The pipeline over all audio, in order."""
    inputs = ({"raw": audio, "sampling_rate": SAMPLE_RATE} for audio in audios)
    settings = recogniser.model.generation_config
    usual = settings.return_timestamps
    settings.return_timestamps = bool(timestamps)  # a True there outweighs a False of the pipeline's argument
    try:
        return list(recogniser(inputs, return_timestamps=timestamps, batch_size=batch_size))
    finally:
        settings.return_timestamps = usual


def evaluate(
    recogniser: Any,
    arguments: argparse.Namespace,
    drawn: list[tuple[str, DigitSequence]],
    others: dict[str, list[str]],
) -> dict[str, Any]:
    """All measurements with one encoder backend; `others` are another model's texts, by the kind of timestamps."""
    sequences = [sequence for _, sequence in drawn]
    audios, references = [s.samples for s in sequences], [s.text for s in sequences]
    plain = run(recogniser, audios, arguments.batch_size, False)
    began = time.perf_counter()
    segments = run(recogniser, audios, arguments.batch_size, True)
    seconds = time.perf_counter() - began
    words = run(recogniser, audios, arguments.batch_size, "word")
    texts = {name: [o["text"].strip() for o in outputs] for name, outputs in
             (("none", plain), ("segment", segments), ("word", words))}  # fmt: skip
    report: dict[str, Any] = {f"timestamps_{name}": word_errors(references, text) for name, text in texts.items()}
    for name, other in others.items():
        report[f"timestamps_{name}"]["compared"] = paired_difference(references, texts[name], other)
    report["by_speaker"] = {
        speaker: word_errors([r for r, (s, _) in zip(references, drawn, strict=True) if s == speaker],
                             [t for t, (s, _) in zip(texts["segment"], drawn, strict=True) if s == speaker])
        for speaker in dict(drawn)
    }  # fmt: skip
    report["confusions"] = confusions(references, texts["segment"])
    report["word_times_within_0.2_s"] = word_times(sequences, words)
    report["segment_times_within_0.2_s"] = segment_times(sequences, segments)
    report["real_time_factor"] = seconds / sum(s.seconds for s in sequences)
    if arguments.tsv:
        table = load_table(arguments.tsv)
        heard = [o["text"].strip() for o in run(recogniser, [a for a, _ in table], arguments.batch_size, True)]
        report["table"] = word_errors([text for _, text in table], heard)
        report["table"]["confusions"] = confusions([text for _, text in table], heard)
    quiet = non_speech(10.0, arguments.seed)
    for name, timestamps in (("none", False), ("segment", True)):
        heard = [o["text"].strip() for o in run(recogniser, [a for _, a in quiet], arguments.batch_size, timestamps)]
        wrong = {what: text for (what, _), text in zip(quiet, heard, strict=True) if text}
        report[f"non_speech_with_text_{name}"] = {"of": len(quiet), "with_text": len(wrong), "examples": wrong}
    return report


def show(backend: str, report: dict[str, Any]) -> None:
    """One report for people."""
    print(f"\nencoder backend {backend}, real-time factor {report['real_time_factor']:.3f}")
    rows = [(f"timestamps {n}", report[f"timestamps_{n}"]) for n in ("none", "segment", "word")]
    rows += [(f"  speaker {s}, segment", r) for s, r in report["by_speaker"].items()]
    rows += [("table, segment", report["table"])] if "table" in report else []
    for name, r in rows:
        low, high = r["interval_95"]
        print(f"  {name:26} WER {r['wer']:7.2%}  [{low:.2%}, {high:.2%}]  {r['substitutions']} substituted, "
              f"{r['deletions']} left out, {r['insertions']} put in, of {r['words']} words in {r['sequences']}; "
              f"{r['sequences_without_error']} without error")  # fmt: skip
        if found := r.get("compared"):
            low, high = found["interval_95"]
            print(f"    the other model      WER {found['other']['wer']:7.2%}; difference "
                  f"{100 * found['difference']:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]; the same text in "
                  f"{found['sequences_with_the_same_text']}")  # fmt: skip
    print("  errors:", ", ".join(f"{pair} {n}" for pair, n in list(report["confusions"].items())[:12]) or "none")
    t, s = report["word_times_within_0.2_s"], report["segment_times_within_0.2_s"]
    print(f"  words within {TOLERANCE} s: starts {t['starts']:.1%}, ends {t['ends']:.1%}, both {t['both']:.1%} of "
          f"{t['words']}; median error {t['median_start_error']:.3f} s and {t['median_end_error']:.3f} s")  # fmt: skip
    print(f"  segment boundaries within {TOLERANCE} s: recall {s['recall']:.1%}, precision {s['precision']:.1%} "
          f"of {s['boundaries']}")  # fmt: skip
    for name in ("none", "segment"):
        q = report[f"non_speech_with_text_{name}"]
        print(
            f"  silence, noise, hum (timestamps {name}): text on {q['with_text']} of {q['of']} {q['examples'] or ''}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Word error rate and timing of a digits model.")
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--compare", help="another model's folder, such as the teacher's, for the same sequences")
    parser.add_argument("--speech", type=Path, required=True, help="folder of {digit}_{speaker}_{n}.flac or .wav")
    parser.add_argument("--speakers", nargs="+", default=["theo", "yweweler"])
    parser.add_argument("--sequences", type=int, default=200)
    parser.add_argument("--encoder-backend", nargs="+", default=["torch"], help="torch, onnx, …")
    parser.add_argument("--decoder-backend", nargs="+", default=["torch"], help="torch, onnx, onnx-int8")
    parser.add_argument("--tsv", type=Path, help="table of recordings; those whose text is digits are measured too")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    arguments = parser.parse_args()

    logging.set_verbosity_error()
    torch.manual_seed(arguments.seed)
    try:
        import whisper_hailo_hf  # noqa: F401  (registers its model class with the pipeline)
    except ModuleNotFoundError as error:
        if error.name != "whisper_hailo_hf":
            raise
    drawn = make_sequences(arguments.speech, arguments.speakers, arguments.sequences, arguments.seed)
    others: dict[str, list[str]] = {}
    if arguments.compare:
        other = pipeline("automatic-speech-recognition", model=arguments.compare)
        audios = [sequence.samples for _, sequence in drawn]
        for name, timestamps in (("none", False), ("segment", True)):
            others[name] = [o["text"].strip() for o in run(other, audios, arguments.batch_size, timestamps)]
    recogniser = pipeline("automatic-speech-recognition", model=arguments.model)
    reports = {}
    for encoder, decoder in itertools.product(arguments.encoder_backend, arguments.decoder_backend):
        if hasattr(recogniser.model, "set_encoder_backend"):
            recogniser.model.set_encoder_backend(encoder)
            recogniser.model.set_decoder_backend(decoder)
        elif (encoder, decoder) != ("torch", "torch"):
            raise SystemExit(f"{arguments.model}: a stock Whisper has no backend {encoder} or {decoder}, only torch")
        backend = encoder if decoder == "torch" else f"{encoder}, decoder backend {decoder}"
        reports[backend] = evaluate(recogniser, arguments, drawn, others)
        if not arguments.json:
            show(backend, reports[backend])
    if arguments.json:
        setting = {"speakers": arguments.speakers, "sequences": len(drawn), "seed": arguments.seed}
        setting |= {"model": arguments.model, "compared": arguments.compare}
        print(json.dumps({"setting": setting, "backends": reports}, indent=2))


if __name__ == "__main__":
    main()
