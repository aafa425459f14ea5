"""Options that several verbs have, said once."""

from typing import Annotated

import typer

ServiceAddress = Annotated[
    str | None,
    typer.Option(
        help="Of the service, for the backend remote: host:port. Its token and the authority of its certificate: "
        "$WHISPER_HAILO_TOKEN, $WHISPER_HAILO_CA."
    ),
]
