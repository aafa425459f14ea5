"""What stands in README and docs and is not run by the test that reads the page: why not, or by which test it is."""

INSTALLS = "installs packages from an index"
SYSTEM = "changes the system, as its administrator"
CHIP = "asks a Hailo driver, or a service of the system, that a test does not have"
NAMED = "names an option of a verb, and is no whole command"
ELSE = "talks to another computer, or to the Hub as its user"

# by page, each as it stands there
NOT_RUN: dict[str, dict[str, str]] = {
    "README.md": {
        "make demo    # installs the bare package and transcribes examples/digits_theo.flac with the bundled model": (
            INSTALLS
        ),
        "make test    # installs everything for development and runs the tests": "is what runs this",
        "pip install .              # runs the pipeline on torch": INSTALLS,
        'pip install ".[onnx]"      # and on ONNX Runtime': INSTALLS,
        "pip install -c constraints.txt .": INSTALLS,
        'pip install ".[onnx]" "numpy<2"': INSTALLS,
    },
    "docs/collect-and-adapt.md": {
        "pip install 'whisper-hailo-hf[serve]'": INSTALLS,
        "pip install 'whisper-hailo-hf[serve,train,eval]'": INSTALLS,
    },
    "docs/compile.md": {
        "python3.10 -m venv ~/dfc && ~/dfc/bin/pip install hailo_dataflow_compiler-3.33.0-*.whl": (
            "needs Hailo's compiler, which is not for all to have: a stand-in is in its place"
        ),
        "pip install 'whisper-hailo-hf[onnx]'": INSTALLS,
    },
    "docs/decoder.md": {
        "pip install 'whisper-hailo-hf[onnx]'": INSTALLS,
    },
    "docs/evaluate.md": {
        "pip install 'whisper-hailo-hf[eval]'": INSTALLS,
    },
    "docs/hub.md": {
        "hf auth login": ELSE,
        "pip install whisper-hailo-hf": INSTALLS,
    },
    "docs/live.md": {
        "pip install 'whisper-hailo-hf[mic]'": INSTALLS,
        "apt install libportaudio2": SYSTEM,
        "ssh -L 8178:localhost:8178 pi": ELSE,
        "ssh -L 50505:localhost:50505 pi": ELSE,
    },
    "docs/raspberry-pi.md": {
        "sudo apt update && sudo apt full-upgrade": SYSTEM,
        "sudo apt install hailo-all        # driver, firmware, library and Python package: all of one version": SYSTEM,
        "sudo reboot": SYSTEM,
        "hailortcli fw-control identify    # shows HAILO8L, or HAILO8": CHIP,
        "sudo apt full-upgrade": SYSTEM,
        "sudo apt install python3-venv": SYSTEM,
        "pip install 'whisper-hailo-hf[onnx]' 'numpy<2'": INSTALLS,
        "sudo systemctl enable --now hailort.service": SYSTEM,
        "sudo systemctl daemon-reload": SYSTEM,
        "sudo systemctl enable --now transcribe.path": SYSTEM,
        "journalctl -u transcribe -f": CHIP,
    },
    "docs/recipes/whisper-small-french.md": {
        'pip install "whisper-hailo-hf[train,eval,onnx]"': INSTALLS,
        "accelerate launch distill_french.py …": "stands for the command above it on several GPUs, and is not whole",
    },
    "hub_cards/digits.md": {
        "whisper-hailo check --cost": NAMED,
        "pip install 'whisper-hailo-hf[onnx]'": INSTALLS,
    },
    "hub_cards/whisper-tiny.en-hailo.md": {
        "whisper-hailo check --cost": NAMED,
        "pip install 'whisper-hailo-hf[onnx]'": INSTALLS,
    },
}

# by page and beginning: the test that runs them; "```python" is the page's programs
ELSEWHERE: dict[str, dict[str, str]] = {
    "docs/evaluate.md": {
        "whisper-hailo eval": "test_docs_evaluate.py",
        "whisper-hailo bench": "test_docs_evaluate.py",
        "```python": "test_docs_evaluate.py",
    },
    "docs/hub.md": {
        "whisper-hailo": "test_docs_hub.py",
        "```python": "test_docs_hub.py",
    },
    "docs/recipes/whisper-small-french.md": {
        "python distill_french.py": "test_recipes.py",
        "```python": "test_recipes.py",
    },
}
