"""Multipart forms: all that RFC 2046 allows, in pieces of any length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet_server.errors import InvalidRequest
from alexnet_server.http.form import Form

HEAD = b'Content-Disposition: form-data; name="image"; filename="f"\r\n\r\n'
PHOTO = b"\xff\xd8\xff photo \r\n--B \r\n--bo\r\n"


def read(body: bytes, step: int = 10**6) -> list[object]:
    form = Form(b"bound", 1000)
    for start in range(0, len(body), step):
        form.write(body[start : start + step])
    return form.finish()


FORMS = {
    "plain": b"--bound\r\n" + HEAD + PHOTO + b"\r\n--bound--\r\n",
    "no end of line at the end": b"--bound\r\n" + HEAD + PHOTO + b"\r\n--bound--",
    "preamble": b"For old readers.\r\n\r\n--bound\r\n" + HEAD + PHOTO + b"\r\n--bound--\r\n",
    "preamble like a boundary": b"x --bound\r\n\r\n--bound\r\n" + HEAD + PHOTO + b"\r\n--bound--\r\n",
    "blanks": b"--bound \t \r\n" + HEAD + PHOTO + b"\r\n--bound--  \r\n",
    "epilogue": b"--bound\r\n" + HEAD + PHOTO + b"\r\n--bound--\r\nand more\r\n--bound\r\n",
}


@pytest.mark.parametrize("step", [1, 2, 3, 7, 10**6])
@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str, step: int) -> None:
    assert read(FORMS[name], step) == [PHOTO]


@given(
    st.lists(st.binary(max_size=60), min_size=1, max_size=4), st.integers(1, 50), st.sampled_from((b"", b" "))
)
def test_any_photos_in_any_pieces(photos: list[bytes], step: int, blanks: bytes) -> None:
    if any(b"--bound" in photo for photo in photos):
        return
    body = b"".join(b"--bound" + blanks + b"\r\n" + HEAD + photo + b"\r\n" for photo in photos) + b"--bound--"
    assert read(body, step) == photos


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"hello", "not the multipart form"),
        (b"--boundary\r\n", "not the multipart form"),
        (b"--bound" + b" " * 5000 + b"\r\n" + HEAD, "not the multipart form"),
        (b"--bound\r\n" + HEAD + PHOTO, "before its closing boundary"),
        (b"--bound\r\n" + b"a: b\r\n" * 20 + HEAD + PHOTO + b"\r\n--bound--", "more than 8 headers"),
        (b"--bound\r\na: " + b"b" * 5000 + b"\r\n" + HEAD + b"\r\n--bound--", "longer than 4,224 bytes"),
        (b"--bound\r\n" + HEAD + b"x\r\n--boundary", "before its closing boundary"),
    ],
)
@pytest.mark.parametrize("step", [1, 10**6])
def test_what_is_wrong_is_said(body: bytes, words: str, step: int) -> None:
    with pytest.raises(InvalidRequest, match=words):
        read(body, step)
