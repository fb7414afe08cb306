"""Images out of headers: whose each one is, which label and split it has, and what is left out for lack of these."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dpeq.data.index.labels import Classes, Table
from dpeq.data.index.layout import Layout
from dpeq.data.index.scan import Scan
from dpeq.data.index.spelling import composed
from dpeq.data.manifest import SPLITS
from dpeq.data.readers.dicom_series import assemble
from dpeq.data.readers.source import Header, Member, Refused, Source
from dpeq.errors import DataError

__all__ = ["Gathering", "Image", "Mask"]

_ONE = (Member(),)  # of a format whose files are one image each
_SEVERAL = {
    "path": "files of names that look the same",
    "image_id": "images of several files or patients",
    "series_id": "series of several patients",
    "study_id": "studies of several patients",
}
_NO_PATIENT = "no patient is known for it; give --layout, or a table with path and patient_id"


@dataclass(slots=True)
class Mask:
    """A file of one image that fits the pattern of masks."""

    source: Source
    shape: tuple[int, int, int, int]
    values: dict[str, str]


@dataclass(slots=True)
class Image:
    """One image that is a candidate for the manifest.

    Attributes:
        identity: what tells it from every other image, wherever the archive lies; its pseudonym is made of it.
        ids: by placeholder of a layout, "" where there is none; the header's, or else the path's.
        label, split: as resolved; a split of "" is still to be made.
        groups: value by attribute, of those that are known; what a header says of the site is a name.
    """

    source: Source
    shape: tuple[int, int, int, int]
    modality: str
    burned_in: bool
    identity: tuple[str, ...]
    ids: dict[str, str]
    label: int = -1
    split: str = ""
    mask: Mask | None = None
    groups: dict[str, str] = field(default_factory=dict)


@dataclass
class Gathering:
    """Goes through all headers once; what cannot become an image is rejected in the scan as it comes by.

    Attributes:
        masks_found: files that fit the pattern of masks.
        unmatched: ``(kind, name, reason)`` of what found no partner, each once, for the private list.
        left_out: by file, images of files of which other images are used.
    """

    scan: Scan
    classes: Classes
    table: Table | None = None
    layout: Layout | None = None
    masks: Layout | None = None
    masks_found: list[Mask] = field(default_factory=list)
    unmatched: dict[tuple[str, str, str], None] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    _owners: dict[str, set[tuple[str, ...]]] = field(default_factory=lambda: defaultdict(set))

    def images(self) -> list[Image]:
        """All images of known patient and label."""
        found = list(self._candidates())
        torn = {key for key, owners in self._owners.items() if len(owners) > 1}
        if self.table is None or not torn:
            return found
        # Ids that are unique in a patient or a file alone, such as numbers: whom the row means must not be guessed.
        kind = self.table.key
        good = [image for image in found if not torn.intersection(_keys(image)[kind])]
        used = {image.source.files for image in good}
        rejected: dict[tuple[str, ...], Refused] = {}
        for image in found:
            if torn.intersection(_keys(image)[kind]):
                why = self._list_key(image, f"its row in the table fits {_SEVERAL[kind]}")
                if image.source.files in used:
                    self._leave_out(image, why)
                else:
                    rejected[image.source.files] = why
        for files, why in rejected.items():
            self.scan.reject(files, why)
        return good

    def _candidates(self) -> Iterator[Image]:
        twice = self.scan.claimed_twice()
        for slices in self.scan.slices():
            yield from self._of_series(slices, twice)
        for path, header in self.scan.whole():
            yield from self._of_file(path, header, twice)

    def _of_series(self, slices: list[tuple[str, Header]], twice: frozenset[str]) -> Iterator[Image]:
        first = slices[0][1]
        paths = [path for path, _ in slices]
        try:
            # All of a series or nothing: without some of its files it might still look whole.
            values = self._values(paths)
            if values is None:
                raise Refused("a mask in slices; one file with all of them is read")
            if first.series in twice:
                raise Refused("a series that belongs to two patients")
        except Refused as error:
            self._touch(paths, first, {})
            self.scan.reject(paths, error)
            return
        sources, refusals = assemble(slices)
        if sorted([*(f for s in sources for f in s.files), *(f for f, _ in refusals)]) != sorted(paths):
            raise DataError("A series lost a file, which is an error in dpeq; please report it.")
        for path, reason in refusals:
            self.scan.reject([path], reason)
        if not sources:
            self._touch(paths, first, values)
        headers = dict(slices)
        for number, source in enumerate(sources):
            header = headers[source.files[0]]
            image = Image(
                source,
                (*header.shape[:3], len(source.files)),
                header.modality,
                any(headers[file].burned_in for file in source.files),
                ("dicom", header.patient, header.study, header.series, str(number)),
                _ids(values, header.patient, header.study, header.series, ""),
                groups=_common([headers[file] for file in source.files]),
            )
            if refused := self._resolve(image, header.patient, values):
                self.scan.reject(source.files, refused)
            else:
                yield image

    def _of_file(self, path: str, header: Header, twice: frozenset[str]) -> Iterator[Image]:
        try:
            values = self._values([path])
            if header.format == "enhanced" and header.series in twice:
                raise Refused("a series that belongs to two patients")
            if values is None:
                self._take_mask(path, header)
                return
        except Refused as error:
            self._touch([path], header, {})
            self.scan.reject([path], error)
            return
        good: list[Image] = []
        bad: list[tuple[Image, Refused]] = []
        for part, member in enumerate(header.members or _ONE):
            image = Image(
                Source(header.format, (path,), part),
                header.shape,
                header.modality,
                header.burned_in,
                ("file", header.patient, header.study, header.series, path, str(part)),
                _ids(values, header.patient or member.patient, header.study, header.series, member.image),
                groups=dict(header.groups),
            )
            refused = self._resolve(image, header.patient or member.patient, values)
            if refused is None:
                good.append(image)
            else:
                bad.append((image, refused))
        if not good:
            self.scan.reject([path], bad[0][1])
            return
        for image, why in bad:
            self._leave_out(image, why)
        yield from good

    def _leave_out(self, image: Image, why: Refused) -> None:
        (path,) = image.source.files
        self.left_out[path] += 1
        self.note("image", f"{path}#{image.source.part}", why.reason)

    def _take_mask(self, path: str, header: Header) -> None:
        assert self.masks is not None
        if len(header.members or _ONE) != 1:
            raise Refused("a mask of several images in one file")
        values = self.masks.match(path)
        assert values is not None
        self.masks_found.append(Mask(Source(header.format, (path,)), header.shape, values))

    def _values(self, paths: Sequence[str]) -> dict[str, str] | None:
        """What the paths of one image or series say together; None for a mask."""
        if self.masks is not None and any(self.masks.match(path) is not None for path in paths):
            return None
        if self.layout is None:
            return {}
        values: dict[str, str] = {}
        for path in paths:
            found = self.layout.match(path)
            if found is None:
                raise Refused("its path does not fit the layout")
            if len(paths) > 1:
                found.pop("image", None)  # a slice's own name
            if values and found != values:
                raise Refused("a series whose paths say different things")
            values = found
        return values

    def _resolve(self, image: Image, patient: str, values: dict[str, str]) -> Refused | None:
        """Settles patient, label and split of an image, or says why not."""
        told = {name for name in (patient, values.get("patient", "")) if name}
        if len(told) > 1:
            return Refused("its header and its path name different patients")
        row = None
        if self.table is not None:
            try:
                row = self.table.find(_keys(image))
            except LookupError:
                return Refused("the table says different things of its files")
            if row is not None and row.patient and self.table.key != "patient_id":
                told.add(row.patient)
                if len(told) > 1:
                    return self._list_key(image, "the table gives it another patient")
        if not told:
            return Refused(_NO_PATIENT)
        image.ids["patient"] = told.pop()
        if self.table is not None:
            # An attribute that was asked of the table is the table's alone: its words and a header's do not mix.
            stated = {name: value for name, value in image.groups.items() if name not in self.table.groups}
            image.groups = {**stated, **(row.groups if row is not None else {})}
        if row is not None and self.table is not None and self.table.key in _SEVERAL:
            owner = (image.ids["patient"], *(image.source.files if self.table.key == "image_id" else ()))
            for number, key in enumerate(_keys(image)[self.table.key]):
                self._owners[key].add((image.source.files[number],) if self.table.key == "path" else owner)
        if self.layout is not None and "label" in self.layout.names:
            label = self.classes.index(values["label"])
            if label is None:
                return self._list_key(image, "its label is none of the classes")
            image.label = label
        elif row is None:
            return self._list_key(image, "no label is known for it")
        elif row.label is None:
            return self._list_key(image, row.problem)
        else:
            image.label = row.label
        if self.layout is not None and "split" in self.layout.names:
            image.split = values["split"]
            if image.split not in SPLITS:
                return Refused(f"its split is none of {', '.join(SPLITS)}")
        elif self.table is not None and self.table.has_splits:
            if row is None:
                return self._list_key(image, "no split is known for it")
            image.split = row.split
        return None

    def _touch(self, paths: Sequence[str], header: Header, values: dict[str, str]) -> None:
        """Rows about images that are rejected for what they are do have images."""
        if self.table is not None:
            ids = _ids(values, header.patient, header.study, header.series, "")
            shape = (0, 0, 0, 0)
            keys = _keys(Image(Source(header.format, tuple(paths)), shape, "", False, (), ids))
            self.table.used.update(set(keys[self.table.key]) & set(self.table.rows))

    def note(self, kind: str, name: str, reason: str) -> None:
        """An entry of the private list of what found no partner."""
        self.unmatched[kind, name, reason] = None

    def _list_key(self, image: Image, reason: str) -> Refused:
        """Lists the id that a row would have had, each once: of a patient rather than of all of its images."""
        kind = self.table.key if self.table is not None else "path"
        self.note(kind, next(iter(_keys(image)[kind]), image.source.files[0]), reason)
        return Refused(reason)


def _common(headers: Sequence[Header]) -> dict[str, str]:
    """What the headers of all files of an image say of groups."""
    return dict(set.intersection(*(set(header.groups) for header in headers)))


def _ids(values: dict[str, str], patient: str, study: str, series: str, image: str) -> dict[str, str]:
    told = {"patient": patient, "study": study, "series": series, "image": image}
    return {**values, **{name: text or values.get(name, "") for name, text in told.items()}}


def _keys(image: Image) -> dict[str, tuple[str, ...]]:
    """The ids of an image under the names of the columns of a table."""
    named = {name: image.ids[name] for name in ("image", "series", "study", "patient")}
    paths = tuple(map(composed, image.source.files))
    return {"path": paths, **{f"{name}_id": (text,) if text else () for name, text in named.items()}}
