"""The `whisper-hailo` command: parsing and printing; the work is done by public functions of the package."""
