"""What an evaluation takes from a data set: the studies behind predictions, and the controls that need it.

Contract: every id of a predictions file must be a study of the split. `shuffled` needs no data set, the other controls
do. Loads torch only for image features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from configs.schema import DataConfig, ModelConfig
from learner.evaluation import controls
from learner.evaluation.measures import donor_studies
from learner.evaluation.predictions import Prediction
from learner.evaluation.scoring import Progress
from rrg.errors import UserError

if TYPE_CHECKING:
    from rrg.data import StudySet
    from rrg.data.study import Split, Study

CONTROLS: Final = ("most_frequent", "nearest_image", "shuffled")


def studies_of(rows: Sequence[Prediction], studies: StudySet, split: Split) -> list[Study]:
    """The study of every row. Raises UserError for ids that are not of the split."""
    known = {study.id: study for study in studies.split(split)}
    unknown = [row.id for row in rows if row.id not in known]
    if unknown:
        some = next(iter(known), None)
        raise UserError(
            f"{len(unknown)} ids of the predictions are no studies of the split {split}, the first is {unknown[0]!r} "
            f"(the data set's ids look like {some!r}); check --split and --root, or leave out --format"
        )
    return [known[row.id] for row in rows]


def shuffled(hypotheses: Sequence[str], seed: int) -> list[str]:
    """Every study gets the report of another one, as if the X-rays had been exchanged. Needs two studies."""
    (donors,) = donor_studies(len(hypotheses), 1, seed)
    return [hypotheses[donor] for donor in donors]


def control_reports(
    names: Sequence[str],
    hypotheses: Sequence[str],
    test: Sequence[Study] | None,
    train: Sequence[Study],
    configs: tuple[DataConfig, ModelConfig] | None,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, list[str]], list[str]]:
    """(reports of the controls among `names` that can be had, notes about the others)."""
    found: dict[str, list[str]] = {}
    notes: list[str] = []
    for name in names:
        if name == "shuffled" and len(hypotheses) > 1:
            found[name] = shuffled(hypotheses, seed)
        elif name == "shuffled":
            notes.append("control shuffled: needs two studies")
        elif test is None or configs is None:
            notes.append(f"control {name}: needs the data set (--format and --root)")
        elif not train:
            notes.append(f"control {name}: the data set has no training studies")
        elif name == "most_frequent":
            found[name] = controls.most_frequent(train, test)
        elif configs[1].backbone.train != "frozen":
            notes.append(f"control {name}: needs the stored features of a frozen backbone")
        elif not all(study.images for study in (*train, *test)):
            notes.append(f"control {name}: some studies have no image")
        else:
            known, new = _features(configs, train, progress), _features(configs, test, progress)
            found[name] = controls.nearest_image(train, known, new)
    return found, notes


def _features(
    configs: tuple[DataConfig, ModelConfig], studies: Sequence[Study], progress: Progress
) -> npt.NDArray[np.float32]:
    """One vector a study: the mean over all patches of its images, by the backbone as it was before any training."""
    from rrg.model.backbone import FeatureStore

    store = FeatureStore(*configs)
    store.prepare(studies, progress)
    return np.stack([store.load(study).values.mean(0).numpy() for study in studies])
