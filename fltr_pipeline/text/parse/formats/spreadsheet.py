"""Spreadsheets of Excel and OpenDocument, through calamine: a page per sheet, a line per row.

Belongs here: XLSX, XLSM, XLSB, XLS and ODS to text. Does not: formulas, only their values; formats of numbers.
"""

import io
from collections.abc import Iterable
from datetime import date, datetime, time
from typing import TYPE_CHECKING

from fltr_pipeline.errors import Corrupt, Encrypted
from fltr_pipeline.text.parse.extraction import Extraction, Format
from fltr_pipeline.text.parse.lines import row
from fltr_pipeline.text.parse.sample import Sample

if TYPE_CHECKING:
    from python_calamine import CalamineSheet

_EXACT = 10**15
"""Excel calculates with 15 digits."""

_ODS = "application/vnd.oasis.opendocument.spreadsheet"


def extract(data: bytes, filename: str) -> Extraction:
    """The sheets with their names as headings; empty ones are left out."""
    import python_calamine as calamine  # noqa: PLC0415

    try:
        with calamine.load_workbook(io.BytesIO(data)) as workbook:
            names = [s.name for s in workbook.sheets_metadata if s.typ == calamine.SheetTypeEnum.WorkSheet]
            pages = [_page(workbook.get_sheet_by_name(name)) for name in names]
    except calamine.PasswordError:
        raise Encrypted(f"{filename}: needs a password; upload it without one") from None
    except calamine.CalamineError as error:
        raise _damaged(filename, error) from None
    except BaseException as error:  # a panic of Rust is no Exception, lest programs go on after it; this one may
        if type(error).__name__ != "PanicException":
            raise
        raise _damaged(filename, error) from None
    return Extraction([page for page in pages if page] or [""], f"python-calamine {_version()}")


def _damaged(filename: str, error: BaseException) -> Corrupt:
    return Corrupt(f"{filename}: the workbook is damaged ({error}); save it again and upload it anew")


def _page(sheet: "CalamineSheet") -> str:
    lines = [line for values in sheet.iter_rows() if (line := row(_words(values)))]
    return "\n".join([f"# {sheet.name}\n", *lines]) if lines else ""


def _words(values: Iterable[object]) -> Iterable[str]:
    for value in values:
        if isinstance(value, bool):
            yield str(value).upper()
        elif isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
            yield str(int(value))
        elif isinstance(value, datetime):
            yield value.date().isoformat() if value.time() == time() else value.isoformat(" ", "seconds")
        elif isinstance(value, date | time):
            yield value.isoformat()
        else:
            yield str(value)


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415

    return version("python-calamine")


def _recognises(sample: Sample) -> bool:
    return (
        sample.is_office("xl")
        or sample.mimetype.startswith(_ODS)
        or sample.has_ole_stream("Workbook")
        or sample.has_ole_stream("Book")
    )


FORMAT = Format(
    kind="spreadsheet",
    title="spreadsheets (XLSX, XLS, ODS)",
    suffixes=(".xlsx", ".xlsm", ".xlsb", ".xls", ".ods"),
    extract=extract,
    recognises=_recognises,
)
