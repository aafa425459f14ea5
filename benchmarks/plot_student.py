# /// script
# dependencies = ["matplotlib"]
# ///
"""The plots of docs/student.md.

    python benchmarks/plot_student.py --curve student/curve.jsonl --ablation ablation --out docs/images

`--curve` is what train_student.py wrote, `--ablation` the folder of student_ablation.py. The curve is shown over
training windows, with the figures at the end of the Trainer's log; the ablation as fidelity over GMAC.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

matplotlib.rcParams |= {"svg.hashsalt": "whisper-hailo", "svg.fonttype": "none", "font.size": 9}


def curve(path: Path, out: Path) -> None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    evaluated = [r for r in rows if "eval_whitened_cosine" in r]
    windows = [r["windows"] / 1000 for r in evaluated]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    left.plot(windows, [r["eval_whitened_cosine"] for r in evaluated], "o-", ms=3, label="mean")
    left.plot(windows, [r["eval_whitened_cosine_p5"] for r in evaluated], "o-", ms=3, label="5th percentile")
    left.set(xlabel="training windows, thousands", ylabel="whitened cosine", ylim=(0, 1))
    right.plot(windows, [r["eval_snr_db"] for r in evaluated], "o-", ms=3, label="SNR")
    right.plot(windows, [r["eval_content_snr_db"] for r in evaluated], "o-", ms=3, label="content SNR")
    right.set(xlabel="training windows, thousands", ylabel="dB", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    save(figure, out / "student_curve.svg")


def ablation(folder: Path, out: Path) -> None:
    found: list[dict[str, Any]] = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
    axes.scatter([r["gmac"] for r in found], [r["whitened_cosine"] for r in found], s=14)
    for r in found:
        axes.annotate(r["name"], (r["gmac"], r["whitened_cosine"]), xytext=(4, 2), textcoords="offset points", size=7)
    axes.set(xlabel="GMAC a window of 30 s", ylabel="whitened cosine after the same windows")
    axes.grid(alpha=0.3)
    save(figure, out / "student_ablation.svg")


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curve", type=Path)
    parser.add_argument("--ablation", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.curve:
        curve(options.curve, options.out)
    if options.ablation:
        ablation(options.ablation, options.out)


if __name__ == "__main__":
    main()
