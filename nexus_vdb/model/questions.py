"""Training pairs out of what texts speak of: a question about it, and the same in other words.

People ask, and documents seldom do. An action or a thing that a text names is put into two shapes
of one question. That they mean the same is the lesser lesson; what a teacher thinks of so many
short questions, near to one another and not, is the greater one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

__all__ = ["question_pairs"]

_WILL = (
    "able|allowed|begin|began|best|better|decide[ds]?|difficult|easy|going|hard|help(?:s|ed)?|hop(?:e|ed|ing)"
    "|how|learn(?:s|ed)?|like[ds]?|need(?:s|ed)?|order|possible|time|tr(?:y|ied|ying)|used|want(?:s|ed)?"
    "|ways?|wish(?:es|ed)?"
)
_END = "(?=[.,;:!?])"
# "want to [bake a cake]."; "in the [old harbour],"
_ACTION = re.compile(rf"\b(?:{_WILL}) to ([a-z]+(?: [a-z'-]+){{1,7}}){_END}")
_THING = re.compile(
    "\\b(?:an?|her|his|in|my|of|our|the|their|your) "
    "((?!the )[a-z]{3,12}(?: (?!(?:and|for|that|the|with)\\b)[a-z]{3,12})?)"
    "(?=[.,;]| (?:are|can|had|has|have|is|was|were|will|would)\\b)"
)

Shapes = Sequence[Sequence[str]]

_OF_ACTIONS: Shapes = (
    (
        "How do I {}?",
        "How can I {}?",
        "How do you {}?",
        "How could one {}?",
        "how to {}",
        "What is the best way to {}?",
        "What is the easiest way to {}?",
        "What are some ways to {}?",
        "What are some tips to {}?",
        "What do I need to do to {}?",
    ),
    ("Why do people {}?", "Why would someone {}?", "What makes people {}?"),
    ("Should I {}?", "Is it a good idea to {}?", "Is it worth it to {}?", "Is it okay to {}?"),
    ("Is it possible to {}?", "Can I {}?", "Is there any way to {}?", "Can someone {}?"),
    ("When is the best time to {}?", "When should I {}?", "What is the right time to {}?"),
    ("Where can I {}?", "Where is the best place to {}?", "What is a good place to {}?"),
    ("How long does it take to {}?", "How much time do I need to {}?"),
    ("How much does it cost to {}?", "How expensive is it to {}?", "What is the cost to {}?"),
    ("What is it like to {}?", "What does it feel like to {}?", "How does it feel to {}?"),
    ("What happens if I {}?", "What would happen if people {}?", "What will happen if you {}?"),
    ("How can I learn to {}?", "What is the best way to learn to {}?"),
    ("Why can't I {}?", "Why am I not able to {}?", "Why am I unable to {}?"),
    ("Why is it so hard to {}?", "Why is it difficult to {}?"),
    ("What should I know before I {}?", "What do I need to know to {}?"),
)
_OF_THINGS: Shapes = (
    ("What is {}?", "What exactly is {}?", "What does {} mean?", "Can someone explain {}?"),
    ("How does {} work?", "How exactly does {} work?", "What is the principle of {}?"),
    ("What is the best {}?", "Which {} is the best?", "What's the best {} to buy?"),
    ("What are the best books on {}?", "What are some good books about {}?"),
    ("How can I learn about {}?", "How do I start learning about {}?"),
    ("Why is {} important?", "What is the importance of {}?", "Why does {} matter?"),
    ("What do you think about {}?", "What is your opinion on {}?"),
    ("What are the advantages of {}?", "What are the benefits of {}?"),
    ("What are the disadvantages of {}?", "What are the drawbacks of {}?"),
    ("What is the history of {}?", "What is the origin of {}?", "Where does {} come from?"),
    ("What are some examples of {}?", "Can you give an example of {}?"),
    ("Who invented {}?", "Who came up with {}?", "Who discovered {}?"),
    ("What causes {}?", "What is the cause of {}?", "Why does {} happen?"),
    ("How can I get rid of {}?", "What is the best way to get rid of {}?", "How do I stop {}?"),
    ("Where can I buy {}?", "Where can I get {}?", "Where is the best place to buy {}?"),
    ("How much does {} cost?", "What is the price of {}?", "How expensive is {}?"),
    ("Why do people like {}?", "What do people like about {}?"),
    ("Why do people hate {}?", "Why do so many people dislike {}?"),
    ("Is {} real?", "Does {} really exist?", "Is there such a thing as {}?"),
    ("Is {} safe?", "How safe is {}?", "Is {} dangerous?"),
    ("How can I improve my {}?", "How do I get better at {}?"),
    ("What kinds of {} are there?", "What are the different types of {}?"),
    ("How do I choose a {}?", "What should I look for in a {}?"),
    ("How do you make {}?", "How is {} made?"),
    ("How do I become a {}?", "What does it take to become a {}?"),
)
_OF_TWO: Shapes = (
    ("What is the difference between {} and {}?", "How does {} differ from {}?"),
    ("Which is better, {} or {}?", "Is {} better than {}?"),
    ("How is {} related to {}?", "What is the connection between {} and {}?"),
    ("What is the effect of {} on {}?", "How does {} affect {}?"),
    ("What is the role of {} in {}?", "What part does {} play in {}?"),
)
_TWO_OFTEN = 0.2


def question_pairs(text: str, random: np.random.Generator, *, count: int) -> list[tuple[str, str]]:
    """Questions about a text's actions and things, each in two shapes.

    Args:
        text: English; what names neither an action nor a thing gives nothing.
        random: Chooses.
        count: Pairs at most, an action in each while there are any.
    """
    actions = random.permutation(sorted(set(_ACTION.findall(text))))[:count]
    things = random.permutation(sorted(set(_THING.findall(text))))
    pairs = [_shaped(_OF_ACTIONS, random, action) for action in actions]
    while len(pairs) < count and len(things):
        taken = 2 if len(things) > 1 and random.random() < _TWO_OFTEN else 1
        pairs.append(_shaped(_OF_TWO if taken == 2 else _OF_THINGS, random, *things[:taken]))
        things = things[taken:]
    return pairs


def _shaped(shapes: Shapes, random: np.random.Generator, *words: str) -> tuple[str, str]:
    same = shapes[int(random.integers(len(shapes)))]
    first, second = random.permutation(len(same))[:2]
    return same[first].format(*words), same[second].format(*words)
