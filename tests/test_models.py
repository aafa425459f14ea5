"""The student of Whisper tiny.en that lies in models/: that it loads beside a Whisper, and imitates its teacher."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from whisper_hailo_hf import WhisperHailoForConditionalGeneration
from whisper_hailo_hf.audio import read_audio

ROOT = Path(__file__).parents[1]
STUDENT = ROOT / "models" / "whisper-tiny.en-hailo"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WhisperHailoForConditionalGeneration:
    """The student with a decoder of the teacher's width, a small one of random weights."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60,
        d_model=384,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        pad_token_id=50,
        bos_token_id=50,
        eos_token_id=50,
        decoder_start_token_id=51,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    stock = tmp_path_factory.mktemp("models") / "stock"
    WhisperForConditionalGeneration(config).save_pretrained(stock)
    return WhisperHailoForConditionalGeneration.from_whisper(stock, student=STUDENT)


def test_it_imitates_its_teacher(model: WhisperHailoForConditionalGeneration) -> None:
    """tiny_en_states.npz: states of openai/whisper-tiny.en for the same audio, every tenth frame of the speech."""
    kept = np.load(ROOT / "tests" / "data" / "tiny_en_states.npz")
    frames, theirs = torch.from_numpy(kept["frames"].astype(int)), torch.from_numpy(kept["states"]).float()
    audio = read_audio(ROOT / "examples" / "digits_theo.flac")
    features = WhisperFeatureExtractor()(audio, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        states = model.get_encoder()(features)[0][0]

    def snr_db(ours: torch.Tensor) -> float:
        return float(10 * torch.log10(theirs.square().sum() / (ours - theirs).square().sum()))

    assert snr_db(states[frames]) > 4.5
    # a second later, or the plain mean, would not do
    assert snr_db(states[frames + 50]) < 2.5
    assert snr_db(theirs.mean(0).expand_as(theirs)) < 2.5


def test_what_travels() -> None:
    assert sum(file.stat().st_size for file in STUDENT.rglob("*") if file.is_file()) <= 25_000_000
    config = json.loads((STUDENT / "config.json").read_text())
    assert config["distilled_from"]["name"] == "openai/whisper-tiny.en"
    assert (config["encoder_family"], config["encoder_preset"], config["dtype"]) == ("conv", "tiny", "float16")
    card = ModelCard.load(STUDENT / "README.md")
    assert card.data.license == "mit"
    assert card.data.base_model == ["openai/whisper-tiny.en"] or card.data.base_model == "openai/whisper-tiny.en"


def test_every_weight_is_a_number(model: WhisperHailoForConditionalGeneration) -> None:
    assert all(torch.isfinite(tensor).all() for tensor in model.get_encoder().state_dict().values())
