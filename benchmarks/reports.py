"""Made-up chest X-ray reports in pairs (reference, hypothesis), for tests and speed measurements.

Contract: the same seed gives the same pairs on every machine; standard library only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Pair = tuple[str, str]  # (reference, hypothesis)

_FINDINGS = (
    "pleural effusion", "pneumothorax", "consolidation", "atelectasis", "interstitial edema", "cardiomegaly",
    "airspace opacity", "calcified granuloma", "lung nodule", "vascular congestion", "pneumonia", "rib fracture",
    "pleural thickening", "emphysema", "hilar adenopathy", "vertebral compression deformity", "hiatal hernia",
)  # fmt: skip
_SIDES = ("left", "right", "bilateral", "bibasilar", "right-sided", "left-sided")
_PLACES = (
    "lower lobe", "upper lobe", "lung base", "costophrenic sulcus", "perihilar region", "retrocardiac area", "apex",
    "lingula", "right middle lobe", "hemithorax",
)  # fmt: skip
_DEGREES = (
    "small",
    "mild",
    "moderate",
    "large",
    "tiny",
    "minimal",
    "stable",
    "worsening",
    "improving",
    "new",
    "subtle",
)
_CHANGES = ("increased", "decreased", "resolved", "progressed slightly", "not changed")
# Sentences and how often each kind is drawn.
_KINDS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (
        30,
        (
            "There is no {f}.", "No {f} or {g}.", "No {f}, {g}, or {h} is identified.", "Negative for {f}.",
            "No evidence of focal {f}.", "The lungs are free of {f}.", "Neither {f} nor {g} is seen.",
        ),
    ),
    (
        32,
        (
            "There is a {d} {s} {f}.", "{d} {f} in the {s} {p}.", "{s} {p} {f} has {c} since the previous examination.",
            "{d} {s} {p} opacity, most likely {f}.", "Again seen is {d} {s} {f} with adjacent {g}.",
            "{d} {f} and {e} {g} are present.",
        ),
    ),
    (
        12,
        (
            "{f} of the {s} {p} can not be excluded.", "This may reflect {f} or, less likely, {g}.",
            "Possible {d} {s} {f}.", "Clinical correlation for {f} is suggested.",
        ),
    ),
    (
        10,
        (
            "The endotracheal tube ends {n}.{m} cm above the carina.", "A {s} PICC terminates in the lower SVC.",
            "Nasogastric tube tip is below the diaphragm.", "Median sternotomy wires and mediastinal clips are noted.",
            "A {s} chest tube remains in place.", "Dual-lead pacemaker is unchanged in position.",
        ),
    ),
    (
        20,
        (
            "Heart size is normal.", "The cardiac silhouette is within normal limits.", "The lungs are clear.",
            "Mediastinal contours are unremarkable.", "Bony structures are intact.", "Lungs are well inflated.",
            "No acute cardiopulmonary abnormality.", "The upper abdomen is unremarkable.",
        ),
    ),
    (4, ("Frontal and lateral views of the chest were obtained.", "Comparison: ___.", "FINDINGS:", "IMPRESSION:")),
)  # fmt: skip
_NORMAL = "The lungs are clear. Heart size is normal. No pleural effusion or pneumothorax."


def report(draw: random.Random, words: int) -> str:
    """A report of at least `words` words."""
    sentences: list[str] = []
    while sum(len(sentence.split()) for sentence in sentences) < words:
        sentences.append(_sentence(draw))
    return " ".join(sentences)


def report_pairs(count: int, seed: int = 0, words: int = 56) -> list[Pair]:
    """Pairs as of a policy: about `words` words in a reference; the hypothesis is the reference reworked."""
    draw = random.Random(seed)
    pairs = []
    for _ in range(count):
        reference = report(draw, int(min(3 * words, max(words / 5, draw.gauss(words - 4, words / 3)))))
        pairs.append((reference, _reworked(draw, reference)))
    return pairs


def other_hypotheses(pairs: Sequence[Pair], seed: int = 0) -> list[Pair]:
    """The same references with new hypotheses, as a policy's next sample."""
    draw = random.Random(seed)
    others = []
    for reference, hypothesis in pairs:
        other = hypothesis
        while other in (reference, hypothesis):
            other = _reworked(draw, reference)
        others.append((reference, other))
    return others


def varied_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Pairs of all lengths up to 150 words: reworked, equal, unrelated, misspelt, a normal template; other case and
    line breaks."""
    draw = random.Random(seed)
    makers: tuple[Callable[[str], str], ...] = (
        lambda reference: _reworked(draw, reference),
        lambda reference: _reworked(draw, reference),
        lambda reference: _misspelt(draw, _reworked(draw, reference)),
        lambda reference: report(draw, draw.choice((8, 25, 60, 100))),
        lambda reference: reference,
        lambda reference: _NORMAL,
    )
    pairs = []
    for _ in range(count):
        reference = report(draw, draw.choice((3, 8, 15, 30, 45, 60, 80, 110, 150)))
        hypothesis = draw.choice(makers)(reference)
        change = draw.randrange(10)
        if change == 0:
            reference = reference.lower()
        elif change == 1:
            hypothesis = hypothesis.upper()
        elif change == 2:
            hypothesis = hypothesis.replace(". ", ".\n")
        pairs.append((reference, hypothesis))
    return pairs


def nasty_pairs(seed: int = 0) -> list[Pair]:
    """Texts on which scorers stumble: empty, blank, punctuation, white space, special tokens, unicode, long words, more
    than 512 word pieces, 2,000 words."""
    draw = random.Random(seed)
    long = {words: report(draw, words) for words in (380, 500, 650, 1000, 2000)}
    plain = "Small left effusion. No pneumothorax."
    return [
        ("", ""), ("", plain), (plain, ""), (plain, " "), (" \n\t ", " "), (plain, "."), (".", "?!"), ("-", "--"),
        ("None", "None"), ("nan", "NaN"), ("Clear", "Clear"), ("clear.", "Clear ."), ("a", "b"), (plain, plain),
        (plain, "Small  left effusion .  No pneumothorax."),
        ("Two\nlines.\r\n\r\nThree\tparts.", "two lines. three parts."),
        ("Effusion(small);edema,mild/stable:no PTX!", "Effusion ( small ) ; edema , mild / stable : no PTX !"),
        ("Nodule of 4.5mm,stable.Heart 15.2cm?", "Nodule of 4.5 mm, stable. Heart 15.2 cm?"),
        (",,,,,,,,,,,,,,,,", ", , ,"), ("___ ___", "___"), ("[**2187-3-4**] r/o PNA -- f/u", "rule out pneumonia"),
        ("[CLS] no effusion [SEP] [PAD]", "no effusion"), ("no effusion [MASK] [UNK]", "[SEP]"),
        ("<s> no effusion </s>", "no effusion"), ("<mask> <pad> <unk>", "</s></s>"),
        ("no effusion</s><s>edema", "edema"),
        ("@@PADDING@@ @@UNKNOWN@@", "@@UNKNOWN@@ effusion"), ("\\n and \\\" and \\u2122", "\\n"),
        ("Épanchement pleural ≥ 2 cm — « stable »", "Epanchement pleural >= 2 cm - stable"),
        ("Cardiome\u0301galie", "Cardiomégalie"), ("No\u00a0effusion\u2009here", "No effusion here"),
        ("\u200bzero\u200dwidth\ufeff", "zero width"), ("肺部清晰。心脏正常。", "肺部清晰"),
        ("لا يوجد انصباب", "لا انصباب"),
        ("Lungs clear 🫁👍🏽", "Lungs clear"), ("nul \x00 and bell \x07 inside", "nul and bell inside"),
        ("\ufffd replaced \ufffd", "replaced"), ("İstanbul ẞ ﬁ ½", "istanbul ss fi 1/2"),
        ("x" * 400, "x" * 399), ("pseudo" * 40 + " effusion", "effusion"), ("a" * 100, "a" * 101), ("1" * 600, "1 1 1"),
        ("NO ACUTE PROCESS", "no acute process"), (plain, (plain + " ") * 30), ("effusion " * 80, "effusion"),
        (long[380], _reworked(draw, long[380])), (long[500], report(draw, 40)), (report(draw, 40), long[500]),
        (long[650], _reworked(draw, long[650])), (long[1000], long[1000]), (long[2000], report(draw, 50)),
        (report(draw, 50), long[2000]),
    ]  # fmt: skip


def _sentence(draw: random.Random) -> str:
    kinds, weights = [texts for _, texts in _KINDS], [weight for weight, _ in _KINDS]
    text = draw.choice(draw.choices(kinds, weights)[0])
    f, g, h = draw.sample(_FINDINGS, 3)
    d, e = draw.sample(_DEGREES, 2)
    filled = text.format(
        f=f, g=g, h=h, d=d, e=e, s=draw.choice(_SIDES), p=draw.choice(_PLACES), c=draw.choice(_CHANGES),
        n=draw.randint(1, 8), m=draw.randint(0, 9),
    )  # fmt: skip
    return filled[0].upper() + filled[1:]


def _reworked(draw: random.Random, reference: str) -> str:
    """What a policy may write instead: sentences left out, replaced or in another order."""
    kept = []
    for sentence in reference.rstrip(".").split(". "):
        luck = draw.random()
        if luck < 0.6:
            kept.append(sentence + ".")
        elif luck < 0.85:
            kept.append(_sentence(draw))
    if draw.random() < 0.3:
        draw.shuffle(kept)
    return " ".join(kept) or _sentence(draw)


def _misspelt(draw: random.Random, text: str) -> str:
    letters = list(text)
    for _ in range(1 + len(letters) // 50):
        letters[draw.randrange(len(letters))] = draw.choice(("", "e", "n", "x", " "))
    return "".join(letters)
