# /// script
# dependencies = ["whisper-hailo-hf[train,eval]", "jiwer", "tokenizers", "rich"]
# ///
r"""A reading instrument: how much of the spoken words is still there in a student's encoder states?

For checkpoints whose decoder has lost its token embedding (an encoder, and decoder layers that nobody can get text out
of). `train` learns the missing rows anew, for a small vocabulary of its own, on the *teacher's* states of transcribed
speech; the decoder layers stay as they are or are tuned along. `score` then reads the same utterances from teacher
states and from student states with that decoder, which never saw the student, and sets the word error rates against
each other, with an interval of the difference from a paired bootstrap over the utterances.

    python benchmarks/text_instrument.py train  --teacher whisper-tiny.en --tsv speech/train.tsv --out build/instrument
    python benchmarks/text_instrument.py score  --teacher whisper-tiny.en --tsv speech/dev.tsv --out build/instrument \
        --student models/whisper-tiny.en-hailo --json score.json

It is no recogniser: a few hours of speech do not give Whisper's own word error rates. It is as blind to what the
student was taught as the real decoder is, and the real one's keys and values are what it reads through.

States are cut to the speech and a second more, rounded up to half a second, for teacher and student alike, in training
and in scoring. What a student does to the silent rest of the window is not seen (`--whole` scores without the cut).
"""

import argparse
import hashlib
import json
import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from spoken_states import POSITIONS_A_SECOND, Spoken, States, held_out, read_table, words_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from whisper_hailo_hf.artefacts import fingerprint
from whisper_hailo_hf.distillation.dataset import LogMel
from whisper_hailo_hf.distillation.run import open_student
from whisper_hailo_hf.distillation.student import encoder_of
from whisper_hailo_hf.distillation.teacher import DECODER_ONLY, Teacher, check_student, load_teacher

PAD, END, *PROMPT = SPECIAL = ["<pad>", "</s>", "<s>", "<plain>"]  # as many before the text as Whisper has
TUNED = {
    "rows": r"embed_tokens\.",
    "layers": r"embed_tokens\.|layers\.(?!\d+\.encoder_attn\.[kv]_proj)|^layer_norm\.",  # all but keys and values
}


class Instrument:
    """A decoder with a small vocabulary.

    Args:
        teacher: folder of the checkpoint without token embedding.
        tokenizer: the vocabulary.
    """

    def __init__(self, teacher: Path, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        pad, end, *self.prompt = (tokenizer.token_to_id(name) for name in SPECIAL)
        self.pad, self.end = pad, end
        known = {"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": pad, "dropout": 0.1}
        self.decoder = WhisperDecoder(WhisperConfig.from_pretrained(teacher, **known)).float()
        weights = load_file(teacher / DECODER_ONLY)
        state = {name.removeprefix("model.decoder."): tensor.float() for name, tensor in weights.items()}
        missing, unknown = self.decoder.load_state_dict(state, strict=False)
        if missing != ["embed_tokens.weight"] or unknown:
            raise SystemExit(f"{teacher}: its decoder lacks {missing} and has {unknown}")

    def logits(self, ids: Tensor, states: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """(batch, tokens, vocabulary), and the cache of the tokens so far."""
        output = self.decoder(
            input_ids=ids, encoder_hidden_states=states, past_key_values=cache, use_cache=not self.decoder.training
        )
        return F.linear(output.last_hidden_state, self.decoder.embed_tokens.weight), output.past_key_values

    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Decoder inputs and labels of a batch of texts, (batch, tokens) each; -100 where nothing is to be learned."""
        found = [self.tokenizer.encode(text).ids for text in texts]
        longest = max(map(len, found))
        inputs = [[*self.prompt, *ids] + [self.pad] * (longest - len(ids)) for ids in found]
        skipped = [-100] * (len(self.prompt) - 1)
        labels = [[*skipped, *ids, self.end] + [-100] * (longest - len(ids)) for ids in found]
        return torch.tensor(inputs), torch.tensor(labels)

    @torch.no_grad()
    def read(self, states: Tensor) -> list[str]:
        """Greedy transcripts of states (batch, positions, d_model)."""
        ids, cache = torch.tensor([self.prompt] * len(states)), None
        said = ids[:, :0]
        for _ in range(4 * states.shape[1] // POSITIONS_A_SECOND + 20):  # 4 words a second, each of several pieces
            logits, cache = self.logits(ids, states, cache)
            logits[..., [self.pad, *self.prompt]] = -torch.inf
            ids = logits[:, -1:].argmax(-1)
            said = torch.cat([said, ids], 1)
            if bool((said == self.end).any(1).all()):
                break
        found = [row[: row.index(self.end)] if self.end in row else row for row in said.tolist()]
        return [words_of(self.tokenizer.decode(row)) for row in found]

    @torch.no_grad()
    def surprise(self, states: Tensor, texts: list[str]) -> list[tuple[float, int]]:
        """For each text, minus its log-likelihood (nats) and how many pieces it has."""
        inputs, labels = self.encode(texts)
        losses = F.cross_entropy(self.logits(inputs, states)[0].transpose(1, 2), labels, reduction="none")
        return list(zip(losses.sum(1).tolist(), (labels >= 0).sum(1).tolist(), strict=True))


def train_tokenizer(texts: list[str], pieces: int) -> Tokenizer:
    """Byte-pair encoding of the words, with as many pieces in all."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=pieces, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def batches(chosen: list[int], utterances: list[Spoken], size: int, rng: random.Random | None) -> list[list[int]]:
    """Indices in batches of equally many positions, so that nothing has to be padded or masked."""
    by_length: dict[int, list[int]] = {}
    for index in rng.sample(chosen, len(chosen)) if rng else chosen:
        by_length.setdefault(utterances[index].positions, []).append(index)
    made = [some[i : i + size] for some in by_length.values() for i in range(0, len(some), size)]
    return rng.sample(made, len(made)) if rng else made


def stack(states: States, indices: list[int]) -> Tensor:
    return torch.from_numpy(np.stack([states[i] for i in indices]).astype(np.float32))


def evaluate(instrument: Instrument, states: States, chosen: list[int]) -> dict[str, np.ndarray | list[str]]:
    """For each chosen utterance: what is read, its word errors, words, surprise and pieces."""
    utterances, read, told = states.utterances, {}, {}
    instrument.decoder.eval()
    for some in batches(chosen, utterances, 16, None):
        inputs = stack(states, some)
        read |= dict(zip(some, instrument.read(inputs), strict=True))
        told |= dict(zip(some, instrument.surprise(inputs, [utterances[i].text for i in some]), strict=True))
    texts, wanted = [read[i] for i in chosen], [utterances[i].text for i in chosen]
    return {
        "texts": texts,
        "errors": word_errors(wanted, texts),
        "words": np.array([len(text.split()) for text in wanted]),
        "nats": np.array([told[i][0] for i in chosen]),
        "pieces": np.array([told[i][1] for i in chosen]),
    }


def word_errors(wanted: list[str], read: list[str]) -> np.ndarray:
    found = (jiwer.process_words(w, r) for w, r in zip(wanted, read, strict=True))
    return np.array([f.substitutions + f.deletions + f.insertions for f in found])


def train(arguments: argparse.Namespace) -> None:
    out, teacher = arguments.out, load_teacher(arguments.teacher)
    utterances = read_table(arguments.tsv, teacher.positions)
    # in an order that has nothing to do with the table's, so that the first so many are a fair sample
    utterances.sort(key=lambda u: hashlib.sha256(u.id.encode()).digest())
    states = States(out / "train-teacher", utterances, teacher.d_model)
    if arguments.utterances is None:
        states.make(lambda features: rounded(teacher, features), LogMel(teacher.n_mels, teacher.positions))
    kept = arguments.utterances or len(utterances)
    apart = held_out(utterances, arguments.held_out)
    learned = [i for i, u in enumerate(utterances[:kept]) if u.id not in apart]
    checked = [i for i, u in enumerate(utterances[:kept]) if u.id in apart]
    torch.manual_seed(0)
    rng = random.Random(0)
    instrument = Instrument(
        arguments.teacher, train_tokenizer([utterances[i].text for i in learned], arguments.pieces)
    )
    decoder = instrument.decoder
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(re.search(TUNED[arguments.tune], name) is not None)
    rows = decoder.embed_tokens.weight
    layers = [p for p in decoder.parameters() if p.requires_grad and p is not rows]
    groups = [{"params": [rows], "lr": arguments.rows_rate}, {"params": layers, "lr": arguments.rate}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98), weight_decay=0.01)
    steps = arguments.epochs * len(batches(learned, utterances, arguments.batch_size, random.Random(0)))
    warm = min(200, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / (steps - warm)))
    )
    best, started = math.inf, time.process_time()
    for epoch in range(arguments.epochs):
        decoder.train()
        losses = []
        instrument.tokenizer.model.dropout = arguments.spelling
        for some in batches(learned, utterances, arguments.batch_size, rng):
            if schedule.last_epoch >= steps:
                break
            inputs, labels = instrument.encode([utterances[i].text for i in some])
            with torch.autocast("cpu", torch.bfloat16):
                logits = instrument.logits(inputs, stack(states, some))[0]
            loss = F.cross_entropy(logits.float().transpose(1, 2), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        instrument.tokenizer.model.dropout = None
        found = evaluate(instrument, states, checked)
        rate, nats = (float(found[a].sum() / found[b].sum()) for a, b in (("errors", "words"), ("nats", "words")))
        seconds = time.process_time() - started
        print(
            f"epoch {epoch + 1}: loss {np.mean(losses):.3f}, held out WER {rate:.3f}, {nats:.2f} nats a word, "
            f"{seconds:.0f} s of processor time",
            flush=True,
        )
        if rate < best:
            best = rate
            facts = {"teacher": teacher.fingerprint, "tune": arguments.tune, "utterances": len(learned)}
            facts |= {"epochs": epoch + 1, "held_out_wer": rate, "held_out_utterances": len(checked)}
            save(instrument, out, facts | {"processor_seconds": seconds})


def save(instrument: Instrument, out: Path, facts: dict[str, Any]) -> None:
    tuned = {name: p.detach().half() for name, p in instrument.decoder.named_parameters() if p.requires_grad}
    save_file(tuned, out / "instrument.safetensors")
    instrument.tokenizer.save(str(out / "tokenizer.json"))
    (out / "instrument.json").write_text(json.dumps(facts, indent=2))


def load(out: Path, teacher_folder: Path, teacher: Teacher) -> tuple[Instrument, dict[str, Any]]:
    try:
        facts = json.loads((out / "instrument.json").read_text())
        instrument = Instrument(teacher_folder, Tokenizer.from_file(str(out / "tokenizer.json")))
        tuned = {name: tensor.float() for name, tensor in load_file(out / "instrument.safetensors").items()}
    except FileNotFoundError as error:
        raise SystemExit(f"{out} holds no instrument ({error}): run train first") from error
    if facts["teacher"] != teacher.fingerprint:
        raise SystemExit(f"{out} was trained on another teacher's states: train one on this teacher's")
    instrument.decoder.load_state_dict(tuned, strict=False)
    return instrument, facts


def rounded(teacher: Teacher, features: Tensor) -> Tensor:
    """Teacher states computed in bfloat16, twice as fast: what training looks at is rounded to 16 bits anyway."""
    with torch.autocast("cpu", torch.bfloat16):
        return teacher.encode(features)


def interval(values: Callable[[np.ndarray], np.ndarray], groups: np.ndarray, draws: int = 10_000) -> list[float]:
    """95 % bootstrap interval of a statistic that is told how often each utterance is drawn: (draws, utterances)."""
    names, member = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    return [float(x) for x in np.percentile(values(counts[:, member]), [2.5, 97.5])]


def score(arguments: argparse.Namespace) -> None:
    teacher = load_teacher(arguments.teacher)
    instrument, facts = load(arguments.out, arguments.teacher, teacher)
    student = encoder_of(open_student(arguments.student)).eval().float()
    check_student(teacher, student)
    utterances = read_table(arguments.tsv, teacher.positions)
    if arguments.whole:
        utterances = [replace(u, positions=teacher.positions) for u in utterances]
    log_mel, chosen = LogMel(teacher.n_mels, teacher.positions), list(range(len(utterances)))
    found, kind = {}, "whole" if arguments.whole else "cut"
    read: list[tuple[str, Callable[[Tensor], Tensor], str]] = [
        ("teacher", teacher.encode, teacher.fingerprint),
        ("student", lambda features: student(features).last_hidden_state, fingerprint(student)),
    ]
    if arguments.than:
        other = encoder_of(open_student(arguments.than)).eval().float()
        check_student(teacher, other)
        read.append(("other", lambda features: other(features).last_hidden_state, fingerprint(other)))
    for name, encode, key in read:
        states = States(arguments.out / "scored" / f"{kind}-{key[:16]}", utterances, teacher.d_model)
        states.make(encode, log_mel)
        found[name] = evaluate(instrument, states, chosen)
    ours, theirs = found["student"], found["teacher"]
    words, each = theirs["words"], np.arange(len(chosen))
    speakers = np.array([u.speaker for u in utterances])
    apart = word_errors(theirs["texts"], ours["texts"])

    def rate(errors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        return lambda counts: counts @ errors / (counts @ words)

    report: dict[str, Any] = {
        "student": str(arguments.student),
        "instrument": facts,
        "states": "whole windows" if arguments.whole else "cut to the speech and a second more",
        "utterances": len(chosen),
        "speakers": len(set(speakers)),
        "words": int(words.sum()),
    }
    one = np.ones((1, len(chosen)))
    figures = [
        ("wer_teacher", theirs["errors"]),
        ("wer_student", ours["errors"]),
        ("wer_difference", ours["errors"] - theirs["errors"]),
        ("student_against_teachers_transcript", apart),
        ("nats_per_word_teacher", theirs["nats"]),
        ("nats_per_word_student", ours["nats"]),
        ("nats_per_word_difference", ours["nats"] - theirs["nats"]),
    ]
    if "other" in found:
        report["than"] = str(arguments.than)
        for measure, unit in (("wer", "errors"), ("nats_per_word", "nats")):
            figures.append((f"{measure}_student_minus_other", ours[unit] - found["other"][unit]))
    for name, values in figures:
        report[name] = {
            "value": float(rate(values)(one)[0]),
            "interval_95": interval(rate(values), each),
            "interval_95_over_speakers": interval(rate(values), speakers),
        }
    report["examples"] = [
        {"said": utterances[i].text, "teacher": theirs["texts"][i], "student": ours["texts"][i]} for i in chosen[::30]
    ]
    text = json.dumps(report, indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for work, words in ((train, "learn to read the teacher's states"), (score, "read a student's states")):
        verb = verbs.add_parser(work.__name__, help=words, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        verb.set_defaults(work=work)
        verb.add_argument(
            "--teacher", type=Path, required=True, help="folder of encoder and decoder without embedding"
        )
        verb.add_argument("--tsv", type=Path, required=True, help="transcribed speech")
        verb.add_argument("--out", type=Path, required=True, help="folder of the instrument, and of the states")
        verb.add_argument("--threads", type=int, default=1, help="of torch")
        if work is train:
            verb.add_argument("--tune", choices=TUNED, default="layers", help="what is learned besides the rows")
            verb.add_argument("--pieces", type=int, default=1000, help="size of the vocabulary")
            verb.add_argument("--spelling", type=float, default=0.1, help="share of merges left out (BPE dropout)")
            verb.add_argument("--epochs", type=int, default=12)
            verb.add_argument("--batch-size", type=int, default=24)
            verb.add_argument("--rate", type=float, default=3e-4, help="learning rate of the layers")
            verb.add_argument("--rows-rate", type=float, default=3e-3, help="learning rate of the rows")
            verb.add_argument("--held-out", type=int, default=150, help="about as many utterances are kept apart")
            verb.add_argument("--utterances", type=int, help="only so many, whose states are there already")
        else:
            verb.add_argument("--student", type=Path, required=True, help="folder of a student")
            verb.add_argument("--than", type=Path, help="another student, to compare with utterance by utterance")
            verb.add_argument("--whole", action="store_true", help="look at the whole window, not at the cut states")
            verb.add_argument("--json", type=Path, help="also write the report here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.work(arguments)


if __name__ == "__main__":
    main()
