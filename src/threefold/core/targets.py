"""Targets: the labels that a case may have, as declared in cohort.yaml. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from threefold.experiment.spec import Spec


def _text(value: Any) -> Any:
    """Refuse what YAML did not read as text, with the reason a user can't guess."""
    if isinstance(value, bool | int | float):
        raise ValueError(
            "expected text. YAML reads yes, no, on and off as true or false, and 077 as 63: write the name "
            "in quotes"
        )
    if isinstance(value, str) and (not value or value != value.strip() or not value.isprintable()):
        raise ValueError("expected a name without spaces around it and without control characters")
    return value


Name = Annotated[str, BeforeValidator(_text)]


def refuse_repeats(key: str, names: Iterable[str]) -> None:
    """Raise ValueError where a name is there twice."""
    seen: set[str] = set()
    twice = sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]
    if twice:
        raise ValueError(f"{key}: {', '.join(twice)} named more than once")


class ClassTarget(Spec):
    """One of K classes. Its column contains the name of a class."""

    kind: Literal["class"] = "class"
    classes: tuple[Name, ...] = Field(min_length=2)
    """In the order of the class indices."""
    positive: Name | None = None
    """The positive class of two; null: the last."""

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        refuse_repeats("classes", self.classes)
        if self.positive is not None and self.positive not in self.classes:
            raise ValueError(
                f"positive is '{self.positive}', which is not one of classes {list(self.classes)}"
            )
        return self

    @model_serializer(mode="wrap")
    def _with_kind(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Said even where defaults are left out: reading tells the targets apart by it.
        return {"kind": self.kind, **plain(self)}

    @property
    def positive_class(self) -> int | None:
        """Index of the positive class of a two-class question; None otherwise."""
        if len(self.classes) != 2:
            return None
        return 1 if self.positive is None else self.classes.index(self.positive)


class MultilabelTarget(Spec):
    """K findings, each present or absent. One column per finding, NAME_FINDING: 1, 0, or empty if unknown."""

    kind: Literal["multilabel"]
    classes: tuple[Name, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        refuse_repeats("classes", self.classes)
        return self

    def column(self, target: str, finding: str) -> str:
        """Return the column of a finding."""
        return f"{target}_{finding}"


class NumberTarget(Spec):
    """A number. Its column contains the value in `unit`."""

    kind: Literal["number"]
    unit: str = ""
    """In print, for example weeks or mL."""


class MaskSpec(Spec):
    """A binary mask. Its column contains the path of a label map on the image's grid."""

    name: Name = "lesion"
    """In print."""
    values: tuple[int, ...] = Field(default=(1,), min_length=1)
    """Voxel values of the foreground."""
    outside: tuple[int, ...] = Field(default=(0,))
    """Voxel values of the background; any other value is an error."""

    @model_validator(mode="after")
    def _are_apart(self) -> Self:
        both = sorted({*self.values} & {*self.outside})
        if both:
            raise ValueError(
                f"the value {both[0]} can't be inside (values) and outside (outside) at once; name what is "
                "outside, such as outside: [255]"
            )
        return self


class MaskTarget(MaskSpec):
    """A binary mask with its own name."""

    kind: Literal["mask"]


class LabelsTarget(Spec):
    """Mutually exclusive structures. Its column contains the path of a label map on the image's grid."""

    kind: Literal["labels"]
    names: tuple[Name, ...] = Field(min_length=1)
    """Names of the labels 1, 2, ...; 0 is the background."""

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        refuse_repeats("names", self.names)
        return self


TargetSpec = Annotated[
    ClassTarget | MultilabelTarget | NumberTarget | MaskTarget | LabelsTarget, Field(discriminator="kind")
]
TargetValue = Any
"""Of a case: class index, findings (tuple of True, False or None), number, or path of a label map."""

DENSE = ("mask", "labels")
"""Kinds of targets that are a label for each voxel."""
