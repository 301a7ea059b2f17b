"""What lesson 1's rules are about: a dictionary, patterns of names, and the text that they meet."""
import re

from lessons.errors import InputError

DICTIONARY = """
WE   = i we you they ye
IS   = is 's was were
ARE  = are were
MD   = shall will 'll must may can would should could cannot do did does doth dost wilt didst
P    = of to with in for by at from upon on like against unto
DET  = the a an my mine thy your his her our their this that these no some one
O    = o ay no nay yea well what come alas fie peace ah marry farewell welcome hark ha ho amen now soft
CONJ = and but for then if or
ADV  = so now here there well then too away again forth up down in on more to-morrow home back hither hence
ADV  = still ever never yet off out long once together enough not
ADJ  = good sweet noble gentle fair poor dear old gracious true mad proud false worthy great happy royal young
ADJ  = heavy bloody brave ready strange merry content patient fearful dead own
DONE = gone done slain come said married lost undone met been made forgot
NAME = romeo juliet marcius warwick clarence henry richard edward york rome england god heaven kate margaret
N    = king queen lord lords lady father mother son brother cousin uncle friend friends man woman men boy
N    = fellow villain master daughter wife husband child sister nurse friar duke prince gods people gentlemen
N    = heart hand head sword crown horse kingdom house night day hour time love death life honour grace word
N    = news name matter shame peace traitor fool soul world blood hope comfort thing way fear joy eyes liege
VI   = speak come go stay live die hear look stand weep fight know rise fly sleep think follow rest say do
VIs  = comes goes lives speaks lies weeps stands knows calls sleeps dies
VT   = love hear see saw know have take bring tell make kill call give thank fear hate save pardon follow
VT   = leave hold keep help beseech pray think bear find strike bless hang meet believe mark ask remember
VTs  = loves hath has makes says knows sees brings calls gives takes keeps
"""
CAPITAL = "[A-Z][a-z]+"
ENTITIES = {  # of two that begin at the same place, the upper one is taken
    "PERSON": r"\b(?:King|Queen|Prince|Duke|Lord|Lady|Sir|Saint|Friar|Captain) "
              rf"(?:of )?{CAPITAL}(?: {CAPITAL})*",
    "PLACE": rf"(?:(?<=\bof )|(?<=\bin )|(?<=\bto )|(?<=\bat )){CAPITAL}",
    "TIME": r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b"
            r"|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve) o'clock",
    "NUMBER": r"\b(?:two|three|four|five|six|seven|ten|twenty|hundred|thousand)(?: (?:hundred|thousand))*\b",
}


def find_entities(text):  # -> [(kind, what was found), ...] in the order of the text
    """One expression, kind | kind | ..., each in a group of that name: the group that fits says the kind.

    >>> find_entities("Richard, Duke of York, is in Rome with two thousand.")
    [('PERSON', 'Duke of York'), ('PLACE', 'Rome'), ('NUMBER', 'two thousand')]
    """
    pattern = "|".join(f"(?P<{kind}>{pattern})" for kind, pattern in ENTITIES.items())
    return [(found.lastgroup, found[0]) for found in re.finditer(pattern, text)]


def sentences(text):  # -> [str, ...], in small letters
    """What ends with . ! or ? is one. A line such as 'First Citizen:' behind an empty one says
    who speaks, and goes."""
    spoken = re.sub(r"(?:\A|(?<=\n\n))[^\n:]+:(?=\n|\Z)", "", text)
    return [" ".join(sentence.lower().split()) for sentence in re.findall("[^.!?]+[.!?]", spoken)]


def read_grammar(text):  # -> {symbol: {(part, ...): p}}
    """Lines `A -> 3 B C | word`, where a number is a weight, 1 if there is none; and `A = word word`, for
    A -> word | word. More lines of A add to it. p is the weight divided by the sum of A's. InputError: a line
    is none of these, or a right side is empty.

    >>> read_grammar("S -> 3 NP sleeps | S S\\nNP = he she")
    {'S': {('NP', 'sleeps'): 0.75, ('S', 'S'): 0.25}, 'NP': {('he',): 0.5, ('she',): 0.5}}
    """
    grammar = {}
    for line in filter(str.strip, text.splitlines()):
        symbol, arrow, right = (*line.split(maxsplit=2), "", "")[:3]
        alternatives = {"->": right.split("|"), "=": right.split() or [""]}.get(arrow, [""])
        for parts in map(str.split, alternatives):
            weight = float(parts.pop(0)) if len(parts) > 1 and parts[0].isdecimal() else 1.0
            if not parts or not weight:
                raise InputError(f"the grammar's line {line.strip()!r} must be like A -> 3 B C | word, or "
                                 "A = word word; no right side is empty, no weight 0")
            rules = grammar.setdefault(symbol, {})
            rules[tuple(parts)] = rules.get(tuple(parts), 0) + weight
    return {symbol: {parts: weight / sum(rules.values()) for parts, weight in rules.items()}
            for symbol, rules in grammar.items()}
