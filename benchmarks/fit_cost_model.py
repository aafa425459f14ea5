"""Fits the cost model to the published speeds of Hailo's model zoo, and says how far off it is.

    python benchmarks/fit_cost_model.py hailo_model_zoo_speeds.json

The file holds the zoo's result tables as JSON: for each device (HAILO8L, HAILO8, HAILO10H) a list of networks with
`name`, `fps1` and `fps8` (frames per second at batch 1 and 8), `gops` (billions of operations, two for each
multiply-accumulate) and `params` (millions). What the tables do not say, the make of the layers, is guessed from the
family that a network's name tells. Rerun, it writes the same file.

Errors are those of networks that the fit had not seen: one left out at a time, and a whole family at a time, which is
the honest one, since the zoo has many near twins. The networks of `CHECKS` are never fitted.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from whisper_hailo_hf.compile.cost_model import (
    BAND,
    COEFFICIENTS,
    SINGLE_CONTEXT_RATIO,
    CostFeatures,
    DeviceModel,
    from_json,
)

HOME = Path(__file__).resolve().parents[1] / "src" / "whisper_hailo_hf" / "compile" / COEFFICIENTS
SOURCE = (
    "Hailo Model Zoo 2.17 (github.com/hailo-ai/hailo_model_zoo, MIT), result tables of the three devices; compiled by "
    "Hailo with its Dataflow Compiler 3.33 (hailo8l, hailo8); the host and its PCIe link are not stated"
)
CHECK_SOURCE = "Hailo Model Zoo 2.18, result tables; not among the networks of the fit"
COLUMNS = ("network", "gop", "mparams", "fps1", "fps8", "grouped", "depthwise", "attention", "layer_norm", "miss")
RIDGE = 0.3

# Families by name, first match counts: shares of grouped and of depthwise convolutions, attention, LayerNorm. The
# shares are those of the published architectures, rounded; a family that is not here is made of dense convolutions.
FAMILIES: tuple[tuple[str, float, float, float, float], ...] = (
    (r"^(vit|vit_pose)_.*_bn$", 0, 0, 1, 0),
    (r"^(segformer_b0_bn|detr_resnet_v1_18_bn)$", 0, 0.1, 1, 0),
    (r"^clip_resnet_50(x4)?_image", 0, 0, 0, 0),
    (r"^(vit|deit|swin|clip|tinyclip|siglip|davit|petr|depth_anything|detr)", 0, 0, 1, 1),
    (r"^(cas_vit|efficientformer|fastvit|poolformer|nextvit)", 0, 0.3, 0.5, 0),
    (r"^levit", 0, 0, 1, 0),
    (r"^resmlp", 0, 0, 0.5, 0),
    (r"^(yolov12|yolo_world)", 0, 0.1, 0.5, 0),
    (r"^yolov1[01]", 0, 0.15, 0.1, 0),
    (r"_c3tr", 0, 0, 0.1, 1),
    (r"mobilenet|fast_depth|mbv1", 0, 0.4, 0, 0),
    (r"^(efficientnet_lite|efficientdet|repghost|hardnet39ds|osnet|paddle_ocr)", 0, 0.35, 0, 0),
    (r"^(hand_landmark|face_landmarks|lightface|scrfd_500m|scrfd_2.5g)", 0, 0.35, 0, 0),
    (r"^zero_dce_pp", 0, 0.5, 0, 0),
    (r"^efficientnet_[sml]$", 0, 0.15, 0, 0),
    (r"regnetx|^resnext", 0.33, 0, 0, 0),
)
# a parameter count in the tables that cannot be
IMPLAUSIBLE = {"stereonet": "623 million parameters cannot be right for a stereo network of 112 billion operations"}

# Whisper as Hailo compiled it: network, billions of operations, million parameters, frames per second at batch 1.
CHECKS: tuple[tuple[str, str, float, float, float], ...] = (
    ("hailo8l", "whisper_tiny_10s_encoder", 9.26, 7.65, 44.3),
    ("hailo8l", "whisper_base_5s_encoder", 10.73, 19.85, 36.6),
    ("hailo8l", "whisper_tiny_10s_no_kqs_decoder", 3.09, 29.45, 44.7),
    ("hailo8l", "whisper_base_5s_no_kqs_decoder", 3.99, 51.87, 41.8),
    ("hailo8", "whisper_tiny_10s_encoder", 9.26, 7.65, 52.4),
    ("hailo8", "whisper_base_5s_encoder", 10.73, 19.85, 40.0),
    ("hailo8", "whisper_tiny_10s_no_kqs_decoder", 3.09, 29.45, 79.3),
    ("hailo8", "whisper_base_5s_no_kqs_decoder", 3.99, 51.87, 48.4),
)
WHISPER = {"attention": 1.0, "layer_norm": 1.0}


def shares(name: str) -> dict[str, float]:
    """The make of a network's layers, guessed from its name."""
    found = next((row[1:] for row in FAMILIES if re.search(row[0], name)), (0, 0, 0, 0))
    return dict(zip(("grouped", "depthwise", "attention", "layer_norm"), map(float, found), strict=True))


def family(name: str) -> str:
    """Networks of one family resemble each other: yolov5m and yolov5s, resnet_v1_18 and resnet_v1_50."""
    found = re.search(r"yolov\d+", name) or re.match(r"[a-z]+", name)
    return found.group(0) if found else name


def networks(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one device that can be used, under the names of the columns."""
    rows = []
    for entry in entries:
        name = entry["name"].rstrip("⭐").strip()
        if entry["fps1"] > 0 and entry["fps8"] > 0 and name not in IMPLAUSIBLE:
            sizes = {"gop": entry["gops"], "mparams": entry["params"], "fps1": entry["fps1"], "fps8": entry["fps8"]}
            rows.append({"network": name, **sizes, **shares(name)})
    return sorted(rows, key=lambda row: row["network"])


def ridge(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least squares with a penalty on all but the constant."""
    return np.linalg.solve(features.T @ features + _penalty(features), features.T @ values)


def logistic(features: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Logistic regression with the same penalty, by Newton's method."""
    weights, penalty = np.zeros(features.shape[1]), _penalty(features)
    for _ in range(100):
        chance = 1 / (1 + np.exp(-features @ weights))
        curvature = features.T @ (features * (chance * (1 - chance))[:, None]) + penalty
        step = np.linalg.solve(curvature, features.T @ (truth - chance) - penalty @ weights)
        weights = weights + step
        if np.abs(step).max() < 1e-12:
            break
    return weights


def _penalty(features: np.ndarray) -> np.ndarray:
    penalty = RIDGE * np.eye(features.shape[1])
    penalty[0, 0] = 1e-9
    return penalty


class Device:
    """The published networks of one device, and the fit to some of them."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.described = [CostFeatures(**{key: row[key] for key in CostFeatures.__dataclass_fields__}) for row in rows]
        self.features = np.stack([one.vector() for one in self.described])
        self.log_ms = np.log([1000 / row["fps1"] for row in rows])
        self.single = np.array([row["fps8"] / row["fps1"] < SINGLE_CONTEXT_RATIO for row in rows])
        self.families = np.array([family(row["network"]) for row in rows])

    def fit(self, use: np.ndarray) -> dict[str, list[float]]:
        """Coefficients from the rows that `use` marks."""
        parts = {"single": use & self.single, "multi": use & ~self.single}
        found = {name: ridge(self.features[part], self.log_ms[part]) for name, part in parts.items()}
        found["context"] = logistic(self.features[use], self.single[use].astype(float))
        return {name: [round(float(value), 5) for value in values] for name, values in found.items()}

    def left_out(self, groups: np.ndarray) -> tuple[np.ndarray, list[dict[str, list[float]]]]:
        """Each row's miss, and the coefficients that had not seen its group."""
        misses, fits = np.zeros(len(self.rows)), [{} for _ in self.rows]
        for group in np.unique(groups):
            found = self.fit(groups != group)
            for index in np.flatnonzero(groups == group):
                own = found["single" if self.single[index] else "multi"]
                misses[index] = self.log_ms[index] - self.features[index] @ np.array(own)
                fits[index] = found
        return misses, fits

    def errors(self, groups: np.ndarray) -> dict[str, Any]:
        """How far the model is off for networks that it had not seen."""
        misses, fits = self.left_out(groups)
        inside, widths, right = 0, [], 0
        for index, fit in enumerate(fits):
            model = self.model(fit, misses)
            said = model.predict(self.described[index])
            inside += bool(said.low <= np.exp(self.log_ms[index]) <= said.high)
            widths.append(said.high / said.low)
            right += bool((said.single_context > 0.5) == self.single[index])
        count = len(self.rows)
        return {
            "context_right": round(right / count, 3),
            "factor_single": round(float(np.exp(np.median(np.abs(misses[self.single])))), 2),
            "factor_multi": round(float(np.exp(np.median(np.abs(misses[~self.single])))), 2),
            "inside_band": round(inside / count, 3),
            "band_ratio": round(float(np.median(widths)), 1),
        }

    def model(self, fit: dict[str, list[float]], misses: np.ndarray) -> DeviceModel:
        return from_json(self.entry(fit, misses), COLUMNS)

    def entry(self, fit: dict[str, list[float]], misses: np.ndarray) -> dict[str, Any]:
        """What the file says of this device."""
        rows = [
            [*(row[name] for name in COLUMNS[:-1]), round(float(miss), 3)]
            for row, miss in zip(self.rows, misses, strict=True)
        ]
        return {**fit, "networks": rows}


def fit_all(tables: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The whole file: coefficients, errors, the numbers behind them, and the checks."""
    devices: dict[str, Any] = {}
    for name, entries in tables.items():
        device = Device(networks(entries))
        misses, _ = device.left_out(device.families)
        entry = device.entry(device.fit(np.ones(len(device.rows), bool)), misses)
        entry["errors"] = {
            "networks": len(device.rows),
            "single_context": int(device.single.sum()),
            "families": len(set(device.families)),
            "leave_one_out": device.errors(np.arange(len(device.rows))),
            "leave_one_family_out": device.errors(device.families),
        }
        devices[name.lower()] = entry
    checks = []
    for device, network, gop, mparams, fps in CHECKS:
        said = from_json(devices[device], COLUMNS).predict(CostFeatures(gop, mparams, **WHISPER))
        modelled = [round(value, 1) for value in (said.low, said.middle, said.high)]
        checks.append([device, network, gop, mparams, fps, *modelled])
    return {
        "source": SOURCE,
        "band": list(BAND),
        "features": ["constant", "log(gop / 10)", "log(mparams / 10)", *COLUMNS[5:9]],
        "columns": list(COLUMNS),
        "check_source": CHECK_SOURCE,
        "check_columns": ["device", "network", "gop", "mparams", "fps1", "low_ms", "middle_ms", "high_ms"],
        "checks": checks,
        "left_out": IMPLAUSIBLE,
        "devices": devices,
    }


def write(data: dict[str, Any], path: Path) -> None:
    """JSON with one network a line."""
    text = json.dumps(data, indent=1, ensure_ascii=False)
    flat = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: "[" + re.sub(r"\s*\n\s*", " ", found.group(1)) + "]", text)
    path.write_text(flat + "\n", encoding="utf-8")


def show(data: dict[str, Any]) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 140
    table = Table(
        "device", "networks", "single", "left out", "context right", "single ×÷", "multi ×÷", "in band", "high / low"
    )
    for name, entry in data["devices"].items():
        errors = entry["errors"]
        for kind in ("leave_one_out", "leave_one_family_out"):
            one = errors[kind]
            numbers = (one[key] for key in ("factor_single", "factor_multi"))
            table.add_row(
                name,
                str(errors["networks"]),
                str(errors["single_context"]),
                "a network" if kind == "leave_one_out" else "a family",
                f"{one['context_right']:.0%}",
                *(f"{number:.2f}" for number in numbers),
                f"{one['inside_band']:.0%}",
                f"{one['band_ratio']:.1f}",
            )
    console.print(table)
    table = Table("device", "never fitted", "published ms", "low", "middle", "high")
    for device, network, _, _, fps, *modelled in data["checks"]:
        table.add_row(device, network, f"{1000 / fps:.1f}", *map(str, modelled))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the zoo's tables as JSON")
    parser.add_argument("--out", type=Path, default=HOME, help="where to write [the package's own file]")
    arguments = parser.parse_args()
    data = fit_all(json.loads(arguments.file.read_text(encoding="utf-8")))
    write(data, arguments.out)
    show(data)


if __name__ == "__main__":
    main()
