"""Where the fast lanes branch off."""

import importlib
import importlib.util
import os
from typing import Any

# Environment variable that turns all fast lanes off if it is 0
SWITCH = "SB3_PPO_VARIANTS_FAST"
FOLDER = f"{__package__}.fast"


def lane(name: str, *objects: Any) -> Any:
    """
    A function that does what SB3's method does, sooner.

    :param name: the lane: a module of ``fast`` whose function ``lane`` makes it
    :param objects: what it is to serve
    :return: the lane, or ``None`` if there is none for these objects
    """
    if os.environ.get(SWITCH) == "0" or importlib.util.find_spec(FOLDER) is None:
        return None
    return importlib.import_module(f"{FOLDER}.{name}").lane(*objects)
