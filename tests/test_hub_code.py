"""The code that goes along for `trust_remote_code`: whole, flat, and no more than it has to ask for."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

from whisper_hailo_hf.hub.code import FOLDER, auto_map, code_files, write_code


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_code(path, include_code=True)
    return path / FOLDER


def test_without_it_a_shim(tmp_path):
    write_code(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["whisper_hailo_shim.py"]
    assert auto_map("C", "M", ("AutoModel",)) == {
        "AutoConfig": "whisper_hailo_shim.C",
        "AutoModel": "whisper_hailo_shim.M",
    }


def test_transformers_finds_every_file(folder):
    """It fetches from the Hub what the first file imports relatively, and what that does."""
    found = {Path(path).name for path in get_relative_import_files(folder / "whisper_hailo.py")}
    assert found == {path.name for path in folder.iterdir()} - {"whisper_hailo.py"}


def test_it_asks_for_nothing_but_torch_and_transformers(folder):
    """Transformers refuses code that imports what is not installed, wherever it does so outside a `try`."""
    asked = {name for path in folder.iterdir() for name in get_imports(path)} - set(sys.stdlib_module_names)
    assert asked == {"huggingface_hub", "numpy", "safetensors", "torch", "transformers"}


def test_imports_are_relative_and_resolve(folder):
    names = {path.stem for path in folder.iterdir()}
    for path in folder.iterdir():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                wanted = {node.module} if node.module else {alias.name for alias in node.names}
                assert wanted <= names, (path.name, wanted)
            elif isinstance(node, ast.ImportFrom | ast.Import) and path.name != "whisper_hailo.py":
                assert "whisper_hailo_hf" not in ast.unparse(node), path.name


def test_it_is_the_package_s_code_with_its_comments(folder):
    source = Path(__file__).resolve().parent.parent / "src" / "whisper_hailo_hf" / "encoders" / "conv.py"
    lines = [
        line for line in source.read_text().splitlines() if not line.startswith(("from", "import", "    from", "if T"))
    ]
    shipped = (folder / "encoders_conv.py").read_text().splitlines()
    assert [line for line in lines if line not in shipped] == []
    assert len(code_files(True)) == len(list(folder.iterdir()))
