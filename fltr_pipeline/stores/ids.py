"""The one rule for ids that go into a filter expression or a blob's path.

Belongs here: that rule. Does not: what the ids mean.
"""

import re

from fltr_pipeline.errors import InvalidValue

ID_LENGTH = 64
"""Most characters in an id; all of them are ASCII, so also bytes."""

# Without quotes, backslashes, separators and line ends, an id can neither end a string in an expression nor leave
# its folder; an id of dots alone is a folder's own name or its parent's.
_ID = re.compile(rf"(?!\.+\Z)[A-Za-z0-9_\-:.]{{1,{ID_LENGTH}}}")


def checked_id(value: str, what: str) -> str:
    """Return `value` if it is 1 to 64 characters of `A-Z a-z 0-9 _ - : .`; `what` names it in the error.

    Raises:
        InvalidValue: it is not.
    """
    if not _ID.fullmatch(value):
        raise InvalidValue(f"{what} {value[:80]!r} is not 1 to {ID_LENGTH} characters of A-Z a-z 0-9 _ - : .")
    return value
