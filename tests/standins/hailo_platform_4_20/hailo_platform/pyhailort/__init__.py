"""The extension module would lie here."""
