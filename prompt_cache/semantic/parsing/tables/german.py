"""German: words that steer a question, synonyms, contraries, and base forms by rule."""

from __future__ import annotations

import re
from functools import lru_cache

GERMAN_PHRASES = """
der | die | das | den | dem | des | ein | eine | einen | einem | einer | eines | es | man | sich | dieser | diese | dieses | diesen | diesem | da | hier | dazu =
bitte | hallo | guten tag | guten morgen | hi | danke | vielen dank | danke schön | entschuldigung | entschuldigen sie | kurze frage | eine frage | ich habe eine frage =
denn | eigentlich | mal | genau | überhaupt | so | etwa | also | wohl | doch | halt | eben | dann =
kannst du mir sagen | können sie mir sagen | könntest du mir sagen | könnten sie mir sagen | kannst du mir bitte sagen | können sie mir bitte sagen | könnten sie mir bitte sagen | könntest du mir bitte sagen =
sag mir | sagen sie mir | sag mir bitte | weißt du | wissen sie | ich möchte wissen | ich würde gerne wissen | ich würde gern wissen | ich wüsste gern | ich frage mich | verrate mir =
*kannst du | *können sie | *könntest du | *könnten sie | *würdest du | *würden sie =
*erkläre mir | *erkläre | *erklär mir | *erklär | *erklären sie mir | *erklären sie | *beschreibe | *beschreiben sie | erklären = ?explain
hilf mir | helfen sie mir | kannst du mir helfen | können sie mir helfen =
was | wie heißt | wie heißen | wie lautet | wie lauten | welche | welcher | welches | welchen | welchem | *nenne | *nenne mir | *nennen sie | *liste | *gib mir | *zeig mir | *zeige mir | *zeigen sie mir | *geben sie mir = ?what/explain/what.city/what.country/what.state/what.year/what.day/what.date/what.time/what.month/what.company
wem | wen = ?whom
wer | von wem | durch wen | welche person = ?who
wessen = ?whose
wann | zu welcher zeit | zu welchem zeitpunkt = ?when/when.year/when.day/when.date/when.time/when.month
in welchem jahr | welches jahr = ?what.year/when.year
an welchem tag | welcher tag = ?what.day/when.day
um wie viel uhr | um wieviel uhr | wie spät = ?what.time/when.time
wo | an welchem ort = ?where/where.city/where.country/where.state
in welcher stadt | welche stadt = ?what.city/where.city
in welchem land | welches land = ?what.country/where.country
woher = ?wherefrom
wohin = ?whereto
warum | wieso | weshalb | aus welchem grund | was ist der grund dafür dass | wie kommt es dass | warum ist es so dass = ?why
wie | auf welche weise | auf welche art | auf welchem weg | auf welchem wege | wodurch | womit = ?how
was ist der beste weg | was ist die beste methode | was ist die beste art | wie geht man vor um = ?how
wie viele | wieviele | welche anzahl an | wie viel | wieviel | welche anzahl von = ?howmany
wie viel kostet | was kostet | wie teuer ist | wie hoch ist der preis für | wie hoch sind die kosten für | was kosten | wie viel kosten | wie teuer sind = ?what +preis
wie lange | wie viel zeit | wie lang dauert | wie lange dauert = ?howlong/duration
wie oft | wie häufig = ?howoften
wie weit = ?what +entfernung
wie groß ist | wie groß sind | welche größe hat | welche größe haben | was ist die größe von | wie groß = ?what +größe
wie hoch ist | wie hoch sind | welche höhe hat | wie hoch = ?what +höhe
wie alt ist | welches alter hat | wie alt = ?what +alter
wie schwer ist | welches gewicht hat | wie schwer = ?what +gewicht
wie schnell = ?what +geschwindigkeit
wie tief = ?what +tiefe
wie breit = ?what +breite
wie heiß | wie warm = ?what +temperatur
nicht | kein | keine | keinen | keinem | keiner | keines | nie | niemals | niemand | niemanden | nichts | nirgends | nirgendwo | weder = !not
ohne = !not <without
nicht mehr | kein mehr = !not %anymore
alle | allen | aller | alles | jede | jeder | jedes | jeden | jedem | sämtliche | ganze | ganzen | gesamte | gesamten | ganzer = %all
beide | beiden = %both
einige | einigen | manche | manchen | ein paar | etwas = %some
irgendein | irgendeine | irgendwelche = %any
nur | ausschließlich | lediglich | bloß = %only
auch = %also
sogar | selbst = %even
meisten | meiste | am meisten = %most
wenigsten | am wenigsten | geringste = %least
mehr = %more
weniger = %less
viele | viel | vielen | zahlreiche = %many
wenige | wenig = %few
immer | stets | ständig = %always
normalerweise | gewöhnlich | in der regel | meistens | üblicherweise = %usually
oft | häufig = %often
manchmal | gelegentlich | ab und zu = %sometimes
selten = %rarely
mindestens | wenigstens | minimal = %atleast
höchstens | maximal | bis zu = %atmost
mehr als | über = %morethan
weniger als = %lessthan
zu viel | zu viele = %too
genug | ausreichend | genügend = %enough
fast | beinahe | nahezu = %almost
ungefähr | circa | rund = <about
beste | bester | bestes | besten | am besten = %best
schlechteste | schlechtesten | am schlechtesten = %worst
besser | bessere | besseren = %better
schlechter | schlechtere = %worse
gut | gute | guter | gutes | guten = %good
noch = %still
schon | bereits = %already
wieder | erneut | nochmal | noch einmal = %again
kann | können | kannst | könnte | könnten | darf | dürfen | darfst | ist es möglich | ist es erlaubt = ~can
muss | müssen | musst | müsste | ist es nötig | brauche ich | brauchen = ~must
soll | sollen | sollte | sollten | sollst = ~should
würde | würden = ~would
ist | sind | bin | bist | sei = ^be/present
war | waren | wurde | wurden = ^be/past
wird | werden | worden = ^become
hat | haben | habe | hatte | hatten | hast = ^have
ich | mich | mir | mein | meine | meinen | meinem | meiner | meines | wir | uns | unser | unsere | unseren | unserem | unserer = @me
du | dich | dir | dein | deine | deinen | deinem | deiner | ihr | euch | euer | eure = @you
er | ihn | ihm | sein | seine | seinen | seinem | seiner = @he
sie | ihnen | ihre | ihren | ihrem | ihrer =
von | vom | aus | ab = <from
nach | zu | zum | zur | bis = <to
in | im | ins | innerhalb = <in
an | am | ans | auf | aufs = <on
für | fürs = <for
mit | mithilfe | mittels = <with
bei | beim = <at
durch = <by
als = <than
über die | über das | über den | bezüglich | hinsichtlich = <about
um = <at
zwischen = <between
vor | bevor | vorher = <before
nachdem | danach = <after
während = <during
seit | seitdem = <since
oberhalb = <over
unter | unterhalb = <under
gegen = <against
pro | je = <per
hinter = <behind
außerhalb = <outside
neben = <nextto
statt | anstatt | anstelle = <insteadof
außer = <except
trotz = <despite
wegen | aufgrund = <becauseof
und = &and
oder | bzw = &or
aber = &but
wenn | falls | sofern | ob = &if
weil = &because
obwohl = &although
damit | um zu = &sothat
einschalten | anschalten | aktivieren | anmachen | eingeschaltet | aktiviere = +einschalten
ausschalten | abschalten | deaktivieren | ausmachen | ausgeschaltet | deaktiviere = +ausschalten
loswerden = +entfernen
vereinigten staaten | vereinigte staaten | usa = +usa
unterschied zwischen | unterschiede zwischen | unterscheiden sich | unterscheidet sich = +unterschied
"""

GERMAN_REQUESTS = frozenset(
    [
        "erklären",
        "sagen",
        "geben",
        "zeigen",
        "helfen",
        "schreiben",
        "zusammenfassen",
        "empfehlen",
        "auflisten",
        "beschreiben",
        "übersetzen",
        "erstellen",
        "vorschlagen",
        "vergleichen",
        "nennen",
        "verraten",
        "erläutern",
    ]
)

GERMAN_SEPARABLE = """
schalte ein +einschalten
schalten ein +einschalten
schaltet ein +einschalten
schalte an +einschalten
schalten an +einschalten
schaltet an +einschalten
mache an +einschalten
macht an +einschalten
schalte aus +ausschalten
schalten aus +ausschalten
schaltet aus +ausschalten
mache aus +ausschalten
macht aus +ausschalten
bereite zu +zubereiten
bereitet zu +zubereiten
melde an +anmelden
meldet an +anmelden
melde ab +abmelden
meldet ab +abmelden
lade herunter +herunterladen
lädt herunter +herunterladen
lade hoch +hochladen
lädt hoch +hochladen
"""

GERMAN_SYNONYMS = """
ändern wechseln modifizieren anpassen umändern
kündigen beenden auflösen
handy mobiltelefon smartphone mobilfunk
handyvertrag mobilfunkvertrag
lieferadresse versandadresse
löschen entfernen beseitigen
kaufen erwerben
auto wagen pkw
fahrrad rad
unterlage dokument
aufzug lift fahrstuhl
sofa couch
möhre karotte
medikament arznei arzneimittel
bildschirm monitor
ordner verzeichnis
schicken senden
bestellen ordern
erlaubt gestattet
verboten untersagt
notwendig nötig erforderlich
fernseher tv
metzger fleischer
kartoffel erdapfel
geschenk präsent
arzt doktor mediziner
firma unternehmen betrieb
beginnen anfangen starten
reparieren instandsetzen
erstellen anlegen erzeugen
machen anfertigen herstellen
bekommen erhalten kriegen
kochen zubereiten
schnell rasch zügig
preis kosten
gehalt lohn
passwort kennwort
computer rechner pc
laptop notebook
foto bild
film spielfilm
wohnung apartment
sofort umgehend
wichtig bedeutend
einfach leicht simpel
schwierig schwer kompliziert
gefährlich riskant
telefon fernsprecher
rechnung faktura
auswählen wählen aussuchen
benutzen verwenden nutzen gebrauchen
suchen finden
funktionieren arbeiten
geschehen passieren
kilometer km
meter m
zentimeter cm
kilogramm kg kilo
gramm g
liter l
stunde std h
minute min
prozent percent
euro eur €
dollar usd $
einwohner bevölkerung
samstag sonnabend
tomate paradeiser
brötchen semmel
hilfe unterstützung
vorteil pluspunkt
nachteil minuspunkt
ursache grund
heilen kurieren
anmelden einloggen
abmelden ausloggen
herunterladen downloaden
hochladen uploaden
groß riesig
klein winzig
mail email
webseite website internetseite
"""

GERMAN_OPPOSITES = """
einschalten aktivieren / ausschalten deaktivieren
öffnen / schließen
vor / nach
before / after
anmelden / abmelden
hochladen / herunterladen
größte größter / kleinste kleinster
höchste / niedrigste tiefste
längste / kürzeste
älteste / jüngste
kaufen / verkaufen
mieten / vermieten
importieren / exportieren
erhöhen steigern / senken verringern
zunehmen / abnehmen
sicher / unsicher gefährlich
warm heiß / kalt
minimum / maximum
mindestalter / höchstalter
erste / letzte
beginnen / beenden
vorteil / nachteil
sommer / winter
morgen / abend
tag / nacht
links / rechts
erlaubt / verboten
installieren / deinstallieren
verschlüsseln / entschlüsseln
sperren / entsperren
leihen / verleihen
ankommen ankunft / abfahren abfahrt
süß / sauer
"""

_PARTICLES = """
ab an auf aus bei ein fest fort frei her herunter herauf heraus hin hinzu hoch los mit nach nieder um vor vorbei weg weiter wieder zu zurück zusammen
"""
# First parts of verbs, which stand at the end of main clauses.
GERMAN_VERB_PARTICLES = frozenset(_PARTICLES.split())
_WITH_PARTICLE = re.compile(f"({'|'.join(sorted(GERMAN_VERB_PARTICLES, key=len, reverse=True))})(?:zu|ge)(?=\\w{{4}})")
_ENDINGS = ("ern", "em", "en", "er", "es", "st", "et", "e", "n", "s", "t")
_UMLAUTS = str.maketrans({"ä": "a", "ö": "o", "ü": "u"})


@lru_cache(maxsize=4096)
def german_base_forms(word: str) -> tuple[str, ...]:
    """A lower-case word and what it may be inflected from; stems are marked by a hyphen."""
    # "Zurückzusetzen" and "zurückgesetzt".
    plain = _WITH_PARTICLE.sub(r"\1", word, count=1) if _WITH_PARTICLE.match(word) else word
    found = dict.fromkeys([word, plain])
    word = plain
    bare = word.removeprefix("ge") if word.startswith("ge") and len(word) > 6 and word.endswith(("t", "en")) else word
    for ending in _ENDINGS:
        stem = bare.removesuffix(ending)
        if stem != bare and len(stem) >= 4:
            found.update(dict.fromkeys((stem, stem + "en", stem + "e", stem + "-")))
    found[bare + "-"] = None
    if word.endswith(("ern", "eln")):
        found[word[:-1]] = None
    # Plurals with an umlaut: Häuser, Haus.
    if word.endswith(("er", "e")) and any(char in word for char in "äöü"):
        found[word.removesuffix("er").removesuffix("e").translate(_UMLAUTS)] = None
    return tuple(found)
