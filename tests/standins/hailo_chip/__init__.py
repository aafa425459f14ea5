"""A Hailo chip that is none, and the world around it: what the stand-ins for `hailo_platform` have in common.

It computes with the emulator's integers behind the API of HailoRT's Python package, and has the traps of that API that
users fell into. Written from HailoRT's public description and sources (branch hailo8, 4.20 to 4.23), not copied.
"""

from hailo_chip.world import World, state

__all__ = ["World", "state"]
