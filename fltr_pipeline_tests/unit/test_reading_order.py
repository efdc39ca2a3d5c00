"""Lines of text to text, by where they stand."""

from fltr_pipeline.text.parse.reading_order import Line, as_text


def line(text: str, left: float, top: float, *, width: float = 300, height: float = 20) -> Line:
    return Line(text, 1.0, left, top, left + width, top + height)


def column(name: str, left: float, top: float, lines: int = 4, pitch: float = 26) -> list[Line]:
    return [line(f"{name}{n}", left, top + n * pitch) for n in range(lines)]


def test_nothing_is_nothing() -> None:
    assert as_text([]) == ""


def test_lines_are_read_from_above_and_gaps_part_paragraphs() -> None:
    lines = [line("three", 10, 90), line("one", 10, 0), line("two", 10, 26)]
    assert as_text(lines) == "one\ntwo\n\nthree"


def test_columns_are_read_one_by_one_between_what_spans_them() -> None:
    lines = [
        line("title", 0, 0, width=660),
        *column("a", 0, 40),
        *column("b", 360, 47),
        line("foot", 0, 200, width=660),
    ]
    assert as_text(lines).split() == ["title", "a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3", "foot"]


def test_three_columns() -> None:
    lines = [*column("a", 0, 0), *column("b", 340, 0), *column("c", 680, 0)]
    assert as_text(lines).split() == [f"{name}{n}" for name in "abc" for n in range(4)]


def test_narrow_columns_are_a_table_read_row_by_row() -> None:
    cells = [line(f"{row}{cell}", 200 * cell, 30 * row, width=60) for row in range(5) for cell in range(3)]
    assert as_text(cells) == "\n".join(f"{row}0 {row}1 {row}2" for row in range(5))


def test_a_note_up_the_margin_comes_last() -> None:
    note = line("a note in the margin", 0, 0, width=20, height=400)
    assert as_text([note, *column("a", 50, 0)]).endswith("a3\n\na note in the margin")
