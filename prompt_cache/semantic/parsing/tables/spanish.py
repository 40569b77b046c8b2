"""Spanish: words that steer a question, synonyms, contraries, and base forms by rule."""

from __future__ import annotations

from functools import lru_cache

SPANISH_PHRASES = """
el | la | los | las | un | una | unos | unas | lo | le | les | se | este | esta | estos | estas | ese | esa | esto | eso | aquí | ahí | que =
por favor | hola | buenos días | buenas tardes | buenas | gracias | muchas gracias | perdone | perdona | perdón | disculpe | disculpa | una pregunta | tengo una pregunta =
exactamente | realmente | pues | entonces | así =
me puede decir | me puedes decir | puede decirme | puedes decirme | podría decirme | podrías decirme | me podría decir | me podrías decir | dime | dígame =
sabes | sabe usted | quiero saber | quisiera saber | me gustaría saber | necesito saber | alguien sabe | sabrías decirme | sabe alguien =
*puedes | *podrías | *podría | *me puedes | *me podrías | *me puede | *me podría | *nos puedes | *nos puede =
me puedes explicar | puedes explicarme | podrías explicarme | *explica | *explícame | *explique | *describe | *descríbeme | explicarme = ?explain
qué | cuál | cuáles | *nombra | *enumera | *dame | *muéstrame | *enséñame | que es = ?what/explain/what.city/what.country/what.state/what.year/what.day/what.date/what.time/what.month/what.company
quién | quiénes | qué persona = ?who
de quién = ?whose
cuándo | en qué momento = ?when/when.year/when.day/when.date/when.time/when.month
en qué año | qué año = ?what.year/when.year
en qué día | qué día = ?what.day/when.day
a qué hora | qué hora = ?what.time/when.time
dónde | en qué lugar | en qué sitio = ?where/where.city/where.country/where.state
en qué ciudad | qué ciudad = ?what.city/where.city
en qué país | qué país = ?what.country/where.country
de dónde = ?wherefrom
adónde | a dónde = ?whereto
por qué | por qué razón | por qué motivo | a qué se debe que | cuál es la razón por la que | cuál es el motivo por el que = ?why
cómo | de qué manera | de qué forma | de qué modo | cuál es la mejor manera de | cuál es la mejor forma de | cuál es la forma de | cuál es la manera de | qué hay que hacer para | qué debo hacer para | qué puedo hacer para = ?how
cuáles son los pasos para | qué pasos hay que seguir para | pasos para | manera de | forma de = ?how
cuántos | cuántas | qué número de | qué cantidad de = ?howmany
cuánto | cuánta = ?howmuch
cuánto cuesta | cuánto vale | qué precio tiene | cuál es el precio de | cuál es el precio del | cuánto cuestan | cuál es el coste de = ?what +precio
cuánto tiempo | cuánto dura | cuánto tarda | cuánto demora | cuánto se demora en | cuánto se tarda en = ?howlong/duration
con qué frecuencia | cada cuánto | cuántas veces = ?howoften
a qué distancia = ?what +distancia
cuánto mide | qué altura tiene | cuál es la altura de | cuál es la altura del = ?what +altura
cuánto pesa | cuál es el peso de | cuál es el peso del = ?what +peso
cuántos años tiene | qué edad tiene | cuál es la edad de = ?what +edad
cómo de grande | qué tamaño tiene | cuál es el tamaño de = ?what +tamaño
a qué temperatura = ?what +temperatura
no | nunca | jamás | ni | ningún | ninguno | ninguna | nada | nadie | tampoco = !not
sin = !not <without
ya no = !not %anymore
todo | toda | todos | todas | cada = %all
ambos | ambas | los dos | las dos = %both
algún | alguno | alguna | algunos | algunas | unos cuantos = %some
cualquier | cualquiera = %any
solo | sólo | solamente | únicamente | exclusivamente = %only
también = %also
incluso = %even
la mayoría | la mayor parte = %most
más = %more
menos = %less
muchos | muchas | mucho | mucha = %many
pocos | pocas | poco | poca = %few
siempre = %always
normalmente | generalmente | por lo general | habitualmente = %usually
a menudo | frecuentemente | con frecuencia = %often
a veces | de vez en cuando | algunas veces = %sometimes
rara vez | raramente = %rarely
al menos | por lo menos | como mínimo = %atleast
como máximo | a lo sumo | hasta un máximo de = %atmost
más de | más que = %morethan
menos de | menos que = %lessthan
demasiado | demasiada | demasiados | demasiadas = %too
bastante | suficiente | suficientes = %enough
casi = %almost
aproximadamente | alrededor de = <about
mejor | mejores = %best
peor | peores = %worst
buen | bueno | buena | buenos = %good
todavía | aún = %still
ya = %already
otra vez | de nuevo | nuevamente = %again
puedo | puede | pueden | podemos | poder | se puede | es posible | puedes = ~can
debo | debe | deben | debería | deberían | conviene | deberíamos = ~should
tengo que | tiene que | hay que | tienen que | es necesario | es obligatorio = ~must
es | son | está | están | estoy | soy | ser | estar = ^be/present
era | eran | fue | fueron | estaba | estaban | estuvo = ^be/past
será | serán | estará | va a | van a | voy a | habrá = ^will/future
hay | ha | han | he | había | tengo | tiene | tienen = ^have
yo | me | mí | mi | mis | mío | mía | nos | nuestro | nuestra | nuestros | nuestras | nosotros = @me
tú | te | ti | tu | tus | usted | ustedes | vosotros | os = @you
él = @he
ella = @she
su | sus =
de | del = <of
desde = <from
a | al | hacia | hasta = <to
en | dentro de = <in
sobre | acerca de = <about
encima de = <over
para = <for
por = <by
con | mediante = <with
como = <as
entre = <between
antes de | antes del | antes = <before
después de | después del | tras | después = <after
durante = <during
por la noche | de noche | durante la noche = +noche
por la mañana | de mañana = +mañana
debajo de | bajo = <under
contra = <against
cerca de | cerca del | cerca = <near
lejos de | lejos del | lejos = +lejos
fuera de = <outside
detrás de = <behind
en lugar de | en vez de = <insteadof
excepto | salvo = <except
a pesar de = <despite
debido a | a causa de = <becauseof
y | e = &and
o | u = &or
pero = &but
si = &if
porque | ya que = &because
aunque = &although
cuando = &when
mientras = &while
estados unidos | ee uu | eeuu = +usa
diferencia entre | diferencias entre | diferencia hay entre | se diferencian | se diferencia = +diferencia
"""

SPANISH_REQUESTS = frozenset(
    [
        "explicar",
        "explicarme",
        "decir",
        "decirme",
        "dar",
        "darme",
        "mostrar",
        "mostrarme",
        "ayudar",
        "ayudarme",
        "escribir",
        "resumir",
        "recomendar",
        "describir",
        "traducir",
        "crear",
    ]
)

SPANISH_SYNONYMS = """
cambiar modificar alterar
contraseña clave
aparcar estacionar
coche auto carro automóvil
ordenador computadora computador
móvil celular
comprar adquirir
borrar eliminar suprimir
empezar comenzar iniciar
terminar acabar finalizar
arreglar reparar
médico doctor
película filme
rápido veloz
fácil sencillo
difícil complicado
caro costoso
barato económico
casa vivienda hogar
piso apartamento departamento
trabajo empleo
empresa compañía
alumno estudiante
profesor maestro
enviar mandar
recibir obtener
usar utilizar emplear
mostrar enseñar
elegir escoger seleccionar
ayuda asistencia
enfermedad dolencia
país nación
habitante población
error fallo
lugar sitio
imagen foto fotografía
correo email
activar habilitar encender
desactivar deshabilitar apagar
curar sanar
ocurrir suceder pasar
preparar elaborar
cocinar guisar
vacaciones
precio coste costo
billete boleto
patata papa
judía frijol
zumo jugo
encontrar hallar
contestar responder
gafas lentes anteojos
nevera frigorífico refrigerador
ascensor elevador
melocotón durazno
plátano banana
conducir manejar
regresar volver
regalo obsequio
enfadado enojado
alquilar arrendar rentar
necesitar requerir
autobús bus
kilómetro km
metro m
centímetro cm
kilogramo kg kilo
gramo g
litro l
hora h
minuto min
porciento percent
euro eur €
dólar usd $
descargar bajar
subir cargar
"""

SPANISH_OPPOSITES = """
activar encender habilitar / desactivar apagar deshabilitar
abrir / cerrar
antes before / después after
más more / menos less
best / worst
largo / corto
alto / bajo
grande / pequeño
mayor / menor
mínimo mínima / máximo máxima
comprar / vender
subir / bajar
importar / exportar
aumentar / reducir disminuir
primero / último
empezar comenzar / terminar acabar
seguro / inseguro peligroso
legal / ilegal
caliente calor / frío
ventaja / desventaja
verano / invierno
mañana / tarde noche
día / noche
izquierda / derecha
instalar / desinstalar
bloquear / desbloquear
cifrar / descifrar
llegada llegar / salida salir
prestar / pedir
all / some
always / sometimes
cerca near / lejos
nuevo / viejo
"""


@lru_cache(maxsize=4096)
def spanish_base_forms(word: str) -> tuple[str, ...]:
    """A lower-case word, its singular, and the infinitives it may belong to.

    -a and -e are left alone: they tell nouns apart (puerto, puerta).
    """
    found = dict.fromkeys([word])
    if word.endswith("ces") and len(word) > 4:
        found[word[:-3] + "z"] = None
    if word.endswith("es") and len(word) > 5:
        found[word[:-2]] = None
    if word.endswith("s") and len(word) > 3:
        found[word[:-1]] = None
    for ending in (
        "o",
        "amos",
        "emos",
        "imos",
        "ando",
        "iendo",
        "arla",
        "arlo",
        "arlas",
        "arlos",
        "erla",
        "erlo",
        "irla",
        "irlo",
        "arse",
        "erse",
        "irse",
    ):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) >= 3:
            found.update(dict.fromkeys(stem + infinitive for infinitive in ("ar", "er", "ir")))
    return tuple(found)
