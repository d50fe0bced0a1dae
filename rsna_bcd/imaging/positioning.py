"""Side and view of a mammogram, from all elements of a header that name them, most specific first.

Empty, unknown and private values are skipped. Elements that name different sides or views are a
contradiction; the first one is used.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from pydicom.dataset import Dataset

from rsna_bcd.imaging.parsing import element_text, sequence_items
from rsna_bcd.imaging.quality import QualityFlag

# DICOM PS3.16 CID 4014, View for Mammography: codes of SNOMED CT, of SNOMED RT in older files, and
# those that the standard has withdrawn. The names are the abbreviations of the ACR's manual.
VIEW_CODES = {
    "399162004": "CC", "R-10242": "CC",
    "399368009": "MLO", "R-10226": "MLO",
    "399260004": "ML", "R-10224": "ML",
    "399352003": "LM", "R-10228": "LM",
    "399099002": "LMO", "R-10230": "LMO",
    "399192008": "XCCL", "R-1024A": "XCCL", "Y-X1770": "XCCL",
    "399101009": "XCCM", "R-1024B": "XCCM", "Y-X1771": "XCCM",
    "R-102CF": "XCC",
    "399196006": "FB", "R-10244": "FB",
    "399188001": "SIO", "R-102D0": "SIO",
    "441555000": "ISO", "R-40AAA": "ISO",
}  # fmt: skip
SPECIMEN_CODES = ("127457009", "G-8310")  # of the same table, and no view of a breast
# CID 4015, View Modifier for Mammography: those that name a view of their own ...
MODIFIER_VIEWS = {
    "399011000": "AT", "R-102D1": "AT",
    "399161006": "CV", "R-102D2": "CV",
    "399110001": "TAN", "R-102C2": "TAN",
}  # fmt: skip
# ... and those that show a part of the breast.
MODIFIER_FLAGS = {
    "399163009": QualityFlag.MAGNIFICATION, "R-102D6": QualityFlag.MAGNIFICATION,
    "399055006": QualityFlag.SPOT_COMPRESSION, "R-102D7": QualityFlag.SPOT_COMPRESSION,
}  # fmt: skip

# Views in words, letters only.
_VIEW_WORDS = {
    "craniocaudal": "CC",
    "mediolateraloblique": "MLO",
    "mediolateral": "ML", "mediallateral": "ML",
    "lateromedial": "LM", "lateralmedial": "LM",
    "lateromedialoblique": "LMO",
    "axillarytail": "AT",
    "craniocaudalexaggerated": "XCC", "exaggeratedcraniocaudal": "XCC",
    "craniocaudalexaggeratedlaterally": "XCCL", "exaggeratedcraniocaudallateral": "XCCL",
    "craniocaudalexaggeratedmedially": "XCCM", "exaggeratedcraniocaudalmedial": "XCCM",
    "caudocranial": "FB", "caudocranialfrombelow": "FB", "frombelow": "FB",
    "superolateraltoinferomedialoblique": "SIO",
    "inferomedialtosuperolateraloblique": "ISO",
    "cleavage": "CV",
    "tangential": "TAN",
}  # fmt: skip
# Abbreviations, as `LMLO`, `RMCC` (magnified), `SMLO` (spot) or `LCCID` (implant displaced).
_ABBREVIATION = re.compile(
    r"(?P<side>LEFT|RIGHT|LT|RT|L|R)?(?P<partial>MAG|SPOT|M?S|SM|M)?"
    r"(?P<view>XCC[LM]?|CC|MLO|LMO|ML|LM|SIO|ISO|FB|AT|CV|TAN)"
    r"(?:R[LMIS]|ID|NP|AC|IMF|AX)*(?P<also>MAG|SPOT)?"
)
_ROLLED = ("RL", "RM", "RI", "RS")  # a view position of its own; else a suffix
_AMBIGUOUS = ("LAT",)  # lateral, or the axillary tail of the left breast
_IN_DESCRIPTIONS = ("CC", "MLO", "ML", "LM", "LMO", "XCC", "XCCL", "XCCM")  # `AT` is a word too
_SIDE_WORDS = {"L": "L", "LT": "L", "LEFT": "L", "R": "R", "RT": "R", "RIGHT": "R"}
_NOISE = ("VIEW", "PROJECTION", "BREAST", "MAMMO", "MAMMOGRAM", "MAMMOGRAPHY", "OF", "THE")

# Codes for left and right (CID 244), and for the left and the right breast (CID 4013).
_SIDE_CODES = {
    "7771000": "L", "G-A101": "L", "80248007": "L", "T-04030": "L",
    "24028007": "R", "G-A100": "R", "73056007": "R", "T-04020": "R",
}  # fmt: skip
# Views that do not contradict each other.
_FAMILIES = {"XCC": "CC", "XCCL": "CC", "XCCM": "CC", "AT": "MLO"}
_ANY_FAMILY = ("FB", "CV", "TAN", *_ROLLED)

POSITIONING_TAGS = (
    "ImageLaterality", "Laterality", "ViewPosition", "ViewCodeSequence", "PatientOrientation",
    "ViewModifierCodeSequence", "AnatomicRegionSequence", "BodyPartExamined",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "SeriesDescription",
    "ProtocolName",
)  # fmt: skip


class HeaderValue(NamedTuple):
    """A property that several elements of a header may state.

    Attributes:
        value: by the first element that states one; None where none does.
        contradictory: whether another element states a different one.
    """

    value: str | None
    contradictory: bool


class ParsedView(NamedTuple):
    """Side, view and flags in a text.

    Attributes:
        side: L or R; None where the text names none, or both.
        view: None where it names none, or several.
        flags: magnification and spot compression.
    """

    side: str | None
    view: str | None
    flags: frozenset[QualityFlag]


def read_laterality(dataset: Dataset) -> HeaderValue:
    """Read the side: L or R.

    In this order: `ImageLaterality`, `FrameLaterality`, `Laterality` (of the series), the codes of
    the anatomy, `ViewPosition` (`LMLO`), `BodyPartExamined` (`LBREAST`), the description of the
    series and the protocol (`R CC`), and of an MLO its `PatientOrientation`: its columns run to
    the feet and to the medial side. An image of both breasts has no side.
    """
    anatomies = [  # of a multi-frame object, shared or of each frame
        anatomy
        for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
        for anatomy in sequence_items(dataset, groups, "FrameAnatomySequence")
    ]
    own = [element_text(dataset, "ImageLaterality")]
    own += [element_text(anatomy, "FrameLaterality") for anatomy in anatomies]
    codes = [
        code
        for anatomy in (dataset, *anatomies)
        for code in (
            *sequence_items(anatomy, "AnatomicRegionSequence"),
            *sequence_items(anatomy, "AnatomicRegionSequence", "AnatomicRegionModifierSequence"),
        )
    ]
    sides = [
        *(_side(text) for text in (*own, element_text(dataset, "Laterality"))),
        *(_SIDE_CODES.get(element_text(code, "CodeValue").upper()) for code in codes),
        parse_view(element_text(dataset, "ViewPosition")).side,
        _side(element_text(dataset, "BodyPartExamined")),
        *(text.side for text in _parsed_descriptions(dataset)),
    ]
    found = [side for side in sides if side is not None]
    if any(re.fullmatch("B|BOTH|BILATERAL", _letters(text)) for text in own):
        return HeaderValue(None, bool(found))
    if not found and read_view(dataset).value == "MLO":
        return HeaderValue(_oblique_side(element_text(dataset, "PatientOrientation")), False)
    return HeaderValue(found[0] if found else None, len(set(found)) > 1)


def read_view(dataset: Dataset) -> HeaderValue:
    """Read the view, by its abbreviation: `CC`, `MLO`, `ML`, `LM`, `LMO`, `AT`, `XCCL`, ...

    In this order: `ViewCodeSequence` (PS3.3 C.8.11.7), by its code, else by its meaning;
    `ViewPosition`; `PatientOrientation`, where digitized film has its view; the description of the
    series and the protocol. A specimen has no view.
    """
    codes = sequence_items(dataset, "ViewCodeSequence")
    if any(element_text(code, "CodeValue").upper() in SPECIMEN_CODES for code in codes):
        return HeaderValue(None, False)
    views = [
        *(_coded_view(modifier, MODIFIER_VIEWS) for modifier in view_modifiers(dataset)),
        *(_coded_view(code, VIEW_CODES) for code in codes),
        parse_view(element_text(dataset, "ViewPosition")).view,
    ]
    orientation = element_text(dataset, "PatientOrientation")
    if "\\" not in orientation:  # one value is no orientation, which has two
        views.append(parse_view(orientation).view)
    views += [text.view for text in _parsed_descriptions(dataset)]
    found = [view for view in views if view is not None]
    # A modifier such as the axillary tail says more than the view that it modifies.
    families = {_FAMILIES.get(view, view) for view in found if view not in _ANY_FAMILY}
    return HeaderValue(found[0] if found else None, len(families) > 1)


def view_modifiers(dataset: Dataset) -> list[Dataset]:
    """The codes that modify the view, in the item of the view or (against PS3.3) beside it."""
    return [
        *sequence_items(dataset, "ViewCodeSequence", "ViewModifierCodeSequence"),
        *sequence_items(dataset, "ViewModifierCodeSequence"),
    ]


def view_description(dataset: Dataset) -> str | None:
    """The view in the header's words, its modifiers (magnified, rolled, ...) included."""
    codes = [*sequence_items(dataset, "ViewCodeSequence")[:1], *view_modifiers(dataset)]
    words = [element_text(c, "CodeMeaning") or element_text(c, "CodeValue") for c in codes]
    return ", ".join(filter(None, words)) or element_text(dataset, "ViewPosition") or None


@lru_cache(1024)  # descriptions repeat
def parse_view(text: str, *, description: bool = False) -> ParsedView:
    """Read a side and a view out of a text such as `LMLO`, `R CC` or `Left medio-lateral oblique`.

    Args:
        text: of one element.
        description: whether it is free text: single letters are a side only beside a view there,
            and abbreviations that are words as well are none.
    """
    words = re.findall("[A-Z]+", text.upper())
    sides = {_SIDE_WORDS[word] for word in words if word in _SIDE_WORDS}
    views: set[str] = set()
    flags: set[QualityFlag] = set()
    abbreviations = [_abbreviation(word) for word in words]
    joined = None if description else _abbreviation("".join(words))
    if joined and sum(map(bool, abbreviations)) < 2:  # `M CC`, `X CC L`
        abbreviations, sides = [joined], set()
    for found in abbreviations:
        if found is None or (description and found["view"] not in _IN_DESCRIPTIONS):
            continue
        views.add(found["view"])
        if found["side"]:
            sides.add(_SIDE_WORDS[found["side"]])
        partial = f"{found['partial'] or ''} {found['also'] or ''}"
        if "M" in partial:
            flags.add(QualityFlag.MAGNIFICATION)
        if "S" in partial:
            flags.add(QualityFlag.SPOT_COMPRESSION)
    rest = "".join(word for word in words if word not in (*_SIDE_WORDS, *_NOISE))
    if not views and rest.lower() in _VIEW_WORDS:
        views = {_VIEW_WORDS[rest.lower()]}
    if not description and not views and len(words) == 1 and rest in _ROLLED:
        views = {rest}
    if description and not views:
        sides = {_SIDE_WORDS[word] for word in words if word in _SIDE_WORDS and len(word) > 1}
    side = next(iter(sides)) if len(sides) == 1 else None
    return ParsedView(side, next(iter(views)) if len(views) == 1 else None, frozenset(flags))


def _abbreviation(word: str) -> re.Match[str] | None:
    return None if word in _AMBIGUOUS else _ABBREVIATION.fullmatch(word)


def _parsed_descriptions(dataset: Dataset) -> list[ParsedView]:
    return [
        parse_view(element_text(dataset, keyword), description=True)
        for keyword in ("SeriesDescription", "ProtocolName")
    ]


def _coded_view(code: Dataset, names: dict[str, str]) -> str | None:
    """The view of a code, else of its meaning, which private codes have too."""
    by_value = names.get(element_text(code, "CodeValue").upper())
    meaning = parse_view(element_text(code, "CodeMeaning")).view
    return by_value or (meaning if meaning in names.values() else None)


def _letters(text: str) -> str:
    return re.sub("[^A-Z]", "", text.upper())


def _side(text: str) -> str | None:
    """L or R of a text that is nothing but a side: `l`, `LEFT`, `Left breast`, `RBREAST`."""
    found = re.fullmatch("(L|LT|LEFT|R|RT|RIGHT)(BREAST|MAMMA)?", _letters(text))
    return _SIDE_WORDS[found[1]] if found else None


def _oblique_side(orientation: str) -> str | None:
    """The side of an MLO by its orientation: feet and medial, or head and lateral, go together."""
    for direction in orientation.upper().split("\\"):
        vertical, across = {*direction} & {*"FH"}, {*direction} & {*"LR"}
        if len(vertical) == len(across) == 1:
            towards_right = across == {"R"}
            return "L" if (vertical == {"F"}) == towards_right else "R"
    return None
