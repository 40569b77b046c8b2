"""English words without meaning of their own, words that steer a question, and turns of phrase that mean one thing."""

from __future__ import annotations

# Words that carry nothing: articles, politeness, what asks to be answered.
_EMPTY = """
the | a | an | this | that | these | those | it | its | itself | them | their | theirs | themselves | there | here | one's | someone's =
please | kindly | hello | hi | hey | dear | thanks | thank you | thank you very much | thank you in advance | thanks in advance | thanks a lot | many thanks | cheers =
excuse me | sorry | sorry to bother you | sorry to bother you but | sorry but | just out of curiosity | out of curiosity | out of interest | let me ask | let me ask you | just a quick question | quick question | a quick question | one question | i have a question | i have a quick question | good morning | good evening | good day =
*but | *and | *so | *well | okay so | ok so | just wondering | actually | really | basically | simply put | exactly | precisely | specifically | literally | kind of | sort of =
located | situated | very | quite | such | then | also | respectively | etc | eg | ie =
*can you tell me | could you tell me | would you tell me | can you please tell me | could you please tell me | will you tell me | please tell me | tell me =
*can you | *could you | *would you | *will you | *can you please | *could you please | *would you please | *would you mind | *could you kindly =
can you explain to me | could you explain to me | can you explain | could you explain | can you please explain | could you please explain | please explain | explain to me = ?explain
*explain | *explaining | *describe | *describing | *outline | *outlining | give me an explanation of | give an explanation of | *help me understand | can you help me understand | could you help me understand | please help me understand | i want to understand | i would like to understand | walk me through = ?explain
tell me about | tell me something about | i want to learn about | i would like to learn about | give me information about | give me information on | i need information about | i need information on = ?explain
do you know | do you happen to know | would you happen to know | would you know | might you know | does anyone know | does anybody know | anyone know =
would you mind telling me | could you let me know | can you let me know | may i know | might i ask | could i ask | do you have an idea | any idea | any ideas | do you have any idea | have you any idea | i was wondering | i am wondering | i wonder | i want to know | i would like to know | i would love to know =
i need to know | i am curious | i am curious about | i am trying to find out | i want to find out | i would like to find out | i am interested in | i am asking | may i ask | *can i ask you | let me know =
i am new to this | i hope you can help me | i hope you can help | can you help me | could you help me | please help me | *help me | *help | i need help | i need some help | i need your help =
can you help me with | could you help me with | please help me with | help me with | i need help with = ?how
i do not know | i have no idea | i am not sure | i do not understand | i forgot | not sure =
do you think | in your opinion | would you say | according to you | if possible | by any chance =
what do you know about = ?what
ever since = &since
teh =
"""

# Question words: which answers there can be. What shares a form may ask for the same.
_QUESTION_WORDS = """
what | which | whats | what is called | *name | *list | *give me | *give me some | give me a list of | *show me | *show me some | *show me a list of | *list me = ?what/explain/what.city/what.country/what.state/what.year/what.day/what.date/what.time/what.month/what.company
explain why = ?why
who | whom | whos | which person | what person = ?who
whose = ?whose
by whom = ?who
when | at what time | at which time | at what point | at which point = ?when/when.year/when.day/when.date/when.time/when.month
which people | what people | what kind of people = ?who.people
what year | which year | in what year | in which year = ?what.year/when.year
what day | which day | on what day | on which day = ?what.day/when.day
what date | which date | on what date | on which date = ?what.date/when.date
what month | which month | in what month | in which month = ?what.month/when.month
what time = ?what.time/when.time
where | in what place | in which place | at which place | what place | which place | what location | which location | in which location = ?where/where.city/where.country/where.state
what city | which city | in what city | in which city | what town | which town = ?what.city/where.city
what country | which country | in what country | in which country = ?what.country/where.country
what state | which state | in what state | in which state = ?what.state/where.state
what company | which company = ?what.company/where.company
why | why is it that | how come | for what reason | for which reason | what is the reason | what is the reason that | what is the reason why | what are the reasons | what are the reasons why | what is the reason for | what are the reasons for | reasons for | reason for | the reason why = ?why
what makes | what causes | what is causing | what is the cause of | what are the causes of | cause of | causes of | what caused | what leads to | what was the cause of | what were the causes of = ?why
how | in what way | in which way | in what manner | by what means | how do i go about | how do you go about | how would i go about | how can i go about | how should i go about | how would you go about = ?how
how to | way to | ways to | a way to | best way to | the best way to | a good way to | good way to | good ways to | best ways to | right way to | the right way to | correct way to | proper way to = ?how
way of | ways of | best way of | good way of | method to | methods to | method for | methods for | best method to | best method for | good method for | method of | methods of = ?how
steps to | steps for | step to | what steps | which steps | what steps do i need to take to | what steps should i take to | what steps do i have to take to | what steps must i take to | what steps are needed to | what steps are required to | the procedure for | procedure for | procedure to | process for | process of | process to | instructions for | instructions to | instructions on = ?how
guide to | guide for | guide on | tutorial on | tutorial for | tips for | tips on | tips to | recommended way to | usual way to | standard way to | simplest way is to = ?how
what is the way to | what is a way to | what is the best way to | what is a good way to | what are good ways to | what are some ways to | what are the steps to | what are the steps for | what are the steps involved in = ?how
what is the process for | what is the process of | what is the process to | what is the procedure for | what is the procedure to | what is the right way to | what is the correct way to | what is the proper way to = ?how
what is the best method for | what is the best method to | what is the method for | what is the method to | what do i need to do to | what do i have to do to | what must i do to | what should i do to | what can i do to | what do you need to do to = ?how
what would be the best way to | what would be a good way to | what is the recommended way to | what is the easiest way for me to | by what process = ?how
is there a way to | is there any way to | is there a way i can | is there any way i can | are there ways to | are there any ways to | is there a method to | is there a good way to = ?how
i want to | i would like to | i am trying to | i need help to = ?how
show me how to | show me how | tell me how to | teach me how to | teach me to | explain how to | explain how = ?how
how many | what number of | which number of | what is the number of | *number of | the number of | how large a number of = ?howmany
how much = ?howmuch
how much does cost | how expensive is | how expensive are = ?what +price
how long does it take | how long does it take to | how long will it take | how long will it take to | how much time does it take | how much time does it take to | how much time do i need to | how long do i need to = ?howlong/duration +take
how long is | how long are = ?howlong/length/duration
how long | how much time | for how long | for how much time = ?howlong/duration
how often | how frequently | how many times | with what frequency | at what intervals | how regularly = ?howoften
how far | how far away = ?what/howfar +distance
how tall | how high | what height = ?what +height
how deep = ?what +depth
how wide | how broad = ?what +width
how old | what age | at what age | at which age = ?what +age
how big | how large | what size = ?what +size
how heavy = ?what +weight
how hot | what temperature | at what temperature | at which temperature | which temperature = ?what +temperature
how fast | how quickly | what speed | at what speed = ?what +speed
how expensive = ?what +price
how strong = ?what +strength
how many people live in | how many people are living in | how many people are there in = ?what +population
who is the author of | who was the author of | who are the authors of | who were the authors of = ?who +write
who is the writer of | who was the writer of | who are the writers of | who were the writers of = ?who +write
who is the inventor of | who was the inventor of | who are the inventors of | who were the inventors of = ?who +invent
who is the discoverer of | who was the discoverer of | who are the discoverers of | who were the discoverers of = ?who +discover
who is the founder of | who was the founder of | who are the founders of | who were the founders of = ?who +found
who is the composer of | who was the composer of | who are the composers of | who were the composers of = ?who +compose
who is the director of | who was the director of | who are the directors of | who were the directors of = ?who +direct
who is the painter of | who was the painter of | who are the painters of | who were the painters of = ?who +paint
who is the creator of | who was the creator of | who are the creators of | who were the creators of = ?who +create
who is the owner of | who was the owner of | who are the owners of | who were the owners of = ?who +own
am i allowed to | are we allowed to | is it allowed to | is it permitted to | am i permitted to | are we permitted to | do i have permission to = ?yesno ~can
why will not = ?why ^do/present !not
when is the best time to | what is the best time to | what would be the best time to = ?when %best +time
when is the deadline for | what is the deadline for | when is the deadline of = ?when +deadline
is there a difference between | is there any difference between | are there differences between | are there any differences between = ?what +difference
is it possible to | is it possible that | is it possible for me to | am i able to | are you able to = ?yesno ~can
"""

# Misspelt so often that they are words of the table.
_MISSPELT = """
waht | wich = ?what/explain/what.city/what.country/what.state/what.year/what.day/what.date/what.time/what.month/what.company
hwo = ?how
shoud | shuold | shoudl = ~should
coud | cuold | coudl | cna = ~can
becuase | becasue = &because
"""

_STEERING = """
not | no | never | neither | nor | cannot | none | nobody | nothing | nowhere | noone | lacking | aint = !not
without | with no | with zero = !not <without
what will happen if | what would happen if | what happens if = ?what +happen &if/when
what will happen when | what happens when = ?what +happen &if/when
no one = !not
no longer | not any more | not anymore | no more = !not %anymore
dont | do not = ^do/present !not
doesnt | does not = ^do/present !not
didnt = ^do/past !not
isnt | arent = ^be/present !not
wasnt | werent = ^be/past !not
cant | couldnt = ~can !not
wont = ^will/future !not
all | every | each | everyone | everybody | everything | whole | entire | entirely = %all
each other | one another = %eachother
both = %both
either = %either
any | anyone | anybody | anything = %any
are there any = ?yesno ^be/present
some = %some
someone | somebody = +somebody
something = +something
only | solely | exclusively | merely | just = %only
even = %even
most = %most
least = %least
more | further = %more
less | fewer = %less
fewest = %least
many | a lot of | lots of | plenty of | numerous | a large number of = %many
much = %much
few | little = %few
a few | a little = %some
several = %some
always | constantly | at all times = %always
usually | normally | generally | typically | commonly | in general | ordinarily | as a rule = %usually
often | frequently | regularly = %often
sometimes | occasionally | at times | now and then = %sometimes
rarely | seldom | hardly ever = %rarely
ever = %ever
at least | a minimum of | no less than | no fewer than = %atleast
at most | a maximum of | no more than | up to = %atmost
more than | greater than | larger than | in excess of = %morethan <than
less than | fewer than | smaller than = %lessthan <than
too = %too
enough | sufficient | sufficiently = %enough
almost | nearly | virtually = %almost
about | approximately | roughly | around = <about
best = %best
worst = %worst
better = %better
worse = %worse
good = %good
bad = %bad
same | identical = %same
different | differing = %different
still = %still
yet = %yet
already = %already
again | once more = %again
can | could | may | might | be able to | am allowed to | is allowed to | are allowed to | is able to | are able to = ~can
must | have to | has to | had to | need to | needs to | ought to be required to | am required to | are required to | is required to | is it necessary to | do i have to | required to = ~must
should | ought to | shall | supposed to | had better | advisable to | recommended to = ~should
would = ~would
is | am | are | be | being | been | becomes = ^be/present
was | were = ^be/past
do | does = ^do/present
did = ^do/past
have | has = ^have/present
had = ^have/past
will | going to | gonna | is going to | are going to | am going to = ^will/future
used to = +usedto
i | me | my | mine | myself | we | us | our | ours | ourselves = @me
you | your | yours | yourself | one | ones = @you
they = @they
he | him | his | himself = @he
she | her | hers | herself = @she
from | out of | away from = <from
to | toward | towards = <to
into = <into
in | within | inside | inside of = <in
on | upon | onto = <on
at = <at
of = <of
for = <for
with | along with | together with | by means of | with the help of | with the aid of | with the use of = <with
by = <by
regarding | concerning | on the subject of = <about
as = <as
than = <than
between | among | amongst = <between
before | prior to | ahead of = <before
after | following | subsequent to = <after
during | throughout = <during
since = <since
until | till = <until
over | above = <over
under | below | beneath | underneath = <under
against = <against
through | via | by way of = <through
across = <across
per = <per
like = <like
behind = <behind
outside | outside of = <outside
off = <off
up = <up
down = <down
out = <out
away = <away
near | close to | nearby = <near
instead of | rather than = <insteadof
except | except for | apart from | other than | besides | excluding | but not = <except
including = <including
despite | in spite of = <despite
because of | due to | owing to = <becauseof
and | as well as | & = &and
and then | and afterwards | and later | and finally | and after that = &andthen
or = &or
versus | vs | v = &versus
but = &but
if | whether | in case | assuming that | provided that = &if
unless = &unless
while | whilst | whereas = &while
because | as i = &because
although | though | even though = &although
so that | in order that = &sothat
in order to | so as to = <to
"""

_TURNS = """
differ | differs | differ from | differs from | different from | difference between | differences between | difference of | *compare | comparison of | comparison between | compared to | compared with | in comparison to = +difference
does mean | meaning of | definition of | *define | what is meant by | mean by | stand for | stands for = +meaning
get rid of | getting rid of | take out | takes out | taking out | get out = +remove
log in | log into | login | sign in | sign into | signin | log on | log onto | logon | logging in | logging into | signing in = +login
log out | logout | sign out | signout | log off | logoff | logging out | signing out = +logout
sign up | signup | signing up = +register
set up | setup | setting up = +configure
turn on | switch on | power on | turning on | switching on = +enable
turn off | switch off | power off | shut off | turning off | switching off = +disable
shut down | shutting down = +shutdown
turn up | turning up = +turnup
turn down | turning down = +turndown
roll back | rollback | rolling back = +rollback
back up | backup | backing up = +backup
iterate over | iterate through | loop over | loop through | looping over | looping through | iterating over = +iterate
look for | search for | looking for = +find
carry out = +perform
figure out | find out | work out how = +find
pick up = +pickup
give up = +quit
put off = +postpone
look after | take care of | care for = +carefor
look like | looks like = +look
more quickly | more rapidly | more swiftly = +faster
more easily = +easier
more cheaply = +cheaper
most recent | most recently = +latest
*give me a summary of | *write a summary of | *provide a summary of | *summarize | *sum up = +summarize
tell if | tell whether | know if | know whether | find out if | find out whether | check if | check whether | check that | see if | see whether | test if | test whether = +know &if
send back | sending back | sent back = +return
get better | getting better = +improve
get worse = +worsen
throw away | throw out | dispose of = +discard
wake up = +wake
make sure | ensure | making sure = +ensure
take place | takes place | took place = +happen
deal with | cope with | dealing with | coping with = +handle
come up with = +invent
go up | goes up = +increase
go down | goes down = +decrease
make up = +compose
a fortnight | fortnight = +fortnight
united states | united states of america | u s | u s a | usa = +usa
united kingdom | great britain = +uk
united nations = +un
european union = +eu
world war ii | world war two | second world war | the second world war | world war 2 | wwii | ww2 | ww ii = +ww2
world war i | world war one | first world war | the first world war | world war 1 | wwi | ww1 = +ww1
new york city | nyc = +nyc
artificial intelligence = +ai
machine learning = +ml
operating system | operating systems = +os
command line | command prompt | terminal = +commandline
e mail | e mails = +email
cell phone | mobile phone | cellphone | smartphone | cell phones | mobile phones | smart phone = +phone
per cent | percentage = +percent
credit card = +creditcard
debit card = +debitcard
kids meal = +kidsmeal
living in | people live in | people living in = +inhabitant <in
pay increase | pay rise | salary increase = +raise
high blood pressure = +hypertension
low blood pressure = +hypotension
heart attack = +infarction
step by step | one by one = +stepbystep
line by line = +linebyline
each day | every day | per day | a day | daily = %all +day
every week | per week | a week | each week | weekly = %all +week
every month | per month | a month | each month | monthly = %all +month
every year | per year | a year | each year | annually | yearly | annual = %all +year
every hour | per hour | an hour | each hour | hourly = %all +hour
at night | night time | nighttime | during the night | by night | in the night = +night
right now | at the moment | currently | at present | presently | nowadays | these days | at this time = +now
at home = +athome
work of = +work
is it safe to | is it okay to | is it ok to | is it all right to | is it alright to = ?yesno +safe
is it legal to | is it lawful to = ?yesno +legal
is it illegal to | is it against the law to | is it unlawful to = ?yesno +illegal
is it worth | is it worthwhile to = ?yesno +worth
what should i do | what can i do | what do i do | what am i supposed to do | what are my options = ?what +todo
what is the price of | how much is | how much are = ?howmuch/what +price
what do i need = ?what ~must
what kind of | which kind of | what type of | which type of | what sort of | what kinds of | what types of | which types of | types of | kinds of | sorts of = ?what +kind
as soon as possible | asap = +asap
on time = +ontime
in time = +intime
in front of = <infrontof
on top of = <over
next to | beside = <nextto
a person | people | persons = +person
"""

ENGLISH_PHRASES = _EMPTY + _QUESTION_WORDS + _MISSPELT + _STEERING + _TURNS

# Verb, particle that may stand apart from it, what they mean together.
ENGLISH_SEPARABLE = """
send back +return
turn on +enable
switch on +enable
turn off +disable
switch off +disable
turn up +turnup
turn down +turndown
take out +remove
get out +remove
get off +remove
log out +logout
sign out +logout
set up +configure
shut down +shutdown
roll back +rollback
back up +backup
put off +postpone
throw away +discard
throw out +discard
"""

# What one is asked to do after "can you"; anything else asks whether one can.
_ENGLISH_REQUESTS = """
advise calculate check clarify compare compose convert correct create define describe draft elaborate explain find fix generate give
help illustrate list name outline please provide recommend rewrite share show solve suggest summarise summarize teach tell translate
walk write
"""
ENGLISH_REQUESTS = frozenset(_ENGLISH_REQUESTS.split())

# A capital says which is meant: the other is another word.
_ENGLISH_HOMOGRAPHS = """
access aids apple apples bath bill chad china discover edge ford fox frank grant it jack job jordan march mark may mercury meta mobile
nice nut polish reading rose target teams turkey us who will
"""
ENGLISH_HOMOGRAPHS = frozenset(_ENGLISH_HOMOGRAPHS.split())

# Pairs that are both words, and one letter doubled or two exchanged apart: none is the other misspelt.
_ENGLISH_CONFUSABLE = """
allot alot altar alter angel anger angle aural ballot ballots barely baring barley barring bated batted beard beast beats bellow below
berry bery best bets bier board boarder boast boats border bother brain bread brian brie broad brother bruise burise calm calvary caned
caning canned canning cannon canon caret carp carry carte carve cary cast casual cater cats causal cavalry chain chili chilli china clam
claps clasp clod closer closet coal coast coats cola cold colonel coma comma compliant conservation conversation corp corps cost cots
crap crate crave creation crud curd curry cury cuter cutter dairies dairy decease desert deserts dessert desserts diaries diary diet
dined diner dinned dinner discreet discrete dyeing dying eased eror error fast fats feast feats ferry fery field filed files filing
filling fired fist fits flies form fried fries from furry fury gallop gallup gaols gird goals grasp grid griped gripped gust guts harry
hary hated hatted holly holy hoping hopping horror host hostel hotel hots ingenious ingenuous kernel ladder lair later latter leased
liar lien lightening lightning line lion loin loose lose lost lots manager manger manner manor marital marry martial mary mast maternal
mating mats matting medal meddle merry mery metal mettle minuet minute miror mirror moping mopping nerve nerves nest nets never nevers
nuclear parental paternal pedal peddle perfect perform perspective pest petal petals pets pining pink pinky pinning planed planned polar
poplar post pots prefect preform prenatal prospective quiet quite ranger raping rapping rated ratted react reaction rebus reserve
reserved revered reverse reversed rogue rouge rubes rural rust ruts sacred salt salve satin sauce scared scraped scrapped serve serves
sever severs sign signer signing signs silver sing singeing singer singing sings sinking sinning skate slat slave slimmy slimy sliver
sloped slopped slot sorry sory source spilt split stain stake stared starred stationary stationery steak stein striped stripped super
supper taper tapper tarp tennor tenor terror tide tied tier tiling tilling tinged tingled tinny tiny tire tired tires trace trail trap
trial tried tries trifle unclear unite united untie untied vest vets waist waits warp widow window wined winned wrap
"""
ENGLISH_CONFUSABLE = frozenset(_ENGLISH_CONFUSABLE.split())
