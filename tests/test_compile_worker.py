"""The compiler's worker and what runs it: the interface that it relies on, its failures, its memory, its end."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hailo_sdk_api import ATTRIBUTES, CALLS, EXCEPTIONS, INSTANCE, RUNNER
from helpers_dfc import PYTHON, STANDIN, alive, fault, use_standin
from helpers_models import small_model

from whisper_hailo_hf import WhisperHailoError
from whisper_hailo_hf.compile import dfc_worker, memory_guard
from whisper_hailo_hf.compile.dfc_errors import ADVICE, Context, explain
from whisper_hailo_hf.compile.dfc_process import DataflowCompiler, StageStopped
from whisper_hailo_hf.compile.export import export_encoder
from whisper_hailo_hf.compile.journal import Journal
from whisper_hailo_hf.compile.memory_guard import Ceiling, ceiling, total_memory
from whisper_hailo_hf.errors import RequestError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the compiler runs on Linux only")

SOURCE = Path(dfc_worker.__file__)
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def standin(monkeypatch):
    use_standin(monkeypatch)


def compiler(folder, limit: int | None = None, **kwargs) -> DataflowCompiler:
    total = total_memory()
    return DataflowCompiler(PYTHON, folder / "logs", Ceiling(limit or total, total), Context(), **kwargs)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "encoder.onnx"
    export_encoder(small_model(), path, windows=0)
    return path


def parse(dfc: DataflowCompiler, graph: Path, folder: Path):
    return dfc.run("parse", "parse", onnx=graph, name="encoder", hw_arch="hailo8l", har=folder / "encoder.har")


# The interface


def test_the_stand_in_has_the_interface_of_the_table():
    found = subprocess.run([PYTHON, HERE / "hailo_sdk_api.py"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.startswith(f"all of {len(CALLS) + len(ATTRIBUTES) + len(INSTANCE) + len(EXCEPTIONS)} ")


def test_the_table_tells_what_is_missing(tmp_path, monkeypatch):
    package = tmp_path / "hailo_sdk_client"
    package.mkdir()
    (package / "__init__.py").write_text("class ClientRunner:\n    def optimize(self, calib_data): ...\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = subprocess.run([PYTHON, HERE / "hailo_sdk_api.py"], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "hailo_sdk_client:InferenceContext.SDK_NATIVE" in found.stdout
    assert "hailo_sdk_client:ClientRunner.infer:" in found.stdout


def test_the_worker_uses_nothing_that_is_not_in_the_table():
    used, looked_up = set(), set()
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func)
            keywords = tuple(keyword.arg for keyword in node.keywords)
            if name in ("sdk.ClientRunner", "import_sdk().ClientRunner"):
                used.add((RUNNER, len(node.args), keywords))
            elif name.startswith("runner."):
                used.add((f"{RUNNER}.{node.func.attr}", len(node.args), keywords))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "runner":
            looked_up.add(node.attr)
    assert used == set(CALLS)
    assert looked_up - {name.rpartition(".")[2] for name, _, _ in CALLS} == set(INSTANCE)


def test_the_worker_is_a_program_of_its_own():
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    assert foreign == {"numpy", "hailo_sdk_client"}


def test_modules_beside_the_worker_are_not_taken_for_others(tmp_path):
    # the package's folder holds a graph.py, a check.py and others
    (tmp_path / "dfc_worker.py").write_text(SOURCE.read_text())
    (tmp_path / "hailo_sdk_client.py").write_text("raise SystemExit('the wrong one')")
    job = {"protocol": 1, "do": "probe", "events": str(tmp_path / "events"), "alone": False}
    (tmp_path / "job").write_text(json.dumps(job))
    done = subprocess.run([PYTHON, tmp_path / "dfc_worker.py", tmp_path / "job"], check=False)
    assert done.returncode == 0


def test_an_interpreter_by_the_folder_of_its_environment(tmp_path):
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python").symlink_to(PYTHON)
    dfc = DataflowCompiler(tmp_path / "env", tmp_path / "logs", ceiling("80%"), Context())
    assert dfc.python == tmp_path / "env" / "bin" / "python"
    versions = dfc.probe()
    assert (versions["dfc"], versions["numpy"]) == ("3.33.0", np.__version__)


# The stand-in's traps, which are the real one's


def test_states_and_shapes(tmp_path, graph):
    dfc, har = compiler(tmp_path), tmp_path / "encoder.har"
    assert parse(dfc, graph, tmp_path).facts["state"] == "hailo_model"
    with pytest.raises(
        WhisperHailoError, match=r"misses quantized weights.*--fresh|Did you forget to quantize"
    ) as end:
        dfc.run("compile", "compile", har=har, hef=tmp_path / "x.hef", compiled=tmp_path / "x.har")
    assert "the compiler could not go on" in str(end.value)
    np.save(tmp_path / "nhwc.npy", np.zeros((64, 1, 60, 8), np.float32))
    np.save(tmp_path / "nchw.npy", np.zeros((64, 8, 1, 60), np.float32))
    files = {"har": har, "outputs": tmp_path / "out.npy", "batch_size": 8}
    with pytest.raises(WhisperHailoError, match="the HAR is in another state than this stage needs"):
        dfc.run("infer", "infer", context="SDK_QUANTIZED", inputs=tmp_path / "nhwc.npy", **files)
    with pytest.raises(WhisperHailoError, match=r"Data shape \(8, 1, 60\) .*doesn't match.*\(windows, height, width"):
        dfc.run("infer", "infer", context="SDK_NATIVE", inputs=tmp_path / "nchw.npy", **files)
    assert dfc.run("infer", "infer", context="SDK_NATIVE", inputs=tmp_path / "nhwc.npy", **files).facts["shape"]
    (tmp_path / "bare.alls").write_text("normalization([0.0], [1.0])\n")
    optimize = {"har": har, "calibration": tmp_path / "nhwc.npy", "work_dir": tmp_path / "w", "optimized": har}
    with pytest.raises(WhisperHailoError, match=r"cannot be read .*>!<normalization.*correct encoder.alls"):
        dfc.run("optimize", "optimize", script=tmp_path / "bare.alls", **optimize)


# Failures, a line each

RAISED = [
    ("ParsingWithRecommendationException", "Parsing failed\nUnsupportedShuffleLayerError in op /x/Reshape: no\nend",
     "the parser does not take the graph (UnsupportedShuffleLayerError in op /x/Reshape: no): whisper-hailo check"),
    ("UnsupportedModelError", "rank 3", "does not support this model (rank 3)"),
    ("BackendAllocatorException", "Mapping failed\nAgent infeasible",
     "could not be placed on hailo8l (Agent infeasible): try --time-axis height, a smaller preset, or a shorter"),
    ("BackendScriptParserException", "Parsing failed at:\n>!<normalization(", ">!<normalization("),
    ("AllocatorScriptParserException", "at >!<resources", "the model script's allocation commands"),
    ("BackendRuntimeException", "Did you forget to quantize?", "the compiler could not go on"),
    ("BackendValueError", "Unsupported NaN values were found in params", "weights that diverged"),
    ("NMSConfigPostprocessException", "bad", "take nms_postprocess out of encoder.alls"),
    ("BadInputsShape", "Data shape (1,) for layer x doesn't match network's input shape (2,)",
     "the compiler wants (windows, height, width, channels)"),
    ("NegativeSlopeExponentNonFixable", "conv3", "calibrate with real speech"),
    ("AccelerasResourceError", "GPU memory has been exhausted", "the GPU's memory was used up"),
    ("MemoryError", "", "the memory was used up"),
    ("ValueError", "Unspecified inputs: {'net/input_layer1'}", "missed data for an input"),
    ("OSError", "[Errno 28] No space left on device", "the disk is full"),
    ("InvalidStateException", "requires hailo_model", "the HAR is in another state"),
    ("ZeroDivisionError", "by zero", "ZeroDivisionError (by zero): the log has the whole story"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "message", "line"), RAISED, ids=[one[0] for one in RAISED])
def test_an_exception_becomes_a_line(tmp_path, graph, monkeypatch, name, message, line):
    fault(monkeypatch, "translate_onnx_model", **{"raise": [name, message]})
    with pytest.raises(WhisperHailoError) as error:
        parse(compiler(tmp_path), graph, tmp_path)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("(log: 001-parse.log)")
    assert f"{name}" in (tmp_path / "logs" / "001-parse.log").read_text()  # the traceback


def test_every_exception_of_the_table_has_its_line():
    assert {place.rpartition(":")[2] for place in EXCEPTIONS} <= set(ADVICE)
    for name in ADVICE:
        for axis, other in (("width", "height"), ("height", "width")):
            line = explain([f"some.module.{name}", "builtins.Exception"], "", Context("hailo8l", axis, "mine.alls"))
            assert "{" not in line.replace("layers={*}", "")
            assert f"--time-axis {axis}" not in line
            assert name != "BackendAllocatorException" or f"--time-axis {other}" in line


def test_a_worker_that_ends_in_its_own_way(tmp_path, graph, monkeypatch):
    fault(monkeypatch, "translate_onnx_model", exit=139)
    with pytest.raises(WhisperHailoError, match="the compiler ended with status 139: Segmentation fault of sorts"):
        parse(compiler(tmp_path), graph, tmp_path)
    fault(monkeypatch, "translate_onnx_model", kill_self=True)
    with pytest.raises(StageStopped, match="killed by the system, most likely for want of memory"):
        parse(compiler(tmp_path), graph, tmp_path)
    assert sorted(path.name for path in (tmp_path / "logs").glob("*.log")) == ["001-parse.log", "002-parse.log"]


# Memory, time, and the end


@pytest.mark.parametrize("who", ["eat", "child_eats"])
def test_the_memory_ceiling(tmp_path, graph, monkeypatch, who):
    fault(monkeypatch, "translate_onnx_model", **{who: 4000})
    ticks = []
    dfc = compiler(tmp_path, 400 * 2**20, tick=lambda *tick: ticks.append(tick))
    with pytest.raises(StageStopped, match=r"held \d.* of memory, where 0.4 GiB are allowed .* was stopped") as error:
        parse(dfc, graph, tmp_path)
    assert "what was finished is kept" in str(error.value)
    assert max(memory for _, _, memory in ticks) > 400 * 2**20
    pid = json.loads((tmp_path / "logs" / "001-parse.events.jsonl").read_text().splitlines()[0])["pid"]
    assert not memory_guard.members(pid)
    assert not alive(pid)


def test_the_time(tmp_path, graph, monkeypatch):
    fault(monkeypatch, "translate_onnx_model", sleep=60)
    started = time.monotonic()
    with pytest.raises(StageStopped, match=r"took more than the .* hours allowed"):
        parse(compiler(tmp_path, timeout=2), graph, tmp_path)
    assert time.monotonic() - started < 20


def test_interrupted_from_the_keyboard(tmp_path, graph, monkeypatch):
    fault(monkeypatch, "translate_onnx_model", sleep=60)

    def tick(stage, seconds, memory):
        if (tmp_path / "logs" / "001-parse.events.jsonl").stat().st_size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parse(compiler(tmp_path, tick=tick), graph, tmp_path)
    pid = json.loads((tmp_path / "logs" / "001-parse.events.jsonl").read_text().splitlines()[0])["pid"]
    assert not alive(pid)


def test_memory_of_a_group():
    code = "import os, time; block = bytearray(os.urandom(1024)) * 51200; child = os.fork(); time.sleep(60)"
    process = subprocess.Popen([PYTHON, "-c", code], start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while len(memory_guard.members(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        held = memory_guard.memory_of(process.pid)
        assert 50 * 2**20 < held < 80 * 2**20  # what the two share is counted once
    finally:
        memory_guard.kill_group(process)
    assert memory_guard.members(process.pid) == []
    assert memory_guard.memory_of(process.pid) == 0


def test_amounts_of_memory(monkeypatch):
    monkeypatch.setattr(memory_guard, "total_memory", lambda: 32 * 2**30)
    assert ceiling("80%").limit == ceiling(0.8).limit == int(0.8 * 32 * 2**30)
    assert ceiling("24G").limit == ceiling("24 GiB").limit == ceiling("24576M").limit == 24 * 2**30
    for wrong in ("24", "G", "-1G", "0%", "64G", 1.5):
        with pytest.raises(RequestError):
            ceiling(wrong)


def test_the_limit_of_a_control_group(tmp_path, monkeypatch):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:       16777216 kB\nMemAvailable:    100000 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/box/inner\n")
    (tmp_path / "groups" / "box" / "inner").mkdir(parents=True)
    monkeypatch.setattr(memory_guard, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory_guard, "_CGROUPS", tmp_path / "groups")
    assert total_memory() == 16 * 2**30
    (tmp_path / "groups" / "box" / "memory.max").write_text("4294967296\n")
    (tmp_path / "groups" / "box" / "inner" / "memory.max").write_text("max\n")
    assert total_memory() == 4 * 2**30
    # below the ceiling, but the machine is about to give out
    full = Ceiling(14 * 2**30, 16 * 2**30)
    assert "left the machine 97.7 MiB" in full.exceeded(8 * 2**30)
    assert full.exceeded(2**30) is None  # it is not this group's doing


# The journal


def test_the_journal_keeps_what_it_was_told(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    (tmp_path / "a").write_text("a")
    output = {"sha256": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb", "size": 1}
    journal.write("run", number=journal.run)
    journal.write("finished", stage="parse", key="k", outputs={"a": output})
    with open(tmp_path / "journal.jsonl", "a") as file:
        file.write('{"event": "finished", "stage": "optim')
    again = Journal(tmp_path / "journal.jsonl")
    assert again.run == 2
    again.write("run", number=again.run, note="Zoë")
    assert [event["event"] for event in Journal(tmp_path / "journal.jsonl").events] == ["run", "finished", "run"]
    assert again.reusable("parse", "k", tmp_path)["outputs"] == {"a": output}
    assert again.reusable("parse", "other", tmp_path) is None
    assert again.reusable("optimize", "k", tmp_path) is None
    (tmp_path / "a").write_text("b")
    assert again.reusable("parse", "k", tmp_path) is None
    again.copy_to(tmp_path / "public", {"Zoë": "~"})
    assert "Zoë" not in (tmp_path / "public").read_text()


def test_the_stand_in_is_no_part_of_this_process():
    assert str(STANDIN) in os.environ["PYTHONPATH"]
    assert "hailo_sdk_client" not in sys.modules
