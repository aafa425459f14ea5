"""Encoder states over the network: what the server, the collection and the `remote` backend share.

The protocol is `encoder.proto`; the build compiles it. Everything here needs `pip install 'whisper-hailo-hf[serve]'`.
"""

SERVICE = "whisper_hailo.encoder.v1.Encoder"
DEFAULT_PORT = 50505
SAMPLING_RATE = 16_000  # Hz, of all audio in requests
MAX_MESSAGE_BYTES = 16 * 2**20  # one window of the largest Whisper in float32, with as much again to spare
