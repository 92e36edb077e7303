from __future__ import annotations

import pytest

from datahound_storage.codec import encode
from datahound_storage.files import layout


@pytest.mark.parametrize("short", range(-3, 16))
@pytest.mark.parametrize("count", [1, 2])
def test_a_text_as_long_as_can_be_has_the_digest_that_a_reader_finds(
    monkeypatch: pytest.MonkeyPatch, short: int, count: int
) -> None:
    monkeypatch.setattr(layout, "_LONGEST", 4096)
    texts = []
    for n in range(count):
        text = encode({"task_id": f"a{n}", "name": ""})
        name = "x" * (4096 - short - len(text))
        texts.append(text.replace('"name": ""', f'"name": "{name}"'))
    digests = [digest for digest in map(layout.text_digest, texts) if digest is not None]
    if len(digests) == count:
        content = b"".join(layout.assemble(texts))
        assert layout.digest_of_texts(digests) == layout.digest(content)
    else:
        assert short < 15
