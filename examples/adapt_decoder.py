# /// script
# requires-python = ">=3.11"
# dependencies = ["whisper-hailo-hf[serve,train,eval]"]
# ///
"""Adapt a model's decoder to encoder states that were collected from a service.

On one CPU or one GPU::

    python adapt_decoder.py --model model --data states --reference float_states --eval_data held_out_states \\
        --output_dir adapted --num_train_epochs 3 --bf16

On several GPUs, or machines, as `accelerate config` has them::

    accelerate launch adapt_decoder.py ...

All settings: `--help`, or one JSON or YAML file with them as the only argument. How the states are collected is told
in docs/collect-and-adapt.md.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from whisper_hailo_hf.errors import WhisperHailoError
from whisper_hailo_hf.service.adaptation import DecoderAdaptationArguments, adapt


@dataclass
class Data:
    """What is adapted, to what."""

    model: str = field(metadata={"help": "Model whose encoder was served: folder or Hub id."})
    data: str = field(metadata={"help": "Collected data set."})
    reference: str | None = field(
        default=None, metadata={"help": "The same speech, collected from the float encoder."}
    )
    eval_data: str | None = field(default=None, metadata={"help": "Collected data set to measure on."})
    eval_reference: str | None = field(
        default=None, metadata={"help": "The same speech, collected from the float encoder."}
    )


def main() -> None:
    parser = HfArgumentParser((Data, DecoderAdaptationArguments), allow_abbrev=False)
    try:
        if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
            data, args = parser.parse_json_file(Path(sys.argv[1]))
        elif len(sys.argv) == 2 and sys.argv[1].endswith((".yaml", ".yml")):
            data, args = parser.parse_yaml_file(Path(sys.argv[1]))
        else:
            data, args = parser.parse_args_into_dataclasses()
        metrics = adapt(
            data.model,
            data.data,
            args,
            reference=data.reference,
            eval_data=data.eval_data,
            eval_reference=data.eval_reference,
        )
    except WhisperHailoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    if args.process_index == 0:
        for name, value in metrics.items():
            print(f"{name}: {value:.4g}")
    if args.world_size > 1:
        import torch.distributed

        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
