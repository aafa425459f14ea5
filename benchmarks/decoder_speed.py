# /// script
# dependencies = ["whisper-hailo-hf[onnx]"]
# ///
"""How much faster the decoder runs on its backends than stock Transformers' on torch, and what memory each takes.

All through `generate()`, greedy, from the same encoder states, one after the other in turns, so that whatever else the
machine does meets all of them; what counts are the ratios to stock torch in the same turn:

    python benchmarks/decoder_speed.py --size tiny --threads 1 --repeats 40

`first` is the first token after the encoder (keys and values of the cross-attention, and the prompt), `token` each one
after it. Two windows take turns, since what is computed once for a window is not to be found there again. Random
weights, which do not change the speed. Memory is the peak of a process of its own, which loads the model from a file
and generates once. `--alternatives` adds what was tried in torch itself.
"""

import argparse
import copy
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS_MULTI
from transformers.utils import logging

from whisper_hailo_hf import WhisperHailoForConditionalGeneration

# d_model, layers, heads of the published sizes (Radford et al. 2022, arXiv:2212.04356, table 1)
SIZES = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12)}
STOCK, BACKENDS = "stock torch", ("torch", "onnx", "onnx-int8")
PROMPT = 4  # tokens before the first: start, language, task, no timestamps


def stock_model(size: str) -> WhisperForConditionalGeneration:
    d_model, layers, heads = SIZES[size]
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=d_model,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * d_model,
        decoder_layers=layers,
        decoder_attention_heads=heads,
        decoder_ffn_dim=4 * d_model,
    )
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config.update(
        suppress_tokens=NON_SPEECH_TOKENS_MULTI,  # as the published checkpoints: keeping to them takes time
        begin_suppress_tokens=[220, 50257],
        num_beams=1,
        forced_eos_token_id=None,
    )
    return model


def generate(model: Any, states: torch.Tensor, tokens: int, **settings: Any) -> torch.Tensor:
    prompt = torch.full((1, PROMPT), model.config.decoder_start_token_id)
    return model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        decoder_input_ids=prompt,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        do_sample=False,
        **settings,
    )


def systems(folder: str, alternatives: bool) -> dict[str, Callable[..., torch.Tensor]]:
    """What is measured, by name: each a call with states and a number of tokens."""
    stock = WhisperForConditionalGeneration.from_pretrained(f"{folder}/stock", dtype=torch.float32).eval()
    found: dict[str, Any] = {STOCK: (stock, {})}
    for name in BACKENDS:
        ours = WhisperHailoForConditionalGeneration.from_pretrained(f"{folder}/ours", decoder_backend=name)
        found[f"ours {name}"] = (ours.eval(), {})
    if alternatives:
        found["stock torch, static cache"] = (stock, {"cache_implementation": "static", "disable_compile": True})
        found["stock torch, bfloat16"] = (copy.deepcopy(stock).to(torch.bfloat16), {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.ao.quantization is deprecated
            try:
                quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(stock), {torch.nn.Linear})
                found["stock torch, torch.ao int8"] = (quantized, {})
            except (AttributeError, RuntimeError) as error:
                print(f"torch.ao int8: {error}", file=sys.stderr)

    def call(model: Any, settings: dict[str, Any]) -> Callable[..., torch.Tensor]:
        return lambda states, tokens: generate(model, states.to(model.dtype), tokens, **settings)

    return {name: call(model, settings) for name, (model, settings) in found.items()}


def measure(calls: dict[str, Any], d_model: int, tokens: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds on the clock and of the processor, by system: of the first token, and of each further one."""
    windows = torch.randn(2, 1, 1500, d_model, generator=torch.Generator().manual_seed(1))
    texts = {name: call(windows[0], tokens).tolist() for name, call in calls.items()}  # untimed
    if texts[f"ours {BACKENDS[1]}"] != texts[STOCK]:
        raise SystemExit("ONNX Runtime in float32 gave other tokens than stock torch")
    found: dict[str, dict[str, list[float]]] = {
        name: {"first": [], "token": [], "first cpu": [], "token cpu": []} for name in calls
    }
    order = list(calls)
    for turn in range(repeats):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            taken = []
            for wanted, window in ((1, 0), (tokens, 1)):
                began, cpu = time.perf_counter(), time.process_time()
                calls[name](windows[window], wanted)
                taken.append((time.perf_counter() - began, time.process_time() - cpu))
            for kind, (first, whole) in zip(("", " cpu"), zip(*taken, strict=True), strict=True):
                found[name][f"first{kind}"].append(first)
                found[name][f"token{kind}"].append((whole - first) / (tokens - 1))
    return found


def peak_memory(folder: str, name: str, threads: int) -> float:
    """MB, of a process that loads that system alone and generates once."""
    done = subprocess.run(
        [sys.executable, __file__, "--alone", name, "--folder", folder, "--threads", str(threads)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.split()[-1])


def alone(folder: str, name: str) -> None:
    if name == STOCK:
        model: Any = WhisperForConditionalGeneration.from_pretrained(f"{folder}/stock", dtype=torch.float32)
    else:
        backend = name.removeprefix("ours ")
        model = WhisperHailoForConditionalGeneration.from_pretrained(f"{folder}/ours", decoder_backend=backend)
    generate(model.eval(), torch.randn(1, 1500, model.config.d_model), 8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def summary(found: dict[str, dict[str, list[float]]], kind: str, name: str) -> dict[str, Any]:
    ratios = [mine / theirs for mine, theirs in zip(found[name][kind], found[STOCK][kind], strict=True)]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return {
        "median_ms": 1000 * statistics.median(found[name][kind]),
        "ratio": float(middle),
        "quartiles": [float(low), float(high)],
        "n": len(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of the decoder's backends.")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--alternatives", action="store_true", help="also what was tried in torch itself")
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    if arguments.alone:
        alone(arguments.folder, arguments.alone)
        return
    with tempfile.TemporaryDirectory() as folder:
        stock_model(arguments.size).save_pretrained(f"{folder}/stock")
        WhisperHailoForConditionalGeneration.from_whisper(f"{folder}/stock").save_pretrained(f"{folder}/ours")
        calls = systems(folder, arguments.alternatives)
        found = measure(calls, SIZES[arguments.size][0], arguments.tokens, arguments.repeats)
        report = {name: {kind: summary(found, kind, name) for kind in found[name]} for name in calls}
        if not arguments.no_memory:
            for name in (STOCK, *(f"ours {backend}" for backend in BACKENDS)):
                report[name]["peak_rss_mb"] = peak_memory(folder, name, arguments.threads)
    if arguments.json:
        setting = {"size": arguments.size, "threads": arguments.threads, "tokens": arguments.tokens}
        setting |= {"torch": torch.__version__, "machine": platform.machine(), "cores": os.cpu_count()}
        print(json.dumps({"setting": setting, "systems": report}, indent=2))
        return
    for name, measured in report.items():
        print(f"{name:28}", end="")
        for kind in ("first", "token", "first cpu", "token cpu"):
            row = measured[kind]
            low, high = row["quartiles"]
            print(f"  {kind} {row['median_ms']:7.2f} ms ×{row['ratio']:.2f} [{low:.2f}, {high:.2f}]", end="")
        print(f"  peak {measured['peak_rss_mb']:.0f} MB" if "peak_rss_mb" in measured else "")


if __name__ == "__main__":
    main()
