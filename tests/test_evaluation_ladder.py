"""The fidelity ladder: what is here is run, and the first stage that broke is named."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_audio import write
from helpers_models import features_for, small_model
from transformers import AutoProcessor

from whisper_hailo_hf import HailoWhisperEncoder, RequestError, WhisperHailoForConditionalGeneration, compare_stages
from whisper_hailo_hf.cli.main import main
from whisper_hailo_hf.errors import WhisperHailoError
from whisper_hailo_hf.evaluation import Gates, Stage, StageAbsent, register_stage, stage_names, stages

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def encoder() -> HailoWhisperEncoder:
    return small_model("conv", cls=HailoWhisperEncoder)


@pytest.fixture
def features(encoder: HailoWhisperEncoder) -> torch.Tensor:
    return features_for(encoder.config, batch=4)


@pytest.fixture
def ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is registered is forgotten afterwards."""
    monkeypatch.setattr(stages, "_LADDER", dict(stages._LADDER))


def noisy(encoder: HailoWhisperEncoder, snr_db: float, name: str = "planted") -> Stage:
    """The torch stage with white noise of a known level on its states."""
    rng = np.random.default_rng(0)

    def run(features: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            states = encoder(torch.from_numpy(features)).last_hidden_state.numpy()
        level = np.sqrt(np.square(states).mean()) * 10 ** (-snr_db / 20)
        return states + (level * rng.normal(size=states.shape)).astype(np.float32)

    return Stage(name, run)


def failing(name: str, error: Exception) -> Stage:
    def run(features: np.ndarray) -> np.ndarray:
        raise error

    return Stage(name, run)


# What is here


def test_what_is_here_agrees_and_what_is_not_says_why(encoder: HailoWhisperEncoder, features: torch.Tensor) -> None:
    seen = []
    report = compare_stages(encoder, features, observe=lambda *told: seen.append(told))
    assert report.ok
    assert report.first_broken is None
    assert report.verdict() == "ok: torch → onnx agree over 4 windows"
    by_name = {stage.name: stage for stage in report.stages}
    assert list(by_name) == stage_names()
    assert {name for name, stage in by_name.items() if stage.status == "run"} == {"torch", "onnx"}
    assert "Dataflow Compiler" in by_name["har-native"].why
    assert "encoder_int8.onnx" in by_name["emulator"].why
    assert "hailo_platform is not installed" in by_name["hef"].why
    (pair,) = report.neighbours
    assert (pair.reference, pair.stage) == ("torch", "onnx")
    assert pair.metrics["snr_db"] > 90
    assert seen[-1] == ("onnx", 4, 4)
    assert by_name["torch"].seconds_per_window > 0
    assert "no word error rates" in report.wer_note


def test_the_models_own_backend_stays(encoder: HailoWhisperEncoder, features: torch.Tensor) -> None:
    compare_stages(encoder, features)
    assert encoder.backend.name == "torch"


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_with_its_graph(whole: bool, tmp_path: Path) -> None:
    model = small_model("conv", cls=WhisperHailoForConditionalGeneration if whole else HailoWhisperEncoder)
    features = features_for(model.config)
    model.set_encoder_backend("onnx")
    model.save_pretrained(tmp_path)
    report = compare_stages(tmp_path, features)
    assert report.ok
    assert report.stages[1].info["graph"] == str(tmp_path / "onnx" / "encoder.onnx")


# Broken stages


def test_a_planted_fault_is_named(encoder: HailoWhisperEncoder, features: torch.Tensor) -> None:
    report = compare_stages(encoder, features, ["torch", "onnx", noisy(encoder, 8.0), noisy(encoder, 40.0, "last")])
    assert report.first_broken == "planted"
    assert "against onnx, cosine" in report.broken["planted"]
    assert "SNR 8" in report.broken["planted"] or "SNR 7" in report.broken["planted"]
    assert list(report.broken) == ["planted", "last"]  # each is held to the one before it, right or wrong
    assert report.verdict().startswith("broken at planted: against onnx")
    against_first = {pair.stage: pair.metrics["snr_db"] for pair in report.against_first}
    assert against_first["planted"] == pytest.approx(8, abs=0.3)
    assert against_first["last"] == pytest.approx(40, abs=0.3)


def test_gates_can_be_set(encoder: HailoWhisperEncoder, features: torch.Tensor) -> None:
    wanted = ["torch", noisy(encoder, 20.0)]
    assert compare_stages(encoder, features, wanted).ok
    strict = compare_stages(encoder, features, wanted, gates=Gates(snr_db=25))
    assert strict.first_broken == "planted"
    assert "is below 25 dB" in strict.broken["planted"]
    with pytest.raises(RequestError, match="between -1 and 1"):
        Gates(cosine=98)


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        (failing("planted", ValueError("no memory\nleft")), "ValueError: no memory left"),
        (failing("planted", WhisperHailoError("the device is gone")), "the device is gone"),
        (Stage("planted", lambda features: np.zeros((len(features), 3, 3))), "its states have the shape (1, 3, 3)"),
    ],
)
def test_a_stage_that_does_not_run_is_named_and_left_out(
    stage: Stage, why: str, encoder: HailoWhisperEncoder, features: torch.Tensor
) -> None:
    report = compare_stages(encoder, features, ["torch", stage, "onnx"])
    assert report.first_broken == "planted"
    assert why in report.broken["planted"]
    assert [(pair.reference, pair.stage) for pair in report.neighbours] == [("torch", "onnx")]


def test_states_that_are_no_numbers(encoder: HailoWhisperEncoder, features: torch.Tensor) -> None:
    def run(window: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            states = encoder(torch.from_numpy(window)).last_hidden_state.numpy().copy()
        states[0, 4] = np.nan
        return states

    report = compare_stages(encoder, features, ["torch", Stage("planted", run)])
    assert report.first_broken == "planted"
    assert "4 frames with values that are not finite" in report.broken["planted"]


def test_a_graph_that_does_not_fit_its_weights_is_broken_not_replaced(tmp_path: Path) -> None:
    model = small_model("conv", cls=HailoWhisperEncoder)
    model.set_encoder_backend("onnx")
    model.save_pretrained(tmp_path)
    with open(tmp_path / "onnx" / "encoder.onnx", "ab") as file:
        file.write(b"\0")
    report = compare_stages(tmp_path, features_for(model.config))
    assert report.first_broken == "onnx"
    assert "damaged" in report.broken["onnx"]


def test_the_emulator_and_what_its_quantizer_knew(tmp_path: Path) -> None:
    quantize_encoder = pytest.importorskip("whisper_hailo_hf.compile.quantize").quantize_encoder
    small_model("conv", cls=HailoWhisperEncoder).save_pretrained(tmp_path)
    features = features_for(small_model().config, batch=4)
    known = quantize_encoder(tmp_path, features.numpy(), choices=False)
    (tmp_path / "report.json").write_text(json.dumps(known.to_dict()))
    report = compare_stages(tmp_path, features, quantization_report=tmp_path / "report.json")
    assert [(pair.reference, pair.stage) for pair in report.neighbours] == [("torch", "onnx"), ("onnx", "emulator")]
    assert 10 < report.neighbours[1].metrics["snr_db"] < 60
    emulator = next(stage for stage in report.stages if stage.name == "emulator")
    assert len(emulator.layer_snr) == len(known.layers) > 3
    (tmp_path / "report.json").write_text(json.dumps(known.to_dict() | {"sha256": "0"}))
    with pytest.raises(RequestError, match="about another integer graph"):
        compare_stages(tmp_path, features, quantization_report=tmp_path / "report.json")
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(RequestError, match="no report of whisper-hailo quantize"):
        compare_stages(tmp_path, features, quantization_report=tmp_path / "report.json")
    with open(tmp_path / "onnx" / "encoder_int8.onnx", "ab") as file:
        file.write(b"\0")
    report = compare_stages(tmp_path, features)
    assert report.first_broken == "emulator"
    assert "damaged" in report.broken["emulator"]


# Requests


def test_requests_that_cannot_be_met(encoder: HailoWhisperEncoder, features: torch.Tensor, tmp_path: Path) -> None:
    for wanted, message in (
        (["torch", "tflite"], "unknown stage 'tflite': choose from torch, onnx"),
        (["torch", "torch"], "'torch' is named twice"),
        (["torch", "har-native"], "'har-native' cannot be had here: needs Hailo's Dataflow Compiler"),
        (["torch", "emulator"], "'emulator' cannot be had here"),
        (["torch"], "nothing to compare"),
    ):
        with pytest.raises(RequestError, match=message):
            compare_stages(encoder, features, wanted)
    with pytest.raises(RequestError, match="no model folder"):
        compare_stages(tmp_path / "nowhere", features)
    with pytest.raises(RequestError, match="batch_size"):
        compare_stages(encoder, features, batch_size=0)


def test_another_module_fills_a_stage(encoder: HailoWhisperEncoder, features: torch.Tensor, ladder: None) -> None:
    closed = []

    def open_native(asked: HailoWhisperEncoder) -> Stage:
        stage = noisy(asked, 30.0, "har-native")
        info = {"tool": "of a test", "layer_snr": {"conv1": 40.0, "conv2": 35.5}}
        return Stage("har-native", stage.run, lambda: info, lambda: closed.append(True))

    def absent(asked: HailoWhisperEncoder) -> Stage:
        raise StageAbsent("no licence")

    register_stage("har-native", open_native)
    register_stage("profile", absent, before="hef")
    assert stage_names()[-4:] == ["har-native", "har-quantized", "profile", "hef"]
    report = compare_stages(encoder, features)
    assert report.ok
    assert [pair.stage for pair in report.neighbours] == ["onnx", "har-native"]
    stage = next(stage for stage in report.stages if stage.name == "har-native")
    assert stage.info == {"tool": "of a test"}
    assert stage.layer_snr == {"conv1": 40.0, "conv2": 35.5}
    assert closed == [True]
    assert next(stage.why for stage in report.stages if stage.name == "profile") == "no licence"
    with pytest.raises(RequestError, match="no stage 'nowhere'"):
        register_stage("other", absent, before="nowhere")


# Reports


def test_json_and_html(encoder: HailoWhisperEncoder, features: torch.Tensor, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    planted = noisy(encoder, 8.0, "<planted>")
    stage = Stage(planted.name, planted.run, lambda: {"layer_snr": {"layer & one": 12.0}})
    report = compare_stages(encoder, features, ["torch", "onnx", stage])
    report.model = "<b>model</b>"
    report.save_json(tmp_path / "report.json")
    known = json.loads((tmp_path / "report.json").read_text())
    assert known["first_broken"] == "<planted>"
    assert known["neighbours"][1]["metrics"]["snr_db"] < 15
    assert len(known["neighbours"][0]["snr_by_channel"]) == encoder.config.d_model
    report.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4  # time, channels, drift, layers
    assert "layer &amp; one" in page
    assert "&lt;b&gt;model" in page
    assert "<b>model" not in page
    assert "<planted>" not in page
    assert '<p class="broken">broken at &lt;planted&gt;' in page
    for loads in ("src=", 'href="http', "@import", "<script", "<link"):
        assert loads not in page


def test_html_without_matplotlib(
    encoder: HailoWhisperEncoder, features: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = compare_stages(encoder, features, ["torch", "onnx"])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RequestError, match=r"pip install 'whisper-hailo-hf\[eval\]'"):
        report.save_html(tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_word_error_rates(stock_whisper: str, make_speech, tmp_path: Path) -> None:
    """Of a model that works and of states that say nothing, with the model's own transcript as the truth."""
    pytest.importorskip("jiwer")
    folder, processor = tmp_path / "model", AutoProcessor.from_pretrained(stock_whisper)
    model = WhisperHailoForConditionalGeneration.from_whisper(stock_whisper, family="attention")
    model.generation_config.max_new_tokens = 12
    model.generation_config.max_length = None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    audio = [make_speech(3.0, seed) for seed in range(2)]
    inputs = processor.feature_extractor(audio, sampling_rate=16_000, return_tensors="pt").input_features
    said = processor.batch_decode(model.generate(inputs, language="en"), skip_special_tokens=True)
    for index, samples in enumerate(audio):
        write(tmp_path / f"{index}.flac", samples, subtype="PCM_24")
    table = tmp_path / "t.tsv"
    table.write_text("path\ttext\n" + "".join(f"{i}.flac\t{text}\n" for i, text in enumerate(said)))

    def mute(window: np.ndarray) -> np.ndarray:
        return np.zeros((len(window), 1500, model.config.d_model), np.float32)

    report = compare_stages(folder, table, ["torch", Stage("mute", mute)], language="en")
    right, wrong = report.stages
    assert right.words == wrong.words > 4
    assert right.wer == 0
    assert right.transcripts == said
    assert wrong.wer > 0.5
    assert wrong.word_errors == round(wrong.wer * wrong.words)
    assert report.first_broken == "mute"


# The verb


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["verify", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_the_verb(
    encoder: HailoWhisperEncoder, features: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    encoder.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "windows.npy", features.numpy())
    given = (tmp_path / "model", tmp_path / "windows.npy")
    status, out, err = run(capsys, *given, "--html", tmp_path / "report.html")
    assert status == 0
    assert "onnx against torch" in out
    assert "har-native" in out
    assert "ok: torch → onnx agree over 4 windows" in err
    assert "<svg" in (tmp_path / "report.html").read_text()
    status, out, err = run(capsys, *given, "--json", "--min-snr", "199", "-n", "2")
    assert status == 1
    assert json.loads(out)["first_broken"] == "onnx"
    assert len(json.loads(out)["windows"]) == 2
    assert err.startswith("error: broken at onnx: against torch, SNR ")
    status, out, err = run(capsys, tmp_path / "nothing", given[1])
    assert (status, out) == (2, "")
    assert "no model folder" in err
    status, out, err = run(capsys, *given, "--html", tmp_path / "no" / "report.html")
    assert (status, out) == (2, "")
    assert "make it first" in err
