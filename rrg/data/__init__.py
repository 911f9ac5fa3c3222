"""Studies: loading, images, report sections, finding labels, and the rendered demo set.

`load_studies(cfg)` is the entrance; `Study` is what everything downstream sees. Imports neither torch nor the model.
"""

from rrg.data.dataset import load_studies
from rrg.data.findings import FINDINGS, findings_from_mesh
from rrg.data.images import load_image
from rrg.data.mentions import findings_in
from rrg.data.regions import REGIONS, load_descriptions
from rrg.data.study import Box, Image, Report, Split, Study, View
from rrg.data.studyset import Problem, StudySet

__all__ = [
    "FINDINGS",
    "REGIONS",
    "Box",
    "Image",
    "Problem",
    "Report",
    "Split",
    "Study",
    "StudySet",
    "View",
    "findings_from_mesh",
    "findings_in",
    "load_descriptions",
    "load_image",
    "load_studies",
]
