"""Model cards: the record of facts and figures, the template, and the text that the two give."""

from whisper_hailo_hf.model_card.record import CardRecord
from whisper_hailo_hf.model_card.text import check_card, make_card, plain_card

__all__ = ["CardRecord", "check_card", "make_card", "plain_card"]
