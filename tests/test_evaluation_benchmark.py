"""`whisper-hailo bench`: equal work for all, figures with their spread, energy, provenance, and another run's."""

import json
import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, GenerationConfig

from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.evaluation.bench_plot import save_html
from whisper_hailo_hf.evaluation.bench_process import BenchProcess
from whisper_hailo_hf.evaluation.bench_report import BenchmarkReport, Spread, SystemTimes, compare_reports
from whisper_hailo_hf.evaluation.bench_systems import (
    MEASURES,
    SystemSpec,
    convert_for_faster_whisper,
    make_system,
    speech_like_windows,
)
from whisper_hailo_hf.evaluation.benchmark import choose_systems, prepare_folders, run_benchmark
from whisper_hailo_hf.evaluation.energy import PmicMeter, RaplMeter, pmic_watts
from whisper_hailo_hf.evaluation.provenance import provenance

# as a Raspberry Pi 5 prints it, shortened
PMIC = """  3V3_SYS_A current(1)=0.10000000A
 VDD_CORE_A current(7)=2.00000000A
 3V3_SYS_V volt(9)=3.30000000V
 VDD_CORE_V volt(15)=0.75000000V
 EXT5V_V volt(24)=5.15000000V
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return prepare_folders(tmp_path_factory.mktemp("bench"), shape="micro")


def test_stand_in_has_the_published_vocabulary(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders.stock)
    published = {"<|endoftext|>": 50257, "<|startoftranscript|>": 50258, "<|en|>": 50259, "<|su|>": 50357}
    published |= {"<|translate|>": 50358, "<|transcribe|>": 50359, "<|notimestamps|>": 50363, "<|0.00|>": 50364}
    assert {name: tokenizer.convert_tokens_to_ids(name) for name in published} == published
    assert len(tokenizer) == 51865
    assert len(tokenizer.decode([300, 40_000])) > 0
    # as many as the published checkpoints suppress: that costs stock Transformers time
    never = GenerationConfig.from_pretrained(folders.stock).suppress_tokens
    assert len(never) == 88
    assert {published[f"<|{name}|>"] for name in ("translate", "transcribe", "startoftranscript")} < set(never)


def test_all_do_the_same_work(folders, tmp_path):
    windows = speech_like_windows(2)
    specs = [
        SystemSpec("stock", "stock", str(folders.stock)),
        SystemSpec("ours, decoder onnx", "ours", str(folders.ours), decoder_backend="onnx"),
        SystemSpec("ours", "ours", str(folders.ours), encoder_backend="torch"),
    ]
    for spec in specs:
        system = make_system(spec, windows, 5, 1)
        assert all(system.run(measure) > 0 for measure in MEASURES)
        assert [system.generate(window, tokens) for window, tokens in ((0, 1), (1, 9))] == [1, 9]
    # a system that says less is found out, not timed
    system.tokens, system.transcribe = 6, lambda window: 5
    with pytest.raises(WhisperHailoError, match="ours said 5 tokens where 6 were asked for"):
        system.run("end_to_end")


def test_faster_whisper_does_it_too(folders, tmp_path):
    pytest.importorskip("faster_whisper")
    made = convert_for_faster_whisper(folders.stock, tmp_path / "made", "int8")
    spec = SystemSpec("faster-whisper int8", "faster_whisper", str(made), compute_type="int8")
    system = make_system(spec, speech_like_windows(2), 9, 1)
    assert all(system.run(measure) > 0 for measure in MEASURES)
    assert [system.generate(0, tokens) for tokens in (1, 2, 30)] == [1, 2, 30]
    assert "int8" in system.info()["compute_type"]
    # the same weights: encoder states are those of the stock model but for the rounding to 8 bits
    stock = make_system(SystemSpec("stock", "stock", str(folders.stock)), speech_like_windows(2), 9, 1)
    ours, theirs = np.asarray(system.states[0]), stock.states[0].numpy()
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99


def test_a_process_that_fails_says_why_in_one_line(tmp_path, monkeypatch):
    np.save(tmp_path / "windows.npy", np.zeros((2, 480_000), np.float32))
    process = BenchProcess(SystemSpec("beads", "abacus", "nowhere"), str(tmp_path / "windows.npy"), 2, 1)
    with pytest.raises(WhisperHailoError, match=r"beads cannot be measured: RequestError: unknown kind .* 'abacus'"):
        process.__enter__()
    monkeypatch.setattr("sys.executable", "/bin/false")  # dies at once
    with pytest.raises(WhisperHailoError, match=r"the process of beads has died: it said nothing \(exit status 1\)"):
        process.__enter__()


# Energy


def test_rapl_counts_joules_and_starts_again_at_zero(tmp_path):
    zones = tmp_path / "sys/class/powercap"
    for name, kind in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:1", "package-1")):
        (zones / name).mkdir(parents=True)
        (zones / name / "name").write_text(f"{kind}\n")
        (zones / name / "energy_uj").write_text("9000000\n")
        (zones / name / "max_energy_range_uj").write_text("10000000\n")
    meter = RaplMeter.find(tmp_path)
    assert meter is not None
    assert meter.source == "RAPL, processor packages: package-0, package-1"
    with meter:
        (zones / "intel-rapl:0" / "energy_uj").write_text("9500000\n")
        (zones / "intel-rapl:1" / "energy_uj").write_text("2000000\n")  # 1 J to the end, 2 J from zero
    assert meter.joules == pytest.approx(3.5)
    assert RaplMeter.find(tmp_path / "nowhere") is None


def test_pmic_of_a_raspberry_pi(tmp_path, monkeypatch):
    assert pmic_watts(PMIC) == pytest.approx(0.1 * 3.3 + 2 * 0.75)  # what comes in over 5 V has no current
    assert pmic_watts("") is None
    tool = tmp_path / "vcgencmd"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{PMIC}END\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    meter = PmicMeter.find()
    assert meter is not None
    began = time.perf_counter()
    with meter:
        time.sleep(0.2)
    seconds = time.perf_counter() - began
    assert 0.2 * 1.83 <= meter.joules <= seconds * 1.83 * 1.001
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert PmicMeter.find() is None


def test_provenance_reads_what_the_system_tells(tmp_path):
    for name, text in {
        "proc/cpuinfo": "processor\t: 0\nCPU part\t: 0xd0b\n",
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/meminfo": "MemTotal:        8388608 kB\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "2400000\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = provenance(4, tmp_path)
    machine = found["machine"]
    assert machine["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert (machine["cpu"], machine["memory_gib"]) == ("CPU part : 0xd0b", 8.0)
    assert (machine["governor"], machine["max_khz"], found["threads"]) == ("ondemand", 2_400_000, 4)
    assert found["versions"]["torch"]
    assert provenance(1, tmp_path / "nowhere")["machine"]["governor"] is None
    json.dumps(provenance(1))


# Reports


def report(**changes: float) -> BenchmarkReport:
    """Two systems, ten turns; `changes` are factors on the second one's times, by measure."""
    random = np.random.default_rng(0)
    plain = {"encoder": 0.1, "first_token": 0.15, "prefill": 0.05, "decoding": 0.68, "end_to_end": 0.9}

    def system(name: str, kind: str, scale: float, factors: dict[str, float]) -> SystemTimes:
        seconds = {
            measure: list(scale * factors.get(measure, 1) * value * random.uniform(0.99, 1.01, 10))
            for measure, value in plain.items()
        }
        return SystemTimes(name, kind, {}, seconds, 64, 1.0, 100.0, 200.0, [1.0, 2.0, 3.0])

    systems = [system("stock torch", "stock", 1, {}), system("ours onnx", "ours", 0.5, changes)]
    settings = {"turns": 10, "tokens": 64, "window_seconds": 30}
    known = provenance(2) | {"load_average_after": [0.1]}
    return BenchmarkReport("made up", systems, settings, known, "a meter", ["a note"])


def test_per_token_and_ratios():
    found = report()
    stock, ours = found.systems
    assert stock.spread("per_token").median == pytest.approx(0.01, rel=0.03)
    assert found.speed_up(ours, "end_to_end").median == pytest.approx(2, rel=0.03)
    assert found.speed_up(stock, "encoder") == Spread(1, 1, 1)
    ours.seconds["decoding"][3] = 0.0  # drowned in noise
    assert found.speed_up(ours, "per_token") is None
    assert found.to_dict()["systems"][1]["times_faster"]["per_token"] is None


def test_what_has_changed_since(tmp_path):
    report().save(tmp_path / "old.json")
    before = BenchmarkReport.load(tmp_path / "old.json")
    assert before.to_dict() == BenchmarkReport.from_dict(json.loads((tmp_path / "old.json").read_text())).to_dict()
    after = report(encoder=0.5, end_to_end=1.3)
    after.provenance["threads"] = 1
    changes, doubts = compare_reports(before, after)
    verdicts = {(one.system, one.measure): one.verdict for one in changes}
    assert verdicts["ours onnx", "encoder"] == "faster"
    assert verdicts["ours onnx", "end_to_end"] == "slower"
    assert verdicts["ours onnx", "first_token"] == "no clear change"
    assert verdicts["stock torch", "encoder"] == "no clear change"
    assert doubts == ["another threads: 2 then, 1 now"]
    pytest.importorskip("matplotlib")
    save_html(after, tmp_path / "page.html", changes)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for words in ("<svg", "ours onnx", "Against the earlier run", "no clear change", "a note", "a meter"):
        assert words in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("no json", "it is no JSON"),
        ("[]", "it is no benchmark of whisper-hailo"),
        ('{"kind": "whisper-hailo benchmark", "format": 9}', "of form 9, this version reads 1"),
        ('{"kind": "whisper-hailo benchmark", "format": 1, "systems": [{}]}', "a damaged benchmark"),
    ],
)
def test_another_file_is_refused_in_one_line(content, says, tmp_path):
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RequestError, match=says) as error:
        BenchmarkReport.load(path)
    assert str(error.value).startswith(f"{path}: ")


def test_decoders_are_chosen_beside_encoders(folders, tmp_path):
    pytest.importorskip("onnxruntime")
    specs, _ = choose_systems(folders, tmp_path, backends=["torch", "onnx"], faster_whisper=False)
    assert [(spec.encoder_backend, spec.decoder_backend) for spec in specs[1:]] == [
        ("torch", "torch"),
        ("onnx", "torch"),
        ("onnx", "onnx"),
    ]
    specs, _ = choose_systems(folders, tmp_path, backends=["torch"], decoders=["onnx-int8"], faster_whisper=False)
    assert [spec.name for spec in specs] == ["stock torch", "ours torch, decoder onnx-int8"]
    assert make_system(specs[1], speech_like_windows(2), 3, 1).info()["decoder_backend"] == "onnx-int8"
    with pytest.raises(RequestError, match="unknown decoder backend 'tpu': choose torch, onnx, onnx-int8"):
        choose_systems(folders, tmp_path, decoders=["tpu"])


def test_wrong_requests_have_one_line(folders, tmp_path):
    spec = SystemSpec("stock", "stock", str(folders.stock))
    for settings, says in (
        ({"tokens": 1}, "between 2 and 200"),
        ({"turns": 0}, "one turn or more"),
        ({"threads": 0}, "threads is a positive number"),
        ({"audio": Path("nothing.wav")}, "no such file"),
    ):
        with pytest.raises(RequestError, match=says):
            run_benchmark([spec], **settings)
    for settings, says in (
        ({"shape": "huge"}, "unknown shape 'huge': choose micro, tiny"),
        ({"shape": "tiny", "model": "x"}, "a shape or a model, not both"),
        ({"model": tmp_path / "nothing"}, "no model folder"),
        ({"model": folders.stock, "stock": folders.stock}, "is a stock Whisper itself"),
        ({"model": folders.ours, "stock": folders.ours}, "is no stock Whisper"),
    ):
        with pytest.raises(RequestError, match=says):
            prepare_folders(tmp_path, **settings)
