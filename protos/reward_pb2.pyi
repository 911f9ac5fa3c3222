from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Pair(_message.Message):
    __slots__ = ("reference", "hypothesis")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    HYPOTHESIS_FIELD_NUMBER: _ClassVar[int]
    reference: str
    hypothesis: str
    def __init__(self, reference: _Optional[str] = ..., hypothesis: _Optional[str] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("pairs", "components")
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    pairs: _containers.RepeatedCompositeFieldContainer[Pair]
    components: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, pairs: _Optional[_Iterable[_Union[Pair, _Mapping]]] = ..., components: _Optional[_Iterable[str]] = ...) -> None: ...

class PairScore(_message.Message):
    __slots__ = ("components", "error")
    class ComponentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    components: _containers.ScalarMap[str, float]
    error: str
    def __init__(self, components: _Optional[_Mapping[str, float]] = ..., error: _Optional[str] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("scores", "backend", "definition", "models")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedCompositeFieldContainer[PairScore]
    backend: str
    definition: str
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, scores: _Optional[_Iterable[_Union[PairScore, _Mapping]]] = ..., backend: _Optional[str] = ..., definition: _Optional[str] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class LabelRequest(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, texts: _Optional[_Iterable[str]] = ...) -> None: ...

class TextLabels(_message.Message):
    __slots__ = ("classes", "error")
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedScalarFieldContainer[int]
    error: str
    def __init__(self, classes: _Optional[_Iterable[int]] = ..., error: _Optional[str] = ...) -> None: ...

class LabelResponse(_message.Message):
    __slots__ = ("labels", "backend", "definition", "models")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedCompositeFieldContainer[TextLabels]
    backend: str
    definition: str
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, labels: _Optional[_Iterable[_Union[TextLabels, _Mapping]]] = ..., backend: _Optional[str] = ..., definition: _Optional[str] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("pairs",)
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    pairs: _containers.RepeatedCompositeFieldContainer[Pair]
    def __init__(self, pairs: _Optional[_Iterable[_Union[Pair, _Mapping]]] = ...) -> None: ...

class Relation(_message.Message):
    __slots__ = ("kind", "target", "target_label", "credit")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TARGET_LABEL_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    target: str
    target_label: str
    credit: float
    def __init__(self, kind: _Optional[str] = ..., target: _Optional[str] = ..., target_label: _Optional[str] = ..., credit: _Optional[float] = ...) -> None: ...

class Entity(_message.Message):
    __slots__ = ("name", "label", "start", "end", "credit", "counterpart", "relations")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    COUNTERPART_FIELD_NUMBER: _ClassVar[int]
    RELATIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    label: str
    start: int
    end: int
    credit: float
    counterpart: int
    relations: _containers.RepeatedCompositeFieldContainer[Relation]
    def __init__(self, name: _Optional[str] = ..., label: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., credit: _Optional[float] = ..., counterpart: _Optional[int] = ..., relations: _Optional[_Iterable[_Union[Relation, _Mapping]]] = ...) -> None: ...

class PairExplanation(_message.Message):
    __slots__ = ("reference", "hypothesis", "error")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    HYPOTHESIS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    reference: _containers.RepeatedCompositeFieldContainer[Entity]
    hypothesis: _containers.RepeatedCompositeFieldContainer[Entity]
    error: str
    def __init__(self, reference: _Optional[_Iterable[_Union[Entity, _Mapping]]] = ..., hypothesis: _Optional[_Iterable[_Union[Entity, _Mapping]]] = ..., error: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("explanations", "backend", "definition", "models")
    EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    explanations: _containers.RepeatedCompositeFieldContainer[PairExplanation]
    backend: str
    definition: str
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, explanations: _Optional[_Iterable[_Union[PairExplanation, _Mapping]]] = ..., backend: _Optional[str] = ..., definition: _Optional[str] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: str
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("backend", "definition", "formula", "components", "models", "versions", "max_pairs_per_request", "max_characters_per_report")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_FIELD_NUMBER: _ClassVar[int]
    FORMULA_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_PAIRS_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    MAX_CHARACTERS_PER_REPORT_FIELD_NUMBER: _ClassVar[int]
    backend: str
    definition: str
    formula: str
    components: _containers.RepeatedScalarFieldContainer[str]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    versions: _containers.ScalarMap[str, str]
    max_pairs_per_request: int
    max_characters_per_report: int
    def __init__(self, backend: _Optional[str] = ..., definition: _Optional[str] = ..., formula: _Optional[str] = ..., components: _Optional[_Iterable[str]] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., versions: _Optional[_Mapping[str, str]] = ..., max_pairs_per_request: _Optional[int] = ..., max_characters_per_report: _Optional[int] = ...) -> None: ...
