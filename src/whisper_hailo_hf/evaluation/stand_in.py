"""Models of Whisper's published shapes with random weights: as fast as the real ones, and at hand without a network.

What a random model says is noise, so that a benchmark must force how much it says. How fast it says it does not depend
on the weights.
"""

import os
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS_MULTI
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.modeling_whisper_hailo import WhisperHailoForConditionalGeneration

# d_model, layers, heads: Radford et al. 2022, arXiv:2212.04356, table 1; "micro" is for tests
SHAPES = {"micro": (64, 2, 2), "tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12)}
_TEXT_TOKENS = 50257
_LANGUAGES = 99
_TASKS = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
_TIMESTAMPS = 1501


def make_stock(shape: str, folder: str | os.PathLike[str], seed: int = 0) -> Path:
    """A stock multilingual Whisper of a published shape with random weights, tokenizer and all, saved into a folder.

    Its vocabulary has the size and the special tokens of the published one; its text tokens are pairs of bytes.

    Raises:
        RequestError: no such shape.
    """
    if shape not in SHAPES:
        raise RequestError(f"unknown shape {shape!r}: choose {', '.join(SHAPES)}")
    d_model, layers, heads = SHAPES[shape]
    processor = WhisperProcessor(WhisperFeatureExtractor(feature_size=80), _tokenizer())
    ids = processor.tokenizer.convert_tokens_to_ids
    end, start = ids("<|endoftext|>"), ids("<|startoftranscript|>")
    special = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
    }
    config = WhisperConfig(
        vocab_size=len(processor.tokenizer),
        d_model=d_model,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * d_model,
        decoder_layers=layers,
        decoder_attention_heads=heads,
        decoder_ffn_dim=4 * d_model,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **special,
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(
        no_timestamps_token_id=ids("<|notimestamps|>"),
        prev_sot_token_id=ids("<|startofprev|>"),
        max_length=config.max_target_positions,
        alignment_heads=[[layers - 1, 0]],
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": ids(f"<|{code}|>") for code in list(LANGUAGES)[:_LANGUAGES]},
        task_to_id={"transcribe": ids("<|transcribe|>"), "translate": ids("<|translate|>")},
        suppress_tokens=sorted({*NON_SPEECH_TOKENS_MULTI, ids("<|translate|>"), ids("<|transcribe|>")}),
        begin_suppress_tokens=[end],
        return_timestamps=False,
        num_beams=1,
        **special,
    )
    return _save(folder, model, processor)


def make_stock_like(model: Any, processor: Any, folder: str | os.PathLike[str]) -> Path:
    """A stock Whisper with another model's decoder: as many encoder layers as there are decoder layers, as in all
    published sizes up to large-v3, with random weights.

    Args:
        model: whose decoder it takes.
        processor: its processor.
        folder: where it is saved.
    """
    known = model.config.to_dict()
    ours = ("model_type", "architectures", "auto_map", "dtype", "transformers_version", "artefacts")
    known = {name: value for name, value in known.items() if name not in ours and not name.startswith("encoder_")}
    config = WhisperConfig(
        **known,
        encoder_layers=model.config.decoder_layers,
        encoder_attention_heads=model.config.decoder_attention_heads,
        encoder_ffn_dim=model.config.decoder_ffn_dim,
    )
    torch.manual_seed(0)
    stock = WhisperForConditionalGeneration(config).eval()
    stock.model.decoder.load_state_dict(model.model.decoder.state_dict())
    stock.tie_weights()
    stock.generation_config = model.generation_config
    return _save(folder, stock, processor)


def make_student(stock: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """A student of a stock Whisper with the preset for its size, untrained, saved with the stock's processor."""
    torch.manual_seed(0)
    model = WhisperHailoForConditionalGeneration.from_whisper(stock, dtype=torch.float32)
    encoder = model.get_encoder()
    # normalisation by what it really sees, or its activations would shrink or grow out of all range
    encoder.core.train()
    with torch.no_grad():
        for _ in range(3):
            encoder.core(encoder.host.windows(random_features(4, model.config.num_mel_bins)))
    encoder.core.eval()
    return _save(folder, model, WhisperProcessor.from_pretrained(stock))


def random_features(windows: int, mel_bins: int = 80) -> torch.Tensor:
    """Noise in the range of log-mel features, (windows, mel_bins, 3000)."""
    random = torch.Generator().manual_seed(1)
    return (torch.randn(windows, mel_bins, 3000, generator=random) * 0.4).clamp(-1.5, 2)


def _save(folder: str | os.PathLike[str], model: Any, processor: Any) -> Path:
    folder = Path(folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer() -> WhisperTokenizer:
    """Bytes, then pairs of bytes, up to the published number of text tokens; then Whisper's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(first, second) for first in alphabet for second in alphabet][: _TEXT_TOKENS - len(alphabet)]
    words = [*alphabet, *(first + second for first, second in pairs)]
    tokenizer = WhisperTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=pairs, pad_token="<|endoftext|>"
    )
    languages = [f"<|{code}|>" for code in list(LANGUAGES)[:_LANGUAGES]]
    special = ["<|startoftranscript|>", *languages, *(f"<|{name}|>" for name in _TASKS)]
    tokenizer.add_special_tokens({"additional_special_tokens": special})  # after <|endoftext|>
    tokenizer.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(_TIMESTAMPS)])
    return tokenizer
