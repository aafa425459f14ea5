"""The package as a whole: what importing it costs, what it is made of, and that its papers say what is so."""

import ast
import configparser
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import whisper_hailo_hf

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "whisper_hailo_hf"
BIN = Path(sys.executable).parent
PAPERS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "hub_cards/README.md"]


def run(*command: object, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True
    )


def run_python(code: str) -> str:
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def read_setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup


def direct_requirements() -> list[Requirement]:
    setup = read_setup()
    blocks = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    return [Requirement(line) for block in blocks for line in block.strip().splitlines()]


def tracked_files() -> list[Path]:
    """Files that git tracks, or would once they are added."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


# What importing costs


def test_import_takes_at_most_twice_as_long_as_transformers():
    code = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
    stock, ours = "transformers", "whisper_hailo_hf, transformers"
    best = {stock: float("inf"), ours: float("inf")}
    for _ in range(5):  # interleaved: a machine that is busy for a while slows both
        for names in best:
            best[names] = min(best[names], float(run_python(code.format(names))))
    assert best[ours] <= 2 * best[stock], best


@pytest.mark.parametrize(
    "names", ["whisper_hailo_hf", "whisper_hailo_hf, transformers", "transformers, whisper_hailo_hf"]
)
def test_import_leaves_heavy_libraries_alone(names):
    code = f"import sys, {names}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = set(run_python(code).split())
    assert "whisper_hailo_hf" in loaded
    assert not loaded & {"torch", "onnx", "onnxruntime", "grpc", "soundfile", "soxr"}


# What it is made of


def test_version_stands_once():
    assert importlib.metadata.version("whisper_hailo_hf") == whisper_hailo_hf.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == whisper_hailo_hf.__version__


def test_extras_are_those_of_the_design():
    extras = importlib.metadata.metadata("whisper_hailo_hf").get_all("Provides-Extra")
    assert set(extras or []) == {"onnx", "train", "eval", "serve", "mic", "browser", "dev"}


def test_bare_install_is_light():
    bare = {Requirement(line).name for line in read_setup()["options"]["install_requires"].strip().splitlines()}
    assert not bare & {"onnx", "onnxruntime", "grpcio", "datasets", "accelerate", "audiomentations", "librosa"}
    assert {"torch", "transformers", "numpy", "soundfile"} <= bare


def test_constraints_pin_every_direct_dependency_within_its_range():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {}
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        versions[canonicalize_name(pin.name)] = specifier.version
    for requirement in direct_requirements():
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} has no pin"
        assert requirement.specifier.contains(version), f"{requirement} excludes the pinned {version}"


def test_command_line_entry_point_loads():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="whisper-hailo")
    assert callable(entry.load())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from a copy so that no build folder is left in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", "dist", ".")
    result = run(sys.executable, *build, cwd=copy)
    assert result.returncode == 0, result.stderr
    (path,) = (copy / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_whole_package(wheel):
    packed = set(wheel.namelist())
    for path in PACKAGE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(PACKAGE.parent).as_posix() in packed
    assert {"whisper_hailo_hf/py.typed", "whisper_hailo_hf/cli/main.py"} <= packed
    assert "whisper_hailo_hf/demo/config.json" in packed


def test_wheel_holds_nothing_else(wheel):
    folders = {name.partition("/")[0] for name in wheel.namelist()}
    assert folders == {"optimum", "whisper_hailo_hf", f"whisper_hailo_hf-{whisper_hailo_hf.__version__}.dist-info"}
    # of optimum's own folders the one file that it finds our commands by, and nothing that would shadow them
    of_optimum = [name for name in wheel.namelist() if name.startswith("optimum/")]
    assert of_optimum == ["optimum/commands/register/register_hailo.py"]


# Layers


def lint_imports(source: Path) -> subprocess.CompletedProcess:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    options = ("--config", ROOT / "pyproject.toml", "--no-cache", "--no-logo")
    return run(sys.executable, "-c", code, *options, env={"PYTHONPATH": str(source)}, cwd=source)


def test_imports_go_one_way():
    result = lint_imports(ROOT / "src")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("audio.py", "from whisper_hailo_hf import modeling_whisper_hailo", "whisper_hailo_hf.audio is not allowed"),
        ("encoders/planted.py", "from ..backends import onnx", "whisper_hailo_hf.encoders is not allowed"),
        ("backends/planted.py", "import whisper_hailo_hf", "Illegal imports of protected package"),
        ("module_without_a_layer.py", "", "not listed as layers"),
    ],
)
def test_layer_contract_catches(module, line, complaint, tmp_path):
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "demo"))
    with (tmp_path / PACKAGE.name / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1
    assert complaint in result.stdout, result.stdout + result.stderr


# What the papers say


@pytest.mark.parametrize("name", PAPERS)
def test_files_that_a_paper_names_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)
    paths = re.findall(r"(?<![\w/.-])(?:src|examples|tests|benchmarks|hub_cards|docs|\.ci)/[\w./-]*\w", text)
    assert [path for path in {*links, *paths} if not (ROOT / path).exists()] == []


def test_readme_names_the_main_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "constraints.txt"):
        assert f"]({name})" in text


def readme_python() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_readme_pipeline_code_transcribes_the_clip():
    (code,) = [block for block in readme_python() if "pipeline(" in block]
    words = run_python(code).lower().replace(",", " ").split()
    assert len(words) > 1
    assert set(words) <= {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}


def test_readme_python_names_exist():
    imported = []
    for node in ast.walk(ast.parse("\n".join(readme_python()))):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported += [(node.module, alias.name) for alias in node.names]
    assert imported
    for module, name in imported:
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_make_goals_that_a_paper_names_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    goals = set(re.findall(r"^make (\w+)", text, re.MULTILINE)) | set(re.findall(r"`make (\w+)", text))
    assert goals
    for goal in goals:
        result = run("make", "--dry-run", goal)
        assert result.returncode == 0, result.stderr


def test_command_lines_of_papers_use_real_verbs_and_options():
    papers = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = [paper.read_text(encoding="utf-8") for paper in papers]
    found = [re.findall(r"^whisper-hailo .*", text, re.MULTILINE) for text in texts]
    assert found[0]
    wide = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    helps: dict[str, str] = {}
    for command in (command for commands in found for command in commands):
        words = command.partition("#")[0].split()
        if words[1] not in helps:
            shown = run(BIN / "whisper-hailo", words[1], "--help", env=wide)
            assert shown.returncode == 0, command
            helps[words[1]] = shown.stdout
        for option in (word for word in words if word.startswith("--")):
            assert option in helps[words[1]], f"{words[1]} has no {option}"


def test_files_name_no_index_host_and_no_machine():
    telltale = re.compile(
        r"--(?:extra-)?index-url|--find[-]links|(?:pypi|pythonhosted|download\.pytorch)\.org|(?<![\w.])/(?:work|root)/"
    )
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # audio, weights
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in telltale.finditer(text)]
    assert found == []
