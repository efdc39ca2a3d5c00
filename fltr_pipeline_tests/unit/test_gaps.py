"""What a run remembers of pages without text."""

from fltr_pipeline.pipeline.extract import Gap, Gaps


def test_of_many_documents_and_pages_the_first_are_kept_and_all_are_counted() -> None:
    gaps = Gaps()
    for n in range(300):
        gaps.note(f"{n}.txt", pages=1000, without_text=tuple(range(2, 1001)))
    assert (gaps.documents, gaps.pages) == (300, 300 * 999)
    assert len(gaps.first) == 200
    assert gaps.first[0] == Gap("0.txt", 1000, 999, tuple(range(2, 202)))
