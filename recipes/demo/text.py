"""From paragraphs to documents: what is dropped, what is a duplicate, where a document ends."""

import hashlib
import re

LONGEST, SHORTEST = 8000, 500
STRIP = re.compile(r"[\x00-@\[-`{-\x7f]+")
ASCII_LETTER = re.compile(r"[A-Za-z]")
BEYOND_ASCII = re.compile(r"[^\x00-\xbf]")
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
NOISE = re.compile(r"[\x00-\x1f!-/:-@\[-`{-~0-9]")
ENGLISH = set("the and of with this that you from which will are for by can your it to".split())
LIKE_ENGLISH = {"en", "sco", "jam", "pcm", "tpi", "bi", "kri", "code"}
SENTENCE_END = tuple(".!?:;。！？：；।။།؟…”\"»)）」។፡።՞:")


def key(paragraph):
    """What two near-duplicates share: letters, in lower case, without digits, spaces and ASCII punctuation."""
    text = STRIP.sub("", paragraph.lower())
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def is_short(paragraph):
    return len(paragraph) < (14 if CJK.search(paragraph) else 40) and not paragraph.endswith(SENTENCE_END)


def without_lists(paragraphs):
    """Three or more short pieces in a row are a table or a menu; short pieces at the end are links."""
    kept, run = [], []
    for p in paragraphs:
        if is_short(p):
            run.append(p)
            continue
        if len(run) < 3:
            kept += run
        else:
            kept.append(run[-1])
        run = []
        kept.append(p)
    return kept


def is_clean(paragraph):
    if len(paragraph) > 20000 or "\ufffd" in paragraph or "\ue000" in paragraph or "\x00" in paragraph:
        return False
    noise = len(NOISE.findall(paragraph))
    return noise * 4 <= len(paragraph) + 4


def looks_english(paragraph):
    words = re.findall(r"[a-z]+", paragraph.lower())
    if len(words) < 5:
        return False
    found = [w for w in words if w in ENGLISH]
    return len(found) >= 0.2 * len(words) and len(set(found)) >= 2


def beyond_ascii(paragraphs):
    """Whether a language is written in another script than Latin."""
    ascii_letters = other = 0
    for p in paragraphs:
        ascii_letters += len(ASCII_LETTER.findall(p))
        other += len(BEYOND_ASCII.findall(p)) * (3 if CJK.search(p) else 1)
    return other > ascii_letters


def is_foreign(paragraph, other_script):
    """In a language of another script, a paragraph that is mostly ASCII letters."""
    letters = len(ASCII_LETTER.findall(paragraph))
    other = len(BEYOND_ASCII.findall(paragraph)) * (3 if CJK.search(paragraph) else 1)
    if other_script:
        return letters > 1.5 * other
    return other > 1.5 * letters and other > 10


def cut(paragraph):
    """Pieces of at most LONGEST bytes, cut at spaces."""
    if len(paragraph.encode()) <= LONGEST:
        return [paragraph]
    pieces, piece, size = [], [], 0
    for word in paragraph.split(" "):
        n = len(word.encode()) + 1
        if size + n > LONGEST and piece:
            pieces.append(" ".join(piece))
            piece, size = [], 0
        piece.append(word)
        size += n
    pieces.append(" ".join(piece))
    return pieces


def documents(pages, shortest=SHORTEST):
    """Pages (lists of paragraphs) to texts of SHORTEST to LONGEST bytes; small pages that follow each other are joined."""
    text, size = [], 0
    for page in pages:
        for whole in page:
            for p in cut(whole):
                n = len(p.encode()) + 2
                if size + n > LONGEST and text:
                    yield "\n\n".join(text)
                    text, size = [], 0
                text.append(p)
                size += n
        if size >= shortest:
            yield "\n\n".join(text)
            text, size = [], 0
    if size >= 200 or (text and shortest < SHORTEST):
        yield "\n\n".join(text)


def order(text):
    """The place of a document: a hash of its text and of nothing else."""
    return hashlib.sha256(text.encode()).digest()
