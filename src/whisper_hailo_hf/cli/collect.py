"""`whisper-hailo collect`: encoder states from servers to a data set."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from whisper_hailo_hf.cli import console


def collect(
    source: Annotated[
        str,
        typer.Argument(help="Speech: a .tsv table, a folder of audio, or a data set of the Hub.", show_default=False),
    ],
    folder: Annotated[Path, typer.Argument(help="Folder of the data set, new or begun before.", show_default=False)],
    server: Annotated[list[str], typer.Option("--server", "-s", help="Server, as host:port; several share the work.")],
    token_file: Annotated[
        Path | None, typer.Option(help="File with the servers' token. [default: $WHISPER_HAILO_TOKEN]")
    ] = None,
    ca: Annotated[
        str | None,
        typer.Option(help="Authority of the servers' certificates, PEM, or system. [default: $WHISPER_HAILO_CA]"),
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="Own certificate, PEM, for servers that want one.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Send the token in the clear.")] = False,
    send: Annotated[str, typer.Option(help="What is sent: auto, float16 (log-mel), flac or pcm (audio).")] = "auto",
    states: Annotated[str, typer.Option(help="What is kept: auto (the network's integers) or float16.")] = "auto",
    speech_only: Annotated[
        bool, typer.Option("--speech-only", help="Keep only the positions with speech, and half a second more.")
    ] = False,
    language: Annotated[str | None, typer.Option(help="Language of utterances that name none.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a data set of the Hub. [default: train]")] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Stream a data set of the Hub instead of fetching it whole.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="At most so many utterances.")] = None,
    patience: Annotated[float, typer.Option(help="Seconds that all servers may be away before the run ends.")] = 300.0,
    shard_mb: Annotated[float, typer.Option(help="Size of a file of the data set, before compression.")] = 64.0,
    shard_seconds: Annotated[
        float, typer.Option(help="A file is written after so long even if it is small: no more work is ever repeated.")
    ] = 60.0,
    check: Annotated[bool, typer.Option("--check", help="At the end, read all and compare the checksums.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> None:
    """Collect what encoders elsewhere make of speech: a data set to adapt a decoder to.

    Run again after whatever went wrong, it goes on where it was.
    """
    console.quiet_libraries()
    from itertools import islice

    from whisper_hailo_hf.cli.serve import _need_extra
    from whisper_hailo_hf.errors import RequestError
    from whisper_hailo_hf.sources.utterances import open_source

    _need_extra()
    from whisper_hailo_hf.service.collection import CollectionSettings, Estimate
    from whisper_hailo_hf.service.collection import collect as collect_states
    from whisper_hailo_hf.service.settings import read_secret_file
    from whisper_hailo_hf.service.shards import check_collection
    from whisper_hailo_hf.wire.client import Connection

    token = None if token_file is None else read_secret_file(token_file)
    connections = [Connection(address, token, ca, cert, key, insecure) for address in server]
    settings = CollectionSettings(
        send=send,
        states=states,
        speech_only=speech_only,
        patience=patience,
        shard_bytes=round(shard_mb * 1e6),
        shard_seconds=shard_seconds,
    )
    if limit is not None and limit < 1:
        raise RequestError(f"--limit is a positive number, not {limit}")
    wanted: dict[str, Any] = {"language": language} | ({} if split is None else {"split": split})
    speech: Any = open_source(source, streaming=streaming, **wanted) if not Path(source).exists() else None
    if speech is None:
        if split is not None or streaming:
            raise RequestError("--split and --streaming are for data sets of the Hub")
        speech = open_source(source, language=language)
    if limit is not None:
        speech = speech[:limit] if isinstance(speech, list) else islice(speech, limit)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    silent = not console.notes.is_terminal
    with Progress(
        *columns, console=console.notes, transient=True, disable=silent, redirect_stdout=False, redirect_stderr=False
    ) as bars:
        bar = bars.add_task("collecting", total=None, rate="")

        def estimated(estimate: Estimate) -> None:
            console.note(estimate.arithmetic)
            if estimate.seconds is not None:
                console.note(f"about {_duration(estimate.seconds)}, as a first few took")

        begun = False

        def progress(rows: int, total: int | None) -> None:
            nonlocal begun
            if not begun:  # what was there before is no speed of this run
                begun = True
                bars.reset(bar, total=total, completed=rows)
            task = bars.tasks[0]
            rate = f"{task.speed:.1f}/s" if task.speed else ""
            bars.update(bar, completed=rows, total=total, rate=rate)

        report = collect_states(speech, folder, connections, settings, estimated=estimated, progress=progress)
    for name, reason in list(report.skipped.items())[:20]:
        console.note(f"skipped {name}: {reason}")
    facts: dict[str, Any] = {
        "folder": str(folder),
        "rows": report.rows,
        "new": report.new,
        "skipped": len(report.skipped),
        "shards": report.shards,
        "bytes": report.bytes,
        "seconds": round(report.seconds, 2),
    }
    if check:
        facts["checked_rows"] = check_collection(folder)["rows"]
    if as_json:
        console.print_json(facts | {"skipped": report.skipped})
    else:
        shown = {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in facts.items()}
        console.print_table(str(folder), [(name.replace("_", " "), value) for name, value in shown.items()][1:])


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
