"""The words, attributes and wordings of recall documents (`recall`)."""

from __future__ import annotations

import re


def _words(text: str) -> list[str]:
    """The words of a text; an underscore stands for a space."""
    return [each.replace("_", " ") for each in text.split()]


TURN = "\0"
"""Between question and answer in the forms of quotes."""

FIRST = _words(
    """Anna Ben Carla David Elena Frank Grace Henry Ines Jonas Karim Laura Miguel Nora Oscar Priya Ruth
Samir Tomas Ursula Victor Wanda Yusuf Zoe Mara Leo Hana Pavel Aisha Colin Dora Emil Fatima
George Mei Olu"""
)
LAST = _words(
    """Adams Baker Castillo Dubois Evans Fischer Gupta Haddad Ivanov Jensen Keller Lopez Moreau
Nakamura Okafor Parker Quinn Rossi Schmidt Turner Ueda Varga Walsh Young Zhang Brown Cohen
Mensah Novak Larsen"""
)
SYLLABLES = _words(
    """ba ben bra cal cor da del dor el fa fen gal gra hal har il ja jun ka kel lan lor ma mer mir na
nor ol or pel per qui ra ren ros sa sel shi ta tel tor ul va vel vin wa wil ya yor zan zel"""
)
TOWN_ENDS = _words("""ton ford mouth wick haven bury field dale stad burg ville minster""")
ADJECTIVES = _words(
    """blue old small heavy wooden broken silver narrow round painted empty striped borrowed iron
yellow folded dusty green tall rusty quiet second cracked foreign leather polished crooked spare"""
)
NOUNS = _words(
    """kettle clock ladder basket piano lantern suitcase mirror bicycle violin teapot cabinet umbrella
typewriter barrel compass drum carpet telescope anchor saddle bottle chair globe stove statue
wagon printer boiler vase"""
)
COLOURS = _words(
    """red dark_blue olive crimson pale_green ochre turquoise black ivory violet silver brown orange
maroon teal beige lilac bright_yellow grey copper"""
)
FOODS = _words(
    """lentils rice dumplings roast_duck mushrooms cabbage noodles trout pancakes barley pears
chestnuts beans goat_cheese onions lamb pumpkin plums spinach"""
)
MONTHS = _words("""January February March April May June July August September October November December""")
RECORD_NAMES = _words("""parcel order server file vessel case ticket flight patient account shipment train""")
DIGITS = (1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 8, 8, 9)
"""How many digits a number has."""

ATTRIBUTES = {
    "person": """number: locker number, membership number, badge number, room number, extension, test score,
        PIN, account number, telephone number, employee number, queue number, lucky number
        number: customer number, door code, bicycle lock combination, alarm code
        size: shoe size, hat size, seat
        date: birthday, wedding day, day of arrival, next appointment
        code: ticket code, licence plate, library card, booking reference
        name: dentist, tutor, landlord, best friend
        phrase: nickname, password, favourite book, secret sign
        dish: favourite dish, usual breakfast
        colour: favourite colour, coat colour
        street: street, home address
        money: invoice total, monthly rent, debt
        hex: session token, device id
        uuid: user id
        word: middle word, answer, codename""",
    "thing": """number: serial number, weight in grams, catalogue number, inventory number, lot number
        number: stock number, price in pence
        size: shelf, drawer
        date: date of purchase, last inspection
        code: batch code, tag, storage box
        name: owner, maker, previous owner
        colour: label colour, lining
        money: price, insured value, repair bill
        hex: checksum, chip id
        uuid: asset id
        word: label, hidden inscription
        phrase: inscription, hiding place""",
    "town": """number: population, postcode, dialling code, founding year, number of houses
        number: mine depth, elevation, census number
        date: market day, founding day
        code: station code, map square
        name: mayor, patron, postmaster
        word: motto, old name
        phrase: town motto, local legend
        dish: local dish
        colour: flag colour
        street: main street
        money: yearly budget, bridge toll""",
    "record": """number: weight, reference number, confirmation number, port, sequence number, size in bytes
        number: access number, counter
        size: gate, priority
        date: due date, date of departure
        code: route, clearance code, status code
        name: contact, recipient, inspector
        hex: checksum, commit, key id
        uuid: request id, trace id
        word: state, passphrase hint
        phrase: comment, contents
        money: total, fee""",
}
"""What can be said about a kind of entity, by the kind of value it has."""

KINDS = {
    kind: [
        (value.strip(), [each.strip() for each in names.split(",")])
        for value, names in re.findall(r"(\w+):([^:]+)(?=\n\s+\w+:|$)", listed)
    ]
    for kind, listed in ATTRIBUTES.items()
}
"""(kind of value, attributes) by the kind of entity."""

STATEMENTS = """The {a} of {e} is {v}.
{E}'s {a} is {v}.
Keep in mind that the {a} of {e} is {v}.
As for {e}, the {a} is {v}.
It had been written down that the {a} of {e} was {v}.
By the way, {e}'s {a} is {v}.
Somebody asked about {e}, and the answer was plain: the {a} is {v}.
"What is {e}'s {a}?" she asked. "It is {v}," he said.
"Mark my words," said the clerk, "the {a} of {e} is {v}."
They chose {v} as the {a} of {e}.
For {e} the {a} given was {v}.
The {a} of {e} is {v}. Yes, {v}.
The {a} of {e} is {v}. I say it again: {e}'s {a} is {v}.
If anyone should want the {a} of {e}, tell them {v}.
(The {a} of {e}: {v}.)
You will find the {a} of {e} to be {v}.
I had it from a friend that the {a} of {e} is {v}.
Few people knew it, but the {a} of {e} was {v}.
When it comes to {e}, {v} is the {a}.
Do not forget: {e}, {a}, {v}.""".splitlines()
"""Sentences that state a fact. e: the entity, a: the attribute, v: the value; E, A: with a capital letter."""

LINES = r"""Note: the {a} of {e} is {v}.
{E}: {a} {v}
{e} | {a} | {v}
{{"name": "{e}", "{k}": "{v}"}}
{{"{e}": {{"{a}": "{v}"}}}}
{e} / {a} -> {v}
{k}({e}) = {v}
{X}: {v}
MEMO. To: the office. Subject: {a} of {e}. Text: {v}.
- {e}, {a}: {v}
* **{A}** ({e}): `{v}`
{e} (n.), {a}: {v}.
record["{e}"]["{k}"] = "{v}"
{e},{a},{v}
09:14 INFO set {a} of {e} to {v}
Question: the {a} of {e}? Answer: {v}.
<entry name="{e}" {k}="{v}"/>
Reminder: {e} - {a} - {v}
{a} -> {e} -> {v}
{E}\t{a}\t{v}
P.S. The {a} of {e}, which you wanted, is {v}.
[{e}] {k} = {v}""".replace(r"\t", "\t").splitlines()
"""The same as lines of their own; k: the attribute with underscores, X: in capitals."""

FORMS = [
    ("\n\n", "The {a} of {e} is {v}.", " ", "\n"),
    ("\n\n", "The {a} of {e} is {v}", "\n", "\n"),
    ("\n\nTo sum up: ", "{E}'s {a} is {v}.", " ", "\n"),
    ("\n\nOnce more, what was said above.\n", "{s}", "\n", "\n"),
    ("\n\n", "Q: What is the {a} of {e}?\nA: {v}", "\n\n", "\n"),
    ("\n\nQuestions about the text.\n\n", "Question: What is {e}'s {a}?\nAnswer: {v}", "\n", "\n"),
    ("\n\n", "What is {e}'s {a}? It is {v}.", " ", "\n"),
    ("\n\n", "What is the {a} of {e}? The {a} of {e} is {v}.", "\n", "\n"),
    ("\n\nQUIZ\n\n", "{i}. {A} of {e}? {v}", "\n", "\n"),
    ("\n\n| name | what | value |\n|---|---|---|\n", "| {e} | {a} | {v} |", "\n", "\n"),
    ("\n\nThe same as JSON:\n\n{\n", '  "{a} of {e}": "{v}"', ",\n", "\n}\n"),
    ("\n\nA list of what we know:\n\n", "- {a} of {e}: {v}", "\n", "\n"),
    ("\n\n", '"And the {a} of {e}?"\n"{v}."', "\n", "\n"),
    ("\n\nTEST. Fill the gaps.\n\n", "{i}) The {a} of {e} is ____. Solution: {v}", "\n", "\n"),
    ("\n\n", '>>> record["{e}"]["{k}"]\n\'{v}\'', "\n", "\n"),
    ("\n\nFrom the value to its owner:\n", "{A} {v} belongs to {e}.", "\n", "\n"),
    ("\n\nname;{what};value\n".replace("{what}", "attribute"), "{e};{a};{v}", "\n", "\n"),
]
"""Ways to ask: header, item (i: its number, s: the statement), what stands between items, footer."""

BACKWARDS = "{A} {v} belongs to"
CHAT_QUESTIONS = """What is the {a} of {e}?
What is {e}'s {a}?
Tell me the {a} of {e}.
According to the text, what is the {a} of {e}?
Look up the {a} of {e} in the text above.
{E}: which {a}? Answer with the value only.""".splitlines()
CHAT_ANSWERS = ["{v}", "{v}", "The {a} of {e} is {v}.", "It is {v}.", "{E}'s {a} is {v}."]
CHAT_LIST = ("- {a} of {e}", "- {a} of {e}: {v}")
CHAT_LIST_TASKS = [
    "Complete this list from the text.\n",
    "Find these in the text:\n",
    "Give the value of each:\n",
]
SYSTEMS = [
    "",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n",
]
TASKS = ["", "Read this text.\n\n", "Here is a long document; my questions follow it.\n\n", "Text:\n"]
QUOTE_FORMS = [
    'As it was written above: "{head}\0{rest}"',
    'Continue the passage that begins with "{head}".\0\n{head}{rest}',
    'How does the passage "{head} ..." go on?\0 {head}{rest}',
    "Repeat word for word what follows: {head}\0{rest}",
    "Find the sentence that starts like this and copy it: {head} ...\0\n> {head}{rest}",
    'Quotation ("{head} ..."):\0\n"{head}{rest}"',
]
RECORDS = [
    "{name}_{i}: {n}",
    '{{"id": {i}, "name": "{name}", "value": {n}, "ok": true}}',
    "{i},{name},{other},{x},{n}",
    "2031-04-07 12:{m:02}:{s:02} INFO {name}: {other} took {n}",
    "{other}.{name}[{i}] = {n};",
    "def {name}_{i}(x): return x + {n}",
    "{name} {other} {i}: {n} pieces, row {m}.",
    "<item id='{i}' name='{name}' x='{x}'>{n}</item>",
]

PLAIN_SENTENCES = re.findall(
    r"[A-Z][^.]+\.",
    """The train was late again. Nobody had closed the window. She put the cups back on the shelf. A dog
barked behind the house. The meeting lasted until noon. He forgot his hat on the bench. Two boats
lay in the harbour. The baker opened his shop early. It rained for most of the week. The children
counted the steps. My uncle keeps bees. The stairs creaked at night. Somebody had moved the table.
The letter came on a Tuesday. We walked as far as the mill. The soup was too hot to eat. Her brother
repairs clocks. The road bends to the left here. Old maps hung on the wall. They sold apples by the
gate. The lamp went out twice. He read the page slowly. The teacher wiped the board. A cart stood in
the yard. The river was low this year. Every room had a fireplace. The machine hummed all day. She
tied the parcel with string. The guests left before midnight. The key turned with a click. There was
flour on the floor. The band played an old waltz. He paid in small coins. The bridge was closed for
repairs. A cat slept on the ledger. The doctor washed his hands. They painted the fence in spring.
The bell rang three times. Coffee was served in the garden. The office is on the second floor. I
left my umbrella at the library. The horses were tired. A stranger asked for the way. The tailor
measured the sleeves. Bread was dear that winter. The wind tore at the sails. The twins shared one
bicycle. He whistled while he worked. The museum opens at ten. Our neighbour grows tomatoes. The
printer ran out of paper. She learned to swim last summer. The judge asked for silence. Snow lay on
the roofs. The potter broke a plate. The clerk stamped the form. Three men carried the piano. The
shop sells nails and rope. The engine needs more oil. The actor forgot his line. Everyone waited for
the ferry. The cellar smelled of wine.""".replace("\n", " "),
)
