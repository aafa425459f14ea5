"""Makes the cards of the models from their records: NAME.yaml to NAME.md here, and to README.md in the model's folder.

python hub_cards/generate.py            # writes them
python hub_cards/generate.py --check    # says which are not up to date
"""

import argparse
import json
from pathlib import Path
from typing import Any

from whisper_hailo_hf.artefacts import stored_parameters
from whisper_hailo_hf.model_card import CardRecord, check_card, make_card

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"digits": "src/whisper_hailo_hf/demo", "whisper-tiny.en-hailo": "models/whisper-tiny.en-hailo"}
# of a model whose folder is not there yet
EXPECTED: dict[str, dict[str, Any]] = {
    "whisper-tiny.en-hailo": {
        "architectures": ["HailoWhisperEncoder"],
        "encoder_family": "conv",
        "encoder_preset": "tiny",
        "encoder_layers": 12,
        "d_model": 384,
    }
}


def cards(name: str) -> dict[Path, str]:
    """The text of each file that is made of a record."""
    folder = ROOT / FOLDERS[name]
    record, here = CardRecord.read(ROOT / "hub_cards" / f"{name}.yaml"), (folder / "config.json").is_file()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if here else EXPECTED[name]
    text = make_card(record, config, stored_parameters(folder) if here else None)
    if problems := check_card(text):
        raise SystemExit(f"{name}: {problems[0]}")
    places = [ROOT / "hub_cards" / f"{name}.md", *([folder / "README.md"] if here else [])]
    return dict.fromkeys(places, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a card is not up to date")
    options = parser.parse_args()
    late = []
    for name in FOLDERS:
        for path, text in cards(name).items():
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                late.append(str(path.relative_to(ROOT)))
                if not options.check:
                    path.write_text(text, encoding="utf-8")
    for name in late:
        print(f"{name}: {'not up to date' if options.check else 'written'}")
    if late and options.check:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
