"""Derives CAMELYON17's pN stages from the labels of a patient's lymph nodes, and reads both from CSV files."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.lesions import NODE_LABELS
from evaluation.tables import read_rows
from samplers.slides.errors import DataError

STAGES = ("pn0", "pn0(i+)", "pn1mi", "pn1", "pn2")
UNKNOWN = "unknown"  # the label of a node that was not looked at, or in part
SPELLING = dict(zip(STAGES, ("pN0", "pN0(i+)", "pN1mi", "pN1", "pN2")))


def patient_stage(nodes: Sequence[str]) -> str:
    """Return the stage, one of STAGES, of a patient with these node labels. ValueError: none, or not of NODE_LABELS.

    Nodes with isolated tumour cells are not counted. They give pN0(i+) if there are no larger metastases.
    """
    unknown = sorted(set(nodes) - set(NODE_LABELS))
    if unknown or not nodes:
        raise ValueError(
            f"node labels are {', '.join(NODE_LABELS)}, not {', '.join(unknown) or 'none at all'}"
        )
    count = Counter(nodes)
    if count["macro"]:
        return "pn1" if count["macro"] + count["micro"] <= 3 else "pn2"
    if count["micro"]:
        return "pn1mi"
    return "pn0(i+)" if count["itc"] else "pn0"


def stages_of_nodes(nodes: Mapping[str, str]) -> dict[str, str]:
    """Return the stage of each patient of nodes like `patient_100_node_0: macro`.

    A patient is left out whose stage depends on a node that is unknown: it is another one if that node is negative than
    if it is macro. What lies between these two cannot be another one if they are the same.
    """
    patients: dict[str, list[str]] = defaultdict(list)
    for node, label in nodes.items():
        patients[node.partition("_node_")[0]].append(label)
    stages = {}
    for patient, labels in sorted(patients.items()):
        least, most = (
            patient_stage([extreme if label == UNKNOWN else label for label in labels])
            for extreme in (NODE_LABELS[0], NODE_LABELS[-1])
        )
        if least == most:
            stages[patient] = least
    return stages


def read_stages(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Read the stages of patients (`patient_100`) and the labels of nodes (`patient_100_node_0`), in lower case.

    DataError: the header is neither patient,stage nor slide,…,node_label,… (that of predict.py), a stage or label is
    unknown, or a patient or node is there twice.
    """
    rows = read_rows(path)
    header = [cell.casefold() for cell in rows[0][1]] if rows else []
    if header[:2] == ["patient", "stage"]:
        name, value = 0, 1
    elif "slide" in header and "node_label" in header:
        name, value = header.index("slide"), header.index("node_label")
    else:
        raise DataError(f"{path}: the first line is not patient,stage but {','.join(header) or 'missing'}")
    stages: dict[str, str] = {}
    nodes: dict[str, str] = {}
    for number, cells in rows[1:]:
        where = f"{path}, line {number}"
        if len(cells) <= max(name, value):
            raise DataError(f"{where}: {','.join(cells)!r} has no stage")
        key, word = cells[name].casefold(), cells[value].casefold()
        patient = key.endswith(".zip")
        labels = (*NODE_LABELS, UNKNOWN)
        table, known, what = (stages, STAGES, "stage") if patient else (nodes, labels, "node label")
        key = re.sub(r"\.(zip|tiff?)$", "", key)
        if word not in known:
            raise DataError(f"{where}: {cells[value]!r} is no {what}, these are {', '.join(known)}")
        if key in table:
            raise DataError(f"{where}: {cells[name]} is there twice")
        table[key] = word
    return stages, nodes
