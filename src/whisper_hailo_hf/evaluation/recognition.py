"""Models on the same utterances: who hears what, how sure the difference is, and where it goes wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

from whisper_hailo_hf.artefacts import fingerprint
from whisper_hailo_hf.audio import SAMPLING_RATE, AudioError
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.evaluation.bootstrap import CONFIDENCE, RESAMPLES, holm, paired_difference, rate_interval
from whisper_hailo_hf.evaluation.decoding_log import DecodingLog
from whisper_hailo_hf.evaluation.error_counts import count_errors
from whisper_hailo_hf.evaluation.normalizers import get_normalizer
from whisper_hailo_hf.evaluation.outcomes import Outcome, judge
from whisper_hailo_hf.evaluation.recogniser import Recogniser
from whisper_hailo_hf.evaluation.recognition_report import Comparison, RecognitionReport, SystemResult
from whisper_hailo_hf.evaluation.references import References, load_references
from whisper_hailo_hf.sources.utterances import Utterance
from whisper_hailo_hf.speech_model import SpeechModel, checkpoint_kind, load_speech_model

Observer = Callable[[str, float, float], None]


@dataclass(frozen=True)
class RecognitionOptions:
    """How to recognise, and how to count.

    Attributes:
        normalizer: of references and transcripts: `basic`, `letters`, `english` or `none`.
        language: code or English name; None takes what the data says, or detects it.
        task: `transcribe` or `translate`; None is the model's own default.
        batch_size: utterances decoded together.
        num_beams: 1 is greedy.
        max_new_tokens: most tokens of a window; None is the model's own limit.
        address: of the service, for the backend `remote`.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        worst: so many utterances with the most word errors are listed.
    """

    normalizer: str = "basic"
    language: str | None = None
    task: str | None = None
    batch_size: int = 1
    num_beams: int = 1
    max_new_tokens: int | None = None
    address: str | None = None
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
    seed: int = 0
    worst: int = 10

    def __post_init__(self) -> None:
        get_normalizer(self.normalizer)
        for name, least in (("batch_size", 1), ("num_beams", 1), ("resamples", 100), ("worst", 0)):
            if getattr(self, name) < least:
                raise RequestError(f"{name} is {least} or more, not {getattr(self, name)}")
        if not 0 < self.confidence < 1:
            raise RequestError(f"the confidence lies between 0 and 1, it cannot be {self.confidence:g}")

    def of_decoding(self) -> dict[str, Any]:
        """What a transcript depends on."""
        names = ("language", "task", "batch_size", "num_beams", "max_new_tokens")
        return {name: getattr(self, name) for name in names}


def evaluate_recognition(
    data: Any,
    models: Sequence[str | os.PathLike[str] | None] = (None,),
    backends: Sequence[str] = ("auto",),
    options: RecognitionOptions | None = None,
    *,
    decoder_backends: Sequence[str] = ("torch",),
    output_dir: str | os.PathLike[str] | None = None,
    observe: Observer | None = None,
    **source: Any,
) -> RecognitionReport:
    """Word and character error rates of several models on several backends, on the same utterances.

    A stock Whisper has one backend, torch, and runs once whatever the backends. One model after the other is loaded.

    Args:
        data: what `load_references` takes.
        models: folders or Hub ids; None is the bundled demo model.
        backends: for each model with a pluggable encoder, one of `backends.backend_names()`.
        options: how to recognise and count.
        decoder_backends: for each of these, one of `decoders.decoder_backend_names()`.
        output_dir: folder for a log of each system, one line of JSON for each utterance, from which a later call with
            the same settings goes on; and, at the end, for `report.json` and `utterances.jsonl`.
        observe: told a system's name, the seconds of audio done, and those of all.
        source: settings of `load_references`.

    Raises:
        RequestError: no data, model or backend of that name, or a log of something else.
        WhisperHailoError: the decoding failed.
    """
    options = options or RecognitionOptions()
    count_errors(["all"], ["there"])  # that jiwer or scipy is missing shall not turn out after hours
    rate_interval([0, 1], [1, 1])
    references = load_references(data, **source)
    folder = None if output_dir is None else Path(output_dir)
    results: list[tuple[str, SpeechFacts, dict[str, Outcome]]] = []
    failures: dict[str, str] = {}
    for model, backend, decoder in _systems(models, backends, decoder_backends):
        speech = load_speech_model(model, backend, options.address if backend == "remote" else None, decoder)
        name = _name(speech, [result[0] for result in results])
        facts = SpeechFacts(speech.name, speech.encoder_backend, fingerprint(speech.model), speech.decoder_backend)
        outcomes = _decode(name, speech, facts, references, options, folder, observe, failures)
        results.append((name, facts, outcomes))
        del speech  # before the next is loaded
    report = _report(references, results, options, failures)
    if folder is not None:
        report.save(folder)
    return report


@dataclass(frozen=True)
class SpeechFacts:
    """What a system is: the model, where its encoder and decoder run, and the fingerprint of all weights."""

    model: str
    encoder_backend: str
    weights: str
    decoder_backend: str


def _systems(
    models: Sequence[str | os.PathLike[str] | None], backends: Sequence[str], decoders: Sequence[str]
) -> Iterator[tuple[str | os.PathLike[str] | None, str, str]]:
    if not models or not backends or not decoders:
        raise RequestError("name a model and a backend, one or more of each")
    found = []
    for model in models:
        stock = checkpoint_kind(model) == "whisper"
        found += [(model, *both) for both in ([("torch", "torch")] if stock else product(backends, decoders))]
    return iter(dict.fromkeys(found))


def _name(speech: SpeechModel, taken: Iterable[str]) -> str:
    """Short and unlike the others: the model's last name and the backends."""
    taken = set(taken)
    path = Path(speech.name)
    where = speech.encoder_backend
    if speech.decoder_backend != "torch":
        where += f", decoder {speech.decoder_backend}"
    for name in (f"{path.name or speech.name} {where}", f"{speech.name} {where}"):
        if name not in taken:
            return name
    raise RequestError(f"{speech.name} runs on {where} twice: name each backend once")


def _decode(
    name: str,
    speech: SpeechModel,
    facts: SpeechFacts,
    references: References,
    options: RecognitionOptions,
    folder: Path | None,
    observe: Observer | None,
    failures: dict[str, str],
) -> dict[str, Outcome]:
    """By id: what one system makes of the utterances that it has not decoded yet, and of the others what it did."""
    recogniser = Recogniser(speech, options.language, options.task, options.num_beams, options.max_new_tokens)
    path = None if folder is None else folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-')}.jsonl"
    head = {"system": name, **asdict(facts), **options.of_decoding()}
    total = sum(one.seconds or 0.0 for one in references.utterances)
    done = 0.0
    with DecodingLog(path, head) as log:
        left = []
        for utterance in references.utterances:
            line = log.known(utterance.id, utterance.identity(), utterance.text or "")
            if line is None:
                left.append(utterance)
            else:
                done += line["audio_seconds"]
        if left:
            recogniser.warm_up()
        lengths = [round((one.seconds or 0.0) * SAMPLING_RATE) for one in left]
        for batch in recogniser.batches(lengths, options.batch_size):
            if observe is not None:
                observe(name, done, max(total, done))
            lines = _decode_batch([left[index] for index in batch], recogniser, failures)
            log.add(lines)
            done += sum(line["audio_seconds"] for line in lines)
        if observe is not None:
            observe(name, done, max(total, done))
        return {
            one.id: judge(
                one.id, line["reference"], line["text"], options.normalizer, line["audio_seconds"], line["seconds"]
            )
            for one in references.utterances
            if (line := log.lines.get(one.id)) is not None and one.id not in failures
        }


def _decode_batch(
    utterances: list[Utterance], recogniser: Recogniser, failures: dict[str, str]
) -> list[dict[str, Any]]:
    heard: list[tuple[Utterance, Any]] = []
    for utterance in utterances:
        try:
            samples = utterance.load()
        except AudioError as error:
            failures[utterance.id] = str(error)
        else:
            heard.append((utterance, samples))
    if not heard:
        return []
    found = recogniser([samples for _, samples in heard], [utterance.language for utterance, _ in heard])
    return [
        {
            "id": utterance.id,
            "audio": utterance.identity(),
            "reference": utterance.text or "",
            "text": text,
            "audio_seconds": round(samples.size / SAMPLING_RATE, 4),
            "seconds": round(seconds, 5),
        }
        for (utterance, samples), (text, seconds) in zip(heard, found, strict=True)
    ]


def _report(
    references: References,
    results: list[tuple[str, SpeechFacts, dict[str, Outcome]]],
    options: RecognitionOptions,
    failures: dict[str, str],
) -> RecognitionReport:
    # what one system could not read does not count for any
    ids = [one.id for one in references.utterances if all(one.id in outcomes for _, _, outcomes in results)]
    if not ids:
        raise RequestError(f"none of the recordings can be read: {next(iter(failures.values()))}")
    outcomes = {name: [found[one] for one in ids] for name, _, found in results}
    words = [one.words.length for one in next(iter(outcomes.values()))]
    if not sum(words):
        raise RequestError(f"the references have no words after the normalizer {options.normalizer!r}")
    settings: dict[str, Any] = {
        "confidence": options.confidence,
        "resamples": options.resamples,
        "seed": options.seed,
    }
    systems = []
    for name, facts, _ in results:
        mine = outcomes[name]
        intervals = [
            rate_interval([part.errors for part in parts], [part.length for part in parts], **settings)
            for parts in ([one.words for one in mine], [one.characters for one in mine])
        ]
        systems.append(SystemResult.of(name, asdict(facts), mine, *intervals))
    errors = {name: [one.words.errors for one in found] for name, found in outcomes.items()}
    pairs = list(combinations(outcomes, 2))
    found = [paired_difference(errors[a], errors[b], words, **settings) for a, b in pairs]
    comparisons = [
        Comparison(first, second, difference, adjusted)
        for (first, second), difference, adjusted in zip(pairs, found, holm([d.p_value for d in found]), strict=True)
    ]
    return RecognitionReport(
        references.name,
        systems,
        comparisons,
        outcomes,
        failures,
        references.without_text,
        asdict(options),
    )
