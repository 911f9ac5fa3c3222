"""The words of chest X-ray reports: phrases in base forms (see `words.base_form`) and what they stand for.

Contract: read-only tables, one entry `value: phrase | phrase ...` a line, continued lines indented. `lexicon` reads
them. Written by hand after the findings that Open-i's reports and the CheXpert and RadGraph schemata name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

FINDINGS = """
cardiomegaly: cardiomegaly | cardiac enlargement | enlargement of the heart | enlargement of the cardiac silhouette
  | heart is large | heart is big | heart remain large | heart size remain large
  | enlargement of the heart silhouette | enlarged cardiac silhouette
enlarged cardiomediastinum: enlarged cardiomediastinal silhouette | mediastinal widening | widened mediastinum
  | enlargement of the cardiomediastinal silhouette | widening of the mediastinum | cardiomediastinal enlargement
  | mediastinal enlargement
mediastinal shift: mediastinal shift | tracheal deviation | shift of the mediastinum | deviation of the trachea
opacity: opacity | opacification | density | haziness | haze | shadow | obscuration
consolidation: consolidation | infiltrate | infiltration | airspace disease | air space disease | airspace opacity
  | air space opacity | airspace opacification | airspace consolidation | air space consolidation
  | alveolar consolidation | consolidative opacity | alveolar opacity | airspace process | consolidative process
  | alveolar infiltrate | airspace infiltrate | consolidative change | air bronchogram | alveolar disease
pneumonia: pneumonia | bronchopneumonia | infectious process | pneumonitis | infection
atelectasis: atelectasis | atelectatic change | collapse | volume loss | loss of volume | atelectatic
  | atelectatic opacity
edema: edema | vascular congestion | pulmonary congestion | venous congestion | congestion | vascular engorgement
  | pulmonary vascular engorgement | vascular prominence | cephalization | congestive heart failure | heart failure
  | failure | kerley b line | kerley line | engorgement | fluid overload | volume overload | chf | congestive change
  | interstitial edema | alveolar edema | venous hypertension
interstitial disease: interstitial disease | interstitial lung disease | interstitial marking | interstitial opacity
  | interstitial change | interstitial prominence | reticular opacity | interstitial pattern
  | bronchovascular marking | interstitial thickening | interstitial fibrosis | pulmonary fibrosis | fibrotic change
  | fibrosis | honeycombing | reticulation | interstitial infiltrate | reticulonodular opacity | bronchiectasis
effusion: effusion | pleural effusion | pleural fluid | fluid collection | fluid | hydrothorax | blunting
  | costophrenic blunting | blunted costophrenic angle | blunted | hemothorax | pleural fluid collection
  | parapneumonic effusion
pneumothorax: pneumothorax | hydropneumothorax | pleural line | collapsed lung
pleural thickening: pleural thickening | pleural plaque | pleural scarring | pleural calcification | pleural scar
  | pleural abnormality | pleural disease | thickening of the pleura | pleural reaction | fissural thickening
lucency: lucency
nodule: nodule | nodular opacity | nodular density | nodularity | pulmonary nodule | nodular lesion
mass: mass | lesion | tumor | malignancy | neoplasm | metastasis | cancer | mass lesion
cavity: cavitation | cavity | cavitary lesion | cavitary
granuloma: granuloma | granulomatous disease | granulomatous change | granulomatous process
  | granulomatous calcification | calcified granuloma | histoplasmosis | calcified nodule | granulomatous infection
  | calcified lymph node | calcified node | calcified hilar lymph node | calcified mediastinal lymph node
tuberculosis: tuberculosis | tuberculous disease | tuberculous change
scar: scar | scarring | cicatrix | parenchymal scarring | scar formation | fibrotic scarring
emphysema: emphysema | emphysematous change | copd | chronic obstructive pulmonary disease | bulla | bullous disease
  | bullous change | obstructive pulmonary disease | obstructive disease | hyperlucency | hyperlucent
hyperinflation: hyperinflation | increased retrosternal airspace | increased retrosternal air space | hyperinflated
  | hyperexpanded | hyperexpansion | hyperdistention | overinflation | increased lung volume | hyperaeration
  | hyperaerated | overexpanded | air trapping | high lung volume | barrel chest
hypoinflation: hypoinflation | hypoinflated | low lung volume | lung volume low | hypoventilation | poor inspiration
  | shallow inspiration | low volume | decreased lung volume | hypoventilatory | poor inspiratory effort
  | reduced lung volume | bronchovascular crowding | crowding | diminished lung volume | small lung volume
  | hypoexpansion | hypoaeration
flattened diaphragm: flattened diaphragm | flattening of the diaphragm | flattened hemidiaphragm | flattening
  | flattened | diaphragmatic flattening
eventration: eventration
hiatal hernia: hiatal hernia | hernia | hiatus hernia
free air: free air | free intraperitoneal air | pneumoperitoneum | intraperitoneal air | free subdiaphragmatic air
  | subdiaphragmatic air | subdiaphragmatic free air
pneumomediastinum: pneumomediastinum | mediastinal air
subcutaneous emphysema: subcutaneous emphysema | subcutaneous air
adenopathy: adenopathy | lymphadenopathy | lymph node enlargement | enlarged lymph node
tortuous aorta: tortuous | tortuosity | unfolded | unfolding | ectatic | ectasia | uncoiled | uncoiling
  | elongated aorta
aneurysm: aneurysm | aneurysmal dilatation | aneurysmal
atherosclerosis: atherosclerosis | atherosclerotic | atherosclerotic calcification | atherosclerotic change
  | vascular calcification | atherosclerotic disease | atherosclerotic vascular disease
  | atherosclerotic vascular calcification | arteriosclerosis | coronary artery calcification | coronary calcification
  | arteriosclerotic calcification
degenerative change: degenerative change | degeneration | degenerative disease | degenerative | spondylosis
  | osteophyte | arthritic change | degenerative disc disease | arthritis | osteoarthritis | spurring | disc disease
  | endplate change | osteophytosis | degenerative endplate change | disc space narrowing | arthropathy | dish
  | spondylitic change | osteophyte formation | degenerative spurring | hypertrophic change | arthrosis
  | syndesmophyte | osteoarthritic change | hypertrophic spurring
spine curvature: scoliosis | dextroscoliosis | levoscoliosis | curvature | dextrocurvature | levocurvature
  | kyphosis | kyphoscoliosis | scoliotic | dextro scoliosis | kyphotic | dextroconvex | levoconvex
fracture: fracture | compression fracture | compression deformity | wedge deformity | wedging | rib fracture
  | vertebral fracture | height loss | loss of height | compression | wedge compression | broken | callus | deformity
dislocation: dislocation | subluxation
osteopenia: osteopenia | osteopenic | demineralization | osteoporosis | demineralized
bone lesion: bone lesion | lytic lesion | sclerotic lesion | osseous lesion | bony lesion | blastic lesion
  | bone destruction | destructive lesion
pectus: pectus excavatum | pectus
catheter: catheter | central line | picc | picc line | port | venous catheter | central venous catheter
  | port a cath | mediport | venous line | chest port | line tip | central venous line | dialysis catheter
  | infusion port | portacath
pacemaker: pacemaker | pacer | pacing device | icd | aicd | defibrillator | cardiac device | pacemaker lead | lead
  | generator | pulse generator | implanted medical device | pacemaker generator | stimulator
tube: tube | shunt | shunt tubing | tubing | endotracheal tube | enteric tube | feeding tube | nasogastric tube
  | ng tube | chest tube | tracheostomy | et tube | tracheostomy tube | drain | thoracostomy tube
clip: clip | surgical clip | suture | surgical suture | staple | surgical material | cholecystectomy clip
sternotomy: sternotomy | sternotomy wire | sternal wire | median sternotomy | median sternotomy wire | cabg | bypass
  | bypass graft | coronary artery bypass
valve: valve | prosthetic valve | valve replacement | valve prosthesis | annuloplasty
stent: stent | coronary stent
hardware: hardware | closure device | occluder | fixation | fusion hardware | orthopedic hardware | spinal fusion
  | fusion | prosthesis | arthroplasty | plate | rod | screw | surgical hardware | anchor
foreign body: foreign body | bullet | bullet fragment | shrapnel | metallic fragment
surgical change: surgical change | postsurgical change | postoperative change | post surgical change
  | post operative change | lobectomy | mastectomy | pneumonectomy | thoracotomy | resection | postsurgical
  | cholecystectomy
"""

ANATOMY = """
heart: heart | cardiac silhouette | heart size | cardiac size | cardiac | cardiac contour | heart contour
  | cardiac shadow | heart silhouette | heart shadow | ventricle | atrium | size of the heart
  | size of the cardiac silhouette | cardiac silhouette size
cardiomediastinum: cardiomediastinal silhouette | cardiomediastinal contour | cardiomediastinum | cardiomediastinal
  | cardio mediastinal | cardio mediastinal silhouette | cardio mediastinal contour | cardiomediastinal structure
  | cardiomediastinal size | cardiac and mediastinal contour | cardiac and mediastinal silhouette
  | cardiac mediastinal silhouette | cardiac mediastinal contour | cardiac and mediastinal silhouettes
mediastinum: mediastinum | mediastinal contour | mediastinal silhouette | mediastinal | mediastinal structure
aorta: aorta | aortic | thoracic aorta | aortic arch | aortic knob | arch | descending thoracic aorta
  | ascending aorta | descending aorta | great vessel
vasculature: pulmonary vasculature | vasculature | pulmonary vascularity | vascularity | vascular | pulmonary vessel
  | pulmonary vascular | vascular pattern | vascular marking | pulmonary vascular marking
artery: pulmonary artery | coronary artery | artery
hilum: hilum | hilar | perihilar | suprahilar | infrahilar | hilar contour | hilar structure
trachea: trachea | tracheal | airway | bronchus | carina | paratracheal
lung: lung | pulmonary | lung field | lung parenchyma | hemithorax | lobe | lung zone | parenchyma | parenchymal
  | midlung zone | midlung
lung volume: lung volume
airspace: airspace | air space | alveolar
upper lung: upper lobe | upper lung | apex | apical | biapical | lung apex | upper lung zone | upper zone
  | upper lung field
middle lung: middle lobe | mid lung | lingula | lingular | mid lung zone | midlung zone | lingular segment
lower lung: lower lobe | lower lung | base | basilar | basal | lung base | lower lung zone | lower zone
  | retrocardiac | infrahilar region | posterior base
pleura: pleura | pleural | pleural space | costophrenic | costophrenic angle | costophrenic sulcus | fissure
  | pleural surface
diaphragm: diaphragm | hemidiaphragm | diaphragmatic
bone: bone | bony | bony structure | osseous structure | osseous | osseus structure | osseus | skeletal structure
  | skeleton | bony thorax | skeletal | bone structure | bony skeleton | thoracic cage
spine: spine | vertebral | thoracic vertebral | thoracic spine | vertebra | vertebral body | spinal
  | thoracolumbar spine | lumbar spine | cervical spine | thoracic vertebra | disc | endplate | thoracolumbar
  | midthoracic spine | midthoracic | dorsal spine
rib: rib | rib cage
clavicle: clavicle | acromioclavicular joint
shoulder: shoulder | humerus | humeral | humeral head | glenohumeral joint | scapula
chest: chest | retrosternal airspace | retrosternal | cardiopulmonary | thorax | intrathoracic
chest wall: chest wall | soft tissue | breast | sternum | thoracic soft tissue
abdomen: abdomen | upper abdomen | stomach | bowel | quadrant | upper quadrant
lymph node: lymph node | node
"""

MODIFIERS = """
mild: mild | mildly | slight | slightly | minimal | minimally | small | tiny | trace | subtle | minor | little
  | faint
moderate: moderate | moderately
severe: severe | severely | large | marked | markedly | extensive | significant | massive | significantly | gross
  | huge
focal: focal | discrete | localized | confluent
diffuse: diffuse | diffusely | widespread | throughout
patchy: patchy | ill defined | hazy | vague
streaky: streaky | linear | bandlike | platelike | discoid | subsegmental | band like | plate like | curvilinear
multiple: multiple | scattered | several | multilevel | numerous | few
acute: acute | active | new | developing
chronic: chronic | old | prior | previous | remote | healed | sequela | residual
calcific: calcific | dense | densely
displaced: displaced
round: round | rounded | nodular
interstitial: interstitial | reticular
suspicious: suspicious
lateral: lateral | posterior | anterior | medial | superior | inferior
"""

# A side may bring its anatomy: "bibasilar" is both sides, lower lung.
SIDES = """
left: left
right: right
both: bilateral | bilaterally | both
both lower lung: bibasilar | bibasal
both upper lung: biapical
"""

# By the name of the cue's `lexicon.Kind`.
CUES: Mapping[str, str] = MappingProxyType(
    {
        "ABNORMALITY": """
abnormality: abnormality | disease | process | abnormal finding | finding | pathology | abnormal | acute finding
  | abnormal change | bony change | osseous change | acute change | injury | acute bony change
""",
        "CHANGE": """
stable: stable | unchanged | no change | not changed | no interval change | similar | constant | without change
  | no significant change | no significant interval change
increased: increased | worsened | worse | worsening | progressed | increase | progression
decreased: decreased | improved | improving | improvement | decrease
""",
        "NORMAL": """
limits: within normal limit | within limit of normal | upper limit of normal | top normal | upper normal
  | at the upper limit of normal | upper limit normal | top limit of normal | low normal
normal: normal | unremarkable | clear | intact | normal in size | midline | in the midline | normally inflated
  | well inflated | well expanded | clear and expanded | normal in size and contour | normal in appearance
  | well aerated | normal size | normal in contour | normal size and contour | normal in size and appearance
  | expanded | sharp | patent | normal in caliber | normally aerated | without abnormality | preserved | maintained
  | normal in size and configuration | normal limit | negative | non enlarged | nonenlarged | free
""",
        "BORDERLINE": """
borderline: borderline | borderline enlarged | borderline in size | borderline size | borderline enlargement
""",
        "ENLARGED": """
enlarged: enlarged | enlargement | prominent | prominence | widened | widening | dilated | big | dilatation
  | large in size
""",
        "CALCIFIED": """
calcified: calcified | calcification | calcific change
""",
        "LOW": """
low: low | reduced | diminished
""",
        "ELEVATED": """
elevated: elevated | elevation | raised
""",
        "NO": """
no: no | not | without | free of | clear of | negative for | absence of | no evidence of | without evidence of
  | no sign of | resolution of | removal of | nor | no evidence for | without evidence for | devoid of | never | non
  | neither | none | rather than | denies | aren't | isn't
""",
        "NOT_SEEN": """
no: not seen | not identified | not present | not visualized | not demonstrated | not appreciated | not evident
  | not noted | absent | has resolved | have resolved | resolved | ruled out | is not seen | are not seen
  | not definitely seen | has been removed | have been removed | not clearly seen | been removed | not detected
  | not apparent
""",
        "MAYBE": """
maybe: may | may represent | may reflect | may be | possible | possibly | probable | probably | suspicious for
  | suggest | suggesting | suggestive of | concerning for | likely | questionable | could | could represent | might
  | cannot exclude | question | favor | favored | perhaps | suspected | potential | suspicion for | presumably
  | likely representing | cannot rule out | question of | concern for | could be
""",
        "MAYBE_BEFORE": """
maybe: cannot be excluded | not excluded | cannot be ruled out | is possible | is suspected | not be excluded
  | are possible | is questioned
""",
        "EITHER": """
or: or | versus | vs
""",
        "BREAK": """
break: ; | but | however | although | though | except | , the | , there | and the | and there | while | whereas
  | with | , with | there is | there are | , which | which | aside from | apart from | and is | and are | , and the
  | , and there | , heart | , lung
""",
        "PLACE": """
in: in | of | at | within | along | involving | over | overlying | near | on | to | from | projecting over
""",
        "FUNCTION": """
-: otherwise | thoracic | upper | lower | mid | consistent with | compatible with | associated with | the | a | an
  | is | are | was | were | be | been | and | , | : | / | ( | ) | there | this | that | has | have | had | seen
  | noted | identified | present | visualized | demonstrated | evident | appear | appearing | visible | evidence
  | sign | any | both | other | definite | definitely | again | area | region | level | aspect | portion | size
  | contour | appearance | for | as | by | convincing | typical | specifically | also | only | overt | obvious | it
  | these | zone | sided | side | bilaterally | grossly | remain | show | reveal | demonstrate | structure | tissue
  | space | caliber | configuration | silhouette | field | limit
""",
    }
)
