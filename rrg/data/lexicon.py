"""The words of `rrg.data.mentions`: phrases that state a finding.

Regular expressions on cleaned text (lower case, no punctuation). Tuned on the training reports of Open-i only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# Up to n words between two parts of a phrase, none of which says "normal" or starts another topic.
_GAP = r"(?: (?!normal|unremarkable|lungs?\b|clear\b|within\b|no\b)\S+){{0,{0}}}? "
_HEART = r"(?:heart|cardiac|cardiomediastinal|cardio mediastinal)"
_BIG = r"(?:enlarge\w*|increased|prominen\w*|borderline|large)"
_SPINE = r"(?:spine|spinal|vertebra\w*|thoracic|thoracolumbar|dorsal|skelet\w+|disc|disk|osseous|bony)"
_AORTA = r"(?:aort\w*)"

# Phrases that hold a finding's word and state none.
NOT_A_FINDING: Final = tuple(
    re.compile(p)
    for p in (
        r"\bno (?:acute|new|significant|interval|displaced|definite) (?:osseous|bony|skeletal|fracture)\b\S*",
        r"\bno (?:significant )?(?:interval )?change\w*(?: in| of| since)?\b",
        r"\bnot significantly (?:changed|enlarged)\b",
        r"\bnon ?calcified\b",
        r"\bnipple shadows?\b",
        r"\bpulmonary artery within\b",
    )
)

FINDING_PHRASES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "cardiomegaly": (
            r"\bcardiomegaly\b",
            rf"\b{_HEART}{_GAP.format(5)}{_BIG}\b",
            rf"\b{_BIG}(?: \S+)?? (?:heart|cardiac|cardiomed)",
            rf"\benlarge\w+ (?:of|in) (?:the )?{_HEART}",
            r"\bpericardial effusion\b",
            r"\bventric\w+ (?:enlarge\w+|prominen\w+)",
            r"\bleft ventricular enlargement\b",
        ),
        "opacity": (
            r"\bopaci\w+",
            r"\bdensit(?:y|ies)\b",
            r"\bhaz(?:e|y|iness)\b",
            r"\bopacification\b",
        ),
        "consolidation": (
            r"\bconsolidat\w+",
            r"\bpneumonia\b",
            r"\binfiltrat\w*",
            r"\bair[ -]?space (?:disease|process)",
            r"\balveolar disease\b",
        ),
        "atelectasis": (r"\batelecta\w+", r"\bvolume loss\b", r"\bsubsegmental\b"),
        "effusion": (
            r"\b(?<!pericardial )effusions?\b",
            r"\bpleural fluid\b",
            r"\bhydropneumothorax\b",
            r"\bhemothorax\b",
            r"\bfluid in the\b",
        ),
        "blunted_angle": (
            r"\bblunt\w*",
            r"\bcostophrenic (?:angles?|sulc\w+|recess\w*)?(?: \S+){0,3} obscured\b",
        ),
        "nodule": (
            r"\bnodul\w+",
            r"\bmass(?:es)?\b",
            r"\bmasslike\b",
            r"\bmass-like\b",
            r"\bround(?:ed)? (?:opacit|densit)\w+",
            r"\blesion\b",
        ),
        "granuloma": (
            r"\bgranuloma\w*",
            r"\bcalcified (?:\S+ ){0,2}?nodul\w+",
            r"\bcalcified (?:lung|pulmonary) \w+",
            r"\bgranulomatous\b",
        ),
        "calcified_nodes": (
            r"\bcalcified (?:\S+ ){0,5}?(?:lymph|nodes?|hil\w+|mediastin\w+)",
            r"\b(?:lymph nodes?|hil(?:ar|um)|mediastin\w+)(?: \S+){0,3}? calcifi\w+",
            r"\bcalcifi\w+ (?:\S+ ){0,4}?(?:hil\w+|lymph|mediastin\w+)",
        ),
        "interstitial": (
            r"\binterstiti\w+",
            r"\breticul\w+",
            r"\bfibro(?:sis|tic)\b",
            r"\bbronchovascular\b",
            r"\bmarkings\b",
            r"\bbronchiecta\w+",
            r"\bperibronchial\b",
        ),
        "edema": (r"\bedema\b",),
        "congestion": (
            r"\bcongest\w+",
            r"\bengorge\w+",
            r"\bvascul\w+(?: \S+){0,4}? (?:prominen\w+|increased|engorge\w+|indistinct\w*)",
            r"\b(?:prominen\w+|increased|engorged) (?:\S+ ){0,3}?vascula\w+",
            r"\bcephalization\b",
            r"\bheart failure\b",
        ),
        "hyperinflation": (
            r"\bhyper-?(?:inflat|expan|exten|aerat)\w+",
            r"\bhyper (?:inflat|expan)\w+",
            r"\boverinflat\w+",
            r"\b(?:large|increased) lung volumes?\b",
            r"\bincreased (?:ap|anterior)\b",
            r"\boverexpan\w+",
            r"\bhyperdisten\w+",
        ),
        "hypoinflation": (
            r"\bhypo-?(?:inflat|expan|aerat|ventilat)\w+",
            r"\b(?:low|small|decreased|diminished|reduced) lung volumes?\b",
            r"\blung volumes? (?:\S+ ){0,3}?(?:low|small|decreased|diminished|reduced)\b",
            r"\b(?:low|poor|shallow|suboptimal|decreased) (?:\S+ )?inspirat\w+",
            r"\bunderinflat\w+",
            r"\bpoor inspiratory\b",
        ),
        "emphysema": (
            r"\b(?<!subcutaneous )emphysem\w+",
            r"\bcopd\b",
            r"\bchronic obstructive\b",
            r"\bhyperlucen\w+",
            r"\bbull(?:a|ae|ous)\b",
            r"\bblebs?\b",
            r"\bobstructive (?:lung|pulmonary)",
        ),
        "pneumothorax": (r"\b(?:hydro)?pneumothora(?:x|ces)\b",),
        "elevated_diaphragm": (
            r"\belevat\w+ (?:\S+ ){0,5}?(?:hemi)?diaphragm\w*",
            r"\bdiaphragm\w*(?: \S+){0,3}? (?:elevat\w+|eventrat\w+)",
            r"\beventrat\w+",
        ),
        "flattened_diaphragm": (
            r"\bflatten\w* (?:\S+ ){0,4}?(?:hemi)?diaphragm\w*",
            r"\bdiaphragm\w*(?: \S+){0,3}? flat\w*",
        ),
        "tortuous_aorta": (
            r"\btortuo\w+",
            r"\becta\w+",
            rf"\b{_AORTA}{_GAP.format(4)}(?:unfold\w+|enlarge\w+|dilat\w+|prominen\w+|uncoil\w+)",
            r"\b(?:unfold\w+|uncoil\w+|dilated|prominent|enlarged) (?:\S+ ){0,3}?aort\w+",
            r"\baneurysm\w*",
        ),
        "aortic_calcification": (
            r"\bathero\w+",
            rf"\bcalcifi\w+ (?:\S+ ){{0,5}}?{_AORTA}",
            rf"\b{_AORTA}(?: \S+){{0,4}}? calcifi\w+",
            r"\b(?:vascular|arterial) calcifi\w+",
            r"\bcalcific? (?:\S+ )?aort\w+",
        ),
        "enlarged_hilum": (
            rf"\bhil(?:ar|um|a)\b{_GAP.format(4)}(?:prominen\w+|enlarge\w+|full\w*)",
            r"\b(?:prominen\w+|enlarge\w+|full\w*) (?:\S+ ){0,4}?(?:hil(?:ar|um|a)\b|pulmonary arter\w+)",
            r"\bpulmonary arter\w+(?: \S+){0,4}? (?:prominen\w+|enlarge\w+|hypertension)",
            r"\bpulmonary hypertension\b",
            r"\bhilar (?:\S+ )?(?:lymph)?adenopathy\b",
        ),
        "wide_mediastinum": (
            rf"\bmediastin\w+{_GAP.format(4)}(?:prominen\w+|widen\w+|enlarge\w+|full\w*)",
            r"\b(?:prominen\w+|widen\w+|wide|full\w*) (?:\S+ ){0,3}?(?:superior |upper )?mediastin\w+",
            r"\bparatracheal (?:\S+ ){0,2}?(?:stripe|soft|fullness|prominence|mass|density)",
            r"\bmediastinal adenopathy\b",
        ),
        "scoliosis": (r"\b(?:kypho)?scolio\w+", r"\bcurvature\b", r"\bdextro\w+", r"\blevo\w+"),
        "degenerative_spine": (
            rf"\bdegenerative (?:\S+ ){{0,8}}?{_SPINE}",
            rf"\b{_SPINE}(?: \S+){{0,5}}? (?:degenerat\w+|spurring|spondyl\w+)",
            r"\bosteophyt\w*",
            r"\bspondylo\w+",
            r"\bspondylosis\b",
            r"\bspurring\b",
            r"\barthritic\b",
            r"\bdegenerative (?:changes?|disease|disc)\b(?! (?:\S+ ){0,4}?(?:shoulder|glenohumeral|acromio\w+))",
            r"\bdish\b",
            r"\bhypertrophic\b",
            r"\bflowing\b",
            r"\bankylos\w+",
            r"\bdisc space narrowing\b",
        ),
        "vertebral_deformity": (
            r"\bcompression (?:\S+ )?(?:deform|fractur)\w*",
            r"\bcompress\w+ (?:\S+ ){0,4}?vertebra\w*",
            r"\bwedg\w+",
            r"\bvertebra\w*(?: \S+){0,6}? (?:height|compress\w+|fractur\w+|deform\w+)",
            r"\b(?:height loss|loss of height|loss of vertebral)\b",
            r"\bvertebroplast\w+|\bkyphoplast\w+",
            r"\bdeformit\w+ (?:\S+ ){0,5}?(?:spine|vertebra\w*|thoracic|[tl]\d)",
            r"\b[tl]\d+ (?:\S+ )??(?:deform|fractur)\w+",
            r"\bfractur\w+ (?:\S+ ){0,6}?(?:vertebra\w*|[tl]\d+)",
        ),
        "fracture": (
            r"\brib(?: \S+){0,5}? (?:fractur\w+|deform\w+)",
            r"\b(?<!compression )fractur\w+ (?:\S+ ){0,8}?(?:ribs?|clavic\w+)",
            r"\bdeform\w+ (?:\S+ ){0,6}?(?:ribs?|clavic\w+)",
            r"\bribs(?: \S+){0,3}? (?:fractur\w+|deform\w+)",
            r"\bclavic\w+(?: \S+){0,5}? (?:fractur\w+|deform\w+)",
            r"\bold fractures?\b",
            r"\bhealed fractures?\b",
        ),
        "scarring": (r"\bscar\w*", r"\bcicatri\w+", r"\bfibrotic\b"),
        "pleural_thickening": (
            r"\bpleural (?:\S+ ){0,3}?thick\w+",
            r"\bthick\w+ (?:\S+ ){0,4}?pleura\w*",
            r"\bapical (?:cap\w*|thick\w+)",
            r"\bpleural plaques?\b",
            r"\bpleural-parenchymal thick\w+",
        ),
        "hiatal_hernia": (r"\bhernia\w*", r"\bair-fluid level\b(?: \S+){0,5}? (?:heart|retrocardiac|mediastin\w+)"),
        "catheter": (
            r"\bcatheter\w*",
            r"\bpicc\b",
            r"\bporta?-?cath\w*",
            r"\bmediport\b",
            r"\bport\b",
            r"\bcentral (?:venous )?lines?\b",
            r"\bvenous line\b",
            r"\bpicc line\b",
            r"\bline tip\b",
            r"\b(?:subclavian|jugular) (?:\S+ ){0,3}?(?:tip|line)\b",
            r"\btip (?:\S+ ){0,6}?(?:svc|cavoatrial|vena cava|right atrium)",
            r"\binfusion\b",
            r"\bshunt\b",
        ),
        "pacemaker": (
            r"\bpace\s?-?maker\w*",
            r"\bpacing\b",
            r"\baicd\b",
            r"\bicd\b",
            r"\bdefibrillator\b",
            r"\bgenerator\b",
            r"\bpacer\b",
            r"\bleads?\b",
            r"\bstimulator\b",
            r"\bmonitor\b",
            r"\bdual lead\b",
        ),
        "tube": (
            r"\bendotracheal\b",
            r"\btracheostomy\b",
            r"\b(?:ng|et|enteric|feeding|nasogastric|chest) tube\b",
            r"\bdobhoff\b",
            r"\borogastric\b",
            r"\btube\b",
        ),
        "surgical_material": (
            r"\bclips?\b",
            r"\bsutures?\b",
            r"\bsternal wires?\b",
            r"\bstaples?\b",
            r"\bsurgical (?:material|wires?|anchors?|suture)\b",
            r"\bwires\b",
        ),
        "spinal_hardware": (
            r"\bspinal (?:fusion|hardware|fixation|rods?)\b",
            r"\b(?:fusion|fixation) (?:\S+ ){0,6}?(?:spine|cervical|lumbar)",
            r"\b(?:cervical|thoracic|lumbar)(?: \S+){0,4}? (?:fusion|hardware|fixation|plate|rods?)\b",
            r"\bhardware (?:\S+ ){0,5}?(?:spine|cervical|lumbar)",
        ),
        "foreign_body": (
            r"\bforeign bod\w+",
            r"\bbullet\b",
            r"\bshrapnel\b",
            r"\bbb\b",
            r"\bmetallic (?:densit|foreign|fragment|object)\w*",
            r"\bpiercing\w*",
            r"\bjewelry\b",
        ),
        "subcutaneous_emphysema": (r"\bsubcutaneous (?:emphysema|air|gas)\b", r"\bsoft tissue (?:emphysema|gas)\b"),
    }
)
