# /// script
# dependencies = ["whisper-hailo-hf[onnx,serve,train]"]
# ///
"""Whether anything is lost when client and server of a collection are killed again and again.

    python benchmarks/collect_kill.py --speech recordings --samples 2000 --kills 50

Spoken digits (`{digit}_{speaker}_{n}.flac`) go through an int8 encoder behind `whisper-hailo serve` on the loopback
address, and `whisper-hailo collect` keeps their first states, a file a second. At random moments one of the two gets
SIGKILL and is started again; what it imports is ready in a process that both are forked from, so that a start takes a
second or two. Each kill has a random point of the work from which it is due, and a random delay. In the end every
sample must be there once, each checksum right, and `datasets` must load the set.
"""

import argparse
import json
import multiprocessing
import os
import random
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import load_dataset

from whisper_hailo_hf import quantize_encoder
from whisper_hailo_hf.model_loading import open_model
from whisper_hailo_hf.service.shards import check_collection, read_manifest
from whisper_hailo_hf.speech_model import demo_model_path

_MODULES = ["cli.main", "cli.serve", "cli.collect", "service.running", "service.collection", "backends.emulator"]


def verb(log: str, arguments: list[str]) -> None:
    """The command line, in a process of its own."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from whisper_hailo_hf.cli.main import main as run

    run(arguments)


def start(log: Path, *arguments: object) -> Any:
    process = multiprocessing.get_context("forkserver").Process(target=verb, args=(str(log), [*map(str, arguments)]))
    process.start()
    return process


def prepare(speech: Path, samples: int, folder: Path) -> tuple[Path, Path]:
    """The table of recordings, and the demo model with its integer graph."""
    files = sorted(speech.glob("*_*_*.flac"))[:: max(1, len(list(speech.glob("*_*_*.flac"))) // samples)][:samples]
    if len(files) < samples:
        raise SystemExit(f"{speech}: has {len(files)} recordings, and {samples} are wanted")
    table = folder / "table.tsv"
    lines = [f"{file.stem}\t{file.resolve()}\t{file.stem[0]}" for file in files]
    table.write_text("id\tpath\ttext\n" + "\n".join(lines) + "\n", encoding="utf-8")
    model = open_model(demo_model_path())
    calibration = [str(file) for file in files[:: max(1, samples // 16)]]
    quick: dict[str, Any] = {"layer_windows": 0, "choices": False, "method": "minmax", "report_windows": 1}
    quantize_encoder(model, calibration, output=folder / "int8.onnx", **quick)
    model.save_pretrained(folder / "model")
    return table, folder / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="folder of {digit}_{speaker}_{n}.flac")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--longest", type=float, default=4.0, help="most seconds to a kill once it is due")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        [
            "torch",
            "transformers",
            "onnxruntime",
            "onnx",
            "pyarrow.parquet",
            *(f"whisper_hailo_hf.{m}" for m in _MODULES),
        ]
    )
    dice, begin = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        table, model = prepare(options.speech, options.samples, folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        threads, small = ("--option", "threads=1"), ("--speech-only", "--shard-seconds", "1")
        verbs = {
            "server": ("serve", model, "--encoder-backend", "emulator", "--port", port, *threads),
            "client": ("collect", table, folder / "set", "--server", f"127.0.0.1:{port}", *small),
        }
        log = folder / "log"
        running = {who: start(log, *verb) for who, verb in verbs.items()}
        kills: dict[str, list[float]] = {"server": [], "client": []}
        gave_up = 0
        rows: list[int] = []
        # random points of the work, so that no machine is too slow to get anywhere between two kills
        points = sorted(dice.randrange(round(0.95 * options.samples)) for _ in range(options.kills))
        due = time.monotonic() + dice.uniform(0, options.longest)
        try:
            while True:
                time.sleep(0.1)
                if not running["client"].is_alive():
                    if running["client"].exitcode == 0:
                        break
                    running["client"] = start(log, *verbs["client"])  # it gave up, as a user would see
                    gave_up += 1
                if len(rows) < options.kills and time.monotonic() >= due:
                    there = read_manifest(folder / "set")["rows"] if (folder / "set/manifest.json").exists() else 0
                    if there < points[len(rows)]:
                        continue
                    rows.append(there)
                    who = dice.choice(["server", "client"])
                    running[who].kill()  # SIGKILL
                    running[who].join()
                    kills[who].append(round(time.monotonic() - begin, 1))
                    running[who] = start(log, *verbs[who])
                    due = time.monotonic() + dice.uniform(0, options.longest)
        finally:
            for process in running.values():
                process.kill()
                process.join()
        checked = check_collection(folder / "set")
        ids = load_dataset(str(folder / "set"), split="train", cache_dir=str(folder / "cache"))["id"]
        wanted = {line.split("\t")[0] for line in table.read_text(encoding="utf-8").splitlines()[1:]}
        result = {
            "samples": options.samples,
            "kills": {who: len(moments) for who, moments in kills.items()},
            "client_gave_up": gave_up,
            "rows_at_each_kill": rows,
            "lost": len(wanted - set(ids)),
            "doubled": len(ids) - len(set(ids)),
            "rows_with_right_checksum": checked["rows"],
            "shards": checked["shards"],
            "bytes": checked["bytes"],
            "seconds": round(time.monotonic() - begin, 1),
        }
    print(json.dumps(result, indent=2))
    if result["lost"] or result["doubled"] or checked["rows"] != options.samples:
        raise SystemExit("samples were lost or doubled")
    if len(rows) < options.kills:
        raise SystemExit(f"it was over after {len(rows)} kills")


if __name__ == "__main__":
    main()
