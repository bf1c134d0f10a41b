"""Readers: the bytes of one file of a package, to a list of paragraphs of plain text."""

import bz2
import gzip
import html
import json
import re
import struct

COMMENT = re.compile(r"<!--.*?-->|<\?.*?\?>|<!\[CDATA\[|\]\]>", re.S)
# What a page repeats or what is no prose: scripts, navigation, program listings, screens.
DROPPED = re.compile(
    r"<(script|style|head|nav|header|footer|aside|pre|form|noscript|svg|math|select|button|textarea|"
    r"info|screen|programlisting|synopsis|cmdsynopsis|bookinfo|articleinfo|revhistory|legalnotice|"
    r"indexterm|media|figure|literallayout|remark)\b(?:[^>/]|/(?!>))*>.*?</\1\s*>", re.S | re.I)
NAVIGATION = re.compile(
    r"<div\b[^>]*class=\"[^\"]*(?:navheader|navfooter|toc|titlepage-nav|related|sphinxsidebar|footer|"
    r"wy-nav|admonition-navigation)\b[^\"]*\"[^>]*>.*?</div>|<ul\b[^>]*class=\"docnav\"[^>]*>.*?</ul>", re.S | re.I)
# Tags within a paragraph; every other tag ends one.
INLINE = set("""
a abbr accel acronym action anchor app application b bdi bdo big cite citetitle classname cmd code command
computeroutput constant del dfn em email emphasis envar errorname file filename firstname firstterm font footnoteref
foreignphrase function glossterm gui guibutton guiicon guilabel guimenu guimenuitem guiseq guisubmenu hi i img
inlinemediaobject input ins interface kbd key keycap keycode keycombo keyseq keysym label link literal mark
menuchoice methodname mousebutton nobr option output package parameter personname phrase productname prompt property
q quote replaceable returnvalue s samp sgmltag shortcut small span strong structfield structname sub sup surname
symbol sys systemitem tag token trademark tt type u ulink uri userinput var varname wbr wordasword xref""".split())
EMPTY_LINK = re.compile(r"<(?:link|xref)\b[^>]*/>")
TAG = re.compile(r"<[/!]?([a-zA-Z][\w:-]*)[^>]*>")
ENTITY = re.compile(r"&([a-zA-Z][\w.-]*);")
HOLE = "\ue000"


def decode(data):
    """UTF-8, or what the page says it is in; None where it is neither."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        said = re.search(rb"(?:charset|encoding)=[\"']?([\w-]+)", data[:2000], re.I)
        try:
            return data.decode(said.group(1).decode()) if said else None
        except (LookupError, UnicodeDecodeError):
            return None


def unpack(name, data):
    if name.endswith(".gz"):
        return gzip.decompress(data)
    if name.endswith(".bz2"):
        return bz2.decompress(data)
    return data


def spaced(text):
    return " ".join(text.split())


def split(text):
    paragraphs = []
    for piece in text.split("\n\n"):
        piece = spaced(piece)
        if piece:
            paragraphs.append(piece)
    return paragraphs


def markup(text):
    text = COMMENT.sub("", text)
    text = DROPPED.sub("\n\n", text)
    text = NAVIGATION.sub("\n\n", text)
    # Line breaks of the source mean nothing; from here "\n\n" is the end of a paragraph.
    text = spaced(text)
    text = TAG.sub(lambda m: "" if m.group(1).lower() in INLINE else "\n\n", text)
    text = html.unescape(text)
    # What html.unescape does not know is a project's own entity: "&konsole;" stands for a name.
    text = ENTITY.sub(lambda m: m.group(1)[:1].upper() + m.group(1)[1:], text)
    return [p for p in split(text) if HOLE not in p]


def read_html(data):
    text = decode(data)
    if text is None:
        return []
    for start, end in (('id="DisplayArea"', 'id="SearchFrame"'), ('role="main"', '<div class="sphinxsidebar"')):
        a = text.find(start)
        if a >= 0:
            a = text.find(">", a) + 1
            b = text.find(end, a)
            text = text[a:b if b > 0 else len(text)]
            text = re.sub(r"<div[^>]*$", "", text)
    return markup(text)


def read_xml(data):
    """DocBook and Mallard. A link without text is a hole: its paragraph is dropped."""
    text = decode(data)
    if text is None:
        return []
    start = re.search(r"<(?:book|article|page|chapter|sect1|refentry|part|appendix|section|preface)\b", text)
    if not start:
        return []
    text = EMPTY_LINK.sub(HOLE, text[start.start():])
    return markup(text)


ROFF_NAMES = {"aq": "'", "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "bu": "•", "em": "—", "en": "–", "co": "©",
              "dq": '"', "hy": "-", "ha": "^", "ti": "~", "rs": "\\", "Fo": "«", "Fc": "»", "Bq": "„", "mu": "×",
              "->": "→", "<-": "←", "+-": "±", "->": "→", ">=": "≥", "<=": "≤", "de": "°", "sq": "□", "ga": "`"}


def roff_escape(match):
    s = match.group(1)
    if s[0] in "f*snmFMgkVY":
        return ""
    if s[0] == "[":
        name = s[1:-1]
        if re.fullmatch(r"u[0-9A-F]{4,6}", name):
            return chr(int(name[1:], 16))
        return ROFF_NAMES.get(name, "")
    if s[0] == "(":
        return ROFF_NAMES.get(s[1:], "")
    return {"-": "-", "e": "\\", "\\": "\\", " ": " ", "~": " ", "0": " ", ".": ".", "'": "’", "`": "‘", "t": " "}.get(s, "")


ROFF = re.compile(r"\\([fFnm*gkVY](?:\[[^]]*\]|\(..|.)|s[-+]?\d+|s\[[^]]*\]|\[[^]]*\]|\(..|[hvwlLoDbXZ]'[^']*'|.)")
ROFF_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"|(\S+)')
FONTS = {"B", "I", "SM", "SB", "R"}
MIXED = {"BR", "RB", "IR", "RI", "BI", "IB"}


def read_man(data):
    text = decode(data)
    if text is None:
        try:
            text = data.decode("euc-jp")
        except UnicodeDecodeError:
            return []
    if re.search(r"^\.(?:Dd|so) ", text, re.M):
        return []
    paragraphs, line, skip, term = [], [], None, False

    def flush():
        whole = spaced(ROFF.sub(roff_escape, " ".join(line)).replace("\\", ""))
        if whole:
            paragraphs.append(whole)
        line.clear()

    for raw in text.split("\n"):
        raw = raw.split('\\"')[0].rstrip()
        macro = re.match(r"[.'][ \t]*([a-zA-Z]+)", raw)
        name = macro.group(1) if macro else ""
        if skip:
            if name in skip or (skip == ("..",) and raw.startswith("..")):
                skip = None
            continue
        if raw[:1] in (".", "'") and not macro:
            continue
        if not macro:
            if not raw:
                flush()
            else:
                line.append(raw)
                if term:
                    flush()
                    term = False
            continue
        arguments = [a.replace('""', '"') or b for a, b in ROFF_ARGUMENT.findall(raw[macro.end():])]
        if name in FONTS or name in MIXED:
            if arguments:
                line.append(("" if name in MIXED else " ").join(arguments))
                if term:
                    flush()
                    term = False
        elif name in ("nf", "EX", "SY"):
            flush()
            skip = {"nf": ("fi",), "EX": ("EE",), "SY": ("YS",)}[name]
        elif name == "TS":
            flush()
            skip = ("TE",)
        elif name in ("de", "ig"):
            skip = ("..",)
        elif name in ("SH", "SS"):
            flush()
            line.append(" ".join(arguments))
            flush()
        elif name in ("UE", "ME") and arguments and line:
            line[-1] += arguments[0]
        elif name in ("TP", "TQ"):
            flush()
            term = True
        elif name in ("PP", "P", "LP", "IP", "HP", "sp", "br", "RS", "RE", "TH"):
            flush()
    flush()
    return paragraphs


MARK = re.compile(r"%[-+ #0-9.$']*(?:l|ll|h|z|j)?[a-zA-Z@]|%\(?\w+\)?s?|\{\w*\}|<[^<>]*>|\\[nt]|\$\w+|\$\{")


def read_mo(data):
    """Sentences of a gettext catalogue that differ from the original; those with place holders are dropped."""
    if data[:4] == b"\xde\x12\x04\x95":
        order = "<"
    elif data[:4] == b"\x95\x04\x12\xde":
        order = ">"
    else:
        return []
    count, source, target = struct.unpack_from(order + "III", data, 8)
    paragraphs = []
    for i in range(count):
        n, at = struct.unpack_from(order + "II", data, source + 8 * i)
        m, to = struct.unpack_from(order + "II", data, target + 8 * i)
        if n == 0 or m < 30:
            continue
        original = data[at:at + n].split(b"\0")[0].split(b"\4")[-1]
        translated = data[to:to + m].split(b"\0")[-1]
        if original == translated:
            continue
        try:
            translated = translated.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if translated.count("&") == 1 or re.search(r"\w_\w|(^| )_\w", translated):
            continue
        translated = html.unescape(translated)
        if "<" in translated:
            translated = re.sub(r"</?\w+[^>]*>", "", translated)
        if MARK.search(translated):
            continue
        paragraphs.extend(split(translated))
    return paragraphs


PLURAL = re.compile(r"\{\{(?:PLURAL|GENDER|GRAMMAR|plural|gender):[^{}|]*\|(?:[^{}|]*\|)*([^{}|]*)\}\}")
WIKILINK = re.compile(r"\[\[(?:[^][|]*\|)?([^][|]*)\]\]")
WEBLINK = re.compile(r"\[(?:https?:)?//\S+ ([^][]*)\]")


def read_wiki_json(data):
    """Interface messages of MediaWiki; those with parameters are dropped."""
    paragraphs = []
    for key, value in json.loads(data).items():
        if key.startswith("@") or not isinstance(value, str):
            continue
        value = PLURAL.sub(r"\1", value)
        value = WEBLINK.sub(r"\1", WIKILINK.sub(r"\1", value)).replace("'''", "").replace("''", "")
        value = html.unescape(re.sub(r"</?\w+[^>]*>", "", value))
        for piece in re.split(r"\n+[*#:=]*|^[*#:=]+", value):
            if not re.search(r"[${}\[\]|=<>\\]", piece) and len(piece.encode()) >= 24:
                paragraphs.extend(split(piece.strip(" =")))
    return paragraphs


def read_fortunes(data):
    text = decode(data)
    if text is None:
        return []
    text = re.sub(r".\x08|\x1b\[[0-9;]*m", "", text)
    return [spaced(p) for p in re.split(r"^%+.*$", text, flags=re.M) if p.strip()]


def read_text(data):
    text = decode(data)
    if text is None:
        return []
    return split(re.sub(r"\n[ \t\r]*\n", "\n\n", text))


def read_markdown(data):
    text = decode(data)
    if text is None:
        return []
    text = re.sub(r"\[([^][]*)\]\([^()]*\)", r"\1", text)
    text = re.sub(r"\[([^][]*)\]\[[^][]*\]", r"\1", text.replace("\r", ""))
    text = re.sub(r"^(?:#+|>) ?|\*\*|__|\\(?=[^\w\s])", "", text, flags=re.M)
    text = re.sub(r"(?<!\w)[*_](?=\S)|(?<=\S)[*_](?!\w)", "", text)
    return split(re.sub(r"\n[ \t]*\n", "\n\n", text))


READERS = {"html": read_html, "xml": read_xml, "man": read_man, "mo": read_mo, "wiki-json": read_wiki_json,
           "fortunes": read_fortunes, "text": read_text, "markdown": read_markdown}
