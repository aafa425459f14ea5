"""What the `hef` backend costs on the host, per window, the device itself left out.

    python benchmarks/hef_overhead.py --rounds 30

At Whisper tiny's shapes (80 mel bins, 30 s, 1500 x 384 states) with 8-bit input and output: features to integers in
the chip's layout, HailoRT's side as a chip that answers at once, integers to states, and the host's epilogue. In the
same run, and alternating with it, the stock encoder of the same shapes, random weights, float32, on torch. Reports the
median of each with the quartiles, and their ratio. Processor time, summed over threads: what else runs on the machine
does not count.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from types import SimpleNamespace

import numpy as np
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from whisper_hailo_hf.backends.base import host_states
from whisper_hailo_hf.backends.hef_device import HefDevice, Settings
from whisper_hailo_hf.encoders.host import HostStage

MELS, FRAMES, POSITIONS, WIDTH = 80, 3000, 1500, 384


class _Stream:
    """An input or output, 8 bits."""

    def __init__(self, name: str, shape: list[int], scale: float, zero: float) -> None:
        self.name, self.shape = name, shape
        self.format = SimpleNamespace(type="UINT8", order="NHWC")
        limits = {"limvals_min": -zero * scale, "limvals_max": (255 - zero) * scale}
        self.quant_infos = [SimpleNamespace(qp_zp=zero, qp_scale=scale, **limits)]


class _Bindings:
    """Keeps what it is given; the output's buffer is full of numbers."""

    def __init__(self) -> None:
        self.buffers: dict[str, np.ndarray] = {}

    def _stream(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(set_buffer=lambda buffer: self.buffers.__setitem__(name, buffer))

    input = output = _stream


def instant_platform() -> SimpleNamespace:
    """A `hailo_platform` whose chip does nothing and is done at once."""
    streams = ([_Stream("in", [1, FRAMES, MELS], 0.0123, 90.0)], [_Stream("out", [1, POSITIONS, WIDTH], 0.05, 128.0)])
    configured = SimpleNamespace(
        create_bindings=_Bindings,
        wait_for_async_ready=lambda timeout_ms, frames_count: None,
        run_async=lambda bindings: SimpleNamespace(wait=lambda timeout_ms: None),
        shutdown=lambda: None,
        __exit__=lambda *error: None,
    )
    model = SimpleNamespace(inputs=streams[0], outputs=streams[1], configure=lambda: configured)
    device = SimpleNamespace(create_infer_model=lambda path: model, release=lambda: None)

    def vdevice(params: object) -> SimpleNamespace:
        return device

    vdevice.create_params = SimpleNamespace  # type: ignore[attr-defined]
    return SimpleNamespace(
        VDevice=vdevice,
        HailoSchedulingAlgorithm=SimpleNamespace(ROUND_ROBIN=1),
        FormatType=SimpleNamespace(UINT8="UINT8", UINT16="UINT16", FLOAT32="FLOAT32"),
        FormatOrder=SimpleNamespace(NHWC="NHWC", NC="NC", FCR="FCR"),
    )


def quartiles(seconds: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(np.array(seconds) * 1e3, [25, 50, 75])
    return {"median_ms": round(middle, 3), "quartiles_ms": [round(low, 3), round(high, 3)], "n": len(seconds)}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    hef = SimpleNamespace(networks=[SimpleNamespace(outputs=[SimpleNamespace(name="out")])])
    device = HefDevice(
        instant_platform(), "none.hef", hef, Settings(), channels=(MELS, WIDTH), lengths=(FRAMES, POSITIONS)
    )
    random = np.random.default_rng(0)
    for slot in device._slots:
        slot.outputs["out"][:] = random.integers(0, 256, (1, POSITIONS, WIDTH), np.uint8)
    host = HostStage(POSITIONS, WIDTH, POSITIONS, "all", "width", positional_map=True).eval()
    stock = WhisperEncoder(
        WhisperConfig(d_model=WIDTH, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536)
    )
    stock.eval()
    features = random.standard_normal((1, MELS, FRAMES)).astype(np.float32)
    (port,), (answer,) = device.input_ports, device.output_ports
    buffer, states = port.buffer(), np.empty((POSITIONS, WIDTH), np.float32)
    times: dict[str, list[float]] = {name: [] for name in ("whole", "quantise", "dequantise", "epilogue", "stock")}

    def timed(name: str, work) -> object:
        started = time.process_time()
        result = work()
        times[name].append(time.process_time() - started)
        return result

    def whole() -> torch.Tensor:
        (found,) = device.run(features)
        return host_states(host, torch.from_numpy(found)[None].transpose(1, 2).unsqueeze(2))

    for _ in range(arguments.rounds + 2):
        timed("whole", whole)
        timed("quantise", lambda: port.fill(buffer, features[0]))
        timed("dequantise", lambda: answer.read(device._slots[0].outputs["out"], states))
        timed("epilogue", lambda: host_states(host, torch.from_numpy(states)[None].transpose(1, 2).unsqueeze(2)))
        timed("stock", lambda: stock(torch.from_numpy(features)))
    found = {name: quartiles(seconds[2:]) for name, seconds in times.items()}
    ratios = np.array(times["whole"][2:]) / np.array(times["stock"][2:])
    result = {
        "shapes": f"{MELS} x {FRAMES} in, {POSITIONS} x {WIDTH} out, 8 bits",
        "machine": f"{platform.machine()}, torch {torch.__version__}, threads: {arguments.threads}",
        **found,
        "whole_to_stock": {"median": round(float(np.median(ratios)), 5), "highest": round(float(ratios.max()), 5)},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
