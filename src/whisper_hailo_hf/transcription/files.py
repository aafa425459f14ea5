"""Many recordings to many transcripts: what to read, where to write, and one line for each that fails."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whisper_hailo_hf.audio import AudioError, Blocks, check_audio, iter_audio
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.speech_model import SpeechModel, load_speech_model
from whisper_hailo_hf.transcript import FORMATS, NEEDS_TIMESTAMPS, SUFFIXES, Transcript, format_transcript
from whisper_hailo_hf.transcription.inputs import AudioFile, find_audio
from whisper_hailo_hf.transcription.transcriber import TIMESTAMPS, Transcriber
from whisper_hailo_hf.voice_activity import make_vad


@dataclass(frozen=True)
class TranscriptionOptions:
    """How to transcribe: the settings of `Transcriber`, and the backends to load the model for.

    `timestamps` None means what the output format needs: `segment` for JSON, SRT, VTT and TSV, `none` for text.
    `address` is that of the service, for the encoder backend `remote`. `vad` is the detector that leaves out pauses.
    """

    timestamps: str | None = None
    language: str | None = None
    task: str | None = None
    batch_size: int = 1
    encoder_backend: str = "auto"
    generate_kwargs: dict[str, Any] = field(default_factory=dict)
    decoder_backend: str = "torch"
    address: str | None = None
    vad: str = "none"


class Observer:
    """Told what happens while it happens; every method does nothing here and is for a subclass to override."""

    def checking(self, files: int) -> None:
        """Begins to read so many files through, to find the faulty ones before any work is done."""

    def checked(self, path: str, warning: str | None) -> None:
        """Has read one."""

    def loading(self, model: str) -> None:
        """Begins to load the model."""

    def started(self, files: int, seconds: float) -> None:
        """Begins to transcribe so many files with so much audio."""

    def advanced(self, seconds: float) -> None:
        """Has transcribed so much more audio."""

    def finished(self, transcript: Transcript, written: Path | None) -> None:
        """Has transcribed a file, and written it if there is a place to; called in the order of the inputs."""

    def failed(self, name: str, message: str) -> None:
        """An input cannot be transcribed; the message is one line and names it."""


@dataclass
class Report:
    """What `transcribe` did. `seconds` is the time taken after the model was loaded, `failures` one line by input."""

    model: str
    encoder_backend: str
    transcripts: list[Transcript]
    written: list[Path]
    failures: dict[str, str]
    audio_seconds: float
    seconds: float
    loading_seconds: float
    decoder_backend: str = ""

    @property
    def real_time_factor(self) -> float | None:
        """Time taken over duration of the audio, below 1 faster than real time; None where there was no audio."""
        return self.seconds / self.audio_seconds if self.audio_seconds else None

    @property
    def exit_status(self) -> int:
        """0 if every input was transcribed, 2 if one or more could not be read."""
        return 2 if self.failures else 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return {
            "model": self.model,
            "encoder_backend": self.encoder_backend,
            "decoder_backend": self.decoder_backend,
            "files": len(self.transcripts),
            "audio_seconds": round(self.audio_seconds, 3),
            "seconds": round(self.seconds, 3),
            "loading_seconds": round(self.loading_seconds, 3),
            "real_time_factor": None if self.real_time_factor is None else round(self.real_time_factor, 4),
            "transcripts": [transcript.to_dict() for transcript in self.transcripts],
            "written": [str(path) for path in self.written],
            "failures": [{"input": name, "error": message} for name, message in self.failures.items()],
        }


def transcribe(
    inputs: Iterable[str | os.PathLike[str]],
    model: str | os.PathLike[str] | SpeechModel | None = None,
    options: TranscriptionOptions | None = None,
    *,
    output_format: str = "text",
    output_dir: str | os.PathLike[str] | None = None,
    observer: Observer | None = None,
) -> Report:
    """Transcribe files, glob patterns and folders.

    Every file is read through before the model is loaded. One that cannot be read becomes a failure in the report, and
    the others are transcribed all the same.

    Args:
        inputs: files, patterns and folders, as `find_audio` takes them.
        model: folder or Hub id, or one already loaded; None is the bundled demo model, spoken English digits.
        options: how to transcribe.
        output_format: one of `transcript.FORMATS`; what `output_dir` receives.
        output_dir: where to write `<name><suffix>` for each file, under the folders it had within a searched folder or
            pattern. No two files of one call get one name. A file of an earlier call is replaced, at once and whole.
        observer: told what happens meanwhile.

    Raises:
        RequestError: the request as a whole cannot be met: format, options, folder to write to, model.
    """
    options, observer = options or TranscriptionOptions(), observer or Observer()
    timestamps = _choose_timestamps(output_format, options.timestamps)
    make_vad(options.vad)  # one that is not installed shall be named before a model is loaded
    found = find_audio(inputs)
    if not found.files and not found.errors:
        raise RequestError("nothing to transcribe: name files, patterns or folders")
    targets = _targets(found.files, Path(output_dir), SUFFIXES[output_format]) if output_dir is not None else {}
    if output_dir is not None:
        _prepare_folder(Path(output_dir))

    failures: dict[str, str] = {}

    def fail(name: str, message: str) -> None:
        failures[name] = message
        observer.failed(name, message)

    for name, message in found.errors:
        fail(name, message)
    readable: list[AudioFile] = []
    duration = 0.0
    observer.checking(len(found.files))
    for file in found.files:
        try:
            info = check_audio(file.path)
        except AudioError as error:
            fail(str(file.path), str(error))
        else:
            observer.checked(str(file.path), info.warning)
            readable.append(file)
            duration += info.duration
    # With nothing to read no model is loaded: what is wrong has been said.
    if not readable:
        return Report("", "", [], [], failures, 0.0, 0.0, 0.0)

    began = time.perf_counter()
    if isinstance(model, SpeechModel):
        speech = model
    else:
        observer.loading("the bundled demo model" if model is None else str(model))
        speech = load_speech_model(model, options.encoder_backend, options.address, options.decoder_backend)
    transcriber = Transcriber(
        speech,
        timestamps=timestamps,
        language=options.language,
        task=options.task,
        batch_size=options.batch_size,
        generate_kwargs=options.generate_kwargs,
        vad=options.vad,
    )
    loaded = time.perf_counter()
    observer.started(len(readable), duration)

    def recordings() -> Iterator[tuple[int, str, Blocks]]:
        for index, file in enumerate(readable):
            yield index, str(file.path), iter_audio(file.path)

    due = 0
    outcomes: dict[int, tuple[Transcript, Path | None] | None] = {}
    transcripts: list[Transcript] = []
    written: list[Path] = []
    for index, outcome in transcriber.run(recordings(), observer.advanced):
        file = readable[index]
        if isinstance(outcome, Transcript):
            target = targets.get(file.path)
            if target is not None:
                _write(target, format_transcript(outcome, output_format))
            outcomes[index] = (outcome, target)
        else:
            outcomes[index] = None
            fail(str(file.path), str(outcome))
        # A batch may finish out of order; the observer sees the order of the inputs.
        while due in outcomes:
            done = outcomes.pop(due)
            due += 1
            if done is not None:
                transcripts.append(done[0])
                written.extend([done[1]] if done[1] else [])
                observer.finished(*done)
    return Report(
        speech.name,
        speech.encoder_backend,
        transcripts,
        written,
        failures,
        sum(transcript.duration for transcript in transcripts),
        time.perf_counter() - loaded,
        loaded - began,
        speech.decoder_backend,
    )


def _choose_timestamps(output_format: str, timestamps: str | None) -> str:
    if output_format not in FORMATS:
        raise RequestError(f"unknown format {output_format!r}: choose {', '.join(FORMATS)}")
    if timestamps is None:
        return "none" if output_format == "text" else "segment"
    if timestamps not in TIMESTAMPS:
        raise RequestError(f"unknown timestamps {timestamps!r}: choose {', '.join(TIMESTAMPS)}")
    if timestamps == "none" and output_format in NEEDS_TIMESTAMPS:
        raise RequestError(f"{output_format} is made of timestamps: ask for --timestamps segment or word")
    return timestamps


def _targets(files: list[AudioFile], folder: Path, suffix: str) -> dict[Path, Path]:
    """Where each file's transcript goes: the short name where it is the only one, a longer one where it is not."""
    names = {file.path: file.name.with_suffix(suffix) for file in files}

    def clashing() -> list[AudioFile]:
        # Some file systems do not tell upper from lower case.
        counts = Counter(str(name).casefold() for name in names.values())
        return [file for file in files if counts[str(names[file.path]).casefold()] > 1]

    for file in clashing():  # talk.wav and talk.mp3
        names[file.path] = file.name.with_name(file.name.name + suffix)
    if clashes := clashing():  # a/talk.wav and b/talk.wav, named one by one
        absolute = {file.path: Path(os.path.abspath(file.path)) for file in clashes}
        common = os.path.commonpath([path.parent for path in absolute.values()])
        for path, full in absolute.items():
            relative = full.relative_to(common)
            names[path] = relative.with_name(relative.name + suffix)
    taken: set[str] = set()
    for path, name in names.items():  # whatever may still be left
        number, unique = 1, name
        while str(unique).casefold() in taken:
            number += 1
            unique = name.with_name(f"{name.stem}-{number}{suffix}")
        taken.add(str(unique).casefold())
        names[path] = unique
    return {path: folder / name for path, name in names.items()}


def _prepare_folder(folder: Path) -> None:
    """Make the folder and try to write into it, before hours of work that could not be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(f"cannot write to the folder {folder} ({os.strerror(error.errno or 0)})") from error


def _write(target: Path, text: str) -> None:
    """Write a file so that it is either whole or not there."""
    temporary = target.with_name(f".{os.getpid()}-{target.name[-200:]}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8", newline="\n")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WhisperHailoError(f"cannot write {target} ({os.strerror(error.errno or 0)})") from error
