"""What the installed `whisper-hailo` runs. The rest is imported within, so that Ctrl-C meanwhile is told in a line."""

import sys


def main() -> None:
    """Run the command line and exit."""
    try:
        from whisper_hailo_hf.cli.main import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    run()
