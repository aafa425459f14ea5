# /// script
# dependencies = [
#     "whisper-hailo-hf",
#     "torch",
#     "transformers>=5.16,<6",
#     "numpy",
#     "scipy",
#     "soundfile",
#     "soxr",
#     "python-stretch",
# ]
# ///
"""Train the bundled demo model: a small stock Whisper for spoken English digits, on a CPU in about an hour.

Download the Free Spoken Digit Dataset (https://github.com/Jakobovski/free-spoken-digit-dataset) first; any folder of
recordings named `{digit}_{speaker}_{n}.flac` or `.wav` will do.

Usage, recordings alone:

    python examples/digits/train_digits.py --speech recordings --held-out theo yweweler --output-dir digits

With synthetic voices, and a table (columns id, path, text) of further recordings whose text is digits; `--resume` goes
on from the last checkpoint:

    python examples/digits/train_digits.py --speech recordings --held-out theo yweweler --output-dir digits \
        --espeak --extra-tsv more/train.tsv --minutes 60 --resume
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from augmentation import Augmenter
from digit_alignment import cut_clips
from digit_clips import Clip, digit_files, espeak_clips, load_digits, stretched
from digit_tokenizer import build_processor, generation_config
from digit_windows import IGNORE, WORDS, Batches, Ids, Utterance, WindowMaker, collate, load_utterances
from transformers import PreTrainedModel, WhisperConfig, WhisperForConditionalGeneration

ALIGNMENT_HEADS = 1  # heads of the last decoder layer that learn where each token lies
SOFT_TIME = ((-2, 0.05), (-1, 0.2), (0, 0.5), (1, 0.2), (2, 0.05))  # timestamps 20 ms off are nearly right


def new_model(vocab_size: int, time0: int, sizes: argparse.Namespace) -> WhisperForConditionalGeneration:
    """A small Whisper whose timestamp embeddings start as the encoder's own sinusoids, one position each 20 ms."""
    config = WhisperConfig(
        vocab_size=vocab_size, d_model=sizes.d_model, encoder_layers=sizes.encoder_layers,
        decoder_layers=sizes.decoder_layers, encoder_attention_heads=sizes.heads, decoder_attention_heads=sizes.heads,
        encoder_ffn_dim=4 * sizes.d_model, decoder_ffn_dim=4 * sizes.d_model, dropout=0.05,
        init_std=0.07,
        pad_token_id=time0 - 9, bos_token_id=time0 - 9, eos_token_id=time0 - 9, decoder_start_token_id=time0 - 8,
        begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    half = sizes.d_model // 2
    rates = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half))
    with torch.no_grad():
        angles = torch.arange(1501)[:, None] * rates
        model.model.decoder.embed_tokens.weight[time0:] = 0.15 * torch.cat([angles.sin(), angles.cos()], 1)
        for conv in (model.model.encoder.conv1, model.model.encoder.conv2):
            torch.nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        for i, layer in enumerate(model.model.encoder.layers):
            shifts = (-6, -2, 2, 6) if i < 2 else (-16, 16)
            for head, shift in enumerate(shifts[: sizes.heads]):
                look_at_neighbour(layer.self_attn, head, shift, rates)
    return model


def look_at_neighbour(attention: torch.nn.Module, head: int, shift: int, rates: torch.Tensor) -> None:
    """Starts one head of the encoder as a soft look at the frame `shift` places on, through the sinusoids' rotation.

    sin and cos of w (i + s) are a rotation of those of w i, so a query rotated by s matches the key at i + s.
    """
    half, pairs = len(rates), attention.head_dim // 2
    query, key = (torch.zeros(2 * pairs, 2 * half) for _ in range(2))
    for row, k in enumerate(range(3, 3 + pairs)):
        cosine, sine = math.cos(float(rates[k]) * shift), math.sin(float(rates[k]) * shift)
        query[row, k], query[row, half + k] = cosine, sine
        query[pairs + row, k], query[pairs + row, half + k] = -sine, cosine
        key[row, k] = key[pairs + row, half + k] = 1.0
    rows = slice(head * 2 * pairs, (head + 1) * 2 * pairs)
    for projection, matrix in ((attention.q_proj, query), (attention.k_proj, key)):
        projection.weight[rows] = projection.weight[rows] * 0.3 + 1.1 * matrix


class Trainee(torch.nn.Module):
    """Forward pass and losses.

    The tokens' cross-entropy; the alignment heads' attention to each token's frames; and, while training only, the
    word spoken at each frame, told from the encoder's states by one linear map.
    Windows shorter than 30 s use the slice of the encoder's position table where they lie.
    """

    def __init__(self, model: WhisperForConditionalGeneration, time0: int) -> None:
        super().__init__()
        self.model, self.time0 = model, time0
        self.frame_head = torch.nn.Linear(model.config.d_model, 1 + len(WORDS))
        self._query: tuple[torch.Tensor, torch.Tensor] | None = None
        cross = model.model.decoder.layers[-1].encoder_attn
        cross.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        states = kwargs.get("key_value_states", args[1] if len(args) > 1 else None)
        self._query = (hidden, states)

    def encode(self, features: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        encoder = self.model.model.encoder
        hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(features)))).transpose(1, 2)
        places = offsets[:, None] + torch.arange(hidden.shape[1])
        hidden = hidden + encoder.embed_positions.weight[places]
        hidden = F.dropout(hidden, self.model.config.dropout, self.training)
        for layer in encoder.layers:
            hidden = layer(hidden, None)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return encoder.layer_norm(hidden)

    def alignment(self) -> torch.Tensor:
        """Log attention of the alignment heads, (B, heads, tokens, frames)."""
        cross = self.model.model.decoder.layers[-1].encoder_attn
        hidden, states = self._query
        width = cross.head_dim * ALIGNMENT_HEADS
        query = F.linear(hidden, cross.q_proj.weight[:width], cross.q_proj.bias[:width]) * cross.scaling
        key = F.linear(states, cross.k_proj.weight[:width])
        query, key = (x.unflatten(-1, (ALIGNMENT_HEADS, -1)).transpose(1, 2) for x in (query, key))
        return (query @ key.transpose(-1, -2)).float().log_softmax(-1)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        states = self.encode(batch["features"], batch["offsets"])
        hidden = self.model.model.decoder(
            input_ids=batch["tokens"], encoder_hidden_states=states, use_cache=False
        ).last_hidden_state
        attention = self.alignment()
        logits = self.model.proj_out(hidden).float()

        labels = batch["labels"]
        kept = labels != IGNORE
        log_probs, wanted = logits[kept].log_softmax(-1), labels[kept]
        is_time = wanted >= self.time0
        loss = -log_probs.gather(1, wanted[:, None])[:, 0]
        soft = torch.zeros_like(loss)
        for step, weight in SOFT_TIME:
            near = (wanted + step).clamp(self.time0, log_probs.shape[1] - 1)
            soft = soft - weight * log_probs.gather(1, near[:, None])[:, 0]
        token_loss = torch.where(is_time, 0.5 * soft, loss).sum() / kept.sum()

        spans = batch["spans"]
        held = spans[..., 0] >= 0
        frame = torch.arange(attention.shape[-1])
        inside = (frame >= spans[..., :1]) & (frame < spans[..., 1:])
        share = inside / inside.sum(-1, keepdim=True).clamp(min=1)
        # every frame of its stretch counts alike: the alignment needs the whole word, not its loudest frame
        guide = -(attention * share[:, None]).sum(-1).mean(1)
        floor = inside.sum(-1).clamp(min=1).log()
        guide_loss = ((guide - floor) * held).sum() / held.sum().clamp(min=1)

        frame_loss = F.cross_entropy(
            self.frame_head(states).float().flatten(0, 1), batch["speech"].flatten(), ignore_index=IGNORE
        )

        with torch.no_grad():
            guess = log_probs.argmax(-1)
            is_word = (wanted < self.time0 - 9) | (wanted == self.time0 - 9)
            time_guess = log_probs[:, self.time0 :].argmax(-1) + self.time0
            late = (time_guess - wanted)[is_time].abs().float()
        return {
            "loss": token_loss + 0.4 * guide_loss + 0.5 * frame_loss,
            "token": token_loss.detach(),
            "frame": frame_loss.detach(),
            "guide": guide_loss.detach(),
            "word_accuracy": (guess == wanted)[is_word].float().mean(),
            "time_within_0.1": (late <= 5).float().mean() if is_time.any() else torch.tensor(1.0),
        }


def cut_utterances(trainee: Trainee, utterances: list[Utterance]) -> dict[str, list[Clip]]:
    """Words of recordings without times, aligned by the frame map, as clips by speaker, at several pitches too."""
    augmenter, found = Augmenter([], 0, noises=False), []
    trainee.eval()
    for utterance in utterances:
        samples = np.pad(utterance.samples, (0, -len(utterance.samples) % 320))
        with torch.no_grad():
            states = trainee.encode(augmenter.features(samples)[None], torch.zeros(1, dtype=torch.long))
            scores = trainee.frame_head(states)[0].log_softmax(-1).numpy()
        kinds = [1 + WORDS.index(word) for word in utterance.words]
        found += cut_clips(samples, utterance.words, scores, kinds, utterance.speaker)
    trainee.train()
    return make_voices(found, (-3.0, 3.0), 1)


def make_optimizers(trainee: Trainee, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, which learns in fewer steps, and AdamW for all else."""
    inner = [p for n, p in trainee.named_parameters() if p.requires_grad and p.ndim == 2 and ".layers." in n]
    chosen = {id(p) for p in inner}
    rest = [p for p in trainee.parameters() if p.requires_grad and id(p) not in chosen]
    return [
        torch.optim.Muon(inner, lr=2.5 * lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def make_voices(clips: list[Clip], shifts: tuple[float, ...], seed: int) -> dict[str, list[Clip]]:
    """Clips by speaker, and again at other pitches, each clip at a tempo of its own."""
    rng = np.random.default_rng(seed)
    voices: dict[str, list[Clip]] = {}
    for clip in clips:
        voices.setdefault(clip.speaker, []).append(clip)
        for shift in shifts:
            changed = stretched(clip, float(np.exp(rng.uniform(-0.3, 0.35))), shift + float(rng.uniform(-0.5, 0.5)))
            if 0.08 < changed.end - changed.start < 1.6:
                voices.setdefault(f"{clip.speaker} {shift:+g}", []).append(changed)
    return voices


def save_stock(model: WhisperForConditionalGeneration, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes the model in float16 with its processor and generation settings, as any Whisper on the Hub."""
    processor = build_processor()
    copy = WhisperForConditionalGeneration(model.config)
    copy.load_state_dict(state)
    last = model.config.decoder_layers - 1
    copy.generation_config = generation_config(processor.tokenizer, [[last, h] for h in range(ALIGNMENT_HEADS)])
    save_small(copy, folder)
    processor.save_pretrained(folder)


def save_small(model: PreTrainedModel, folder: str | Path) -> None:
    """Writes the weights as float16, half the size, under a config that says float32, so that they load as float32."""
    model.half().save_pretrained(folder)
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_as_hailo(stock_dir: str | Path, out_dir: str | Path) -> None:
    """Converts a stock folder to this package's model class, attention family, processor included."""
    from transformers import WhisperProcessor

    from whisper_hailo_hf import WhisperHailoForConditionalGeneration

    model = WhisperHailoForConditionalGeneration.from_whisper(str(stock_dir), family="attention")
    save_small(model, out_dir)
    WhisperProcessor.from_pretrained(stock_dir).save_pretrained(out_dir)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small Whisper on spoken digits.")
    parser.add_argument("--speech", type=Path, required=True, help="folder of {digit}_{speaker}_{n}.flac or .wav")
    parser.add_argument("--held-out", nargs="*", default=[], help="speakers never used here")
    parser.add_argument("--validation-below", type=int, default=5, help="recordings n < this are for validation only")
    parser.add_argument("--espeak", action="store_true", help="add synthetic voices of espeak-ng")
    parser.add_argument("--extra-tsv", type=Path, help="table of recordings; those whose text is digits are added")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0, help="training time; the schedule follows the clock")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--begin", type=float, default=0.0, help="where in the schedule to begin, 0 to 1")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--encoder-layers", type=int, default=4)
    parser.add_argument("--decoder-layers", type=int, default=3)
    parser.add_argument("--checkpoint-minutes", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hailo-dir", type=Path, help="also write the model in this package's own class there")
    return parser.parse_args()


def learning_rate(progress: float, step: int, peak: float) -> float:
    """Warm-up over 150 steps, then down along a cosine to a fiftieth."""
    return peak * min(1.0, (step + 1) / 150) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = build_processor().tokenizer
    ids = Ids(tokenizer)

    began = time.monotonic()
    files = [f for f in digit_files(options.speech) if f[2] not in options.held_out]
    clips = load_digits(f for f in files if f[3] >= options.validation_below)
    voices, shares = [make_voices(clips, (-4.0, -2.0, 2.0, 4.0), options.seed)], [0.65]
    if options.espeak:
        synthetic: dict[str, list[Clip]] = {}
        for clip in espeak_clips(seed=options.seed):
            synthetic.setdefault(clip.speaker, []).append(clip)
        voices, shares = [*voices, synthetic], [*shares, 0.35]
    utterances: list[Utterance] = load_utterances(options.extra_tsv) if options.extra_tsv else []
    model = new_model(len(tokenizer), ids.time0, options)
    trainee = Trainee(model, ids.time0)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    optimizers = make_optimizers(trainee, options.lr)
    checkpoint, step, spent = options.output_dir / "checkpoint.pt", 0, 0.0
    if options.resume and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        trainee.load_state_dict(saved["trainee"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        average, step, spent = saved["average"], saved["step"], 0.0 if options.begin else saved["spent"]
        if utterances:  # a model that knows the digits already can say where they are in recordings without times
            cut = cut_utterances(trainee, utterances)
            print(f"{sum(map(len, cut.values()))} words of {len(cut)} speakers cut from the utterances", flush=True)
            voices, shares = [*voices, cut], [*shares, 0.35]
    maker = WindowMaker(ids, voices, shares, utterances, Augmenter(clips, options.seed))
    held = load_digits(f for f in files if f[3] < options.validation_below)
    checks = [WindowMaker(ids, [make_voices(held, (), 0)], [1.0], [], maker.augmenter)] if held else []
    print(f"{len(clips)} clips of {len({c.speaker for c in clips})} speakers, {sum(map(len, voices[0].values()))} "
          f"with other pitches, {sum(len(v) for g in voices[1:] for v in g.values())} synthetic, {len(utterances)} "
          f"utterances, {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip

    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, from step {step}", flush=True)

    total = options.minutes * 60
    progress = torch.tensor([options.begin], dtype=torch.float64).share_memory_()
    stream = iter(torch.utils.data.DataLoader(
        Batches(maker, progress, options.seed + step), batch_size=None, num_workers=1, prefetch_factor=4
    ))  # fmt: skip
    fixed = []
    rng = np.random.default_rng(1)
    for check in checks:
        for seconds in (6.0, 6.0, 12.0):
            fixed.append(collate(ids, [check.window(rng, seconds, 0.0) for _ in range(24)], [0] * 24))

    def save(at: float) -> None:
        state = {"trainee": trainee.state_dict(), "average": average}
        state["optimizers"] = [o.state_dict() for o in optimizers]
        torch.save(state | {"step": step, "spent": at}, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").rename(checkpoint)
        save_stock(model, average, options.output_dir / "stock")

    began, last_save, history, waited = time.monotonic(), time.monotonic(), [], 0.0
    trainee.train()
    while True:
        at = spent + time.monotonic() - began
        done = options.begin + (1 - options.begin) * at / total
        if done >= 1.0:
            break
        progress[0] = done
        before = time.monotonic()
        batch = next(stream)
        waited += time.monotonic() - before
        for optimizer, factor in zip(optimizers, (2.5, 1.0), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = factor * learning_rate(done, step, options.lr)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = trainee(batch)
        trainee.zero_grad(set_to_none=True)
        out["loss"].backward()
        torch.nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        decay = min(0.998, (step + 1) / (step + 20))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - decay)
        history.append({k: v.item() for k, v in out.items()})
        if step % 25 == 0:
            mean = {k: round(float(np.mean([h[k] for h in history])), 4) for k in history[0]}
            passed = time.monotonic() - began
            print(json.dumps({"step": step, "at": round(done, 4), **mean, "shape": list(batch["features"].shape),
                              "minutes": round(passed / 60, 1), "waited": round(waited, 1)}), flush=True)  # fmt: skip
            history = []
        if time.monotonic() - last_save > options.checkpoint_minutes * 60:
            trainee.eval()
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                results = [trainee(b) for b in fixed]
            trainee.train()
            mean = {k: round(float(np.mean([float(r[k]) for r in results])), 4) for k in (results or [{}])[0]}
            print(json.dumps({"step": step, "validation": mean}), flush=True)
            save(at)
            last_save = time.monotonic()
    save(total)
    print(f"done: {step} steps; stock model in {options.output_dir / 'stock'}")
    if options.hailo_dir:
        save_as_hailo(options.output_dir / "stock", options.hailo_dir)


if __name__ == "__main__":
    main()
