"""Shared parts: a small stock Whisper that answers in words, times and languages, its processor, and audio for it.

The models have random weights, scaled so that what they say depends on what they hear: the words differ from window
to window, segments end at many different times, languages change. The best token leads the second by far more than
float32 rounding, so that two implementations of the same maths must agree to the letter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import SHAPES
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

SAMPLING_RATE = 16_000
# words of several scripts: one, two and three bytes a character
_TEXT = """the quick brown fox jumps over the lazy dog and then it runs back home, because rain is coming. Who knows?
one two three four five six seven eight nine ten; when the night is over, the day begins again: light, wind, water!
der schnelle braune Fuchs springt über den faulen Hund und läuft dann nach Hause, weil es bald regnet. где же ты, мой
друг? вот дом, вот лес, вот река. l'été est déjà là, où êtes-vous? el niño pequeño come pan, y el perro también."""
_SPECIAL = [
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]


def make_tokenizer() -> WhisperTokenizer:
    """A byte-level BPE with Whisper's tail: end, start, all languages, tasks, and 1501 timestamps, in this order."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=sorted(alphabet), show_progress=False)
    trained.train_from_iterator([" " + _TEXT.replace("\n", " ")], trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    tokenizer = WhisperTokenizer(vocab=trained.get_vocab(), merges=merges, pad_token="<|endoftext|>")
    languages = [f"<|{code}|>" for code in LANGUAGES]
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|startoftranscript|>", *languages, *_SPECIAL]}  # after <|endoftext|>
    )
    tokenizer.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(1501)])
    return tokenizer


def make_processor(mel_bins: int = 80) -> WhisperProcessor:
    return WhisperProcessor(WhisperFeatureExtractor(feature_size=mel_bins), make_tokenizer())


def make_stock_whisper(
    processor: WhisperProcessor, seed: int = 0, **config_kwargs: Any
) -> WhisperForConditionalGeneration:
    """A small stock Whisper for this processor, random but talkative; its generation config has all that a published
    multilingual checkpoint's has."""
    tokenizer = processor.tokenizer
    ids = tokenizer.convert_tokens_to_ids
    end, start = ids("<|endoftext|>"), ids("<|startoftranscript|>")
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "num_mel_bins": processor.feature_extractor.feature_size,
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "max_target_positions": 128,
        "decoder_start_token_id": start,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    model = WhisperForConditionalGeneration(WhisperConfig(**settings | config_kwargs)).eval()
    _make_talkative(model, tokenizer, seed)
    specials = [ids(token) for token in ["<|startoftranscript|>", *_SPECIAL[:5]]]
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        no_timestamps_token_id=ids("<|notimestamps|>"),
        prev_sot_token_id=ids("<|startofprev|>"),
        max_initial_timestamp_index=50,
        max_length=model.config.max_target_positions,
        alignment_heads=[[0, 0], [0, 3], [1, 1]],
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": ids(f"<|{code}|>") for code in LANGUAGES},
        task_to_id={"transcribe": ids("<|transcribe|>"), "translate": ids("<|translate|>")},
        suppress_tokens=[ids("!"), *specials],
        begin_suppress_tokens=[ids("Ġ"), end],
        return_timestamps=False,
    )
    return model


@torch.no_grad()
def _make_talkative(model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)

    def fill(weight: torch.Tensor, gain: float) -> None:
        weight.normal_(0.0, gain / weight[0].numel() ** 0.5, generator=random)

    for name, parameter in model.named_parameters():
        if "embed_" in name or "layer_norm" in name:
            continue
        if parameter.dim() == 1:
            parameter.normal_(0.0, 0.1, generator=random)
        elif "encoder.conv" in name:
            fill(parameter, 3.0)  # the sound outweighs the position
        elif "encoder_attn.q_proj" in name or "encoder_attn.k_proj" in name:
            fill(parameter, 3.0)  # looks at few frames
        elif "encoder_attn.out_proj" in name:
            fill(parameter, 5.0)  # what is heard outweighs what was said
        else:
            fill(parameter, 1.4)
    ids = tokenizer.convert_tokens_to_ids
    end, first_timestamp = ids("<|endoftext|>"), ids("<|0.00|>")
    level = torch.ones(len(tokenizer), 1)
    level[end] = 1.4
    level[end + 1 : first_timestamp] = 0.3  # language detection compares these among themselves
    level[first_timestamp:] = 0.6
    for token, index in tokenizer.get_vocab().items():
        if index < end and not tokenizer.convert_tokens_to_string([token]).replace("\ufffd", "\0").isprintable():
            level[index] = 0.3  # control characters, and lone bytes of longer ones
    small = 0.03  # the table is also the output projection: small rows keep the last word from repeating itself
    decoder = model.model.decoder
    decoder.embed_tokens.weight.normal_(0.0, small, generator=random).mul_(level)
    decoder.embed_positions.weight.normal_(0.0, 3 * small, generator=random)
    # What all states have in common would favour one word for ever: the final LayerNorm's bias takes it away.
    audio = [speech_like(30, seed) for seed in range(4)]
    extract = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    features = extract(audio, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
    heard = model.model.encoder(features).last_hidden_state
    said = torch.randint(len(tokenizer), (4, 100), generator=random)
    states = decoder(input_ids=said, encoder_hidden_states=heard).last_hidden_state.flatten(0, 1)
    centre = states.mean(0)
    scale = 3 / small / (states - centre).norm(dim=1).mean()  # logits with a deviation of 3
    decoder.layer_norm.weight.fill_(scale)
    decoder.layer_norm.bias.copy_(-scale * centre)


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """Syllables of a voice with changing pitch and formants, with pauses between words: float32, 16 kHz, mono."""
    rng = np.random.default_rng(seed)
    total = round(seconds * SAMPLING_RATE)
    audio = rng.normal(size=total) * 0.002
    position = round(rng.uniform(0.0, 0.2) * SAMPLING_RATE)
    while position < total:
        length = round(rng.uniform(0.08, 0.35) * SAMPLING_RATE)
        time = np.arange(length) / SAMPLING_RATE
        pitch = rng.uniform(90, 260) * (1 + rng.uniform(-0.2, 0.2) * time / time[-1])
        phase = 2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE
        formants = rng.uniform((250, 800, 2200), (900, 2300, 3400))
        syllable = np.zeros(length)
        for harmonic in range(1, 30):
            level = sum(np.exp(-(((harmonic * pitch.mean() - formant) / 150) ** 2)) for formant in formants)
            syllable += (level + 0.02) * np.sin(harmonic * phase)
        syllable *= np.hanning(length) * rng.uniform(0.05, 0.4)
        end = min(position + length, total)
        audio[position:end] += syllable[: end - position]
        position = end + round(rng.choice([0.02, 0.1, 0.8], p=[0.6, 0.3, 0.1]) * SAMPLING_RATE)
    return np.clip(audio, -1, 1).astype(np.float32)


@pytest.fixture(scope="session")
def multilingual_tokenizer() -> WhisperTokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def multilingual_processor() -> WhisperProcessor:
    """80 mel bins, 30 s."""
    return make_processor()


@pytest.fixture(scope="session")
def stock_whisper(tmp_path_factory: pytest.TempPathFactory, multilingual_processor: WhisperProcessor) -> str:
    """Folder of a small multilingual stock Whisper, with processor files and generation config: d_model 64, two layers
    a side, 30 s. Read only."""
    return save_stock_whisper(tmp_path_factory.mktemp("stock") / "whisper", multilingual_processor)


@pytest.fixture(scope="session")
def stock_whisper_128(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same kind with 128 mel bins."""
    return save_stock_whisper(tmp_path_factory.mktemp("stock") / "whisper-128", make_processor(128))


def save_stock_whisper(folder: Path, processor: WhisperProcessor, **kwargs: Any) -> str:
    make_stock_whisper(processor, **kwargs).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tiny_config_kwargs() -> dict[str, Any]:
    """Settings of the smallest useful `WhisperConfig` or `WhisperHailoConfig`: d_model 16, 30 source positions."""
    return dict(SHAPES)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process: (exit status, stdout, stderr)."""
    from whisper_hailo_hf.cli.main import main

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def make_speech() -> Callable[..., np.ndarray]:
    """`make_speech(seconds, seed=0)`: float32 samples at 16 kHz, like a voice."""
    return speech_like
