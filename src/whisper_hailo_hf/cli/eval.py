"""`whisper-hailo eval`: error rates of models on recordings whose text is known."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whisper_hailo_hf.cli import console
from whisper_hailo_hf.cli.options import ServiceAddress

if TYPE_CHECKING:
    from whisper_hailo_hf.evaluation import RecognitionReport


def eval_(
    data: Annotated[
        str,
        typer.Argument(
            help=".tsv table (path, text), audiofolder, folder that `datasets` saved, or data set of the Hub.",
            show_default=False,
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Model folder or Hub id, again for each. [default: the bundled demo]"),
    ] = None,
    encoder_backend: Annotated[
        list[str] | None, typer.Option(help="Where the encoder runs, again for each. [default: auto]")
    ] = None,
    decoder_backend: Annotated[
        list[str] | None, typer.Option(help="Where the decoder runs, again for each. [default: torch]")
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Folder for results; a run that was cut off goes on from it."),
    ] = None,
    normalizer: Annotated[str, typer.Option(help="Of both texts: basic, letters, english or none.")] = "basic",
    language: Annotated[
        str | None, typer.Option("--language", "-l", help="Code or name. [default: as the data says, or detect it]")
    ] = None,
    task: Annotated[str | None, typer.Option(help="transcribe, or translate into English.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Utterances decoded together.")] = 1,
    num_beams: Annotated[int, typer.Option(help="Width of the beam search; 1 is greedy.")] = 1,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens of a window. [default: the model's]")] = None,
    address: ServiceAddress = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", help="At most so many utterances.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a data set.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a data set. [default: test]")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of a data set with the references.")] = None,
    streaming: Annotated[bool, typer.Option("--streaming", help="Take a data set of the Hub as a stream.")] = False,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    resamples: Annotated[int, typer.Option(help="Draws of the bootstrap.")] = 10_000,
    worst: Annotated[int, typer.Option(help="So many utterances with the most errors are listed.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Word and character error rates of several models on several backends, with intervals and differences.

    Every definition is in docs/evaluate.md. A recording that cannot be read gets one line; the exit status is then 2.
    """
    console.quiet_libraries()
    from whisper_hailo_hf.evaluation import RecognitionOptions, evaluate_recognition

    options = RecognitionOptions(
        normalizer=normalizer,
        language=language,
        task=task,
        batch_size=batch_size,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        address=address,
        confidence=confidence,
        resamples=resamples,
        worst=worst,
    )
    with _bars() as observe:
        report = evaluate_recognition(
            data,
            model or [None],
            encoder_backend or ["auto"],
            options,
            decoder_backends=decoder_backend or ["torch"],
            output_dir=output_dir,
            observe=observe,
            limit=limit,
            config=config,
            split=split,
            columns=None if text_column is None else {"text_column": text_column},
            streaming=streaming,
        )
    for message in report.failures.values():
        console.error(message)
    if as_json:
        console.print_json(report.to_dict())
    else:
        _show(report)
    if output_dir is not None:
        console.note(f"wrote {output_dir / 'report.json'} and {output_dir / 'utterances.jsonl'}")
    return report.exit_status


@contextmanager
def _bars() -> Iterator[Any]:
    with console.progress() as bars:
        tasks: dict[str, Any] = {}

        def observe(name: str, done: float, total: float) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield observe


def _show(report: "RecognitionReport") -> None:
    first = report.systems[0]
    silent = f", {first.silent} of them silent" if first.silent else ""
    size = f"{first.audio_seconds:.0f} s, {first.words.length} words"
    head = ("", "WER", f"{first.wer_interval.confidence:.0%} interval", "sub", "del", "ins", "CER", "interval")
    rows: list[tuple[str, ...]] = [(*head, "no error", "empty", "hallucinated", "real-time factor")]
    for one in report.systems:
        rows.append(
            (
                one.name,
                f"{one.wer:.2%}",
                f"{one.wer_interval.low:.2%} to {one.wer_interval.high:.2%}",
                *(str(n) for n in (one.words.substitutions, one.words.deletions, one.words.insertions)),
                f"{one.cer:.2%}",
                f"{one.cer_interval.low:.2%} to {one.cer_interval.high:.2%}",
                *(str(n) for n in (one.without_error, one.empty, one.hallucinated)),
                f"{one.real_time_factor:.3f}",
            )
        )
    console.print_table(f"{report.data}: {first.utterances} utterances{silent}, {size}", rows)
    if report.comparisons:
        pairs = [("", "WER difference, points", "interval", "p", "p (Holm)")]
        for pair in report.comparisons:
            value, interval = pair.difference.value, pair.difference.interval
            pairs.append(
                (
                    f"{pair.first} less {pair.second}",
                    f"{100 * value:+.2f}",
                    f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}",
                    f"{pair.difference.p_value:.4f}",
                    f"{pair.p_holm:.4f}",
                )
            )
        console.print_table("paired differences", pairs)
    if found := report.worst():
        lines: list[tuple[str, ...]] = []
        for row in found:
            lines.append((row["id"], "", "said", row["reference"]))
            lines += [("", str(row["word_errors"][name]), name, text) for name, text in row["texts"].items()]
        console.print_table("most word errors", lines)
    if report.without_text:
        console.note(f"{report.without_text} recordings without a text were left out")
