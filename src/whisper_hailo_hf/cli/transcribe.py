"""`whisper-hailo transcribe`: recordings in, text or subtitles out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, TaskID

from whisper_hailo_hf.cli import console
from whisper_hailo_hf.cli.options import ServiceAddress

if TYPE_CHECKING:
    from whisper_hailo_hf.transcript import Transcript
    from whisper_hailo_hf.transcription import Observer, Report


def transcribe(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Audio files, quoted patterns ('talks/**/*.ogg') or folders.", show_default=False),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Model folder or Hub id. [default: the bundled demo, English digits]"),
    ] = None,
    output_format: Annotated[str, typer.Option("--format", "-f", help="text, json, srt, vtt or tsv.")] = "text",
    timestamps: Annotated[
        str | None,
        typer.Option(help="none, segment or word. [default: none for text, segment for the other formats]"),
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", "-l", help="Code or name of the language. [default: detect it]")
    ] = None,
    task: Annotated[str | None, typer.Option(help="transcribe, or translate into English.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Files decoded together.")] = 1,
    encoder_backend: Annotated[
        str, typer.Option(help="Where the encoder runs; `whisper-hailo doctor` lists the backends.")
    ] = "auto",
    address: ServiceAddress = None,
    decoder_backend: Annotated[
        str, typer.Option(help="Where the decoder runs: torch, onnx (the same text) or onnx-int8.")
    ] = "torch",
    vad: Annotated[
        str,
        typer.Option(
            help="Voice activity detector: auto, silero or webrtc leave out pauses and cut windows there; none "
            "decodes everything, as stock Whisper does."
        ),
    ] = "none",
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Write one file for each recording here, not to stdout."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON report: transcripts, failures, times.")
    ] = False,
) -> int:
    """Transcribe recordings of any length.

    A recording that cannot be read gets one line on stderr; the others are transcribed, and the exit status is 2.
    """
    console.quiet_libraries()
    from whisper_hailo_hf.transcription import TranscriptionOptions
    from whisper_hailo_hf.transcription import transcribe as transcribe_files

    options = TranscriptionOptions(
        timestamps,
        language,
        task,
        batch_size,
        encoder_backend,
        decoder_backend=decoder_backend,
        address=address,
        vad=vad,
    )
    to_stdout = None if as_json or output_dir is not None else output_format
    with console.progress() as bars:
        report = transcribe_files(
            inputs,
            model,
            options,
            output_format=output_format,
            output_dir=output_dir,
            observer=_printer(bars, to_stdout, demo=model is None),
        )
    if as_json:
        console.print_json(report.to_dict())
    if report.transcripts:
        console.note(_summary(report))
    return report.exit_status


def _printer(bars: Progress, to_stdout: str | None, demo: bool) -> "Observer":
    """Shows what goes on: bars on a terminal, notes on stderr, transcripts on stdout in the format asked for."""
    from whisper_hailo_hf.errors import RequestError
    from whisper_hailo_hf.transcript import format_transcript
    from whisper_hailo_hf.transcription import Observer

    class Printer(Observer):
        bar: TaskID | None = None
        several = False

        def checking(self, files: int) -> None:
            self.several = files > 1
            if self.several and to_stdout not in (None, "text"):
                raise RequestError(
                    f"{files} recordings as {to_stdout}: say with --output-dir where, or ask for --json"
                )

        def checked(self, path: str, warning: str | None) -> None:
            if warning:
                console.note(f"warning: {path}: {warning}")

        def loading(self, model: str) -> None:
            if demo:
                console.note("no --model given: using the bundled demo model, which knows spoken English digits only")
            elif console.notes.is_terminal and not Path(model).is_dir():
                console.note(f"looking for {model} on the Hugging Face Hub")

        def started(self, files: int, seconds: float) -> None:
            self.bar = bars.add_task(_count(files), total=seconds)

        def advanced(self, seconds: float) -> None:
            if self.bar is not None:
                bars.advance(self.bar, seconds)

        def finished(self, transcript: "Transcript", written: Path | None) -> None:
            if written is not None:
                console.note(f"wrote {written}")
            elif to_stdout is not None:
                text = format_transcript(transcript, to_stdout)
                console.print_result(f"{transcript.file}: {text}" if self.several else text, bars)

        def failed(self, name: str, message: str) -> None:
            console.error(message)

    return Printer()


def _summary(report: "Report") -> str:
    decoder = "" if report.decoder_backend == "torch" else f", decoder on {report.decoder_backend}"
    return (
        f"{_count(len(report.transcripts))}, {report.audio_seconds:.1f} s of audio in {report.seconds:.1f} s, "
        f"real-time factor {report.real_time_factor:.3f}, encoder on {report.encoder_backend}{decoder}"
    )


def _count(files: int) -> str:
    return "1 file" if files == 1 else f"{files} files"
