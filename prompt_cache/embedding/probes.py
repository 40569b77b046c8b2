"""Sentences that an embedder is checked with: some that have nothing to do with each other, and some of four languages and three lengths."""

# ruff: noqa: RUF001 - Chinese has commas of its own

from __future__ import annotations

UNRELATED = (
    "How do I reset my password?",
    "The recipe needs two eggs and a cup of flour.",
    "Quantum computers factor large numbers.",
    "Der Zug nach Hamburg fährt um acht Uhr ab.",
)
"""No two of them mean anything near; a model that gives two of them almost the same vector tells nothing apart."""

_SHORT = {
    "en": "Which river is the longest in Africa?",
    "de": "Welcher Fluss ist der längste in Afrika?",
    "es": "¿Cuál es el río más largo de África?",
    "zh": "非洲最长的河是哪一条？",
}
_MIDDLE = {
    "en": "My order arrived yesterday with a broken screen, and the shop asks me to send it back at my own cost although the parcel was insured. "
    "Who has to pay for the return, and how long do I have to decide?",
    "de": "Meine Bestellung kam gestern mit einem gesprungenen Bildschirm an, und der Händler will, dass ich sie auf eigene Kosten zurückschicke, "
    "obwohl das Paket versichert war. Wer bezahlt die Rücksendung, und wie lange habe ich Zeit?",
    "es": "Mi pedido llegó ayer con la pantalla rota y la tienda quiere que lo devuelva pagando yo el envío, aunque el paquete estaba asegurado. "
    "¿Quién tiene que pagar la devolución y cuánto tiempo tengo para decidir?",
    "zh": "我的订单昨天到了，但是屏幕碎了。商店要我自己付钱寄回去，可是包裹买过保险。退货的费用应该由谁承担？我还有多少天可以决定？",
}
_LONG = {
    "en": "We run a small bakery with two ovens, four people and a van. On weekdays we bake about three hundred loaves and sell most of them before "
    "noon; on Saturdays it is twice as many, and the queue reaches the corner. The older oven is slow to heat and uses more gas every year, but it "
    "bakes the rye bread better than the new one, and our customers taste the difference. The landlord now offers us the empty shop next door for a "
    "moderate rent, with a contract of ten years. We could put a third oven there and a few tables, and sell coffee in the afternoon. Against it "
    "speaks that we would need a loan, two more people and somebody who looks after the books. What should we calculate before we decide, which "
    "figures of the last three years matter most, and what would you ask the bank and the landlord first?",
    "de": "Wir betreiben eine kleine Bäckerei mit zwei Öfen, vier Leuten und einem Lieferwagen. An Werktagen backen wir ungefähr dreihundert Brote und "
    "verkaufen die meisten vor dem Mittag; samstags sind es doppelt so viele, und die Schlange reicht bis zur Ecke. Der ältere Ofen heizt langsam und "
    "braucht jedes Jahr mehr Gas, aber das Roggenbrot gelingt darin besser als im neuen. Jetzt bietet uns der Vermieter den leeren Laden nebenan für "
    "eine mäßige Miete an. Wir könnten dort einen dritten Ofen und ein paar Tische aufstellen. Was sollten wir rechnen, bevor wir uns entscheiden, und "
    "was fragen wir zuerst die Bank und den Vermieter?",
    "es": "Tenemos una panadería pequeña con dos hornos, cuatro personas y una furgoneta. Entre semana hacemos unos trescientos panes y vendemos casi "
    "todos antes del mediodía; los sábados son el doble y la cola llega hasta la esquina. El horno viejo tarda en calentarse y gasta más gas cada año, "
    "pero el pan de centeno sale mejor que en el nuevo. Ahora el dueño nos ofrece el local vacío de al lado por un alquiler moderado. Podríamos poner "
    "allí un tercer horno y algunas mesas. ¿Qué deberíamos calcular antes de decidir y qué le preguntamos primero al banco y al dueño?",
    "zh": "我们开了一家小面包店，有两个烤炉、四个人和一辆货车。平时每天大约烤三百个面包，大部分在中午以前卖完；星期六要多一倍，排队的人一直站到街角。"
    "旧的烤炉加热很慢，每年用的煤气越来越多，但是黑麦面包在里面烤得比新的好，客人也吃得出来。现在房东愿意把隔壁的空店租给我们，租金不高，合同十年。"
    "我们可以在那里放第三个烤炉和几张桌子，下午卖咖啡。不过这样需要贷款，还要再请两个人。我们在决定以前应该算清楚什么？先问银行和房东哪些问题？",
}

MANY_LANGUAGES = tuple(sentence for length in (_SHORT, _MIDDLE, _LONG) for sentence in length.values())
"""Three lengths in English, German, Spanish and Chinese: what number formats are compared on."""
