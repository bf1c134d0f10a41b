"""Language codes: every source's own spelling, to BCP-47 (ISO 639-1 where there is one)."""

import re

# ISO 639-3 to ISO 639-1.
ISO = dict(pair.split(":") for pair in """
aar:aa abk:ab afr:af aka:ak amh:am ara:ar arg:an asm:as ava:av ave:ae aym:ay aze:az bak:ba bam:bm bel:be ben:bn
bis:bi bod:bo bos:bs bre:br bul:bg cat:ca ces:cs cha:ch che:ce chu:cu chv:cv cor:kw cos:co cre:cr cym:cy dan:da
deu:de div:dv dzo:dz ell:el eng:en epo:eo est:et eus:eu ewe:ee fao:fo fas:fa fij:fj fin:fi fra:fr fry:fy ful:ff
gla:gd gle:ga glg:gl glv:gv grn:gn guj:gu hat:ht hau:ha hbs:sh heb:he her:hz hin:hi hmo:ho hrv:hr hun:hu hye:hy
ibo:ig ido:io iii:ii iku:iu ile:ie ina:ia ind:id ipk:ik isl:is ita:it jav:jv jpn:ja kal:kl kan:kn kas:ks kat:ka
kau:kr kaz:kk khm:km kik:ki kin:rw kir:ky kom:kv kon:kg kor:ko kua:kj kur:ku lao:lo lat:la lav:lv lim:li lin:ln
lit:lt ltz:lb lub:lu lug:lg mah:mh mal:ml mar:mr mkd:mk mlg:mg mlt:mt mon:mn mri:mi msa:ms mya:my nau:na nav:nv
nbl:nr nde:nd ndo:ng nep:ne nld:nl nno:nn nob:nb nor:no nya:ny oci:oc oji:oj ori:or orm:om oss:os pan:pa pli:pi
pol:pl por:pt pus:ps que:qu roh:rm ron:ro run:rn rus:ru sag:sg san:sa sin:si slk:sk slv:sl sme:se smo:sm sna:sn
snd:sd som:so sot:st spa:es sqi:sq srd:sc srp:sr ssw:ss sun:su swa:sw swe:sv tah:ty tam:ta tat:tt tel:te tgk:tg
tgl:tl tha:th tir:ti ton:to tsn:tn tso:ts tuk:tk tur:tr twi:tw uig:ug ukr:uk urd:ur uzb:uz ven:ve vie:vi vol:vo
wln:wa wol:wo xho:xh yid:yi yor:yo zha:za zho:zh zul:zu
""".split())
# Members of a macrolanguage that stand for it, and old or private codes.
ISO.update(pair.split(":") for pair in """
arb:ar zsm:ms pes:fa lvs:lv ekk:et azj:az khk:mn npi:ne swh:sw uzn:uz plt:mg quy:qu gaz:om ydd:yi pbt:ps ory:or als:sq
nob:nb kmr:ku tgl:tl fuv:ff ayr:ay gug:gn knc:kr cmn:zh no:nb fil:tl iw:he in:id
""".split())
# The script that goes without saying.
DEFAULT = dict(pair.split(":") for pair in """
az:Latn bs:Latn uz:Latn sr:Cyrl ms:Latn mn:Cyrl kk:Cyrl tg:Cyrl tt:Cyrl ug:Arab crh:Latn ku:Latn tk:Latn ha:Latn
ace:Latn bjn:Latn ks:Arab kr:Latn min:Latn taq:Latn ar:Arab pa:Guru ky:Cyrl ro:Latn vi:Latn be:Cyrl mk:Cyrl iu:Cans
tzm:Tfng zgh:Tfng shi:Latn kab:Latn sat:Olck mni:Beng bo:Tibt la:Latn so:Latn ff:Latn wo:Latn sd:Arab
""".split())
SPECIAL = {"c": "en", "zh-hans": "zh-CN", "zh-hant": "zh-TW", "zh-cn": "zh-CN", "zh-tw": "zh-TW", "zh": "zh-CN",
           "cmn-hans": "zh-CN", "cmn-hant": "zh-TW", "pt-br": "pt-BR", "sr-ec": "sr", "sr-el": "sr-Latn",
           "be-tarask": "be-tarask", "bat-smg": "sgs", "zh-classical": "lzh", "zh-min-nan": "nan", "zh-yue": "yue",
           "fiu-vro": "vro", "roa-rup": "rup", "simple": None, "qqq": None, "qqx": None, "x-test": None,
           "zh-hk": None, "zh-sg": None, "zh-mo": None, "zh-my": None, "cz": "cs", "ga": "ga"}


def bcp47(code):
    """The tag of `code`, or None where the text would only repeat another language's (en-GB, formal German)."""
    code = code.strip().replace("_", "-")
    if "@" in code:
        code, variant = code.split("@", 1)
        script = {"latin": "Latn", "cyrillic": "Cyrl", "ijekavian": None, "ijekavianlatin": None}.get(variant)
        if not script:
            return None
        code += "-" + script
    low = code.lower()
    if low in SPECIAL:
        return SPECIAL[low]
    parts = low.split("-")
    language = ISO.get(parts[0], parts[0])
    if not re.fullmatch(r"[a-z]{2,3}", language):
        return None
    if language == "en" and len(parts) > 1:
        return None
    if language == "zh":
        return SPECIAL.get("zh-" + parts[1]) if len(parts) > 1 else "zh-CN"
    for part in parts[1:]:
        if len(part) == 4 and part.isalpha():
            script = part.title()
            return language if DEFAULT.get(language, "Latn") == script or language in SINGLE else language + "-" + script
        if part in ("formal", "informal", "rtl", "x") or len(part) > 4:
            return None
    return language


# Written in one script only, whatever a source says.
SINGLE = set("""ru uk bg el he hi bn ta te kn ml gu mr ne sa ja ko th lo km my ka hy am ti fa ur ps yi ce cv ba os si dz as or
mai bho awa mag hne gan yue lzh dv ab ady kbd xmf shn mhr mrj myv mdf udm kv koi sah tyv bxr kjh alt krc kum lez av lbe
inh dar ug ckb arz ary apc ajp acm acq aeb ars azb prs syr gez chr cr nqo zgh""".split())

FLORES_DEFAULT = {"zho_Hans": "zh-CN", "zho_Hant": "zh-TW", "yue_Hant": "yue"}


def flores(code):
    """`deu_Latn` to `de`."""
    if code in FLORES_DEFAULT:
        return FLORES_DEFAULT[code]
    language, script = code.split("_")
    tag = ISO.get(language, language)
    # Where FLORES has a language in two scripts, the rarer one is named.
    rare = {"ace_Arab", "arb_Latn", "bjn_Arab", "kas_Deva", "knc_Arab", "min_Arab", "taq_Tfng"}
    return tag + "-" + script if code in rare else tag
