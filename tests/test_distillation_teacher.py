"""Teachers of every kind are loaded whole and frozen, and their statistics are right."""

import json
from pathlib import Path

import pytest
import torch
from helpers_distillation import (
    MELS,
    POSITIONS,
    WIDTH,
    ToyWindows,
    make_stock,
    make_student,
    make_teacher,
    make_whole_student,
)
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from whisper_hailo_hf.distillation import (
    DistillationCollator,
    Teacher,
    TeacherStatistics,
    load_teacher,
    measure_statistics,
    start_positional_map,
)
from whisper_hailo_hf.distillation.statistics import PRIOR_FRAMES
from whisper_hailo_hf.distillation.teacher import check_student
from whisper_hailo_hf.errors import RequestError

FEATURES = torch.randn(2, MELS, 2 * POSITIONS, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    folder = tmp_path / "whole"
    make_stock().save_pretrained(folder)
    return folder


@pytest.fixture
def encoder_only(tmp_path: Path) -> Path:
    """The encoder in half precision, and all of the decoder but its token embedding."""
    folder = tmp_path / "encoder"
    model = make_stock()
    folder.mkdir()
    model.config.save_pretrained(folder)
    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file({k: v for k, v in state.items() if k.startswith("model.encoder.")}, folder / "encoder.safetensors")
    rest = {k: v for k, v in state.items() if k.startswith("model.decoder.") and "embed_tokens" not in k}
    save_file(rest, folder / "decoder_without_token_embedding.safetensors")
    return folder


def test_a_whole_checkpoint(whole: Path) -> None:
    teacher = load_teacher(whole)
    stock = make_stock()
    states = teacher.encode(FEATURES)
    torch.testing.assert_close(states, stock.model.encoder(FEATURES).last_hidden_state)
    assert not states.requires_grad
    assert (teacher.d_model, teacher.n_mels, teacher.positions) == (WIDTH, MELS, POSITIONS)
    assert teacher.model is not None
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not teacher.model.training
    assert [(p.layer, p.kind) for p in teacher.projections] == [(0, "key"), (0, "value"), (1, "key"), (1, "value")]
    attention = stock.model.decoder.layers[1].encoder_attn
    torch.testing.assert_close(teacher.projections[3].weight, attention.v_proj.weight)
    torch.testing.assert_close(teacher.projections[3].bias, attention.v_proj.bias)
    assert not teacher.projections[2].bias.any()  # keys have none


def test_an_encoder_alone(encoder_only: Path, whole: Path) -> None:
    teacher, known = load_teacher(encoder_only), load_teacher(whole)
    assert teacher.model is None
    assert len(teacher.projections) == 4
    torch.testing.assert_close(teacher.encode(FEATURES), known.encode(FEATURES), rtol=1e-2, atol=2e-2)
    assert teacher.encoder.conv1.weight.dtype == torch.float32
    for ours, theirs in zip(teacher.projections, known.projections, strict=True):
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-3, atol=1e-3)
    (encoder_only / "decoder_without_token_embedding.safetensors").unlink()
    assert load_teacher(encoder_only).projections == ()


def test_the_fingerprint_is_of_the_encoder(whole: Path, encoder_only: Path) -> None:
    one = load_teacher(whole).fingerprint
    assert one == load_teacher(whole).fingerprint == make_teacher(decoder=False).fingerprint
    assert one != make_teacher(seed=1).fingerprint
    assert one != load_teacher(encoder_only).fingerprint  # rounded to half precision: other weights


def test_the_residual_stream() -> None:
    teacher = make_teacher()
    states, stream = teacher.encode_deep(FEATURES)
    torch.testing.assert_close(states, teacher.encode(FEATURES))
    assert len(stream) == teacher.config.encoder_layers + 1
    torch.testing.assert_close(teacher.encoder.layer_norm(stream[-1]), states)
    torch.testing.assert_close(teacher.encoder.layers[0](stream[0], None), stream[1])


def test_a_teacher_is_no_module() -> None:
    holder = torch.nn.Module()
    holder.teacher = make_teacher()
    assert not list(holder.parameters())
    assert not holder.state_dict()


def test_what_is_no_teacher(tmp_path: Path, whole: Path, encoder_only: Path) -> None:
    with pytest.raises(RequestError, match="cannot load a teacher"):
        load_teacher(tmp_path / "nowhere" / "at" / "all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="empty"):
        load_teacher(tmp_path / "empty")
    make_student().save_pretrained(tmp_path / "student")
    with pytest.raises(RequestError, match="student of ours"):
        load_teacher(tmp_path / "student")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(RequestError, match="bert"):
        load_teacher(tmp_path / "bert")
    state = load_file(encoder_only / "encoder.safetensors")
    del state["model.encoder.layers.1.fc2.weight"]
    save_file(state, encoder_only / "encoder.safetensors")
    with pytest.raises(RequestError, match=r"layers\.1\.fc2\.weight"):
        load_teacher(encoder_only)
    (encoder_only / "encoder.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(RequestError, match="damaged"):
        load_teacher(encoder_only)
    (encoder_only / "encoder.safetensors").unlink()
    with pytest.raises(RequestError, match=r"encoder\.safetensors"):
        load_teacher(encoder_only)
    state = load_file(whole / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if "encoder.conv2" not in k}, whole / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(RequestError, match=r"encoder\.conv2"):
        load_teacher(whole)


def test_a_whole_checkpoint_that_lost_its_decoder_serves_as_an_encoder(whole: Path) -> None:
    state = load_file(whole / "model.safetensors")
    kept = {k: v for k, v in state.items() if ".encoder." in k}
    save_file(kept, whole / "model.safetensors", {"format": "pt"})
    teacher = load_teacher(whole)
    assert teacher.model is None  # never a random one
    assert teacher.projections == ()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"d_model": 32, "decoder_attention_heads": 4}, "d_model 32"),
        ({"num_mel_bins": 10}, "mel bins 10"),
        ({"max_source_positions": 40}, "positions 40"),
    ],
)
def test_a_student_of_another_shape(settings: dict[str, int], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        check_student(make_teacher(), make_student(**settings))


# ---- statistics ----


def _loader(count: int = 24, batch: int = 5) -> DataLoader:
    return DataLoader(ToyWindows(count), batch, collate_fn=DistillationCollator())


def test_statistics_are_the_moments_over_speech() -> None:
    teacher = make_teacher()
    found = measure_statistics(teacher, _loader())
    batch = next(iter(_loader(batch=24)))
    states, stream = teacher.encode_deep(batch["input_features"])
    speech = batch["speech_mask"]
    spoken = states[speech].double()
    torch.testing.assert_close(found.mean, spoken.mean(0).float())
    torch.testing.assert_close(found.scale, spoken.std(0, correction=0).float())
    torch.testing.assert_close(found.covariance, torch.cov(spoken.T, correction=0).float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.hidden_mean[1], stream[1][speech].double().mean(0).float())
    torch.testing.assert_close(found.hidden_scale[2], stream[2][speech].double().std(0, correction=0).float())
    assert (found.frames, found.windows, found.teacher) == (24 * 20, 24, teacher.fingerprint)
    # at each position: speech, shrunk to all frames where there was little of it
    for position in (0, 15):
        counted = states[speech[:, position], position]
        expected = counted.sum(0) + PRIOR_FRAMES * states[:, position].mean(0)
        torch.testing.assert_close(found.position_mean[position], expected / (len(counted) + PRIOR_FRAMES))
    torch.testing.assert_close(found.whiten(spoken.float()).std(0, correction=0), torch.ones(WIDTH))


def test_statistics_stop_in_time() -> None:
    teacher = make_teacher()
    seen: list[int] = []
    found = measure_statistics(teacher, _loader(), max_windows=7, observe=seen.append)
    assert found.windows == 7
    assert seen == [5, 7]
    assert found.frames == 7 * 20


def test_a_channel_that_never_moves_does_not_divide_by_nothing() -> None:
    stock = make_stock()
    with torch.no_grad():
        stock.model.encoder.layer_norm.weight[3] = 0
    found = measure_statistics(Teacher(stock.model.encoder, stock.config, "still"), _loader())
    assert found.scale[3] > 0
    assert torch.isfinite(found.whiten(found.position_mean)).all()


def test_statistics_are_stored_with_their_teacher(tmp_path: Path) -> None:
    teacher = make_teacher()
    found = measure_statistics(teacher, _loader())
    path = tmp_path / "deep" / "statistics.safetensors"
    found.save(path)
    again = TeacherStatistics.load(path, teacher)
    for name, tensor in found.tensors().items():
        assert torch.equal(tensor, again.tensors()[name])
    assert (again.frames, again.windows) == (found.frames, found.windows)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-written stays behind
    with pytest.raises(RequestError, match="another teacher"):
        TeacherStatistics.load(path, make_teacher(seed=1))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RequestError, match="no teacher statistics"):
        TeacherStatistics.load(path, teacher)


def test_statistics_need_speech() -> None:
    silent = [{"input_features": FEATURES, "speech_mask": torch.zeros(2, POSITIONS, dtype=torch.bool)}]
    with pytest.raises(RequestError, match="no speech"):
        measure_statistics(make_teacher(), silent)


def test_the_positional_map_starts_from_the_mean_before_the_norm() -> None:
    teacher = make_teacher()
    found = measure_statistics(teacher, _loader())
    student = make_student()
    start_positional_map(student, found)
    assert torch.equal(student.host.positional_map.weight, found.position_mean_before_norm)
    whole = make_whole_student(teacher)
    start_positional_map(whole.get_encoder(), found)
    with pytest.raises(RequestError, match="must agree"):
        start_positional_map(make_student(max_source_positions=40), found)
    with pytest.raises(RequestError, match="attention family"):
        start_positional_map(make_student(encoder_family="attention", encoder_options={}), found)
