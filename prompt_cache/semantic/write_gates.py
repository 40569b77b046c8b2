"""Which answers must not be kept for others: unfinished ones, those that soon are wrong, and those that are somebody's own.

Words are known in English, German, Spanish and Chinese, and those for "today" and "now" in a few languages more. A refusal costs a hit; a
kept answer that should not be costs trust: what is doubtful is not kept.
"""

from __future__ import annotations

import re

from prompt_cache.semantic.normalise import normalise
from prompt_cache.semantic.parsing.parse import MAX_CHARS

# Of the sealed entry, unless the caller has another cap.
DEFAULT_MAX_BYTES = 64 * 1024


def _either(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_VOLATILE = _either(
    r"\b(?:to-?day|to-?night|tomorrow|yesterday|now|nowadays|currently|recent|recently|lately|latest|newest|up-to-date|upcoming|at present|presently|so far|just happened)(?:'s|’s)?\b",
    r"\bcurrent\b(?! (?:divider|source|density|mirror|loop|directory|working|branch|limit|transformer))",
    r"\b(?:this|next|last|past|coming) (?:few )?(?:second|minute|hour|morning|afternoon|evening|night|day|week|weekend|month|quarter|season|year|decade|monday|tuesday|wednesday|thursday|friday|saturday|sunday|january|february|march|april|may|june|july|august|september|october|november|december|summer|winter|spring|autumn|fall)s?\b",
    r"\b(?:in|within) (?:the )?(?:next|last|past)\b|\bthese days\b|\b(?:\d+|a|an|one|two|three|few|couple of) (?:second|minute|hour|day|week|month|year)s? (?:ago|from now)\b",
    r"\bat the moment\b|\bat this (?:time|moment|point)\b|\bright away\b|\bas of\b|\bso far this\b|\bstill (?:open|alive|available|valid|in stock)\b|\balready (?:open|out|released|available)\b",
    r"\b(?:weather|forecast|temperature outside|will it (?:rain|snow)|headlines?|breaking news|news|traffic jams?|live score|final score|standings|results? of (?:the|last) (?:game|match|race|election))\b",
    r"\b(?:prices?|stock (?:price|quote|market)|share price|stocks?|quotes? for|exchange rates?|interest rates?|mortgage rates?|how much (?:do|does|is|are)\b.{0,60}\bcosts?|how expensive|bitcoin|ethereum|nasdaq|dow jones|s&p 500|dax)\b",
    r"\bwhat (?:time|day|date|year|month) is it\b|\bwhat(?:'s|’s| is) the (?:time|date|day)\b|\bopen (?:now|today|tonight)\b|\bin stock\b|\bsold out\b|\bnear me\b|\bnearby\b|\bnearest\b|\bclosest .{0,40}\bto me\b",
    # German
    r"\b(?:heute|heutig\w*|morgen früh|übermorgen|gestern|vorgestern|jetzt|derzeit|aktuell\w*|momentan\w*|gerade eben|neueste[nrs]?|neulich|kürzlich|zurzeit|gegenwärtig\w*|bislang)\b",
    r"\b(?:diese|dieser|diesen|dieses|nächste[nrs]?|letzte[nrs]?|kommende[nrs]?|vergangene[nrs]?) (?:sekunde|minute|stunde|morgen|abend|nacht|tag|woche|wochenende|monat|quartal|jahr|montag|dienstag|mittwoch|donnerstag|freitag|samstag|sonntag|sommer|winter|herbst|frühling)\w*\b",
    r"\b(?:wetter\w*|wettervorhersage|nachrichten|schlagzeilen|aktienkurs\w*|börsenkurs\w*|wechselkurs\w*|zinssatz|preise?|kurs von|(?:was|wie viel|wieviel) kostet|wie spät ist es|wie viel uhr|spielstand|stau|in meiner nähe|geöffnet)\b",
    r"\b(?:wird|ist|hat) morgen\b|\bmorgen (?:regnen|schneien|geöffnet|offen)\b|\bvor (?:einer|einem|zwei|drei|\d+) (?:stunde|tag|woche|monat|jahr)\w*\b",
    # Spanish
    r"\b(?:hoy|ahora|ahora mismo|ayer|anteayer|anoche|pasado mañana|actual|actuales|actualmente|actualidad|últim[oa]s? (?:noticias|hora|semanas?|mes|meses|años?|días?|versión)|recientemente|reciente|recientes|todavía abiert\w*|de momento|hasta ahora)\b",
    r"\b(?:est[ea]|próxim[oa]|pasad[oa]|siguiente) (?:mañana|tarde|noche|semana|mes|año|lunes|martes|miércoles|jueves|viernes|sábado|domingo|verano|invierno|fin de semana)\b|\b(?:semana|mes|año) (?:pasad[oa]|que viene|próxim[oa])\b|\bmañana por la\b|\bhace \w+ (?:días?|semanas?|mes(?:es)?|años?|horas?)\b",
    r"\b(?:tiempo hace|tiempo hará|pronóstico|noticias|precios?|cuánto (?:cuesta|cuestan|vale|valen)|cotización|tipo de cambio|bolsa|qué hora es|qué día es|marcador|cerca de mí|cerca de aquí)\b",
    # Chinese
    r"今天|今日|今晚|今早|今年|明天|明日|明年|后天|昨天|昨日|昨晚|前天|去年|现在|目前|当前|眼下|此刻|刚才|刚刚|最近|最新|近期|近日|如今|本周|这周|上周|下周|这个月|本月|上个月|下个月|周末|实时|天气|气温|新闻|头条|股价|股票|汇率|价格|多少钱|几点了|比分|附近|营业",
    # Only what is most frequent elsewhere.
    r"\b(?:aujourd'hui|aujourd’hui|maintenant|actuellement|demain|hier soir|météo|oggi|adesso|domani|ieri|hoje|agora|amanhã|ontem|vandaag|morgen|gisteren|nu|сегодня|сейчас|завтра|вчера|dziś|teraz|jutro|bugün|şimdi|yarın)\b|今(?:日|すぐ)|明日|오늘|지금|내일",
)  # fmt: skip

_CONTACT = _either(
    r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+",
    # A telephone number: a plus or a zero in front, or groups; dates and years have fewer digits.
    r"(?<![\w.,])\+\d[\d\s().-]{6,18}\d|(?<![\w.,:-])\(?0\d{1,4}\)?[\s/.-]?\d[\d\s.-]{4,14}\d(?![\w,:-])|(?<![\w.,-])\(?\d{3}\)?[\s.-]\d{3}[\s.-]\d{4}(?![\w-])|(?<!\d)1[3-9]\d{9}(?!\d)",
    # Account and card numbers.
    r"\b[A-Z]{2}\d{2}(?: ?[A-Z\d]{4}){3,7}(?: ?[A-Z\d]{1,3})?\b|(?<!\d)(?:\d{4}[ -]){3}\d{4}(?!\d)|(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)",
)
_OWN_THINGS = (
    "account|accounts|balance|order|orders|invoice|invoices|bill|parcel|package|delivery|shipment|booking|reservation|appointment|appointments|flight|ticket|tickets|contract"
    "|policy|salary|application|refund|payment|payments|profile|data|emails?|inbox|messages|calendar|schedule|location|address|name|birthday|age|transactions?|meeting"
    "|meetings|subscription|points|grades?|exam results?|test results?|deposit|passport|visa|phone number|user ?id|username"
)
_PERSONAL = _either(
    r"\bmy (?:full |first |last |user ?)?name(?:'s|’s| is)\b|\b(?:i am|i'm|i’m) (?:called|\d{1,3} years old|from|a patient|diagnosed)|\bi (?:was born|live) (?:on|in|at)\b|\bcall me [A-Z]",
    r"\b(?:order|invoice|ticket|tracking|customer|account|booking|reservation|policy|contract|reference|case|passport|licen[cs]e|member(?:ship)?|serial|card) ?(?:number|no\.?|nr\.?|id|#|code)? ?[:#]? ?(?=[A-Z\d-]*\d)[A-Z\d][A-Z\d-]{4,}\b",
    rf"^(?!.*\bhow (?:do|can|should|would|could|to|might)\b).*\b(?:my|our) (?:last |next |latest |own |current |\w+ )?(?:{_OWN_THINGS})\b",
    r"\b(?:how much|how many|what|when|whom?|where) (?:do|did|have|will|am) i (?:owe|own|owed|have|paid|pay|ordered?|booked|buy|bought|spent|earn|meet)\b|\bwho am i\b|\bwhere am i\b|\bremember (?:me|that i|what i)\b|\b(?:i|we) (?:told|said|asked|mentioned)\b|\bdid (?:i|we) (?:say|tell|ask|mention)\b",
    # German
    r"\bich hei(?:ß|ss)e\b|\bmein name ist\b|\bich bin \d{1,3}(?: jahre)?\b|\bich wohne in\b|\bich bin (?:am .{1,20} )?geboren\b",
    r"\b(?:bestell|rechnungs|kunden|konto|vertrags|sendungs|vorgangs|buchungs|ausweis|mitglieds|ticket)(?:nummer|nr\.?|-nr\.?) ?:? ?(?=[a-z\d-]*\d)[a-z\d][a-z\d-]{3,}",
    r"^(?!.*\bwie (?:kann|ändere|lösche|kündige|schließe|stelle|bekomme|beantrage)\b).*\bmein(?:e[nmrs]?)? (?:konto|kontostand|bestellung|rechnung|paket|lieferung|buchung|termin|flug|vertrag|gehalt|antrag|profil|daten|adresse|geburtstag|nachrichten)\w*\b",
    # Spanish
    r"\bme llamo\b|\bmi nombre es\b|\btengo \d{1,3} años\b|\bvivo en\b|\bnací (?:el|en)\b",
    r"\b(?:pedido|factura|cuenta|cliente|reserva|contrato|envío)(?: número| nº| n\.º| no\.)? ?:? ?(?=[a-z\d-]*\d)[a-z\d][a-z\d-]{4,}",
    r"^(?!.*\bcómo\b).*\bmis? (?:cuenta|saldo|pedidos?|facturas?|paquete|envío|reserva|cita|vuelo|contrato|sueldo|solicitud|perfil|datos|dirección|cumpleaños|mensajes)\b",
    # Chinese
    r"我叫|我的名字是|我今年\d+岁|我住在|(?:订单|账号|账户|卡号|身份证|客户|单)号?[:：]? ?[A-Za-z\d-]{5,}",
    r"^(?!.*(?:怎么|如何|怎样)).*我的(?:账户|账号|余额|订单|发票|快递|包裹|预订|预约|航班|合同|工资|申请|资料|数据|地址|生日|消息)",
)  # fmt: skip
_VOLATILE_ANSWER = _either(
    r"\bas of (?:\w+ ){0,3}(?:\d|today|now|my|this|january|february|march|april|may|june|july|august|september|october|november|december)",
    r"\b(?:knowledge cut-?off|last (?:knowledge )?update|training data (?:goes|ends|only)|real-time|today(?:'s|’s| is)|right now|at this moment|yesterday|tomorrow)\b",
    r"(?<![\d:.])(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?![\d:])|\b\d{1,2} ?[ap]\.?m\b|\b\d{1,2} uhr\b|o'clock",
    r"\b(?:stand (?:vom )?\d|stand: |heute (?:ist|beträgt)|derzeit|aktuell (?:liegt|beträgt)|a fecha de|a día de hoy|hoy es|actualmente|截至|目前|今天|现在)\b|截至|截止到",
)
_PERSONAL_ANSWER = _either(
    r"\b(?:hello|hi|dear|hallo|liebe[r]?|hola|estimad[oa]),? [A-Z][a-z]+[,!]",
    r"\byour (?:account|order|invoice|booking|balance|card) (?:number|id|no\.?) is\b",
)


def reason_not_to_keep(
    question: str,
    answer: str,
    *,
    finish_reason: str | None,
    num_bytes: int,
    max_bytes: int = DEFAULT_MAX_BYTES,
    has_tools: bool = False,
    is_allowed: bool = True,
) -> str | None:
    """Why an answer must not be kept for other questions.

    Args:
        question: The turn that is asked; earlier turns are the scope's.
        finish_reason: Of the answer, as the API names it; only "stop" is a finished answer.
        num_bytes: Size of the entry.
        max_bytes: Largest entry that is kept.
        has_tools: Whether tools were offered or called.
        is_allowed: Whether the answer is determined by its request, or the policy keeps those that are not.

    Returns:
        A stable name for a label of a metric; None if it may be kept. Costs grow with the answer, about 5 ms for 1,000 words.
    """
    if finish_reason != "stop":
        return "not_finished"
    if has_tools:
        return "tools"
    if not is_allowed:
        return "not_deterministic"
    if num_bytes > max_bytes:
        return "too_large"
    if len(question) > MAX_CHARS:
        return "question_too_long"
    asked, answered = normalise(question), normalise(answer)
    if not asked or not answered:
        return "empty"
    if _CONTACT.search(asked) or _PERSONAL.search(asked):
        return "personal_question"
    if _VOLATILE.search(asked):
        return "volatile_question"
    if _CONTACT.search(answered) or _PERSONAL_ANSWER.search(answered):
        return "personal_answer"
    if _VOLATILE_ANSWER.search(answered):
        return "volatile_answer"
    return None
