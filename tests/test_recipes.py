"""The recipes in docs/recipes: their programs run, with data sets of the same form in place of those of the Hub."""

import io
import itertools
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers_docs import Reader
from helpers_docs_place import (
    place,  # noqa: F401  # a fixture
    put_clip,
    put_stock,
    there,
)
from transformers import HfArgumentParser

from whisper_hailo_hf.distillation.arguments import EncoderDistillationArguments
from whisper_hailo_hf.distillation.run import DistillationRun, init_student

RECIPES = Path(__file__).resolve().parent.parent / "docs" / "recipes"
FRENCH = (RECIPES / "whisper-small-french.md").read_text(encoding="utf-8")

# name, configuration -> splits, and the columns beside the audio, the transcript first
HUB = {
    ("facebook/multilingual_librispeech", "french"): (
        ("train", "dev", "test"),
        ("transcript", "original_path", "speaker_id"),
        16_000,
    ),
    ("fixie-ai/common_voice_17_0", "fr"): (
        ("train", "validation", "test"),
        ("sentence", "path", "up_votes"),
        48_000,
    ),
}


def commands(text: str, start: str) -> list[list[str]]:
    """The lines of the bash blocks that begin so, as words."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith(start)]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """In place of the Hub: two parquet files of two short recordings for each data set, in its form."""
    pytest.importorskip("datasets")
    import pyarrow
    import pyarrow.parquet
    from datasets import Audio, Features, Value, load_dataset

    def load(name: str, config: str, *, split: str, streaming: bool):
        splits, columns, rate = HUB[name, config]
        assert split in splits
        assert streaming
        features = Features({"audio": Audio(sampling_rate=rate), **{column: Value("string") for column in columns}})
        folder = tmp_path / "hub" / config
        if not folder.is_dir():
            folder.mkdir(parents=True)
            random = np.random.default_rng(rate)
            for number in range(2):
                rows = []
                for _ in range(2):
                    file = io.BytesIO()
                    sound = 0.1 * random.standard_normal(2 * rate) * np.hanning(2 * rate)
                    soundfile.write(file, sound.astype(np.float32), rate, format="FLAC")
                    rows.append({"audio": {"bytes": file.getvalue(), "path": "a.flac"}})
                    rows[-1] |= dict.fromkeys(columns, "où est la rue")
                table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
                pyarrow.parquet.write_table(table, folder / f"{number}.parquet")
        files = sorted(map(str, folder.iterdir()))
        return load_dataset("parquet", data_files=files, split="train", streaming=True)

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)  # 5 s each time a stream is closed


def test_the_french_program_trains_and_goes_on(hub, tmp_path, monkeypatch, capsys, stock_whisper):
    (code,) = re.findall(r"```python\n(.*?)```", FRENCH, re.DOTALL)
    init_student(stock_whisper, tmp_path / "student", preset="micro")
    for name, folder in (("openai/whisper-small", stock_whisper), ("student", str(tmp_path / "student"))):
        assert f'"{name}"' in code
        code = code.replace(f'"{name}"', repr(folder))
    start, resume = commands(FRENCH, "python distill_french.py")
    assert "--resume" in resume
    # as the recipe has it, but for the size
    small = "--per_device_train_batch_size 2 --per_device_eval_batch_size 4 --dataloader_num_workers 0 --bf16 false "
    small += "--use_cpu true --warmup_steps 1 --statistics_windows 4 --generation_max_new_tokens 4 --report_to none "
    small += f"--eval_steps 2 --save_steps 2 --disable_tqdm true --output_dir {tmp_path / 'french'}"
    for command, steps in ((start, 2), (resume, 3)):
        monkeypatch.setattr(sys, "argv", [*command[1:], *small.split(), "--max_steps", str(steps)])
        exec(compile(code, "distill_french.py", "exec"), {"__name__": "__main__"})
        said = capsys.readouterr()
        assert "mls_wer" in said.err
        assert "common_voice_teacher_wer" in said.err
        assert (tmp_path / "french" / "model.safetensors").is_file()
    assert (tmp_path / "french" / "checkpoint-2").is_dir()
    assert (tmp_path / "french" / "checkpoint-3").is_dir()


@pytest.mark.usefixtures("place", "hub")
def test_the_page(monkeypatch, capsys, stock_whisper):
    put_stock(stock_whisper, "openai/whisper-small")
    put_clip("recordings/one.wav")
    seen = {}
    for split in ("train", "dev", "test"):
        put_clip(f"cv-corpus/fr/clips/{split}.flac", seconds=9.0)
        rows = ("client_id\tpath\tsentence\tup_votes", f'x\t{split}.flac\t"Où" est la rue ?\t2')
        Path(f"cv-corpus/fr/{split}.tsv").write_text("\n".join([*rows, ""]), encoding="utf-8")

    def converted(_done):
        table = Path("cv-corpus/fr/speech-dev.tsv").read_text(encoding="utf-8").splitlines()
        assert table == ["id\tpath\ttext\tlanguage", 'dev.flac\tclips/dev.flac\t"Où" est la rue ?\tfr']

    def tried(_done):
        assert Path("trial/model.safetensors").is_file()
        shutil.copytree("trial", "french")  # the program that makes it is run above

    settings = (
        "eval_windows=2 statistics_windows=2 bf16=false dataloader_num_workers=0 use_cpu=true report_to=none "
        "learning_rate=0.01 warmup_steps=0"  # a step that is large enough for the encoder to tell windows apart
    )
    small = " ".join(["--steps 1 --batch-size 2", *(f"--set {setting}" for setting in settings.split())])
    Reader(
        "docs/recipes/whisper-small-french.md",
        monkeypatch,
        capsys,
        more={
            "whisper-hailo init": "--preset micro",
            "whisper-hailo distill": small,
            "whisper-hailo quantize": "--windows 2",
            "whisper-hailo verify": "--windows 1",
        },
        after={
            "python - cv-corpus/fr": converted,
            "whisper-hailo init": there("student/model.safetensors"),
            "whisper-hailo distill": tried,
            "whisper-hailo transcribe": there("captions/one.srt"),
            "whisper-hailo export": there("french.onnx"),
            "whisper-hailo check": lambda done: seen.update(check=done.out),
            "whisper-hailo quantize": there("french/onnx/encoder_int8.onnx"),
            "whisper-hailo verify": lambda done: seen.update(ladder=done.out),
        },
    ).read()
    assert "on a Raspberry Pi 5 (modelled)" in seen["check"]
    assert "emulator against onnx" in seen["ladder"]
    there("report.html")(None)


def test_settings_of_a_trial_exist():
    found = [word for command in commands(FRENCH, "whisper-hailo distill") for word in command]
    settings = [value for before, value in itertools.pairwise(found) if before == "--set"]
    assert settings
    parser = HfArgumentParser((DistillationRun, EncoderDistillationArguments), allow_abbrev=False)
    needed = ["--teacher=whisper", "--train_data=speech", "--use_cpu=true", "--max_steps=1"]
    run, _ = parser.parse_args_into_dataclasses([*needed, *(f"--{setting}" for setting in settings)])
    assert run.streaming
    assert run.language == "fr"
