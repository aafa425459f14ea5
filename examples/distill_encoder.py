# /// script
# requires-python = ">=3.11"
# dependencies = ["whisper-hailo-hf[train,eval]"]
# ///
"""Distil a stock Whisper's encoder into a student for the Hailo chip.

On one CPU or one GPU::

    python distill_encoder.py --teacher openai/whisper-tiny.en --train_data train.tsv --eval_data dev.tsv \\
        --output_dir student --max_steps 20000 --bf16 --ema_decay 0.999

On several GPUs, or machines, as `accelerate config` has them::

    accelerate launch distill_encoder.py ...

All settings: `--help`, or one JSON or YAML file with them as the only argument. A run that was cut off goes on with
`--resume`.
"""

import gc
import os
import sys
from pathlib import Path

from transformers import HfArgumentParser

from whisper_hailo_hf.distillation.arguments import EncoderDistillationArguments
from whisper_hailo_hf.distillation.run import DistillationRun, distill
from whisper_hailo_hf.errors import WhisperHailoError


def main() -> None:
    parser = HfArgumentParser((DistillationRun, EncoderDistillationArguments), allow_abbrev=False)
    try:
        if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
            run, args = parser.parse_json_file(Path(sys.argv[1]))
        elif len(sys.argv) == 2 and sys.argv[1].endswith((".yaml", ".yml")):
            run, args = parser.parse_yaml_file(Path(sys.argv[1]))
        else:
            run, args = parser.parse_args_into_dataclasses()
        metrics = distill(run, args)
    except WhisperHailoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    if args.process_index == 0:
        for name, value in metrics.items():
            print(f"{name}: {value:.4g}")
    if args.world_size > 1:
        import torch.distributed

        gc.collect()  # what still holds the group must go first, or its threads outlive it
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
