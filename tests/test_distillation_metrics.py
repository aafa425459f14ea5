"""The metrics are what their definitions give, batch by batch or all at once, on frames of speech alone."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_distillation import (
    ToyWindows,
    make_student,
    make_teacher,
)
from torch import Tensor
from transformers import WhisperProcessor

from whisper_hailo_hf.distillation import (
    FidelityMeter,
    TeacherStatistics,
    encoder_fidelity,
    load_teacher,
    measure_statistics,
)
from whisper_hailo_hf.distillation.teacher import Projection
from whisper_hailo_hf.distillation.words import WordErrors
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.fidelity import decibels


def _statistics(positions: int = 60, width: int = 8, seed: int = 0) -> TeacherStatistics:
    random = torch.Generator().manual_seed(seed)
    return TeacherStatistics(
        mean=torch.randn(width, generator=random),
        scale=torch.rand(width, generator=random) + 0.5,
        covariance=torch.eye(width),
        position_mean=torch.randn(positions, width, generator=random),
        position_mean_before_norm=torch.zeros(positions, width),
        hidden_mean=torch.zeros(3, width),
        hidden_scale=torch.ones(3, width),
        teacher="toy",
        frames=1,
        windows=1,
    )


def _states(batch: int = 6, positions: int = 60, width: int = 8, noise: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    teacher = torch.randn(batch, positions, width, generator=random) + 1
    student = teacher + noise * torch.randn(batch, positions, width, generator=random)
    return student, teacher, torch.rand(batch, positions, generator=random) < 0.7


def test_the_definitions() -> None:
    stats, (student, teacher, speech) = _statistics(), _states()
    maps = tuple(Projection(0, kind, torch.randn(8, 8), torch.randn(8)) for kind in ("key", "value"))
    meter = FidelityMeter(stats, maps)
    meter.update(student, teacher, speech)
    found = meter.result()
    ours, theirs = student[speech].double(), teacher[speech].double()
    error = (ours - theirs).square().sum()
    assert found.metrics["snr_db"] == pytest.approx(10 * torch.log10(theirs.square().sum() / error).item(), abs=1e-4)
    content = (teacher - stats.position_mean)[speech].double().square().sum()
    assert found.metrics["content_snr_db"] == pytest.approx(10 * torch.log10(content / error).item(), abs=1e-4)
    raw = F.cosine_similarity(ours, theirs, dim=-1).numpy()
    white = F.cosine_similarity((ours - stats.mean) / stats.scale, (theirs - stats.mean) / stats.scale, dim=-1).numpy()
    for name, values in (("cosine", raw), ("whitened_cosine", white)):
        assert found.metrics[name] == pytest.approx(values.mean(), abs=1e-6)
        assert found.metrics[f"{name}_p5"] == pytest.approx(np.percentile(values, 5), abs=0.02)
        assert (values < found.metrics[f"{name}_p5"]).mean() == pytest.approx(0.05, abs=1 / len(values))
    shares = []
    for p in maps:
        kept = theirs.float() @ p.weight.T + p.bias
        noise = (ours - theirs).float() @ p.weight.T
        shares.append((noise.square().sum() / kept.square().sum()).item())
        assert found.metrics[f"{p.kind}_snr_db_layer0"] == pytest.approx(-10 * math.log10(shares[-1]), abs=1e-3)
    assert found.metrics["kv_snr_db"] == pytest.approx(-10 * math.log10(sum(shares) / 2), abs=1e-3)
    assert found.metrics["speech_frames"] == speech.sum().item()
    assert found.metrics["windows"] == 6


def test_frames_without_speech_do_not_count() -> None:
    stats, (student, teacher, speech) = _statistics(), _states()
    spoiled = torch.where(speech.unsqueeze(-1), student, 100 * torch.ones_like(student))
    meters = FidelityMeter(stats), FidelityMeter(stats)
    meters[0].update(student, teacher, speech)
    meters[1].update(spoiled, teacher, speech)
    assert meters[0].result().metrics == meters[1].result().metrics


def test_batches_add_up_and_processes_too() -> None:
    stats, (student, teacher, speech) = _statistics(), _states()
    whole, parts, other = FidelityMeter(stats), FidelityMeter(stats), FidelityMeter(stats)
    whole.update(student, teacher, speech)
    for first, last in ((0, 1), (1, 4)):
        parts.update(student[first:last], teacher[first:last], speech[first:last])
    other.update(student[4:], teacher[4:], speech[4:])
    shares = {id(parts.sums[name]): other.sums[name] for name in parts.sums}
    parts.merge(lambda tensor: tensor + shares[id(tensor)])
    assert parts.result().metrics == pytest.approx(whole.result().metrics)
    assert np.allclose(parts.result().content_snr_by_position, whole.result().content_snr_by_position)


def test_the_table_of_means_has_no_content() -> None:
    """Predicting the teacher's mean by position may look well in SNR, and is worth 0 dB in content."""
    random = torch.Generator().manual_seed(0)
    table = 3 * torch.randn(60, 8, generator=random)
    teacher = table + torch.randn(200, 60, 8, generator=random)
    stats = _statistics()
    stats = TeacherStatistics(**stats.tensors() | {"position_mean": table}, teacher="toy", frames=1, windows=1)
    meter = FidelityMeter(stats)
    meter.update(table.expand_as(teacher), teacher, torch.ones(200, 60, dtype=torch.bool))
    found = meter.result().metrics
    assert found["snr_db"] == pytest.approx(10, abs=0.7)  # 9 + 1 parts against 1
    assert found["content_snr_db"] == pytest.approx(0, abs=1e-6)


def test_drift_is_seen_where_it_is() -> None:
    stats, (_, teacher, _) = _statistics(), _states(batch=40)
    noise = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(2))
    level = torch.full((60, 1), 0.1)
    level[56:] = 1.0  # frames 56-60 of 60: where 1400-1500 of 1500 would be
    meter = FidelityMeter(stats)
    meter.update(teacher + level * noise, teacher, torch.ones(40, 60, dtype=torch.bool))
    found = meter.result()
    m = found.metrics
    assert m["content_snr_db_start"] == pytest.approx(m["content_snr_db_middle"], abs=1.5)
    assert m["content_snr_db_middle"] - m["content_snr_db_end"] == pytest.approx(20, abs=2)
    assert m["drift_db"] == pytest.approx(
        max(m["content_snr_db_start"], m["content_snr_db_middle"]) - m["content_snr_db_end"]
    )
    assert found.content_snr_by_position[:56].min() > found.content_snr_by_position[56:].max()


def test_places_without_speech_are_left_out() -> None:
    stats, (student, teacher, _) = _statistics(), _states()
    speech = torch.zeros(6, 60, dtype=torch.bool)
    speech[:, :10] = True
    meter = FidelityMeter(stats)
    meter.update(student, teacher, speech)
    found = meter.result()
    assert "content_snr_db_start" in found.metrics
    assert not {"content_snr_db_middle", "content_snr_db_end", "drift_db"} & set(found.metrics)
    assert np.isnan(found.content_snr_by_position[10:]).all()
    assert found.frames_by_position.tolist() == [6.0] * 10 + [0.0] * 50


def test_no_speech_is_refused_and_perfection_is_finite() -> None:
    stats, (_, teacher, speech) = _statistics(), _states()
    with pytest.raises(RequestError, match="no speech"):
        FidelityMeter(stats).result()
    meter = FidelityMeter(stats)
    meter.update(teacher, teacher, speech)
    assert meter.result().metrics["snr_db"] == pytest.approx(200)
    assert decibels(100.0, 1.0) == pytest.approx(20)


def test_encoder_fidelity_of_stock_weights_and_of_a_random_student() -> None:
    teacher, data = make_teacher(), ToyWindows(11)
    twin = make_student(encoder_family="attention", encoder_options={})
    twin.load_stock_encoder(teacher.encoder)
    exact = encoder_fidelity(twin, teacher, data, batch_size=4).metrics
    assert exact["snr_db"] > 100
    assert exact["whitened_cosine"] == pytest.approx(1, abs=1e-5)
    assert exact["kv_snr_db"] > 100
    random = encoder_fidelity(make_student(), teacher, data, batch_size=4).metrics
    assert random["content_snr_db"] < 1
    assert random["windows"] == 11


def test_encoder_fidelity_takes_cached_states_and_given_statistics() -> None:
    teacher, data = make_teacher(), ToyWindows(5)
    items = [data[index] for index in range(5)]
    statistics = measure_statistics(
        teacher, [{k: torch.stack([i[k] for i in items]) for k in ("input_features", "speech_mask")}]
    )
    plain = encoder_fidelity(make_student(), teacher, items, statistics=statistics)
    for item in items:
        item["teacher_states"] = teacher.encode(item["input_features"].unsqueeze(0))[0].half()
    cached = encoder_fidelity(make_student(), teacher, items, statistics=statistics)
    assert cached.metrics == pytest.approx(plain.metrics, abs=0.01)
    for item in items:
        item["teacher_states"] = item["teacher_states"] * 0
    wrong = encoder_fidelity(make_student(), teacher, items, statistics=statistics)
    assert "snr_db" not in wrong.metrics  # no signal, no ratio


def test_encoder_fidelity_refuses_what_does_not_fit() -> None:
    with pytest.raises(RequestError, match="d_model"):
        encoder_fidelity(make_student(d_model=32), make_teacher(), ToyWindows(2))
    with pytest.raises(RequestError, match="empty"):
        encoder_fidelity(make_student(), make_teacher(), ToyWindows(0))


def test_word_errors_of_a_real_decoder(
    stock_whisper: str, multilingual_processor: WhisperProcessor, make_speech: Callable[..., np.ndarray]
) -> None:
    teacher = load_teacher(stock_whisper)
    assert teacher.model is not None
    audio = [make_speech(30, seed) for seed in range(2)]
    extracted = multilingual_processor.feature_extractor(audio, sampling_rate=16_000, return_tensors="pt")
    features = extracted.input_features
    states = teacher.encode(features)
    said = teacher.model.generate(input_features=features, max_new_tokens=16, num_beams=1)
    texts = multilingual_processor.tokenizer.batch_decode(said, skip_special_tokens=True)
    assert sum(len(text.split()) for text in texts) > 4
    labels = torch.where(said == teacher.config.pad_token_id, -100, said)
    meter = WordErrors(multilingual_processor, ("teacher_wer", "wer", "nobody"), 16)
    meter.update("teacher_wer", teacher.model, states, labels)
    meter.update("wer", teacher.model, states.roll(400, dims=1).flip(0), labels)  # another's states
    assert meter.rate("teacher_wer") == 0
    wrong = meter.rate("wer")
    assert wrong is not None
    assert wrong > 0.3
    assert meter.rate("nobody") is None
