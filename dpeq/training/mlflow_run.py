"""The curves of a run in an MLflow store (extra ``dpeq[mlflow]``): a server, or a local folder beside the runs.

The client is used without MLflow's global state, which would record the user's name, the command and the git remote.
MLflow reports its use to its makers unless it is told not to; dpeq tells it not to, for the whole process, unless the
environment says otherwise (``MLFLOW_DISABLE_TELEMETRY``).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from dpeq import __version__
from dpeq.config import RunConfig
from dpeq.errors import ConfigError
from dpeq.privacy.plan import PrivacyPlan
from dpeq.training.tracking import Point, public_settings

__all__ = ["MLflowRun", "import_mlflow", "send_files"]

_log = logging.getLogger(__name__)

_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # a folder needs no data base; newer versions ask for this
    # A server that is gone must not hold up the training for the minutes that MLflow would try.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_PARAMS_AT_ONCE, _METRICS_AT_ONCE = 100, 1000  # limits of MLflow's REST interface
_FIRST_WAIT, _LONGEST_WAIT = 30.0, 600.0  # seconds


def import_mlflow() -> Any:
    """The package ``mlflow``; raises :class:`ConfigError` when it is not installed."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow
        from mlflow import MlflowClient  # noqa: F401  # a folder called mlflow would pass for the package
    except ImportError as error:
        raise ConfigError(
            f"tracking.mlflow is true but MLflow cannot be imported ({error}); run `pip install dpeq[mlflow]`, or set "
            "tracking.mlflow=false."
        ) from error
    return mlflow


class MLflowRun:
    """One run in an MLflow store; its id is kept in ``mlflow.json`` in the run directory.

    A failure while the run is being made is a :class:`ConfigError`: nothing has been spent yet. After that nothing that
    MLflow does ends the training, for its steps have been paid for with budget that nothing brings back, and a curve is
    worth less. The failure is not hidden: it is logged once, and :attr:`warnings` puts it into the report. What could
    not be sent is kept and sent later.
    """

    def __init__(self, config: RunConfig, folder: Path, plan: PrivacyPlan) -> None:
        mlflow = import_mlflow()
        self._metric = mlflow.entities.Metric
        self._uri = _address(config, folder)
        self._place = f"MLflow at {_without_password(self._uri)}"
        self._pending: list[Any] = []
        self._wait, self._not_before = _FIRST_WAIT, 0.0
        self._failure: str | None = None
        known = folder / "mlflow.json"
        settings = public_settings(config, plan)
        try:
            self._client = mlflow.MlflowClient(tracking_uri=self._uri)
            run_id = None if known.exists() else self._create(mlflow, folder.name, plan, settings)
        except (
            Exception
        ) as error:  # its own, those of requests, ImportError of a driver, and bare ones of its file store
            raise ConfigError(
                f"MLflow cannot begin a run at {_without_password(self._uri)} ({_reason(error, self._uri)}); mend "
                "tracking.mlflow_uri, or set tracking.mlflow=false."
            ) from error
        if run_id is not None:
            known.write_text(json.dumps({"run_id": run_id, "place": self._place}) + "\n", encoding="utf-8")
        self._id: str = json.loads(known.read_text(encoding="utf-8"))["run_id"]
        self._attempt(lambda: self._client.update_run(self._id, status="RUNNING"))

    @property
    def warnings(self) -> list[str]:
        if self._failure is None:
            return []
        missing = f"{len(self._pending)} values are missing there" if self._pending else "what was kept was sent later"
        return [f"{self._place} failed during training ({self._failure}); training went on, and {missing}."]

    def write(self, points: Sequence[Point], at: float) -> None:
        self._pending += [self._metric(tag, value, int(1000 * at), step) for tag, value, step in points]
        if time.monotonic() >= self._not_before:
            self._send()

    def close(self, status: str) -> None:
        self._send()
        self._attempt(lambda: self._client.set_terminated(self._id, status))

    def _create(self, mlflow: Any, run: str, plan: PrivacyPlan, settings: Mapping[str, Any]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "dpeq")
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        level = f"epsilon {plan.epsilon_target:g}, delta {plan.delta:g} per {plan.unit}"
        tags = {"dpeq": __version__, "privacy": level if plan.private else "NON-PRIVATE"}
        run_id: str = self._client.create_run(number, run_name=run, tags=tags).info.run_id
        params = [mlflow.entities.Param(key, str(value)) for key, value in settings.items()]
        for first in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(run_id, params=params[first : first + _PARAMS_AT_ONCE])
        return run_id

    def _send(self) -> None:
        def send() -> None:
            while self._pending:
                self._client.log_batch(self._id, metrics=self._pending[:_METRICS_AT_ONCE])
                del self._pending[:_METRICS_AT_ONCE]

        if self._attempt(send):
            self._wait, self._not_before = _FIRST_WAIT, 0.0
        else:
            self._not_before = time.monotonic() + self._wait
            self._wait = min(2 * self._wait, _LONGEST_WAIT)

    def _attempt(self, action: Callable[[], object]) -> bool:
        """Whether MLflow did it. Its file store raises bare ``Exception``; why none ends a run, the class says."""
        try:
            action()
        except Exception as error:
            if self._failure is None:
                self._failure = _reason(error, self._uri)
                _log.warning("%s failed (%s); training goes on and tries again later.", self._place, self._failure)
            return False
        return True


def send_files(config: RunConfig, folder: Path, names: Sequence[str]) -> None:
    """Gives files of the run directory ``folder`` to its MLflow run; a failure is logged, for the run is complete."""
    mlflow = import_mlflow()
    known = folder / "mlflow.json"
    if not known.exists():
        return  # a run that was tracked nowhere, such as one from before tracking was asked for
    uri = _address(config, folder)
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        run_id = json.loads(known.read_text(encoding="utf-8"))["run_id"]
        for name in names:
            client.log_artifact(run_id, str(folder / name))
    except Exception as error:  # as for the curves
        _log.warning("MLflow at %s did not take the report (%s).", _without_password(uri), _reason(error, uri))


def _address(config: RunConfig, folder: Path) -> str:
    given = config.tracking.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    store = folder.resolve().parent / "mlruns"
    store.mkdir(mode=0o700, exist_ok=True)  # MLflow's files in it have the usual modes
    return store.as_uri()


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _reason(error: Exception, uri: str) -> str:
    """The error in one short line, without the user and password that its address may hold."""
    user = urlsplit(uri).netloc.rpartition("@")[0]
    text = " ".join(str(error).split()).replace(uri, _without_password(uri))
    return (text.replace(f"{user}@", "") if user else text)[:200]
