"""What a model folder holds for `trust_remote_code=True`: a shim, or this package's own modelling code.

The shim imports the installed package. The code is for those who have not installed it: the package's modules, as they
are, in one flat folder, because that is what Transformers' loader of remote code follows (`get_relative_imports` in
transformers/dynamic_module_utils.py, read in 5.23). It runs on torch and on ONNX Runtime; the installed package, which
also knows the chip, is taken in its place wherever there is one.
"""

import ast
import re
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

from whisper_hailo_hf.version import __version__

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGE = _ROOT.name
SHIM = "whisper_hailo_shim"
FOLDER = "whisper_hailo_code"
_ENTRY = "whisper_hailo"  # module of that folder that `auto_map` names
# what `import torch` and `import transformers` bring along; whatever else is asked for where it is needed
_PRESENT = {"huggingface_hub", "numpy", "safetensors", "torch", "transformers"}
_NAMES = "HailoWhisperEncoder, WhisperHailoConfig, WhisperHailoForConditionalGeneration, WhisperHailoModel"
_LISTED = "\n".join(f"    {name}," for name in _NAMES.split(", "))

_SHIM_CODE = f'''"""For `trust_remote_code=True`: finds the model's code, in `pip install whisper-hailo-hf`."""

from {_PACKAGE} import (  # noqa: F401
{_LISTED}
)
'''
_ENTRY_CODE = f'''"""For `trust_remote_code=True`: the package whisper_hailo_hf if it is installed, else its code."""

# ruff: noqa: F401
try:
    from {_PACKAGE} import {_NAMES}
except ImportError:
    from .configuration_whisper_hailo import WhisperHailoConfig
    from .modeling_whisper_hailo import HailoWhisperEncoder, WhisperHailoForConditionalGeneration, WhisperHailoModel
{{rest}}
'''
# stands for the backends that stay in the package
_ELSEWHERE_CODE = '''
from .backends_base import BackendStatus, EncoderBackend


class Elsewhere(EncoderBackend):
    """A backend of the package that did not come along."""

    name = "elsewhere"

    @classmethod
    def status(cls):
        return BackendStatus(
            cls.name, False, "it is not in the code that came with this model: pip install whisper-hailo-hf"
        )

    def encode(self, input_features):
        raise NotImplementedError

    def info(self):
        raise NotImplementedError
'''
# stands for this module: what is saved from a model of this code has this code again
_CODE_CODE = f'''
import shutil
from pathlib import Path


def auto_map(config_class, model_class, auto_classes, include_code=False):
    path = "{FOLDER}/{_ENTRY}."
    return {{"AutoConfig": path + config_class}} | dict.fromkeys(auto_classes, path + model_class)


def write_code(folder, include_code=False):
    here, there = Path(__file__).parent, Path(folder) / "{FOLDER}"
    there.mkdir(parents=True, exist_ok=True)
    for path in here.glob("*.py"):
        if path.name != "__init__.py":
            shutil.copyfile(path, there / path.name)
'''


def auto_map(
    config_class: str, model_class: str, auto_classes: tuple[str, ...], include_code: bool = False
) -> dict[str, str]:
    """What `config.json` tells a loader with `trust_remote_code=True`: the module and class to take for each."""
    module = f"{FOLDER}/{_ENTRY}" if include_code else SHIM
    return {"AutoConfig": f"{module}.{config_class}"} | dict.fromkeys(auto_classes, f"{module}.{model_class}")


def write_code(folder: Path, include_code: bool = False) -> None:
    """Writes the files that `auto_map` names into a model folder."""
    for name, text in code_files(include_code).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@cache
def code_files(include_code: bool = False) -> dict[str, str]:
    """The content of those files, by their names in a model folder."""
    if not include_code:
        return {f"{SHIM}.py": _SHIM_CODE}
    texts = _modules("modeling_whisper_hailo", "backends.onnx", "backends.torch")
    texts["hub.code"] = _CODE_CODE
    texts["backends.elsewhere"] = _ELSEWHERE_CODE
    shipped = {name: _Rewriter(name, text, set(texts)).run() for name, text in texts.items()}
    # all of them: Transformers fetches what the first file names, and what that names
    rest = "\n".join(f"    from .{_flat(name)} import __name__ as _" for name in sorted(texts))
    files = {_ENTRY: _ENTRY_CODE.format(rest=rest)} | {_flat(name): text for name, text in shipped.items()}
    notice = f"# From whisper_hailo_hf {__version__}, Apache-2.0: written by `include_code`, not to be edited here.\n"
    return {f"{FOLDER}/{name}.py": notice + text.lstrip("\n") for name, text in sorted(files.items())}


class _Import(NamedTuple):
    """`from <package>.<module> import <names>`; `modules` are those of the names that are modules themselves."""

    node: ast.ImportFrom
    module: str
    modules: dict[str, str]  # by name


def _flat(module: str) -> str:
    return module.replace(".", "_")


def _path(module: str) -> Path | None:
    parts = module.split(".") if module else []
    for path in (_ROOT.joinpath(*parts).with_suffix(".py"), _ROOT.joinpath(*parts, "__init__.py")):
        if parts and path.is_file():
            return path
    return None


def _own_import(node: ast.AST) -> _Import | None:
    if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] != _PACKAGE:
        return None
    module = (node.module or "").removeprefix(_PACKAGE).lstrip(".")
    inner = {alias.name: f"{module}.{alias.name}".lstrip(".") for alias in node.names}
    return _Import(node, module, {name: path for name, path in inner.items() if _path(path) is not None})


def _modules(*roots: str) -> dict[str, str]:
    """The sources of these modules and of all of ours that they import when they are imported."""
    found: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in found or name == "hub.code":
            continue
        path = _path(name)
        if path is None:
            raise AssertionError(f"{name} is no module of this package")
        found[name] = path.read_text(encoding="utf-8")
        for node in ast.parse(found[name]).body:
            if (own := _own_import(node)) is not None:
                waiting += own.modules.values()
                waiting += [own.module] * (len(own.modules) < len(own.node.names))
    return found


class _Rewriter:
    """One module's source, with its imports as they are in the flat folder; comments and all else stay."""

    def __init__(self, name: str, text: str, shipped: set[str]) -> None:
        self.name, self.lines, self.shipped = name, text.splitlines(), shipped

    def run(self) -> str:
        tree = ast.parse("\n".join(self.lines))
        self._visit(tree)
        return self._without_strings("\n".join(line for line in self.lines if line is not None)) + "\n"

    def _visit(self, node: ast.AST, depth: int = 0) -> None:
        for child in reversed(list(ast.iter_child_nodes(node))):  # from the end: lines before it keep their numbers
            if isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
                self._replace(child, [])
            elif (own := _own_import(child)) is not None:
                self._replace(own.node, self._imports(own))
            elif isinstance(child, ast.Import | ast.ImportFrom) and depth:
                self._guard(child)
            else:
                inside = depth or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                self._visit(child, int(inside))

    def _imports(self, own: _Import) -> list[str]:
        needed = {*own.modules.values(), *([own.module] if len(own.modules) < len(own.node.names) else [])}
        if not needed <= self.shipped:
            said = "this is not in the code that came with the model: pip install whisper-hailo-hf"
            return [f'raise ImportError("{said}")']
        lines, plain = [], []
        for alias in own.node.names:
            shown = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
            if alias.name in own.modules:
                lines.append(f"from . import {_flat(own.modules[alias.name])} as {alias.asname or alias.name}")
            else:
                plain.append(shown)
        if plain:
            lines.append(f"from .{_flat(own.module)} import {', '.join(plain)}")
        return lines

    def _guard(self, node: ast.Import | ast.ImportFrom) -> None:
        """Transformers asks for all that is imported anywhere, unless it is in a `try`."""
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        if all(name.partition(".")[0] in _PRESENT | set(sys.stdlib_module_names) for name in names):
            return
        lines = self.lines[node.lineno - 1 : node.end_lineno]
        indent = " " * node.col_offset
        self._replace(
            node, ["try:", *(f"    {line[len(indent) :]}" for line in lines), "except ImportError:", "    raise"]
        )

    def _replace(self, node: ast.stmt, lines: list[str]) -> None:
        assert node.end_lineno is not None
        self.lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + line for line in lines]

    def _without_strings(self, text: str) -> str:
        """Modules that the code names in strings, to import them later."""

        def found(match: re.Match[str]) -> str:
            module, attribute = match[1], match[2]
            if module in self.shipped:
                return f'f"{{__package__}}.{_flat(module)}:{attribute}"'
            return 'f"{__package__}.backends_elsewhere:Elsewhere"'

        return re.sub(rf'"{_PACKAGE}\.([\w.]+):(\w+)"', found, text)
