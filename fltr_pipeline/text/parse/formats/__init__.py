"""One module per format. A module here that declares a `FORMAT` is all that a format takes.

Belongs here: formats, with their libraries imported late: only parser processes need them. Does not: choosing one.
"""

import importlib
import pkgutil
from functools import cache

from fltr_pipeline.text.parse.extraction import Format


@cache
def formats() -> tuple[Format, ...]:
    """All formats, in the order of their modules' names."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    return tuple(module.FORMAT for module in modules)
