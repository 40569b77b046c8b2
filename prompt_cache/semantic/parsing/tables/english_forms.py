"""Base forms of English words, by rule and by a list of those that follow none."""

from __future__ import annotations

from functools import lru_cache

from prompt_cache.semantic.parsing.tables.english_misspellings import ENGLISH_MISSPELLINGS

# Base form first.
_IRREGULAR = """
arise arose arisen; awake awoke; be been being; bear bore borne; beat beaten; become became; begin began begun; bend bent; bind bound; bite bit bitten; bleed bled
blow blew blown; break broke broken; breed bred; bring brought; build built; burn burnt; buy bought; catch caught; choose chose chosen; cling clung
come came; creep crept; cut; deal dealt; dig dug; draw drew drawn; dream dreamt; drink drank drunk; drive drove driven; eat ate eaten; fall fell fallen
feed fed; feel felt; fight fought; find found; flee fled; fly flew flown flies; forbid forbade forbidden; forget forgot forgotten; forgive forgave forgiven
freeze froze frozen; get got gotten; give gave given; go went gone goes; grow grew grown; hang hung; hear heard; hide hid hidden; hold held; keep kept
kneel knelt; know knew known; lay laid; lead led; lean leant; leap leapt; learn learnt; leave left; lend lent; lose lost; make made; mean meant; meet met
mistake mistook mistaken; pay paid; prove proven; ride rode ridden; ring rang rung; rise rose risen; run ran; say said; see saw seen; seek sought
sell sold; send sent; shake shook shaken; shine shone; shoot shot; show shown; shrink shrank shrunk; sing sang sung; sink sank sunk; sit sat; sleep slept
slide slid; smell smelt; speak spoke spoken; spell spelt; spend spent; spill spilt; spin spun; spoil spoilt; stand stood; steal stole stolen
stick stuck; sting stung; strike struck; swear swore sworn; sweep swept; swim swam swum; swing swung; take took taken; teach taught; tear tore torn
tell told; think thought; throw threw thrown; understand understood; wake woke woken; wear wore worn; weave wove woven; weep wept; win won; wind wound
withdraw withdrew withdrawn; write wrote written; do did done does; have had has
"""
_IRREGULAR_NOUNS = """
child children; foot feet; goose geese; man men; mouse mice; person people; tooth teeth; woman women; ox oxen; leaf leaves; loaf loaves; knife knives
wife wives; life lives; half halves; shelf shelves; wolf wolves; thief thieves; calf calves; index indices; matrix matrices; vertex vertices
analysis analyses; crisis crises; basis bases; thesis theses; hypothesis hypotheses; diagnosis diagnoses; criterion criteria; phenomenon phenomena
bacterium bacteria; datum data; medium media; cactus cacti; fungus fungi; nucleus nuclei; stimulus stimuli; syllabus syllabi; appendix appendices
species; series; news; means; physics; mathematics; gas gases; bus buses; potato potatoes; tomato tomatoes; hero heroes; echo echoes
"""
_BASE_OF: dict[str, str] = {
    form: words[0] for entry in (_IRREGULAR + _IRREGULAR_NOUNS).replace("\n", ";").split(";") if (words := entry.split()) for form in words
}
_PLURALS = frozenset(_IRREGULAR_NOUNS.replace(";", " ").split())
# Past forms that are not also the base form; "read", "put" and their like tell nothing.
_PAST_LIST = """
arose awoke bore beat became began bit bled blew broke bred brought built bought caught chose came crept dealt dug drew drank
drove ate fell fed felt fought found fled flew forbade forgot forgave froze got gave went grew hung heard hid held kept knew laid
led lent lost made meant met paid rode rang rose ran said saw sought sold sent shook shone shot shrank sang sank sat slept slid
spoke spent spun stood stole stuck struck swore swept swam took taught tore told thought threw understood woke wore wept won
withdrew wrote
"""
_PAST = frozenset(_PAST_LIST.split())
_BRITISH = {
    "tyre": "tire", "cheque": "check", "programme": "program", "aeroplane": "airplane", "grey": "gray", "plough": "plow", "jewellery": "jewelry",
    "pyjamas": "pajamas", "aluminium": "aluminum", "maths": "math", "mum": "mom", "sceptic": "skeptic", "kerb": "curb", "storey": "story",
    "draught": "draft", "mould": "mold", "moulds": "mold", "mouldy": "moldy", "licence": "license", "defence": "defense", "offence": "offense",
    "pretence": "pretense", "practise": "practice", "judgement": "judgment", "acknowledgement": "acknowledgment", "cosy": "cozy", "catalogue": "catalog",
    "dialogue": "dialog", "analogue": "analog", "doughnut": "donut", "skilful": "skillful", "fulfil": "fulfill", "enrol": "enroll", "instal": "install",
    "yoghurt": "yogurt", "moustache": "mustache", "manoeuvre": "maneuver", "oestrogen": "estrogen", "diarrhoea": "diarrhea", "anaemia": "anemia",
    "foetus": "fetus", "paediatric": "pediatric", "encyclopaedia": "encyclopedia", "sulphur": "sulfur", "whisky": "whiskey", "ageing": "aging",
    "smoulder": "smolder", "artefact": "artifact", "tonne": "ton", "gaol": "jail", "disc": "disk", "kilogramme": "kilogram", "gramme": "gram",
}  # fmt: skip
_VOWELS = frozenset("aeiou")
# What these end in is no ending.
_WHOLE_LIST = """
this his is was has does us bus gas yes plus minus virus status campus focus bonus census corpus process access address class
glass grass mass pass press business illness kindness during thing nothing something anything everything king ring sing bring
spring string wing bed red need feed seed speed breed indeed exceed succeed proceed bleed weed reed hundred sacred naked wicked
kindred always perhaps lens atlas christmas texas
"""
_WHOLE = frozenset(_WHOLE_LIST.split())

# Ending of a noun, how long the noun must be, what the verb may end in instead. The first that fits counts.
_NOUN_ENDINGS = (
    ("ation", 9, ("", "e", "ate")),
    ("ion", 8, ("", "e")),
    ("ment", 9, ("",)),
    ("val", 7, ("ve",)),
    ("ance", 9, ("", "e")),
    ("ence", 9, ("", "e")),
)
# They mean something else than the adjective they seem to come from, or come from none.
_NO_ADVERBS = frozenset(
    {"hardly", "lately", "nearly", "shortly", "scarcely", "barely", "family", "supply", "directly", "assembly", "monopoly"}
)


@lru_cache(maxsize=4096)
def english_base_forms(word: str) -> tuple[str, ...]:
    """A lower-case word and what it may be a form of: plural, tense, noun of a verb, British spelling."""
    found = dict.fromkeys([word])
    if word in ENGLISH_MISSPELLINGS:
        found[ENGLISH_MISSPELLINGS[word]] = None
    for form in _american(word):
        found[form] = None
    for form in tuple(found):
        if form in _BASE_OF:
            found[_BASE_OF[form]] = None
        elif form not in _WHOLE and len(form) > 3:
            found.update(dict.fromkeys(_without_endings(form)))
    for form in tuple(found):
        found.update(dict.fromkeys(_american(form)))
    return tuple(found)


def is_past(word: str) -> bool:
    """Whether a lower-case word is a past form, and no present one."""
    return word in _PAST or (word.endswith("ed") and len(word) > 4 and word not in _WHOLE)


def is_participle(word: str) -> bool:
    """Whether a lower-case word may be a past participle."""
    return is_past(word) or (word in _BASE_OF and word not in _PLURALS and _BASE_OF[word] != word and not word.endswith("s"))


def _american(word: str) -> list[str]:
    found = [_BRITISH[word]] if word in _BRITISH else []
    if len(word) > 4:
        if "our" in word[2:]:
            found.append(word[:2] + word[2:].replace("our", "or", 1))
        for british, american in (
            ("isation", "ization"),
            ("iser", "izer"),
            ("isers", "izers"),
            ("ising", "izing"),
            ("ised", "ized"),
            ("ises", "izes"),
            ("ise", "ize"),
            ("yse", "yze"),
            ("ysing", "yzing"),
            ("ysed", "yzed"),
        ):
            if word.endswith(british):
                found.append(word[: -len(british)] + american)
                break
        if word.endswith(("tre", "bre", "tres", "bres")):
            found.append(word.replace("tre", "ter").replace("bre", "ber"))
    return found


def _without_endings(word: str) -> list[str]:
    found: list[str] = []
    if word.endswith("ies") and len(word) > 4:
        found += [word[:-3] + "y", word[:-1]]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        found.append(word[:-1])
        if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
            found.append(word[:-2])
    if word.endswith("ied") and len(word) > 4:
        found.append(word[:-3] + "y")
    elif word.endswith("ed") and len(word) > 4:
        found += _stems(word[:-2])
    if word.endswith("ing") and len(word) > 5 and not _VOWELS.isdisjoint(word[:-3]):
        found += _stems(word[:-3])
    elif word.endswith("ings") and len(word) > 6:
        found += _stems(word[:-4])
    return found + _verbs_of_noun(word.removesuffix("s")) + _adjective_of_adverb(word)


def _verbs_of_noun(noun: str) -> list[str]:
    """What a noun of an action may be made of: installation, removal, payment."""
    for ending, min_len, replacements in _NOUN_ENDINGS:
        if noun.endswith(ending) and len(noun) >= min_len:
            return [noun.removesuffix(ending) + replacement for replacement in replacements]
    return []


def _adjective_of_adverb(word: str) -> list[str]:
    if not word.endswith("ly") or len(word) <= 6 or word in _NO_ADVERBS:
        return []
    return [word[:-3] + "y"] if word.endswith("ily") else [word[:-2]]


def _stems(stem: str) -> list[str]:
    found = [stem, stem + "e"]
    if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "aeiou":
        found.append(stem[:-1])
    return found
