"""A small Whisper tokenizer for the ten digit words, and the processor and generation settings that go with it.

The layout is that of multilingual Whisper (text, `<|endoftext|>`, `<|startoftranscript|>`, languages, tasks, prompts,
`<|nospeech|>`, `<|notimestamps|>`, 1501 timestamps) with one language: byte-level BPE over all 256 bytes, so that any
text can be encoded, whose merges make each digit word, with and without a leading space, a single token.
"""

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip
TIMESTAMPS = tuple(f"<|{i * 0.02:.2f}|>" for i in range(1501))

# Stock word timestamps let the first row of the alignment begin at 0 s, so the first token after the opening timestamp
# always starts there. This otherwise unused special token stands at that place and takes the leading silence; decoding
# drops it as it drops every special token, and the first word keeps its own start.
LEAD_IN = "<|startoflm|>"


def build_tokenizer() -> WhisperTokenizer:
    """The tokenizer, built from nothing but the ten words."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for prefix in ("Ġ", ""):  # merges with the space first: they win wherever a space stands before the word
        for word in WORDS:
            symbols = [*prefix, *word]
            left = symbols[0]
            for symbol in symbols[1:]:
                if (left, symbol) not in merges:
                    merges.append((left, symbol))
                    vocab[left + symbol] = len(vocab)
                left += symbol
    tokenizer = WhisperTokenizer(vocab=vocab, merges=merges, pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"extra_special_tokens": list(SPECIAL_TOKENS[1:])})
    tokenizer.add_tokens([AddedToken(t, lstrip=False, rstrip=False, normalized=False) for t in TIMESTAMPS])
    tokenizer.set_prefix_tokens(language="english", task="transcribe", predict_timestamps=True)
    return tokenizer


def build_processor() -> WhisperProcessor:
    """The tokenizer with the stock feature extractor: 16 kHz, 30 s, 80 mel bins."""
    return WhisperProcessor(WhisperFeatureExtractor(feature_size=80, return_attention_mask=True), build_tokenizer())


def generation_config(tokenizer: WhisperTokenizer, alignment_heads: list[list[int]]) -> GenerationConfig:
    """What `generate()` needs of a multilingual Whisper, for this vocabulary.

    Neither an initial timestamp limit nor a suppressed `<|endoftext|>` at the beginning: digits may begin after any
    silence, and silence has an empty text. No `prev_sot_token_id`, though prompts were trained: the digits before say
    nothing of the next one, and as the prompt of live captions they cost words (6.8 % of errors against 4.6 %, with
    passes 5 s apart).
    """
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    never = ("<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startofprev|>", "<|nospeech|>")
    return GenerationConfig(
        alignment_heads=alignment_heads,
        begin_suppress_tokens=[tokenizer.convert_tokens_to_ids("Ġ")],
        bos_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
        eos_token_id=ids["<|endoftext|>"],
        is_multilingual=True,
        lang_to_id={"<|en|>": ids["<|en|>"]},
        language="en",
        max_length=448,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        num_beams=1,
        pad_token_id=ids["<|endoftext|>"],
        return_timestamps=True,
        suppress_tokens=[ids[token] for token in never],
        task="transcribe",
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
    )
