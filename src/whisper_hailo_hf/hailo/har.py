"""Reads a HAR, the archive that Hailo's Dataflow Compiler (DFC) keeps a network in, without the DFC.

A HAR is an uncompressed tar. In it, `<net>.hn` is the graph as JSON, `<net>.npz` its weights, `<net>.metadata.json`
its state. An optimised HAR keeps earlier forms of the graph beside the present one, as `<net>.native.hn` (as parsed)
and `<net>.fp.hn`. Form as written by DFC 3.33.0 for a parsed hailo8l network (the HAR in the history of
1croyable/whisper-hailo8L).

The graph has layers by name, "scope/conv1", in NHWC with batch -1. Nothing is unpacked to disk, nothing is unpickled,
and every size is bounded before it is read: a HAR may come from anyone.
"""

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from whisper_hailo_hf.errors import RequestError

MEBIBYTE = 2**20
MAX_MEMBERS = 1000
MAX_JSON_BYTES = 256 * MEBIBYTE
MAX_WEIGHT_BYTES = 4096 * MEBIBYTE  # unpacked; Whisper large's encoder in float32 is 2.4 GiB
STAGES = ("native", "fp", "present")  # in the order of the compiler's work


@dataclass(frozen=True)
class HnLayer:
    """One layer of the compiler's graph.

    Attributes:
        name: with its scope, such as "net/conv1".
        type: "conv", "dw", "ew_add", "layer_normalization" and so on.
        inputs, outputs: names of the layers before and behind.
        input_shapes, output_shapes: NHWC, batch -1.
        original_names: the nodes of the source graph that it came from.
        params: what belongs to its type: kernel_shape (h, w, in, out), strides (1, h, w, 1), padding, and so on.
    """

    name: str
    type: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    input_shapes: tuple[tuple[int, ...], ...] = ()
    output_shapes: tuple[tuple[int, ...], ...] = ()
    original_names: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def short_name(self) -> str:
        """The name without its scope."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class Har:
    """A network out of a HAR.

    Attributes:
        path: the file.
        name: the network's name.
        stage: which form of the graph this is: "native" (as parsed), "fp" (after the model script), or "present".
        layers: by name, in the file's order.
        net_params: what the HN says of the whole network.
        weights: arrays by layer name and parameter, such as weights["net/conv1"]["kernel"]; empty if the HAR has none
            for this stage.
        metadata: `<net>.metadata.json`: state, hw_arch, sdk_version and so on; empty if there is none.
        files: the paths in the archive, and their sizes in bytes.
    """

    path: Path
    name: str
    stage: str
    layers: Mapping[str, HnLayer]
    net_params: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, np.ndarray]]
    metadata: Mapping[str, Any]
    files: Mapping[str, int]

    @property
    def state(self) -> str:
        """What the compiler had done to it, such as "hailo_model" (parsed) or "quantized_model"; empty if unknown."""
        return str(self.metadata.get("state", ""))


def read_har(path: str | os.PathLike, stage: str | None = None) -> Har:
    """The network in a HAR.

    Args:
        path: the file.
        stage: "native" for the graph as parsed, "fp" after the model script, "present" for what it is now. None
            takes the earliest that the HAR keeps, the one that is closest to the source graph.

    Raises:
        RequestError: there is no such file, it is no HAR, it holds paths that lead out of it, links or devices, or
            parts that are missing, malformed or too large.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"{path}: no such file" if not path.exists() else f"{path} is no file: name a HAR")
    try:
        with tarfile.open(path, "r:") as archive:
            members = _checked_members(path, archive)
            return _read(path, archive, members, stage)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error}") from None
    except RequestError:
        raise
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise RequestError(
            f"{path} is no HAR, which is an uncompressed tar archive, or it is damaged: {_line(error)}"
        ) from None


def _checked_members(path: Path, archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    members: dict[str, tarfile.TarInfo] = {}
    for count, member in enumerate(archive, start=1):
        if count > MAX_MEMBERS:
            raise RequestError(f"{path} holds more than {MAX_MEMBERS} files: that is no HAR")
        inner = PurePosixPath(member.name)
        if inner.is_absolute() or ".." in inner.parts or "\\" in member.name:
            raise RequestError(f"{path} holds the path {member.name!r}, which leads out of it: refused")
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise RequestError(f"{path} holds {member.name!r}, which is a link, a device or a sparse file: refused")
        name = str(inner)
        if name in members:
            raise RequestError(f"{path} holds {name!r} twice: refused")
        members[name] = member
    return members


def _read(path: Path, archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], stage: str | None) -> Har:
    metadata = _metadata(path, archive, members)
    graphs = _graphs(path, members, metadata)
    if stage is None:
        stage = next(known for known in STAGES if known in graphs)
    if stage not in graphs:
        kept = ", ".join(known for known in STAGES if known in graphs)
        raise RequestError(f"{path} keeps no form {stage!r} of the graph: choose {kept}")
    hn = _json(path, archive, members[graphs[stage]])
    layers = _layers(path, graphs[stage], hn)
    name = hn.get("name") or metadata.get("model_name") or PurePosixPath(graphs["present"]).stem
    return Har(
        path=path,
        name=str(name),
        stage=stage,
        layers=layers,
        net_params=_mapping(hn.get("net_params")),
        weights=_weights(path, archive, members, graphs[stage], metadata if stage == "present" else {}),
        metadata=metadata,
        files={name: member.size for name, member in members.items()},
    )


def _metadata(path: Path, archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> Mapping[str, Any]:
    names = [
        name for name in members if name.endswith(".metadata.json") and not name.endswith(".original_model_meta.json")
    ]
    if len(names) > 1:
        raise RequestError(f"{path} holds the metadata of several networks: {', '.join(sorted(names))}")
    return _mapping(_json(path, archive, members[names[0]])) if names else {}


def _graphs(path: Path, members: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, str]:
    """The paths of the graph's forms, by stage."""
    names = sorted(name for name in members if name.endswith(".hn"))
    if not names:
        raise RequestError(f"{path} holds no .hn file: it is no HAR, or not one with a parsed network")
    found: dict[str, str] = {}
    for name in names:
        stage = next((stage for stage in ("native", "fp") if name.endswith(f".{stage}.hn")), "present")
        named = metadata.get("hn")
        if stage in found and named not in (name, found[stage]):
            raise RequestError(f"{path} holds the graphs of several networks: {', '.join(names)}")
        if stage not in found or named == name:
            found[stage] = name
    found.setdefault("present", names[0])
    return found


def _json(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    try:
        data = json.loads(_bytes(path, archive, member, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: {member.name} is not JSON: {_line(error)}") from None
    if not isinstance(data, dict):
        raise RequestError(f"{path}: {member.name} is JSON, but no object")
    return data


def _bytes(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
    if member.size > limit:
        raise RequestError(
            f"{path}: {member.name} has {member.size / MEBIBYTE:,.0f} MiB, more than the {limit / MEBIBYTE:,.0f} MiB "
            "that are read"
        )
    file = archive.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        raise RequestError(f"{path} is cut short: {member.name} has {len(data)} of {member.size} bytes")
    return data


def _layers(path: Path, name: str, hn: Mapping[str, Any]) -> dict[str, HnLayer]:
    described = hn.get("layers")
    if not isinstance(described, dict) or not described:
        raise RequestError(f"{path}: {name} has no layers: it is no HN graph")
    layers = {}
    for layer, entry in described.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise RequestError(f"{path}: layer {layer!r} in {name} has no type")
        layers[layer] = HnLayer(
            name=layer,
            type=entry["type"],
            inputs=_names(path, layer, entry, "input"),
            outputs=_names(path, layer, entry, "output"),
            input_shapes=_shapes(path, layer, entry, "input_shapes", "input_shape"),
            output_shapes=_shapes(path, layer, entry, "output_shapes", "output_shape"),
            original_names=_names(path, layer, entry, "original_names"),
            params=_mapping(entry.get("params")),
        )
    for known in layers.values():
        for other in (*known.inputs, *known.outputs):
            if other not in layers:
                raise RequestError(
                    f"{path}: layer {known.name!r} in {name} is joined to {other!r}, which is not there"
                )
    return layers


def _names(path: Path, layer: str, entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = entry.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RequestError(f"{path}: {key} of layer {layer!r} is no list of names")
    return tuple(value)


def _shapes(path: Path, layer: str, entry: Mapping[str, Any], *keys: str) -> tuple[tuple[int, ...], ...]:
    value: Any = next((entry[key] for key in keys if entry.get(key)), [])
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        value = [value]  # older graphs give one shape without the list around it
    if not isinstance(value, list) or not all(
        isinstance(shape, list) and all(isinstance(size, int) for size in shape) for shape in value
    ):
        raise RequestError(f"{path}: {keys[0]} of layer {layer!r} is no list of shapes")
    return tuple(tuple(shape) for shape in value)


def _weights(
    path: Path,
    archive: tarfile.TarFile,
    members: Mapping[str, tarfile.TarInfo],
    graph: str,
    metadata: Mapping[str, Any],
) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of the `.npz` that goes with a graph, "scope/conv1/kernel:0" as [scope/conv1][kernel]."""
    named = metadata.get("params")
    name = named if isinstance(named, str) and named in members else f"{graph.removesuffix('.hn')}.npz"
    if name not in members:
        return {}
    data = io.BytesIO(_bytes(path, archive, members[name], MAX_WEIGHT_BYTES))
    weights: dict[str, dict[str, np.ndarray]] = {}
    try:
        with zipfile.ZipFile(data) as packed:
            if sum(entry.file_size for entry in packed.infolist()) > MAX_WEIGHT_BYTES:
                raise RequestError(f"{path}: {name} unpacks to more than {MAX_WEIGHT_BYTES / MEBIBYTE:,.0f} MiB")
        with np.load(data, allow_pickle=False) as arrays:
            for key, array in _arrays(arrays):
                layer, _, parameter = key.rpartition("/")
                weights.setdefault(layer, {})[parameter.partition(":")[0]] = array
    except RequestError:
        raise
    except Exception as error:  # a damaged zip fails in a dozen ways: zlib's, zipfile's, NumPy's own
        raise RequestError(f"{path}: {name} is no .npz of plain arrays: {_line(error)}") from None
    return weights


def _arrays(arrays: Any) -> Iterator[tuple[str, np.ndarray]]:
    for key in arrays.files:
        array = arrays[key]
        if isinstance(array, np.ndarray):  # anything else in the zip comes back as bytes
            yield key, array


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
