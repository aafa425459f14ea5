# /// script
# dependencies = ["whisper-hailo-hf[onnx,serve]"]
# ///
"""What the service costs: throughput against the bare backend, latency added, memory, and what hostile clients do.

    python benchmarks/service_load.py throughput --preset tiny --windows 40 --turns 5
    python benchmarks/service_load.py memory --requests 10000
    python benchmarks/service_load.py hostile --messages 100000

`throughput` runs the bare backend and the service in turn, so that whatever else the machine does meets both: the
encoder of a preset (random weights) in ONNX Runtime with one thread, in this process and in a server's; clients are
threads here that each keep two windows under way. Beside the rates stands the processor time per window, which other
work on the machine touches less. `memory` and `hostile` take an encoder of micro shapes.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch

from whisper_hailo_hf import WhisperHailoConfig, WhisperHailoForConditionalGeneration
from whisper_hailo_hf.wire import SERVICE
from whisper_hailo_hf.wire.client import Connection
from whisper_hailo_hf.wire.messages import STATES_AS, EncodeRequest, EncodeResponse
from whisper_hailo_hf.wire.tensors import pack_tensor

_WARM = 2  # windows that each client sends before the clock starts
_VERB = "import sys; from whisper_hailo_hf.cli.main import main; main(sys.argv[1:])"
_SIZES = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12)}
_TOKENS: dict[str, Any] = {"vocab_size": 120, "decoder_start_token_id": 101, "suppress_tokens": None}
_TOKENS |= {"bos_token_id": 100, "eos_token_id": 100, "pad_token_id": 100, "begin_suppress_tokens": None}


def save_model(folder: Path, preset: str | None) -> tuple[int, int]:
    """A model with random weights; its features' shape."""
    torch.manual_seed(0)
    if preset is None:
        shapes: dict[str, Any] = {"d_model": 16, "num_mel_bins": 8, "max_source_positions": 30, "encoder_layers": 2}
        shapes |= {"decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
        shapes |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_options": {"width": 24, "inner": 12}}
        config = WhisperHailoConfig(**_TOKENS, **shapes)
    else:
        d_model, layers, heads = _SIZES[preset]
        shapes = {"d_model": d_model, "encoder_layers": layers, "decoder_layers": 1, "encoder_preset": preset}
        shapes |= {"encoder_attention_heads": heads, "decoder_attention_heads": heads}
        config = WhisperHailoConfig(**_TOKENS, **shapes)
    model = WhisperHailoForConditionalGeneration(config).eval()
    model.set_encoder_backend("onnx")
    model.save_pretrained(folder)
    return config.num_mel_bins, 2 * config.max_source_positions


@contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[int, int]]:
    """A server in a process of its own: its port and its process id."""
    verb = [str(folder), "--encoder-backend", "onnx", "--option", "threads=1", "--port", "0", "--json", *options]
    process = subprocess.Popen([sys.executable, "-c", _VERB, "serve", *verb], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            break
    try:
        yield int(json.loads(text)["port"]), process.pid
    finally:
        process.terminate()
        process.wait(60)


def resident(pid: int) -> float:
    """MiB of memory that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"process {pid} has ended")


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_clients(port: int, clients: int, windows: int, request: Any) -> tuple[float, list[float]]:
    """Windows a second over all clients, and each window's seconds."""
    seconds: list[float] = []
    gate = threading.Barrier(clients + 1)
    share = [windows // clients + (i < windows % clients) for i in range(clients)]

    def work(count: int) -> None:
        client = Connection(f"127.0.0.1:{port}").open()
        for _ in range(_WARM):
            client.answer(request, client.encode(request))
        gate.wait()
        under_way: list[tuple[float, Any]] = []
        while count or under_way:
            while count and len(under_way) < 2:
                under_way.append((time.perf_counter(), client.encode(request)))
                count -= 1
            sent, call = under_way.pop(0)
            client.answer(request, call)
            seconds.append(time.perf_counter() - sent)
        client.close()

    threads = [threading.Thread(target=work, args=(count,)) for count in share]
    for thread in threads:
        thread.start()
    gate.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return windows / (time.perf_counter() - start), seconds


def throughput(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    shape = save_model(folder, options.preset)
    bare = WhisperHailoForConditionalGeneration.from_pretrained(
        folder, encoder_backend="onnx", encoder_backend_options={"threads": 1}
    )
    backend = bare.get_encoder().backend
    features = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    request = EncodeRequest(features=pack_tensor(features[0].astype(np.float16)))
    result: dict[str, Any] = {"preset": options.preset, "windows": options.windows, "turns": options.turns}
    with served(folder) as (port, pid):
        client = Connection(f"127.0.0.1:{port}").open()

        def one() -> float:
            start = time.perf_counter()
            client.answer(request, client.encode(request))
            return time.perf_counter() - start

        def local() -> float:
            start = time.perf_counter()
            backend.encode(features)
            return time.perf_counter() - start

        for call in (one, local):
            call()
        pairs = [(local(), one()) for _ in range(options.windows)]
        added = [1000 * (remote - alone) for alone, remote in pairs]
        result["bare_ms_median"] = round(1000 * statistics.median(alone for alone, _ in pairs), 2)
        result["added_ms_p50"] = round(float(np.percentile(added, 50)), 2)
        result["added_ms_p95"] = round(float(np.percentile(added, 95)), 2)
        for clients in (1, 4, 16):
            ratios, alone_cpu, server_cpu, client_cpu = [], 0.0, 0.0, 0.0
            for _ in range(options.turns):
                start, cpu = time.perf_counter(), time.process_time()
                for _ in range(options.windows):
                    backend.encode(features)
                alone = options.windows / (time.perf_counter() - start)
                alone_cpu += time.process_time() - cpu
                cpu, there = time.process_time(), cpu_seconds(pid)
                ratios.append(run_clients(port, clients, options.windows, request)[0] / alone)
                client_cpu, server_cpu = client_cpu + time.process_time() - cpu, server_cpu + cpu_seconds(pid) - there
            spread = [round(value, 3) for value in sorted(ratios)]
            # each client first sends some windows more, which are not timed
            sent = options.turns * (options.windows + _WARM * clients)
            done = options.turns * options.windows
            result[f"{clients}_clients"] = {
                "throughput_of_bare_median": statistics.median(spread),
                "throughput_of_bare_all": spread,
                "bare_cpu_ms_per_window": round(1000 * alone_cpu / done, 2),
                "server_cpu_ms_per_window": round(1000 * server_cpu / sent, 2),
                "clients_cpu_ms_per_window": round(1000 * client_cpu / sent, 2),
            }
        client.close()
    return result


def memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    shape = save_model(folder, None)
    request = EncodeRequest(features=pack_tensor(np.zeros(shape, np.float16)))
    with served(folder) as (port, pid):
        found = []
        for _ in range(10):
            rate, _ = run_clients(port, 4, options.requests // 10, request)
            found.append(round(resident(pid), 1))
    return {"requests": options.requests, "windows_per_second": round(rate, 1), "server_mib_after_each_tenth": found}


def hostile(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    shape = save_model(folder, None)
    good = EncodeRequest(features=pack_tensor(np.zeros(shape, np.float16)), states_as=STATES_AS["FLOAT16_STATES"])
    whole, dice = good.SerializeToString(), random.Random(0)
    codes: Counter[str] = Counter()
    honest: list[float] = []
    with served(folder) as (port, pid), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = Connection(f"127.0.0.1:{port}").open()
        before, peak = resident(pid), 0.0
        stream: Callable[..., Any] = channel.stream_stream(f"/{SERVICE}/EncodeStream")
        left = options.messages
        while left:
            batch = [mutated(whole, dice) for _ in range(min(500, left))]
            for answer in stream(iter(batch)):
                codes[str(EncodeResponse.FromString(answer).status.code)] += 1
            left -= len(batch)
            start = time.perf_counter()
            client.answer(good, client.encode(good))
            honest.append(time.perf_counter() - start)
            peak = max(peak, resident(pid))
        giant: Counter[str] = Counter()
        for _ in range(50):
            try:
                channel.unary_unary(f"/{SERVICE}/Encode")(bytes(3_000_000))
            except grpc.RpcError as error:
                giant[error.code().name] += 1
        client.answer(good, client.encode(good))
        peak = max(peak, resident(pid))
        client.close()
        after = resident(pid)
    names = {str(code.value[0]): code.name for code in grpc.StatusCode}
    return {
        "mutated_messages": options.messages,
        "answers": {names[code]: count for code, count in codes.items()},
        "giant_messages": dict(giant),
        "honest_client_ms_p50_p95": [round(1000 * float(np.percentile(honest, p)), 1) for p in (50, 95)],
        "server_mib_before_peak_after": [round(value, 1) for value in (before, peak, after)],
    }


def mutated(whole: bytes, dice: random.Random) -> bytes:
    message = bytearray(whole)
    for _ in range(dice.randint(1, 4)):
        where = dice.choice([dice.randrange(40), dice.randrange(len(message) or 1)]) % (len(message) or 1)
        kind = dice.random()
        if kind < 0.5 and message:
            message[where] = dice.randrange(256)
        elif kind < 0.75:
            del message[where : where + dice.randint(1, 50)]
        else:
            message[where:where] = dice.randbytes(dice.randint(1, 20))
    return bytes(message)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "memory", "hostile"])
    parser.add_argument("--preset", default="tiny", choices=list(_SIZES))
    parser.add_argument("--windows", type=int, default=40, help="in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        what = {"throughput": throughput, "memory": memory, "hostile": hostile}[options.what]
        print(json.dumps(what(options, Path(work) / "model"), indent=2))


if __name__ == "__main__":
    main()
