"""Side and view: the next field where one is empty, unknown or private."""

from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from rsna_bcd.imaging.positioning import Reading, parse_view, read_laterality, read_view
from rsna_bcd.imaging.quality import QualityFlag

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")


def dataset_with(**elements: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def code(value: str, meaning: str = "") -> Dataset:
    return dataset_with(CodeValue=value, CodeMeaning=meaning)


def groups(**anatomy: Any) -> Sequence:
    """Functional groups of a multi-frame object."""
    frame = dataset_with(FrameAnatomySequence=Sequence([dataset_with(**anatomy)]))
    return Sequence([frame])


@pytest.mark.parametrize(
    ("text", "side", "view"),
    [
        ("LMLO", "L", "MLO"), ("RCC", "R", "CC"), ("LMO", None, "LMO"), ("LM", None, "LM"),
        ("LML", "L", "ML"), ("LLM", "L", "LM"), ("RLM", "R", "LM"), ("MML", None, "ML"),
        ("MLM", None, "LM"), ("RXCCL", "R", "XCCL"), ("LCCID", "L", "CC"), ("CCRL", None, "CC"),
        ("RL", None, "RL"), ("RM", None, "RM"), ("SIO", None, "SIO"), ("AT", None, "AT"),
        ("LAT", None, None), ("L-CC", "L", "CC"), ("mlo_r", "R", "MLO"), ("LT MLO", "L", "MLO"),
        ("Left medio-lateral oblique", "L", "MLO"), ("CRANIO CAUDAL", None, "CC"),
        ("LMLO RMLO", None, "MLO"), ("CC/MLO", None, None), ("", None, None), ("PA", None, None),
        ("L M CC", "L", "CC"), ("X CC L", None, "XCCL"), ("LM CC", None, None),
    ],
)  # fmt: skip
def test_parse_view_position(text: str, side: str | None, view: str | None) -> None:
    assert parse_view(text)[:2] == (side, view)


@pytest.mark.parametrize("text", ["MCC", "M CC", "RMMLO", "CC-MAG", "LMCCID", "Mag ML", "SMCC"])
def test_parse_view_magnified(text: str) -> None:
    assert QualityFlag.MAGNIFICATION in parse_view(text).flags
    assert QualityFlag.MAGNIFICATION not in parse_view(text.replace("M", "", 1)).flags


@pytest.mark.parametrize(
    ("text", "side", "view"),
    [
        ("R CC", "R", "CC"), ("Mammo left", "L", None), ("Mammo L", None, None),
        ("R/L CC", None, "CC"), ("L MLO Tomo", "L", "MLO"), ("At risk, L", None, None),
        ("Screening, 4 views", None, None), ("RCC / RMLO", "R", None),
    ],
)  # fmt: skip
def test_parse_view_in_descriptions(text: str, side: str | None, view: str | None) -> None:
    assert parse_view(text, description=True)[:2] == (side, view)


@pytest.mark.parametrize(
    ("elements", "side"),
    [
        ({"ImageLaterality": "U", "Laterality": "R"}, "R"),
        ({"ViewPosition": "LMLO"}, "L"),
        ({"ImageLaterality": "", "SharedFunctionalGroupsSequence": groups(FrameLaterality="R")},
         "R"),
        ({"PerFrameFunctionalGroupsSequence": groups(FrameLaterality="L")}, "L"),
        ({"SharedFunctionalGroupsSequence": groups(FrameLaterality="B"), "Laterality": "L"}, None),
        ({"AnatomicRegionSequence": Sequence([code("T-04020")])}, "R"),
        ({"AnatomicRegionSequence": Sequence([dataset_with(
            CodeValue="T-04000", AnatomicRegionModifierSequence=Sequence([code("7771000")]))])},
         "L"),
        ({"BodyPartExamined": "LBREAST"}, "L"),
        ({"BodyPartExamined": "BREAST"}, None),
        ({"SeriesDescription": "R CC"}, "R"),
        ({"ProtocolName": "Left breast"}, "L"),
        # The columns of an MLO run to the feet and to the middle: of the left breast, to the right.
        ({"ViewPosition": "MLO", "PatientOrientation": ["A", "FR"]}, "L"),
        ({"ViewPosition": "MLO", "PatientOrientation": ["P", "FL"]}, "R"),
        ({"ViewPosition": "MLO", "PatientOrientation": ["A", "HL"]}, "L"),
        ({"ViewPosition": "CC", "PatientOrientation": ["A", "R"]}, None),  # may be turned over
        ({}, None),
    ],
)  # fmt: skip
def test_read_laterality(elements: dict[str, Any], side: str | None) -> None:
    assert read_laterality(dataset_with(**elements)).value == side


@pytest.mark.parametrize(
    ("elements", "view"),
    [
        ({"ViewCodeSequence": Sequence(), "ViewPosition": "CC"}, "CC"),
        ({"ViewCodeSequence": Sequence([code("X1", "ours")]), "ViewPosition": "ML"}, "ML"),
        ({"ViewCodeSequence": Sequence([Dataset()]), "ViewPosition": "ML"}, "ML"),
        ({"ViewPosition": "??", "PatientOrientation": "MLO"}, "MLO"),  # as CBIS-DDSM has it
        ({"PatientOrientation": ["A", "L"]}, None),
        ({"SeriesDescription": "LMLO"}, "MLO"),
        ({"ViewCodeSequence": Sequence([code("G-8310")]), "ViewPosition": "CC"}, None),
        ({}, None),
    ],
)
def test_read_view(elements: dict[str, Any], view: str | None) -> None:
    assert read_view(dataset_with(**elements)) == Reading(view, False)
