"""Gzipped text files to TFRecord shards: unzip, clean, split.

Every task takes one shard of files, `raw/SHARD/...`, and writes `tfrecord/train-SHARD.tfrecord.gz`
and `tfrecord/valid-SHARD.tfrecord.gz`; all of them appear with one commit.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import io
import random
import re
import unicodedata
import uuid
import zlib
from functools import lru_cache
from itertools import accumulate
from typing import Any

from tfrecord_format import encode_example, frame

from hyper import TaskContext

CHUNK_WORDS = 128
VALID_SHARE = 0.05
UNZIPPED_BYTES_MAX = 64 << 20
_HIDDEN = re.compile(r"<(?:(script|style)\b|!--)", re.IGNORECASE)
_HIDDEN_ENDS = {
    "script": re.compile(r"</script", re.IGNORECASE),
    "style": re.compile(r"</style", re.IGNORECASE),
    "": re.compile(r"-->"),
}
_TAG = re.compile(r"<[^<>]{0,1000}>")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|[.,;:!?]")
_VOCABULARY = 5_000


def begin(context: TaskContext, *, dataset: str) -> dict[str, str]:
    """Open the session that all tasks write into."""
    return {"session": context.client.session(dataset).name}


def generate(context: TaskContext, *, session: str, shard: int, files: int) -> dict[str, int]:
    """Write `files` small gzipped pages of text as `raw/SHARD/...`: the same for the same shard."""
    rng = random.Random(shard)
    context.client.attach(session).write_many(
        (f"raw/{shard:05}/{number:06}.txt.gz", page(rng)) for number in range(files)
    )
    return {"files": files}


def process(context: TaskContext, *, session: str, source: str, shard: int) -> dict[str, Any]:
    """Turn one shard of files into records."""
    job = context.client.attach(session)
    tree = context.client.open_dataset(source) if source else job
    records = {"train": bytearray(), "valid": bytearray()}
    counts = {"files": 0, "skipped": 0, "duplicates": 0, "train": 0, "valid": 0}
    seen: set[bytes] = set()
    for info, data in tree.read_many(tree.files(f"raw/{shard:05}/")):
        counts["files"] += 1
        try:
            words = clean(unzip(data).decode("utf-8", errors="replace"))
        except (OSError, EOFError, zlib.error, ValueError) as error:
            counts["skipped"] += 1
            context.log(f"{info.path} is skipped: {error}")
            continue
        digest = hashlib.sha256(" ".join(words).encode()).digest()
        if digest in seen:
            counts["duplicates"] += 1
            continue
        seen.add(digest)
        part = "valid" if int.from_bytes(digest[:4], "big") < VALID_SHARE * 2**32 else "train"
        for number, chunk in enumerate(split(words)):
            example = encode_example(
                {"text": " ".join(chunk), "path": info.path, "chunk": number, "words": len(chunk)}
            )
            records[part] += frame(example)
            counts[part] += 1
    job.write_many(  # level 1: a fifth larger than by default, six times as fast
        (f"tfrecord/{part}-{shard:05}.tfrecord.gz", gzip.compress(data, compresslevel=1, mtime=0))
        for part, data in records.items()
    )
    return counts


def commit(context: TaskContext, *, session: str) -> dict[str, int]:
    """Make all records one version."""
    job = context.client.attach(session)
    request_id = str(uuid.uuid5(uuid.NAMESPACE_URL, context.task))
    return {"version": job.commit("text to TFRecord", request_id=request_id).number}


def unzip(data: bytes) -> bytes:
    """A gzip file's content, refused beyond `UNZIPPED_BYTES_MAX` (a bomb).

    Raises:
        ValueError: it is larger.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        content = file.read(UNZIPPED_BYTES_MAX + 1)
    if len(content) > UNZIPPED_BYTES_MAX:
        raise ValueError(f"it unzips to more than {UNZIPPED_BYTES_MAX >> 20} MiB")
    return content


def clean(text: str) -> list[str]:
    """Words and punctuation: without markup, entities resolved, NFKC, lower case."""
    plain = unicodedata.normalize("NFKC", html.unescape(_TAG.sub(" ", visible(text))))
    return _WORD.findall(plain.lower())


def visible(text: str) -> str:
    """Without comments, scripts and styles; one that never ends takes the rest with it."""
    shown, at = [], 0
    while begin := _HIDDEN.search(text, at):
        shown.append(text[at : begin.start()])
        end = _HIDDEN_ENDS[(begin[1] or "").lower()].search(text, begin.end())
        if end is None:
            break
        at = end.start()
    else:
        shown.append(text[at:])
    return "".join(shown)


def split(words: list[str]) -> list[list[str]]:
    """Pieces of at most `CHUNK_WORDS` words, ended at the last full stop of their second half."""
    pieces, start = [], 0
    while start < len(words):
        end = min(start + CHUNK_WORDS, len(words))
        if end < len(words):
            for at in range(end, start + CHUNK_WORDS // 2, -1):
                if words[at - 1] in ".!?":
                    end = at
                    break
        pieces.append(words[start:end])
        start = end
    return pieces


def page(rng: random.Random) -> bytes:
    """One gzipped page of some 16 kB: words with frequencies after Zipf, markup, entities."""
    vocabulary, cumulative = _words()
    paragraphs = []
    for _ in range(rng.randint(16, 40)):
        words = rng.choices(vocabulary, cum_weights=cumulative, k=rng.randint(30, 120))
        for at in range(9, len(words), rng.randint(8, 16)):
            words[at] += "."
        paragraphs.append(f"<p class=x>{' '.join(words)} &amp; caf&eacute;.</p>")
    script = f"<script>page({paragraphs[0].count(' ')} < {len(paragraphs)});</script>"
    text = f"<html><head>{script}</head><body>{''.join(paragraphs)}</body></html>"
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)


@lru_cache
def _words() -> tuple[list[str], list[float]]:
    rng = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(_VOCABULARY)]
    return words, list(accumulate(1 / (rank + 3) for rank in range(_VOCABULARY)))
