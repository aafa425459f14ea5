"""How fast windows for distillation are made: each transform, each kind of window, and the whole loader.

    python benchmarks/distillation_data.py speech/train.tsv --windows 300 --workers 0 1 2 --json loader.json

Times of transforms and kinds are processor time of one thread, so that other work on the machine counts little; those
of transforms are for 30 s of speech, the median of several runs. The loader's rate is by the clock as well, and counts
windows that are ready for the student: packed, augmented, log-mel features computed.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from whisper_hailo_hf.distillation.audio_store import AudioStore
from whisper_hailo_hf.distillation.augmentation import (
    PROBABILITIES,
    AugmentationConfig,
    Augmenter,
    codec_shares,
    through_codec,
)
from whisper_hailo_hf.distillation.dataset import DistillationDataset, LogMel
from whisper_hailo_hf.distillation.windows import POSITIONS, SAMPLES_PER_POSITION, WindowMix
from whisper_hailo_hf.sources.utterances import open_source

PER_UTTERANCE = ("speed", "pitch", "tempo")


def median_ms(call: Callable[[int], object], runs: int) -> float:
    call(0)
    times = []
    for run in range(runs):
        start = time.process_time()
        call(run + 1)
        times.append((time.process_time() - start) * 1e3)
    return statistics.median(times)


def window_of_speech(store: AudioStore) -> np.ndarray:
    samples = POSITIONS * SAMPLES_PER_POSITION
    parts, total = [], 0
    while total < samples:
        parts.append(store[len(parts) % len(store)])
        total += parts[-1].size
    return np.concatenate(parts)[:samples]


def time_transforms(store: AudioStore, runs: int) -> dict[str, float]:
    speech = window_of_speech(store)
    rms = float(np.sqrt(np.mean(speech**2)))
    log_mel = LogMel()
    result = {"log-mel features": median_ms(lambda run: log_mel(speech), runs)}
    for name in PROBABILITIES:
        if name == "codec":
            continue  # each by itself, below
        always = Augmenter(AugmentationConfig(**dict.fromkeys(PROBABILITIES, 0.0) | {name: 1.0}))

        def apply(run: int, always: Augmenter = always, name: str = name) -> None:
            rng = np.random.default_rng(run)
            if name in PER_UTTERANCE:
                always.utterance(speech, rng)
            else:
                always.recording(speech, rng, rms, lambda: store[int(rng.integers(len(store)))])

        result[name] = median_ms(apply, runs)
    shares = codec_shares()
    for number, codec in enumerate(shares):
        result[codec] = median_ms(
            lambda run, number=number: through_codec(speech, np.random.default_rng(run), number), runs
        )
    result["codec"] = sum(share * result[codec] for codec, share in shares.items())
    return result


def time_kinds(store: AudioStore, windows: int) -> dict[str, dict[str, float]]:
    result: dict[str, dict[str, float]] = {}
    for kind in WindowMix().weights():
        for words, augmenter in (("plain ms", None), ("augmented ms", Augmenter())):
            mix = WindowMix.only(kind)
            dataset = DistillationDataset(store, mix=mix, augmenter=augmenter, windows_per_epoch=windows)
            dataset[0]
            start = time.process_time()
            speech = sum(int(dataset[index]["speech_mask"].sum()) for index in range(windows))
            entry = result.setdefault(kind, {"speech share": speech / windows / POSITIONS})
            entry[words] = (time.process_time() - start) / windows * 1e3
    return result


def time_loader(store: AudioStore, windows: int, workers: int, augmented: bool) -> dict[str, float | int | bool]:
    dataset = DistillationDataset(store, augmenter=Augmenter() if augmented else None, windows_per_epoch=windows + 16)
    loader = DataLoader(dataset, batch_size=8, num_workers=workers, collate_fn=list)
    items = iter(loader)
    next(items), next(items)  # the workers are up
    start, processor = time.perf_counter(), time.process_time()
    made = sum(len(batch) for batch in items)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return {
        "workers": workers,
        "augmented": augmented,
        "windows": made,
        "windows_per_second": made / seconds,
        "ms_per_window": seconds / made * 1e3,
        # Of this process: with workers, it only receives.
        "processor_ms_per_window": processor / made * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a .tsv table or a folder of audio")
    parser.add_argument("--utterances", type=int, help="take only so many, spread over the source")
    parser.add_argument("--windows", type=int, default=300, help="windows for each measurement")
    parser.add_argument("--runs", type=int, default=7, help="runs of each transform")
    parser.add_argument("--workers", type=int, nargs="*", default=[0], help="numbers of loader workers")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    start = time.perf_counter()
    utterances = list(open_source(arguments.source))
    if arguments.utterances:
        utterances = utterances[:: max(1, len(utterances) // arguments.utterances)]
    store = AudioStore(utterances)
    decoding = time.perf_counter() - start
    seconds = sum(store[index].size for index in range(len(store))) / 16_000
    report = {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "utterances": len(store),
        "hours": seconds / 3600,
        "decoding_seconds": decoding,
        "transforms_ms_for_30s": time_transforms(store, arguments.runs),
        "kinds": time_kinds(store, max(20, arguments.windows // 5)),
        "loader": [
            time_loader(store, arguments.windows, workers, augmented)
            for workers in arguments.workers
            for augmented in (False, True)
        ],
    }
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


def show(report: dict) -> None:
    console = Console()
    console.print(
        f"{report['utterances']} utterances, {report['hours']:.2f} h, decoded in {report['decoding_seconds']:.1f} s"
    )
    table = Table("transform", "ms for 30 s", "probability", "ms expected")
    config = AugmentationConfig()
    for name, ms in report["transforms_ms_for_30s"].items():
        chance = getattr(config, name, None)
        table.add_row(name, f"{ms:.1f}", *("", "") if chance is None else (f"{chance:g}", f"{chance * ms:.1f}"))
    console.print(table)
    table = Table("kind", "weight", "speech share", "plain ms", "augmented ms")
    for kind, entry in report["kinds"].items():
        times = (f"{entry[name]:.1f}" for name in ("plain ms", "augmented ms"))
        table.add_row(kind, f"{getattr(WindowMix(), kind):g}", f"{entry['speech share']:.2f}", *times)
    console.print(table)
    table = Table("workers", "augmented", "windows", "windows/s", "ms per window", "processor ms here")
    for row in report["loader"]:
        table.add_row(
            str(row["workers"]),
            "yes" if row["augmented"] else "no",
            str(row["windows"]),
            f"{row['windows_per_second']:.1f}",
            f"{row['ms_per_window']:.1f}",
            f"{row['processor_ms_per_window']:.1f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
