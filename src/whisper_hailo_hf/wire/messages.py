"""The protocol's messages, made from the file that the build compiled from `encoder.proto`."""

from pathlib import Path
from typing import Any

from whisper_hailo_hf.errors import WhisperHailoError

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
except ImportError as error:
    raise WhisperHailoError(
        "encoder states over the network need grpcio and protobuf: pip install 'whisper-hailo-hf[serve]'"
    ) from error

_COMPILED = Path(__file__).with_name("encoder.binpb")
_PACKAGE = "whisper_hailo.encoder.v1"

DecodeError = message.DecodeError


def _classes() -> dict[str, Any]:
    try:
        compiled = _COMPILED.read_bytes()
    except OSError as error:
        raise WhisperHailoError(
            "this installation lacks the compiled protocol (wire/encoder.binpb): install the package anew with pip"
        ) from error
    pool: Any = descriptor_pool.Default()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClassesForFiles(["encoder.proto"], pool)


_found = _classes()
Tensor: Any = _found[f"{_PACKAGE}.Tensor"]
Audio: Any = _found[f"{_PACKAGE}.Audio"]
EncodeRequest: Any = _found[f"{_PACKAGE}.EncodeRequest"]
EncodeResponse: Any = _found[f"{_PACKAGE}.EncodeResponse"]
DescribeRequest: Any = _found[f"{_PACKAGE}.DescribeRequest"]
Description: Any = _found[f"{_PACKAGE}.Description"]
Integers: Any = _found[f"{_PACKAGE}.Integers"]

_enums: Any = EncodeRequest.DESCRIPTOR.file.enum_types_by_name
DTYPE: dict[str, int] = {value.name: value.number for value in _enums["DType"].values}
STATES_AS: dict[str, int] = {value.name: value.number for value in _enums["StatesAs"].values}
_coding: Any = Audio.DESCRIPTOR.enum_types_by_name["Coding"]
CODING: dict[str, int] = {value.name: value.number for value in _coding.values}
