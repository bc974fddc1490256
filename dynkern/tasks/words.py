"""Words of the task suite: common, one word each, in their base form, no word twice in a list.

The order is part of the suite: a record is drawn by position, so words are only ever appended, and
then the suite is another one (tests/tasks/test_golden.py).
"""

from __future__ import annotations

NOUNS = tuple(
    """
    acorn anchor apple arrow axe badge ball banana barn basket bean bell bench bird blanket boat
    bone book boot bottle bowl box branch bread brick bridge broom brush bucket button cabin cable
    cake camera candle canoe carpet cart castle chain chair chalk cheese cherry circle clay cliff
    clock cloud coat coin comb copper corn cotton cup curtain desk dish door drum dust egg engine
    fence field fire flag flour flower fork fountain garden gate glass glove grain grape grass
    hammer harbour hat hill honey horn house ice island jacket jar jewel kettle key knife ladder
    lake lamp leaf lemon letter lock map marble mask melon milk mirror moon mountain mug nail
    needle nest net onion orange oven paddle paint paper path pear pebble pencil pepper piano
    pillow pipe plate plum pocket pond potato pump purse rain ribbon rice ring river road roof root
    rope rose rug saddle sail salt sand scarf sea seed shelf shell ship shoe silk sink sky snow
    soap sock spade spoon star stick stone stool storm straw string sugar sun table tent thread
    tile tower towel train tree trumpet tunnel umbrella valley vase violin wagon wall watch water
    well wheel whistle wind window wire wood wool yard
    """.split()
)

ADJECTIVES = tuple(
    """
    blue brave bright broad busy calm clean clever cold crisp damp dark deep dry dull early fair
    fast fine firm flat fresh gentle glad grand green grey happy hard heavy high hollow kind large
    late lazy light little lonely long loud low merry mild narrow neat new old pale plain polite
    poor proud pure quick quiet rare red rich ripe rough round sharp short shy simple slow small
    smooth soft solid sour steep strong sweet tall thick thin tidy tiny warm weak white wide wild
    wise yellow young
    """.split()
)

VERBS = tuple(
    """
    answer arrive ask bake begin borrow bring build buy call carry catch choose climb collect cook
    count cross cut dance dig draw dream drink drive eat fall feed find finish fly follow forget
    give grow help hide hold hope hurry jump keep knock laugh learn leave lend listen live look
    make meet move open pay pick play pour pull push read rest ride run sail say sell send share
    show sing sit sleep smile speak stand stay stop swim take talk teach tell think throw travel
    turn visit wait wake walk wash wear win wish work write
    """.split()
)

# what lists are made of; sorted, because the kinds overlap in a few words (sail, watch)
WORDS = tuple(sorted({*NOUNS, *ADJECTIVES, *VERBS}))

NAMES = tuple(
    """
    Adam Alice Anna Arthur Bella Ben Clara Daniel David Diana Edith Emil Emma Eric Felix Fiona Frank
    George Grace Hannah Henry Hugo Ida Irene Jack Jane Julia Karl Kate Laura Leo Lily Lucas Maria
    Martin Mila Nina Noah Nora Oliver Oscar Paul Peter Rosa Ruth Sam Sara Simon Sofia Thomas Tina
    Victor Vera Walter Zoe
    """.split()
)

CITIES = tuple(
    """
    Athens Bergen Berlin Bern Boston Bristol Cairo Chicago Cork Dakar Delhi Dublin Florence Geneva
    Ghent Hanoi Istanbul Kyoto Lagos Leeds Lima Lisbon London Lyon Madrid Milan Nairobi Naples Osaka
    Oslo Oxford Paris Porto Prague Quito Riga Rome Seoul Seville Split Sydney Tokyo Toronto Turin
    Vienna Warsaw York Zurich
    """.split()
)

# every one takes "a", none "an"
JOBS = tuple(
    """
    baker barber builder butcher carpenter chemist clerk cook dentist doctor driver farmer gardener
    guard hunter jeweller judge lawyer librarian mason miner nurse painter pilot plumber porter
    sailor singer smith soldier tailor teacher waiter weaver
    """.split()
)
PETS = tuple("cat dog frog goat hamster hen horse lizard mouse parrot pony rabbit snake".split())
SPORTS = tuple("boxing chess cricket cycling fencing golf hockey judo rowing rugby tennis".split())
COLOURS = tuple("black blue brown green grey orange pink purple red silver white yellow".split())
FOODS = tuple(
    "bread cheese curry fish fruit noodles pancakes pasta pizza rice salad soup steak tea".split()
)
PLACES = tuple(
    "bakery bar cafe canteen cinema club hotel museum pub restaurant shop theatre".split()
)
QUALITIES = tuple("bright calm cheap clean famous friendly large modern new popular quiet".split())
EVENTS = tuple(
    """
    ball circus class concert contest dance fair feast lecture match meeting parade party race
    """.split()
)
VEHICLES = tuple("bike boat bus car coach ferry plane ship taxi train tram truck".split())

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
# of a common year
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UNDER_TWENTY = (
    *DIGITS,
    *"ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split(),
)
TENS = ("", "", *"twenty thirty forty fifty sixty seventy eighty ninety".split())
ORDINALS = tuple(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
)
