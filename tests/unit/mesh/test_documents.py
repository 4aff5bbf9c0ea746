# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mesh.sources.files.documents import MAX_DOCUMENTS, MAX_FILE_BYTES, DocumentError, read_documents


def values(text: str) -> list[object]:
    return [document.value for document in read_documents(text.encode())]


def test_values_are_what_json_would_have() -> None:
    text = "{a: 1, b: yes, c: ~, d: 'no', e: 2026-01-01T00:00:00Z, f: [x, 1.5], g: '', h: , 8080: x, t: !!str 1}"

    assert values(text) == [
        {"a": 1, "b": True, "c": None, "d": "no", "e": "2026-01-01T00:00:00Z", "f": ["x", 1.5], "g": "", "h": None}
        | {"8080": "x", "t": "1"}
    ]


def test_empty_documents_are_skipped() -> None:
    assert values("---\n---\na: 1\n---\n# nothing\n") == [{"a": 1}]


def test_aliases_and_merge_keys_work() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{y: 7}, *a]}\nd: *a\n"

    assert values(text) == [
        {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 7}, "d": {"x": 1, "y": 2}}
    ]


def test_lines_of_fields() -> None:
    (_, document) = read_documents(b"a: 1\n---\nspec:\n  ports:\n  - port: 80\n    targetPort: x\n")

    assert document.line_of(("spec", "ports", 0, "targetPort")) == 6
    assert document.line_of(("spec", "ports", 0, "missing")) == 5
    assert document.line_of(("metadata",)) == 3


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("data", "line", "text"),
    [
        (b"a: 1\nb: [\n", 3, "YAML: "),
        (b"a: 1\n\tb: 1\n", 2, "YAML: "),
        (b"a: 1\nb: \xff\n", 2, "is not UTF-8: byte 0xff"),
        (b"a: \x00\n", 1, "YAML: "),
        (b"a: *b\n", 1, "alias *b is unknown here"),
        (b"a: &a [*a]\n", 1, "alias *a is unknown here"),
        (b"a: !!python/object/apply:os.system [id]\n", 1, "is not allowed"),
        (b"a: !x y\n", 1, "is not allowed"),
        (b"a: 1\na: 2\n", 2, "key 'a' stands twice"),
        (b"? [a]\n: 1\n", 1, "a key must be a plain word"),
        (b"a:\n  <<: 1\n", 2, "<< needs an object"),
        (b"[" * 200_000, 1, "is nested deeper than"),
        (BOMB.encode(), 0, "values once its aliases are followed"),
        (MERGE_BOMB.encode(), 0, "values once its aliases are followed"),
        (b"--- x\n" * (MAX_DOCUMENTS + 1), MAX_DOCUMENTS + 1, "documents"),
        (b"#" * (MAX_FILE_BYTES + 1), 0, "is larger than"),
    ],
)
def test_bad_text_is_refused_with_its_line(data: bytes, line: int, text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read_documents(data)

    assert text in caught.value.message
    assert line in (0, caught.value.line)


def test_long_base_60_number_stays_text() -> None:
    text = "1" + ":1" * 500_000

    assert values(f"a: {text}") == [{"a": text}]
