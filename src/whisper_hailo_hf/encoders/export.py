"""A core as a static ONNX graph: batch 1, rank 4, normalisation folded into the convolutions.

The host stage stays outside. TorchScript's exporter is used on purpose: it keeps module paths as node names and leaves
nothing but the operators of the network.
"""

import copy
import os
import uuid
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from whisper_hailo_hf.encoders.layers import AxisConv2d, ConvUnit, EncoderCore

INPUT_NAME, OUTPUT_NAME = "input_features", "states"


def folded(core: EncoderCore) -> EncoderCore:
    """A float32 copy for inference: plain `Conv2d` in the core's own layout, every BatchNorm folded away."""
    core = copy.deepcopy(core).float().cpu().eval()
    for parameter in core.parameters():
        parameter.requires_grad_(False)
    for name, module in list(core.named_modules()):
        if isinstance(module, ConvUnit):
            module.conv = fuse_conv_bn_eval(module.conv.plain().eval(), module.norm.eval())  # type: ignore[assignment]
            module.norm = nn.Identity()  # type: ignore[assignment]
        elif isinstance(module, AxisConv2d) and core.get_submodule(name) is module:  # not one that was just folded
            core.set_submodule(name, module.plain())
    return core


def export_core(core: EncoderCore, mel_bins: int, time_axis: str, path: str | os.PathLike, opset: int = 17) -> Path:
    """Writes the core to `path` as one self-contained ONNX file, atomically.

    Shapes: input `input_features` (1, mel bins, 1, frames), output `states` (1, d_model, 1, frames // 2); with time on
    the height, the last two swapped.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (1, mel_bins, 1, core.frames) if time_axis == "width" else (1, mel_bins, core.frames, 1)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # the exporter is deprecated in favour of one that renames nodes and drops older opsets
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            torch.onnx.export(
                folded(core),
                (torch.zeros(shape),),
                str(partial),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                opset_version=opset,
                do_constant_folding=True,
                dynamo=False,
            )
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path
