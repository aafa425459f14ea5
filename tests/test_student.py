"""A distilled encoder that was saved alone, with the decoder of the Whisper that it was distilled from."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_distillation import ToyWindows, arguments, make_stock, make_student, make_teacher
from helpers_models import features_for, same_states
from safetensors.torch import load_file, save_file

from whisper_hailo_hf import (
    HailoWhisperEncoder,
    RequestError,
    WhisperHailoConfig,
    WhisperHailoForConditionalGeneration,
)
from whisper_hailo_hf.cli.main import main
from whisper_hailo_hf.distillation import EncoderDistillationTrainer, load_teacher

build = WhisperHailoForConditionalGeneration.from_whisper


def trained_looking(encoder: HailoWhisperEncoder) -> HailoWhisperEncoder:
    """With a positional map and final LayerNorm that differ from those of a new one."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in encoder.host.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a stock Whisper, a student of it in float16 with its teacher on record)."""
    stock, student = (tmp_path_factory.mktemp("models") / name for name in ("stock", "student"))
    make_stock().save_pretrained(stock)
    encoder = trained_looking(make_student(time_axis="height"))
    encoder.config.distilled_from = load_teacher(stock).record()
    encoder.half().save_pretrained(student)
    return stock, student


@pytest.fixture
def student(folders: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the student to be spoiled."""
    copy = tmp_path / "student"
    copy.mkdir()
    for file in ("config.json", "model.safetensors"):
        (copy / file).write_bytes((folders[1] / file).read_bytes())
    return copy


def rewrite(folder: Path, **changes: object) -> None:
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | changes))


def test_the_encoder_is_the_students_and_the_decoder_the_whispers(folders: tuple[Path, Path], tmp_path: Path) -> None:
    stock, student = folders
    model = build(stock, student=student)
    alone = HailoWhisperEncoder.from_pretrained(student, dtype=torch.float32)
    assert same_states(model.get_encoder(), alone)
    theirs = make_stock().model.decoder.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.model.decoder.state_dict().items())
    assert model.dtype == torch.float32
    assert not model.training
    assert model.config.time_axis == "height"
    assert model.config.encoder_options == alone.config.encoder_options
    assert model.config.distilled_from["name"] == "stock"
    assert model.generation_config.num_beams == 1
    features = features_for(model.config)
    with torch.no_grad():
        expected = alone(features)[0]
        assert torch.allclose(model.get_encoder()(features)[0], expected, atol=1e-6)
        model.save_pretrained(tmp_path)
        again = WhisperHailoForConditionalGeneration.from_pretrained(tmp_path)
        assert again.config.architectures == ["WhisperHailoForConditionalGeneration"]
        assert same_states(model, again)
        assert torch.allclose(again.get_encoder()(features)[0], expected, atol=1e-6)


def test_dtype_if_asked_for(folders: tuple[Path, Path]) -> None:
    model = build(*folders[:1], student=folders[1], dtype=torch.float16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_it_transcribes(stock_whisper: str, make_speech, multilingual_processor, tmp_path: Path) -> None:
    """What the whole model says is what it would say if it had been saved whole."""
    whole = build(stock_whisper, preset="micro")
    trained_looking(whole.get_encoder()).save_pretrained(tmp_path / "student")
    model = build(stock_whisper, student=tmp_path / "student")
    features = multilingual_processor.feature_extractor(
        make_speech(4.0), sampling_rate=16_000, return_tensors="pt"
    ).input_features
    said, expected = (m.generate(features, language="en", max_new_tokens=12) for m in (model, whole))
    assert torch.equal(said, expected)
    assert len(set(said[0].tolist())) > 3


def test_artefacts_travel_along(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    encoder = HailoWhisperEncoder.from_pretrained(folders[1], dtype=torch.float32, encoder_backend="onnx")
    encoder.save_pretrained(tmp_path / "student")
    model = build(folders[0], student=tmp_path / "student")
    model.set_encoder_backend("auto")
    assert model.encoder_backend == "onnx"
    features = features_for(model.config)
    with torch.no_grad():
        states = model.get_encoder()(features)[0]
        assert torch.allclose(states, encoder(features)[0], atol=1e-6)
    assert model.get_encoder().backend.info()["graph"] == str(tmp_path / "student" / "onnx" / "encoder.onnx")


@pytest.mark.parametrize(
    ("stock_settings", "message"),
    [
        ({"d_model": 32}, "has d_model 16, the Whisper .* 32: they must agree, .* distilled from"),
        ({"num_mel_bins": 10}, "has mel bins 8, the Whisper .* 10: they must agree"),
        ({"max_source_positions": 60}, "has positions 30, the Whisper .* 60: they must agree"),
    ],
)
def test_other_shapes(stock_settings: dict, message: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    make_stock(**stock_settings).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=message) as caught:
        build(tmp_path, student=folders[1])
    assert "(stock)" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"family": "conv"}, {"preset": "tiny"}, {"time_axis": "width"}, {"encoder_options": {"width": 8}}]
)
def test_settings_of_a_new_encoder_are_refused(settings: dict, folders: tuple[Path, Path]) -> None:
    with pytest.raises(RequestError, match="leave out the settings of a new one"):
        build(folders[0], student=folders[1], **settings)


def one_line(stock: Path, student: Path | str) -> str:
    with pytest.raises(RequestError) as caught:
        build(stock, student=student)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_student_there(folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    stock = folders[0]
    assert "no student at" in one_line(stock, tmp_path / "nowhere")
    assert "it has no config.json" in one_line(stock, tmp_path)
    assert "it holds a whisper checkpoint" in one_line(stock, stock)
    build(stock, preset="micro").save_pretrained(tmp_path / "whole")
    assert "holds a whole model" in one_line(stock, tmp_path / "whole")


def test_damaged_students(folders: tuple[Path, Path], student: Path) -> None:
    stock, weights = folders[0], student / "model.safetensors"
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if k != "host.layer_norm.weight"}, weights, {"format": "pt"})
    assert "lacks host.layer_norm.weight" in one_line(stock, student)
    weights.write_bytes(weights.read_bytes()[:100])
    assert "cannot load the student" in one_line(stock, student)
    weights.unlink()
    assert "cannot load the student" in one_line(stock, student)
    (student / "config.json").write_text("{")
    assert "no student at" in one_line(stock, student)


def test_another_teacher_is_warned_about(
    folders: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "whisper_hailo_hf")
    build(folders[0], student=folders[1])
    assert not caplog.messages
    make_stock(seed=3).save_pretrained(tmp_path)
    model = build(tmp_path, student=folders[1])
    (line,) = caplog.messages
    assert "was distilled from stock, and the encoder of" in line
    assert model.config.distilled_from["name"] == "stock"


def test_a_student_without_a_record_is_taken(
    folders: tuple[Path, Path], student: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(student, distilled_from={})
    build(folders[0], student=student)
    assert not caplog.messages


def test_distillation_records_its_teacher(tmp_path: Path) -> None:
    teacher = make_teacher()
    trainer = EncoderDistillationTrainer(
        make_student(), teacher, arguments(tmp_path, max_steps=1), train_dataset=ToyWindows(8)
    )
    trainer.train()
    trainer.save_model(tmp_path / "student")
    config = WhisperHailoConfig.from_pretrained(tmp_path / "student")
    assert config.distilled_from == {"name": "toy", "fingerprint": teacher.fingerprint}


def test_the_record_names_no_folder_of_ours(folders: tuple[Path, Path]) -> None:
    assert load_teacher(folders[0]).record()["name"] == "stock"


def test_init_with_a_student(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stock, student = folders
    with pytest.raises(SystemExit) as end:
        main(["init", str(stock), str(tmp_path / "whole"), "--student", str(student), "--json"])
    assert not end.value.code
    assert json.loads(capsys.readouterr().out)["family"] == "conv"
    model = WhisperHailoForConditionalGeneration.from_pretrained(tmp_path / "whole")
    expected = HailoWhisperEncoder.from_pretrained(student, dtype=torch.float32)
    assert same_states(model.get_encoder(), expected)
    assert np.isfinite(model.model.decoder.embed_tokens.weight.detach().numpy()).all()
    with pytest.raises(SystemExit) as end:
        main(["init", str(stock), str(tmp_path / "other"), "--student", str(student), "--preset", "tiny"])
    assert end.value.code == 2
    assert "leave out the settings of a new one" in capsys.readouterr().err
