"""`whisper-hailo adapt`: a decoder learns to read the states that were collected."""

from pathlib import Path
from typing import Annotated

import typer

from whisper_hailo_hf.cli import console
from whisper_hailo_hf.cli.training import parse_settings, training_progress


def adapt(
    model: Annotated[
        str, typer.Argument(help="Model whose encoder was served: folder or Hub id.", show_default=False)
    ],
    data: Annotated[Path, typer.Argument(help="Collected data set.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the adapted model and checkpoints.")],
    reference: Annotated[
        Path | None, typer.Option(help="The same speech, collected from the float encoder: nothing is forgotten.")
    ] = None,
    evaluate: Annotated[
        Path | None, typer.Option("--eval", help="Collected data set to measure word error rates on.")
    ] = None,
    evaluate_reference: Annotated[
        Path | None, typer.Option("--eval-reference", help="The same speech, collected from the float encoder.")
    ] = None,
    part: Annotated[str, typer.Option(help="What learns of the decoder: full, cross_attention or lora.")] = "full",
    labels: Annotated[
        str, typer.Option(help="text, or original: what the original decoder says of the reference.")
    ] = "text",
    epochs: Annotated[float, typer.Option(help="Times through the data.")] = 3.0,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Windows in a step.")] = 8,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any other setting as name=value: of DecoderAdaptationArguments or Transformers' "
            "Seq2SeqTrainingArguments, such as learning_rate=5e-5 or bf16=true.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as one JSON document.")] = False,
) -> None:
    """Adapt a model's decoder to collected encoder states; the encoder does not run and stays as it is.

    On several GPUs, `accelerate launch` examples/adapt_decoder.py, which takes the same settings.
    """
    console.quiet_libraries()
    from importlib.util import find_spec

    from whisper_hailo_hf.cli.serve import _need_extra
    from whisper_hailo_hf.errors import RequestError

    _need_extra()
    for module in ("accelerate", "pyarrow"):
        if find_spec(module) is None:
            raise RequestError(f"this verb needs {module}: pip install 'whisper-hailo-hf[serve,train,eval]'")
    from whisper_hailo_hf.service.adaptation import DecoderAdaptationArguments
    from whisper_hailo_hf.service.adaptation import adapt as adapt_decoder

    (args,) = parse_settings(
        (DecoderAdaptationArguments,),
        {
            "output_dir": str(output),
            "part": part,
            "labels": labels,
            "num_train_epochs": epochs,
            "per_device_train_batch_size": batch_size,
        },
        setting or [],
        "examples/adapt_decoder.py",
    )
    args.disable_tqdm = True  # its lines would go to stdout, among the result
    with console.progress() as bars:
        metrics = adapt_decoder(
            model,
            data,
            args,
            reference=reference,
            eval_data=evaluate,
            eval_reference=evaluate_reference,
            callbacks=[training_progress(bars, "adapting")],
        )
    if as_json:
        console.print_json({"model": str(output), "metrics": metrics})
    else:
        console.print_table(str(output), [(name.replace("_", " "), f"{v:.4g}") for name, v in metrics.items()])
