"""What a run began with, and whether it can go on from what lies in its folder.

A step that is repeated costs nothing only if it is the same step: same data, same plan, same settings. ``start.json``
holds all of these and is pinned by the ledger's first note; whatever differs on resuming is named and refused.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dpeq.config import RunConfig, load_config
from dpeq.data.cards import Card
from dpeq.errors import ConfigError, DataError
from dpeq.privacy.ledger import Ledger, LedgerEntries
from dpeq.training.files import write_durably

if TYPE_CHECKING:
    from dpeq.data.images import ImageSet  # loads torch, which nobody needs who only reads what a run began with

__all__ = [
    "FILE",
    "MACHINE_KEYS",
    "Start",
    "fingerprint",
    "refuse_finished",
    "resumed_config",
    "settings_of",
    "written_settings",
]

FILE = "start.json"
_FORMAT = 1

MACHINE_KEYS = (
    "training.device",
    "training.threads",
    "training.physical_units",
    "training.checkpoint_every",
    "tracking",
    "data.root",
    "data.manifest",
    "data.workers",
    "data.cache",
    "data.cache_gib",
)
"""What may change when a run is resumed: it says where and how fast, not what. Data is recognised by its content.
Steps are repeated only on the same :func:`~dpeq.training.conditions.machine_of`, for it decides how sums round."""


def settings_of(config: RunConfig, card: Card) -> dict[str, Any]:
    """Every setting that the result depends on, flat, by its dotted name; infinity is the string "inf"."""
    kept = {
        **_lasting(config.model_dump(mode="json")),
        **dict(_flatten("card.", card.model_dump(mode="json"))),
    }
    if math.isinf(config.privacy.epsilon):
        kept["privacy.epsilon"] = "inf"
    if config.model.weights is not None:
        from dpeq.models.weights import sha256_of  # loads torch

        kept["model.weights"] = sha256_of(config.model.weights)  # by its content, wherever the file lies
    return json.loads(json.dumps(kept, allow_nan=False))


def written_settings(folder: Path) -> dict[str, Any]:
    """The same from the ``config.yaml`` of a run as it was written, without the card and this version's defaults.

    Starting weights are there by their path. Raises :class:`DataError` when the file cannot be read.
    """
    path = folder / "config.yaml"
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())}); restore it.") from error
    return _lasting(written if isinstance(written, dict) else {})


def without_seed(command: str) -> str:
    """A command line whose seed is left out: it is the key to the noise, and commands travel with reports."""
    return re.sub(r"\btraining\.seed=(?!null\b|None\b)\S+", "training.seed=<seed>", command)


def fingerprint(splits: Mapping[str, ImageSet], key: bytes) -> str:
    """Of all splits under the key of :func:`~dpeq.training.files.fingerprint_key`."""
    hashes = "".join(splits[name].sha256() for name in sorted(splits))
    return hmac.new(key, hashes.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Start:
    """What a run began with.

    Attributes:
        run: a random name, so that no two runs have the same ledger.
        command, started: for the provenance.
        rng, seed: kind of randomness; the key of a secure run is nowhere.
        init_seed: of the initial weights, which are public.
        plan_sha256: of the plan.
        data_sha256: keyed fingerprint of all splits.
        settings: :func:`settings_of` the configuration.
        versions: :func:`~dpeq.training.conditions.code_versions`.
        machine: :func:`~dpeq.training.conditions.machine_of` the first process; a later one's is in its resume note.
    """

    run: str
    command: str
    started: str
    rng: str
    seed: int | None
    init_seed: int
    plan_sha256: str
    data_sha256: str
    settings: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]

    @staticmethod
    def new_name() -> str:
        return secrets.token_hex(16)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(_canonical(asdict(self)).encode()).hexdigest()

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint of this run carries."""
        names = ("run", "plan_sha256", "data_sha256", "rng", "seed")
        settings = hashlib.sha256(_canonical(self.settings).encode()).hexdigest()
        return {name: getattr(self, name) for name in names} | {"config_sha256": settings}

    def write(self, folder: Path) -> None:
        write_durably(folder / FILE, (_canonical({"format": _FORMAT, **asdict(self)}) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> Start:
        """Raises :class:`ConfigError` when no run ever began in ``folder``, :class:`DataError` for a damaged file."""
        path = folder / FILE
        if not folder.is_dir():
            raise ConfigError(f"There is no run folder {folder}; name the folder that training wrote.")
        if not path.is_file() or not (folder / "ledger.jsonl").is_file():
            raise ConfigError(
                f"{folder} has no {FILE if not path.is_file() else 'ledger.jsonl'}, so no run can go on there; "
                "train anew."
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != _FORMAT or values.keys() != {f.name for f in fields(cls)}:
                raise ValueError("another format")
        except (OSError, ValueError, AttributeError, KeyError) as error:
            raise DataError(f"{path} cannot be used ({error}); restore it from a backup.") from error
        return cls(**values)

    def check_settings(self, config: RunConfig, card: Card) -> None:
        """Raises :class:`ConfigError` naming the first setting that is not what it was."""
        now = settings_of(config, card)
        for key in sorted(now.keys() | self.settings.keys()):
            if now.get(key) != self.settings.get(key):
                raise ConfigError(
                    f"{key} is {now.get(key)!r} but was {self.settings.get(key)!r} when the run began; only "
                    f"{', '.join(MACHINE_KEYS[:-1])} and {MACHINE_KEYS[-1]} may change on resuming."
                )

    def check_data(self, fingerprint: str) -> None:
        """Raises :class:`DataError` when the data is not what the run began with."""
        if fingerprint != self.data_sha256:
            raise DataError(
                "The data is not what it was when the run began (its fingerprint differs); give the same data, or "
                "train anew."
            )

    def check_ledger(self, ledger: Ledger) -> None:
        """Raises :class:`DataError` unless ``ledger`` is this run's and ``self`` is what it was; binds an empty one."""
        if ledger.plan.sha256 != self.plan_sha256:  # also where no note binds the two yet
            raise DataError(
                f"The ledger {ledger.path} was begun under another plan than the {FILE} beside it; restore plan.json "
                "and ledger from a backup, or train anew."
            )
        starts = [note for note in ledger.notes if note["kind"] == "start"]
        if not starts and ledger.steps == 0:
            ledger.note("start", sha256=self.sha256)  # the crash came before this line, and before any step
        elif [note.get("sha256") for note in starts] != [self.sha256]:
            raise DataError(
                f"The ledger {ledger.path} does not belong to the {FILE} beside it: one of them was changed or "
                "replaced; restore both from a backup."
            )

    def check_files(self, folder: Path, entries: LedgerEntries) -> None:
        """Raises :class:`DataError` when the ledger or ``config.yaml`` in ``folder`` is not what the run began with.

        The file is compared as it was written, without this version's defaults: a setting that is not in both was
        added or removed by hand.
        """
        starts = [entry.get("sha256") for entry in entries if entry["kind"] == "start"]
        if entries[0]["plan_sha256"] != self.plan_sha256 or (starts != [self.sha256] and (starts or entries.steps)):
            raise DataError(
                f"The {FILE} in {folder} is not the one that its ledger belongs to: one of them was "
                "changed or replaced; restore them from a backup."
            )
        path, now = folder / "config.yaml", written_settings(folder)
        was = {key: value for key, value in _lasting(self.settings).items() if not key.startswith("card.")}
        for key in sorted(now.keys() | was.keys()):
            ours, theirs = now.get(key), was.get(key)
            if key == "model.weights":  # a path there, a hash here
                ours, theirs = ours is None, theirs is None
            if ours != theirs or (key in now) != (key in was):
                raise DataError(
                    f"{path} says {key} {now.get(key)!r}, but the run began with {was.get(key)!r}; restore the file "
                    "from a backup."
                )

    def check_record(self, path: Path, record: Mapping[str, Any], entries: LedgerEntries) -> None:
        """Raises :class:`DataError` when the record of the finished run, in ``path``, tells another beginning.

        What an older version did not record is not missed.
        """
        resumes = [entry for entry in entries if entry["kind"] == "resume"]
        data = record["data"] if isinstance(record.get("data"), dict) else {}
        card = {key: value for key, value in self.settings.items() if key.startswith("card.")}
        logged = record.get("log_private_metrics")
        for name, told, was in (
            *((key, record.get(key), getattr(self, key)) for key in ("command", "started", "rng", "seed")),
            ("log_private_metrics", logged, self.settings.get("training.log_private_metrics", logged)),
            ("data.sha256", data.get("sha256"), self.data_sha256),
            ("data.card", data.get("card") and dict(_flatten("card.", data["card"])), card),
            ("resumed", record.get("resumed"), len(resumes)),
            ("steps_lost", record.get("steps_lost"), _lost(self.seed is not None, resumes)),
        ):
            if told is not None and told != was:
                raise DataError(
                    f"{path} has another {name} than {FILE} and the ledger beside it; restore the run from a backup."
                )

    def check_checkpoint(self, path: str, theirs: Mapping[str, Any]) -> None:
        """Raises :class:`DataError` naming what a checkpoint disagrees on."""
        for name, value in self.identity.items():
            if theirs.get(name) != value:
                raise DataError(
                    f"The checkpoint {path} belongs to another run ({name} differs); put this run's own back, or "
                    "delete it."
                )


def refuse_finished(folder: Path) -> None:
    """Raises :class:`ConfigError` when there is nothing left to do in ``folder``."""
    if (folder / "run.json").is_file():
        raise ConfigError(
            f"The run in {folder} is finished; 'dpeq report {folder}' writes its report, a new run needs a CONFIG."
        )


def resumed_config(folder: Path, overrides: list[str], *, data_root: Path | None = None) -> RunConfig:
    """The configuration of an unfinished run, with overrides that :meth:`Start.check_settings` has yet to allow."""
    Start.read(folder)
    refuse_finished(folder)
    return load_config(folder / "config.yaml", overrides, data_root=data_root)


def _lost(seeded: bool, resumes: Sequence[Mapping[str, Any]]) -> int:
    """Steps that went into no weights: each process goes on from a checkpoint, and what was spent behind it is lost.

    A checkpoint of step c was written by the last process that had begun before c; its own losses are in it.
    """
    if seeded or not resumes:
        return 0  # a seeded run repeats such steps
    *before, last = resumes
    while before and before[-1]["ledger_steps"] >= last["checkpoint_step"]:
        before.pop()
    return int(last["ledger_steps"]) - int(last["checkpoint_step"]) + _lost(seeded, before)


def _lasting(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, flat, without :data:`MACHINE_KEYS`."""
    flat = _flatten("", values)
    return {k: v for k, v in flat if not any(k == key or k.startswith(f"{key}.") for key in MACHINE_KEYS)}


def _flatten(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat += _flatten(f"{prefix}{key}.", value)
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
