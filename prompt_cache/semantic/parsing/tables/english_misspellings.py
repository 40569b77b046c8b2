"""English words that are often misspelt, each misspelling before its word. None of the misspellings is a word."""

from __future__ import annotations

_PAIRS = """
abscence absence ; acceptible acceptable ; accessable accessible ; accidently accidentally ; accomodate accommodate ; accomodation accommodation ; accross across
acheive achieve ; acknowlege acknowledge ; acording according ; acount account ; acquaintence acquaintance ; adminstrator administrator ; agressive aggressive
alchohol alcohol ; algoritm algorithm ; allready already ; anual annual ; apartement apartment ; apparant apparent ; appartment apartment ; appliction application
aparently apparently ; arguement argument ; asthetic aesthetic ; athiest atheist ; atorney attorney ; availible available ; bandwith bandwidth ; batery battery
beautifull beautiful ; becomming becoming ; beggining beginning ; begining beginning ; beleive believe ; benifit benefit ; bicyle bicycle ; buisness business
calender calendar ; catagory category ; cemetary cemetery ; certifcate certificate ; changable changeable ; charactor character ; choclate chocolate ; colegue colleague
collegue colleague ; comming coming ; commitee committee ; comparision comparison ; compatable compatible ; completly completely ; computor computer ; concious conscious
configration configuration ; conection connection ; consistant consistent ; contry country ; convinient convenient ; curiculum curriculum
decieve deceive ; defendent defendant ; definate definite ; definately definitely ; definitly definitely ; dependancy dependency ; desicion decision ; deposite deposit
develope develop ; developement development ; diffrence difference ; diffrent different ; dificult difficult ; disapear disappear ; disatisfied dissatisfied ; dissapoint disappoint
documentaion documentation ; downlaod download ; eletric electric ; electricty electricity ; embarass embarrass ; enviroment environment ; equiptment equipment
exagerate exaggerate ; excercise exercise ; existance existence ; experiance experience ; explaination explanation ; familar familiar ; febuary february ; finaly finally
foriegn foreign ; fourty forty ; freind friend ; fundemental fundamental ; garantee guarantee ; gaurantee guarantee ; goverment government ; grafic graphic ; grafics graphics
grammer grammar ; gurantee guarantee ; happend happened ; harrass harass ; heigth height ; hieght height ; higene hygiene ; hygeine hygiene ; identifer identifier
imediately immediately ; immediatly immediately ; inadvertant inadvertent ; independant independent ; independance independence ; infomation information ; informtion information
ingrediant ingredient ; ingrediants ingredients ; inteligence intelligence ; intresting interesting ; interupt interrupt ; jewelery jewelry ; judgemental judgmental
knowlege knowledge ; langauge language ; langage language ; lenght length ; liason liaison ; libary library ; lisence license ; maintainance maintenance ; maintenence maintenance
managment management ; medecine medicine ; millenium millennium ; miniture miniature ; minimun minimum ; mispell misspell ; mountian mountain ; neccessary necessary
necesary necessary ; noticable noticeable ; occassion occasion ; occured occurred ; occurence occurrence ; offical official ; oportunity opportunity
orginal original ; ouput output ; paralel parallel ; parliment parliament ; passowrd password ; pasword password ; payed paid ; peformance performance ; perfomance performance
perminent permanent ; permision permission ; persistant persistent ; personel personnel ; posession possession ; possesion possession ; potatos potatoes ; prefered preferred
presance presence ; priviledge privilege ; probaly probably ; proccess process ; profesional professional ; proffesional professional ; proffesor professor
programing programming ; pronounciation pronunciation ; publically publicly ; questionaire questionnaire ; recieve receive ; reccomend recommend ; recomend recommend
recurence recurrence ; refered referred ; referal referral ; relevent relevant ; religous religious ; remeber remember ; repitition repetition ; resturant restaurant
restaraunt restaurant ; rythm rhythm ; schedual schedule ; seperate separate ; seperately separately ; sieze seize ; similiar similar ; sincerly sincerely ; speach speech
specfic specific ; standart standard ; strenght strength ; subcription subscription ; succesful successful ; successfull successful ; sufficent sufficient ; suprise surprise
temperture temperature ; tempature temperature ; tendancy tendency ; therfore therefore ; threshhold threshold ; tommorow tomorrow ; tommorrow tomorrow ; tounge tongue ; transfered transferred
truely truly ; twelth twelfth ; tyrany tyranny ; underate underrate ; unfortunatly unfortunately ; univeristy university ; untill until ; upgarde upgrade ; useable usable
vaccum vacuum ; vegatable vegetable ; vehical vehicle ; volcanoe volcano ; warrenty warranty ; wierd weird ; writting writing ; yeild yield
"""
ENGLISH_MISSPELLINGS = dict(pair.split() for pair in _PAIRS.strip().replace("\n", ";").split(";") if pair.strip())
