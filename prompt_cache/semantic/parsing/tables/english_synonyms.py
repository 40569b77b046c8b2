"""English words that may stand for each other in a question, and words that never may.

A group holds base forms that leave the answer the same in most questions; what is merely near ("doctor", "nurse") is not in one.
"""

from __future__ import annotations

ENGLISH_SYNONYMS = """
abbreviation abbr ; ability capability capacity ; accelerate speedup hasten ; accident mishap ; accomplish achieve attain
acquire obtain get receive ; address adress ; advantage benefit pro upside
disadvantage drawback con downside ; advice recommendation tip suggestion guidance ; advise recommend suggest ; afraid scared frightened
allow permit let ; amount quantity ; ancestor forebear ; angry mad furious ; answer reply respond response ; apartment flat
app application ; apply application ; appear seem look ; appoint name ; approve approval ; argument dispute
arrive arrival ; ask request inquire ; assist help aid assistance ; attempt try ; attorney lawyer
author writer ; auto car automobile ; autumn fall ; baby infant ; ban prohibit forbid ; bathroom restroom ; beautiful pretty lovely
begin start commence beginning ; behavior conduct ; belong belongings ; beverage drink ; bicycle bike cycle ; big large
biggest largest ; birth born ; bill invoice ; blaze fire ; book reserve booking reservation ; border frontier
bottom underside ; boss manager supervisor ; boy lad ; brave courageous ; bug defect ; build construct construction
business company firm enterprise ; buy purchase ; brief short ; calculate compute calculation ; call phone telephone ; cancel cancellation annul
careful cautious ; cash money ; catch capture ; cat feline ; center middle
change modify alter edit modification ; cheap inexpensive affordable ; cheapest lowestpriced ; check inspect
chemist pharmacy drugstore ; child kid ; choose select pick choice ; clean cleanse ; clever smart intelligent
close shut ; close terminate end ; closest nearest ; farthest furthest ; clothes clothing garment ; coach bus ; cold chilly
collect gather ; color colour ; combine unite ; common widespread prevalent ; company firm ; complete finish
completely fully totally ; complicated complex ; component part ; compose write ; computer pc ; concern worry ; conclude finish
configure setup configuration set ; connect link attach connection ; consequence result outcome ; consume eat
contain include ; convert transform turn ; cook prepare ; copy duplicate ; correct right proper
cost price fee ; country nation ; couple pair ; courgette zucchini ; aubergine eggplant ; create make generate
creator maker inventor ; crucial essential vital ; cure remedy ; curriculum syllabus ; customer client ; damage harm ; damaged broken
dangerous hazardous risky unsafe ; daybreak dawn ; debate discussion ; deceased dead ; decrease reduce lower lessen decline
delete remove erase ; deliver delivery ship shipping ; describe explain ; desire want wish ; destroy demolish ; detect spot
develop create development ; device gadget ; die death ; difference differ distinction ; difficult hard tough challenging
difficulty problem ; dinner supper ; directory folder ; dirty filthy ; disable deactivate switchoff ; discount reduction
discover find discovery ; disease illness sickness ; dish meal ; display show ; doctor physician ; documents papers paperwork
dog canine ; drive disk ; medication medicine ; dwelling house ; earn make ; earth globe ; easy simple ; easiest simplest
effect impact ; eliminate remove ; employ hire ; enable activate ; end finish ; enemy foe
enhance improve ; enjoy like ; enormous huge ; enter input ; error fault mistake ; evidence proof ; examine inspect ; example instance
exam examination ; exercise workout ; expand extend ; expense cost ; expensive costly dear ; expire expiry
explain explanation clarify ; explode explosion ; fabric cloth ; fail failure ; false untrue ; famous wellknown renowned
fast quick rapid swift quickly rapidly ; fastest quickest ; faucet tap ; feeling emotion ; film movie ; find locate ; fine penalty
fix repair mend ; flatmate roommate ; flower blossom ; food nourishment ; forecast prediction ; form questionnaire
found establish ; freedom liberty ; friend buddy ; function purpose ; function work operate ; garbage trash rubbish waste ; garden yard
gas gasoline petrol ; generate produce ; gift present ; glad happy ; goal aim objective ; golang go ; grandma grandmother
grandpa grandfather ; grasp understand ; grow cultivate ; guarantee warranty ; handle manage ; happen occur ; harm hurt damage
hate loathe ; heal recover ; heat warm ; height tall ; hide conceal ; highest tallest ; hint clue ; hire recruit ; holiday vacation
hoover vacuum ; hurt injure ; image picture photo photograph ; immediately instantly
important significant ; improve enhance better improvement ; increase raise boost ; inform notify ; inhabitant resident population
injury wound ; insect bug ; install installation ; invent invention create ; issue problem trouble ; iterate loop
javascript js ; typescript ts ; kubernetes k8s ; postgresql postgres ; job occupation profession ; journey trip ; jumper sweater pullover
keep retain ; kind type ; laptop notebook ; law legislation ; lawful legal ; unlawful illegal ; learn study
leave depart departure ; life lifetime lifespan ; lift elevator ; live reside ; location place ; lodging accommodation
lose loss ; lorry truck ; loud noisy ; luggage baggage ; mail post ; maintain maintenance ; main principal primary chief ; make produce
marry marriage wed ; mean signify ; method approach technique ; mobile cell ; mom mother ; dad father
monitor screen display ; move relocate ; mix blend ; nappy diaper ; need require ; neighborhood district ; newest latest ; normal usual
option alternative choice ; order purchase ; organize arrange ; own possess ; package parcel ; pants trousers ; password passcode
pavement sidewalk ; pay payment ; perform execute run ; permission authorization ; plane airplane
poison toxin ; postcode zipcode zip ; prevent avoid ; prize award ; procedure process ; program software ; pronounce pronunciation
protect guard ; provide supply ; pupil student ; put place ; queue line ; quit stop ; quiet silent ; recommended suggested
recover restore ; refund reimbursement reimburse ; refuse decline ; register registration enroll ; release launch ; remain stay
remember recall ; remove delete eliminate erase ; replace substitute ; replacement substitute ; rescue save ; resolve solve
restart reboot ; resume cv ; retire retirement ; rich wealthy ; risk danger hazard ; road street ; role part ; round circular
sad unhappy ; safe okay secure ; salary wage pay ; schedule timetable ; see view ; separate split ; shop store ; shore coast
sick ill unwell ; similar alike ; site website ; slow sluggish ; small little tiny ; smallest tiniest littlest
solve solution ; sound noise ; speak talk ; spell spelling ; stain spot ; start begin launch ; stop cease halt
store keep ; story tale ; strange odd weird ; strong powerful ; subway underground metro tube ; succeed success ; suitable appropriate
sum total ; sure certain ; surgery operation ; surname lastname ; symptom sign ; tall high ; taxi cab
teach instruct ; teacher instructor ; television tv telly ; thin slim ; think believe ; throw toss ; tired exhausted ; tomb grave
toxic poisonous ; trail path ; translate translation ; transport transportation ; travel trip ; treat treatment ; twilight dusk
understand comprehend ; usage use ; use utilize employ using ; useful helpful ; value worth
verify confirm ; victory win ; violin fiddle ; wash clean ; wealth riches ; website site ; weight weigh ; wireless wifi
win victory ; erase wipe ; wrong incorrect ; yell shout scream ; kilometer km kilometre ; meter metre m ; centimeter cm ; millimeter mm
mile mi ; foot ft ; inch in ; gram g ; kilogram kg kilo ; milligram mg ; pound lb lbs ; ounce oz ; liter l ; milliliter ml ; second sec s
minute min ; hour hr h ; celsius centigrade ; megabyte mb ; gigabyte gb ; terabyte tb ; kilobyte kb ; percent % ; dollar usd $ buck
euro eur € ; pound gbp £ quid ; yen jpy ¥ ; usa us america ; uk britain ; oscar academyaward ; wedding marriage ; spider arachnid
flu influenza ; vet veterinarian ; ad advertisement advert ; info information ; lab laboratory ; maths math mathematics
ml machinelearning ; ai artificialintelligence ; db database ; repo repository ; config configuration ; dev developer
admin administrator ; env environment ; regex regexp regularexpression ; pic picture ; vs versus ; apologize apology ; complain complaint
compete competition ; decide decision ; describe description ; employ employment ; fly flight ; grow growth ; inherit inheritance
know knowledge ; move movement ; permit permission ; prefer preference ; propose proposal ; prove proof ; pollute pollution
react reaction ; refuse refusal ; renew renewal ; resist resistance ; sell sale ; serve service ; sign signature ; speak speech
store storage ; subscribe subscription ; survive survival ; think thought ; withdraw withdrawal ; long length ; wide width ; deep depth
strong strength ; heavy weight ; warm warmth ; hungry hunger ; thirsty thirst ; angry anger ; poor poverty ; die dead ; mower lawnmower
ache hurt ; correct fix ; faster quicker ; list show ; pair connect ; ache pain ; abroad overseas ; adhesive glue ; anxious nervous worried ; attic loft ; backpack rucksack ; barbecue bbq ; basement cellar
belly stomach tummy ; blurry fuzzy ; bulb lightbulb ; bunny rabbit ; colleague coworker ; compulsory mandatory obligatory ; corridor hallway ; cosmos universe ; couch sofa settee
coupon voucher ; courteous polite ; deadly fatal lethal ; defective faulty broken ; delicious tasty ; dismiss sack ; dispatch ship ; send ship ; disappear vanish ; drip leak
drowsy sleepy ; earthquake quake ; extraterrestrial alien ; flashlight torch ; foolish silly stupid ; forbidden prohibited banned ; fridge refrigerator
glasses eyeglasses spectacles ; honest truthful ; humanity mankind humankind ; hurry rush ; impolite rude ; jammed stuck ; jungle rainforest
ladybird ladybug ; lately recently ; likelihood probability chance ; maybe perhaps possibly ; melody tune ; misplace lose ; mailbox inbox ; odor smell scent ; outlet socket
petted stroked ; petting stroking ; perspire sweat perspiration ; postpone defer ; pup puppy ; quit resign ; rare uncommon ; renter tenant ; ripped torn ; shy timid
staircase stairs ; starter appetizer ; stove cooker ; teen teenager adolescent ; thaw defrost ; trek hike ; vocalist singer
write draft ; handy useful ; shrub bush
"""

ENGLISH_OPPOSITES = """
on / off ; enable activate allow permit / disable deactivate block forbid ban prohibit prevent ; open / close shut closed ; lock / unlock
min minimum lowest smallest least fewest / max maximum highest largest biggest greatest tallest most
more greater larger bigger higher above over / less fewer smaller lower below under beneath
increase raise rise grow gain boost enlarge / decrease reduce lower fall shrink lose lessen drop decline ; before prior / after following
import / export ; upload / download ; push / pull ; encode / decode ; encrypt / decrypt
compress zip / decompress unzip extract uncompress ; mount / unmount ; install / uninstall ; login / logout
start begin launch / stop end finish quit halt ; first earliest / last latest final ; next following / previous last
best good better / worst bad worse ; buy purchase / sell ; lend / borrow ; give send / take receive ; push / pop
add insert / remove delete subtract ; multiply / divide ; attach connect join / detach disconnect separate ; merge combine / split
show reveal display / hide conceal ; mute / unmute ; hot warm heat / cold cool chill freeze ; light bright / dark heavy
tall long / short ; high / low ; wide broad / narrow ; thick / thin ; fast quick quickly / slow slowly ; strong / weak
hard difficult / soft easy ; rich / poor ; cheap / expensive ; cheapest / priciest ; safe / unsafe dangerous
legal lawful / illegal unlawful ; true / false ; right / left wrong ; correct / incorrect wrong
inside indoor indoors internal inner / outside outdoor outdoors external outer ; up upper top / down lower bottom
north northern / south southern ; east eastern / west western
male man boy husband father brother son king / female woman girl wife mother sister daughter queen ; parent / child
teacher employer landlord seller lender doctor / student employee tenant buyer borrower patient ; morning / evening night ; day / night
summer / winter ; spring / autumn ; today / tomorrow yesterday ; young new / old ; youngest newest / oldest ; early / late ; full / empty
wet / dry ; clean / dirty ; public / private ; input / output ; read / write ; client / server ; active / passive inactive
positive / negative ; asset / liability ; income revenue profit / expense loss cost ; credit / debit ; hire / fire
accept / reject refuse decline ; agree / disagree ; like love / dislike hate ; win / lose ; success succeed / failure fail
advantage benefit pro / disadvantage drawback con ; arrive arrival / depart departure leave ; enter entrance / exit leave ; always / never
all / none some ; same / different ; ascending / descending ; horizontal / vertical ; major / minor ; odd / even ; acid / base
raw / cooked ; alive living / dead ; married / single divorced ; wholesale / retail ; synchronous / asynchronous ; static / dynamic
local / global remote ; manual / automatic ; temporary / permanent ; temporarily / permanently ; include / exclude ; with / without
to / from ; for / against ; follow / unfollow ; subscribe / unsubscribe ; freeze / thaw defrost ; sink / float ; inhale / exhale
push / pull ; attack / defend ; healthy / unhealthy ; domestic / foreign ; ancient / modern ; singular / plural ; verbose / quiet
hypertension / hypotension ; deposit / withdraw ; save / spend delete
"""
