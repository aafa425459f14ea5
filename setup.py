"""Builds what setup.cfg cannot say: the network protocol, compiled from wire/encoder.proto by protoc.

The product is a FileDescriptorSet, which every version of protobuf reads, and not Python code, which only the versions
of protobuf from that of its compiler on do.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

WIRE = Path("whisper_hailo_hf/wire")
HERE = Path(__file__).resolve().parent / "src"


class BuildProtocol(build_py):
    """Also compiles the protocol: into the source tree for an editable install, else beside what is packed."""

    def run(self) -> None:
        super().run()
        compile_protocol(self._compiled())

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), str(self._compiled())]

    def _compiled(self) -> Path:
        root = HERE if self.editable_mode else Path(self.build_lib)
        return root / WIRE / "encoder.binpb"


def compile_protocol(target: Path) -> None:
    """Runs protoc, as grpcio-tools brings it."""
    from grpc_tools import protoc

    target.parent.mkdir(parents=True, exist_ok=True)
    source = HERE / WIRE
    arguments = [f"--proto_path={source}", f"--descriptor_set_out={target}", str(source / "encoder.proto")]
    if protoc.main(["protoc", *arguments]) != 0:
        raise SystemExit("protoc could not compile encoder.proto")


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildProtocol})
