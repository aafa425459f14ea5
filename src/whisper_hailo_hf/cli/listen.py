"""`whisper-hailo listen`: speech to captions while it is spoken."""

import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whisper_hailo_hf.cli import console
from whisper_hailo_hf.cli.options import ServiceAddress

if TYPE_CHECKING:
    from whisper_hailo_hf.live import Event, LiveTranscriber
    from whisper_hailo_hf.live.sources import Source
    from whisper_hailo_hf.speech_model import SpeechModel


def listen(
    source: Annotated[
        str | None,
        typer.Argument(help="A recording to play, or - for raw audio. [default: the microphone]", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Model folder or Hub id. [default: the bundled demo, English digits]"),
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", "-l", help="Code or name of the language. [default: detect it]")
    ] = None,
    task: Annotated[str | None, typer.Option(help="transcribe, or translate into English.")] = None,
    policy: Annotated[
        str, typer.Option(help="When words are final: local-agreement or align-att.")
    ] = "local-agreement",
    min_chunk: Annotated[float, typer.Option(help="Seconds of audio between passes.")] = 0.5,
    vad: Annotated[str, typer.Option(help="Voice activity: auto, silero, webrtc or none.")] = "auto",
    min_silence: Annotated[float, typer.Option(help="Seconds of silence that end a phrase.")] = 0.6,
    context: Annotated[int, typer.Option(help="Tokens of earlier text that a pass is prompted with.")] = 64,
    window: Annotated[str, typer.Option(help="full, or short where the encoder allows it.")] = "full",
    guards: Annotated[
        bool, typer.Option("--guards/--no-guards", help="Rules against invented words and loops.")
    ] = True,
    encoder_backend: Annotated[
        str, typer.Option(help="Where the encoder runs; `whisper-hailo doctor` lists the backends.")
    ] = "auto",
    address: ServiceAddress = None,
    decoder_backend: Annotated[
        str, typer.Option(help="Where the decoder runs: torch, onnx (the same text) or onnx-int8.")
    ] = "torch",
    device: Annotated[str | None, typer.Option("--device", "-d", help="Microphone: number or part of a name.")] = None,
    list_devices: Annotated[bool, typer.Option("--list-devices", help="List the microphones and exit.")] = False,
    rate: Annotated[
        int | None, typer.Option(help="Hz, of the microphone or the raw audio. [default: 16000, or the device's own]")
    ] = None,
    channels: Annotated[int, typer.Option(help="Of the raw audio: 1 or 2.")] = 1,
    sample_format: Annotated[str, typer.Option(help="Of the raw audio: s16le, s32le or f32le.")] = "s16le",
    speed: Annotated[float, typer.Option(help="Of a recording: 1 is real time, 0 as fast as can be.")] = 1.0,
    srt: Annotated[Path | None, typer.Option("--srt", help="Append subtitles to this file as they come.")] = None,
    web: Annotated[bool, typer.Option("--web", help="Serve a page with the captions on this machine.")] = False,
    port: Annotated[int, typer.Option(help="Of the page; 0 takes a free one.")] = 8178,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line for each event.")] = False,
) -> None:
    """Write down what is said, while it is said.

    Ends with the recording, or with Ctrl-C; what was said until then is still written.
    """
    console.quiet_libraries()
    if list_devices:
        _list_devices(as_json)
        return
    from whisper_hailo_hf.live.engine import LiveTranscriber
    from whisper_hailo_hf.live.session import LiveSession
    from whisper_hailo_hf.live.web import CaptionServer
    from whisper_hailo_hf.live.writers import JsonLines, SrtWriter
    from whisper_hailo_hf.transcription import load_speech_model

    audio = _open(source, device, rate, channels, sample_format, speed)
    with ExitStack() as stack:
        takers: list[Callable[[Event], None]] = []
        if srt is not None:
            subtitles = SrtWriter(srt)
            stack.callback(subtitles.close)
            takers.append(subtitles)
        if web:
            page = CaptionServer(port)
            stack.callback(page.close)
            takers.append(page)
        if model is None:
            console.note("no --model given: using the bundled demo model, which knows spoken English digits only")
        speech = load_speech_model(model, encoder_backend, address, decoder_backend)
        transcriber = LiveTranscriber(
            speech,
            policy=policy,
            language=language,
            task=task,
            min_chunk=min_chunk,
            vad=vad,
            min_silence=min_silence,
            context=context,
            guarded=guards,
            window=window,
        )
        transcriber.warm_up()
        if web:
            console.note(f"captions on {page.url}")
        console.note(
            f"listening to {audio.name}; {transcriber.vad.name} voice activity, encoder on "
            f"{speech.encoder_backend}{_decoder(speech)}; Ctrl-C ends"
        )
        takers.insert(0, JsonLines(sys.stdout) if as_json else stack.enter_context(_Captions()))
        session = LiveSession(transcriber, audio)
        with _ctrl_c(session.stop):
            for event in session.run():
                for taker in takers:
                    taker(event)
    console.note(_summary(transcriber))


def _open(
    source: str | None, device: str | None, rate: int | None, channels: int, sample_format: str, speed: float
) -> "Source":
    from whisper_hailo_hf.live.sources import SAMPLING_RATE, FileSource, MicrophoneSource, PipeSource

    if source is None:
        microphone = MicrophoneSource(device, rate)
        if microphone.rate != (rate or SAMPLING_RATE):
            console.note(f"the microphone does not record at {SAMPLING_RATE} Hz: taking {microphone.rate} Hz")
        return microphone
    if source == "-":
        return PipeSource(sys.stdin.buffer, rate or SAMPLING_RATE, channels, sample_format)
    return FileSource(source, speed)


def _list_devices(as_json: bool) -> None:
    from whisper_hailo_hf.live.sources import input_devices

    devices = input_devices()
    if as_json:
        console.print_json(devices)
        return
    rows = [
        (f"{found['index']}{' *' if found['default'] else ''}", found["name"], f"{found['rate']} Hz")
        for found in devices
    ]
    console.print_table("microphones (* is the default)" if rows else "no microphones", rows)


class _Captions:
    """Captions on stdout: on a terminal what is final in plain and what is tentative in dim letters, and phrase by
    phrase as lines elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False, markup=False, emoji=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._committed = self._tentative = ""

    def __enter__(self) -> "_Captions":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._show(self._committed)
        self._live.stop()

    def __call__(self, event: "Event") -> None:
        from rich.text import Text

        from whisper_hailo_hf.live import Committed, Dropped, EndOfPhrase, Notice, Pace, Partial

        if isinstance(event, Committed):
            self._committed += event.text
            self._tentative = ""
        elif isinstance(event, Partial):
            self._tentative = event.text
        elif isinstance(event, EndOfPhrase):
            self._show(self._committed)
            self._committed = self._tentative = ""
        elif isinstance(event, Notice):
            console.note(event.message)
        elif isinstance(event, Dropped):
            console.note(f"no audio from {event.start:.1f} to {event.end:.1f} s")
        elif isinstance(event, Pace):
            console.note(f"{event.behind:.1f} s behind: a pass every {event.step:.1f} s from now on")
        if self._live.is_started:
            self._live.update(Text(self._committed.lstrip()) + Text(self._tentative, style="dim italic"), refresh=True)

    def _show(self, text: str) -> None:
        if not text.strip():
            return
        if self._live.is_started:
            self._live.update("")
            self._console.print(text.strip(), soft_wrap=True)
        else:
            sys.stdout.write(text.strip() + "\n")
            sys.stdout.flush()


class _ctrl_c:
    """Within it, Ctrl-C and SIGTERM call a function; a second Ctrl-C interrupts as ever."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        def stop(number: int, _frame: Any) -> None:
            self._stop()
            signal.signal(number, self._before[number])

        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, stop)

    def __exit__(self, *_: Any) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


def _decoder(speech: "SpeechModel") -> str:
    return "" if speech.decoder_backend == "torch" else f", decoder on {speech.decoder_backend}"


def _summary(transcriber: "LiveTranscriber") -> str:
    work = transcriber.work
    computing = work.encoding + work.decoding + work.detecting
    factor = f", {computing / work.audio:.3f} s of computing for each" if work.audio else ""
    return f"{work.audio:.1f} s of audio, {work.passes} passes{factor}"
