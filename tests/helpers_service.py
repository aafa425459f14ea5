"""A small encoder in integers, servers of it, and requests to them."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
from helpers_models import small_model

from whisper_hailo_hf.compile.quantize import quantize_encoder
from whisper_hailo_hf.wire import client
from whisper_hailo_hf.wire.messages import STATES_AS, EncodeRequest
from whisper_hailo_hf.wire.tensors import pack_tensor

SHAPE = (8, 60)
POSITIONS, WIDTH = 30, 16
SAMPLES = 60 * 160


def save_integer_model(folder: Path, **changes: Any) -> Path:
    """A model folder with the integer graph beside the weights: 8 log-mel rows, 30 positions, d_model 16."""
    model = small_model(**changes)
    calibration = np.random.default_rng(0).standard_normal((16, *SHAPE)).astype(np.float32)
    quantize_encoder(model, calibration, output=folder / "int8.onnx", layer_windows=0, choices=False, method="minmax")
    model.save_pretrained(folder / "model")
    return folder / "model"


def _verb(arguments: list[str]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    from whisper_hailo_hf.cli.main import main

    main(arguments)


def start_verb(*arguments: object) -> Any:
    """The command line in a process that can be killed: forked from one that has imported all, for speed."""
    context = multiprocessing.get_context("forkserver")
    modules = ("cli.main", "service.running", "service.collection", "backends.emulator")
    context.set_forkserver_preload(["transformers", "onnxruntime", *(f"whisper_hailo_hf.{name}" for name in modules)])
    process = context.Process(target=_verb, args=([str(one) for one in arguments],))
    process.start()
    return process


def windows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


def request(features: np.ndarray | None = None, sample_id: str = "one", states_as: str = "AUTO", **fields: Any) -> Any:
    if features is None:
        features = windows(1)[0]
    tensor = pack_tensor(features.astype(np.float32))
    return EncodeRequest(sample_id=sample_id, features=tensor, states_as=STATES_AS[states_as], **fields)


def connect(server: Any, **settings: Any) -> client.Client:
    return client.Connection(f"127.0.0.1:{server.port}", **settings).open()
