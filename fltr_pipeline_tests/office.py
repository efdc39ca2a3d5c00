"""Small Office, OpenDocument and EPUB files, made for the tests.

Belongs here: writing valid files from snippets of their XML. Does not: the damage that a test does to them.
"""

import io
import zipfile
from collections.abc import Mapping

_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
_SHOW = "http://schemas.openxmlformats.org/presentationml/2006/main"
_SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_RELATION = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"
_OPEN = "urn:oasis:names:tc:opendocument:xmlns:"


def archive(parts: Mapping[str, str | bytes]) -> bytes:
    """A ZIP file; `mimetype` should come first, as its formats demand."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return out.getvalue()


def relations(targets: Mapping[str, str]) -> str:
    """Relations `r1`, `r2`, … from target to the last word of their type."""
    rows = "".join(
        f'<Relationship Id="r{n}" Type="{_RELATION}/{kind}" Target="{target}"/>'
        for n, (target, kind) in enumerate(targets.items(), 1)
    )
    return f'<Relationships xmlns="{_PACKAGE}">{rows}</Relationships>'


def docx(body: str, *, styles: str = "", footnotes: str = "", part: str = "word/document.xml") -> bytes:
    """A Word document; the snippets are in the namespace `w`."""
    folder, name = part.rsplit("/", 1)
    return archive(
        {
            "[Content_Types].xml": "<Types/>",
            "_rels/.rels": relations({part: "officeDocument"}),
            part: f'<w:document xmlns:w="{_WORD}"><w:body>{body}</w:body></w:document>',
            f"{folder}/_rels/{name}.rels": relations({"styles.xml": "styles", "footnotes.xml": "footnotes"}),
            f"{folder}/styles.xml": f'<w:styles xmlns:w="{_WORD}">{styles}</w:styles>',
            f"{folder}/footnotes.xml": f'<w:footnotes xmlns:w="{_WORD}">{footnotes}</w:footnotes>',
        }
    )


def paragraph(text: str, properties: str = "") -> str:
    """A paragraph of a Word document."""
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


def pptx(slides: list[str], notes: str = "") -> bytes:
    """A presentation; the snippets are shapes in the namespaces `a` and `p`; the first slide has the notes."""
    names = [f"slides/slide{n}.xml" for n in range(1, len(slides) + 1)]
    spaces = f'xmlns:a="{_DRAWING}" xmlns:p="{_SHOW}" xmlns:r="{_RELATION}"'
    order = "".join(f'<p:sldId id="{255 + n}" r:id="r{n}"/>' for n in range(1, len(slides) + 1))
    parts = {
        "[Content_Types].xml": "<Types/>",
        "ppt/presentation.xml": f"<p:presentation {spaces}><p:sldIdLst>{order}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations(dict.fromkeys(names, "slide")),
        "ppt/slides/_rels/slide1.xml.rels": relations({"../notesSlides/notes1.xml": "notesSlide"}),
        "ppt/notesSlides/notes1.xml": f"<p:notes {spaces}>{notes}</p:notes>",
    }
    return archive(parts | {f"ppt/{n}": f"<p:sld {spaces}>{s}</p:sld>" for n, s in zip(names, slides, strict=True)})


def shape(text: str, placeholder: str = "body") -> str:
    """A shape of a slide, with one paragraph."""
    return f'<p:sp><p:nvPr><p:ph type="{placeholder}"/></p:nvPr><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:sp>'


def xlsx(sheets: Mapping[str, str]) -> bytes:
    """A workbook; the snippets are rows."""
    names = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="r{n}"/>' for n, name in enumerate(sheets, 1))
    targets = {f"worksheets/sheet{n}.xml": "worksheet" for n in range(1, len(sheets) + 1)}
    parts = {
        "[Content_Types].xml": "<Types/>",
        "_rels/.rels": relations({"xl/workbook.xml": "officeDocument"}),
        "xl/workbook.xml": f'<workbook xmlns="{_SHEET}" xmlns:r="{_RELATION}"><sheets>{names}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": relations(targets),
    }
    rows = zip(targets, sheets.values(), strict=True)
    sheet = '<worksheet xmlns="{}"><sheetData>{}</sheetData></worksheet>'
    return archive(parts | {f"xl/{name}": sheet.format(_SHEET, content) for name, content in rows})


def cell(place: str, text: str) -> str:
    """A cell of a workbook with words in it."""
    return f'<c r="{place}" t="inlineStr"><is><t>{text}</t></is></c>'


def odf(body: str, kind: str = "text", manifest: str = "") -> bytes:
    """An OpenDocument file; the snippet is in the namespaces `text`, `table`, `draw` and `office`."""
    spaces = " ".join(
        f'xmlns:{name}="{_OPEN}{name if name != "draw" else "drawing"}:1.0"'
        for name in ("office", "text", "table", "draw")
    )
    return archive(
        {
            "mimetype": f"application/vnd.oasis.opendocument.{kind}",
            "content.xml": f"<office:document {spaces}><office:body>{body}</office:body></office:document>",
            "META-INF/manifest.xml": f"<manifest>{manifest}</manifest>",
        }
    )


def epub(chapters: list[str], encrypted: str = "") -> bytes:
    """A book of XHTML bodies; its first item is a table of contents. `encrypted` names a part under protection."""
    items = "".join(
        f'<item id="c{n}" href="text/c%20{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    contents = '<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
    parts: dict[str, str | bytes] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container><rootfiles><rootfile full-path="book/a.opf"/></rootfiles></container>',
        "META-INF/encryption.xml": f'<encryption><CipherReference URI="{encrypted}"/></encryption>',
        "book/a.opf": f"<package><manifest>{contents}{items}</manifest>"
        f'<spine><itemref idref="nav"/>{spine}</spine></package>',
        "book/nav.xhtml": "<html><body>Contents</body></html>",
    }
    return archive(
        parts | {f"book/text/c {n}.xhtml": f"<html><body>{body}</body></html>" for n, body in enumerate(chapters)}
    )
